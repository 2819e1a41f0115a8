"""Numbers of millions of interactions at once: each is one pass or one sort over whole columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: What times tell: nothing, an order only, days, or moments within a day.
Clock = Literal["none", "order", "days", "moments"]

SESSION_GAP_S = 1800.0
_TAIL_POINTS = 200
_MAX_MONTHS = 600
_MAX_RATING_BINS = 20
#: Below it a number is no time since 1970 that anybody meant.
_CALENDAR_S = 1e8
#: Co-visits are counted exactly where that takes at most so many steps, and estimated otherwise.
_EXACT_STEPS = 30_000_000
_SAMPLED_PAIRS = 4000
_LOOK_UPS = 400_000
_GAPS = (60.0, 1800.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
_GAP_LABELS = ("under 1 min", "1-30 min", "30 min-1 day", "1-7 days", "7-30 days", "over 30 days")


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` values lie in bin i. ``labels``: what a person reads under the bar."""

    labels: list[str]
    counts: list[int]


@dataclass(frozen=True)
class Sessions:
    """Runs of one user's interactions with gaps of at most ``gap_s`` between neighbours.

    ``lengths``: sessions by number of interactions. ``mean_minutes``: from the first to the last interaction.
    ``single_share``: sessions of one interaction.
    """

    gap_s: float
    n_sessions: int
    mean_events: float
    mean_minutes: float
    single_share: float
    lengths: Histogram


@dataclass(frozen=True)
class CoVisits:
    """Share of item pairs that at least one user has both of, among items with interactions.

    Counted exactly (``n_sampled`` 0, the bounds equal the density), or estimated from ``n_sampled`` random pairs with
    the bounds of a 95 % interval.
    """

    density: float
    low: float
    high: float
    n_items: int
    n_sampled: int


def gini(counts: npt.NDArray[Any]) -> float:
    """Gini coefficient of non-negative counts [n]; 0 where nothing was counted.

    With x sorted ascending: (2 * sum(i * x_i) / (n * sum(x))) - (n + 1) / n, i from 1.
    """
    ordered = np.sort(counts.astype(np.float64))
    n, total = len(ordered), float(ordered.sum())
    if n == 0 or total == 0:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


def tail(descending: npt.NDArray[Any]) -> list[tuple[float, float]]:
    """(share of items, share of interactions) of counts [n], largest first, from (0, 0) to (1, 1)."""
    n = len(descending)
    held = np.concatenate([[0], np.cumsum(descending)]) / max(1, int(descending.sum()))
    points = np.unique(np.linspace(0, n, min(n, _TAIL_POINTS) + 1).round().astype(int))
    return [(float(i / n), float(held[i])) for i in points]


def holding_half(descending: npt.NDArray[Any]) -> int:
    """How many of the largest counts [n] it takes to hold half of the total."""
    return int(np.searchsorted(np.cumsum(descending), descending.sum() / 2) + 1) if descending.sum() else 0


def doubling(values: npt.NDArray[Any]) -> Histogram:
    """Whole numbers from 1 in bins that double: 1, 2, 3-4, 5-8, 9-16 ..."""
    if not len(values):
        return Histogram([], [])
    each = np.bincount(values.astype(np.int64))
    sizes = np.flatnonzero(each)
    # The exponent of v - 1 as a float is exact, which a logarithm of large powers of two is not.
    bins = np.where(sizes <= 1, 0, np.frexp(sizes.astype(np.float64) - 1)[1])
    counts = np.bincount(bins, each[sizes]).astype(np.int64)
    labels = [str(2**b) if b < 2 else f"{2 ** (b - 1) + 1:,}-{2**b:,}" for b in range(len(counts))]
    return Histogram(labels, counts.tolist())


def clock(times: Floats) -> Clock:
    """What ``times`` [n] (seconds, all known or all NaN) can tell."""
    if not len(times) or bool(np.isnan(times[0])):
        return "none"
    if float(times.max()) < _CALENDAR_S:
        return "order"
    # The first times tell nearly always, and a remainder of millions of numbers takes its time.
    return "moments" if bool(np.any(times[:10_000] % 86_400) or np.any(times % 86_400)) else "days"


