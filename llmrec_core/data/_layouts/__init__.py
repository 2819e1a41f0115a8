"""How a table is laid out, and the long tables that it becomes: one row per interaction, item, user or fact.

Every layout is guessed from names and first rows, says why, and can be told with ``layout:FILE=...``. What is not laid
out in rows is read through adapters: sources whose rows carry the line of the file that they were made from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from llmrec_core.contracts import RATING, TIME
from llmrec_core.data._layouts import facts, instructions, items, lines, matrix, records, rows, streams
from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._roles import Corrections, Guess, Kind, judge
from llmrec_core.data._sources import Source
from llmrec_core.data._values import Question, ValueOptions
from llmrec_core.errors import DataError

_TYPED = re.compile(r"^([^:]+):(token|token_seq|float|float_seq)$")
_MANY_RAGGED = 0.2
_SHOWN_EVENTS = 6


@dataclass(frozen=True)
class PlannedTable:
    """One long table that a source gives.

    Attributes:
        source: what is read: the file itself, or an adapter whose rows carry the line of the file they came from.
        kind: what its rows are.
        roles: role -> column of ``source``.
        layout: how the file is laid out ("rows", "matrix", "histories", "impressions", "instructions", "knowledge",
            "links", "vectors", "tags").
        notes: what a person should know about this reading of the file, and what could be otherwise.
        reasons: why, by role, "kind" and "layout".
        origin: role -> column of the file, for roles that the layout used up (a column of histories, say).
        questions: what only a person can know about this table, also where it was answered; the option of a file that
            answers is the ``id`` up to the colon.
    """

    source: Source
    kind: Kind
    roles: dict[str, str]
    layout: str = "rows"
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()

    @property
    def ids_of_texts(self) -> bool:
        """Whether rows are items whose ids were made from their words, so that equal ids are equal rows."""
        return self.kind == "items" and self.layout in ("instructions", "histories", "impressions")


@dataclass(frozen=True)
class _Seen:
    """A source, its first rows, and what was said about it."""

    source: Source
    sample: pa.Table
    said: Mapping[str, str]
    guess: Guess
    told: str | None
    corrections: Corrections

    def is_told(self, layout: str) -> bool:
        return self.told == layout


def expand(source: Source, corrections: Corrections) -> list[PlannedTable]:
    """The long tables of one source, guessed from names and first rows, and corrected by what a person said.

    Raises:
        DataError: the layout that was told does not fit the table.
    """
    told = (corrections.option("layout", source.name) or "").lower() or None
    kind = corrections.option("kind", source.name)
    if told is None and kind in ("impressions", "knowledge", "links", "instructions", "vectors"):
        told = kind
    source = _with_lists(source, told)
    sample = source.sample()
    guess = judge(source.name, source.columns, sample, corrections)
    seen = _Seen(source, sample, _said(source, corrections), guess, told, corrections)
    if told == "rows" or (told is None and kind in ("items", "users")):
        return _rows(seen)
    for layout, recognise in _LAYOUTS.items():
        if told in (None, layout):
            planned = recognise(seen)
            if planned:
                return planned
    if told is not None:
        raise DataError(
            f"this table cannot be read as {told}: its columns are {', '.join(source.columns[:20])}.",
            where=source.name,
            fix=f"Say which column is which, as in {_NEEDS.get(told, 'user_id')}:FILE=COLUMN, or layout:FILE=rows.",
        )
    return _rows(seen)


_NEEDS = {"histories": "history", "impressions": "candidates", "instructions": "output", "knowledge": "head"}


def _with_lists(source: Source, told: str | None) -> Source:
    """The source cut anew where its lines are lists of different lengths, which no table of columns can hold."""
    if source.format != "text" or source.header or told not in (None, "histories") or not source.separator:
        return source
    raw = source.careful(1000)
    refused = raw.rejects.count
    if refused < _MANY_RAGGED * (refused + len(raw.table)) or source.encoding is None:
        return source
    if not lines.are_lists(source.path, source.encoding, source.name, source.separator):
        return source
    return lines.lines_source(source.path, source.encoding, source.name, source.separator)


def _said(source: Source, corrections: Corrections) -> dict[str, str]:
    """role -> column, of all that was said, for every file first."""
    present = set(source.columns)
    said = {role: column for _, role, column in corrections.roles if column in present or column == ""}
    # A remembered mapping names the columns of the long tables, too; only those of the file mean something here.
    here = {role: column for role, column in corrections.roles_of(source.name) if column in present or column == ""}
    return said | here


# ------------------------------------------------------------------------------------------------ rows


def _rows(seen: _Seen, notes: Sequence[str] = ()) -> list[PlannedTable]:
    source, guess = seen.source, seen.guess
    notes = [*guess.notes, *notes]
    planned: list[PlannedTable] = []
    reasons = {
        "layout": _why(seen, "rows", "nothing suggests another layout"),
        **guess.reasons,
    }
    if guess.kind == "items":
        form = items.find_vectors(source, seen.sample, guess.roles.get("item_id"), False)
        if form is not None:
            origin = {"vector": form.columns[0]}
            why = {"kind": f"{form.size} numbers an item", "layout": f"{form.size} numbers an item"}
            planned = [
                PlannedTable(
                    items.vectors_source(source, form, tells_rejects=False), "vectors",
                    {"item_id": "item_id", "vector": "vector"}, "rows", (), why, origin,
                )
            ]  # fmt: skip
            notes.append(f"{form.size} numbers an item are kept as its vector")
            source = items.without(source, form.columns)
    plan = items.tidy_plan(source.columns, seen.sample, guess.roles, _spaced(source))
    if plan:
        source = items.tidied(source, seen.sample, plan)
    roles = dict(guess.roles)
    questions: tuple[Question, ...] = ()
    if guess.kind == "interactions":
        source, roles, event_notes = _weighed(source, seen, roles)
        notes += event_notes
        if TIME not in seen.said:
            source, roles, time_notes = rows.with_moments(source, seen.sample, roles)
            notes = [note for note in notes if not (time_notes and note.startswith(f"{TIME}:"))] + time_notes
        if roles.get(RATING) in seen.sample.column_names:
            source, marker_notes, questions = rows.without_markers(source, seen.sample, roles, _missing(seen))
            notes += marker_notes
    if re.fullmatch(r"(?i)u[a-e1-5]\.(base|test)", source.path.name) and "part" not in _options(seen):
        part = "train" if source.path.suffix.lower() == ".base" else "test"
        notes.append(f"this is a {part} part by its name; it can be kept apart (part:{source.name}={part})")
    table = PlannedTable(source, guess.kind, roles, "rows", tuple(notes), reasons, questions=questions)
    return [table, *planned]


def _options(seen: _Seen) -> set[str]:
    return {"part"} if seen.corrections.option("part", seen.source.name) else set()


def _why(seen: _Seen, layout: str, why: str) -> str:
    return "you said so" if seen.is_told(layout) else why


def _spaced(source: Source) -> list[str]:
    """Columns that a typed header calls lists of words: ``class:token_seq``."""
    if source.format != "text" or not source.header or source.encoding is None or not source.separator:
        return []
    with source.path.open("rb") as stream:
        head = stream.read(1 << 16).decode(source.encoding, "replace").lstrip("\ufeff")
    cells = [
        _TYPED.match(cell.strip()) for cell in re.split(r"\r\n|\r|\n", head, maxsplit=1)[0].split(source.separator)
    ]
    return [cell[1].strip() for cell in cells if cell and cell[2] == "token_seq"] if all(cells) else []


def _weighed(source: Source, seen: _Seen, roles: dict[str, str]) -> tuple[Source, dict[str, str], list[str]]:
    """Ratings from events, where somebody asked for weights; otherwise a word about what events there are."""
    weights = seen.corrections.event_weights()
    column = roles.get("event")
    if column is None:
        if weights:
            raise DataError(
                "weights of events were told, but no column holds events.",
                where=source.name,
                fix="Say which it is with --map event=COLUMN.",
            )
        return source, roles, []
    events = Counter(cell.strip() for cell in cells_of(seen.sample, column).to_pylist())
    listed = ", ".join(f"{event or 'blank'} ({count:,})" for event, count in events.most_common(_SHOWN_EVENTS))
    if not weights:
        if "rating" in roles:
            return source, roles, []
        note = f"no ratings: every row counts as an interaction, whatever its event; in the first rows: {listed}"
        example = next((event for event, _ in reversed(events.most_common()) if event), "purchase")
        return source, roles, [f"{note}. event_weight:{example}=3 would make ratings of them"]
    if "rating" in roles:
        raise DataError(
            f"weights of events were told, but column {roles['rating']!r} holds ratings.",
            where=source.name,
            fix="Take the ratings away with --map rating=, or the weights.",
        )
    name = "rating" if "rating" not in source.columns else "event_weight"
    weighed = adapted(source, (*source.columns, name), lambda: _Weigh(column, weights, name))
    known = {event.lower() for event in events}
    absent = [event for event in weights if event not in known]
    notes = [f"ratings are weights of events; events without a weight count 1; in the first rows: {listed}"]
    if absent:
        notes.append(f"no such event in the first rows: {', '.join(absent[:5])}")
    return weighed, {**roles, "rating": name}, notes


class _Weigh(Converter):
    def __init__(self, column: str, weights: Mapping[str, str], name: str) -> None:
        self._column, self._weights, self._name = column, weights, name

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        events = cells_of(table, self._column).to_pylist()
        ratings = [self._weights.get(event.strip().lower(), "1") for event in events]
        columns = {name: cells_of(table, name) for name in table.column_names}
        return Long(text_table({**columns, self._name: ratings}), np.arange(len(table), dtype=np.int64))


# ------------------------------------------------------------------------------------------------ other layouts


def _own(source: Source, *roles: str) -> dict[str, str]:
    """Roles of an adapter's columns, which are called as the roles."""
    return {role: role for role in roles if role in source.columns}


