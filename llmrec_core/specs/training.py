"""Prompts, tuning and training: what the families that read text are trained with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmrec_core.specs.base import Spec, Task
from llmrec_core.specs.tricks import TrickFields


class PromptSpec(Spec):
    template: str = Field("question", description="name of a starter or saved template")
    source: str | None = Field(
        None, max_length=20_000, description="Jinja2 text of the template; overrides the named template"
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns shown beside the title; empty means the category columns of the dataset"
    )
    profile_fields: tuple[str, ...] = Field((), description="user columns shown in the prompt")
    max_tokens: int = Field(
        128,
        ge=16,
        le=4096,
        description="token budget of one prompt; oldest history goes first, and short candidates leave room for long "
        "ones, so that all are asked about behind one history",
    )
    max_history: int = Field(8, ge=0, le=200, description="most recent interactions offered to the template")
    max_field_chars: int = Field(200, ge=8, le=5000, description="longer field values are clipped to this length")
    show_ratings: bool = Field(True, description="offer the history's ratings to the template")
    show_time: bool = Field(False, description="offer the history's times to the template")


TuningMethod = Literal[
    "full", "top-layers", "lora", "adalora", "ia3", "prefix", "prompt", "bottleneck", "none"
]  # fmt: skip

#: Ways of tuning -> when to take them, in one line.
TUNING_METHODS: dict[TuningMethod, str] = {
    "full": "Trains all layers: best quality for small models such as MiniLM; keeps the whole model.",
    "top-layers": "Trains only the last layers: cheap steps where the task is near to what the model knows already.",
    "lora": "Trains a low-rank addition to every matrix: nearly the quality of full with a tenth of the memory; the "
    "first choice for models beyond a few hundred million weights.",
    "adalora": "LoRA that gives rank to the matrices that need it: for long trainings with a small budget of ranks.",
    "ia3": "Trains one factor for each key, value and feed-forward unit: the smallest file, for few training prompts.",
    "prefix": "Trains keys and values that stand before the text in every layer: when the model must stay as it is.",
    "prompt": "Trains a few words before the text that are no words: the fewest weights of all, for large models.",
    "bottleneck": "Trains a small network behind the parts of each layer: nearly as good as full; cannot be merged.",
    "none": "Trains nothing, zero-shot: the model answers as it came.",
}


class TuningSpec(Spec):
    method: TuningMethod = Field(
        "full",
        description="full: all layers; top-layers: only the last ones; lora, adalora: low-rank adapters, of fixed "
        "ranks or of ranks that are given where they are needed; ia3: learned factors; prefix, prompt: learned states "
        "before the text; bottleneck: small networks inside the layers; none: zero-shot, the model answers as it came",
    )
    n_top_layers: int = Field(2, ge=1, description="layers trained by top-layers")
    freeze_embeddings: bool = Field(True, description="keep the word embeddings as they are (faster, rarely worse)")
    lora_rank: int = Field(
        8,
        ge=1,
        le=256,
        description="rank of the LoRA matrices; adalora: mean rank at the end (it begins with half more)",
    )
    lora_alpha: float = Field(16.0, gt=0, description="LoRA scale: updates are multiplied by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the LoRA matrices")
    lora_targets: Literal["all", "attention"] = Field(
        "all",
        description="matrices that lora and adalora add to: all, or those of attention alone (faster, half the size)",
    )
    n_virtual_tokens: int = Field(
        16, ge=1, le=256, description="learned states before the text (prefix, prompt); they take no room from it"
    )
    bottleneck_width: int = Field(32, ge=1, le=1024, description="width of the small networks (bottleneck)")
    bottleneck_places: Literal["both", "feed-forward"] = Field(
        "both",
        description="where small networks stand: behind attention and feed-forward (Houlsby), or behind the "
        "feed-forward alone (Pfeiffer: half the cost)",
    )


class BehaviourSpec(Spec):
    model: Literal["auto", "linear", "mlp"] = Field(
        "auto",
        description="how the features become a score: linear, a small network, or whichever is better on validation",
    )
    max_history: int = Field(30, ge=1, le=200, description="most recent history items that the features look at")
    max_samples: int = Field(
        40_000, ge=16, description="training prompts from which the weights of the features are learned"
    )
    n_folds: int = Field(
        5, ge=2, le=50, description="groups of users: features of a training row come from the other groups alone"
    )
    damping: float = Field(5.0, gt=0, description="ratings that a mean of an item is outweighed by")
    shrink: float = Field(100.0, ge=0, description="raters in common that a covariance of two items is outweighed by")


class ObjectiveSpec(Spec):
    task: Task = Field(
        description="click: binary cross-entropy; rating: squared error on ratings scaled to 0-1; "
        "rank: softmax over a candidate list; similarity: how often the candidate comes with the history's items "
        "(teaches which texts go together, also where nobody has the item yet)"
    )
    weight: float = Field(1.0, gt=0, description="weight of this loss in the sum")


class TrainingSpec(TrickFields):
    max_samples: int | None = Field(8000, ge=1, description="training prompts drawn by seed; empty means all")
    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the training prompts")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="prompts a step before accumulation; empty means as suits the device: 48 where an encoder learns "
        "clicks alone and its products are in bf16, else 32",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches summed before one optimizer step")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        lt=1,
        description="peak learning rate of AdamW for the model's own weights; what LoRA adds to an "
        "encoder learns 5 times as fast, what ia3, prefix and prompt add 20 to 50 times",
    )
    head_learning_rate: float = Field(1e-3, gt=0, lt=1, description="peak learning rate of the task heads")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW weight decay (not on biases and norms)")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of steps with a rising learning rate")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the encoder and before the heads")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    negatives_per_positive: int = Field(
        3, ge=0, le=100, description="unseen items drawn beside each interaction, labelled as not clicked"
    )
    ratings_per_history: int = Field(
        4,
        ge=1,
        le=32,
        description="how many of a user's next ratings are asked beside one history, which is then read once for all "
        "(where ratings alone are learned)",
    )
    hard_negatives: float = Field(
        0.34, ge=0, le=1, description="share of the negatives taken from the retriever's best items (two-stage only)"
    )
    rank_candidates: int = Field(8, ge=2, le=100, description="items a list holds in the rank objective")
    balance: Literal["fixed", "uncertainty", "grad-norm"] = Field(
        "fixed",
        description="weights of several objectives: fixed; uncertainty: each loss over its learned noise; grad-norm: "
        "gradients of similar length",
    )
    balance_rate: float = Field(0.03, gt=0, le=1, description="step of the weights (uncertainty, grad-norm)")
    balance_alpha: float = Field(
        1.0, ge=0, le=5, description="how much faster tasks are pushed that have learned less (grad-norm)"
    )
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
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw",
        description="adamw-8bit keeps the optimizer's moments in 8 bits: for full tuning of models that hardly fit "
        "the device; each step is a little slower",
    )
    weights: Literal["masters", "stochastic"] = Field(
        "masters",
        title="How bf16 weights take small steps",
        description="how bf16 weights take small updates: masters keeps a float32 copy; stochastic rounds at random, "
        "right on average, with half the memory: for full tuning of large models in bf16",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute the inside of the layers twice instead of keeping it: same result, a third slower, far "
        "less memory; for long prompts or large models",
    )
    bucket_by_length: bool = Field(True, description="batch prompts of similar length together, pad to the batch")
