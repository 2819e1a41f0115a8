"""Dates in text, whatever their shape: taken apart by pattern, put together as seconds since 1970 UTC.

A column has few templates: ``2024-01-05 10:11`` with every digit as a zero is one. Patterns look at templates only and
tell where the year, the month and the others stand; the digits of all cells of a template are then read at once.
What a cell leaves open (05/03/2024) is left open here: the column decides, in :mod:`llmrec_core.data._values.times`.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._values.words import TEXT, Floats, Mask, mask, matches, plain_words

Ints = npt.NDArray[np.int64]

_LETTER = r"[^\W\d_]"
_REST = r"(?P<tail>(?:\D.*)?)"
_NAME = rf"(?P<name>{_LETTER}{{3,}})"
#: Words before a date, as shops write them: "Reviewed in the United States on", "Rezension aus Deutschland vom".
_ON = "on|vom|am|le|el|il|em|op"
_LEAD = rf"(?:\D{{1,80}} (?:{_ON}) +)?"
#: Patterns of templates, most common first.
_SHAPES: dict[str, str] = {
    "year_first": rf"(?P<y>\d{{4}})(?P<s>[-/.])(?P<m>\d{{1,2}})(?P=s)(?P<d>\d{{1,2}}){_REST}",
    "compact": r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?P<tail>(?:[t ]?\d{4}(?:\d{2})?z?)?)",
    "numeric": rf"(?P<a>\d{{1,2}})(?P<s>[-/.])(?P<b>\d{{1,2}})(?P=s)(?P<y>\d{{4}}|\d{{2}}){_REST}",
    "cjk": r"(?P<era>令和|平成|昭和|民国|民國)? *(?P<y>\d{1,4}|元) *[年년] *(?P<m>\d{1,2}) *[月월]"
    r"(?: *(?P<d>\d{1,2}) *[日号號일](?:に\D*)?)?(?P<tail>.*)",
    "day_name": rf"{_LEAD}(?:{_LETTER}+\.?,? +){{0,2}}(?P<d>\d{{1,2}})(?:st|nd|rd|th|er|o|º|\.)?[ \-./]*(?:de |of )?"
    rf"{_NAME}\.?[ \-./,]*(?:de |del )?'?(?P<y>\d{{4}}|\d{{2}}){_REST}",
    "name_day": rf"{_LEAD}(?:{_LETTER}+\.?,? +)?{_NAME}\.?[ \-./]*(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?[ \-./]+"
    rf"(?P<y>\d{{4}}){_REST}",
    "ctime": rf"(?:{_LETTER}{{2,9}}\.?,? +)?{_NAME} +(?P<d>\d{{1,2}}) +"
    r"(?P<tail>\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]m)?(?: +(?:[+-]\d{4}|[a-z]{1,5}))?) +(?P<y>\d{4})",
    "year_name": rf"(?P<y>\d{{4}})[ \-./]{_NAME}[ \-./](?P<d>\d{{1,2}}){_REST}",
    "month_day_year": rf"(?P<m>\d{{1,2}}) (?P<d>\d{{1,2}}), ?(?P<y>\d{{4}}){_REST}",
    "week": r"(?P<y>\d{4})-?w(?P<week>\d{2})(?:-?(?P<weekday>\d))?(?P<tail>(?:[t ].*)?)",
    "ordinal": r"(?P<y>\d{4})-(?P<nth>\d{3})(?P<tail>(?:[t ].*)?)",
    "month": r"(?P<y>\d{4})[-/](?P<m>\d{1,2})",
    "name_year": rf"{_NAME}\.?,? (?:de )?(?P<y>\d{{4}})",
}  # fmt: skip
SHAPES = tuple(_SHAPES)
NUMERIC, CLOCK = SHAPES.index("numeric"), len(SHAPES)
MONTH_ONLY = (SHAPES.index("month"), SHAPES.index("name_year"))
#: What every template looks like from afar: a few words, then a digit. Spares looking closely at whole paragraphs.
_PLAUSIBLE = rf"(?:.{{1,80}} (?:{_ON}) +)?(?:\pL+[.,]* *){{0,3}}0.*"
_MAX_TEMPLATE_BYTES = 160
_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925, "民国": 1911, "民國": 1911}

_MORNING = ("a", "上午", "凌晨", "早上", "清晨", "午前", "오전")
_LATER = ("p", "下午", "晚上", "傍晚", "午後", "오후")
_NOON = "|".join((*_MORNING[1:], *_LATER[1:], "中午"))
_ZONE = r"(?:utc|gmt)?[+-]\d{1,2}(?::?\d{2})?|[a-z]{1,5}|[a-z]+(?:/[a-z_+\-]+)+"
_SECONDS = r"(?P<sec>\d{1,2})(?:[.,](?P<f>\d{1,9}))?"
_MINUTES = rf"(?P<i>\d{{1,2}})(?: *[:.分분m] *(?:{_SECONDS})?)?"
_TAIL = re.compile(
    r"(?:[ t,]|at |um |à |a las |(?:星期|周|礼拜).|\(.\)|[月火水木金土日]曜日?)*"
    rf"(?P<noon>{_NOON})? *(?P<h>\d{{1,2}})(?P<told> *[:.h时時点點시] *(?:{_MINUTES})?)? *[秒초分분]? *"
    rf"(?:(?P<half>[ap])\.? ?m\.?)? *(?P<zone>{_ZONE})?(?: *[\[(][a-z_/ .+\-\d]+[\])])?"
)
_COMPACT_TAIL = re.compile(r"[t ]?(?P<h>\d{2})(?P<i>\d{2})(?P<sec>\d{2})?(?P<zone>z)?")
_OFFSET = re.compile(r"(?:utc|gmt)?(?P<sign>[+-])(?P<zh>\d{1,2})(?::?(?P<zm>\d{2}))?")
#: Hours east of Greenwich where an abbreviation means one zone. CST, IST, BST and others mean several.
_HOURS = {
    "z": 0.0, "ut": 0.0, "utc": 0.0, "gmt": 0.0, "wet": 0.0, "west": 1.0, "cet": 1.0, "cest": 2.0, "mez": 1.0,
    "mesz": 2.0, "eet": 2.0, "eest": 3.0, "msk": 3.0, "jst": 9.0, "kst": 9.0, "hkt": 8.0, "sgt": 8.0, "est": -5.0,
    "edt": -4.0, "cdt": -5.0, "mst": -7.0, "mdt": -6.0, "pst": -8.0, "pdt": -7.0,
}  # fmt: skip
_MONTHS = (
    "january jan januar jänner janvier janv enero ene januari gennaio gen janeiro",
    "february feb februar febr februari février févr fév febrero febbraio fevereiro fev",
    "march mar märz mrz maerz mär mars marzo maart mrt março",
    "april apr avril avr abril abr aprile",
    "may mai mayo mei maggio mag maio",
    "june jun juni juin junio giugno giu junho",
    "july jul juli juillet juil julio luglio lug julho",
    "august aug août aout agosto ago augustus",
    "september sep sept septembre septiembre setiembre settembre set setembro",
    "october oct oktober okt octobre octubre ottobre ott outubro out",
    "november nov novembre noviembre novembro",
    "december dec dezember dez décembre déc diciembre dic dicembre dezembro",
)
_MONTH_OF = {name: number for number, names in enumerate(_MONTHS, start=1) for name in names.split()}
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class _Plan:
    """Where the parts of a template stand (byte positions), and what its letters say."""

    shape: int
    spans: dict[str, tuple[int, int]]
    month: int = 0
    era: int = 0
    first_year: bool = False
    separator: str = ""
    half: str = ""
    #: Hours east of Greenwich, an IANA name, or None: the template names no zone. With ``sign`` the digits tell.
    zone: float | str | None = None
    sign: int = 0


@dataclass
class Dates:
    """Cells taken apart; arrays are aligned with the cells.

    Attributes:
        shape: position of the shape in ``SHAPES``; ``CLOCK`` for a time of day alone; -1 where none fits.
        year, month, day: 0 where unknown; of the shape "numeric" month and day are ``first`` and ``second``, open.
        short_year: the year has two digits.
        dotted, dashed: the separator of a numeric date.
        micros: time of the day; -1 where there is no such time.
        offset: hours east of Greenwich; NaN where no zone is named.
        zones: (IANA name, cells that name it).
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
    micros: Ints
    offset: Floats
    zones: list[tuple[str, Ints]] = field(default_factory=list)

    @classmethod
    def unknown(cls, n: int) -> Dates:
        year, month, day, first, second, micros = (np.zeros(n, np.int64) for _ in range(6))
        short, dotted, dashed = (np.zeros(n, bool) for _ in range(3))
        shape, offset = np.full(n, -1, np.int8), np.full(n, np.nan)
        return cls(shape, year, month, day, first, second, short, dotted, dashed, micros, offset)

    @property
    def zoned(self) -> Mask:
        named = ~np.isnan(self.offset)
        for _, rows in self.zones:
            named[rows] = True
        return named