def _instructions(seen: _Seen) -> list[PlannedTable]:
    form = instructions.find_instructions(seen.source, seen.sample, dict(seen.said), seen.is_told("instructions"))
    if form is None:
        return []
    why = _why(seen, "instructions", "its columns are called instruction and output")
    reasons = {"layout": why, "kind": why}
    texts = seen.source if form.use == "texts" else items.quiet(seen.source)
    kept = PlannedTable(texts, "instructions", form.roles, "instructions", form.notes, reasons)
    if form.use == "texts":
        return [kept]
    if form.use == "answers":
        found, things = instructions.record_tables(seen.source, form)
    else:
        stream = instructions.instruction_stream(form)
        found, things = streams.interactions_of(seen.source, stream), streams.titles_of(seen.source, stream)
    roles = _own(found, "user_id", "item_id", "rating")
    why_roles = dict.fromkeys(roles, "read from the texts of the records")
    tables = [PlannedTable(found, "interactions", roles, "instructions", form.notes, reasons | why_roles, form.roles)]
    item_roles = {"item_id": "item_id", "title": "title"}
    tables.append(PlannedTable(things, "items", item_roles, "instructions", (), reasons, form.roles))
    return [*tables, kept]


def _records(seen: _Seen) -> list[PlannedTable]:
    told = seen.told if seen.told in ("histories", "impressions") else None
    pairs = seen.corrections.option("pairs", seen.source.name)
    form = records.find_records(seen.source, seen.sample, seen.said, seen.guess.roles, told, pairs)
    if form is None:
        return []
    shown = "candidates" in form.columns and not form.target
    layout = "impressions" if shown else "histories"
    stream = replace(records.stream_form(form), values=ValueOptions.of(seen.corrections.options))
    found = streams.interactions_of(seen.source, stream)
    roles = _own(found, "user_id", "item_id", "rating", "timestamp")
    part = "candidates" if "history" not in form.columns else "history"
    why = _why(seen, layout, f"{form.columns[part]!r}: {form.reasons[part]}")
    reasons = {"kind": "histories and choices are interactions", "layout": why}
    reasons |= {role: form.reasons[role] for role in ("user_id", "timestamp") if role in form.reasons}
    reasons["item_id"] = f"from the lists in {form.columns[part]!r}"
    notes = (*(n for n in seen.guess.notes if n.startswith(("user_id", "timestamp"))), *form.notes)
    origin = dict(form.columns)
    tables = [PlannedTable(found, "interactions", roles, layout, notes, reasons, origin)]
    if form.titles:
        item_roles = {"item_id": "item_id", "title": "title"}
        tables.append(
            PlannedTable(streams.titles_of(seen.source, stream), "items", item_roles, layout, (), reasons, origin)
        )
    if shown:
        kept = streams.impressions_of(seen.source, stream)
        own = {"timestamp" if column == "time" else column: column for column in kept.columns}
        tables.append(PlannedTable(kept, "impressions", own, layout, (), reasons, origin))
    return tables


