"""What a template sees of the data: items, history entries and the candidate, cleaned, clipped and marked."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmrec_core.contracts import ITEM, TITLE, HistoryItem
from llmrec_core.prompts._operations import MISSING, Record
from llmrec_core.prompts._text import Number, Text, concat

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

#: Shown in the place of a candidate field that the query hides.
UNKNOWN = "unknown"
#: What candidates of a list are called; also the most that a list may hold.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: Origin of texts of candidates that are not asked about: they are clipped like the others, and are no players.
OTHER = "other candidate"
#: Items whose texts are kept ready.
_MAX_CACHED_ITEMS = 100_000


class Cleaner:
    """Makes values safe to show: one line, no control characters, no control tokens of the tokenizer."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        # A space inside breaks a control token that a title might carry, and still shows it as text.
        self._special = tuple((token, f"{token[0]} {token[1:]}") for token in special_tokens if len(token) > 1)

    def clean(self, value: str) -> str:
        if not (value.isascii() and value.isprintable()):
            value = "".join(
                " " if letter.isspace() else letter
                for letter in value.encode("utf-8", "replace").decode("utf-8")
                if letter.isspace() or unicodedata.category(letter) != "Cc"
            )
        value = " ".join(value.split())
        for token, broken in self._special:
            if token in value:
                value = value.replace(token, broken)
        return value


def clip(value: str, max_chars: int) -> str:
    """At most ``max_chars`` characters, with an ellipsis as the last where something is missing."""
    if len(value) <= max_chars:
        return value
    return value[: max_chars - 1].rstrip() + "…" if max_chars > 0 else ""


class ItemTexts:
    """The shown texts of one item; columns are read when first asked for."""

    __slots__ = ("_clipped", "_shelf", "_texts", "costs", "fields", "idx", "title")

    def __init__(self, shelf: ItemShelf, item_id: str, idx: int | None) -> None:
        self._shelf = shelf
        self.idx = idx
        self._texts: dict[str, str] = {}
        self._clipped: set[str] = set()
        #: Tokens of the title and of the fields, as soon as somebody has counted them.
        self.costs: tuple[int, int] | None = None
        if idx is None:
            # An item that the catalogue does not have: its id is all that is known.
            self._texts = dict.fromkeys(shelf.columns, "")
            self._texts[TITLE] = self._texts[ITEM] = clip(shelf.cleaner.clean(item_id), shelf.max_chars)
        self.title = self.text(TITLE) or self.text(ITEM)
        self.fields = ", ".join(filter(None, (self.text(column) for column in shelf.fields)))

    def text(self, column: str) -> str:
        """One column, cleaned and clipped.

        Raises:
            KeyError: there is no such column.
        """
        found = self._texts.get(column)
        if found is None:
            shelf = self._shelf
            if column not in shelf.columns or self.idx is None:
                raise KeyError(column)
            value = shelf.dataset.item_text(self.idx, column) if column in shelf.stored else shelf.ids[self.idx]
            whole = shelf.cleaner.clean(value)
            found = self._texts[column] = clip(whole, shelf.max_chars)
            if found != whole:
                self._clipped.add(column)
        return found

    def is_clipped(self, column: str) -> bool:
        return column in self._clipped


class ItemShelf:
    """All items' texts, prepared once each.

    Args:
        dataset: the catalogue.
        fields: item columns shown beside the title.
        max_chars: longer values are clipped.
        cleaner: makes values safe.
    """

    def __init__(self, dataset: Dataset, fields: Sequence[str], max_chars: int, cleaner: Cleaner) -> None:
        self.dataset = dataset
        self.ids = dataset.item_ids
        self.stored = frozenset(map(str, dataset.items.columns))
        self.columns = tuple(dict.fromkeys([TITLE, ITEM, *map(str, dataset.items.columns)]))
        self.fields = tuple(fields)
        self.max_chars = max_chars
        self.cleaner = cleaner
        self._by_id: dict[str, ItemTexts] = {}

    def of_id(self, item_id: str) -> ItemTexts:
        found = self._by_id.get(item_id)
        if found is None:
            if len(self._by_id) >= _MAX_CACHED_ITEMS:
                self._by_id.clear()
            found = self._by_id[item_id] = ItemTexts(self, item_id, self.dataset.item_index.get(item_id))
        return found

    def of_idx(self, idx: int) -> ItemTexts:
        return self.of_id(self.ids[idx])