def months(hours: Ints, counts: Ints) -> Histogram:
    """Interactions a month from counts of hours since 1970; years where centuries are spanned."""
    of = hours.astype("M8[h]").astype("M8[M]").astype(np.int64)
    low, high = int(of.min()), int(of.max())
    if high - low >= _MAX_MONTHS:
        # Centuries of months are no calendar of this data: a single odd date, or times that only count.
        years, at = np.unique(of // 12 + 1970, return_inverse=True)
        return Histogram([str(y) for y in years.tolist()], np.bincount(at, counts).astype(np.int64).tolist())
    bars = np.bincount(of - low, counts, minlength=high - low + 1).astype(np.int64)
    return Histogram([str(np.datetime64(m, "M")) for m in range(low, high + 1)], bars.tolist())


def week_hours(hours: Ints, counts: Ints) -> list[list[int]]:
    """[7][24] interactions by weekday (Monday first) and hour, UTC."""
    # 1 January 1970 was a Thursday.
    at = (hours + 3 * 24) % 168
    return np.bincount(at, counts, minlength=168).astype(np.int64).reshape(7, 24).tolist()


def rating_histogram(values: Floats, counts: Ints) -> Histogram:
    """Distinct ratings [k] and how often each came, in at most 20 bars."""
    if len(values) <= _MAX_RATING_BINS:
        return Histogram([f"{v:g}" for v in values.tolist()], counts.tolist())
    bars, edges = np.histogram(values, bins=_MAX_RATING_BINS, weights=counts)
    labels = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return Histogram(labels, bars.astype(np.int64).tolist())


def sessions_and_gaps(users: Ints, times: Floats) -> tuple[Sessions, Histogram]:
    """Sessions, and how long users wait between two interactions. ``users``, ``times`` [n], in any order; n > 0."""
    first = float(times.min())
    ticks = ((times - first) * 1000 + 0.5).astype(np.int64)
    bits = int(ticks.max()).bit_length()
    if int(users.max()).bit_length() + bits < 64:
        # User and millisecond in one number, which sorts many times faster than two columns.
        keys = users << bits
        keys |= ticks
        keys.sort()
        waits = np.diff(keys & ((1 << bits) - 1))
        same = np.diff(keys >> bits) == 0
    else:
        order = np.lexsort((ticks, users))
        waits, same = np.diff(ticks[order]), np.diff(users[order]) == 0
    breaks = ~same
    breaks |= waits > int(SESSION_GAP_S * 1000)
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(starts, append=len(ticks))
    seconds = float(waits[~breaks].sum()) / 1000
    own = waits[same]
    below = [np.count_nonzero(own < int(limit * 1000)) for limit in _GAPS]
    bars = np.diff([0, *below, len(own)])
    found = Sessions(
        gap_s=SESSION_GAP_S,
        n_sessions=len(starts),
        mean_events=len(ticks) / len(starts),
        mean_minutes=seconds / 60 / len(starts),
        single_share=float((lengths == 1).mean()),
        lengths=doubling(lengths),
    )
    return found, Histogram(list(_GAP_LABELS), bars.tolist()) if bars.any() else Histogram([], [])


def gaps_in_days(gaps: Histogram) -> Histogram:
    """Gaps of times that are whole days: what is shorter than one is the same day."""
    if not gaps.labels:
        return gaps
    first = _GAP_LABELS.index("1-7 days")
    return Histogram(["same day", *gaps.labels[first:]], [sum(gaps.counts[:first]), *gaps.counts[first:]])


def exact_repeats(users: Ints, items: Ints, ratings: Floats, times: Floats) -> int:
    """Rows that repeat an earlier one in user, item, rating and time.

    Rows are compared by 64 mixed bits; that two different ones among 100 million agree has a chance of 1 in 3,000.
    """
    mixed = np.zeros(len(users), np.uint64)
    for column in (users, items, ratings, times):
        cells: npt.NDArray[Any] = column
        if cells.dtype != np.int64:
            # One kind of zero and of NaN.
            cells = cells + 0.0
            cells[np.isnan(cells)] = -1.2345e300
        # A step of splitmix64 (Steele, Lea and Flood, 2014) for each column.
        mixed += cells.view(np.uint64)
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    mixed.sort()
    return int(np.count_nonzero(mixed[1:] == mixed[:-1]))


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of item and user as sorted numbers ``item_idx << bits | user_idx``."""

    keys: Ints
    bits: int

    @classmethod
    def of(cls, users: Ints, items: Ints, n_users: int) -> Pairs:
        bits = max(1, int(n_users - 1).bit_length())
        keys = items << bits
        keys |= users
        keys.sort()
        fresh = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        return cls(keys[fresh], bits)

    def users_of(self, n_items: int) -> Ints:
        """[n_items + 1] where the users of each item begin in ``keys``."""
        return np.searchsorted(self.keys, np.arange(n_items + 1, dtype=np.int64) << self.bits)


def co_visits(pairs: Pairs, per_user: Ints, n_items: int) -> CoVisits | None:
    """Density of co-visits; None with fewer than two items that have interactions.

    Args:
        per_user: interactions of each user, repeated ones included.
    """
    starts = pairs.users_of(n_items)
    per_item = np.diff(starts)
    seen = np.flatnonzero(per_item)
    n = len(seen)
    if n < 2:
        return None
    if float((per_user.astype(np.float64) ** 2).sum()) <= _EXACT_STEPS:
        from scipy.sparse import csr_matrix

        columns = pairs.keys & ((1 << pairs.bits) - 1)
        table = csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(n_items, len(per_user)))
        together = csr_matrix(table @ table.T).nnz - n
        density = together / (n * (n - 1))
        return CoVisits(density, density, density, n, 0)
    return _sampled_co_visits(pairs, starts, per_item, seen)


def _sampled_co_visits(pairs: Pairs, starts: Ints, per_item: Ints, seen: Ints) -> CoVisits:
    rng = np.random.default_rng(0)
    left, right = rng.choice(seen, _SAMPLED_PAIRS), rng.choice(seen, _SAMPLED_PAIRS)
    # The users of the rarer item are looked up among those of the other.
    swap = per_item[left] > per_item[right]
    left, right = np.where(swap, right, left), np.where(swap, left, right)
    keep = (left != right) & ((np.cumsum(per_item[left]) <= _LOOK_UPS) | (np.arange(len(left)) < 200))
    left, right = left[keep], right[keep]
    lengths = per_item[left]
    pair_of = np.repeat(np.arange(len(left)), lengths)
    offsets = np.arange(len(pair_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    users = pairs.keys[np.repeat(starts[left], lengths) + offsets] & ((1 << pairs.bits) - 1)
    wanted = (right[pair_of] << pairs.bits) | users
    at = np.minimum(np.searchsorted(pairs.keys, wanted), len(pairs.keys) - 1)
    met = np.bincount(pair_of, pairs.keys[at] == wanted, minlength=len(left)) > 0
    share, m, z = float(met.mean()), len(met), 1.96
    # Wilson's interval: right also near 0 and 1.
    middle, half = share + z * z / (2 * m), z * np.sqrt(share * (1 - share) / m + z * z / (4 * m * m))
    low, high = (middle - half) / (1 + z * z / m), (middle + half) / (1 + z * z / m)
    return CoVisits(share, float(max(0.0, low)), float(min(1.0, high)), len(seen), m)