def take_apart(words: pa.Array, *, tidy: bool = False) -> Dates:
    """Trimmed words, in any case and script; ``tidy``: they went through ``plain_words``."""
    found = Dates.unknown(len(words))
    digits, starts, codes, templates = _templates(words)
    if not len(templates):
        return found
    plain = plain_words(templates)
    odd = ~_aligned(templates, plain) | (mask(pc.not_equal(templates, plain)) & ~mask(pc.string_is_ascii(templates)))
    likely = mask(pc.less_equal(pc.binary_length(plain), _MAX_TEMPLATE_BYTES)) & ~odd
    likely[likely] = matches(pc.filter(plain, pa.array(likely)), _PLAUSIBLE)
    texts = {int(code): plain[int(code)].as_py() for code in np.flatnonzero(likely)}
    for code, rows in _groups(codes, len(templates)):
        plan = _plan(texts[code]) if code in texts else None
        if plan is not None:
            _read(found, plan, digits, starts[rows], rows)
    if odd.any() and not tidy:
        rows = np.flatnonzero(odd[codes])
        _put(found, take_apart(plain_words(words.take(pa.array(rows))), tidy=True), rows)
    return found


def _templates(words: pa.Array) -> tuple[npt.NDArray[np.uint8], Ints, npt.NDArray[np.int32], pa.Array]:
    """(bytes of all words less that of "0", where each begins, the template of each, distinct templates)."""
    words = pa.concat_arrays([words]) if words.offset else words
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int64)[: len(words) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    raw = raw[: int(starts[-1])] if len(starts) else raw
    # Bytes below "0" wrap around, so that one comparison finds the digits.
    digits = raw - np.uint8(48)
    zeros = np.where(digits <= 9, np.uint8(48), raw)
    blanked = pa.Array.from_buffers(TEXT, len(words), [None, offsets, pa.py_buffer(zeros)])
    encoded = blanked.dictionary_encode()
    return digits, starts[:-1], encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary


def _aligned(templates: pa.Array, plain: pa.Array) -> Mask:
    """Templates whose tidy form has every character at the same bytes."""
    same = mask(pc.equal(pc.binary_length(templates), pc.binary_length(plain)))
    return same & mask(pc.equal(pc.utf8_length(templates), pc.utf8_length(plain)))


def _groups(codes: npt.NDArray[np.int32], n_codes: int) -> Iterator[tuple[int, Ints]]:
    if n_codes == 1:
        yield 0, np.arange(len(codes))
        return
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=n_codes))
    for code in range(n_codes):
        yield code, order[ends[code - 1] if code else 0 : ends[code]]