def _facts(seen: _Seen) -> list[PlannedTable]:
    roles = facts.find_facts(seen.source, seen.sample, seen.said, seen.is_told("knowledge"))
    if roles is None:
        return []
    heads = len(set(cells_of(seen.sample, roles["head"]).to_pylist()))
    relations = len(set(cells_of(seen.sample, roles["relation"]).to_pylist()))
    note = f"facts of a knowledge graph: {heads:,} heads and {relations:,} relations in the first rows"
    why = _why(seen, "knowledge", f"{', '.join(repr(c) for c in roles.values())} are head, relation and tail")
    reasons = dict.fromkeys((*roles, "kind", "layout"), why)
    return [PlannedTable(seen.source, "knowledge", roles, "knowledge", (note,), reasons)]


def _links(seen: _Seen) -> list[PlannedTable]:
    roles = facts.find_links(seen.source, seen.sample, seen.said, seen.is_told("links"))
    if roles is None:
        return []
    note = f"links items to {roles['entity']!r}: kept beside the items, for facts of a knowledge graph"
    why = _why(seen, "links", f"it has items and {roles['entity']!r}, and hardly anything else")
    return [PlannedTable(seen.source, "links", roles, "links", (note,), dict.fromkeys((*roles, "kind", "layout"), why))]


