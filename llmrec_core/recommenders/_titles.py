"""What a generative recommender reads and what it may write: history prompts without candidate, and titles as tokens.

A template is rendered with every field of its candidate hidden and cut where the candidate begins, so that what is
read never depends on what could be written behind it. Titles are tokenised as they go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrec_core.contracts import ITEM, TITLE, Query, RenderedPrompt, Span
from llmrec_core.errors import InputError
from llmrec_core.models.loading import Backbone
from llmrec_core.prompts import PromptRenderer
from llmrec_core.specs import PromptSpec

if TYPE_CHECKING:
    from tokenizers import Encoding

    from llmrec_core.data import Dataset

#: Stands in the middle of a title that was cut.
_GAP = " …"


class TitlePrompts:
    """Prompts and titles of one dataset for one decoder.

    Args:
        renderer: renders the template.
        dataset: the catalogue.
        backbone: whose tokenizer is used.
        max_title_tokens: longer titles keep their first two thirds and their last third of this: what tells volumes
            and editions apart mostly stands at the end.
    """

    def __init__(self, renderer: PromptRenderer, dataset: Dataset, backbone: Backbone, max_title_tokens: int) -> None:
        self.renderer, self.dataset, self._backbone = renderer, dataset, backbone
        self._hidden = frozenset({TITLE, ITEM, *map(str, dataset.items.columns)})
        empty, blank = self._head(Query(""))
        self._before = empty.text[-1:] if blank else ""
        self._space = blank
        self.end = self._end_token()
        self.titles = [self._cut(ids, max_title_tokens) for ids in self._encode_titles()]

    def title(self, item_idx: int) -> str:
        """The title in one line, or the id of an item that has none."""
        has_titles = TITLE in self.dataset.items.columns
        title = self.renderer.clean(self.dataset.item_text(item_idx, TITLE)) if has_titles else ""
        return title or self.renderer.clean(str(self.dataset.item_ids[item_idx]))

    def heads(self, queries: Sequence[Query]) -> list[list[int]]:
        """Token ids of what stands before the title, at least one each."""
        texts = [head.text for head, _ in self._heads(queries)]
        return [self._open(encoding) for encoding in self._backbone.tokenizer.encode_batch(texts)]

    @property
    def spec(self) -> PromptSpec:
        return self.renderer.spec

    def identity(self) -> str:
        """Text that is equal only where :meth:`heads` are, with one tokenizer."""
        return json.dumps(["before a title", self.renderer.identity(), self._start_token()])

    def render(self, query: Query, item_idx: int) -> RenderedPrompt:
        """What was read, with the title of an item behind it, as it would be written."""
        head, space = self._head(query)
        text = head.text + space
        title = self.title(item_idx)
        spans = [*head.spans, Span(len(text), len(text) + len(title), "candidate", TITLE)]
        n_tokens = len(self.tokens(head.text)) + len(self.titles[item_idx])
        return replace(head, text=text + title, spans=tuple(spans), n_tokens=n_tokens)

    def _head(self, query: Query) -> tuple[RenderedPrompt, str]:
        """The prompt before its candidate, and the space between them ("" or " ")."""
        return self._heads([query])[0]

    def _heads(self, queries: Sequence[Query]) -> list[tuple[RenderedPrompt, str]]:
        asked = [(replace(query, hidden_fields=self._hidden), 0) for query in queries]
        return [_before_candidate(prompt) for prompt in self.renderer.render_many(asked)]

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text that goes on, at least one."""
        return self._open(self._backbone.tokenizer.encode(text))

    def _open(self, encoding: Encoding) -> list[int]:
        ids, special = list(encoding.ids), encoding.special_tokens_mask
        # Some tokenizers close a text; here it goes on.
        while ids and special[len(ids) - 1]:
            ids.pop()
        return ids or [self._start_token()]

    def _encode_titles(self) -> list[list[int]]:
        """Token ids of every title as it follows the last character of what is read."""
        tokenizer, cut = self._backbone.tokenizer, len(self._before)
        titles = [self._space + self.title(item) for item in range(self.dataset.n_items)]
        alone = tokenizer.encode_batch(titles, add_special_tokens=False)
        joined = tokenizer.encode_batch([self._before + title for title in titles], add_special_tokens=False)
        found = []
        for own, whole in zip(alone, joined, strict=True):
            first = next((at for at, (_, end) in enumerate(whole.offsets) if end > cut), len(whole.ids))
            # A token over the border belongs to neither side: then the title's own tokens are taken.
            clean = first < len(whole.ids) and whole.offsets[first][0] >= cut
            found.append(list(whole.ids[first:] if clean else own.ids))
        return found

    def _cut(self, ids: list[int], longest: int) -> list[int]:
        if len(ids) <= longest:
            return ids
        gap = self._backbone.tokenizer.encode(_GAP, add_special_tokens=False).ids
        n_last = longest // 3
        return [*ids[: longest - n_last - len(gap)], *gap, *ids[-n_last:]]

    def _end_token(self) -> int:
        """What closes a title: a line end where that is one token, as between the lines of a list; else end-of-text."""
        line = self._backbone.tokenizer.encode("\n", add_special_tokens=False).ids
        return line[0] if len(line) == 1 else self._special("eos_token_id", self._backbone.pad_id)

    def _start_token(self) -> int:
        return self._special("bos_token_id", self.end)

    def _special(self, name: str, otherwise: int) -> int:
        value = self._backbone.facts.config.get(name)
        value = value[0] if isinstance(value, list) and value else value
        return value if type(value) is int and 0 <= value < self._backbone.tokenizer.get_vocab_size() else otherwise


def _before_candidate(prompt: RenderedPrompt) -> tuple[RenderedPrompt, str]:
    start = min((span.start for span in prompt.spans if span.kind == "candidate"), default=len(prompt.text))
    text = prompt.text[:start].rstrip(" ")
    spans = tuple(span for span in prompt.spans if span.kind != "candidate" and span.end <= len(text))
    return replace(prompt, text=text, spans=spans, clipped_fields=()), " " if len(text) < start else ""


def check_room(prompt_tokens: int, behind: int, backbone: Backbone) -> None:
    """Raises: InputError: the prompt and what is written behind it are longer than the model reads."""
    if prompt_tokens + behind > backbone.max_tokens:
        raise InputError(
            f"max_tokens is {prompt_tokens}, {behind} more are needed for what is written, and the model reads "
            f"{backbone.max_tokens}.",
            where="prompt.max_tokens",
            fix=f"Set it to at most {backbone.max_tokens - behind}.",
        )