def _put(found: Dates, part: Dates, rows: Ints) -> None:
    for column in fields(Dates):
        if column.name != "zones":
            getattr(found, column.name)[rows] = getattr(part, column.name)
    found.zones += [(zone, rows[chosen]) for zone, chosen in part.zones]


# ------------------------------------------------------------------------------------------------ templates


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in _SHAPES.values())


@lru_cache(maxsize=4096)
def _plan(template: str) -> _Plan | None:
    """How cells of a template are read; None: they are no dates."""
    for shape, pattern in enumerate(_patterns()):
        match = pattern.fullmatch(template)
        if match is None:
            continue
        groups = match.groupdict()
        month = _MONTH_OF.get(groups["name"], 0) if "name" in groups else 0
        if "name" in groups and not month:
            continue
        spans = _spans(match, ("y", "m", "d", "a", "b", "week", "weekday", "nth"))
        first_year = groups["y"] == "元"
        if first_year:
            del spans["y"]
        plan = _Plan(shape, spans, month, _ERAS.get(groups.get("era") or "", 0), first_year, groups.get("s") or "")
        return _with_clock(plan, template, *match.span("tail")) if groups.get("tail") else plan
    clock = _with_clock(_Plan(CLOCK, {}), template, 0, len(template))
    return clock if clock is not None and clock.half + clock.separator else None


