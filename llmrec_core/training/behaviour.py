"""Behaviour beside the text: a small model over features, and how the two are joined.

For each task the joined output is

    behaviour(features) + text_weight * text

``behaviour`` is linear, or a layer of 16 tanh units beside the linear part, fitted on training prompts with features
out of fold. The text model is then trained with that output added to its own (a gradient boosting step with a language
model as the learner: Friedman, Annals of Statistics 2001), so that it learns what the features do not say.
``text_weight`` is chosen on validation alone, and may come out as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query
from llmrec_core.errors import ModelError
from llmrec_core.saved import FIX
from llmrec_core.specs import BehaviourSpec, RunSpec
from llmrec_core.training.features import FEATURES, BehaviourFeatures
from llmrec_core.training.objectives import Labels, weighted_loss
from llmrec_core.training.samples import Pool, SampleLists, like_threshold, training_lists

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Weights of the text that are tried on validation.
TEXT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_HIDDEN = 16
#: Ridges on the weights that are tried, each divided by the number of prompts: few prompts need much of it, many none.
_RIDGES = (10.0, 100.0, 1000.0)
#: The small network takes more prompts than that to say more than a line.
_MLP_FROM = 2000
#: Files of a saved join.
_FILE, _CO_VISITS = "behaviour.safetensors", "co_visits"


class _Scorer(nn.Module):
    """Standardised features [n, n_features] -> outputs [n]."""

    def __init__(self, n_features: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, n_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.hidden: nn.Linear | None = None
        if not hidden:
            return
        self.hidden = nn.utils.skip_init(nn.Linear, n_features, hidden)
        self.out = nn.utils.skip_init(nn.Linear, hidden, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.hidden.weight.normal_(0.0, n_features**-0.5, generator=generator)
            self.hidden.bias.normal_(0.0, 0.5, generator=generator)
            self.out.weight.normal_(0.0, 0.05, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        found = self.linear(features)
        if self.hidden is not None:
            found = found + self.out(self.hidden(features).tanh())
        return cast(Tensor, found.squeeze(-1))


class Behaviour:
    """Features, one scorer a task, and the weight of the text in each task's joined output.

    Attributes:
        text_weight: task -> weight; 1 until :meth:`choose_text_weight`.
    """

    def __init__(
        self, spec: BehaviourSpec, features: BehaviourFeatures, scorers: Mapping[str, _Scorer], mean: FloatArray,
        std: FloatArray,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.features = features
        self.text_weight: dict[str, float] = dict.fromkeys(scorers, 1.0)
        self._scorers = dict(scorers)
        self._mean, self._std = mean, std

    @classmethod
    def fit(
        cls, split: Split, run: RunSpec, spec: BehaviourSpec, held_out: SampleLists, pool: Pool | None, ctx: FitContext
    ) -> Behaviour:
        """Learns tables and weights from training rows; validation only chooses between line and small network.

        Args:
            held_out: validation prompts.
            pool: where hard negatives come from, as in the text's own samples.
        """
        features = BehaviourFeatures.learn(split, spec, like_threshold(split.dataset, run), ctx)
        # Features cost little, so ratings need not share a history here; neighbours in time say less than strangers.
        changes = {"max_samples": spec.max_samples, "ratings_per_history": 1}
        more = run.model_copy(update={"training": run.training.model_copy(update=changes)})
        lists = training_lists(split, more, ctx.seed, pool)
        known = features.of_training(lists.queries, lists.users, lists.list_of, lists.items)
        mean = known.mean(axis=0, dtype=np.float64)
        std = known.std(axis=0, dtype=np.float64)
        # A feature that never changes says nothing, also where it does change later.
        scale = np.where(std > 1e-6, std, np.inf)
        found = cls(spec, features, {}, mean.astype(np.float32), scale.astype(np.float32))
        train = (found._standard(known), _labels(lists))
        valid = (found._standard(features.of(held_out.queries, held_out.list_of, held_out.items)), _labels(held_out))
        for task in lists.labels:
            found._scorers[task] = _best_scorer(task, train, valid, spec, ctx)
        found.text_weight = dict.fromkeys(lists.labels, 1.0)
        return found

    def of_training(self, lists: SampleLists) -> dict[str, FloatArray]:
        """Outputs for training prompts, each from tables of other users: task -> float32 [n_prompts]."""
        return self._outputs(self.features.of_training(lists.queries, lists.users, lists.list_of, lists.items))

    def of_lists(self, lists: SampleLists) -> dict[str, FloatArray]:
        """Outputs for prompts that are no training rows: task -> float32 [n_prompts]."""
        return self._outputs(self.features.of(lists.queries, lists.list_of, lists.items))

    def scores(self, queries: Sequence[Query], list_of: IntArray, items: IntArray, task: str) -> FloatArray:
        """Outputs of one task, float32 [n_prompts]; arguments as :meth:`BehaviourFeatures.of`."""
        return self._output(self._standard(self.features.of(queries, list_of, items)), task)

    def parts(self, query: Query, item_idx: int, task: str) -> list[tuple[str, float]]:
        """(feature in words, its share of this output), strongest first; the last is "what everybody gets".

        Integrated gradients from the mean prompt (Sundararajan et al., ICML 2017): exact shares of a line, and for the
        small network shares that sum to its output as well.
        """
        one = np.zeros(1, np.int64)
        point = self._standard(self.features.of([query], one, np.array([item_idx], np.int64)))
        scorer = self._scorers[task]
        steps = (torch.arange(64) + 0.5) / 64
        path = (steps[:, None] * point).requires_grad_(True)
        (gradient,) = torch.autograd.grad(scorer(path).sum(), path)
        with torch.no_grad():
            base = float(scorer(torch.zeros_like(point))[0])
            whole = float(scorer(point)[0])
            shares = (gradient.mean(dim=0) * point[0]).numpy().astype(np.float64)
        named = sorted(zip(FEATURES.values(), shares.tolist(), strict=True), key=lambda pair: -abs(pair[1]))
        # The path is walked in steps: what that leaves over goes to the constant part.
        return [*named, ("what everybody gets", base + (whole - base - float(shares.sum())))]

    def choose_text_weight(
        self, lists: SampleLists, text: Mapping[str, FloatArray], behaviour: Mapping[str, FloatArray], ctx: FitContext
    ) -> None:
        """Sets the weight with the smallest validation loss for each task, and says what was tried."""
        labels = _labels(lists)
        for task, output in text.items():
            losses = {}
            for weight in TEXT_WEIGHTS:
                joined = torch.from_numpy(behaviour[task] + np.float32(weight) * output)
                losses[weight] = float(weighted_loss({task: joined}, labels, {task: 1.0}))
            best = min(TEXT_WEIGHTS, key=lambda weight: (losses[weight], weight))
            self.text_weight[task] = best
            tried = ", ".join(f"{weight:g}: {loss:.4f}" for weight, loss in losses.items())
            ctx.emit(
                "log",
                level="info",
                message=f"{task}: weight of the text {best:g} beside behaviour (0: behaviour alone); "
                f"validation loss by weight: {tried}",
            )

    def join(self, text: FloatArray, behaviour: FloatArray, task: str) -> FloatArray:
        """The joined output; any shape."""
        return (behaviour + np.float32(self.text_weight[task]) * text).astype(np.float32)

    def _standard(self, features: FloatArray) -> Tensor:
        # Far outside what was seen a line would run away.
        return torch.from_numpy(np.clip((features - self._mean) / self._std, -5.0, 5.0))

    def _outputs(self, features: FloatArray) -> dict[str, FloatArray]:
        standard = self._standard(features)
        return {task: self._output(standard, task) for task in self._scorers}

    @torch.inference_mode()
    def _output(self, standard: Tensor, task: str) -> FloatArray:
        return self._scorers[task](standard).numpy().astype(np.float32)

    # -- disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes into an existing folder."""
        arrays: dict[str, npt.NDArray[Any]] = {f"table.{k}": v for k, v in self.features.arrays().items()}
        arrays |= {"mean": self._mean, "std": self._std}
        for task, scorer in self._scorers.items():
            arrays |= {f"{task}.{name}": tensor.numpy() for name, tensor in scorer.state_dict().items()}
            arrays[f"{task}.text_weight"] = np.array([self.text_weight[task]], np.float64)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _FILE)
        (folder / _CO_VISITS).mkdir()
        self.features.co_visits.save(folder / _CO_VISITS)

    @classmethod
    def load(
        cls, folder: Path, spec: BehaviourSpec, tasks: Sequence[str], dataset: Dataset, ctx: FitContext
    ) -> Behaviour:
        """Raises: ModelError: parts are missing, damaged, or do not fit."""
        co_visits = ItemKNNRecommender.load(folder / _CO_VISITS, dataset, ctx)
        try:
            arrays = load_file(folder / _FILE)
            tables = {k.removeprefix("table."): v for k, v in arrays.items() if k.startswith("table.")}
            features = BehaviourFeatures.restore(spec, dataset, tables, co_visits)
            scorers = {}
            for task in tasks:
                scorer = _Scorer(len(FEATURES), len(arrays.get(f"{task}.hidden.bias", ())), 0)
                scorer.load_state_dict(
                    {name: torch.from_numpy(arrays[f"{task}.{name}"].copy()) for name in scorer.state_dict()}
                )
                scorers[task] = scorer.requires_grad_(False)
            mean, std = arrays["mean"], arrays["std"]
            weights = {task: float(arrays[f"{task}.text_weight"][0]) for task in tasks}
            sound = mean.shape == std.shape == (len(FEATURES),) and bool(np.isfinite([*weights.values()]).all())
        except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError):
            sound = False
        except Exception as error:  # safetensors has an error class of its own, derived from nothing else
            raise ModelError(f"behaviour cannot be read: {error}.", where=str(folder / _FILE), fix=FIX) from None
        if not sound:
            raise ModelError("its behaviour arrays do not fit.", where=str(folder / _FILE), fix=FIX)
        loaded = cls(spec, features, scorers, mean, std)
        loaded.text_weight = weights
        return loaded


