"""What behaviour says of a user and an item, as numbers beside the text: rates, means, neighbours, popularity, time.

Facts of items come from training rows; facts of the user from the query's own history, the last ``max_history`` items.
For training rows the facts are learned once for each of ``n_folds`` groups of users, from the rows of all other users:
so neither a row nor anything else of its user is in its own features, whatever the feature.

Neighbours (``neighbour_rating``): ratings without the offsets of user and item are taken for draws of a Gaussian whose
covariance between two items is their shrunk co-moment over common raters; the feature is the conditional mean of the
candidate given the rated history (Rasmussen and Williams, 2006, eq. 2.19, with the user's offset as a shared term).
Factors (``factor_rating``): what ``baselines/rating_factors.py`` expects, its user inferred from the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.baselines.rating_factors import RatingFactors, RatingRows, learn_factors
from llmrec_core.contracts import TIME, FitContext, FloatArray, IntArray, Query
from llmrec_core.data.item_features import Categories
from llmrec_core.specs import BehaviourSpec, ItemKNNSpec, RatingFactorsSpec
from llmrec_core.training.item_tables import ItemTables, TrainingRows, content_columns, demand, learn_tables

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

Values = npt.NDArray[np.float64]

#: Feature -> what a person calls it. "of the item": from training rows of others; the rest from the query's history.
FEATURES: Mapping[str, str] = {
    "history_length": "length of the history",
    "like_rate": "share liked in the history",
    "recent_like_rate": "share liked lately",
    "mean_rating": "mean rating in the history",
    "rating_spread": "spread of the user's ratings",
    "user_offset": "ratings above or below what the items usually get",
    "item_mean": "mean rating of the item",
    "item_like_rate": "share of users who like the item",
    "item_spread": "spread of the item's ratings",
    "popularity": "popularity of the item",
    "recent_popularity": "popularity of the item lately",
    "item_age": "time since the item was first seen",
    "expected_rating": "what the user usually gives and the item usually gets",
    "neighbour_rating": "what the rated history says of the item",
    "co_visit": "how often the item comes with the history",
    "co_visit_rating": "ratings of what the item comes with",
    "like_agreement": "how often those who like the history like the item",
    "category_taste": "ratings of the item's categories in the history",
    "history_popularity": "popularity of the history",
    "history_mean": "mean rating of the history's items",
    "repeat": "the item is in the history",
    "factor_rating": "what alike tastes give the item",
}
#: Prompts worked on at once.
_BLOCK = 4096
#: Popularity "lately" counts so many days before the last event of the history.
_RECENT_DAYS = 30.0
_DAY_S = 86_400.0
#: Decay of recent_like_rate for each step back.
_DECAY = 0.8
#: Factors of ratings, passes in which they are learned, and rows that take part (whole users are drawn beyond).
_FACTORS = RatingFactorsSpec(n_factors=16, n_iterations=25, n_models=1)
_FACTOR_ROWS = 1_000_000
#: Noise of one rating, as a share of the residual variance, beside what the covariances explain.
_NOISE = 0.35


class BehaviourFeatures:
    """See the module. Made by :meth:`learn`, or by :meth:`restore` from what :meth:`arrays` and ``co_visits`` hold.

    Attributes:
        co_visits: sequential item-kNN in both directions behind the feature "co_visit".
    """

    def __init__(
        self, spec: BehaviourSpec, item_index: Mapping[str, int], tables: ItemTables, content: sp.csr_array,
        co_visits: ItemKNNRecommender, factors: RatingFactors | None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.co_visits = co_visits
        self._factors = factors
        self._item_index = item_index
        self._tables = tables
        self._categories = content
        self._folds: list[BehaviourFeatures] = []
        self._fold_of: IntArray = np.empty(0, np.int64)

    @classmethod
    def learn(cls, split: Split, spec: BehaviourSpec, threshold: float | None, ctx: FitContext) -> BehaviourFeatures:
        """From training rows alone.

        Args:
            threshold: ratings above it are likes; None: every row is one.
        """
        dataset = split.dataset
        table = dataset.interactions
        rating = table["rating"].to_numpy(np.float64)[split.train]
        low, high = dataset.rating_scale or (np.nan, np.nan)
        if dataset.rating_scale is None:
            # Counts and data without ratings: how much is no opinion.
            rating = np.full(len(rating), np.nan)
        liked = np.ones(len(rating)) if threshold is None else np.where(np.isnan(rating), 1.0, rating > threshold)
        rows = TrainingRows(
            table["user_idx"].to_numpy(np.int64)[split.train],
            table["item_idx"].to_numpy(np.int64)[split.train],
            rating,
            liked,
            table[TIME].to_numpy(np.float64)[split.train],
        )
        scale = (np.inf if threshold is None else threshold, low, high - low)
        categories = Categories.of(dataset).unit
        columns = content_columns(dataset, categories)
        knn = ItemKNNSpec(direction="both", last_items=min(20, spec.max_history))

        def learned(kept: npt.NDArray[np.bool_]) -> BehaviourFeatures:
            co_visits = ItemKNNRecommender(knn)
            co_visits.fit(replace(split, train=split.train[kept]), ctx)
            own = rows.of(kept)
            tables = learn_tables(own, dataset.n_items, dataset.n_users, columns, spec, scale, ctx.seed)
            factors = _learn_factors(own, tables, dataset, ctx)
            return cls(spec, dataset.item_index, tables, categories, co_visits, factors)

        whole = learned(np.ones(len(rating), bool))
        owners = np.unique(rows.user)
        n_folds = min(spec.n_folds, max(1, len(owners)))
        whole._fold_of = np.zeros(dataset.n_users, np.int64)
        whole._fold_of[np.random.default_rng([ctx.seed, 21]).permutation(owners)] = np.arange(len(owners)) % n_folds
        fold_of_row = whole._fold_of[rows.user]
        whole._folds = [learned(fold_of_row != fold) for fold in range(n_folds)]
        return whole

    def forget_folds(self) -> None:
        """Frees what only training rows need."""
        self._folds = []

    def of_training(self, queries: Sequence[Query], users: IntArray, list_of: IntArray, items: IntArray) -> FloatArray:
        """Features of training prompts, each from the rows of other users; shaped as :meth:`of`.

        Args:
            users: user_idx of each query, [n_queries].
        """
        found = np.empty((len(items), len(FEATURES)), np.float32)
        fold = self._fold_of[users]
        for number, features in enumerate(self._folds):
            asked = np.flatnonzero(fold == number)
            chosen = np.flatnonzero(fold[list_of] == number)
            position = np.zeros(len(queries), np.int64)
            position[asked] = np.arange(len(asked))
            found[chosen] = features.of([queries[i] for i in asked.tolist()], position[list_of[chosen]], items[chosen])
        return found

    def of(self, queries: Sequence[Query], list_of: IntArray, items: IntArray) -> FloatArray:
        """Features of prompts, float32 [n_prompts, n_features] in the order of :data:`FEATURES`; always finite.

        Args:
            queries: [n_queries].
            list_of: the query of each prompt, [n_prompts], ascending.
            items: item_idx, [n_prompts].
        """
        out = np.empty((len(items), len(FEATURES)), np.float32)
        start = 0
        while start < len(items):
            # Whole lists, so that a query's neighbours are solved for once.
            end = min(len(items), start + _BLOCK)
            if end < len(items):
                end = max(int(np.searchsorted(list_of, list_of[end - 1])), start) or end
                end = end if end > start else int(np.searchsorted(list_of, list_of[start], side="right"))
            first, last = int(list_of[start]), int(list_of[end - 1])
            history = self._read(queries[first : last + 1])
            part = slice(start, end)
            values = self._block(history, queries[first : last + 1], list_of[part] - first, items[part])
            out[part] = np.stack([values[name] for name in FEATURES], axis=1)
            start = end
        return np.nan_to_num(out, nan=0.0, posinf=0.0, neginf=0.0)

    def _read(self, queries: Sequence[Query]) -> _History:
        """Histories as padded arrays, the newest entry in the last column."""
        width = self.spec.max_history
        item = np.full((len(queries), width), -1, np.int64)
        rating = np.full((len(queries), width), np.nan)
        now = np.full(len(queries), np.nan)
        for row, query in enumerate(queries):
            known = []
            for entry in reversed(query.history):
                index = self._item_index.get(entry.item_id)
                if index is None:
                    continue
                if np.isnan(now[row]) and entry.timestamp is not None:
                    now[row] = entry.timestamp
                known.append((index, np.nan if entry.rating is None else entry.rating))
                if len(known) == width:
                    break
            if known:
                item[row, -len(known) :] = [index for index, _ in reversed(known)]
                rating[row, -len(known) :] = [value for _, value in reversed(known)]
        return _History(item, rating, now)

    def _block(
        self, history: _History, queries: Sequence[Query], list_of: IntArray, items: IntArray
    ) -> dict[str, Values]:
        tables = self._tables
        mean, like_prior, user_var, residual_var, threshold, low, width, last_time = tables.scalars
        damping = self.spec.damping
        there = history.item >= 0
        entry = np.maximum(history.item, 0)
        n = there.sum(axis=1)
        rated = there & ~np.isnan(history.rating)
        rating = np.where(rated, history.rating, 0.0)
        n_rated = rated.sum(axis=1)
        liked = there & (~rated | (rating > threshold))
        decay = there * _DECAY ** np.arange(there.shape[1] - 1, -1, -1)
        above = np.where(rated, rating - mean - tables.offset[entry], 0.0)
        user_offset = above.sum(axis=1) / (n_rated + residual_var / max(user_var, 1e-3))
        left = np.where(rated, above - user_offset[:, None], 0.0)
        own_mean = rating.sum(axis=1) / np.maximum(n_rated, 1)
        spread = np.sqrt(np.where(rated, (rating - own_mean[:, None]) ** 2, 0.0).sum(axis=1) / np.maximum(n_rated, 1))
        centre = 0.0 if np.isnan(width) else (mean - low) / width
        scaled = np.where(n_rated > 0, (own_mean - low) / width if width > 0 else 0.0, centre)
        damped = (liked.sum(axis=1) + 0.5 * like_prior) / (n + 0.5)
        recent = ((liked * decay).sum(axis=1) + 0.5 * like_prior) / (decay.sum(axis=1) + 0.5)
        weights = self._solve(entry, there, rated, above, user_var, residual_var)
        place = np.where(there, tables.place[entry], -1)
        at, to = place[list_of], tables.place[items]
        met = (at >= 0) & (to >= 0)[:, None]
        at, to = np.maximum(at, 0), np.maximum(to, 0)[:, None]
        covariance = np.where(met, tables.covariance[at, to], 0.0) + user_var * rated[list_of]
        near = np.where(met, tables.near[at, to], 0.0)
        agreement = np.where(met & liked[list_of], tables.agreement[at, to], 0.0)
        now = np.where(np.isnan(history.now), last_time, history.now)[list_of]
        popular_now, age = self._lately(items, now)
        similar = near * rated[list_of]
        expected = user_offset[list_of] + tables.offset[items]
        return {
            "history_length": np.log1p(n)[list_of],
            "like_rate": damped[list_of],
            "recent_like_rate": recent[list_of],
            "mean_rating": scaled[list_of],
            "rating_spread": spread[list_of],
            "user_offset": user_offset[list_of],
            "item_mean": tables.offset[items],
            "item_like_rate": tables.like_logit[items],
            "item_spread": tables.spread[items],
            "popularity": tables.log_count[items],
            "recent_popularity": popular_now,
            "item_age": age,
            "expected_rating": expected,
            "neighbour_rating": (covariance * weights[list_of]).sum(axis=1),
            "co_visit": self._co_visit(queries, list_of, items),
            "co_visit_rating": (similar * left[list_of]).sum(axis=1) / (similar.sum(axis=1) + 0.1),
            "like_agreement": agreement.sum(axis=1) / np.sqrt(np.maximum(1, liked.sum(axis=1)))[list_of],
            "category_taste": self._taste(entry, left, rated, list_of, items, damping),
            "history_popularity": ((tables.log_count[entry] * there).sum(axis=1) / np.maximum(n, 1))[list_of],
            "history_mean": ((tables.offset[entry] * there).sum(axis=1) / np.maximum(n, 1))[list_of],
            "repeat": (history.item[list_of] == items[:, None]).any(axis=1).astype(np.float64),
            "factor_rating": self._by_factors(history, list_of, items, expected),
        }

    def _by_factors(self, history: _History, list_of: IntArray, items: IntArray, expected: Values) -> Values:
        """Expected ratings above the mean; ``expected`` for items without factors."""
        if self._factors is None:
            return expected
        place = self._tables.place
        at = np.where(history.item >= 0, place[np.maximum(history.item, 0)], -1)
        n_placed = len(self._factors.items)

        def rows(chosen: npt.NDArray[np.bool_], values: Values) -> sp.csr_array:
            bounds = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
            return sp.csr_array((values[chosen], at[chosen], bounds), shape=(len(at), n_placed))

        ones = np.ones(at.shape)
        rated = (at >= 0) & ~np.isnan(history.rating)
        met = rows(at >= 0, ones)
        met.sum_duplicates()
        met.data[:] = 1.0
        users = self._factors.users(met, rows(rated, ones), rows(rated, history.rating))
        mean, deviation, _ = self._factors.numbers
        known = place[items] >= 0
        found = deviation * np.einsum("nk,nk->n", self._factors.items[np.maximum(place[items], 0)], users[list_of])
        return np.where(known, found + mean - self._tables.scalars[0], expected)

    def _solve(
        self, entry: IntArray, there: npt.NDArray[np.bool_], rated: npt.NDArray[np.bool_], above: Values,
        user_var: float, residual_var: float,
    ) -> Values:  # fmt: skip
        """Weights [n_queries, width] of the conditional mean: inverse covariance of the rated entries times them."""
        tables = self._tables
        if not rated.any():
            return np.zeros(above.shape)
        place = np.where(there, tables.place[entry], -1)
        ok = place >= 0
        at = np.maximum(place, 0)
        solved = np.zeros(above.shape)
        width = entry.shape[1]
        own = np.where(rated, tables.spread[entry] ** 2 + _NOISE * residual_var, 1.0)
        for start in range(0, len(entry), 256):
            part = slice(start, start + 256)
            both = ok[part, :, None] & ok[part, None, :]
            matrix = np.where(both, tables.covariance[at[part, :, None], at[part, None, :]], 0.0).astype(np.float64)
            matrix += user_var
            matrix *= rated[part, :, None] & rated[part, None, :]
            matrix[:, np.arange(width), np.arange(width)] = own[part] + user_var * rated[part]
            solved[part] = np.linalg.solve(matrix, above[part][:, :, None])[:, :, 0]
        # Shrunk co-moments need not be a covariance: where the solution explodes, nothing is said.
        return np.where(np.abs(solved).max(axis=1, keepdims=True) < 20.0, solved, 0.0)

    def _co_visit(self, queries: Sequence[Query], list_of: IntArray, items: IntArray) -> Values:
        sizes = np.bincount(list_of, minlength=len(queries))
        column = np.arange(len(list_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = np.full((len(queries), int(sizes.max(initial=0))), -1, np.int64)
        table[list_of, column] = items
        scores = self.co_visits.score(queries, table)[list_of, column]
        return np.log(scores.astype(np.float64) + 1e-3)

    def _lately(self, items: IntArray, now: Values) -> tuple[Values, Values]:
        """log(1 + training rows of the item in the days before), log(1 + days since its first one); 0 without times."""
        tables = self._tables
        # Items one after the other in one ascending array, so that one search answers for all.
        span = 1.0 + (float(tables.times.max() - tables.times.min()) if len(tables.times) else 0.0)
        start = float(tables.times.min()) if len(tables.times) else 0.0
        owner = np.repeat(np.arange(len(tables.time_starts) - 1), np.diff(tables.time_starts))
        keys = owner * span * 2 + (tables.times - start)
        clock = np.clip(now - start, 0.0, span)
        past = np.maximum(clock - _RECENT_DAYS * _DAY_S, 0.0)
        base = items * span * 2
        # Strictly before now: what happens at that very moment is not known yet.
        count = np.searchsorted(keys, base + clock) - np.searchsorted(keys, base + past)
        has = np.diff(tables.time_starts)[items] > 0
        first = np.where(
            has, tables.times[np.minimum(tables.time_starts[items], max(0, len(tables.times) - 1))], now
        ) if len(tables.times) else now  # fmt: skip
        known = np.isfinite(now)
        age = np.log1p(np.maximum(now - first, 0.0) / _DAY_S)
        return np.where(known, np.log1p(count), 0.0), np.where(known, age, 0.0)

    def _taste(
        self, entry: IntArray, left: Values, rated: npt.NDArray[np.bool_], list_of: IntArray, items: IntArray,
        damping: float,
    ) -> Values:  # fmt: skip
        """Residuals of the history weighted by the cosine of its categories with the candidate's, damped."""
        if self._categories.shape[1] == 0:
            return np.zeros(len(items))
        n, width = entry.shape
        rows = np.repeat(np.arange(n), width)
        shape = (n, self._categories.shape[0])
        wanted = self._categories[items]
        sums = []
        for weight in (left, rated.astype(np.float64)):
            profile = sp.csr_array((weight.ravel(), (rows, entry.ravel())), shape=shape) @ self._categories
            sums.append(np.asarray(wanted.multiply(profile[list_of]).sum(axis=1)).ravel())
        return np.asarray(sums[0] / (sums[1] + 0.2 * damping))

    # -- disk ------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but ``co_visits``, under the names that :meth:`restore` reads."""
        content = self._categories
        return (
            self._tables.arrays()
            | {
                "category_data": content.data.astype(np.float64),
                "category_indices": content.indices.astype(np.int64),
                "category_indptr": content.indptr.astype(np.int64),
                "n_categories": np.array([content.shape[1]], np.int64),
            }
            | ({} if self._factors is None else {f"factors.{k}": v for k, v in self._factors.arrays().items()})
        )

    @classmethod
    def restore(
        cls, spec: BehaviourSpec, dataset: Dataset, arrays: Mapping[str, npt.NDArray[Any]],
        co_visits: ItemKNNRecommender,
    ) -> BehaviourFeatures:  # fmt: skip
        """Raises: ValueError, KeyError, IndexError, TypeError: the arrays do not fit each other or the catalogue."""
        n_items = dataset.n_items
        tables = ItemTables.checked(arrays, n_items)
        categories = sp.csr_array(
            (arrays["category_data"], arrays["category_indices"], arrays["category_indptr"]),
            shape=(n_items, int(arrays["n_categories"][0])),
        )
        categories.check_format(full_check=True)
        demand(bool(np.isfinite(categories.data).all()))
        given = {k.removeprefix("factors."): v for k, v in arrays.items() if k.startswith("factors.")}
        n_placed = int((tables.place >= 0).sum())
        factors = RatingFactors.of_arrays(given, n_placed) if given else None
        return cls(spec, dataset.item_index, tables, categories, co_visits, factors)


