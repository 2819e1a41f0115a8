"""What training rows tell of items, for the features of behaviour: means, popularity, times, and how items go together.

Dense tables between items are kept for the most popular ones, and counted from drawn users where there are many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.contracts import IntArray
from llmrec_core.data import Dataset
from llmrec_core.specs import BehaviourSpec

Values = npt.NDArray[np.float64]

#: Items that take part in neighbour features, the most popular ones: their tables are dense.
_MAX_PAIRED = 4000
#: Pairs of rows of one user that the tables may be counted from; beyond, users are drawn.
_MAX_PAIRS = 200_000_000
#: Ridge on what the item's columns say of its rating; residual variances are near 1 on a scale of 1-5.
_CONTENT_RIDGE = 20.0


def demand(sound: bool) -> None:
    """Raises: ValueError where loaded arrays are not what they should be."""
    if not sound:
        raise ValueError("the arrays do not fit")


@dataclass(frozen=True)
class ItemTables:
    """Facts of items; every array is [n_items] unless it says otherwise.

    ``scalars``: mean rating, share of liked rows, variance of user offsets, mean residual variance, like threshold
    (inf: every row counts as liked), low end and width of the rating scale, median time of the last event.
    ``place``: position among the ``m`` paired items, -1 outside. ``times``: training times in seconds, [n_rows],
    ``time_starts`` [n_items + 1].
    ``covariance``, ``agreement``, ``near``: float16 [m, m]; agreement[j, c] is P(like c | like j) - P(like c).
    """

    scalars: Values
    offset: Values
    like_logit: Values
    spread: Values
    log_count: Values
    place: IntArray
    times: Values
    time_starts: IntArray
    covariance: npt.NDArray[np.float16]
    agreement: npt.NDArray[np.float16]
    near: npt.NDArray[np.float16]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By name, as :meth:`checked` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def checked(cls, arrays: Mapping[str, npt.NDArray[Any]], n_items: int) -> ItemTables:
        """Raises: ValueError, KeyError: the arrays do not fit each other or the catalogue."""
        tables = cls(**{f.name: arrays[f.name] for f in fields(cls)})
        n_paired = int((tables.place >= 0).sum())
        shapes: dict[str, tuple[int, ...]] = {
            "scalars": (8,),
            "times": tables.times.shape[:1],
            "time_starts": (n_items + 1,),
            **dict.fromkeys(("covariance", "agreement", "near"), (n_paired, n_paired)),
        }
        for name, array in tables.arrays().items():
            demand(array.shape == shapes.get(name, (n_items,)))
            # Of the scalars the scale may be missing.
            demand(name == "scalars" or bool(np.isfinite(array).all()))
        starts, placed = tables.time_starts, tables.place[tables.place >= 0]
        demand(bool(starts[0] == 0 and starts[-1] == len(tables.times) and (np.diff(starts) >= 0).all()))
        demand(bool(np.array_equal(np.sort(placed), np.arange(n_paired)) and (tables.place >= -1).all()))
        return tables


@dataclass(frozen=True)
class TrainingRows:
    """Training rows: user, item, rating (NaN: none), liked (0 or 1), time (NaN: none); [n_rows]."""

    user: IntArray
    item: IntArray
    rating: Values
    liked: Values
    time: Values

    def of(self, kept: npt.NDArray[np.bool_]) -> TrainingRows:
        return TrainingRows(*(getattr(self, f.name)[kept] for f in fields(self)))


def learn_tables(
    rows: TrainingRows, n_items: int, n_users: int, columns: Values, spec: BehaviourSpec,
    scale: tuple[float, float, float], seed: int,
) -> ItemTables:  # fmt: skip
    damping = spec.damping
    count = np.bincount(rows.item, minlength=n_items).astype(np.float64)
    like_prior = float(rows.liked.mean()) if len(rows.liked) else 0.5
    share = (np.bincount(rows.item, rows.liked, minlength=n_items) + damping * like_prior) / (count + damping)
    share = np.clip(share, 0.01, 0.99)
    rated = rows.of(~np.isnan(rows.rating))
    mean = float(rated.rating.mean()) if len(rated.rating) else 0.0
    n_rated = np.bincount(rated.item, minlength=n_items).astype(np.float64)
    # The user first: with few rows an item's mean is mostly who happened to rate it.
    user_offset = _damped(rated.user, rated.rating - mean, n_users, 2.0)
    above = rated.rating - mean - user_offset[rated.user]
    content = _content_offset(columns, rated.item, above, n_rated)
    offset = content + _damped(rated.item, above - content[rated.item], n_items, damping)
    left = rated.rating - mean - offset[rated.item]
    user_offset = _damped(rated.user, left, n_users, damping)
    left = left - user_offset[rated.user]
    residual_var = float((left**2).mean()) if len(left) else 1.0
    spread = np.sqrt(
        (np.bincount(rated.item, left**2, minlength=n_items) + damping * residual_var) / (n_rated + damping)
    )
    owners = np.unique(rated.user)
    user_var = float(user_offset[owners].var()) if len(owners) > 1 else 0.1
    timed = rows.of(~np.isnan(rows.time))
    order = np.lexsort((timed.time, timed.item))
    place, covariance, agreement, near = _pairs(rows, rated, left, share, n_items, n_users, spec, seed)
    last = float(np.median(timed.time)) if len(timed.time) else np.nan
    return ItemTables(
        scalars=np.array([mean, like_prior, user_var, residual_var, *scale, last]),
        offset=offset,
        like_logit=np.log(share / (1 - share)),
        spread=spread,
        log_count=np.log1p(count),
        place=place,
        times=timed.time[order],
        time_starts=np.concatenate([[0], np.cumsum(np.bincount(timed.item, minlength=n_items))]).astype(np.int64),
        covariance=covariance,
        agreement=agreement,
        near=near,
    )


def _damped(index: IntArray, values: Values, n: int, damping: float) -> Values:
    """Mean of the values at each index [n], drawn towards 0; 0 where there are none."""
    counts = np.bincount(index, minlength=n)
    return np.asarray(np.bincount(index, values, minlength=n) / np.maximum(counts + damping, 1e-12))


def _pairs(
    rows: TrainingRows,
    rated: TrainingRows,
    left: Values,
    share: Values,
    n_items: int,
    n_users: int,
    spec: BehaviourSpec,
    seed: int,
) -> tuple[IntArray, npt.NDArray[np.float16], npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Place of each item among the paired ones, and covariance, agreement and nearness between those."""
    count = np.bincount(rows.item, minlength=n_items)
    kept = np.sort(np.lexsort((np.arange(n_items), -count))[: min(_MAX_PAIRED, int((count > 0).sum()))])
    place = np.full(n_items, -1, np.int64)
    place[kept] = np.arange(len(kept))
    per_user = np.bincount(rows.user, minlength=n_users).astype(np.float64)
    drawn = np.random.default_rng([seed, 22]).permutation(n_users)
    asked = np.zeros(n_users, bool)
    asked[drawn[np.cumsum(per_user[drawn] ** 2) <= _MAX_PAIRS]] = True

    def matrix(user: IntArray, item: IntArray, values: Values) -> sp.csr_array:
        used = asked[user] & (place[item] >= 0)
        return sp.csr_array((values[used], (user[used], place[item[used]])), shape=(n_users, len(kept)))

    residual = matrix(rated.user, rated.item, left)
    seen_rated = matrix(rated.user, rated.item, np.ones(len(left)))
    seen = matrix(rows.user, rows.item, np.ones(len(rows.item)))
    like = matrix(rows.user, rows.item, rows.liked)
    common = (seen_rated.T @ seen_rated).toarray()
    covariance = (residual.T @ residual).toarray() / (common + spec.shrink)
    both = (like.T @ seen).toarray()
    agreement = ((like.T @ like).toarray() + 10 * share[kept]) / (both + 10) - share[kept]
    own = np.sqrt(np.maximum(count[kept], 1).astype(np.float64))
    near = (seen.T @ seen).toarray() / own[:, None] / own
    for table in (covariance, agreement, near):
        np.fill_diagonal(table, 0.0)
    return place, *(table.astype(np.float16) for table in (covariance, agreement, near))


