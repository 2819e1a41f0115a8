"""Text that remembers where it came from: a ``str`` whose parts carry the player that they belong to.

Provenance travels with the value through the template's own operations (filters, ``~``, ``+``, slices), so no marker
characters ever stand in the text and nothing that a user writes can be mistaken for one. What takes longer with more
marks is charged to the meter of the render that it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import SupportsIndex

from llmrec_core.prompts._meter import charge

#: (kind, ref) of a player, as in :class:`llmrec_core.contracts.Span`.
Origin = tuple[str, str]
#: (start, end, origin): a half-open range of characters and the player behind it.
Mark = tuple[int, int, Origin]


class Text(str):
    """A string with marks: ascending, non-overlapping, non-empty ranges, each with its origin."""

    __slots__ = ("marks",)
    marks: tuple[Mark, ...]

    def __new__(cls, value: str, marks: tuple[Mark, ...] = ()) -> Text:
        self = super().__new__(cls, value)
        self.marks = marks
        return self

    @classmethod
    def of(cls, value: str, origin: Origin) -> Text:
        """``value``, all of it from ``origin``."""
        self = super().__new__(cls, value)
        self.marks = ((0, len(value), origin),) if value else ()
        return self

    def __str__(self) -> str:
        # Compiled templates call str() on every output; returning self keeps the marks through it.
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            position = range(len(self))[key]
            key = slice(position, position + 1)
        charge(1 + len(self.marks))
        start, stop, step = key.indices(len(self))
        piece = str.__getitem__(self, key)
        if step == 1:
            return Text(piece, _cut(self.marks, start, stop))
        # A strided or reversed piece: mark it letter by letter.
        charge(len(piece) * len(self.marks))
        origins = [origin_at(self.marks, i) for i in range(start, stop, step)]
        return Text(piece, tuple((i, i + 1, origin) for i, origin in enumerate(origins) if origin is not None))


class Number(float):
    """A number from one player, such as a rating."""

    __slots__ = ("origin",)
    origin: Origin

    def __new__(cls, value: float, origin: Origin) -> Number:
        self = super().__new__(cls, value)
        self.origin = origin
        return self


def origin_at(marks: tuple[Mark, ...], position: int) -> Origin | None:
    """The player behind one character, None for the template's own."""
    for start, end, origin in marks:
        if start <= position < end:
            return origin
    return None


def _cut(marks: tuple[Mark, ...], start: int, stop: int) -> tuple[Mark, ...]:
    return tuple(
        (max(a, start) - start, min(b, stop) - start, origin) for a, b, origin in marks if a < stop and b > start
    )


def concat(parts: Iterable[str]) -> str:
    """The parts one after another; a :class:`Text` if any of them was one."""
    pieces = list(parts)
    marks: list[Mark] = []
    position = 0
    for piece in pieces:
        if isinstance(piece, Text):
            charge(len(piece.marks))
            marks.extend((a + position, b + position, origin) for a, b, origin in piece.marks)
        position += len(piece)
    joined = "".join(pieces)
    return Text(joined, tuple(marks)) if marks else joined


def mapped(text: str, change: Callable[[str], str]) -> str:
    """``change`` applied to each stretch of one origin alone, so that marks fit even where the length changes."""
    if not isinstance(text, Text):
        return change(text)
    charge(len(text.marks))
    parts: list[str] = []
    done = 0
    for start, end, origin in text.marks:
        if start > done:
            parts.append(change(str.__getitem__(text, slice(done, start))))
        parts.append(Text.of(change(str.__getitem__(text, slice(start, end))), origin))
        done = end
    if done < len(text):
        parts.append(change(str.__getitem__(text, slice(done, None))))
    return concat(parts)


def show_number(value: float) -> str:
    """Numbers as a person writes them: 4, 3.5, 0.333333."""
    return f"{value:g}" if isinstance(value, float) else str(value)
