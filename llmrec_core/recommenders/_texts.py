"""Short texts about an item, written by the decoder from the item's own fields and facts, and checked afterwards.

The prompt holds the item's title, fields and facts, and the titles that the user chose before; nothing else is there to
be told. A text that claims what none of these says, or does not name the item, is put aside and another is drawn; after
a stated number of tries a plain sentence made of the fields takes its place. The same seed gives the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmrec_core.contracts import ITEM, TITLE, FitContext, Query
from llmrec_core.data.companions import Companions
from llmrec_core.errors import InputError, TemplateError
from llmrec_core.models.generation import write_text
from llmrec_core.models.label_words import LanguageHead
from llmrec_core.models.loading import Backbone
from llmrec_core.prompts import Sandbox
from llmrec_core.recommenders._titles import TitlePrompts
from llmrec_core.recommenders.grounding import HISTORY, Claim, Grounding, names
from llmrec_core.specs import GenerativeSpec
from llmrec_core.training.generative import WritingNetwork
from llmrec_core.training.samples import new_and_replayed

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

_MAX_TEMPLATE_CHARS = 20_000
#: Facts of the knowledge graph, and chosen titles, in one prompt.
_MAX_FACTS, _MAX_CHOSEN = 12, 5
#: The first try takes the most probable words; later ones are drawn.
_TEMPERATURE = 0.7
#: A bare code of a knowledge graph says nothing in a sentence.
_CODE = re.compile(r"[a-z]+[./][0-9a-z_./]+|[A-Z]\d+")

_TASK = "Recommend {} to this reader in one or two sentences. Use only the facts above."


@dataclass(frozen=True)
class WrittenText:
    """A text about an item.

    Attributes:
        source: "model", or "fields" where every try of the model said something that nothing backs.
        claims: of ``text``, with what backs them.
        rejected: tries put aside, each with its claims that nothing backs (none: it was empty, or did not name the
            item).
        prompt: what the model read.
    """

    text: str
    source: Literal["model", "fields"]
    claims: tuple[Claim, ...]
    rejected: tuple[tuple[str, tuple[Claim, ...]], ...]
    prompt: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""

        def plain(claim: Claim) -> dict[str, Any]:
            return {**vars(claim), "backed_by": list(claim.backed_by)}

        return {
            "text": self.text,
            "source": self.source,
            "claims": [plain(claim) for claim in self.claims],
            "rejected": [{"text": text, "unbacked": [plain(c) for c in claims]} for text, claims in self.rejected],
            "prompt": self.prompt,
            "seed": self.seed,
        }


def chat_template(folder: Path) -> str:
    """The chat template that a model folder brings; "" for none, or one that is too long to be one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        found: Any = path.read_text(encoding="utf-8", errors="replace")
    else:
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = settings.get("chat_template") if isinstance(settings, dict) else None
    return found if isinstance(found, str) and len(found) <= _MAX_TEMPLATE_CHARS else ""


