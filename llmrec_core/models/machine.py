"""What training and scoring choose on this machine, and what its measured speed allows: for ``doctor`` and Settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from llmrec_core.models.device import (
    BATCH_SIZE,
    BATCH_TOKENS,
    MatmulPeaks,
    keepable_memory,
    left_of_padding,
    matmul_peaks,
    resolve_batch_size,
    resolve_device,
    resolve_precision,
)


@dataclass(frozen=True)
class EncoderSize:
    """A transformer encoder as far as its operations go."""

    name: str
    n_layers: int
    hidden_size: int
    inner_size: int

    def flops(self, n_tokens: int) -> float:
        """Floating point operations to read one text: products alone, a multiplication and an addition counting two.

        A layer multiplies each token with 4 h^2 + 2 h f weights (query, key, value, output; feed-forward), and in
        attention with the h numbers of each of the n tokens, twice (scores, sum of values).
        """
        weights = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.inner_size
        return 2.0 * self.n_layers * n_tokens * (weights + 2 * n_tokens * self.hidden_size)


MINILM = EncoderSize("MiniLM", 6, 384, 1536)
#: Tokens of a prompt in the bound: a history of some five films and a candidate.
TOKENS = 96
#: Sizes of the square products whose best speed is the peak. Small ones are over on a card before it is busy; on
#: processors caches and threads decide, and which of two is faster differs.
_PRODUCTS = {"cpu": (1024, 2048), "cuda": (8192,), "mps": (4096,)}
#: A further size is left out where its products would take longer than this, as in bf16 that is emulated.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Choices:
    """What "auto" comes to on a device; ``precision`` of products, ``batch_size`` of training where a spec says nothing
    else, ``batch_tokens`` scored at once, what becomes of the ``frozen_layers`` where only top layers are trained."""

    device: str
    attention: str
    precision: str
    weights: str
    padding: str
    batch_size: str
    batch_tokens: int
    frozen_layers: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Allowed:
    """Upper bounds at a measured speed: products alone, at their best speed, and nothing else to do.

    ``training_samples_per_s`` counts three times the reading (itself, gradients by inputs, gradients by weights), with
    frozen embeddings; ``scoring_prompts_per_s`` a prompt read by itself.
    """

    precision: str
    gflops: float
    training_samples_per_s: float
    scoring_prompts_per_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        return (
            f"{self.gflops:,.0f} GFLOP/s in {self.precision} allow at most {self.training_samples_per_s:,.0f} "
            f"samples/s of {MINILM.name} fine-tuning and {self.scoring_prompts_per_s:,.0f} prompts/s of scoring, "
            f"{TOKENS} tokens each. Candidates that share a history cost only their own tokens."
        )


def choices(name: str = "auto") -> Choices:
    """What a run takes on the device that ``name`` resolves to.

    Raises:
        SpecError: as :func:`llmrec_core.models.device.resolve_device`.
    """
    device = resolve_device(name)
    precision = resolve_precision("auto", device)
    half = precision.dtype == torch.bfloat16
    fast = resolve_batch_size(None, precision.dtype, clicks=True)
    if device.type == "cpu":
        attention = "eager: PyTorch's fused attention is slow backwards on processors; training goes row by row"
        left = left_of_padding(precision.dtype)
        padding = f"training: {left} where the model takes a ready mask, else rows of like length"
    else:
        attention = "sdpa: fused attention, where the model has it"
        padding = "training: rows of like length, a history and its candidates in one"
    weights = "float32"
    if half:
        weights = "bf16, with float32 masters" if device.type == "cpu" else "float32, products in bf16"
    return Choices(
        device=str(device),
        attention=f"{attention}; scoring goes by blocks of candidates",
        precision=str(precision.dtype).removeprefix("torch."),
        weights=weights,
        padding=f"{padding}; scoring: none",
        batch_size=f"{fast} prompts a step for clicks on an encoder, else {BATCH_SIZE}, in parts "
        "that add up to it where memory is short",
        batch_tokens=BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]),
        frozen_layers=f"read once where prompts come again, {keepable_memory(device) / 1e6:,.0f} MB kept at most",
    )


def measured_peaks(name: str = "auto", seconds: float = 1.0) -> MatmulPeaks:
    """The best speed of products in fp32 and bf16 on the device that ``name`` resolves to, over sizes that fill it.

    Args:
        seconds: for each size, about.

    Raises:
        SpecError: as :func:`llmrec_core.models.device.resolve_device`.
    """
    device = resolve_device(name)
    best: MatmulPeaks | None = None
    for size in _PRODUCTS.get(device.type, _PRODUCTS["cpu"]):
        if best is not None and 2.0 * size**3 / 1e9 / min(best.fp32_gflops, best.bf16_gflops) > _PATIENCE_S:
            continue
        found = matmul_peaks(seconds, device, size)
        if best is not None:
            found = MatmulPeaks(
                max(found.fp32_gflops, best.fp32_gflops),
                max(found.bf16_gflops, best.bf16_gflops),
            )
        best = found
    assert best is not None
    return best


def allowed(peaks: MatmulPeaks) -> tuple[Allowed, Allowed]:
    """What the peaks allow, in fp32 and in bf16."""
    flops = MINILM.flops(TOKENS)
    measured = (("fp32", peaks.fp32_gflops), ("bf16", peaks.bf16_gflops))
    fp32, bf16 = (
        Allowed(name, gflops, round(gflops * 1e9 / (3 * flops), 1), round(gflops * 1e9 / flops, 1))
        for name, gflops in measured
    )
    return fp32, bf16
