"""The numbers behind the Data screen: a dataset described by plain lists and figures, nothing drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmrec_core.contracts import ITEM, RATING, TIME, IntArray
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting import Split

_TAIL_POINTS = 200
_MAX_MONTHS = 600
_MAX_RATING_BINS = 20


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` values lie in bin i. ``labels``: what a person reads under the bar."""

    labels: list[str]
    counts: list[int]


@dataclass(frozen=True)
class FieldCoverage:
    """How filled one text field is: ``share`` of rows not empty, distinct values, mean length of filled cells."""

    field: str
    share: float
    n_distinct: int
    mean_chars: float


@dataclass(frozen=True)
class Portrait:
    """Every row of the dataset enters: numbers to look at. What a model may know comes from its split alone.

    Attributes:
        density: share of user-item pairs that were observed, 0 to 1 (a repeated pair counts once).
        gini: inequality of interactions over all items, 0 (equal) to 1 (one item has all).
        tail: (share of items, most popular first; share of interactions they hold), from (0, 0) to (1, 1).
        top_items: (item_id, title, interactions), most popular first.
        months: interactions a month ("1998-04"), gaps filled with 0; empty without usable times.
        ratings: distribution; empty without ratings.
        history_lengths: users by number of interactions.
        history_quantiles: share -> interactions a user, for 0, .1, .25, .5, .75, .9, 1.
        item_coverage, user_coverage: fields of the two tables.
        n_cold_items: items without any interaction; ``cold_items`` names up to 20 of them as (item_id, title).
        first_time, last_time: seconds since 1970, None without times.
    """

    name: str
    version: int
    n_interactions: int
    n_users: int
    n_items: int
    density: float
    gini: float
    tail: list[tuple[float, float]]
    top_items: list[tuple[str, str, int]]
    months: Histogram
    ratings: Histogram
    mean_rating: float | None
    history_lengths: Histogram
    history_quantiles: dict[str, float]
    item_coverage: list[FieldCoverage]
    user_coverage: list[FieldCoverage]
    n_cold_items: int
    cold_items: list[tuple[str, str]]
    n_repeats: int
    first_time: float | None
    last_time: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SplitPortrait:
    """Sizes of a split, for its picture.

    ``parts``: part -> rows, users, items, first and last time (None without times). ``n_new_items``: items in test
    rows that training never saw. ``weeks``: part -> rows a week over the same ``week_starts`` (ISO dates).
    """

    protocol: str
    parts: dict[str, dict[str, float | None]]
    n_new_items: int
    week_starts: list[str]
    weeks: dict[str, list[int]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def portrait(dataset: Dataset) -> Portrait:
    """Describes a dataset; a second's work for millions of rows."""
    table = dataset.interactions
    users, items = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    per_item = np.bincount(items, minlength=dataset.n_items)
    per_user = np.bincount(users, minlength=dataset.n_users)
    n_pairs = len(np.unique(users * dataset.n_items + items))
    ratings = table[RATING].to_numpy(np.float64)
    rated = ratings[~np.isnan(ratings)]
    times = table[TIME].to_numpy(np.float64)
    timed = dataset.meta.has_timestamps
    popular = np.lexsort((np.arange(dataset.n_items), -per_item))
    cold = np.flatnonzero(per_item == 0)
    active = per_user[per_user > 0]
    quantiles = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    return Portrait(
        name=dataset.name,
        version=dataset.version,
        n_interactions=len(table),
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        density=n_pairs / (dataset.n_users * dataset.n_items),
        gini=gini(per_item),
        tail=_tail(per_item[popular]),
        top_items=[(*_named(dataset, i), int(per_item[i])) for i in popular[:20].tolist()],
        months=_months(times) if timed else Histogram([], []),
        ratings=_rating_histogram(rated),
        mean_rating=float(rated.mean()) if len(rated) else None,
        history_lengths=_lengths(active),
        history_quantiles={f"{q:g}": float(np.quantile(active, q)) for q in quantiles},
        item_coverage=_coverage(dataset.items),
        user_coverage=_coverage(dataset.users),
        n_cold_items=len(cold),
        cold_items=[_named(dataset, i) for i in cold[:20].tolist()],
        n_repeats=len(table) - n_pairs,
        first_time=float(times.min()) if timed else None,
        last_time=float(times.max()) if timed else None,
    )


def split_portrait(split: Split) -> SplitPortrait:
    """Describes the parts of a split."""
    table = split.dataset.interactions
    users, items = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    times, timed = table[TIME].to_numpy(np.float64), split.dataset.meta.has_timestamps
    rows: dict[str, IntArray] = {"train": split.train, "valid": split.valid, "test": split.test}
    parts: dict[str, dict[str, float | None]] = {
        part: {
            "rows": len(index),
            "users": len(np.unique(users[index])),
            "items": len(np.unique(items[index])),
            "first_time": float(times[index].min()) if timed else None,
            "last_time": float(times[index].max()) if timed else None,
        }
        for part, index in rows.items()
    }
    week_starts: list[str] = []
    weeks: dict[str, list[int]] = {part: [] for part in rows}
    if timed:
        week = np.floor(times / 604_800).astype(np.int64)
        low, high = (int(f(week[np.concatenate(list(rows.values()))])) for f in (np.min, np.max))
        # Wider bars for long spans: a picture has room for a few hundred.
        step = max(1, (high - low + 1) // _MAX_MONTHS + 1)
        n_bars = (high - low) // step + 1
        week_starts = [str(np.datetime64((low + i * step) * 604_800, "s").astype("M8[D]")) for i in range(n_bars)]
        weeks = {
            part: np.bincount((week[index] - low) // step, minlength=n_bars).tolist() for part, index in rows.items()
        }
    n_new = len(np.setdiff1d(items[split.test], items[split.train]))
    return SplitPortrait(split.describe(), parts, n_new, week_starts, weeks)


def gini(counts: npt.NDArray[Any]) -> float:
    """Gini coefficient of non-negative counts [n]; 0 where nothing was counted.

    With x sorted ascending: (2 * sum(i * x_i) / (n * sum(x))) - (n + 1) / n, i from 1.
    """
    ordered = np.sort(counts.astype(np.float64))
    n, total = len(ordered), float(ordered.sum())
    if n == 0 or total == 0:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


def _named(dataset: Dataset, index: int) -> tuple[str, str]:
    return str(dataset.item_ids[index]), dataset.item_text(index, "title")


def _tail(descending: npt.NDArray[Any]) -> list[tuple[float, float]]:
    n = len(descending)
    held = np.concatenate([[0], np.cumsum(descending)]) / max(1, int(descending.sum()))
    points = np.unique(np.linspace(0, n, min(n, _TAIL_POINTS) + 1).round().astype(int))
    return [(float(i / n), float(held[i])) for i in points]


def _months(seconds: npt.NDArray[np.float64]) -> Histogram:
    months = seconds.astype(np.int64).astype("M8[s]").astype("M8[M]").astype(np.int64)
    low, high = int(months.min()), int(months.max())
    if high - low >= _MAX_MONTHS:
        # Centuries of months are no calendar of this data: a single odd date, or times that only count.
        years, counts = np.unique(months // 12 + 1970, return_counts=True)
        return Histogram([str(y) for y in years.tolist()], counts.tolist())
    counts = np.bincount(months - low, minlength=high - low + 1)
    return Histogram([str(np.datetime64(m, "M")) for m in range(low, high + 1)], counts.tolist())


def _rating_histogram(rated: npt.NDArray[np.float64]) -> Histogram:
    if not len(rated):
        return Histogram([], [])
    values, counts = np.unique(rated.astype(np.float32), return_counts=True)
    if len(values) <= _MAX_RATING_BINS:
        return Histogram([f"{v:g}" for v in values.tolist()], counts.tolist())
    counts, edges = np.histogram(rated, bins=_MAX_RATING_BINS)
    labels = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return Histogram(labels, counts.tolist())


def _lengths(active: npt.NDArray[Any]) -> Histogram:
    """Users by history length in bins that double: 1, 2, 3-4, 5-8, 9-16 ..."""
    bins = np.ceil(np.log2(active)).astype(int)
    counts = np.bincount(bins)
    labels = [str(2**b) if b < 2 else f"{2 ** (b - 1) + 1}-{2**b}" for b in range(len(counts))]
    return Histogram(labels, counts.tolist())


def _coverage(table: pd.DataFrame) -> list[FieldCoverage]:
    found = []
    for column in table.columns[1:]:
        filled = table.loc[table[column] != "", column]
        if column == "title":
            # An id that stands in for a title is no text.
            filled = filled[filled != table.loc[filled.index, ITEM]]
        mean = float(filled.str.len().mean()) if len(filled) else 0.0
        found.append(FieldCoverage(str(column), len(filled) / max(1, len(table)), int(filled.nunique()), mean))
    return found