class TextWriter:
    """Prompts for texts, and the texts.

    Args:
        dataset: where the items' fields and facts come from.
        prompts: cleans values and names items.
        backbone: whose tokenizer is used.
        chat: chat template; "" writes the request as it is.
        spec: lengths, number of tries, and the column that texts are learned from: it is not shown, since it would be
            copied.
    """

    def __init__(
        self, dataset: Dataset, prompts: TitlePrompts, backbone: Backbone, chat: str, spec: GenerativeSpec
    ) -> None:
        self._dataset, self._prompts, self._backbone, self._spec = dataset, prompts, backbone, spec
        self._chat = chat
        self._companions = Companions(dataset)

    @cached_property
    def _grounding(self) -> Grounding:
        return Grounding(self._dataset)

    @property
    def stop(self) -> int:
        """The token that ends a learned text."""
        value = self._backbone.facts.config.get("eos_token_id")
        value = value[0] if isinstance(value, list) and value else value
        return value if type(value) is int else self._prompts.end

    def sources(self, query: Query, item_idx: int) -> dict[str, list[str]]:
        """Everything that a text about the item may tell, by where it stands; whole values."""
        clean = self._prompts.renderer.clean
        found: dict[str, list[str]] = {TITLE: [self._prompts.title(item_idx)]}
        for column in map(str, self._dataset.items.columns):
            if column not in (ITEM, TITLE) and (value := clean(self._dataset.item_text(item_idx, column))):
                found[column] = [value]
        for relation, value in self._companions.facts(item_idx):
            if not _CODE.fullmatch(value):
                found.setdefault(f"fact: {clean(relation)}", []).append(clean(value))
        found[HISTORY] = self._chosen(query)
        return found

    def _chosen(self, query: Query) -> list[str]:
        """Titles that the user chose, newest first; disliked ones are left out."""
        liked_above = self._dataset.like_threshold
        found: list[str] = []
        for entry in reversed(query.history):
            disliked = liked_above is not None and entry.rating is not None and entry.rating <= liked_above
            if not disliked and entry.item_id in self._dataset.item_index and len(found) < _MAX_CHOSEN:
                found.append(self._prompts.title(self._dataset.item_index[entry.item_id]))
        return found

    def prompt(self, query: Query, item_idx: int) -> tuple[str, list[int]]:
        """The request with everything that may be told, and its tokens; long values are clipped, then facts left out.

        Raises:
            InputError: it does not fit into the model even so.
        """
        longest = self._prompts.renderer.spec.max_field_chars
        lines = []
        sources = self.sources(query, item_idx)
        chosen = sources.pop(HISTORY)
        for name, values in sources.items():
            if name != self._spec.text_field:
                label = name.removeprefix("fact: ").replace("_", " ")
                label = "item" if name == TITLE else label
                lines.append(f"{label}: {', '.join(value[:longest] for value in values)[: 2 * longest]}")
        lines = lines[:_MAX_FACTS]
        room = self._backbone.max_tokens - self._spec.text_tokens
        while True:
            told = "\n".join(lines)
            read = f"The reader chose before: {'; '.join(chosen)}.\n\n" if chosen else ""
            # The item comes last and is named once more: small models go on with what they read last.
            text, tokens = self._asked(f"{read}{told}\n\n{_TASK.format(sources[TITLE][0][:longest])}")
            if len(tokens) <= room:
                return text, tokens
            if chosen:
                chosen = chosen[:-1]
            elif len(lines) > 1:
                lines = lines[:-1]
            else:
                raise InputError("the model is too short for a text about an item.", where="recommender.text_tokens")

    def _asked(self, request: str) -> tuple[str, list[int]]:
        if self._chat:
            values = {
                "messages": [{"role": "user", "content": request}],
                "add_generation_prompt": True,
                **{name: self._special(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            }
            try:
                text = "".join(Sandbox().compile(self._chat, "chat template").pieces(values))
                return text, list(self._backbone.tokenizer.encode(text, add_special_tokens=False).ids)
            except TemplateError:
                # A template that asks for more than a chat has: the request is understood without it too.
                pass
        text = f"{request}\n\nText:"
        return text, self._prompts.tokens(text)

    def _special(self, name: str) -> str:
        value = self._backbone.facts.config.get(f"{name}_id")
        value = value[0] if isinstance(value, list) and value else value
        return (self._backbone.tokenizer.id_to_token(value) or "") if type(value) is int else ""

    def tokens_of(self, text: str) -> list[int]:
        """A text to be learned, closed; [] for an empty one. A longer one ends with a sentence."""
        text = self._prompts.renderer.clean(text)
        encode = self._backbone.tokenizer.encode
        encoding = encode(text, add_special_tokens=False)
        if len(encoding.ids) >= self._spec.text_tokens:
            text = _tidy(text[: encoding.offsets[self._spec.text_tokens - 2][1]], whole=False)
        ids = list(encode(text if self._chat else f" {text}", add_special_tokens=False).ids) if text else []
        return [*ids[: self._spec.text_tokens - 1], self.stop] if ids else []

    def write(
        self, query: Query, item_idx: int, network: WritingNetwork, words: LanguageHead, seed: int = 0
    ) -> WrittenText:
        """A text about the item; see the module."""
        asked, tokens = self.prompt(query, item_idx)
        sources = self.sources(query, item_idx)
        tokenizer = self._backbone.tokenizer
        special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        stops = sorted({*special, self.stop})
        beginning = network.read(tokens)
        rejected: list[tuple[str, tuple[Claim, ...]]] = []
        for attempt in range(self._spec.text_attempts):
            written = write_text(
                beginning, words, max_tokens=self._spec.text_tokens, stops=stops,
                temperature=_TEMPERATURE if attempt else 0.0, seed=_seed_of(seed, item_idx, attempt),
            )  # fmt: skip
            whole = len(written) < self._spec.text_tokens
            text = _tidy(self._prompts.renderer.clean(tokenizer.decode(written)), whole)
            claims = tuple(self._grounding.claims(text, sources))
            unbacked = tuple(claim for claim in claims if not claim.backed_by)
            # Descriptions that were learned need not name what they describe; else a text may be about nothing.
            about = self._spec.text_field is not None or names(text, sources[TITLE][0])
            if text and not unbacked and about:
                return WrittenText(text, "model", claims, tuple(rejected), asked, seed)
            rejected.append((text, unbacked))
        text = plain_sentence(sources)
        return WrittenText(text, "fields", tuple(self._grounding.claims(text, sources)), tuple(rejected), asked, seed)


def plain_sentence(sources: Mapping[str, Sequence[str]]) -> str:
    """What is known of an item, as one sentence a machine can stand for."""
    told = [
        f"{name.removeprefix('fact: ').replace('_', ' ')} {', '.join(values)[:120]}"
        for name, values in sources.items()
        if name not in (TITLE, HISTORY)
    ]
    about = f"{sources[TITLE][0]}: {'; '.join(told[:4])}." if told else f"{sources[TITLE][0]}."
    chosen = list(sources.get(HISTORY, ()))[:2]
    return f"{about} Chosen before: {'; '.join(chosen)}." if chosen else about


def texts_to_learn(
    split: Split, writer: TextWriter, n_most: int, spec: GenerativeSpec, ctx: FitContext
) -> Iterator[tuple[list[int], list[int]]]:
    """(request, text) as tokens: descriptions of items seen in training, or what users wrote in training rows.

    Of what goes on with newer data, users' texts are new ones, mixed with those it may have learned before.

    Raises:
        InputError: there is no such column.
    """
    dataset, name = split.dataset, str(spec.text_field)
    table = dataset.interactions
    rng = np.random.default_rng([ctx.seed, 4])
    cases: list[tuple[Query, int, str]] = []
    if name in dataset.items.columns:
        for item in rng.permutation(np.flatnonzero(split.train_item_counts > 0)).tolist():
            cases.append((Query(""), item, dataset.item_text(item, name)))
    elif name in table.columns:
        items = table["item_idx"].to_numpy(np.int64)
        users, texts = table["user_id"], table[name]
        if ctx.continued is None:
            rows = rng.permutation(split.train)[: 4 * n_most]
        else:
            rows = new_and_replayed(split.train, ctx.continued, 4 * n_most, rng)
        for row in rows.tolist():
            text = texts.iat[row]
            query = Query(str(users.iat[row]), split.history_before(row))
            cases.append((query, int(items[row]), text if isinstance(text, str) else ""))
    else:
        raise InputError(
            f"there is no column {name[:80]!r} to learn texts from.",
            where="recommender.text_field",
            fix="Name a text column of the items or of the interactions, or leave it empty.",
        )
    n_found = 0
    for query, item, raw in cases:
        tokens = writer.tokens_of(raw)
        if tokens and n_found < n_most:
            n_found += 1
            yield writer.prompt(query, item)[1], tokens


def _tidy(text: str, whole: bool) -> str:
    """Without quotes around it; what was cut off in a sentence ends with the sentence before."""
    text = text.strip().strip('"“”').strip()
    if not whole:
        ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。！？]", text)]
        text = text[: ends[-1]] if ends else ""
    return text


def _seed_of(seed: int, item_idx: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, item_idx, attempt]).generate_state(1)[0])
