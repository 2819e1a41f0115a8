"""What a run is to do: frozen pydantic models, shared by the pages, the command line and Python.

Every field has a one-line ``description``; the expert form on the Fine-tune screen and ``--set`` are
generated from them. Unknown keys are errors. A spec is identified by the hash of its canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llmrec_core.errors import SpecError

Task = Literal["click", "rating", "rank"]
Part = Literal["train", "valid", "test"]

#: Metric names without their cut-off; those in RANKING_METRICS are always written ``name@k``.
RANKING_METRICS = ("ndcg", "hit_rate", "precision", "recall", "map", "mrr", "coverage", "novelty")
CLICK_METRICS = ("auc", "gauc")
RATING_METRICS = ("rmse", "mae")
#: Metrics for which a smaller value is better.
LOWER_IS_BETTER = frozenset(RATING_METRICS)


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DatasetRef(Spec):
    name: str = Field(description="name of an imported dataset", min_length=1, max_length=64)
    version: int | None = Field(None, ge=1, description="dataset version; empty means the newest at submission")


Protocol = Literal[
    "auto",
    "given",
    "leave-one-out",
    "temporal",
    "rolling-temporal",
    "random",
    "random-users",
    "cold-user",
    "cold-item",
    "group-stratified",
]


class SplitSpec(Spec):
    """How rows are cut. A field that the protocol does not use (the brackets say who uses it) is ignored."""

    protocol: Protocol = Field(
        "auto",
        description="auto: the data's own parts, kept whole, else leave-one-out; given: the data's own parts; "
        "leave-one-out: each user's last interaction; temporal: one cut in time; rolling-temporal: several cuts in "
        "time; random: rows; random-users: whole users; cold-user: users with k known interactions; cold-item: items "
        "withheld from training; group-stratified: rows, the same share of every group",
    )
    valid_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="share for validation, of rows (temporal, rolling-temporal, random, group-stratified), users "
        "(random-users, cold-user) or items (cold-item)",
    )
    test_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="share for the test, of rows (temporal, random; of each window in rolling-temporal), users "
        "(random-users, cold-user) or items (cold-item)",
    )
    n_folds: int = Field(
        5,
        ge=1,
        le=50,
        description="test windows in time (rolling-temporal), or parts that take turns as the test (group-stratified)",
    )
    fold: int = Field(
        1,
        ge=1,
        description="which fold is the test, from 1 (rolling-temporal: the earliest) to n_folds (rolling-temporal, "
        "group-stratified)",
    )
    train_window: Literal["expanding", "sliding"] = Field(
        "expanding",
        description="expanding: train on everything before; sliding: on as many rows as the first fold has, older "
        "ones are left out (rolling-temporal)",
    )
    known_interactions: int = Field(
        0, ge=0, le=1000, description="k: first interactions of a held-out user that are known when asked (cold-user)"
    )
    fold_in: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="share of a held-out user's interactions, the earliest ones, that is known when asked "
        "(random-users)",
    )
    rank_among: Literal["all", "withheld"] = Field(
        "all", description="rank withheld items among all items or among the withheld ones alone (cold-item)"
    )
    group_by: str = Field(
        "activity",
        max_length=200,
        description="groups of rows: activity (users by number of interactions), popularity (items by it), user:FIELD "
        "or item:FIELD (group-stratified)",
    )
    n_groups: int = Field(
        4,
        ge=2,
        le=100,
        description="equally large groups of users or items for activity and popularity (group-stratified)",
    )
    min_user_interactions: int = Field(0, ge=0, description="k-core: drop users with fewer interactions")
    min_item_interactions: int = Field(0, ge=0, description="k-core: drop items with fewer interactions")
    time_from: str | None = Field(
        None, max_length=40, description="leave out interactions before this ISO date or time (UTC unless it says so)"
    )
    time_to: str | None = Field(
        None, max_length=40, description="leave out interactions after this ISO date (the day itself stays) or time"
    )
    tie_order: Literal["file", "item_id"] = Field(
        "file", description="which of two interactions with the same time is the later one"
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the draw (random, random-users, cold-user, cold-item, group-stratified)",
    )

    @field_validator("time_from", "time_to", mode="before")
    @classmethod
    def _no_empty_time(cls, value: Any) -> Any:
        # YAML reads 2024-05-01 as a date; forms give "" for an empty field.
        if isinstance(value, date):
            return value.isoformat()
        return None if value == "" else value

    @model_validator(mode="after")
    def _possible(self) -> SplitSpec:
        low, high = self.seconds_from, self.seconds_to
        if low is not None and high is not None and low > high:
            raise ValueError(f"time_from: {self.time_from} lies after time_to, {self.time_to}")
        if self.protocol in ("rolling-temporal", "group-stratified") and self.fold > self.n_folds:
            raise ValueError(f"fold: there are {self.n_folds} folds, so there is no fold {self.fold}")
        if self.protocol == "rolling-temporal" and self.n_folds * self.test_fraction + self.valid_fraction >= 1:
            raise ValueError(
                f"n_folds: {self.n_folds} windows of {self.test_fraction:.0%} and {self.valid_fraction:.0%} for "
                "validation leave nothing to train on; use fewer or smaller windows"
            )
        if self.protocol == "group-stratified":
            if self.n_folds < 2 or 1 / self.n_folds + self.valid_fraction >= 1:
                raise ValueError("n_folds: with fewer folds nothing is left to train on; use 3 or more")
            kind, colon, name = self.group_by.partition(":")
            if self.group_by not in ("activity", "popularity") and not (kind in ("user", "item") and colon and name):
                raise ValueError("group_by: write activity, popularity, user:FIELD or item:FIELD")
        return self

    @property
    def seconds_from(self) -> float | None:
        """``time_from`` in seconds since 1970 UTC: rows at or after it stay."""
        return None if self.time_from is None else _seconds(self.time_from, "time_from")

    @property
    def seconds_to(self) -> float | None:
        """``time_to`` in seconds since 1970 UTC: rows at or before it stay; a date stands for its last moment."""
        if self.time_to is None:
            return None
        start = _seconds(self.time_to, "time_to")
        whole_day = len(self.time_to.strip()) <= len("2024-05-01") and "T" not in self.time_to
        return math.nextafter(start + 86_400.0, 0.0) if whole_day else start


def _seconds(text: str, field: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{field}: {text!r} is no ISO date or time; write 2024-05-01 or 2024-05-01T12:30") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class PromptSpec(Spec):
    template: str = Field("question", description="name of a starter or saved template")
    source: str | None = Field(
        None, max_length=20_000, description="Jinja2 text of the template; overrides the named template"
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns shown beside the title; empty means the category columns of the dataset"
    )
    profile_fields: tuple[str, ...] = Field((), description="user columns shown in the prompt")
    max_tokens: int = Field(128, ge=16, le=4096, description="token budget of one prompt; oldest history goes first")
    max_history: int = Field(8, ge=0, le=200, description="most recent interactions offered to the template")
    max_field_chars: int = Field(200, ge=8, le=5000, description="longer field values are clipped to this length")
    show_ratings: bool = Field(True, description="offer the history's ratings to the template")
    show_time: bool = Field(False, description="offer the history's times to the template")


class TuningSpec(Spec):
    method: Literal["full", "top-layers", "lora"] = Field(
        "full", description="full: all layers; top-layers: only the last ones; lora: low-rank adapters (peft)"
    )
    n_top_layers: int = Field(2, ge=1, description="layers trained by top-layers")
    freeze_embeddings: bool = Field(True, description="keep the word embeddings as they are (faster, rarely worse)")
    lora_rank: int = Field(8, ge=1, le=256, description="rank of the LoRA matrices")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA scale: updates are multiplied by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the LoRA matrices")


class ObjectiveSpec(Spec):
    task: Task = Field(
        description="click: binary cross-entropy; rating: squared error on ratings scaled to 0-1; "
        "rank: softmax over a candidate list"
    )
    weight: float = Field(1.0, gt=0, description="weight of this loss in the sum")


class TrainingSpec(Spec):
    max_samples: int | None = Field(8000, ge=1, description="training prompts drawn by seed; empty means all")
    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the training prompts")
    batch_size: int = Field(32, ge=1, description="prompts a step before accumulation")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches summed before one optimizer step")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="peak learning rate of AdamW")
    head_learning_rate: float = Field(1e-3, gt=0, lt=1, description="peak learning rate of the task heads")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW weight decay (not on biases and norms)")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of steps with a rising learning rate")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the encoder and before the heads")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    negatives_per_positive: int = Field(
        3, ge=0, le=100, description="unseen items drawn beside each interaction, labelled as not clicked"
    )
    hard_negatives: float = Field(
        0.34, ge=0, le=1, description="share of the negatives taken from the retriever's best items (two-stage only)"
    )
    rank_candidates: int = Field(8, ge=2, le=100, description="items a list holds in the rank objective")
    like_threshold: float | None = Field(
        None, description="ratings above it count as clicked; empty means the middle of the rating scale"
    )
    validation_metric: str = Field("auc", description="metric watched by early stopping")
    validation_every: int = Field(50, ge=1, description="optimizer steps between two validations")
    validation_samples: int = Field(512, ge=16, description="validation prompts used while training")
    early_stopping_patience: int = Field(4, ge=0, description="validations without gain before stopping; 0: never stop")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the processor has fast bf16 matrix units, else fp32"
    )
    bucket_by_length: bool = Field(True, description="batch prompts of similar length together, pad to the batch")


class PopularitySpec(Spec):
    family: Literal["popularity"] = "popularity"
    half_life_days: float | None = Field(
        None, gt=0, description="an interaction counts half after so many days before the last one; empty: all alike"
    )


class ItemKNNSpec(Spec):
    family: Literal["item-knn"] = "item-knn"
    window: int = Field(20, ge=1, description="two items of one user are co-visited if at most this many steps apart")
    step_decay: float = Field(0.9, gt=0, le=1, description="weight of a co-visit for each step apart")
    last_items: int = Field(20, ge=1, description="most recent history items that vote")
    recency_decay: float = Field(0.8, gt=0, le=1, description="weight of a vote for each step back in the history")
    shrink: float = Field(5.0, ge=0, description="added to the norms of the cosine: doubts rare co-visits")
    direction: Literal["forward", "both"] = Field(
        "forward", description="forward: only what came after an item speaks for it; both: what came before it too"
    )


class UserKNNSpec(Spec):
    family: Literal["user-knn"] = "user-knn"
    n_neighbours: int = Field(100, ge=1, description="most similar users that vote")
    last_items: int = Field(50, ge=1, description="most recent history items that are compared")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")
    shrink: float = Field(1.0, ge=0, description="added to the norms of the cosine: doubts short histories")


class EASESpec(Spec):
    family: Literal["ease"] = "ease"
    l2: float = Field(200.0, gt=0, description="ridge on the item-item weights")
    last_items: int = Field(200, ge=1, description="most recent history items that vote")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a vote for each step back; 1: published EASE")


class SVDSpec(Spec):
    family: Literal["svd"] = "svd"
    n_factors: int = Field(32, ge=1, le=2048, description="singular vectors kept")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class ALSSpec(Spec):
    family: Literal["als"] = "als"
    n_factors: int = Field(64, ge=1, le=2048, description="latent factors")
    l2: float = Field(0.05, gt=0, description="ridge on the factors")
    alpha: float = Field(10.0, gt=0, description="confidence in an interaction over a missing one: 1 + alpha")
    n_iterations: int = Field(15, ge=1, le=1000, description="passes over users and items")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class BPRSpec(Spec):
    family: Literal["bpr"] = "bpr"
    n_factors: int = Field(64, ge=1, le=2048, description="latent factors")
    learning_rate: float = Field(0.02, gt=0, lt=1, description="step of stochastic gradient descent")
    l2: float = Field(0.01, ge=0, description="ridge on the factors")
    n_iterations: int = Field(100, ge=1, le=10_000, description="passes over the interactions")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class BiasKNNSpec(Spec):
    family: Literal["bias-knn"] = "bias-knn"
    n_neighbours: int = Field(40, ge=1, description="rated history items nearest to the candidate that vote")
    damping: float = Field(5.0, ge=0, description="ratings that an offset of an item or user is outweighed by")
    shrink: float = Field(100.0, ge=0, description="raters in common that a correlation is outweighed by")


BaselineSpec = Annotated[
    PopularitySpec | ItemKNNSpec | UserKNNSpec | EASESpec | SVDSpec | ALSSpec | BPRSpec | BiasKNNSpec,
    Field(discriminator="family"),
]


class CrossEncoderSpec(Spec):
    family: Literal["cross-encoder"] = "cross-encoder"
    model: str = Field(
        "minilm", min_length=1, max_length=1024, description="catalogue name, local folder, or hub:owner/name"
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto", description="how token states become one vector; auto: mean for encoders, last for decoders"
    )
    share_history: bool = Field(
        True,
        description="read a history once for all its candidates (its words then do not look at the candidate); off: "
        "each prompt alone, several times slower",
    )
    tuning: TuningSpec = Field(default_factory=lambda: TuningSpec(), description="which weights are trained")


class SequentialSpec(Spec):
    family: Literal["sequential"] = "sequential"
    model: str | None = Field(
        "minilm", max_length=1024, description="language model that reads the item texts; empty: ids alone"
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns read beside the title; empty means the category columns of the dataset"
    )
    n_text: int = Field(128, ge=1, le=4096, description="whitened dimensions kept of the text vectors")
    width: int = Field(64, ge=8, le=2048, multiple_of=8, description="size of item vectors and states")
    n_layers: int = Field(2, ge=1, le=24, description="transformer layers")
    n_heads: int = Field(2, ge=1, le=64, description="attention heads; width must be a multiple")
    max_history: int = Field(50, ge=1, le=1000, description="most recent history items that are read")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of inputs and layers")
    id_bound: float = Field(1.0, ge=0, description="longest id delta; 0: items are their text alone")
    epochs: int = Field(60, ge=1, le=1000, description="most passes over the training histories")
    patience: int = Field(8, ge=0, description="epochs without gain on validation before stopping; 0: never stop")
    batch_size: int = Field(64, ge=1, description="histories a step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW weight decay")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all items")
    full_softmax_items: int = Field(
        50_000, ge=0, description="up to so many items the loss runs over all of them; above, over drawn ones (logQ)"
    )
    n_negatives: int = Field(2048, ge=1, description="items drawn a step for the sampled softmax")
    validation_users: int = Field(1000, ge=10, description="validation users whose ranking decides when to stop")

    @model_validator(mode="after")
    def _heads_fit(self) -> SequentialSpec:
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide a width of {self.width}")
        if self.model is None and self.id_bound == 0:
            raise ValueError("id_bound: without texts and without id deltas all items would be the same")
        return self


MemberSpec = Annotated[
    PopularitySpec | ItemKNNSpec | UserKNNSpec | EASESpec | SVDSpec | ALSSpec | BPRSpec | SequentialSpec,
    Field(discriminator="family"),
]


class BlendSpec(Spec):
    family: Literal["blend"] = "blend"
    members: tuple[MemberSpec, ...] = Field(
        default_factory=lambda: (ItemKNNSpec(direction="both"), EASESpec(), BPRSpec()),
        min_length=1,
        max_length=10,
        description="recommenders whose scores are added",
    )
    weights: tuple[float, ...] | None = Field(
        None, description="weight of each member; empty: chosen on validation users"
    )
    validation_users: int = Field(1000, ge=10, description="validation users on which the weights are chosen")

    @model_validator(mode="after")
    def _weights_fit(self) -> BlendSpec:
        if self.weights is not None:
            if len(self.weights) != len(self.members):
                raise ValueError(f"weights: {len(self.weights)} weights for {len(self.members)} members")
            if any(not 0 <= weight < float("inf") for weight in self.weights) or sum(self.weights) <= 0:
                raise ValueError("weights: each must be 0 or more, and one above 0")
        return self


RetrieverSpec = Annotated[
    PopularitySpec
    | ItemKNNSpec
    | UserKNNSpec
    | EASESpec
    | SVDSpec
    | ALSSpec
    | BPRSpec
    | BiasKNNSpec
    | SequentialSpec
    | BlendSpec,
    Field(discriminator="family"),
]


class PipelineSpec(Spec):
    family: Literal["pipeline"] = "pipeline"
    retriever: RetrieverSpec = Field(default_factory=lambda: ItemKNNSpec(), description="finds the candidates")
    ranker: CrossEncoderSpec = Field(default_factory=lambda: CrossEncoderSpec(), description="re-ranks them")
    n_candidates: int = Field(20, ge=2, le=1000, description="items retrieved for each query")
    model_weight: float | None = Field(
        None, ge=0, le=1, description="weight of the model in the fused score; empty: chosen on validation"
    )
    fusion_users: int = Field(200, ge=10, description="validation users on which the weight is chosen")


RecommenderSpec = Annotated[
    PopularitySpec
    | ItemKNNSpec
    | UserKNNSpec
    | EASESpec
    | SVDSpec
    | ALSSpec
    | BPRSpec
    | BiasKNNSpec
    | CrossEncoderSpec
    | SequentialSpec
    | BlendSpec
    | PipelineSpec,
    Field(discriminator="family"),
]


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


class RunSpec(Spec):
    """One run: train and evaluate a recommender, or evaluate a finished run again."""

    kind: Literal["train", "evaluate"] = Field("train", description="what the run does")
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
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of every draw in this run")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    parent_run: str | None = Field(None, description="run that this one resumes or evaluates")

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        tasks = [o.task for o in self.objectives]
        if len(set(tasks)) != len(tasks):
            raise ValueError("objectives: each task may stand there once")
        check_metric(self.training.validation_metric, None)
        if self.kind == "evaluate" and not self.parent_run:
            raise ValueError("parent_run: an evaluation needs the run it evaluates")
        return self

    def canonical_json(self) -> str:
        """Sorted, compact JSON: equal specs give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    def spec_hash(self) -> str:
        """SHA-256 (hex) of :meth:`canonical_json`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Compact JSON with sorted keys; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_metric(name: str, ks: tuple[int, ...] | None) -> None:
    """Accepts ``auc`` or ``ndcg@10``; with ``ks`` the cut-off must be one of them.

    Raises:
        ValueError: the name is unknown, or its cut-off is missing or not computed.
    """
    base, at, cut = name.partition("@")
    if base in CLICK_METRICS + RATING_METRICS and not at:
        return
    if base in RANKING_METRICS and cut.isdigit() and int(cut) >= 1:
        if ks is not None and int(cut) not in ks:
            raise ValueError(f"metric {name!r}: its cut-off is not in ks {list(ks)}")
        return
    known = [f"{m}@k" for m in RANKING_METRICS] + list(CLICK_METRICS + RATING_METRICS)
    raise ValueError(f"unknown metric {name!r}; known are {', '.join(known)}")


def parse_run_spec(raw: Any, *, where: str = "spec") -> RunSpec:
    """A checked :class:`RunSpec` from plain data (a YAML or JSON document, a form).

    Raises:
        SpecError: names every field that is wrong, and what was wrong with it.
    """
    if not isinstance(raw, dict):
        raise SpecError("a run spec must be a mapping of fields", where=where, fix="See `llmrec train --help`.")
    try:
        return RunSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(
            "; ".join(f"{path}: {message}" for path, message in spec_errors(error)) + ".",
            where=where,
            fix="Correct these fields and try again.",
        ) from None


#: Tags pydantic puts into the path of a discriminated union; a person never wrote them.
_UNION_TAGS = frozenset(
    {
        "popularity", "item-knn", "user-knn", "ease", "svd", "als", "bpr", "bias-knn", "cross-encoder", "sequential",
        "blend", "pipeline",
    }
)  # fmt: skip


def spec_errors(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted field path, message) for every fault, so that a form can show each at its field."""
    found = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if part not in _UNION_TAGS) or "(spec)"
        message = fault["msg"]
        if fault["type"] == "extra_forbidden":
            message = "unknown field"
        elif fault["type"] not in {"missing", "value_error"}:
            message = f"{message} (got {str(fault['input'])[:80]!r})"
        found.append((path, message.removeprefix("Value error, ")))
    return found
