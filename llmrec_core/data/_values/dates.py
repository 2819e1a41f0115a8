"""Dates in text, whatever their shape: taken apart by pattern, put together as seconds since 1970 UTC.

Every shape is tried as a whole column at once. What a cell leaves open (05/03/2024) is left open here: the column
decides, in :mod:`llmrec_core.data._values.times`.
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._values.words import TEXT, Floats, Mask, mask, matches

Ints = npt.NDArray[np.int64]

#: The one shape that databases and programs write; it needs no decision, and DuckDB reads it too.
_CLOCK = r"(?:[01][0-9]|2[0-4]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
_OFFSET = r"Z|[+-](?:0[0-9]|1[0-5])(?::?[0-5][0-9])?"
ISO_NAIVE = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[ T]{_CLOCK})?"
ISO_ZONED = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[ T]{_CLOCK}(?:{_OFFSET})"
ISO = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[ T]{_CLOCK}(?:{_OFFSET})?)?"

_REST = r"(?P<tail>(?:[^0-9].*)?)$"
_NAME = r"(?P<name>\p{L}{3,})"
_SHAPES: dict[str, str] = {
    "year_first": r"^(?P<y>[0-9]{4})(?P<s>[-/.])(?P<m>[0-9]{1,2})(?P<s2>[-/.])(?P<d>[0-9]{1,2})" + _REST,
    "compact": r"^(?P<y>(?:19|20|21)[0-9]{2})(?P<m>[0-9]{2})(?P<d>[0-9]{2})"
    r"(?P<tail>(?:[t ]?[0-9]{4}(?:[0-9]{2})?z?)?)$",
    "numeric": r"^(?P<a>[0-9]{1,2})(?P<s>[-/.])(?P<b>[0-9]{1,2})(?P<s2>[-/.])(?P<y>[0-9]{4}|[0-9]{2})" + _REST,
    "cjk": r"^(?P<era>令和|平成|昭和|民国|民國)? *(?P<y>[0-9]{1,4}|元) *[年년] *(?P<m>[0-9]{1,2}) *[月월]"
    r"(?: *(?P<d>[0-9]{1,2}) *[日号號일])?(?P<tail>.*)$",
    "day_name": r"^(?:\p{L}+\.?,? +){0,2}(?P<d>[0-9]{1,2})(?:st|nd|rd|th|er|o|\.)?[ \-./]*(?:de |of )?"
    rf"{_NAME}\.?[ \-./,]*(?:de |del )?'?(?P<y>[0-9]{{4}}|[0-9]{{2}}){_REST}",
    "name_day": rf"^(?:\p{{L}}+\.?,? +)?{_NAME}\.?[ \-./]*(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?,?[ \-./]+"
    rf"(?P<y>[0-9]{{4}}){_REST}",
    "ctime": rf"^(?:\p{{L}}{{2,9}}\.?,? +)?{_NAME} +(?P<d>[0-9]{{1,2}}) +"
    r"(?P<tail>[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?: ?[ap]m)?(?: +(?:[+-][0-9]{4}|[a-z]{1,5}))?) +(?P<y>[0-9]{4})$",
    "year_name": rf"^(?P<y>[0-9]{{4}})[ \-./]{_NAME}[ \-./](?P<d>[0-9]{{1,2}}){_REST}",
    "month_day_year": r"^(?P<m>[0-9]{1,2}) (?P<d>[0-9]{1,2}), ?(?P<y>[0-9]{4})" + _REST,
    "week": r"^(?P<y>[0-9]{4})-?w(?P<week>[0-9]{2})(?:-?(?P<weekday>[1-7]))?(?P<tail>(?:[t ].*)?)$",
    "ordinal": r"^(?P<y>[0-9]{4})-(?P<day>[0-9]{3})(?P<tail>(?:[t ].*)?)$",
    "month": r"^(?P<y>[0-9]{4})[-/](?P<m>[0-9]{1,2})$",
    "name_year": rf"^{_NAME}\.?,? (?:de )?(?P<y>[0-9]{{4}})$",
}  # fmt: skip
_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925, "民国": 1911, "民國": 1911}

_NOON = "上午|下午|晚上|凌晨|早上|清晨|中午|傍晚|午前|午後|오전|오후"
_ZONE = r"(?:utc|gmt)?[+-][0-9]{1,2}(?::?[0-9]{2})?|[a-z]{1,5}|[a-z]+(?:/[a-z_+\-0-9]+)+"
_SECONDS = r"(?P<sec>[0-9]{1,2})(?:[.,](?P<f>[0-9]{1,9}))?"
_MINUTES = rf"(?P<i>[0-9]{{1,2}})(?: *[:.分분m] *(?:{_SECONDS})?)?"
_TAIL = (
    r"^(?:[ t,]|at |um |à |a las |(?:星期|周|礼拜).|\(.\)|[月火水木金土日]曜日?)*"
    rf"(?P<noon>{_NOON})? *(?P<h>[0-9]{{1,2}})(?: *[:.h时時点點시] *(?:{_MINUTES})?)? *[秒초分분]? *"
    rf"(?:(?P<half>[ap])\.? ?m\.?)? *(?P<zone>{_ZONE})?(?: *[\[(][a-z_/ .+\-0-9]+[\])])?$"
)
_COMPACT_TAIL = r"^[t ]?(?P<h>[0-9]{2})(?P<i>[0-9]{2})(?P<sec>[0-9]{2})?(?P<zone>z)?$"
#: Abbreviations that mean one zone. CST, IST, BST and others mean several, so they are refused.
_HOURS = {
    "z": 0.0, "ut": 0.0, "utc": 0.0, "gmt": 0.0, "wet": 0.0, "west": 1.0, "cet": 1.0, "cest": 2.0, "mez": 1.0,
    "mesz": 2.0, "eet": 2.0, "eest": 3.0, "msk": 3.0, "jst": 9.0, "kst": 9.0, "hkt": 8.0, "sgt": 8.0, "est": -5.0,
    "edt": -4.0, "cdt": -5.0, "mst": -7.0, "mdt": -6.0, "pst": -8.0, "pdt": -7.0,
}  # fmt: skip
_MONTHS = (
    "january jan januar jänner janvier janv enero ene",
    "february feb februar febr februari février févr fév febrero",
    "march mar märz mrz maerz mär mars marzo",
    "april apr avril avr abril abr",
    "may mai mayo",
    "june jun juni juin junio",
    "july jul juli juillet juil julio",
    "august aug août aout agosto ago",
    "september sep sept septembre septiembre setiembre",
    "october oct oktober okt octobre octubre",
    "november nov novembre noviembre",
    "december dec dezember dez décembre déc diciembre dic",
)
_MONTH_OF = {name: number for number, names in enumerate(_MONTHS, start=1) for name in names.split()}


@dataclass(frozen=True)
class Dates:
    """Cells taken apart; arrays are aligned with the cells.

    Attributes:
        shape: position of the shape in ``SHAPES``, -1 where none fits.
        year, month, day: 0 where unknown; of the shape "numeric" month and day are ``first`` and ``second``, open.
        short_year: the year has two digits.
        dotted, dashed: the separator of a numeric date.
        tail: what stands behind the date.
    """

    shape: npt.NDArray[np.int8]
    year: Ints
    month: Ints
    day: Ints
    first: Ints
    second: Ints
    short_year: Mask
    dotted: Mask
    dashed: Mask
    tail: pa.Array


SHAPES = tuple(_SHAPES)
NUMERIC = SHAPES.index("numeric")


def take_apart(words: pa.Array) -> Dates:
    """``words``: as ``plain_words`` gives them."""
    n = len(words)
    shape = np.full(n, -1, np.int8)
    columns = {name: np.zeros(n, np.int64) for name in ("year", "month", "day", "first", "second")}
    flags = {name: np.zeros(n, bool) for name in ("short_year", "dotted", "dashed")}
    tails: list[tuple[Mask, pa.Array]] = []
    open_ = np.ones(n, bool)
    for code, (name, pattern) in enumerate(_SHAPES.items()):
        here = np.flatnonzero(open_)
        if not len(here):
            break
        found = pc.extract_regex(words if len(here) == n else pc.take(words, pa.array(here)), pattern)
        fits = mask(pc.is_valid(found))
        if not fits.any():
            continue
        at, rows = here[fits], found.filter(pa.array(fits))
        groups = {field.name: pc.fill_null(rows.field(field.name), "") for field in rows.type}
        good = _fill(name, groups, columns, flags, at)
        at = at[good]
        shape[at] = code
        open_[at] = False
        if "tail" in groups:
            chosen = np.zeros(n, bool)
            chosen[at] = True
            tails.append((chosen, pc.filter(groups["tail"], pa.array(good))))
    tail = pa.array([""] * n, TEXT) if not tails or not tails[0][0].all() else tails[0][1].cast(TEXT)
    for chosen, texts in tails if not tails or not tails[0][0].all() else ():
        tail = pc.replace_with_mask(tail, pa.array(chosen), texts.cast(TEXT))
    return Dates(
        shape,
        columns["year"],
        columns["month"],
        columns["day"],
        columns["first"],
        columns["second"],
        flags["short_year"],
        flags["dotted"],
        flags["dashed"],
        tail,
    )


def _fill(name: str, groups: dict[str, Any], columns: dict[str, Ints], flags: dict[str, Mask], at: Ints) -> Mask:
    """Writes what one shape found; returns which of its rows hold a date at all."""
    good = np.ones(len(at), bool)
    year_text = groups["y"]
    years = _whole(pc.if_else(pc.equal(year_text, "元"), "1", year_text))
    short = mask(pc.less_equal(pc.utf8_length(year_text), 2))
    if "s2" in groups:
        good &= mask(pc.equal(groups["s"], groups["s2"]))
    if "era" in groups:
        eras = groups["era"].to_pylist()
        shift = np.array([_ERAS.get(str(era), 0) for era in eras], np.int64)
        years, short = years + shift, short & (shift == 0)
    if "name" in groups:
        names = groups["name"].dictionary_encode()
        known = np.array([_MONTH_OF.get(str(word), 0) for word in names.dictionary.to_pylist()], np.int64)
        columns["month"][at] = known[names.indices.to_numpy(zero_copy_only=False)]
        good &= columns["month"][at] > 0
    if "m" in groups:
        columns["month"][at] = _whole(groups["m"])
    if name == "numeric":
        columns["first"][at], columns["second"][at] = _whole(groups["a"]), _whole(groups["b"])
        flags["dotted"][at] = mask(pc.equal(groups["s"], "."))
        flags["dashed"][at] = mask(pc.equal(groups["s"], "-"))
    if name == "week":
        years, columns["month"][at], columns["day"][at], right = _week_date(
            years, _whole(groups["week"]), _whole(groups["weekday"], 1)
        )
        good &= right
    elif name == "ordinal":
        days = _whole(groups["day"])
        start = (years - 1970).astype("M8[Y]").astype("M8[D]")
        moment = start + (days - 1).astype("m8[D]")
        good &= (days >= 1) & (moment.astype("M8[Y]") == start.astype("M8[Y]"))
        columns["month"][at], columns["day"][at] = _month_day(moment)
    elif name in ("month", "name_year"):
        columns["day"][at] = 1
    elif "d" in groups:
        columns["day"][at] = _whole(groups["d"], 1)
    columns["year"][at] = years
    flags["short_year"][at] = short
    return good


def _whole(texts: Any, empty: int = 0) -> Ints:
    filled = pc.if_else(pc.equal(texts, ""), str(empty), texts)
    return np.array(pc.cast(filled, pa.int64()).to_numpy(zero_copy_only=False), np.int64)


def _month_day(days: npt.NDArray[np.datetime64]) -> tuple[Ints, Ints]:
    months = days.astype("M8[M]")
    return months.astype(np.int64) % 12 + 1, (days - months.astype("M8[D]")).astype(np.int64) + 1


def _week_date(years: Ints, weeks: Ints, weekdays: Ints) -> tuple[Ints, Ints, Ints, Mask]:
    """ISO 8601: week 1 holds the fourth of January, and weeks begin on Monday."""
    fourth = (years - 1970).astype("M8[Y]").astype("M8[D]") + np.timedelta64(3, "D")
    monday = fourth - ((fourth.astype(np.int64) + 3) % 7).astype("m8[D]")
    day = monday + ((weeks - 1) * 7 + weekdays - 1).astype("m8[D]")
    thursday = day - ((day.astype(np.int64) + 3) % 7 - 3).astype("m8[D]")
    right = (weeks >= 1) & (thursday.astype("M8[Y]").astype(np.int64) + 1970 == years)
    months, days = _month_day(day)
    return day.astype("M8[Y]").astype(np.int64) + 1970, months, days, right


def seconds_of(dates: Dates, month: Ints, day: Ints, year: Ints, timezone: str) -> Floats:
    """Seconds since 1970 UTC [n]; NaN where there is no such day or time.

    Args:
        month, day, year: with what the column decided; 0 where it is unknown.
        timezone: for cells that name none; "" is UTC.
    """
    good = (dates.shape >= 0) & (month >= 1) & (month <= 12) & (day >= 1) & (year >= 1) & (year <= 9999)
    months = ((np.where(good, year, 1970) - 1970) * 12 + np.where(good, month, 1) - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (np.where(good, day, 1) - 1).astype("m8[D]")
    good &= days.astype("M8[M]") == months
    micros, zones, read = clock(dates.tail)
    good &= read
    return _at_zone(days.astype(np.int64) * 86_400_000_000 + micros, good, zones, timezone)


def clock_seconds(words: pa.Array) -> Floats:
    """Seconds since midnight of words that are a time of day alone; NaN elsewhere."""
    micros, zones, read = clock(words)
    told = mask(pc.not_equal(words, "")) & mask(pc.match_substring_regex(words, "[:时時点點시h]|[ap]\\.?m"))
    return np.where(read & told & mask(pc.equal(zones, "")), micros / 1e6, np.nan)


def clock(tail: pa.Array) -> tuple[Ints, pa.Array, Mask]:
    """(microseconds of the day [n], zone as it is written, whether the tail was understood [n])."""
    n = len(tail)
    empty = mask(pc.equal(tail, ""))
    micros, read = np.zeros(n, np.int64), empty.copy()
    zones = pa.array([""] * n, TEXT)
    if empty.all():
        return micros, zones, read
    for pattern in (_TAIL, _COMPACT_TAIL):
        here = np.flatnonzero(~read)
        if not len(here):
            break
        found = pc.extract_regex(pc.take(tail, pa.array(here)), pattern)
        fits = mask(pc.is_valid(found))
        if not fits.any():
            continue
        rows, at = found.filter(pa.array(fits)), here[fits]
        part = {field.name: pc.fill_null(rows.field(field.name), "") for field in rows.type}
        hours, minutes, seconds = (_whole(part[name]) for name in ("h", "i", "sec"))
        fraction = np.zeros(len(at), np.int64)
        if "f" in part:
            fraction = _whole(pc.utf8_slice_codeunits(pc.utf8_rpad(part["f"], 6, "0"), 0, 6))
            hours, right = _half_days(hours, part["half"], part["noon"])
        else:
            right = np.ones(len(at), bool)
        total = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction
        right &= (hours <= 24) & (minutes < 60) & (seconds < 60) & (total <= 86_400_000_000)
        micros[at] = total
        read[at[right]] = True
        chosen = np.zeros(n, bool)
        chosen[at] = True
        zones = pc.replace_with_mask(zones, pa.array(chosen), part["zone"].cast(TEXT))
    return micros, zones, read


def _half_days(hours: Ints, half: Any, noon: Any) -> tuple[Ints, Mask]:
    """Twelve-hour clocks, by a.m. and p.m. or the words for parts of a day."""
    words = pc.if_else(pc.equal(noon, ""), half, noon).dictionary_encode()
    names = [str(word) for word in words.dictionary.to_pylist()]
    positions = words.indices.to_numpy(zero_copy_only=False)
    morning = np.array([w in ("a", "上午", "凌晨", "早上", "清晨", "午前", "오전") for w in names], bool)[positions]
    later = np.array([w in ("p", "下午", "晚上", "傍晚", "午後", "오후") for w in names], bool)[positions]
    midday = np.array([w == "中午" for w in names], bool)[positions]
    right = ~(morning & (hours > 12)) & ~(np.isin(half.to_numpy(zero_copy_only=False), ("a", "p")) & (hours == 0))
    hours = np.where(morning & (hours == 12), 0, hours)
    hours = np.where((later & (hours < 12)) | (midday & (hours < 4)), hours + 12, hours)
    return hours, right


def _at_zone(micros: Ints, good: Mask, zones: pa.Array, timezone: str) -> Floats:
    seconds = np.where(good, micros / 1e6, np.nan)
    encoded = zones.dictionary_encode()
    positions = encoded.indices.to_numpy(zero_copy_only=False)
    for position, word in enumerate(encoded.dictionary.to_pylist()):
        zone = zone_of(word) if word else (timezone or 0.0)
        if zone == 0.0:
            continue
        here = good & (positions == position)
        if zone is None:
            seconds[here] = np.nan
        elif isinstance(zone, float):
            seconds[here] -= zone * 3600.0
        else:
            local = pa.array(micros[here], pa.timestamp("us"))
            moments = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="earliest")
            seconds[here] = moments.cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6
    return seconds


@lru_cache(maxsize=1000)
def zone_of(word: str) -> float | str | None:
    """Hours east of Greenwich, or an IANA name; None for a zone that is unknown or could be several."""
    if word in _HOURS:
        return _HOURS[word]
    offset = re.fullmatch(r"(?:utc|gmt)?([+-])(\d{1,2})(?::?(\d{2}))?", word)
    if offset:
        hours = int(offset[2]) + int(offset[3] or 0) / 60
        return (-hours if offset[1] == "-" else hours) if hours <= 15.99 and int(offset[3] or 0) < 60 else None
    if "/" in word:
        return _zone_names().get(word)
    return None


@lru_cache(maxsize=1)
def _zone_names() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def iso_seconds(words: pa.Array) -> Floats:
    """Seconds of the words in :data:`ISO` form, NaN elsewhere; the quick way of the commonest shape."""
    fits = matches(words, ISO)
    if fits.all() and len(words):
        for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                return np.asarray(words.cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6)
            except pa.ArrowInvalid:
                # No such day, more digits than microseconds, or a mix of forms: taken apart below.
                continue
    lowered = pc.utf8_lower(pc.if_else(pa.array(fits), words, ""))
    dates = take_apart(lowered)
    seconds = seconds_of(dates, dates.month, dates.day, dates.year, "")
    return np.where(fits, seconds, np.nan)
