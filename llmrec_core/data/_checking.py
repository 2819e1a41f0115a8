"""One long table, block by block: how its columns are read is decided from its first rows, then every row is judged.

Blocks have a fixed number of rows however the source cuts them, so nothing depends on how a file was read.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import ITEM, RATING, TIME, USER
from llmrec_core.data import _rules as rules
from llmrec_core.data._layouts import PlannedTable
from llmrec_core.data._raw import MAX_RAW_CHARS, RawTable, Rejects
from llmrec_core.data._roles import NEEDED_OF, ROLES, ROLES_OF, field_names
from llmrec_core.data._texts import tidy
from llmrec_core.data._values import NumberFormat, ValueOptions, decide_numbers, refuse_unanswered
from llmrec_core.data._values.times import TimeFormat, carry_times, decide_times

BLOCK_ROWS = 262_144
#: Distinct cells of a block for which the reason is asked in full; beyond them a plain sentence does.
_MAX_REASONED = 200
_MAX_SHOWN_CHARS = 60
#: A scale has far fewer steps; a continuous rating shows itself by as many.
_MAX_DISTINCT_RATINGS = 10_000

Mask = npt.NDArray[np.bool_]
Format = TypeVar("Format", NumberFormat, TimeFormat)


class ReadAgain(Exception):
    """A later cell showed that the first ones did not tell all: what was read so far is to be forgotten."""


@dataclass(frozen=True)
class RefusedRows:
    """Refused rows of one block, in the order of their lines; columns, reasons and raw texts beside them."""

    lines: npt.NDArray[np.int64]
    columns: list[str]
    reasons: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.lines)


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
class _Fault:
    """Positions of a block that break one rule. ``words`` may hold ``{cell}``; ``reason`` says it with more care."""

    positions: npt.NDArray[np.int64]
    column: str
    words: str
    cells: pa.Array
    reason: Callable[[str], str] | None = None

    def reasons(self) -> Iterator[str]:
        if "{cell}" not in self.words:
            for _ in range(len(self.positions)):
                yield self.words
            return
        said: dict[str, str] = {}
        for cell in self.cells.take(pa.array(self.positions)).to_pylist():
            if cell not in said:
                asked = self.reason is not None and len(said) < _MAX_REASONED
                said[cell] = self.reason(cell) if asked and self.reason else self._plainly(cell)
            yield said[cell]

    def _plainly(self, cell: str) -> str:
        return self.words.replace("{cell}", repr(cell[:_MAX_SHOWN_CHARS]))


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
    _trimmed: dict[str, int] = field(default_factory=dict)
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

    def blocks(self) -> Iterator[CheckedBlock]:
        """The whole table, checked.

        Raises:
            ReadAgain: forget the blocks and call again.
            DataError: the data leaves open how a column is to be read, and nobody said.
        """
        self._trimmed, self._unrated, self.missing_times, self._last_time = {}, 0, 0, np.nan
        self.rating_counts.clear()
        if self._base_known is None:
            # What earlier files told is known only now, when the reading begins.
            self._base_known = set(self.known)
        self.known.clear()
        self.known |= self._base_known
        for raw in prefetched(even_blocks(self._raw(), self.name)):
            if self._numbers is None and self._times is None:
                self._decide(raw)
            yield self._check(raw)
        for found in (self._numbers, self._times):
            if found is not None:
                refuse_unanswered(found.questions, f"{self.name}, column {found.column}")

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
            self._numbers = decide_numbers(_cells(raw, roles[RATING]), roles[RATING], self.options)
        if TIME in roles and self.planned.kind in ("interactions", "impressions"):
            self._times = decide_times(_cells(raw, roles[TIME]), roles[TIME], self.options)

    # ------------------------------------------------------------------------------------------------ checking

    def _check(self, raw: RawTable) -> CheckedBlock:
        n_rows = len(raw.table)
        faults: list[_Fault] = []
        columns: dict[str, Any] = {}
        coded: dict[str, tuple[npt.NDArray[np.int32], pa.Array]] = {}
        for role, column in self.ids.items():
            coded[role] = self._ids(raw, role, column, faults)
        if self._numbers is not None:
            columns[RATING] = self._ratings(raw, self._numbers, faults)
        if self._times is not None:
            times = self._seconds(raw, self._times, faults)
            if times is not None:
                columns[TIME] = times
        for name, column in self.texts.items():
            columns[name] = self._text(raw, name, column, faults)
        bad = _marked(n_rows, faults)
        if self.planned.kind in ("items", "users"):
            self._refuse_repeats(raw, coded, bad, faults)
        good = None
        if bad.any():
            if raw.lines is None:
                self._careful = True
                raise ReadAgain
            good = ~bad
        kept: dict[str, Any] = {role: _coded(codes, words, good) for role, (codes, words) in coded.items()}
        for name, cells in columns.items():
            kept[name] = cells if good is None else cells.filter(pa.array(good))
        refused = self._refused(raw, faults, bad)
        if RATING in kept:
            kept[RATING] = self._counted(kept[RATING])
        return CheckedBlock(pa.table(kept), refused, n_rows + raw.rejects.count)

    def _counted(self, ratings: pa.Array) -> pa.Array:
        """Counts how often each rating was given, and takes zeros away where they say that there is none."""
        if len(self.rating_counts) < _MAX_DISTINCT_RATINGS:
            found = ratings.value_counts()
            pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
            self.rating_counts.update({value: count for value, count in pairs if value == value})
        if self.options.zero == "unrated":
            values = ratings.to_numpy(zero_copy_only=False)
            return pa.array(np.where(values == 0.0, np.nan, values))
        return ratings

    def _ids(
        self, raw: RawTable, role: str, column: str, faults: list[_Fault]
    ) -> tuple[npt.NDArray[np.int32], pa.Array]:
        """(codes [n], distinct words) of an id column, with its faults told."""
        encoded = _cells(raw, column).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        words = pc.utf8_trim_whitespace(encoded.dictionary)
        changed = _mask(pc.not_equal(words, encoded.dictionary))
        if changed.any():
            self._trimmed[role] = self._trimmed.get(role, 0) + int(changed[codes].sum())
            again = words.dictionary_encode()
            codes, words = again.indices.to_numpy(zero_copy_only=False)[codes], again.dictionary
        for said, positions in rules.broken(rules.id_rules(role), words).items():
            rows = _rows_of(positions, codes, len(words))
            faults.append(_Fault(rows, column, self._shown(said), _spelled(words, codes)))
        return codes, words

    def _shown(self, words: str) -> str:
        return words.replace(": {cell}", "") if self.hide else words

    def _ratings(self, raw: RawTable, found: NumberFormat, faults: list[_Fault]) -> pa.Array:
        column = self.planned.roles[RATING]
        cells = _cells(raw, column)
        values, bad = found.numbers(cells)
        self._numbers = self._better(found, cells, bad)
        self._unrated += int((np.isnan(values) & ~bad).sum())
        where = np.flatnonzero(bad)
        for positions in (where, *rules.broken(rules.rating_rules(), values).values()):
            if len(positions):
                faults.append(_Fault(positions, column, "rating {cell} is not a number", cells, _said("rating", found)))
        return pa.array(values)

    def _seconds(self, raw: RawTable, found: TimeFormat, faults: list[_Fault]) -> pa.Array | None:
        column = self.planned.roles[TIME]
        cells = _cells(raw, column)
        values, bad = found.times(cells)
        if found.kind == "nothing":
            if not bad.any():
                return None
            # The first times of a column that began empty: they say how it is read, and its blank cells lack a time.
            self._times = decide_times(cells, column, self.options)
            raise ReadAgain
        self._times = self._better(found, cells, bad)
        where = np.flatnonzero(bad)
        if len(where):
            faults.append(_Fault(where, column, "time {cell} cannot be read", cells, _said("time", found)))
        blank = np.isnan(values) & ~bad
        if self.options.missing_time == "keep-order":
            values, self._last_time = carry_times(values, self._last_time)
        self.missing_times += int(blank.sum())
        needed = self.options.missing_time != "drop-all" and self.planned.kind == "interactions"
        for said, positions in rules.broken(rules.time_rules(needed=needed), np.where(bad, 0.0, values)).items():
            faults.append(_Fault(positions, column, said, cells))
        return pa.array(values)

    def _better(self, found: Format, cells: pa.Array, bad: Mask) -> Format:
        """The format with what the refused cells say about it; another reading of the column begins it anew."""
        if not bad.any():
            return found
        better = found.reconsider(cells.filter(pa.array(bad)))
        if better != found:
            if isinstance(better, NumberFormat):
                self._numbers = better
            else:
                self._times = better
            raise ReadAgain
        return better

    def _text(self, raw: RawTable, name: str, column: str, faults: list[_Fault]) -> pa.Array:
        several = name == "category" and column == self.planned.roles.get("category")
        listing = self.planned.kind in ("interactions", "items", "users")
        text = tidy(_cells(raw, column), self.planned.source.format if listing else "", several=several)
        if name in NEEDED_OF[self.planned.kind] and name not in (USER, ITEM):
            empty = np.flatnonzero(_mask(pc.equal(text, "")))
            if len(empty):
                faults.append(_Fault(empty, column, f"{name} is empty", text))
        if rules.may_be_long(text):
            for said, positions in rules.broken(rules.text_rules(name), text).items():
                faults.append(_Fault(positions, column, said, text))
        hide = self.masks.get(column) or self.masks.get(name)
        return text if hide is None else hide(text)

    def _refuse_repeats(
        self,
        raw: RawTable,
        coded: Mapping[str, tuple[npt.NDArray[np.int32], pa.Array]],
        bad: Mask,
        faults: list[_Fault],
    ) -> None:
        """Companions have one row an id: the first acceptable one stays. ``bad`` takes the others in."""
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
        if len(repeated):
            words_said = f"{role} came before" if self.hide else f"{role} {{cell}} came before"
            faults.append(_Fault(repeated, self.ids[role], words_said, _spelled(words, codes)))
            bad[repeated] = True

    def _refused(self, raw: RawTable, faults: Sequence[_Fault], bad: Mask) -> RefusedRows:
        listed = sorted(raw.rejects.listed)
        lines = np.array([line for line, _ in listed], np.int64)
        columns, reasons = [""] * len(listed), [reason for _, reason in listed]
        texts = [raw.rejects.texts.get(line, "") for line, _ in listed]
        positions = np.flatnonzero(bad)
        if len(positions) and raw.lines is not None:
            column_of: dict[int, str] = {}
            said: dict[int, str] = {}
            for fault in faults:
                for position, reason in zip(fault.positions.tolist(), fault.reasons(), strict=True):
                    column_of.setdefault(position, fault.column)
                    said[position] = f"{said[position]}; {reason}" if position in said else reason
            columns += [column_of[position] for position in positions.tolist()]
            reasons += [said[position] for position in positions.tolist()]
            texts += _raw_texts(raw.table, positions, self.planned.source.separator)
            lines = np.concatenate([lines, raw.lines[positions]])
            order = np.argsort(lines, kind="stable").tolist()
            lines = lines[order]
            columns, reasons, texts = ([cells[i] for i in order] for cells in (columns, reasons, texts))
        return RefusedRows(lines, columns, reasons, [""] * len(texts) if self.hide else texts)


# ------------------------------------------------------------------------------------------------ blocks


def even_blocks(blocks: Iterator[RawTable], name: str) -> Iterator[RawTable]:
    """The same rows in blocks of :data:`BLOCK_ROWS`; refused lines come with the rows that follow them."""
    waiting: list[pa.Table] = []
    lines: list[npt.NDArray[np.int64]] = []
    rejects = Rejects(name, limit=None)
    n_waiting = 0
    given = False

    def take(n_rows: int) -> RawTable:
        nonlocal waiting, lines, rejects, n_waiting
        table = pa.concat_tables(waiting)
        numbers = np.concatenate(lines) if lines else None
        block = RawTable(
            table.slice(0, n_rows).combine_chunks(), None if numbers is None else numbers[:n_rows], rejects
        )
        waiting, n_waiting = [table.slice(n_rows)], n_waiting - n_rows
        lines = [] if numbers is None else [numbers[n_rows:]]
        rejects = Rejects(name, limit=None)
        return block

    for block in blocks:
        waiting.append(block.table)
        if block.lines is not None:
            lines.append(block.lines)
        n_waiting += len(block.table)
        rejects.take(block.rejects)
        while n_waiting >= BLOCK_ROWS:
            given = True
            yield take(BLOCK_ROWS)
    if waiting and (n_waiting or rejects.count or not given):
        yield take(n_waiting)


def prefetched(blocks: Iterator[RawTable], ahead: int = 2) -> Iterator[RawTable]:
    """The same blocks, read by a thread of their own while earlier ones are looked at."""
    waiting: queue.Queue[RawTable | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: RawTable | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for block in blocks:
                if not put(block):
                    return
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=read, name="import-reader", daemon=True)
    reader.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()


# ------------------------------------------------------------------------------------------------ columns


def _cells(raw: RawTable, column: str) -> pa.Array:
    cells = raw.table.column(column)
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def _mask(values: Any) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _rows_of(positions: npt.NDArray[np.int64], codes: npt.NDArray[np.int32], n_words: int) -> npt.NDArray[np.int64]:
    """Rows whose word is one of these."""
    wanted = np.zeros(n_words, bool)
    wanted[positions] = True
    return np.flatnonzero(wanted[codes])


def _spelled(words: pa.Array, codes: npt.NDArray[np.int32]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), words)


def _marked(n_rows: int, faults: Sequence[_Fault]) -> Mask:
    bad = np.zeros(n_rows, bool)
    for fault in faults:
        bad[fault.positions] = True
    return bad


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


def _raw_texts(table: pa.Table, positions: npt.NDArray[np.int64], separator: str | None) -> list[str]:
    """Rows as they stood in the file but for quotes, clipped."""
    rows = table.take(pa.array(positions))
    cells = [pc.utf8_slice_codeunits(column, 0, MAX_RAW_CHARS) for column in rows.columns]
    joined = pc.binary_join_element_wise(*cells, pa.scalar(separator or ", ", pa.large_string()))
    return pc.utf8_slice_codeunits(joined, 0, MAX_RAW_CHARS).to_pylist()
