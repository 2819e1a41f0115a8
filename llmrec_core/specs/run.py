"""One run: data, split, recommender, training and evaluation together, and how a document becomes one."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from llmrec_core.errors import SpecError
from llmrec_core.specs.base import Spec, canonical_json, check_metric
from llmrec_core.specs.compression import COMPRESSIONS, CompressionSpec
from llmrec_core.specs.continuing import check_start
from llmrec_core.specs.policies import POLICIES, PolicySpec, check_policies
from llmrec_core.specs.recommenders import (
    FAMILIES,
    BaselineSpec,
    ItemKNNSpec,
    ListwiseSpec,
    PipelineSpec,
    PopularitySpec,
    RecommenderSpec,
)
from llmrec_core.specs.split import SplitSpec
from llmrec_core.specs.training import ObjectiveSpec, PromptSpec, TrainingSpec
from llmrec_core.specs.unread import STORED, check_effects

#: Names of policies and methods, which stand in the paths of their faults.
_TAGS = frozenset(POLICIES) | frozenset(COMPRESSIONS)


class DatasetRef(Spec):
    name: str = Field(description="name of an imported dataset", min_length=1, max_length=64)
    version: int | None = Field(None, ge=1, description="dataset version; empty means the newest at submission")


class EvaluationSpec(Spec):
    ks: tuple[int, ...] = Field((10,), min_length=1, description="cut-offs of the ranking metrics")
    primary_metric: str = Field("ndcg@10", description="the metric that decides whether the floor is beaten")
    max_users: int | None = Field(400, ge=1, description="test users drawn by seed; empty means all")
    click_negatives: int = Field(
        4, ge=0, le=100, description="unseen items drawn beside each held-out interaction for AUC"
    )
    n_bootstrap: int = Field(1000, ge=100, le=100_000, description="bootstrap resamples over users")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    min_group_users: int = Field(5, ge=1, le=1000, description="groups with fewer users are shown without values")

    @model_validator(mode="after")
    def _known_metric(self) -> EvaluationSpec:
        if any(k < 1 for k in self.ks):
            raise ValueError("ks: every cut-off must be at least 1")
        check_metric(self.primary_metric, self.ks)
        return self


class ContinualSpec(Spec):
    replay: float = Field(
        0.3,
        ge=0,
        lt=1,
        title="Share of old interactions",
        description="share of the interactions to learn from (prompts, or rows of histories to predict) that is drawn "
        "from what the first run learned, so that it is not forgotten; the others are new; try .2 to .5; 0: new ones "
        "alone",
    )


class RunSpec(Spec):
    """One run: train and evaluate a recommender, evaluate a finished run again, or compress one."""

    kind: Literal["train", "evaluate", "compress"] = Field("train", description="what the run does")
    name: str = Field("", max_length=120, description="a label for people")
    preset: str | None = Field(None, description="preset this spec came from; for the record")
    dataset: DatasetRef = Field(description="data to use")
    split: SplitSpec = Field(default_factory=lambda: SplitSpec(), description="how rows are cut")
    recommender: RecommenderSpec = Field(default_factory=lambda: PipelineSpec(), description="what is fitted")
    prompt: PromptSpec = Field(default_factory=lambda: PromptSpec(), description="how a query becomes text")
    objectives: tuple[ObjectiveSpec, ...] = Field(
        (ObjectiveSpec(task="click"),), min_length=1, description="losses trained together"
    )
    training: TrainingSpec = Field(default_factory=lambda: TrainingSpec(), description="how it is trained")
    evaluation: EvaluationSpec = Field(default_factory=lambda: EvaluationSpec(), description="how it is measured")
    baselines: tuple[BaselineSpec, ...] = Field(
        (PopularitySpec(), ItemKNNSpec()), description="floors fitted and measured in the same run"
    )
    policies: tuple[PolicySpec, ...] = Field(
        (), max_length=20, description="what is done to the finished ranking: diversity, novelty, caps, blocklists"
    )
    policy_depth: int = Field(100, ge=1, le=10_000, description="best items of each user that policies choose from")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of every draw in this run")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    parent_run: str | None = Field(None, description="run that this one resumes, evaluates or compresses")
    compression: CompressionSpec | None = Field(None, description="how the parent run was made smaller or faster")
    continue_from: str | None = Field(
        None,
        max_length=120,
        description="finished run on the same data and split whose trained weights this training starts from: a second "
        "stage, for example on one of its objectives",
    )
    continual: ContinualSpec | None = Field(
        None,
        description="with continue_from: goes on with newer data, what came since mixed with what was learned, and "
        "tells what is known and forgotten afterwards; empty: a second stage on the same data",
    )

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> RunSpec:
        tasks: list[str] = [o.task for o in self.objectives]
        if len(set(tasks)) != len(tasks):
            raise ValueError("objectives: each task may stand there once")
        check_policies(self.policies)
        check_metric(self.training.validation_metric, None)
        if isinstance(self.recommender, PipelineSpec) and isinstance(self.recommender.ranker, ListwiseSpec):
            _check_listwise(self.recommender.ranker, tasks, self.training)
        if self.kind == "train" and info.context != STORED:
            check_effects(self.recommender, tasks, self.training, newer=self.continual is not None)
        if self.kind == "evaluate" and not self.parent_run:
            raise ValueError("parent_run: an evaluation needs the run it evaluates")
        if self.kind == "compress" and (self.compression is None or not self.parent_run):
            raise ValueError("compression: it needs a method, and in parent_run the run that it makes smaller")
        if self.continual is not None and self.continue_from is None:
            raise ValueError("continual: name the run to go on from (continue_from)")
        if self.continue_from is not None:
            check_start(self.recommender, newer=self.continual is not None)
        return self

    def canonical_json(self) -> str:
        """Sorted, compact JSON: equal specs give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    def spec_hash(self) -> str:
        """SHA-256 (hex) of :meth:`canonical_json`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def _check_listwise(ranker: ListwiseSpec, tasks: list[str], training: TrainingSpec) -> None:
    if tasks != ["rank"]:
        raise ValueError("objectives: a listwise ranker chooses one of a list; it learns to rank and nothing else")
    if training.rank_candidates > ranker.window:
        raise ValueError(
            f"training.rank_candidates: lists of {training.rank_candidates} do not fit a window of {ranker.window}"
        )


def parse_run_spec(raw: Any, *, where: str = "spec", stored: bool = False) -> RunSpec:
    """A checked :class:`RunSpec` from plain data (a YAML or JSON document, a form).

    Args:
        stored: it is that of a run which was submitted already; fields without effect stay as they are.

    Raises:
        SpecError: names every field that is wrong, and what was wrong with it.
    """
    if not isinstance(raw, dict):
        raise SpecError("a run spec must be a mapping of fields", where=where, fix="See `llmrec train --help`.")
    try:
        return RunSpec.model_validate(raw, context=STORED if stored else None)
    except ValidationError as error:
        raise SpecError(
            "; ".join(": ".join(filter(None, fault)) for fault in spec_errors(error)) + ".",
            where=where,
            fix="Correct these fields and try again.",
        ) from None


def spec_errors(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted field path, message) for every fault; the path is "" where no single field is at fault."""
    found = []
    # Pydantic puts the tags of discriminated unions into the path; a person never wrote them.
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if part not in FAMILIES and part not in _TAGS)
        message = fault["msg"]
        if fault["type"] == "extra_forbidden":
            message = "unknown field"
        elif fault["type"] not in {"missing", "value_error"}:
            message = f"{message} (got {str(fault['input'])[:80]!r})"
        found.append((path, message.removeprefix("Value error, ")))
    return found
