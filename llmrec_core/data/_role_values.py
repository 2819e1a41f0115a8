"""Roles by what stands in the columns, where names say nothing: two columns of ids, small numbers, times."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec_core.data._values import parse_numbers, parse_times

#: Fewer rows say too little for a guess by values.
_MIN_ROWS = 4
#: A log has a few columns; among more of them too many could be meant.
_MAX_FREE = 40
_MAX_RATING_WORDS = 41
_EPOCHS = ((5e8, 4.2e9), (5e11, 4.2e12), (5e14, 4.2e15), (5e17, 4.2e18))
_NAMED_ID = re.compile(r"(?i)(?:^|[_\s.-])(?:id|no|nr|num|number|key|code|uuid)$|[a-z]Id$|ID$|编号$")
_DATE = re.compile(r"\d{1,4}[-/.年]\d{1,2}[-/.月]\d{1,4}|\d{1,2}[ -][A-Za-z]{3}")
_USER_SHAPE = re.compile(r"(?i)(u|user|usr|cust|customer|member|client)[_-]?\d+|A[0-9A-Z]{11,20}|AE[0-9A-Z]{20,30}")
_ITEM_SHAPE = re.compile(r"(?i)(i|p|item|prod|product|movie|sku|m|book|news|n)[_-]?\d+|tt\d{6,9}|(?-i:B0[0-9A-Z]{8})")


@dataclass(frozen=True)
class Evidence:
    """What the first cells of one column look like."""

    words: tuple[str, ...]
    distinct: int
    filled: int
    #: share of filled cells that repeat the cell above.
    runs: float
    number: bool
    low: float
    high: float
    whole: bool
    time: bool
    #: share of distinct words without spaces that are short enough for an id.
    id_like: bool

    @property
    def rating_like(self) -> bool:
        return (
            self.number
            and not self.time
            and 2 <= self.distinct <= _MAX_RATING_WORDS
            and -10 <= self.low < self.high <= 10
        )

    def share(self, shape: re.Pattern[str]) -> float:
        probe = self.words[:200]
        return sum(shape.fullmatch(word) is not None for word in probe) / max(1, len(probe))


def evidence(column: pa.ChunkedArray | pa.Array) -> Evidence:
    """Looks at the cells of a column of text; blank cells do not count."""
    cells = [cell.strip() for cell in column.to_pylist()]
    filled = [cell for cell in cells if cell]
    words = tuple(dict.fromkeys(filled))
    runs = sum(a == b for a, b in itertools.pairwise(filled)) / max(1, len(filled) - 1)
    text = pa.array(words, pa.large_string())
    values, bad = parse_numbers(text)
    known = values[~np.isnan(values)]
    number = len(known) > 0 and not bad.any()
    low, high = (float(known.min()), float(known.max())) if number else (0.0, 0.0)
    whole = number and bool(np.all(known == np.floor(known)))
    if number:
        time = any(floor <= low and high <= top for floor, top in _EPOCHS)
    else:
        dated = words[:50]
        time = bool(dated) and all(_DATE.search(word) for word in dated)
        time = time and not parse_times(pa.array(dated, pa.large_string()), "", strict=False)[1].any()
    short = sum(len(word) <= 64 and not any(c.isspace() for c in word) for word in words)
    id_like = bool(words) and short >= 0.95 * len(words) and not time and (whole or not number)
    return Evidence(words, len(words), len(filled), runs, number, low, high, whole, time, id_like)


def fill(
    roles: Mapping[str, str], free: Collection[str], sample: pa.Table
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Roles that values give to columns whose names say nothing.

    Nothing is guessed unless the table ends up with both a user and an item column: other tables may hold anything.

    Args:
        roles: what names told.
        free: columns that may be taken.

    Returns:
        (role -> column, role -> reason, doubts).
    """
    missing = [role for role in ("user_id", "item_id") if role not in roles]
    if not missing or len(sample) < _MIN_ROWS or not 0 < len(free) <= _MAX_FREE:
        return {}, {}, []
    seen = {column: evidence(sample.column(column)) for column in free}
    found: dict[str, str] = {}
    why: dict[str, str] = {}
    doubts: list[str] = []
    times = [c for c in free if seen[c].time]
    if times and "timestamp" not in roles:
        found["timestamp"], why["timestamp"] = times[0], "its values are times"
        if times[1:]:
            doubts.append(f"timestamp: taken from {times[0]!r}; could also be {_listed(times[1:])}")
    ids = [c for c in free if seen[c].id_like and seen[c].filled >= 0.95 * len(sample) and seen[c].distinct > 1]
    # However few they are in the first rows, numbers that are called ids are no ratings.
    scales = sorted(
        (c for c in free if seen[c].rating_like and not _NAMED_ID.search(c.strip())), key=lambda c: seen[c].distinct
    )
    if scales and "rating" not in roles and len([c for c in ids if c != scales[0]]) >= len(missing):
        scale = seen[scales[0]]
        found["rating"] = scales[0]
        why["rating"] = f"its values are {scale.distinct} numbers from {scale.low:g} to {scale.high:g}"
        if scales[1:]:
            doubts.append(f"rating: taken from {scales[0]!r}; could also be {_listed(scales[1:])}")
    ids = [c for c in ids if c not in found.values()]
    named = roles.keys() | found.keys()
    if len(missing) == 1:
        known = roles["item_id" if missing == ["user_id"] else "user_id"]
        repeats = evidence(sample.column(known))
        if len(ids) != 1 or not {"rating", "timestamp"} & named or repeats.distinct == repeats.filled:
            return {}, {}, []
        found[missing[0]] = ids[0]
        why[missing[0]] = f"the only other column of ids ({seen[ids[0]].distinct:,} different ones in the first rows)"
        doubts.append(f"{missing[0]}: taken from {ids[0]!r} by its values, not by its name")
        return found, why, doubts
    pair = _pair(ids, seen)
    if pair is None:
        return {}, {}, []
    first, second = pair
    user, reason, sure = _which_is_user(first, second, seen)
    item = second if user == first else first
    found |= {"user_id": user, "item_id": item}
    why["user_id"] = f"{reason} ({seen[user].distinct:,} different ids in the first rows)"
    why["item_id"] = f"the other column of ids ({seen[item].distinct:,} different ones in the first rows)"
    turned = f"; it could also be the other way round (user_id={item}, item_id={user})" if not sure else ""
    doubts.append(f"users taken from {user!r} and items from {item!r} by their values, not by their names{turned}")
    return found, why, doubts