def content_columns(dataset: Dataset, categories: sp.csr_array) -> Values:
    """What the columns of the items table say: the 100 most frequent categories, and columns of numbers, centred and
    scaled, with their squares; [n_items, n_columns]."""
    often = np.argsort(-np.asarray((categories > 0).sum(axis=0)).ravel(), kind="stable")[:100]
    parts = [categories[:, often].toarray()] if categories.shape[1] else []
    for name in dataset.items.columns:
        if name in ("item_id", "title"):
            continue
        values = _numbers(dataset.items[name].tolist())
        if values is None:
            continue
        known = ~np.isnan(values)
        z = np.where(known, (values - values[known].mean()) / max(float(values[known].std()), 1e-9), 0.0)
        z = np.clip(z, -3.0, 3.0)
        parts += [z[:, None], (z**2)[:, None]]
    return np.concatenate(parts, axis=1) if parts else np.zeros((dataset.n_items, 0))


def _numbers(cells: Sequence[str]) -> Values | None:
    """Numbers of a column in which nine of ten filled cells are some, with five different ones or more; else None."""
    found = np.full(len(cells), np.nan)
    n_filled = 0
    for place, cell in enumerate(cells):
        if cell:
            n_filled += 1
            try:
                value = float(cell)
            except ValueError:
                continue
            found[place] = value if abs(value) < 1e15 else np.nan
    known = found[~np.isnan(found)]
    return found if n_filled and len(known) >= 0.9 * n_filled and len(np.unique(known)) >= 5 else None


def _content_offset(columns: Values, item: IntArray, above: Values, n_rated: Values) -> Values:
    """Ridge of the items' mean residuals, weighted by their ratings, on their columns; [n_items], 0 without columns."""
    if not columns.shape[1] or not len(item):
        return np.zeros(len(n_rated))
    weight = n_rated / n_rated.sum()
    centred = columns - weight @ columns
    sums = np.bincount(item, above, minlength=len(n_rated))
    matrix = (centred * n_rated[:, None]).T @ centred + _CONTENT_RIDGE * np.eye(columns.shape[1])
    return np.asarray(centred @ np.linalg.solve(matrix, centred.T @ sums))
