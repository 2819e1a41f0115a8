"""What an evaluation found: reports per model, paired comparisons, and the verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from llmrec_core.errors import InputError
from llmrec_core.evaluation.intervals import PairedDifference, Statistic, paired_on_draws
from llmrec_core.evaluation.metrics import Values
from llmrec_core.specs import LOWER_IS_BETTER, EvaluationSpec
from llmrec_core.specs.titles import METRIC_WORDS as METRIC_WORDS
from llmrec_core.specs.titles import SHORT_FAMILY_TITLES
from llmrec_core.specs.titles import metric_title as metric_title

if TYPE_CHECKING:
    from llmrec_core.evaluation.policy_cost import PolicyReport

#: Below this many users a percentile interval is too narrow to be believed, so no verdict is given in favour.
MIN_USERS = 10


@dataclass(frozen=True)
class MetricValue:
    """A metric with its bootstrap interval.

    ``n``: users it rests on. ``n_excluded``: users measured but without a value (for gauc: one class only).
    """

    mean: float
    ci_low: float
    ci_high: float
    n: int
    n_excluded: int

    def as_json(self) -> dict[str, float | int | None]:
        return {
            "mean": finite(self.mean),
            "ci_low": finite(self.ci_low),
            "ci_high": finite(self.ci_high),
            "n": self.n,
            "n_excluded": self.n_excluded,
        }


@dataclass(frozen=True)
class MetricReport:
    """One model's numbers.

    Attributes:
        metrics: name -> value. A metric that is not defined here (AUC with one class only, RMSE without a rating
            head) is left out.
        per_user: columns model, user_id, metric, value: one row for each value a user has.
        rankings: columns model, user_id, rank (from 1), item_id, score, hit.
    """

    metrics: dict[str, MetricValue]
    per_user: pd.DataFrame
    rankings: pd.DataFrame


@dataclass(frozen=True)
class Verdict:
    """Did ``model`` beat ``floor``, the best baseline on ``metric``? ``sentence`` says it for people.

    ``beats_floor`` is True only if the whole paired interval lies on the better side of zero. ``floor`` and
    ``difference`` (model minus floor) are None where there was nothing to compare with.
    """

    beats_floor: bool
    model: str
    metric: str
    floor: str | None
    difference: PairedDifference | None
    sentence: str


@dataclass(frozen=True)
class EvaluationResult:
    """Everything measured on one split with the same users for all models.

    ``statistics`` and ``resampled`` keep, for (model, metric), what paired comparisons need: the statistic and its
    value on each bootstrap draw; the draws are the same for all.
    """

    model_name: str
    models: dict[str, MetricReport]
    protocol: str
    spec: EvaluationSpec
    n_users: int
    statistics: Mapping[tuple[str, str], Statistic]
    resampled: Mapping[tuple[str, str], Values]
    #: Cost of the policies on the model's lists, and the lists with them; None where there were none.
    policies: PolicyReport | None = None
    with_policies: MetricReport | None = None

    @property
    def _measured(self) -> list[MetricReport]:
        return [*self.models.values(), *([] if self.with_policies is None else [self.with_policies])]

    @property
    def per_user(self) -> pd.DataFrame:
        """All models' per-user values, long; the lists with policies under a name of their own."""
        return pd.concat([report.per_user for report in self._measured], ignore_index=True)

    @property
    def rankings(self) -> pd.DataFrame:
        """All models' lists, long."""
        return pd.concat([report.rankings for report in self._measured], ignore_index=True)

    def compare(self, model: str, floor: str, metric: str) -> PairedDifference:
        """``model`` minus ``floor`` on the same users, with a paired bootstrap interval.

        Raises:
            InputError: a model or metric that was not measured.
        """
        for name in (model, floor):
            if name not in self.models:
                known = ", ".join(self.models)
                raise InputError(f"{name!r} was not measured here.", fix=f"Choose among {known}.")
            if metric not in self.models[name].metrics:
                known = ", ".join(self.models[name].metrics) or "none"
                raise InputError(f"{name} has no metric {metric!r} here.", fix=f"It has: {known}.")
        ours, theirs = (model, metric), (floor, metric)
        first, second = self.statistics[ours], self.statistics[theirs]
        draws = self.resampled[ours], self.resampled[theirs]
        return paired_on_draws(first, second, *draws, self.spec.confidence)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether ``model_name`` beat the best baseline on the primary metric."""
        metric, model = self.spec.primary_metric, self.model_name
        title = metric_title(metric)
        own = self.models[model].metrics.get(metric)
        if own is None:
            text = f"No verdict: {title} could not be measured for {self._subject} on this data."
            return Verdict(False, model, metric, None, None, text)
        sign = -1.0 if metric.partition("@")[0] in LOWER_IS_BETTER else 1.0
        floors = {
            name: report.metrics[metric].mean
            for name, report in self.models.items()
            if name != model and metric in report.metrics
        }
        if not floors:
            text = f"No verdict: no baseline gives {title}, so there is no floor to beat. The value is {own.mean:.4f}."
            return Verdict(False, model, metric, None, None, text)
        floor = max(floors, key=lambda name: sign * floors[name])
        difference = self.compare(model, floor, metric)
        ends = sorted((sign * difference.ci_low, sign * difference.ci_high))
        enough = difference.n >= MIN_USERS
        beats = enough and ends[0] > 0
        return Verdict(beats, model, metric, floor, difference, self._sentence(floor, difference, ends, enough))

    def _sentence(self, floor: str, difference: PairedDifference, ends: list[float], enough: bool) -> str:
        metric, model = self.spec.primary_metric, self._subject
        ours, theirs = (self.models[name].metrics[metric].mean for name in (self.model_name, floor))
        named = SHORT_FAMILY_TITLES.get(floor, floor)
        title, meaning = metric_title(metric), METRIC_WORDS[metric.partition("@")[0]][1]
        lower = metric.partition("@")[0] in LOWER_IS_BETTER
        numbers = (
            f"{title} ({meaning}{'; less is better' if lower else ''}) is {ours:.4f} against {theirs:.4f}; "
            f"difference {difference.mean:+.4f}, {100 * self.spec.confidence:g} % interval "
            f"{difference.ci_low:+.4f} to {difference.ci_high:+.4f} over the same {difference.n} users."
        )
        if not enough:
            return f"Too few users to tell whether {model} beats {named}, the best baseline: {numbers}"
        if ends[0] > 0:
            return f"{_upper(model)} beats {named}, the best baseline: {numbers}"
        if ends[1] < 0:
            return f"{_upper(model)} does worse than {named}, the best baseline, which is simpler: {numbers}"
        return f"{_upper(model)} did not beat {named}, the best baseline: the difference is within noise. {numbers}"

    @property
    def _subject(self) -> str:
        """The model in a sentence; a run calls its own "model"."""
        return "the model" if self.model_name == "model" else self.model_name

    def as_json(self) -> dict[str, Any]:
        """Plain data without NaN: protocol, metrics, baselines, beats_floor, verdict and what they rest on."""
        verdict = self.verdict
        reports = {
            name: {metric: value.as_json() for metric, value in report.metrics.items()}
            for name, report in self.models.items()
        }
        difference = verdict.difference
        return {
            "model": self.model_name,
            "protocol": self.protocol,
            "n_users": self.n_users,
            "metrics": reports.pop(self.model_name),
            "baselines": reports,
            "beats_floor": verdict.beats_floor,
            "primary_metric": verdict.metric,
            "floor": verdict.floor,
            "difference": None
            if difference is None
            else {
                "mean": finite(difference.mean),
                "ci_low": finite(difference.ci_low),
                "ci_high": finite(difference.ci_high),
                "n": difference.n,
            },
            "verdict": verdict.sentence,
            **({} if self.policies is None else {"policies": self.policies.as_json()}),
        }


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else text


def finite(value: float) -> float | None:
    """NaN and infinities as None, for JSON."""
    return float(value) if math.isfinite(value) else None
