"""Text cells -> numbers and times, a column at a time, with a mask of the cells that could not be read."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._values.numbers import parse_numbers
from llmrec_core.errors import DataError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
_COMMA_NUMBER = r"^[+-]?[0-9]+,[0-9]+$"

#: Date forms beside ISO 8601 that can be read in one way only. Order: most common first.
_DATE_FORMS = (
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y.%m.%d %H:%M:%S", "%Y.%m.%d", "%Y%m%d",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y",
    "%m %d, %Y", "%Y年%m月%d日 %H:%M:%S", "%Y年%m月%d日 %H:%M", "%Y年%m月%d日", "%a %b %d %H:%M:%S %z %Y",
)  # fmt: skip
_SLASHED = re.compile(r"^\s*(\d{1,2})([/-])(\d{1,2})\2(\d{4})(?:[ T]+\d.*)?$")
#: Years 1900 to 2200: outside, a time is a typing error or another unit.
_EARLIEST_S, _LATEST_S = -2_208_988_800.0, 7_258_118_400.0


def _spread(values: npt.NDArray[Any], encoded: pa.DictionaryArray) -> npt.NDArray[Any]:
    """Values of the distinct words, back at their cells."""
    if not len(values):
        return values
    return values[encoded.indices.to_numpy(zero_copy_only=False)]


def parse_times(text: pa.Array, column: str, *, strict: bool = True) -> tuple[Floats, Mask, list[str]]:
    """Times of a column of text, as seconds since 1970 UTC.

    Numbers are epoch seconds, milli-, micro- or nanoseconds by their size (one unit for the column); small numbers
    are taken as they are, an order without a calendar. Dates without a zone are UTC. Blank cells are NaN, not bad.

    Args:
        column: its name, for messages.
        strict: raise where dates such as 03/04/2024 can be read in two ways; else count those cells as read.

    Returns:
        (seconds [n]; bad [n]; notes for the person who imports).

    Raises:
        DataError: day and month cannot be told apart (``strict`` only).
    """
    encoded = text.dictionary_encode()
    words = pc.utf8_trim_whitespace(encoded.dictionary)
    blank = np.asarray(pc.equal(words, "").to_numpy(zero_copy_only=False), bool)
    numbers, not_number = parse_numbers(words)
    numeric = ~not_number & ~blank
    filled = int((~blank).sum())
    if filled and numeric.sum() * 2 >= filled and not _compact_dates(words):
        seconds, notes = _epoch(numbers, column)
        bad = ~blank & (~numeric | _outside(seconds))
    else:
        seconds, notes = _dates(words, column, strict)
        bad = ~blank & (np.isnan(seconds) | _outside(seconds))
    seconds = np.where(bad, np.nan, seconds)
    return _spread(seconds, encoded), _spread(bad, encoded), notes


def _outside(seconds: Floats) -> Mask:
    return (seconds < _EARLIEST_S) | (seconds > _LATEST_S)


def _compact_dates(words: pa.Array) -> bool:
    """All cells are like 20240131: dates without separators, not seconds in 1970."""
    filled = pc.filter(words, pc.not_equal(words, ""))
    return len(filled) > 0 and bool(
        pc.all(pc.match_substring_regex(filled, r"^(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])$")).as_py()
    )


def _epoch(numbers: Floats, column: str) -> tuple[Floats, list[str]]:
    known = np.abs(numbers[~np.isnan(numbers)])
    middle = float(np.median(known)) if len(known) else 0.0
    for limit, divisor, unit in ((1e17, 1e9, "nano"), (1e14, 1e6, "micro"), (1e11, 1e3, "milli")):
        if middle >= limit:
            return numbers / divisor, [f"{column}: read as {unit}seconds since 1970"]
    if middle < 1e8:
        return numbers, [f"{column}: numbers too small for a calendar; they give the order, shown dates mean nothing"]
    return numbers, []


def _dates(words: pa.Array, column: str, strict: bool) -> tuple[Floats, list[str]]:
    texts = pd.Series(words.to_pylist(), dtype=object)
    best = _to_seconds(texts, "ISO8601")
    filled = int((texts != "").sum())
    if np.isnan(best[(texts != "").to_numpy()]).sum() * 2 <= filled:
        return best, []
    probe = texts[texts != ""].head(2000)
    slashed = [m for m in (_SLASHED.match(t) for t in probe) if m]
    if len(slashed) * 2 > len(probe):
        return _slashed(texts, column, strict)
    counts = [(int((~np.isnan(_to_seconds(probe, form))).sum()), -rank, form) for rank, form in enumerate(_DATE_FORMS)]
    found, _, form = max(counts, default=(0, 0, "ISO8601"))
    return (_to_seconds(texts, form), []) if found else (best, [])


def _slashed(texts: pd.Series, column: str, strict: bool) -> tuple[Floats, list[str]]:
    """31/01/2024 or 01/31/2024: the column decides, or nobody can."""
    parts = texts.str.extract(r"^\s*(\d{1,2})[/-](\d{1,2})[/-]\d{4}")
    first, second = (pd.to_numeric(parts[i], errors="coerce").max() for i in (0, 1))
    if (first > 12) == (second > 12):
        if strict:
            raise DataError(
                f"dates such as {texts[texts != ''].iloc[0][:40]!r} can be read as day/month or month/day.",
                where=f"column {column}",
                fix="Write dates as YYYY-MM-DD.",
            )
        return np.zeros(len(texts)), []
    order = "%d/%m/%Y" if first > 12 else "%m/%d/%Y"
    tidy = texts.str.strip().str.replace("-", "/", n=2, regex=False)
    seconds = _to_seconds(tidy, order)
    for clock in (" %H:%M:%S", " %H:%M"):
        seconds = np.where(np.isnan(seconds), _to_seconds(tidy, order + clock), seconds)
    return seconds, [f"{column}: dates read as {'day/month/year' if first > 12 else 'month/day/year'}"]


def _to_seconds(texts: pd.Series, form: str) -> Floats:
    with warnings.catch_warnings():
        # pandas tells of odd zones by warning; an unread cell is already marked by NaT.
        warnings.simplefilter("ignore")
        moments = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
    values = moments.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    seconds = values.astype(np.int64) / 1e6
    return np.where(np.isnat(values), np.nan, seconds)
