"""Tables in rows whose cells need a touch first: a day and a time of day apart, numbers that say "not rated"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import ITEM, RATING, TIME, USER
from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._layouts.matrix import BLANKS, marker_of
from llmrec_core.data._role_names import plain, rank_of
from llmrec_core.data._sources import Source
from llmrec_core.data._values import Question, ask_about_marker, parse_times

#: A time of day and nothing else: "7:05", "19:05:33.2", "7:05 PM".
CLOCK = r"^\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*([AaPp]\.?[Mm]\.?)?\s*$"
#: What only a column of times of day is called.
_CLOCKS = ("hour", "clock", "timeofday", "orderhour", "purchasetime", "ordertime", "transactiontime", "clocktime")


def with_moments(
    source: Source, sample: pa.Table, roles: Mapping[str, str]
) -> tuple[Source, dict[str, str], list[str]]:
    """One column of days with times of day, where the times stood in two columns; otherwise what was given."""
    taken = roles.get(TIME)
    if taken is None:
        return source, dict(roles), []
    others = [c for c in source.columns if c not in roles.values() and (_named(c) or plain(c) in _CLOCKS)]
    clocks = [c for c in (taken, *others) if _is_clock(sample, c)]
    days = [c for c in (taken, *others) if c not in clocks and _is_day(sample, c)]
    if not clocks or not days or taken not in (clocks[0], days[0]):
        return source, dict(roles), []
    day, clock = days[0], clocks[0]
    name = f"{day} {clock}"
    if name in source.columns or parse_times(_joined(sample, day, clock), name, strict=False)[1].mean() > 0.5:
        note = f"timestamp: taken from {day!r} alone; the times of day in {clock!r} could not be put to it"
        return source, {**roles, TIME: day}, [note]
    make = _adding(name, lambda table: _joined(table, day, clock))
    note = f"timestamp: {day!r} and {clock!r} together; timestamp={day} takes the days alone"
    return adapted(source, (*source.columns, name), make), {**roles, TIME: name}, [note]


def _named(column: str) -> bool:
    return rank_of(TIME, column) is not None


def _filled(sample: pa.Table, column: str) -> list[str]:
    return [cell.strip() for cell in cells_of(sample, column).to_pylist() if cell.strip()]


def _is_clock(sample: pa.Table, column: str) -> bool:
    filled = _filled(sample, column)
    return bool(filled) and sum(re.match(CLOCK, cell) is not None for cell in filled) >= 0.95 * len(filled)


def _is_day(sample: pa.Table, column: str) -> bool:
    """Dates without a time of day."""
    filled = _filled(sample, column)
    if not filled or any(":" in cell and not re.search(r"\b0?0:00(:00(\.0+)?)?$", cell) for cell in filled):
        return False
    if all(re.fullmatch(r"\d+(\.\d+)?", cell) and not re.fullmatch(r"(19|20)\d{6}", cell) for cell in filled):
        return False
    return bool(parse_times(pa.array(filled, pa.large_string()), column, strict=False)[1].mean() <= 0.5)


def _joined(table: pa.Table, day: str, clock: str) -> pa.Array:
    """ "2024-03-01 7:05"; the day alone where there is no time of day, nothing where there is no day."""
    days = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells_of(table, day)), r"[ T]0?0:00(:00(\.0+)?)?$", "")
    # Eight digits are a day only as long as nothing follows.
    days = pc.replace_substring_regex(days, r"^((?:19|20)\d{2})(\d{2})(\d{2})$", r"\1-\2-\3")
    clocks = pc.utf8_trim_whitespace(cells_of(table, clock))
    both = pc.and_(pc.not_equal(days, ""), pc.not_equal(clocks, ""))
    return pc.if_else(both, pc.binary_join_element_wise(days, clocks, pa.scalar(" ", days.type)), days)


def whole_rows(sample: pa.Table, roles: Mapping[str, str]) -> pa.Table:
    """The rows that say who and what: the others are refused, such as the line of totals below a sheet."""
    for role in (USER, ITEM):
        if role in roles:
            sample = sample.filter(pc.not_equal(pc.utf8_trim_whitespace(cells_of(sample, roles[role])), ""))
    return sample


def without_markers(
    source: Source, sample: pa.Table, roles: Mapping[str, str], told: str | None
) -> tuple[Source, list[str], tuple[Question, ...]]:
    """(blank cells where a rating says that there is none, as told by ``missing:FILE=99``; notes; what is to be asked).

    The question comes also where it was answered.

    Raises:
        DataError: what was told is no number.
    """
    column = roles.get(RATING)
    if column is None:
        return source, [], ()
    whole = whole_rows(sample, roles)
    counts = Counter(value for cell in _filled(whole, column) if (value := _number(cell)) is not None)
    asked = ask_about_marker(list(counts), list(counts.values()), column, source.name)
    marker = None if told is None else marker_of(counts, sum(counts.values()), told, source.name)
    questions = () if asked is None else (asked,)
    if marker is None:
        return source, [], questions

    def blanked(table: pa.Table) -> pa.Array:
        cells = cells_of(table, column)
        words = pc.unique(cells).to_pylist()
        marked = pa.array([word for word in words if _number(word.strip()) == marker], pa.large_string())
        return pc.if_else(pc.is_in(cells, marked), pa.scalar("", cells.type), cells)

    note = f"ratings of {marker:g} say that there is none"
    return adapted(source, source.columns, _adding(column, blanked)), [note], questions


def _number(cell: str) -> float | None:
    if cell.lower() in BLANKS:
        return None
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return None


def _adding(name: str, cells: Callable[[pa.Table], pa.Array]) -> Callable[[], Converter]:
    """A converter that sets one column and leaves rows and the other columns as they are."""

    def convert(table: pa.Table, lines: Rows) -> Long:
        columns: dict[str, pa.Array | Sequence[str]] = {c: cells_of(table, c) for c in table.column_names}
        return Long(text_table({**columns, name: cells(table)}), np.arange(len(table), dtype=np.int64))

    return lambda: convert