class HistoryEntry(Record):
    """One past interaction, as templates see it. ``liked``: True, False, or None where it cannot be told."""

    __slots__ = ("_item", "_origin", "_rating", "_time", "liked")

    def __init__(
        self, item: ItemTexts, position: int, rating: float | None, time: str | None, liked: bool | None
    ) -> None:
        super().__init__()
        self._item = item
        self._origin = ("history", str(position))
        self._rating = rating
        self._time = time
        self.liked = liked

    def lookup(self, name: str) -> Any:
        if name == "title":
            return Text.of(self._item.title, self._origin)
        if name == "fields":
            return Text.of(self._item.fields, self._origin)
        if name == "rating":
            return None if self._rating is None else Number(self._rating, self._origin)
        if name == "time":
            return None if self._time is None else Text.of(self._time, self._origin)
        if name == "liked":
            return self.liked
        try:
            return Text.of(self._item.text(name), self._origin)
        except KeyError:
            return MISSING

    def known_fields(self) -> Iterable[str]:
        return dict.fromkeys(["title", "fields", "rating", "time", "liked", *self._item._shelf.columns])


class Candidate(Record):
    """The candidate, as templates see it.

    Args:
        item: its texts.
        hidden: columns shown as "unknown".
        limits: column -> most characters, where the budget asks for less than the usual clip.
        letter: what it is called in a list of candidates.
        asked: False for one that stands in a list beside the one that is asked about.
    """

    __slots__ = ("_fields", "_hidden", "_item", "_kind", "_letter", "_limits", "_named")

    def __init__(
        self,
        item: ItemTexts,
        hidden: frozenset[str],
        limits: Mapping[str, int] | None = None,
        *,
        letter: str = LETTERS[0],
        asked: bool = True,
    ) -> None:
        super().__init__()
        self._item = item
        self._hidden = hidden
        self._limits = limits or {}
        self._letter = letter
        self._kind = "candidate" if asked else OTHER
        shown = [(column, self._text(column)) for column in item._shelf.fields]
        self._named = [(column, text) for column, text in shown if text]
        parts: list[str] = []
        for _, text in self._named:
            parts.extend((", ", text) if parts else (text,))
        self._fields = concat(parts)

    def _text(self, column: str) -> str:
        value = self._item.title if column == TITLE else self._item.text(column)
        if column in self._hidden:
            # Marked like the value it stands for: models cut a prompt where its candidate begins, and hiding a field
            # must not move that place.
            value = UNKNOWN
        return Text.of(clip(value, self._limits.get(column, len(value))), (self._kind, column))

    def lookup(self, name: str) -> Any:
        if name == "fields":
            return self._fields
        if name == "named":
            return self._named
        if name == "letter":
            return self._letter
        return self._text(name) if name in self._item._shelf.columns else MISSING

    def known_fields(self) -> Iterable[str]:
        return dict.fromkeys(["title", "fields", "named", "letter", *self._item._shelf.columns])


def usable(value: float | None) -> float | None:
    """The number, None for none, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def show_day(timestamp: float | None) -> str | None:
    """ISO date in UTC; None where there is no time, or none that a calendar has."""
    if timestamp is None or not math.isfinite(timestamp):
        return None
    try:
        return datetime.fromtimestamp(timestamp, UTC).date().isoformat()
    except (OverflowError, OSError, ValueError):
        return None


def history_entries(
    shelf: ItemShelf,
    history: Sequence[HistoryItem],
    first: int,
    *,
    show_ratings: bool,
    show_time: bool,
    like_threshold: float | None,
) -> list[HistoryEntry]:
    """Entries for ``history[first:]``, each knowing its position in the whole ``history``."""
    entries = []
    for position in range(first, len(history)):
        event = history[position]
        rating = usable(event.rating) if show_ratings else None
        liked = None if rating is None or like_threshold is None else rating > like_threshold
        time = show_day(event.timestamp) if show_time else None
        entries.append(HistoryEntry(shelf.of_id(event.item_id), position, rating, time, liked))
    return entries
