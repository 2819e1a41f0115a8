"""The metric that early stopping watches, on held-out validation rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from llmrec_core.contracts import FloatArray, IntArray, Recommender
from llmrec_core.errors import SpecError
from llmrec_core.evaluation.validation import validation_metric
from llmrec_core.specs import CLICK_METRICS, RATING_METRICS
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import Labels, weighted_loss
from llmrec_core.training.packing import TokenisedPrompts
from llmrec_core.training.samples import SampleLists

#: Which head ranks when nothing else is said.
MAIN_TASKS = ("rank", "click", "rating", "similarity")


def main_task(tasks: tuple[str, ...]) -> str:
    """The head that gives the score: rank before click before rating."""
    return next(task for task in MAIN_TASKS if task in tasks)


class Validation:
    """Validation prompts, tokenised once.

    Args:
        metric: name of the watched metric.
        lists: samples of the validation part.
        tokens: their prompts.
        weights: task -> weight of its loss.
        rating_scale: (low, high) of the ratings: rmse and mae are reported in the dataset's own units.
        liked_at: scaled rating (0-1) above which a rated row counts as liked, for click metrics of a rating head.

    Raises:
        SpecError: the metric needs a head that is not trained.
    """

    def __init__(
        self,
        metric: str,
        lists: SampleLists,
        tokens: TokenisedPrompts,
        weights: dict[str, float],
        rating_scale: tuple[float, float] = (0.0, 1.0),
        liked_at: float = 0.5,
    ) -> None:
        self.metric = metric
        self._tokens = tokens
        self._weights = weights
        self._lists = lists
        self._users: IntArray = lists.users[lists.list_of]
        self._list_of = lists.list_of
        self._labels = lists.labels
        self._offsets = lists.offsets
        tasks = tuple(weights)
        # Each metric is read from the head that was made for it: AUC asks what is clicked, not what came next.
        self._task = "rating" if metric in RATING_METRICS else main_task(tasks)
        if metric in CLICK_METRICS and "click" in tasks:
            self._task = "click"
        if self._task not in tasks:
            raise SpecError(
                f"{metric} needs a rating objective, and the objectives are {', '.join(tasks)}.",
                where="training.validation_metric",
                fix="Watch auc or ndcg@10, or add the rating objective.",
            )
        truth = self._labels[self._task].astype(np.float64)
        if self._task == "rating" and metric not in RATING_METRICS:
            truth = np.where(np.isnan(truth), np.nan, truth > liked_at)
        self._rating_low, high = rating_scale
        self._scale = high - self._rating_low if metric in RATING_METRICS else 1.0
        self._kept = np.flatnonzero(~np.isnan(truth))
        self._truth = truth[self._kept] * self._scale

    def measure(self, network: PromptNetwork) -> dict[str, float]:
        """``{"loss": ..., metric: ...}``; the metric is missing where it is not defined on these rows."""
        outputs = self.outputs(network)
        labels = Labels(
            {task: torch.from_numpy(values) for task, values in self._labels.items()},
            torch.from_numpy(self._list_of),
            int(self._list_of.max(initial=-1)) + 1,
            {task: torch.from_numpy(values) for task, values in self._offsets.items()},
        )
        tensors = {task: torch.from_numpy(values) for task, values in outputs.items()}
        found = {"loss": float(weighted_loss(tensors, labels, self._weights))}
        scores = outputs[self._task] + self._offsets.get(self._task, np.float32(0))
        return found | self.metric_of(scores)

    def outputs(self, network: PromptNetwork) -> dict[str, FloatArray]:
        """Raw outputs of every trained head, float32 [n_prompts], without what stands beside the network."""
        return network.predict(self._tokens, tuple(self._weights))

    @property
    def tokens(self) -> TokenisedPrompts:
        """The prompts."""
        return self._tokens

    @property
    def task(self) -> str:
        """The task whose outputs :meth:`metric_of` takes."""
        return self._task

    def metric_of(self, outputs: FloatArray) -> dict[str, float]:
        """``{metric: ...}`` of outputs [n_prompts] of :attr:`task`; empty where it is not defined on these rows."""
        scores = outputs[self._kept].astype(np.float64)
        if self.metric in RATING_METRICS:
            scores = np.clip(scores, 0.0, 1.0) * self._scale
        return self._value(scores)

    def measure_floor(self, floor: Recommender) -> dict[str, float]:
        """``{metric: ...}`` of a fitted baseline on the same rows; empty where it cannot answer."""
        size = np.bincount(self._list_of)
        column = np.arange(len(self._list_of)) - np.repeat(np.cumsum(size) - size, size)
        items = np.full((len(size), int(size.max(initial=0))), -1, np.int64)
        items[self._list_of, column] = self._lists.items
        if self.metric in RATING_METRICS:
            answers = floor.predict_ratings(self._lists.queries, items)
            if answers is None:
                return {}
            # Truths are counted from the low end of the scale, as the model's outputs are.
            answers = answers - self._rating_low
        else:
            answers = floor.score(self._lists.queries, items)
        return self._value(answers[self._list_of, column][self._kept].astype(np.float64))

    def _value(self, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        value = validation_metric(self.metric, self._truth, scores, self._users[self._kept])
        return {self.metric: value} if math.isfinite(value) else {}
