"""What a template printed: whole, or in two halves that are put together as often as they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmrec_core.contracts import Span, SpanKind
from llmrec_core.prompts._items import OTHER
from llmrec_core.prompts._text import Text
from llmrec_core.prompts.tokens import Counter, space_before

_KINDS: Mapping[str, SpanKind] = {
    "history": "history",
    "profile": "profile",
    "context": "context",
    "candidate": "candidate",
}


class Part:
    """A whole output, or one half of it, without the blanks at the ends of the whole.

    Args:
        pieces: the output; those of type :class:`Text` carry marks.
        spent: fuel that it took.
        first, last: whether it is the beginning, or the end, of the whole.
    """

    __slots__ = ("_lead", "_pieces", "_spans", "n_tokens", "size", "spent", "text")

    def __init__(self, pieces: Sequence[str], spent: int = 0, *, first: bool = True, last: bool = True) -> None:
        whole = "".join(pieces)
        text = whole.lstrip() if first else whole
        self._lead = len(whole) - len(text)
        self._pieces = pieces
        self._spans: tuple[Span, ...] | None = None
        self.text = text.rstrip() if last else text
        #: Characters, blanks at the ends included.
        self.size = len(whole)
        self.spent = spent
        #: None: not counted yet. Of a half, as :func:`count` counts it.
        self.n_tokens: int | None = None

    def spans(self) -> tuple[Span, ...]:
        """The players, by their places in ``text``."""
        if self._spans is None:
            found = []
            position, end = -self._lead, len(self.text)
            for piece in self._pieces:
                if type(piece) is Text:
                    for a, b, (kind, ref) in piece.marks:
                        start, stop = max(0, a + position), min(b + position, end)
                        if kind != OTHER and start < stop:
                            found.append(Span(start, stop, _KINDS[kind], ref))
                position += len(piece)
            self._spans, self._pieces = tuple(found), ()
        return self._spans


class Draft:
    """One prompt: a whole part, or a head and a tail."""

    __slots__ = ("parts", "text")

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        self.text = parts[0].text if len(parts) == 1 else parts[0].text + parts[1].text

    def spans(self) -> tuple[Span, ...]:
        """The players, by their places in ``text``."""
        if len(self.parts) == 1:
            return self.parts[0].spans()
        head, tail = self.parts
        at = len(head.text)
        return head.spans() + tuple([Span(at + s.start, at + s.end, s.kind, s.ref) for s in tail.spans()])


def count(drafts: Sequence[Draft], counter: Counter, n_special: int) -> list[int]:
    """Tokens of each draft, special ones included; a half that stands in many drafts is counted once.

    Args:
        n_special: special tokens of any text.
    """
    wanted: dict[Part | Draft, str] = {}
    by_halves = [
        counter.adds_up and len(draft.parts) == 2 and space_before(draft.text, len(draft.parts[0].text))
        for draft in drafts
    ]
    for draft, halved in zip(drafts, by_halves, strict=True):
        if not halved:
            wanted[draft] = draft.text
            continue
        head, tail = draft.parts
        # The space goes with the tail: many tokenizers make it a part of the word behind it.
        if head.n_tokens is None:
            wanted[head] = head.text[:-1]
        if tail.n_tokens is None:
            wanted[tail] = f" {tail.text}"
    counts = dict(zip(wanted, counter.count(list(wanted.values())), strict=True))
    for thing, n_tokens in counts.items():
        if isinstance(thing, Part):
            thing.n_tokens = n_tokens
    return [
        sum(part.n_tokens or 0 for part in draft.parts) - n_special if halved else counts[draft]
        for draft, halved in zip(drafts, by_halves, strict=True)
    ]