def _learn_factors(rows: TrainingRows, tables: ItemTables, dataset: Dataset, ctx: FitContext) -> RatingFactors | None:
    """Factors of the ratings of the paired items; None where no row of theirs has one."""
    place = tables.place[rows.item]
    met = place >= 0
    if met.sum() > _FACTOR_ROWS:
        sizes = np.bincount(rows.user[met], minlength=dataset.n_users)
        drawn = np.random.default_rng([ctx.seed, 23]).permutation(dataset.n_users)
        kept = np.zeros(dataset.n_users, bool)
        kept[drawn[np.cumsum(sizes[drawn]) <= _FACTOR_ROWS]] = True
        met &= kept[rows.user]
    rated = met & ~np.isnan(rows.rating)
    if not rated.any():
        return None
    # Only users with rows: all others would draw the priors towards nothing.
    owners, user = np.unique(rows.user, return_inverse=True)
    shape = (len(owners), int((tables.place >= 0).sum()))
    seen = sp.csr_array((np.ones(int(met.sum())), (user[met], place[met])), shape=shape)
    seen.data[:] = 1.0
    low, width = float(tables.scalars[5]), float(tables.scalars[6])
    found = RatingRows(user[rated], place[rated], rows.rating[rated], seen, (low, low + width))
    return learn_factors(found, _FACTORS, ctx, np.random.default_rng([ctx.seed, 24]))


@dataclass(frozen=True)
class _History:
    """``item``: item_idx, -1 in front of shorter ones, [n_queries, width]; ``rating`` likewise, NaN: none; ``now``:
    time of the newest entry, [n_queries], NaN: not known."""

    item: IntArray
    rating: Values
    now: Values
