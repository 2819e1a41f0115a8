"""What is met more often than usual around a moment: for items, the log of a recent share over a long one.

At moment m the score of item i is

    log(recent_i(m) + e) - log(past_i(m) + e),    e = smoothing / n_items

with past_i(m) its share of all training rows up to m, and recent_i(m) its share when a row counts half after
``half_life_days``. A query is answered for the time of its last history entry, from rows up to that time alone: what
others did later stays unseen, also in splits that cut each user at a time of their own. Alone it is a weak
recommender (it knows nothing of the user); in a blend it moves items with the season.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from llmrec_core.baselines._base import Arrays, Baseline, demand
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query, check_candidates, check_task
from llmrec_core.errors import DataError
from llmrec_core.specs import TrendSpec

if TYPE_CHECKING:
    from llmrec_core.data import Split

_DAY_S = 86_400.0
#: Moments at which scores are kept: so many a half life, and at most so many in all. A query reads the last before it.
_STEPS_PER_HALF_LIFE, _MAX_MOMENTS = 32, 400


class TrendRecommender(Baseline):
    """See the module. Without a time in the history the last moment of training answers."""

    family: ClassVar[str] = "trend"
    spec_type = TrendSpec
    dtypes: ClassVar = {"moments": "float64", "lifts": "float32"}

    def __init__(self, spec: TrendSpec | None = None) -> None:
        super().__init__(spec)
        #: Seconds since 1970, ascending, [n_moments].
        self._moments: npt.NDArray[np.float64] = np.empty(0)
        #: Scores, [n_moments + 1, n_items]; the first row is for queries before all training rows.
        self._lifts: FloatArray = np.empty((0, 0), np.float32)

    def fit(self, split: Split, ctx: FitContext) -> None:
        """Raises: DataError where no training row has a time."""
        table = split.dataset.interactions
        times = table["timestamp"].to_numpy(np.float64)[split.train]
        items = table["item_idx"].to_numpy(np.int64)[split.train]
        timed = ~np.isnan(times)
        if not timed.any():
            raise DataError(
                "a trend needs timestamps, and this data has none.",
                where=f"trend, dataset {split.dataset.name}",
                fix="Leave this recommender out, or import a timestamp column.",
            )
        order = np.argsort(times[timed], kind="stable")
        times, items = times[timed][order], items[timed][order]
        self._moments = _moments(times, self.spec.half_life_days * _DAY_S)
        self._lifts = self._learn(times, items, split.dataset.n_items)
        self._know(split.dataset)

    def _learn(self, times: npt.NDArray[np.float64], items: IntArray, n_items: int) -> FloatArray:
        past, recent = np.zeros(n_items), np.zeros(n_items)
        half_life_s = self.spec.half_life_days * _DAY_S
        even = self.spec.smoothing / n_items
        lifts = np.zeros((len(self._moments) + 1, n_items), np.float32)
        ends = np.searchsorted(times, self._moments, side="right")
        done, before = 0, float(times[0])
        for row, (moment, end) in enumerate(zip(self._moments.tolist(), ends.tolist(), strict=True), start=1):
            new = items[done:end]
            past += np.bincount(new, minlength=n_items)
            recent *= 0.5 ** ((moment - before) / half_life_s)
            recent += np.bincount(new, 0.5 ** ((moment - times[done:end]) / half_life_s), minlength=n_items)
            lifts[row] = np.log(recent / recent.sum() + even) - np.log(past / past.sum() + even)
            done, before = end, moment
        return lifts

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), self.n_items)
        times = np.array([_last_time(query) for query in queries], np.float64)
        rows = np.where(np.isnan(times), len(self._moments), np.searchsorted(self._moments, times, side="right"))
        found = self._lifts[rows[:, None], np.maximum(items, 0)]
        return np.where(items < 0, np.float32(-np.inf), found)

    def _arrays(self) -> Arrays:
        return {"moments": self._moments, "lifts": self._lifts}

    def _take(self, arrays: Arrays, n_items: int) -> None:
        self._moments, self._lifts = arrays["moments"], arrays["lifts"]
        demand(self._moments.ndim == 1 and self._lifts.shape == (len(self._moments) + 1, n_items))
        demand(bool(np.isfinite(self._moments).all() and np.isfinite(self._lifts).all()))
        demand(bool((np.diff(self._moments) > 0).all()))


def _moments(times: npt.NDArray[np.float64], half_life_s: float) -> npt.NDArray[np.float64]:
    """Evenly over ``times`` (ascending), the first and last among them."""
    span = float(times[-1] - times[0])
    n = int(np.clip(np.ceil(span / half_life_s * _STEPS_PER_HALF_LIFE), 1, _MAX_MOMENTS - 1))
    return np.unique(np.linspace(times[0], times[-1], n + 1))


def _last_time(query: Query) -> float:
    """Of the newest history entry that has one; NaN without."""
    return next((entry.timestamp for entry in reversed(query.history) if entry.timestamp is not None), np.nan)
