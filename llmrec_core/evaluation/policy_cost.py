"""What policies cost and what they gain: the same ranking with and without them, on the same users and draws.

After each policy of a chain the lists are measured anew, so that each has a price of its own; the last ones are the
lists that people would see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_core.evaluation.intervals import PairedDifference, Statistic, paired_on_draws
from llmrec_core.evaluation.metrics import Values
from llmrec_core.evaluation.report import METRIC_WORDS, MetricValue, finite, metric_title
from llmrec_core.specs import EvaluationSpec

if TYPE_CHECKING:
    from llmrec_core.policies import Applied, PolicyChain

#: Name of the lists after the whole chain in tables of users and rankings.
WITH_POLICIES = "with policies"
#: What policies are for; the sentence names those that were measured.
_GAINS = ("novelty", "diversity", "miscalibration", "gini", "coverage")

Statistics = Mapping[tuple[str, str], Statistic]
Resampled = Mapping[tuple[str, str], Values]


@dataclass(frozen=True)
class PolicyStep:
    """One policy of the chain: ``policy`` its settings, ``metrics`` of the lists after it, ``cost``: these minus the
    lists just before it, paired."""

    policy: dict[str, Any]
    metrics: dict[str, MetricValue]
    cost: dict[str, PairedDifference]


@dataclass(frozen=True)
class PolicyReport:
    """The cost of a chain of policies.

    Attributes:
        k: length of the lists. depth: best items of each user that policies chose from. n_lists: users.
        steps: one a policy, in the order in which they act.
        without: metrics of the recommender's own lists. total: last lists minus these, paired.
        removed: reason code -> places in the lists without policies that held a blocked item.
        n_short: lists that came out shorter than before, because rules left no more candidates.
        notes: how strengths were found, and what could not be done.
    """

    metric: str
    confidence: float
    k: int
    depth: int
    n_lists: int
    steps: tuple[PolicyStep, ...]
    without: dict[str, MetricValue]
    total: dict[str, PairedDifference]
    removed: dict[str, int]
    n_short: int
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The price and the gains in words."""
        end = self.steps[-1].metrics
        parts = []
        if self.metric in self.total:
            price, before, after = self.total[self.metric], self.without[self.metric].mean, end[self.metric].mean
            parts.append(
                f"With the policies {metric_title(self.metric)} is {after:.4f} instead of {before:.4f}"
                f"{_relative(before, after)}; difference {price.mean:+.4f}, {100 * self.confidence:g} % interval "
                f"{price.ci_low:+.4f} to {price.ci_high:+.4f} over the same {price.n} users"
            )
        gains = [f"{base}@{self.k}" for base in _GAINS if f"{base}@{self.k}" in self.total]
        words = [
            f"{METRIC_WORDS[name.partition('@')[0]][0]} {self.without[name].mean:.3f} to {end[name].mean:.3f}"
            + _relative(self.without[name].mean, end[name].mean)
            for name in gains
        ]
        if words:
            parts.append(f"The first {self.k} change so: {', '.join(words)}")
        if self.removed:
            parts.append("Taken out of lists: " + ", ".join(f"{n:,} {code}" for code, n in self.removed.items()))
        if self.n_short:
            parts.append(f"{self.n_short:,} lists are shorter than before: rules left too few of {self.depth} items")
        return "".join(f"{part}. " for part in parts).strip()

    def as_json(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return {
            "settings": [step.policy for step in self.steps],
            "k": self.k,
            "depth": self.depth,
            "n_lists": self.n_lists,
            "metrics": _values(self.steps[-1].metrics),
            "difference": _differences(self.total),
            "steps": [
                {"policy": step.policy, "metrics": _values(step.metrics), "cost": _differences(step.cost)}
                for step in self.steps
            ],
            "removed": self.removed,
            "n_short": self.n_short,
            "notes": list(self.notes),
            "sentence": self.sentence,
        }


def step_name(number: int, n_steps: int) -> str:
    """The key of the statistics after policy ``number`` (from 0) of a chain."""
    return WITH_POLICIES if number == n_steps - 1 else f"policy {number}"


def policy_report(
    model: str,
    chain: PolicyChain,
    applied: Applied,
    metrics: Mapping[str, Mapping[str, MetricValue]],
    statistics: Statistics,
    resampled: Resampled,
    spec: EvaluationSpec,
) -> PolicyReport:
    """From statistics and bootstrap draws under the names of :func:`step_name` beside those of ``model``."""
    names = [model, *(step_name(i, len(applied.stages)) for i in range(len(applied.stages)))]

    def minus(after: str, before: str) -> dict[str, PairedDifference]:
        shared = [metric for metric in metrics[after] if metric in metrics[before]]
        pairs = {m: ((after, m), (before, m)) for m in shared}
        return {
            m: paired_on_draws(statistics[a], statistics[b], resampled[a], resampled[b], spec.confidence)
            for m, (a, b) in pairs.items()
        }

    steps = tuple(
        PolicyStep(stage.policy.model_dump(mode="json"), dict(metrics[after]), minus(after, before))
        for stage, before, after in zip(applied.stages, names[:-1], names[1:], strict=True)
        if stage.policy is not None
    )
    k = max(spec.ks)
    listed = (applied.without.items >= 0).sum(axis=1)
    shown = applied.without.items[applied.without.items >= 0]
    measured = spec.primary_metric if spec.primary_metric in metrics[model] else f"ndcg@{k}"
    return PolicyReport(
        metric=measured if "@" in measured else f"ndcg@{k}",
        confidence=spec.confidence,
        k=k,
        depth=chain.depth,
        n_lists=len(listed),
        steps=steps,
        without={m: v for m, v in metrics[model].items() if m in metrics[names[-1]]},
        total=minus(names[-1], model),
        removed=dict(Counter(chain.blocked[int(i)][0] for i in shown if int(i) in chain.blocked)),
        n_short=int(((applied.final.items >= 0).sum(axis=1) < listed).sum()),
        notes=tuple(chain.notes),
    )


def _relative(before: float, after: float) -> str:
    return f" ({after / before - 1:+.1%})" if np.isfinite(before) and before > 0 else ""


def _values(metrics: Mapping[str, MetricValue]) -> dict[str, Any]:
    return {name: value.as_json() for name, value in metrics.items()}


def _differences(found: Mapping[str, PairedDifference]) -> dict[str, Any]:
    return {
        name: {key: value if key == "n" else finite(value) for key, value in asdict(difference).items()}
        for name, difference in found.items()
    }
