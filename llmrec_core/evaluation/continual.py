"""What a training on newer data forgot and learned: the models before and after it are asked the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llmrec_core.contracts import (
    Capabilities,
    Emit,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Ranking,
    Recommender,
    check_candidates,
)
from llmrec_core.errors import InputError
from llmrec_core.evaluation.evaluate import evaluate
from llmrec_core.evaluation.report import EvaluationResult, metric_title
from llmrec_core.specs import LOWER_IS_BETTER, EvaluationSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Beside the metric that decides, these are compared where they were measured.
_ALSO = ("auc", "gauc", "rmse")
#: Words over the two kinds of questions.
PART_TITLES = {"old": "What the first run was asked", "new": "What came since"}


class CarriedRecommender(Recommender):
    """A recommender of an older version of the data, asked by the numbers of a newer one.

    Items that the older data does not have are unknown to it: they are left out of histories, rank behind all others
    and have no predicted rating of their own (the middle of what it predicts in that row).

    Args:
        inner: fitted on ``first``.
        first: the older data; ``later``: the newer.
    """

    family: ClassVar[str] = "carried"

    def __init__(self, inner: Recommender, first: Dataset, later: Dataset) -> None:
        self.inner, self.spec = inner, inner.spec
        self._known = first.item_index
        index = first.item_index
        #: Number in ``later`` -> number in ``first``, -1 where unknown; and back.
        self._old = np.array([index.get(item, -1) for item in later.item_ids.tolist()], np.int64)
        self._new = np.full(first.n_items, -1, np.int64)
        self._new[self._old[self._old >= 0]] = np.flatnonzero(self._old >= 0)

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, similar=False)

    @property
    def n_items(self) -> int:
        return len(self._old)

    @property
    def unknown(self) -> IntArray:
        """item_idx of the newer data that it has never heard of, ascending."""
        return np.flatnonzero(self._old < 0).astype(np.int64)

    def fit(self, split: Split, ctx: FitContext) -> None:
        raise InputError("a carried recommender is fitted already.", fix="Fit the one inside.")

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        items = check_candidates(candidates, len(queries), self.n_items)
        scores = self.inner.score(self._translated(queries), self._items(items), task=task)
        lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, initial=np.inf)
        behind = np.where(np.isfinite(lowest), lowest - 1.0, 0.0).astype(np.float32)
        return np.where((items >= 0) & (self._items(items) < 0), behind[:, None], scores).astype(np.float32)

    def top_k(self, queries: Sequence[Query], k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        """As the recommender inside ranks what it knows; unknown items are in no list."""
        hidden = None if exclude is None else [self._old[items][self._old[items] >= 0] for items in exclude]
        # What has gone from the newer data is not asked for either.
        gone = np.flatnonzero(self._new < 0)
        if len(gone):
            hidden = [np.union1d(items, gone) for items in hidden or [gone[:0]] * len(queries)]
        found = self.inner.top_k(self._translated(queries), k, hidden)
        return [Ranking(self._new[ranking.items], ranking.scores) for ranking in found]

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        items = check_candidates(candidates, len(queries), self.n_items)
        found = self.inner.predict_ratings(self._translated(queries), self._items(items))
        if found is None:
            return None
        known = np.isfinite(found)
        middle = np.where(known, found, 0).sum(axis=1) / np.maximum(1, known.sum(axis=1))
        everywhere = float(found[known].mean()) if known.any() else 0.0
        middle = np.where(known.any(axis=1), middle, everywhere)
        return np.where((items >= 0) & (self._items(items) < 0), middle[:, None], found).astype(np.float32)

    def save(self, folder: Path) -> None:
        raise InputError("a carried recommender is not kept.", fix="Save the one inside.")

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> CarriedRecommender:
        raise InputError("a carried recommender is not kept.", fix="Load the one inside.")

    def _items(self, items: IntArray) -> IntArray:
        return np.where(items >= 0, self._old[items], -1)

    def _translated(self, queries: Sequence[Query]) -> list[Query]:
        return [q.with_history([item for item in q.history if item.item_id in self._known]) for q in queries]


def compare_parts(
    before: CarriedRecommender,
    after: Recommender,
    parts: Mapping[str, Split | None],
    spec: EvaluationSpec,
    *,
    seed: int,
    emit: Emit | None = None,
    like_threshold: float | None = None,
) -> dict[str, Any]:
    """Both models on the test rows of each part, on the same users with the same bootstrap draws.

    Args:
        parts: "old" and "new" -> a split of the newer data; None: there is nothing of it.

    Returns:
        ``{"parts": {name: {"title", "n_users", "n_unknown_targets", "metrics": {metric: {"before", "after",
        "difference"}}} | None}, "sentence"}``; before, after and difference have mean, ci_low and ci_high.
    """
    found: dict[str, Any] = {}
    words = []
    for name, split in parts.items():
        found[name] = None
        if split is None or not len(split.queries("test", 1)):
            words.append(f"{PART_TITLES[name]}: nothing is held out.")
            continue
        models = {"after": after, "before": before}
        result = evaluate(models, split, spec, seed, emit, "after", like_threshold)
        users = split.queries("test", spec.max_users, seed)
        unknown = sum(int(np.isin(targets, before.unknown).sum()) for targets in users.targets)
        metrics = _metrics(result, spec)
        found[name] = {
            "title": PART_TITLES[name],
            "n_users": len(users),
            "n_targets": sum(len(targets) for targets in users.targets),
            "n_unknown_targets": unknown,
            "metrics": metrics,
        }
        words.append(_sentence(name, spec.primary_metric, metrics))
    return {"parts": found, "sentence": " ".join(words)}


def _metrics(result: EvaluationResult, spec: EvaluationSpec) -> dict[str, Any]:
    found = {}
    for metric in (spec.primary_metric, *(name for name in _ALSO if name != spec.primary_metric)):
        values = [result.models[name].metrics.get(metric) for name in ("before", "after")]
        if values[0] is None or values[1] is None:
            continue
        apart = result.compare("after", "before", metric)
        found[metric] = {
            "before": values[0].as_json(),
            "after": values[1].as_json(),
            "difference": {"mean": apart.mean, "ci_low": apart.ci_low, "ci_high": apart.ci_high, "n": apart.n},
        }
    return found


def _sentence(part: str, metric: str, metrics: Mapping[str, Any]) -> str:
    if metric not in metrics:
        return f"{PART_TITLES[part]}: {metric_title(metric)} could not be measured."
    before, after, apart = (metrics[metric][name] for name in ("before", "after", "difference"))
    sign = -1 if metric.partition("@")[0] in LOWER_IS_BETTER else 1
    low, high = sorted((sign * apart["ci_low"], sign * apart["ci_high"]))
    verdict = {"old": ("some of it is forgotten", "no clear difference", "it is known better")}.get(
        part, ("worse than before", "no clear difference", "better than before")
    )[0 if high < 0 else 2 if low > 0 else 1]
    return (
        f"{PART_TITLES[part]}: {metric_title(metric)} {before['mean']:.4f} before, {after['mean']:.4f} after "
        f"({apart['mean']:+.4f}, {apart['ci_low']:+.4f} to {apart['ci_high']:+.4f}): {verdict}."
    )