def _vectors(seen: _Seen) -> list[PlannedTable]:
    told = seen.is_told("vectors")
    item = seen.said.get("item_id") or seen.guess.roles.get("item_id")
    form = items.find_vectors(seen.source, seen.sample, item, told)
    if form is None or (not told and len(seen.source.columns) > len(form.columns) + 1):
        return []
    source = items.vectors_source(seen.source, form, tells_rejects=True)
    why = _why(seen, "vectors", f"{form.size} numbers an item and nothing else")
    reasons = dict.fromkeys(("item_id", "vector", "kind", "layout"), why)
    origin = {"item_id": form.item, "vector": form.columns[0]}
    return [
        PlannedTable(source, "vectors", {"item_id": "item_id", "vector": "vector"}, "vectors", (), reasons, origin)
    ]  # fmt: skip


def _tags(seen: _Seen) -> list[PlannedTable]:
    columns = seen.source.columns
    item = seen.said.get("item_id") or seen.guess.roles.get("item_id")
    tag = next((c for c in columns if c.strip().lower() in ("tag", "tags")), None)
    kind = seen.corrections.option("kind", seen.source.name)
    if item is None or tag is None or not (seen.is_told("tags") or (kind is None and facts.is_tags(columns))):
        return []
    why = _why(seen, "tags", f"{tag!r} beside users and items: words that people gave, not ratings")
    source = facts.tags_source(seen.source, item, tag)
    note = "kind:FILE=interactions would take every tag as an interaction instead"
    reasons = dict.fromkeys(("item_id", "kind", "layout"), why)
    return [PlannedTable(source, "items", {"item_id": "item_id"}, "tags", (note,), reasons, {"item_id": item})]


def _missing(seen: _Seen) -> str | None:
    return seen.corrections.option("missing", seen.source.name)


def _matrix(seen: _Seen) -> list[PlannedTable]:
    told = seen.is_told("matrix")
    missing = _missing(seen)
    if not told and {"user_id", "item_id", RATING} <= seen.guess.roles.keys():
        return []
    form = matrix.find_matrix(seen.source, seen.sample, told or missing is not None, missing)
    if form is None:
        return []
    if isinstance(form, str):
        return _rows(seen, [form])
    n_items = len(form.items)
    why = _why(seen, "matrix", f"{n_items:,} columns of numbers on one scale behind a column of users")
    reasons = {"layout": why, "kind": "cells of a matrix are interactions", "rating": "the cells of the matrix"}
    rows, columns = ("item_id", "user_id") if form.transposed else ("user_id", "item_id")
    reasons[rows] = f"the column is called {form.users!r}" if form.users else "the numbers of the lines"
    reasons[columns] = "the names of the columns"
    source = matrix.matrix_source(seen.source, form)
    roles = {"user_id": "user_id", "item_id": "item_id", "rating": "rating"}
    origin = {rows: form.users} if form.users else {}
    return [PlannedTable(source, "interactions", roles, "matrix", form.notes, reasons, origin)]


def _wide(seen: _Seen) -> list[PlannedTable]:
    told = seen.is_told("histories")
    if not lines.is_wide(seen.source, seen.sample, told):
        return []
    why = _why(seen, "histories", "a user, then one item in every further column")
    note = f"{seen.source.columns[0]!r} is taken as the user, the other columns as items in their order"
    notes = [note]
    pairs = lines.wide_pairs(seen.source, seen.sample, seen.corrections.option("pairs", seen.source.name))
    if pairs is not None:
        notes.append(f"cells hold {pairs.words}; pairs:FILE=no takes them whole")
    source = lines.wide_source(seen.source, pairs)
    roles = {column: column for column in source.columns}
    reasons = dict.fromkeys((*roles, "kind", "layout"), why)
    origin = {"user_id": seen.source.columns[0]}
    return [PlannedTable(source, "interactions", roles, "histories", tuple(notes), reasons, origin)]


def _histories(seen: _Seen) -> list[PlannedTable]:
    # Untold, records of lists were looked for among the impressions.
    return (_records(seen) if seen.told else []) or _wide(seen)


#: In the order in which they are asked: the ones that names tell without doubt come first.
_LAYOUTS = {
    "instructions": _instructions,
    "impressions": _records,
    "knowledge": _facts,
    "links": _links,
    "vectors": _vectors,
    "tags": _tags,
    "histories": _histories,
    "matrix": _matrix,
}