def overlooked(wanted: Collection[str], free: Collection[str], sample: pa.Table) -> list[str]:
    """What columns without a telling name may be, where nothing plays the role of ratings or times."""
    if not wanted or len(sample) < _MIN_ROWS or len(free) > _MAX_FREE:
        return []
    notes = []
    seen = {column: evidence(sample.column(column)) for column in free}
    for role in sorted(wanted):
        for column, cells in seen.items():
            if role == "rating" and cells.rating_like:
                what = f"numbers from {cells.low:g} to {cells.high:g}"
                notes.append(f"no ratings were found; {column!r} holds {what} that may be some (rating={column})")
            elif role == "timestamp" and cells.time:
                notes.append(f"no times were found; {column!r} holds what may be some (timestamp={column})")
    return notes


def _pair(ids: list[str], seen: Mapping[str, Evidence]) -> tuple[str, str] | None:
    """The two columns of ids, in file order; None where there are fewer, or more that could be meant."""
    if len(ids) > 2:
        ranked = sorted(ids, key=lambda c: -seen[c].distinct)
        if seen[ranked[2]].distinct * 4 > seen[ranked[1]].distinct:
            return None
        ids = [c for c in ids if c in ranked[:2]]
    if len(ids) != 2 or all(seen[c].distinct == seen[c].filled for c in ids):
        return None
    return ids[0], ids[1]


def _which_is_user(first: str, second: str, seen: Mapping[str, Evidence]) -> tuple[str, str, bool]:
    """(column of users, why, whether that is beyond doubt)."""
    for user, item in ((first, second), (second, first)):
        if seen[user].share(_USER_SHAPE) > 0.9 and seen[item].share(_USER_SHAPE) < 0.1:
            return user, f"its ids are written like {seen[user].words[0][:20]!r}", True
        if seen[item].share(_ITEM_SHAPE) > 0.9 and seen[user].share(_ITEM_SHAPE) < 0.1:
            return user, f"the other column's ids are written like {seen[item].words[0][:20]!r}", True
    if seen[second].runs > 0.5 > 5 * seen[first].runs:
        return second, "its ids stand in runs, as in a log that is sorted by user", False
    return first, "the first of two columns of ids", False


def _listed(columns: list[str]) -> str:
    return ", ".join(repr(c[:60]) for c in columns[:4])