def _spans(match: re.Match[str], names: tuple[str, ...], begin: int = 0) -> dict[str, tuple[int, int]]:
    """Byte positions of the groups that took part."""
    text, found = match.string, {}
    for name in names:
        if name in match.re.groupindex and match.start(name) >= 0:
            start, stop = match.span(name)
            found[name] = (len(text[:start].encode()), len(text[:stop].encode()))
    return found


def _with_clock(plan: _Plan, template: str, start: int, stop: int) -> _Plan | None:
    """The plan with the time of the day that stands behind the date; None where that is something else."""
    for pattern in (_TAIL, _COMPACT_TAIL):
        match = pattern.fullmatch(template, start, stop)
        if match is None:
            continue
        groups = match.groupdict()
        spans = plan.spans | _spans(match, ("h", "i", "sec", "f"))
        zone: float | str | None = None
        sign = 0
        word = groups["zone"] or ""
        offset = _OFFSET.fullmatch(word)
        if offset is not None:
            sign = -1 if offset["sign"] == "-" else 1
            shift = len(template[: match.start("zone")].encode())
            spans |= {name: (a + shift, b + shift) for name, (a, b) in _spans(offset, ("zh", "zm")).items()}
        elif word:
            zone = zone_of(word)
            if zone is None:
                zone = np.inf
        told = "told" if groups.get("told") else ""
        half = groups.get("half") or groups.get("noon") or ""
        return _Plan(plan.shape, spans, plan.month, plan.era, plan.first_year, plan.separator or told, half, zone, sign)
    return None


# ------------------------------------------------------------------------------------------------ digits


def _read(found: Dates, plan: _Plan, digits: npt.NDArray[np.uint8], starts: Ints, rows: Ints) -> None:
    """Reads the cells of one template; ``digits``: all bytes, less that of "0"."""

    def number(name: str, default: int = 0) -> Ints:
        start, stop = plan.spans.get(name, (0, 0))
        total = np.full(len(rows), default if stop == start else 0, np.int64)
        for position in range(start, stop):
            total *= 10
            total += digits[starts + position]
        return total

    def has(name: str) -> bool:
        return name in plan.spans

    year = number("y", 1 if plan.first_year else 0) + plan.era
    month, day = (number("m") if has("m") else np.full(len(rows), plan.month)), number("d", 1)
    good = np.ones(len(rows), bool)
    if has("week"):
        year, month, day, good = _week_date(year, number("week"), number("weekday", 1))
    elif has("nth"):
        start = (year - 1970).astype("M8[Y]")
        moment = start.astype("M8[D]") + (number("nth") - 1).astype("m8[D]")
        good = (moment.astype("M8[Y]") == start) & (number("nth") > 0)
        month, day = _month_day(moment)
    if plan.shape == NUMERIC:
        found.first[rows], found.second[rows] = number("a"), number("b")
    found.year[rows], found.month[rows], found.day[rows] = year, month, day
    width = plan.spans.get("y", (0, 4))
    found.short_year[rows] = width[1] - width[0] <= 2 and not plan.era
    found.dotted[rows], found.dashed[rows] = plan.separator == ".", plan.separator == "-"
    found.shape[rows] = np.where(good, plan.shape, -1)
    if has("h"):
        found.micros[rows] = _micros(plan, number("h"), number("i"), number("sec"), _fraction(plan, number("f")))
    if plan.sign:
        hours = number("zh") + number("zm") / 60.0
        found.offset[rows] = np.where((hours < 16) & (number("zm") < 60), plan.sign * hours, np.inf)
    elif isinstance(plan.zone, str):
        found.zones.append((plan.zone, rows))
    elif plan.zone is not None:
        found.offset[rows] = plan.zone


