"""Most popular first: the score of an item is how many training rows name it, for every user alike.

With ``half_life_days`` a row counts 0.5 ** (its days before the last training row / half life): what is popular now.

Where the data has ratings it also predicts them, as the mean plus damped offsets of the item and of the user (the bias
model of LensKit and of Koren et al., "Matrix factorization techniques for recommender systems", 2009): the floor under
RMSE and MAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from llmrec_core.baselines._base import Arrays, Baseline, demand
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query, check_candidates, check_task
from llmrec_core.errors import DataError
from llmrec_core.specs import PopularitySpec

if TYPE_CHECKING:
    from llmrec_core.data import Split


#: Ratings that an offset must be outweighed by: the offset of one single rating counts 1 / (1 + DAMPING) of itself.
DAMPING = 5.0


class PopularityRecommender(Baseline):
    """Counts of training interactions. Items without any score 0; the query is looked at for ratings alone."""

    family: ClassVar[str] = "popularity"
    spec_type = PopularitySpec
    dtypes: ClassVar = {"weights": "float32", "item_offset": "float64", "ratings": "float64"}

    def __init__(self, spec: PopularitySpec | None = None) -> None:
        super().__init__(spec)
        #: What an item scores, float32 [n_items]: its count, or its count with older rows weighing less.
        self._weights: FloatArray = np.empty(0, np.float32)
        #: Damped mean offset of each item's ratings, float64 [n_items]; NaN throughout where there are no ratings.
        self._item_offset: npt.NDArray[np.float64] = np.empty(0)
        #: Mean, lowest and highest training rating.
        self._ratings: npt.NDArray[np.float64] = np.full(3, np.nan)

    def fit(self, split: Split, ctx: FitContext) -> None:
        items = split.dataset.interactions["item_idx"].to_numpy()[split.train]
        n_items = split.dataset.n_items
        if self.spec.half_life_days is None:
            self._weights = np.bincount(items, minlength=n_items).astype(np.float32)
        else:
            self._weights = self._recent(split, items)
        self._know(split.dataset)
        ratings = split.dataset.interactions["rating"].to_numpy(np.float64)[split.train]
        rated = ~np.isnan(ratings)
        self._item_offset = np.full(n_items, np.nan)
        if rated.any():
            low, high = split.dataset.rating_scale or (ratings[rated].min(), ratings[rated].max())
            self._ratings = np.array([ratings[rated].mean(), low, high])
            sums = np.bincount(items[rated], ratings[rated] - self._ratings[0], minlength=n_items)
            self._item_offset = sums / (np.bincount(items[rated], minlength=n_items) + DAMPING)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), self.n_items)
        # The last place stands for padding: index -1 finds it.
        padded = np.append(self._weights, np.float32(-np.inf))
        return padded[items]

    def _recent(self, split: Split, items: IntArray) -> FloatArray:
        if not split.dataset.meta.has_timestamps:
            raise DataError(
                "recent popularity needs timestamps, and this data has none.",
                where=f"popularity.half_life_days, dataset {split.dataset.name}",
                fix="Leave half_life_days empty, or import a timestamp column.",
            )
        times = split.dataset.interactions["timestamp"].to_numpy(np.float64)[split.train]
        ages = (times.max() - times) / 86_400.0
        weights = np.bincount(items, 0.5 ** (ages / self.spec.half_life_days), minlength=split.dataset.n_items)
        return weights.astype(np.float32)

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        """mean + item offset + user offset, cut to the scale; the user's offset comes from the query's history."""
        items = check_candidates(candidates, len(queries), self.n_items)
        mean, low, high = self._ratings
        if np.isnan(mean):
            return None
        users = np.array([self._user_offset(query) for query in queries])
        offsets = np.append(self._item_offset, -np.inf)[items]
        found = np.clip(mean + offsets + users[:, None], low, high)
        return np.where(np.isneginf(offsets), -np.inf, found).astype(np.float32)

    def _user_offset(self, query: Query) -> float:
        known = self._known_items()
        offsets = [
            entry.rating - self._ratings[0] - self._item_offset[known[entry.item_id]]
            for entry in query.history
            if entry.rating is not None and entry.item_id in known
        ]
        return float(sum(offsets)) / (len(offsets) + DAMPING)

    def _arrays(self) -> Arrays:
        return {"weights": self._weights, "item_offset": self._item_offset, "ratings": self._ratings}

    def _take(self, arrays: Arrays, n_items: int) -> None:
        self._weights, self._item_offset, self._ratings = (arrays[name] for name in self.dtypes)
        demand(self._weights.shape == self._item_offset.shape == (n_items,) and self._ratings.shape == (3,))
        demand(bool(np.isfinite(self._weights).all() and (self._weights >= 0).all()))
