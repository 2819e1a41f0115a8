"""One long table, block by block: how its columns are read is decided from its first rows, then every row is judged.

Blocks have a fixed number of rows however the source cuts them, so nothing depends on how a file was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import ITEM, RATING, TIME, USER
from llmrec_core.data import _rules as rules
from llmrec_core.data._blocks import even_blocks, mapped, prefetched
from llmrec_core.data._faults import Fault, Mask, RefusedRows, marked, refused_rows
from llmrec_core.data._layouts import PlannedTable
from llmrec_core.data._raw import RawTable
from llmrec_core.data._roles import NEEDED_OF, ROLES, ROLES_OF, field_names
from llmrec_core.data._texts import tidy
from llmrec_core.data._values import NumberFormat, ValueOptions, decide_numbers, refuse_unanswered
from llmrec_core.data._values.times import TimeFormat, carry_times, decide_times
from llmrec_core.data._values.words import PROFILE_CELLS, first_filled

#: A scale has far fewer steps; a continuous rating shows itself by as many.
_MAX_DISTINCT_RATINGS = 10_000


class ReadAgain(Exception):
    """A later cell showed that the first ones did not tell all: what was read so far is to be forgotten."""


@dataclass(frozen=True)
class CheckedBlock:
    """The accepted rows of a block by their canonical columns.

    Ids of users and items are dictionary arrays whose dictionary holds exactly the ids of these rows; ratings and
    times are float64; everything else is text.
    """

    table: pa.Table
    refused: RefusedRows
    n_read: int


@dataclass
class _Seen:
    """One block looked at on its own: what comes of it, and what it adds to the knowledge about the table."""

    block: CheckedBlock | None = None
    trimmed: Counter[str] = field(default_factory=Counter)
    unrated: int = 0
    missing_times: int = 0
    ratings: Counter[float] = field(default_factory=Counter)
    #: Cells that the formats refused: they may say that the format is another one.
    odd_numbers: pa.Array | None = None
    odd_times: pa.Array | None = None
    #: The format of times, where this block has the first ones.
    first_times: TimeFormat | None = None
    #: Rows are refused, and the reader did not tell their lines.
    needs_lines: bool = False


@dataclass
class TableReader:
    """Reads one planned table.

    Attributes:
        planned: what is read, and which column plays which role.
        options: how numbers and times are to be read.
        masks: text column -> function that hides what is personal in it.
        hide: refused rows are listed without their raw text and ids, which would give away who they are.
        notes: what a person should know; complete once :meth:`blocks` has ended.
    """

    planned: PlannedTable
    options: ValueOptions
    masks: Mapping[str, Callable[[pa.Array], pa.Array]] = field(default_factory=dict)
    hide: bool = False
    #: Ids of companions that came in earlier files of the same kind.
    known: set[str] = field(default_factory=set)
    reserved: Sequence[str] = ()
    _numbers: NumberFormat | None = None
    _times: TimeFormat | None = None
    _careful: bool = False
    _last_time: float = np.nan
    _base_known: set[str] | None = None
    #: Rows without a time.
    missing_times: int = 0
    #: How often each rating stands among the accepted rows.
    rating_counts: Counter[float] = field(default_factory=Counter)
    _trimmed: Counter[str] = field(default_factory=Counter)
    _unrated: int = 0

    def __post_init__(self) -> None:
        kind, roles = self.planned.kind, self.planned.roles
        source = self.planned.source
        playing = set(roles.values())
        others = [column for column in source.columns if column not in playing]
        named, self._name_notes = field_names(others, [*self._reserved_names(kind), *self.reserved])
        #: Canonical name -> column of the source, for everything that stays text.
        self.ids = {role: roles[role] for role in (USER, ITEM) if role in roles and role in NEEDED_OF[kind]}
        read = {*self.ids, RATING, TIME} if kind == "interactions" else {*self.ids, TIME}
        self.texts = {role: column for role, column in roles.items() if role not in read}
        self.texts |= {named[column]: column for column in others}

    @staticmethod
    def _reserved_names(kind: str) -> tuple[str, ...]:
        if kind == "interactions":
            return (*ROLES, "user_idx", "item_idx", "part")
        return tuple(ROLES_OF[kind])  # type: ignore[index]

    @property
    def name(self) -> str:
        return self.planned.source.name

    @property
    def has_times(self) -> bool:
        """Whether rows have a time; known once the table was read."""
        return self._times is not None and self._times.kind != "nothing"

    @property
    def out_of(self) -> float | None:
        """The top of the scale, where cells name it ("4 out of 5")."""
        return None if self._numbers is None else self._numbers.out_of

    @property
    def notes(self) -> list[str]:
        said = [f"spaces around {n:,} values of {role} were left out" for role, n in self._trimmed.items() if n]
        if self._unrated:
            said.append(f"{self._unrated:,} rows have no rating; they count as interactions")
        if self._numbers is not None:
            said += self._numbers.notes
        if self._times is not None:
            said += self._times.notes if self.has_times else [self._timeless]
        return said + self._name_notes

    @property
    def _timeless(self) -> str:
        return f"column {self.planned.roles[TIME]!r} is empty: imported without times"

    def blocks(self) -> Generator[CheckedBlock]:
        """The whole table, checked.

        Raises:
            ReadAgain: forget the blocks and call again.
            DataError: the data leaves open how a column is to be read, and nobody said.
        """
        self._unrated, self.missing_times, self._last_time = 0, 0, np.nan
        self._trimmed.clear()
        self.rating_counts.clear()
        if self._base_known is None:
            # What earlier files told is known only now, when the reading begins.
            self._base_known = set(self.known)
        self.known.clear()
        self.known |= self._base_known
        for seen in mapped(self._check, self._decided(), alone=self._in_order):
            yield self._settled(seen)
        for found in (self._numbers, self._times):
            if found is not None:
                refuse_unanswered(found.questions, f"{self.name}, column {found.column}")

    @property
    def _in_order(self) -> bool:
        """Whether a block cannot be judged before the one above it was."""
        return self.planned.kind in ("items", "users") or self.options.missing_time == "keep-order"

    def _decided(self) -> Iterator[RawTable]:
        """The blocks; before the first is given away, it is decided how columns are read."""
        decided = self._numbers is not None or self._times is not None
        for raw in prefetched(even_blocks(self._raw(), self.name), ahead=1):
            if not decided:
                self._decide(raw)
                decided = True
            yield raw

    def _settled(self, seen: _Seen) -> CheckedBlock:
        """Takes in what a block adds; blocks come in order."""
        if seen.needs_lines:
            self._careful = True
            raise ReadAgain
        if seen.first_times is not None:
            self._times = seen.first_times
            raise ReadAgain
        if self._numbers is not None and seen.odd_numbers is not None:
            before, self._numbers = self._numbers, self._numbers.reconsider(seen.odd_numbers)
            if self._numbers != before:
                raise ReadAgain
        if self._times is not None and seen.odd_times is not None:
            earlier, self._times = self._times, self._times.reconsider(seen.odd_times)
            if self._times != earlier:
                raise ReadAgain
        self._trimmed += seen.trimmed
        self._unrated += seen.unrated
        self.missing_times += seen.missing_times
        if len(self.rating_counts) < _MAX_DISTINCT_RATINGS:
            self.rating_counts.update(seen.ratings)
        assert seen.block is not None
        return seen.block

    def _raw(self) -> Iterator[RawTable]:
        source = self.planned.source
        if source.batches is not None:
            yield from source.batches(None)
            return
        raw = None if self._careful else source.fast()
        yield source.careful(None) if raw is None else raw

    # ------------------------------------------------------------------------------------------------ deciding

    def _decide(self, raw: RawTable) -> None:
        roles = self.planned.roles
        if self.planned.kind == "interactions" and RATING in roles:
            self._numbers = decide_numbers(_telling(_cells(raw, roles[RATING])), roles[RATING], self.options)
        if TIME in roles and self.planned.kind in ("interactions", "impressions"):
            self._times = decide_times(_telling(_cells(raw, roles[TIME])), roles[TIME], self.options)

    # ------------------------------------------------------------------------------------------------ checking

    def _check(self, raw: RawTable) -> _Seen:
        n_rows, seen = len(raw.table), _Seen()
        faults: list[Fault] = []
        columns: dict[str, Any] = {}
        coded = {role: self._ids(raw, role, column, faults, seen) for role, column in self.ids.items()}
        if self._numbers is not None:
            columns[RATING] = self._ratings(raw, self._numbers, faults, seen)
        if self._times is not None:
            times = self._seconds(raw, self._times, faults, seen)
            if times is not None:
                columns[TIME] = times
        for name, column in self.texts.items():
            columns[name] = self._text(raw, name, column, faults)
        bad = marked(n_rows, faults)
        left_out = bad
        if self.planned.kind in ("items", "users"):
            repeats = self._repeats(coded, bad)
            left_out = bad | marked(n_rows, [repeats])
            if not self.planned.ids_of_texts:
                # Where an id is made from the words of its row, a repeat says nothing new: it is no row to refuse.
                faults.append(repeats)
                bad = left_out
        good = ~left_out if left_out.any() else None
        seen.needs_lines = bool(bad.any()) and raw.lines is None
        if seen.needs_lines:
            return seen
        kept: dict[str, Any] = {role: _coded(codes, words, good) for role, (codes, words) in coded.items()}
        for name, cells in columns.items():
            kept[name] = cells if good is None else cells.filter(pa.array(good))
        refused = refused_rows(raw, faults, bad, self.planned.source.separator, self.hide)
        if RATING in kept:
            kept[RATING] = self._counted(kept[RATING], seen)
        seen.block = CheckedBlock(pa.table(kept), refused, n_rows + raw.rejects.count)
        return seen

    def _counted(self, ratings: pa.Array, seen: _Seen) -> pa.Array:
        """Counts how often each rating was given, and takes zeros away where they say that there is none."""
        found = ratings.value_counts()
        values, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
        pairs = zip(values[:_MAX_DISTINCT_RATINGS], counts[:_MAX_DISTINCT_RATINGS], strict=True)
        seen.ratings.update({value: count for value, count in pairs if value == value})
        if self.options.zero == "unrated":
            numbers = ratings.to_numpy(zero_copy_only=False)
            return pa.array(np.where(numbers == 0.0, np.nan, numbers))
        return ratings

    def _ids(
        self, raw: RawTable, role: str, column: str, faults: list[Fault], seen: _Seen
    ) -> tuple[npt.NDArray[np.int32], pa.Array]:
        """(codes [n], distinct words) of an id column, with its faults told."""
        encoded = _cells(raw, column).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        words = encoded.dictionary
        if not rules.is_plain(words):
            words = pc.utf8_trim_whitespace(words)
            changed = _mask(pc.not_equal(words, encoded.dictionary))
            if changed.any():
                seen.trimmed[role] = int(changed[codes].sum())
                again = words.dictionary_encode()
                codes, words = again.indices.to_numpy(zero_copy_only=False)[codes], again.dictionary
        for said, positions in rules.broken_ids(role, words).items():
            rows = _rows_of(positions, codes, len(words))
            faults.append(Fault(rows, column, self._shown(said), _spelled(words, codes)))
        return codes, words

    def _shown(self, words: str) -> str:
        return words.replace(": {cell}", "") if self.hide else words

    def _ratings(self, raw: RawTable, found: NumberFormat, faults: list[Fault], seen: _Seen) -> pa.Array:
        column = self.planned.roles[RATING]
        cells = _cells(raw, column)
        values, bad = found.numbers(cells)
        if bad.any():
            seen.odd_numbers = cells.filter(pa.array(bad))
        seen.unrated = int(np.count_nonzero(np.isnan(values)) - np.count_nonzero(bad))
        for positions in (np.flatnonzero(bad), *rules.broken(rules.rating_rules(), values).values()):
            if len(positions):
                faults.append(Fault(positions, column, "rating {cell} is not a number", cells, _said("rating", found)))
        return pa.array(values)

    def _seconds(self, raw: RawTable, found: TimeFormat, faults: list[Fault], seen: _Seen) -> pa.Array | None:
        column = self.planned.roles[TIME]
        cells = _cells(raw, column)
        values, bad = found.times(cells)
        if found.kind == "nothing":
            # The first times of a column that began empty: they say how it is read, and its blank cells lack a time.
            seen.first_times = decide_times(cells, column, self.options) if bad.any() else None
            return None
        where = np.flatnonzero(bad)
        if len(where):
            seen.odd_times = cells.filter(pa.array(bad))
            faults.append(Fault(where, column, "time {cell} cannot be read", cells, _said("time", found)))
        seen.missing_times = int(np.count_nonzero(np.isnan(values)) - np.count_nonzero(bad))
        if self.options.missing_time == "keep-order":
            values, self._last_time = carry_times(values, self._last_time)
        needed = self.options.missing_time != "drop-all" and self.planned.kind == "interactions"
        for said, positions in rules.broken(rules.time_rules(needed=needed), np.where(bad, 0.0, values)).items():
            faults.append(Fault(positions, column, said, cells))
        return pa.array(values)

    def _text(self, raw: RawTable, name: str, column: str, faults: list[Fault]) -> pa.Array:
        several = name == "category" and column == self.planned.roles.get("category")
        listing = self.planned.kind in ("interactions", "items", "users")
        text = tidy(_cells(raw, column), self.planned.source.format if listing else "", several=several)
        if name in NEEDED_OF[self.planned.kind] and name not in (USER, ITEM):
            empty = np.flatnonzero(_mask(pc.equal(text, "")))
            if len(empty):
                faults.append(Fault(empty, column, f"{name} is empty", text))
        if rules.may_be_long(text):
            for said, positions in rules.broken(rules.text_rules(name), text).items():
                faults.append(Fault(positions, column, said, text))
        hide = self.masks.get(column) or self.masks.get(name)
        return text if hide is None else hide(text)

    def _repeats(self, coded: Mapping[str, tuple[npt.NDArray[np.int32], pa.Array]], bad: Mask) -> Fault:
        """Companions have one row an id: the first acceptable one stays, these are the others."""
        role = ITEM if self.planned.kind == "items" else USER
        codes, words = coded[role]
        texts = words.to_pylist()
        first = np.full(len(words), -1, np.int64)
        sound = np.flatnonzero(~bad)
        # Written backwards, so that the first row of each id is the one that stays written.
        first[codes[sound[::-1]]] = sound[::-1]
        seen = np.fromiter((text in self.known for text in texts), bool, len(texts))
        repeated = sound[(first[codes[sound]] != sound) | seen[codes[sound]]]
        self.known.update(texts[code] for code in np.flatnonzero((first >= 0) & ~seen).tolist())
        words_said = f"{role} came before" if self.hide else f"{role} {{cell}} came before"
        return Fault(repeated, self.ids[role], words_said, _spelled(words, codes))


# ------------------------------------------------------------------------------------------------ columns


def _telling(cells: pa.Array) -> pa.Array:
    """As much of a column as it takes to decide how it is read; more would only be looked through for nothing."""
    head = cells.slice(0, 2 * PROFILE_CELLS)
    return head if len(first_filled(head)) == PROFILE_CELLS else cells


def _cells(raw: RawTable, column: str) -> pa.Array:
    return _one(raw.table.column(column))


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array, copied only where it lies in several."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _mask(values: Any) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _rows_of(positions: npt.NDArray[np.int64], codes: npt.NDArray[np.int32], n_words: int) -> npt.NDArray[np.int64]:
    """Rows whose word is one of these."""
    wanted = np.zeros(n_words, bool)
    wanted[positions] = True
    return np.flatnonzero(wanted[codes])


def _spelled(words: pa.Array, codes: npt.NDArray[np.int32]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), words)


def _said(what: str, found: NumberFormat | TimeFormat) -> Callable[[str], str]:
    return lambda cell: f"{what} {found.reason(cell)}"


def _coded(codes: npt.NDArray[np.int32], words: pa.Array, good: Mask | None) -> pa.DictionaryArray:
    """Ids of the accepted rows; words of refused ones alone are dropped, so that nobody is known by a bad row."""
    if good is not None:
        codes = codes[good]
    used = np.bincount(codes, minlength=len(words)) > 0
    if not used.all():
        codes = (np.cumsum(used) - 1).astype(np.int32)[codes]
        words = words.filter(pa.array(used))
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), words)
