"""How a finished run is made smaller or faster: one spec a method.

Every method makes a run of its own, which is measured as its parent was.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from llmrec_core.specs.base import Spec
from llmrec_core.specs.recommenders import TwoTowerSpec


class Int8Spec(Spec):
    method: Literal["int8"] = "int8"
    activations: Literal["int8", "float"] = Field(
        "int8",
        title="Numbers that flow through the layers",
        description="int8: rounded for each token too, several times faster where the processor has VNNI; float: as "
        "they are, the weights alone are rounded",
    )
    embeddings: bool = Field(
        True, title="Round the word table too", description="often half of a small model's weights, one scale a word"
    )


class Int4Spec(Spec):
    method: Literal["int4"] = "int4"
    group_size: int = Field(
        32, ge=8, le=4096, multiple_of=2, title="Weights that share a scale", description="fewer: closer, and larger"
    )
    embeddings: bool = Field(True, title="Round the word table too", description="the table of words in 8 bits")


class RecoveryFields(Spec):
    """The training after something was taken out: the smaller model learns from the larger one, and from the labels."""

    epochs: float = Field(
        1.0, ge=0, le=1000, title="Epochs of training", description="passes over the parent's training prompts"
    )
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="peak learning rate of AdamW")
    label_weight: float = Field(
        0.5, ge=0, title="Weight of the labels", description="of the parent's own objectives in the loss"
    )
    score_weight: float = Field(
        1.0, ge=0, title="Weight of the teacher's scores", description="of the squared distance to them in the loss"
    )
    hidden_weight: float = Field(
        0.5, ge=0, title="Weight of the teacher's states", description="of the distance to what its layers give"
    )


class PruneHeadsSpec(RecoveryFields):
    method: Literal["prune-heads"] = "prune-heads"
    share: float = Field(0.25, gt=0, lt=1, title="Share of heads taken out", description="of the whole model's heads")
    importance: Literal["gradient", "leave-one-out"] = Field(
        "gradient",
        description="how heads are judged on validation prompts. gradient: gradient times activation, all at once; "
        "leave-one-out: the loss without each, exact and slower",
    )
    n_prompts: int = Field(256, ge=8, description="validation prompts on which importance is measured")
    epochs: float = Field(0.5, ge=0, le=1000, title="Epochs of training", description="0: nothing is trained after it")


class PruneLayersSpec(RecoveryFields):
    method: Literal["prune-layers"] = "prune-layers"
    n_layers: int = Field(2, ge=1, title="Layers taken out", description="the ones whose loss on validation is least")
    n_prompts: int = Field(256, ge=8, description="validation prompts on which importance is measured")


class DistilSpec(RecoveryFields):
    method: Literal["distil"] = "distil"
    n_layers: int = Field(
        3, ge=1, title="Layers of the student", description="every k-th of the teacher's to begin with"
    )
    epochs: float = Field(2.0, ge=0, le=1000, title="Epochs of training", description="passes over the prompts")


class DistilTwoTowerSpec(Spec):
    method: Literal["distil-two-tower"] = "distil-two-tower"
    student: TwoTowerSpec = Field(default_factory=lambda: TwoTowerSpec(), description="the towers that learn")
    n_histories: int = Field(1500, ge=8, description="training histories that the teacher judges candidates of")
    n_candidates: int = Field(
        16, ge=2, le=1000, title="Candidates the teacher judges", description="after each of them"
    )
    epochs: int = Field(20, ge=1, le=1000, title="Epochs of training", description="passes over the judged histories")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="learning rate of AdamW")
    temperature: float = Field(1.0, gt=0, le=100, description="of the teacher's scores, standardised over each history")


class OnnxSpec(Spec):
    method: Literal["onnx"] = "onnx"
    int8: bool = Field(False, title="Weights in 8 bits", description="ONNX Runtime's own rounding of the linear layers")


CompressionSpec = Annotated[
    Int8Spec | Int4Spec | PruneHeadsSpec | PruneLayersSpec | DistilSpec | DistilTwoTowerSpec | OnnxSpec,
    Field(discriminator="method"),
]
#: Method -> its spec class.
COMPRESSIONS: dict[str, type[Spec]] = {
    part.model_fields["method"].default: part for part in get_args(get_args(CompressionSpec)[0])
}
#: Method -> (what it is called, when to use it).
COMPRESSION_WORDS = {
    "int8": ("8-bit weights", "First choice: a quarter of float32, half of bf16; nearly the same scores, no training."),
    "int4": ("4-bit weights", "Smallest on disk; a little less exact and no faster on a CPU."),
    "prune-heads": (
        "Fewer attention heads",
        "When attention costs most, as with long prompts; saves little on short ones. Trains briefly after.",
    ),
    "prune-layers": (
        "Fewer layers",
        "Faster in proportion to the layers left; trains after it. The word table stays: make the result 8-bit too.",
    ),
    "distil": (
        "Fewer layers, taught",
        "Fastest re-ranker: a student learns the tuned model's scores and states. Make the result 8-bit too.",
    ),
    "distil-two-tower": (
        "Two towers, taught",
        "For very large catalogues: all items ranked by a product of vectors.",
    ),
    "onnx": ("ONNX file", "To serve the same scores elsewhere, without Python or PyTorch; no faster here."),
}
