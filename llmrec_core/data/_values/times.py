"""Times in text: one reading for a whole column, decided from its first filled cells and held to ever after.

Numbers are seconds, milli-, micro- or nanoseconds since 1970, days of a spreadsheet, or a mere order; everything else
is a date. Whether 03/04 is in April or in March is for the column to say, or for a person.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._values import dates as date
from llmrec_core.data._values.numbers import NumberFormat, decide_numbers
from llmrec_core.data._values.options import DEFAULT, Question, ValueOptions, refuse_unanswered
from llmrec_core.data._values.words import (
    TEXT,
    Floats,
    Mask,
    distinct,
    first_filled,
    is_missing,
    matches,
    missing_note,
    missing_words,
    plain_words,
    some,
    spread,
    trim,
)

#: Years 1900 to 2200: outside, a time is a typing error or another unit.
EARLIEST_S, LATEST_S = -2_208_988_800.0, 7_258_118_400.0
_COMPACT = r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[0-2][0-9][0-5][0-9](?:[0-5][0-9])?)?"
_DIVISORS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
#: Seconds of 1990 and 2100: what a time in another unit would most likely be.
_LIKELY_S = (6.3e8, 4.1e9)
#: The spreadsheet's day zero is 1899-12-30, and 1970-01-01 is day 25569.
_EXCEL_EPOCH = 25569.0
_DATE_NAME = re.compile(r"(?i)date|datum|fecha|day|日期|时间|日付")
_YEAR_NAME = re.compile(r"(?i)year|jahr|année|año|年")
#: The smaller of two contradicting day orders is a typing error up to this share.
_MAX_CONTRADICTING = 0.01

Kind = Literal["nothing", "s", "ms", "us", "ns", "excel", "order", "years", "dates", "clock"]


@dataclass(frozen=True)
class TimeFormat:
    """How one column of times is read, as seconds since 1970 UTC.

    Attributes:
        kind: unit of numbers, ``order`` (numbers without a calendar), ``dates``, ``clock`` (times of day alone) or
            ``nothing`` (no cell is filled).
        figures: how numbers are read.
        order: of dates such as 05/03/2024: what comes first; None while nobody knows.
        year_first: of dates such as 99-12-31.
    """

    column: str
    options: ValueOptions
    kind: Kind = "nothing"
    figures: NumberFormat | None = None
    order: Literal["day", "month"] | None = None
    year_first: bool = False
    _profile: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)
    _later: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    _example: str = field(default="", compare=False, repr=False)
    _blanks: int = field(default=0, compare=False, repr=False)
    _missing: tuple[str, ...] = field(default=(), compare=False, repr=False)

    # ------------------------------------------------------------------------------------------------ reading

    def times(self, text: pa.Array) -> tuple[Floats, Mask]:
        """(seconds [n], NaN where blank or bad; bad [n])."""
        cells, positions = distinct(text)
        values, bad = self._read(cells)
        return spread(values, positions), spread(bad, positions)

    def _read(self, words: pa.Array) -> tuple[Floats, Mask]:
        if self.figures is not None:
            return self._read_numbers(words)
        words = trim(words)
        if self.kind == "dates":
            seconds = self._read_dates(date.take_apart(words))
        elif self.kind == "clock":
            seconds = date.clock_seconds(date.take_apart(words))
        else:
            seconds = np.full(len(words), np.nan)
        bad = ~((seconds >= EARLIEST_S) & (seconds <= LATEST_S))
        seconds[bad] = np.nan
        bad[bad] = ~is_missing(plain_words(pc.filter(words, pa.array(bad))))
        return seconds, bad

    def _read_numbers(self, words: pa.Array) -> tuple[Floats, Mask]:
        assert self.figures is not None
        values, bad = self.figures.read_words(words)
        blank = np.isnan(values) & ~bad
        if self.kind == "excel":
            seconds = np.round((values - _EXCEL_EPOCH) * 86_400_000.0) / 1000.0
        elif self.kind == "years":
            whole = np.where(np.isnan(values) | (values != np.floor(values)) | (np.abs(values) > 9999), np.nan, values)
            years = (np.where(np.isnan(whole), 1970, whole).astype(np.int64) - 1970).astype("M8[Y]")
            seconds = np.where(np.isnan(whole), np.nan, years.astype("M8[s]").astype(np.int64))
        elif self.kind == "order":
            seconds = values
        else:
            seconds = values if self.kind == "s" else values / _DIVISORS[self.kind]
            least = 0.0 if self.kind == "s" else _LIKELY_S[1]
            if len(values) and np.fmin.reduce(values) > least and np.fmax.reduce(seconds) <= LATEST_S:
                # The lowest and the highest are sound, and so is all between them: most blocks end here.
                return seconds, bad
            placeholder = (values == 0) | (values == -1)
            blank |= placeholder
            low, high = _LIKELY_S
            # In a column of milliseconds, a number that makes a good time in seconds would land in January 1970.
            bad |= (self.kind != "s") & (np.abs(values) >= low) & (np.abs(values) <= high)
        bad |= ~blank & ~((seconds >= EARLIEST_S) & (seconds <= LATEST_S))
        return np.where(bad | blank, np.nan, seconds), bad

    def _read_dates(self, found: date.Dates) -> Floats:
        year, month, day = found.year, found.month, found.day
        numeric = found.shape == date.NUMERIC
        if numeric.any():
            same = found.first == found.second
            order_known = self.order is not None
            day = np.where(numeric, found.second if self.order == "month" else found.first, day)
            month = np.where(numeric, found.first if self.order == "month" else found.second, month)
            if not order_known:
                day, month = np.where(numeric & ~same, 0, day), np.where(numeric & ~same, 0, month)
            if self.year_first:
                short = numeric & found.short_year
                year = np.where(short, found.first, year)
                month, day = np.where(short, found.second, month), np.where(short, found.year, day)
        year = np.where(found.short_year, year + np.where(year >= 69, 1900, 2000), year)
        return date.seconds_of(found, year, month, day, self.options.timezone)

    # ------------------------------------------------------------------------------------------------ deciding

    def reconsider(self, refused: pa.Array) -> TimeFormat:
        """The format once these cells, which it refused, are known; equal to this one where nothing changes.

        Only which cells there are matters: not their order, their number, or the blocks in which they are told.
        """
        if self.figures is not None:
            return replace(self, figures=self.figures.reconsider(refused))
        if self.kind != "dates":
            return self
        found = date.take_apart(first_filled(refused, len(refused)))
        tags = {tag for tag, chosen in _tagged(found) if chosen.any()}
        return self._decided(self._later | tags)

    def _decided(self, later: frozenset[str]) -> TimeFormat:
        first = Counter(dict(self._profile))
        return replace(
            self,
            order=self._order(first, later),
            year_first=self._begins_with_the_year({tag for tag, count in first.items() if count} | later),
            _later=later,
        )

    def _order(self, first: Counter[str], later: frozenset[str]) -> Literal["day", "month"] | None:
        if self.options.day_first != "auto":
            return "day" if self.options.day_first == "yes" else "month"
        seen = {tag for tag, count in first.items() if count} | later
        if self._may_begin_with_the_year(seen):
            return None
        days, months = first["day"], first["month"]
        if min(days, months) > _MAX_CONTRADICTING * (days + months):
            return None
        if days or months:
            return "day" if days > months else "month"
        if "day" in later or "month" in later:
            return None if {"day", "month"} <= later else "day" if "day" in later else "month"
        # Dots part days, months and years where the day comes first; slashes and dashes do so in both orders.
        open_ = "open" in seen or ("open_short" in seen and "year_first" not in seen)
        return None if open_ else "day"

    def _begins_with_the_year(self, seen: set[str] | frozenset[str]) -> bool:
        """Of two digits, what is no day (somebody said) and above 12 can only be a year."""
        if "year_first" in seen:
            return True
        return self.options.day_first == "no" and self._may_begin_with_the_year(seen) and "short_high" in seen

    @staticmethod
    def _may_begin_with_the_year(seen: set[str] | frozenset[str]) -> bool:
        """Years of two digits, and nothing that tells 24-01-05 of 2024 from that of 2005."""
        if {"year_first", "short_late"} & seen:
            return False
        return "short_dashed" in seen or ("short_other" in seen and "short_low" not in seen)

    # ------------------------------------------------------------------------------------------------ telling

    def _has(self, tag: str) -> bool:
        return tag in self._later or any(known == tag and count for known, count in self._profile)

    @property
    def _or_year(self) -> str:
        seen = self._later | {tag for tag, count in self._profile if count}
        return ", or begin with the year (then the day is not first)" if self._may_begin_with_the_year(seen) else ""

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the cells leave open."""
        asked: list[Question] = list(self.figures.questions) if self.figures is not None else []
        if self.kind == "dates" and self.order is None:
            shown = f" such as {self._example!r}" if self._example else ""
            asked.append(
                Question(
                    "day_first",
                    f"dates{shown} in column {self.column!r} can be read as day/month or month/day{self._or_year} "
                    "(YYYY-MM-DD can be read in one way only).",
                    ("yes", "no"),
                )
            )
        if self._blanks and self.kind != "nothing":
            text = f"some rows have no time in column {self.column!r}."
            asked.append(
                Question("missing_time", text, ("refuse", "keep-order", "drop-all"), self.options.missing_time)
            )
        return tuple(asked)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the reading."""
        said = {
            "ms": "read as milliseconds since 1970", "us": "read as microseconds since 1970",
            "ns": "read as nanoseconds since 1970", "excel": "read as days of a spreadsheet (since 1899-12-30)",
            "order": "numbers too small for a calendar; they give the order, shown dates mean nothing",
            "years": "years alone: every row of a year falls on its first of January",
            "clock": "times of day without a date: they give an order within one day only",
        }  # fmt: skip
        notes = [said[self.kind]] if self.kind in said else []
        if self.kind == "dates":
            if self.order is not None and (self._has("day") or self._has("month") or self._has("open")):
                notes.append(f"dates read as {'day/month' if self.order == 'day' else 'month/day'}/year")
            elif self._has("dotted"):
                notes.append("dates with dots read as day.month.year")
            if self._has("short"):
                order = "year first" if self.year_first else "year last"
                notes.append(f"years of two digits ({order}): 69 to 99 are 1969 to 1999, others 2000 to 2068")
            if self._has("month_only"):
                notes.append("months without a day stand for their first day")
            if self.options.timezone and self._has("naive"):
                notes.append(f"times without a zone are in {self.options.timezone}")
            elif self._has("naive") and self._has("zoned"):
                notes.append("some times name a zone; those that do not are taken as UTC (timezone=Area/City)")
        if self._missing:
            notes.append(missing_note(self._missing))
        figures = self.figures.notes if self.figures is not None else ()
        return (*(f"{self.column}: {note}" for note in notes), *figures)

    def reason(self, cell: str) -> str:
        """Why this cell was refused."""
        shown = repr(cell.strip()[:60])
        if self.figures is not None:
            values, bad = self.figures.numbers(pa.array([cell], TEXT))
            if bad[0]:
                return f"{shown} is not a number, as the other times are"
            if self.kind in _DIVISORS and self.kind != "s" and _LIKELY_S[0] <= abs(values[0]) <= _LIKELY_S[1]:
                return f"{shown} looks like seconds, where the others are {_UNIT_NAMES[self.kind]}"
            return f"{shown} lies outside the years 1900 to 2200"
        found = date.take_apart(trim(pa.array([cell], TEXT)))
        if found.shape[0] < 0 or (found.shape[0] == date.CLOCK) != (self.kind == "clock"):
            return f"{shown} is not a {'time of day' if self.kind == 'clock' else 'date'} that can be read"
        if np.isinf(found.offset[0]):
            return f"the time zone of {shown} is unknown or could be several"
        if found.micros[0] < 0:
            return f"{shown} is no time of a day"
        if found.shape[0] == date.NUMERIC and self.order is None:
            return f"nobody can tell day and month of {shown}"
        order = f" ({self.order} first)" if found.shape[0] == date.NUMERIC else ""
        return f"{shown} is no day that exists between 1900 and 2200{order}"


def decide_times(cells: pa.Array, column: str, options: ValueOptions = DEFAULT) -> TimeFormat:
    """How a column is read, by its first ``PROFILE_CELLS`` filled cells; blank ones and later ones do not count."""
    words = first_filled(cells)
    blanks = int(is_missing(trim(distinct(cells)[0])).sum())
    fresh = TimeFormat(column, options, _blanks=blanks, _missing=missing_words(cells))
    if not len(words):
        return fresh
    figures = decide_numbers(words, column, options)
    values, bad = figures.numbers(words)
    numeric = ~bad
    told = options.time_unit
    if told != "auto" or (numeric.sum() * 2 > len(words) and not matches(words, _COMPACT)[numeric].all()):
        kind: Kind = told if told != "auto" else _unit(values[numeric], column)
        return replace(fresh, kind=kind, figures=figures)
    parts = date.take_apart(words)
    if (~np.isnan(date.clock_seconds(parts))).sum() * 2 > len(words):
        return replace(fresh, kind="clock")
    tags: Counter[str] = Counter()
    example = ""
    for tag, chosen in _tagged(parts):
        tags[tag] += int(chosen.sum())
        if tag in ("open", "open_short", "short_dashed", "short_other", "day") and not example and chosen.any():
            example = some(words, chosen)[0]
    fresh = replace(fresh, kind="dates", _profile=tuple(sorted(tags.items())), _example=example)
    return fresh._decided(frozenset())


def _unit(values: Floats, column: str) -> Kind:
    """Unit of a column of numbers, by the size of the middle one."""
    middle = float(np.median(np.abs(values)))
    for limit, unit in ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s")):
        if middle >= limit:
            return unit  # type: ignore[return-value]
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.floor(values)).all())
    if low >= 1900 and high <= 2100 and whole and _YEAR_NAME.search(column):
        return "years"
    # Days from 1990 to 2064, and either with a time of day or in a column that says it holds dates.
    if low >= 32_874 and high <= 60_000 and (not whole or _DATE_NAME.search(column)):
        return "excel"
    return "order"


def _tagged(found: date.Dates) -> Iterable[tuple[str, Mask]]:
    """What cells tell about the dates of the column that they stand in."""
    known = found.shape >= 0
    numeric = found.shape == date.NUMERIC
    short = numeric & found.short_year
    year_first = short & (found.first > 31)
    yield "year_first", year_first
    yield "short", found.short_year & known
    parts = numeric & ~year_first
    both = parts & (found.first <= 12) & (found.second <= 12) & (found.first != found.second)
    yield "dotted", numeric & found.dotted
    yield "open", both & ~found.dotted & ~short
    yield "open_short", both & ~found.dotted & short
    yield "short_low", short & (found.first <= 12)
    yield "short_high", short & (found.first > 12)
    yield "short_late", short & (found.year > 31)
    yield "short_dashed", short & found.dashed
    yield "short_other", short & ~found.dashed & ~found.dotted
    yield "day", parts & (found.first > 12) & (found.second <= 12)
    yield "month", parts & (found.second > 12) & (found.first <= 12)
    yield "month_only", np.isin(found.shape, date.MONTH_ONLY)
    zoned = found.zoned
    yield "zoned", known & zoned
    yield "naive", known & ~zoned


def settle_times(text: pa.Array, column: str, options: ValueOptions = DEFAULT) -> tuple[TimeFormat, Floats, Mask]:
    """(format, seconds [n], bad [n]) of a column that lies in memory as a whole."""
    cells, positions = distinct(text)
    found = decide_times(text, column, options)
    while True:
        values, bad = found._read(cells)
        better = found.reconsider(pc.filter(cells, pa.array(bad)))
        if better == found:
            return better, spread(values, positions), spread(bad, positions)
        found = better


def parse_times(
    text: pa.Array, column: str, options: ValueOptions = DEFAULT, *, strict: bool = True
) -> tuple[Floats, Mask, list[str]]:
    """Times of a whole column of text at once, as seconds since 1970 UTC; blank cells are NaN and not bad.

    Args:
        column: its name, for messages.
        strict: raise where dates such as 03/04/2024 can be read in two ways; else count those cells as read.

    Returns:
        (seconds [n]; bad [n]; notes for the person who imports).

    Raises:
        DataError: day and month cannot be told apart (``strict`` only).
    """
    found, seconds, bad = settle_times(text, column, options)
    if strict:
        refuse_unanswered(found.questions, f"column {column}")
    elif found.kind == "dates" and found.order is None:
        by_day = replace(found, order="day").times(text)
        by_month = replace(found, order="month").times(text)
        seconds, bad = by_day[0], by_day[1] & by_month[1]
    return seconds, bad, list(found.notes)


def carry_times(seconds: Floats, last: float = np.nan) -> tuple[Floats, float]:
    """``missing_time=keep-order``: a row without a time takes that of the row before it in the file.

    Args:
        seconds: of one block [n], NaN where missing.
        last: the last time of the block before; NaN before the first.

    Returns:
        (times [n], NaN only before the first known one; the last time, for the next block).
    """
    known = ~np.isnan(seconds)
    position = np.maximum.accumulate(np.where(known, np.arange(len(seconds)), -1))
    filled = np.where(position >= 0, seconds[np.maximum(position, 0)], last) if len(seconds) else seconds
    return filled, float(filled[-1]) if len(filled) else last