def _fraction(plan: _Plan, digits: Ints) -> Ints:
    """Microseconds; finer digits are cut off."""
    start, stop = plan.spans.get("f", (0, 6))
    width = stop - start
    return digits * 10 ** (6 - width) if width <= 6 else digits // 10 ** (width - 6)


def _micros(plan: _Plan, hours: Ints, minutes: Ints, seconds: Ints, fraction: Ints) -> Ints:
    good = (hours <= 24) & (minutes < 60) & (seconds < 60)
    if plan.half in _MORNING:
        good &= hours <= 12
        hours = np.where(hours == 12, 0, hours)
    elif plan.half in _LATER or plan.half == "中午":
        hours = np.where(hours < (12 if plan.half in _LATER else 4), hours + 12, hours)
    if plan.half in ("a", "p"):
        good &= hours < 24
    total = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction
    return np.where(good & (total <= _DAY_US), total, -1)


def _month_day(days: npt.NDArray[np.datetime64]) -> tuple[Ints, Ints]:
    months = days.astype("M8[M]")
    return months.astype(np.int64) % 12 + 1, (days - months.astype("M8[D]")).astype(np.int64) + 1


def _week_date(years: Ints, weeks: Ints, weekdays: Ints) -> tuple[Ints, Ints, Ints, Mask]:
    """ISO 8601: week 1 holds the fourth of January, and weeks begin on Monday."""
    fourth = (years - 1970).astype("M8[Y]").astype("M8[D]") + np.timedelta64(3, "D")
    monday = fourth - ((fourth.astype(np.int64) + 3) % 7).astype("m8[D]")
    day = monday + ((weeks - 1) * 7 + weekdays - 1).astype("m8[D]")
    thursday = day - ((day.astype(np.int64) + 3) % 7 - 3).astype("m8[D]")
    right = (weeks >= 1) & (weekdays >= 1) & (weekdays <= 7)
    right &= thursday.astype("M8[Y]").astype(np.int64) + 1970 == years
    months, days = _month_day(day)
    return day.astype("M8[Y]").astype(np.int64) + 1970, months, days, right


def seconds_of(dates: Dates, year: Ints, month: Ints, day: Ints, timezone: str) -> Floats:
    """Seconds since 1970 UTC [n]; NaN where there is no such day or time.

    Args:
        year, month, day: with what the column decided; 0 where it is unknown.
        timezone: for cells that name none; "" is UTC.
    """
    good = (dates.shape >= 0) & (dates.shape != CLOCK) & (dates.micros >= 0)
    good &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (year >= 1) & (year <= 9999)
    months = ((np.where(good, year, 1970) - 1970) * 12 + np.where(good, month, 1) - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (np.where(good, day, 1) - 1).astype("m8[D]")
    good &= days.astype("M8[M]") == months
    micros = days.astype(np.int64) * _DAY_US + dates.micros
    shift = np.where(np.isnan(dates.offset), 0.0, dates.offset) * 3600.0
    seconds = np.where(good & np.isfinite(shift), micros / 1e6 - np.where(np.isfinite(shift), shift, 0.0), np.nan)
    zones = [*dates.zones]
    if timezone:
        zones.append((timezone, np.flatnonzero(~dates.zoned)))
    for zone, chosen in zones:
        rows = chosen[good[chosen]]
        local = pa.array(micros[rows], pa.timestamp("us"))
        moments = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="earliest")
        seconds[rows] = moments.cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6
    return seconds


def clock_seconds(dates: Dates) -> Floats:
    """Seconds since midnight of cells that are a time of day alone; NaN elsewhere."""
    alone = (dates.shape == CLOCK) & (dates.micros >= 0) & ~dates.zoned
    return np.where(alone, dates.micros / 1e6, np.nan)


def zone_of(word: str) -> float | str | None:
    """Hours east of Greenwich, or an IANA name; None for a zone that is unknown or could be several."""
    if word in _HOURS:
        return _HOURS[word]
    return _zone_names().get(word) if "/" in word else None


@lru_cache(maxsize=1)
def _zone_names() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}
