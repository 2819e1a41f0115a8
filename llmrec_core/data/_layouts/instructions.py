"""Instruction records (instruction, input, output): what they tell about users and items, where they tell it.

What training can use: where the input quotes titles that are liked and disliked and asks about one more, each record is
a user with a history and a judged item, as in every other dataset. Where only a yes or no can be read, each record is
an item whose text is the prompt and whose rating is the answer: a click head learns from the fields ``instruction``
and ``input`` under a random split of rows, and nothing that needs histories can be trained. Other records are kept as
text beside interactions of other files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._layouts.streams import Names, Record, StreamForm, is_yes
from llmrec_core.data._role_names import rank_of
from llmrec_core.data._sources import Source

_QUOTED = re.compile(r'"([^"\n]{1,300})"|\u201c([^\u201d\n]{1,300})\u201d')
#: What a quoted title is, told by the nearest words before it.
_CUES = re.compile(
    r"(?i)(?P<disliked>un-?preference|dis-?lik\w*|(?:does|did|do) not (?:like|enjoy)|hat(?:e|es|ed)\b|negative|不喜欢)"
    r"|(?P<target>target|whether|(?:will|would) (?:the user )?(?:like|enjoy)|candidate|目标|是否)"
    r"|(?P<liked>preference|lik(?:e|es|ed)\b|enjoy\w*|prefer\w*|watched|bought|read\b|history|interacted|positive|喜欢)"
)
_LONGEST_TITLE = 300

Use = Literal["judged", "next", "answers", "texts"]


@dataclass(frozen=True)
class InstructionForm:
    """Columns of the records, and what can be used of them.

    ``use``: "judged" (liked and disliked titles and a judged one), "next" (titles and the next one), "answers" (yes or
    no to a text) or "texts".
    """

    instruction: str | None
    input: str | None
    output: str
    use: Use
    notes: tuple[str, ...]

    @property
    def roles(self) -> dict[str, str]:
        named = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return {role: column for role, column in named.items() if column is not None}


def find_instructions(source: Source, sample: pa.Table, said: dict[str, str], told: bool) -> InstructionForm | None:
    """How a file holds instruction records; None where it holds none."""
    found: dict[str, str] = {}
    for role in ("instruction", "input", "output"):
        if said.get(role) in source.columns:
            found[role] = said[role]
            continue
        named = [c for c in source.columns if rank_of(role, c) is not None and c not in found.values()]
        if named:
            found[role] = min(named, key=lambda c: rank_of(role, c) or 0)
    if "output" not in found or not ("instruction" in found or (told and "input" in found)):
        return None
    form = InstructionForm(found.get("instruction"), found.get("input"), found["output"], "texts", ())
    parts = list(_parts(form, sample))
    judged = sum(not _judged(1, text, answer).fault for text, answer in parts)
    answers = sum(is_yes(answer) is not None for _, answer in parts)
    following = sum(not _next(1, text, answer).fault for text, answer in parts)
    n_rows = max(1, len(parts))
    use: Use = "texts"
    if judged >= 0.8 * n_rows:
        use = "judged"
    elif answers >= 0.8 * n_rows:
        use = "answers"
    elif following >= 0.8 * n_rows:
        use = "next"
    return InstructionForm(form.instruction, form.input, form.output, use, _NOTES[use])


_NOTES: dict[Use, tuple[str, ...]] = {
    "judged": (
        "quoted titles were read as liked, disliked and judged items: each record is a user of its own; the order "
        "between liked and disliked titles is that of the text",
    ),
    "next": ("quoted titles were read as a history and the output as the next item: each record is a user of its own",),
    "answers": (
        "no titles could be read from the inputs: each record is an item with the fields instruction and input, rated "
        "1 for yes and 0 for no; a click head can be trained on these texts with a random split of rows",
    ),
    "texts": ("neither titles nor yes and no could be read: the records are kept as text and give no interactions",),
}


def _parts(form: InstructionForm, table: pa.Table) -> Iterator[tuple[str, str]]:
    """(input, or the instruction where there is none; output) of each row."""
    inputs = cells_of(table, form.input or form.instruction or form.output).to_pylist()
    if form.input and form.instruction:
        spare = cells_of(table, form.instruction).to_pylist()
        inputs = [text if text.strip() else other for text, other in zip(inputs, spare, strict=True)]
    yield from zip(inputs, cells_of(table, form.output).to_pylist(), strict=True)


def _titles(text: str) -> list[tuple[str, str]]:
    """(what it is, title) of each quoted title: liked, disliked or target."""
    cues = [(match.start(), match.lastgroup or "liked") for match in _CUES.finditer(_without_titles(text))]
    found = []
    for match in _QUOTED.finditer(text):
        before = [cue for position, cue in cues if position < match.start()]
        found.append((before[-1] if before else "", (match[1] or match[2]).strip()))
    return [(cue, title) for cue, title in found if title]


def _without_titles(text: str) -> str:
    """The text with blanks for the quoted titles, so that "Like Water" is no cue."""
    return _QUOTED.sub(lambda match: " " * len(match[0]), text)


def _judged(line: int, text: str, answer: str) -> Record:
    liked = is_yes(answer)
    titles = _titles(text)
    targets = [title for cue, title in titles if cue == "target"]
    before = [(title, cue) for cue, title in titles if cue in ("liked", "disliked")]
    if liked is None:
        return Record(line, fault=f"output {answer.strip()[:40]!r} is neither yes nor no")
    if len(targets) != 1:
        return Record(line, fault=f"the input asks about {len(targets)} quoted titles instead of one")
    if not before:
        return Record(line, fault="the input quotes no liked or disliked titles")
    return Record(
        line,
        history=[title for title, _ in before],
        history_labels=[str(int(cue == "liked")) for _, cue in before],
        candidates=targets,
        labels=[str(int(liked))],
    )


def _next(line: int, text: str, answer: str) -> Record:
    titles = [title for _, title in _titles(text)]
    target = answer.strip().strip('"\u201c\u201d').strip()
    if not titles:
        return Record(line, fault="the input quotes no titles")
    if not target or len(target) > _LONGEST_TITLE or "\n" in target:
        return Record(line, fault="the output is no title")
    return Record(line, history=titles, candidates=[target], labels=["1"])


def instruction_stream(form: InstructionForm) -> StreamForm:
    """The records that "judged" and "next" files tell."""
    reader = _judged if form.use == "judged" else _next

    def read(table: pa.Table, lines: Rows) -> Iterator[Record]:
        for line, (text, answer) in zip(lines.tolist(), _parts(form, table), strict=True):
            yield reader(line, text, answer)

    return StreamForm(read, rated=form.use == "judged", merged=False, titles=True)


def record_tables(source: Source, form: InstructionForm) -> tuple[Source, Source]:
    """(interactions, items) of records of which only the answer can be read."""
    interactions = adapted(source, ("user_id", "item_id", "rating"), lambda: _Answers(source.name, form))
    fields = [part for part in ("instruction", "input") if form.roles.get(part)]
    items = adapted(source, ("item_id", "title", *fields), lambda: _Texts(form, fields), tells_rejects=False)
    return interactions, items


def _key(texts: Sequence[str]) -> str:
    return "r" + hashlib.sha256("\0".join(text.strip() for text in texts).encode()).hexdigest()[:16]


def _prompts(form: InstructionForm, table: pa.Table) -> list[tuple[str, ...]]:
    columns = [form.roles[part] for part in ("instruction", "input") if part in form.roles]
    return list(zip(*(cells_of(table, c).to_pylist() for c in columns), strict=True))


class _Answers(Converter):
    def __init__(self, file: str, form: InstructionForm) -> None:
        self._form, self._names = form, Names(file)

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        names = [self._names.of(line) for line in lines.tolist()]
        answers = [is_yes(answer) for answer in cells_of(table, self._form.output).to_pylist()]
        rows = [row for row, answer in enumerate(answers) if answer is not None]
        keys = [_key(texts) for texts in _prompts(self._form, table)]
        columns = {
            "user_id": [names[row] for row in rows],
            "item_id": [keys[row] for row in rows],
            "rating": [str(int(bool(answers[row]))) for row in rows],
        }
        faults = [(row, "the output is neither yes nor no") for row, answer in enumerate(answers) if answer is None]
        return Long(text_table(dict(columns)), np.array(rows, np.int64), faults)


class _Texts(Converter):
    def __init__(self, form: InstructionForm, fields: Sequence[str]) -> None:
        self._form, self._fields = form, fields
        self._known: set[str] = set()

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        prompts = _prompts(self._form, table)
        rows = []
        for row, key in enumerate(map(_key, prompts)):
            if key not in self._known:
                self._known.add(key)
                rows.append(row)
        columns = {"item_id": [_key(prompts[row]) for row in rows]}
        columns["title"] = [" ".join(prompts[row][-1].split())[:120] for row in rows]
        for place, part in enumerate(self._fields):
            columns[part] = [prompts[row][place].strip() for row in rows]
        return Long(text_table(dict(columns)), np.array(rows, np.int64))