def _labels(lists: SampleLists) -> Labels:
    labels = {task: torch.from_numpy(values) for task, values in lists.labels.items()}
    return Labels(labels, torch.from_numpy(lists.list_of), len(lists.queries))


def _best_scorer(
    task: str, train: tuple[Tensor, Labels], valid: tuple[Tensor, Labels], spec: BehaviourSpec, ctx: FitContext
) -> _Scorer:
    n_features = train[0].shape[1]
    tried = {"linear": 0, "mlp": _HIDDEN}
    if spec.model != "auto":
        tried = {spec.model: tried[spec.model]}
    elif train[1].counts()[task] < _MLP_FROM:
        tried.pop("mlp")
    losses, found = {}, {}
    for kind, hidden in tried.items():
        for ridge in _RIDGES:
            scorer = _Scorer(n_features, hidden, ctx.seed)
            _descend(scorer, task, *train, ridge)
            name = f"{kind} (ridge {ridge:g})"
            with torch.no_grad():
                losses[name] = float(weighted_loss({task: scorer(valid[0])}, valid[1], {task: 1.0}))
            found[name] = scorer.requires_grad_(False)
    best = min(losses, key=lambda name: losses[name])
    ctx.emit(
        "log",
        level="info",
        message=f"{task}: behaviour is {best}; validation loss "
        + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()),
    )
    return found[best]


def _descend(scorer: _Scorer, task: str, features: Tensor, labels: Labels, ridge: float) -> None:
    """Minimises the task's loss on all prompts at once with a ridge on the weights (L-BFGS: smooth and small).

    The sum of both offsets is good without anything learned and has no ridge: few prompts are drawn to it.
    """
    free = list(FEATURES).index("expected_rating")
    drawn = torch.ones(features.shape[1])
    drawn[free] = 0.0
    hidden = [p for name, p in scorer.named_parameters() if name.endswith("weight") and not name.startswith("linear")]
    counts = labels.counts()
    optimizer = torch.optim.LBFGS(scorer.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe")
    strength = ridge / max(1, counts[task])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weighted_loss({task: scorer(features)}, labels, {task: 1.0}, counts)
        penalties = [(drawn * scorer.linear.weight**2).sum(), *((weight**2).sum() for weight in hidden)]
        loss = loss + strength * torch.stack(penalties).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
