"""Linear layers and embedding tables whose weights are whole numbers of 8 or 4 bits.

8 bits: one scale for each output (each row of an embedding table), symmetric: w = scale x q, q in -127..127. 4 bits:
one scale and one lowest value for each group of inputs: w = low + scale x q, q in 0..15, two numbers in a byte.

Activations stay as they are, or ("int8") each token's vector is rounded to 8 bits with a scale of its own, and whole
numbers are multiplied: on processors with VNNI several times faster. A token's result never depends on what else is in
the batch. Where there is no VNNI the same rounding is followed by a float product: the same scores, more slowly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activations = Literal["int8", "float"]

#: Numbers in the float32 block of tokens that are multiplied at once, so that it fits a processor's cache; but no fewer
#: tokens than so many, below which a call costs more than that is worth.
_BLOCK_CELLS, _LEAST_ROWS = 512 * 1536, 512


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [n, width] as int8 [n, width] and float32 scales [n, 1]; rows of zeros have scale 1."""
    # Row by row in memory: the kernel reads it as it lies.
    values = weight.detach().float().contiguous()
    top = values.abs().amax(1, keepdim=True)
    scale = torch.where(top > 0, top / 127.0, torch.ones_like(top))
    return torch.round(values / scale).clamp_(-127, 127).to(torch.int8), scale


def quantise_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` [n, width] in 4 bits, with float16 scales and lows [n, n_groups]; packed uint8 [n, width / 2].

    The width is filled up with the last column to whole groups. Each group's range is narrowed while that lowers its
    squared error: one far weight should not cost all the others their precision.
    """
    values = _grouped(weight.detach().float(), group_size)
    low, high = values.amin(-1), values.amax(-1)
    best = torch.full_like(low, torch.inf)
    chosen = (low, torch.ones_like(low), torch.zeros_like(values))
    middle, half = (low + high) / 2, (high - low) / 2
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        # Rounded to what is stored before the weights are: then storing costs nothing.
        scale = (2 * half * share / 15).half().float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        start = (middle - half * share).half().float()
        numbers = torch.round((values - start[..., None]) / scale[..., None]).clamp_(0, 15)
        error = ((numbers * scale[..., None] + start[..., None] - values) ** 2).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = (
            torch.where(better, start, chosen[0]),
            torch.where(better, scale, chosen[1]),
            torch.where(better[..., None], numbers, chosen[2]),
        )
    numbers = chosen[2].flatten(1).to(torch.uint8)
    return numbers[:, 0::2] | (numbers[:, 1::2] << 4), chosen[1].half(), chosen[0].half()


def unpack_groups(packed: Tensor, scale: Tensor, low: Tensor, width: int) -> Tensor:
    """The weights [n, width] of :func:`quantise_groups`, float32."""
    numbers = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float()
    grouped = numbers.view(len(packed), scale.shape[1], -1)
    return (grouped * scale.float()[..., None] + low.float()[..., None]).flatten(1)[:, :width]


def padded_width(width: int, group_size: int) -> int:
    """``width`` in whole groups."""
    return -(-width // group_size) * group_size


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    missing = padded_width(weight.shape[1], group_size) - weight.shape[1]
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
    return weight.unflatten(1, (-1, group_size))


class QuantisedEmbedding(nn.Module):
    """An embedding table in 8 bits, one scale a row; vectors come in ``dtype``."""

    packed: Tensor
    scale: Tensor

    def __init__(self, packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self._dtype = dtype

    @property
    def weight(self) -> Tensor:
        """The table in floats [n, width]."""
        return (self.packed.float() * self.scale).to(self._dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.packed[ids].float() * self.scale[ids]).to(self._dtype)


class Rounded:
    """The last input of layers that read the same one (queries, keys and values), rounded once for all of them.

    Args:
        rows: tokens in a block.
    """

    def __init__(self, rows: int = _LEAST_ROWS) -> None:
        self.rows = rows
        self._last: tuple[weakref.ref[Tensor], list[tuple[Tensor, Tensor]]] | None = None

    def blocks(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """:func:`_rounded` of [..., width], block by block."""
        last = self._last
        if last is not None and last[0]() is x:
            return last[1]
        parts = x.reshape(-1, x.shape[-1]).split(self.rows)
        found = [_rounded(part.to(torch.float32, copy=True)) for part in parts]
        # Without gradients nothing changes an input between two layers that read it; kept no longer than the input.
        self._last = (weakref.ref(x, self._forget), found)
        return found

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        if self._last is not None and self._last[0] is gone:
            self._last = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Rounded:
        # Copied layers share what is new to them all, and nothing with those they were copied from.
        memo[id(self)] = made = Rounded(self.rows)
        return made


def share_rounding(layers: Iterable[QuantisedLinear]) -> None:
    """Tells layers that read the same input."""
    told = list(layers)
    shared = Rounded(min(layer.rounded.rows for layer in told))
    for layer in told:
        layer.rounded = shared


class QuantisedLinear(nn.Module):
    """A linear layer over whole numbers; see the module.

    Args:
        packed: int8 [n_out, n_in], or uint8 [n_out, n_in / 2] in 4 bits.
        scale: [n_out, 1], or [n_out, n_groups].
        low: [n_out, n_groups] in 4 bits, else None.
        bias: [n_out] or None.
        n_in: inputs.
        activations: "int8" only with weights of 8 bits.
    """

    packed: Tensor
    scale: Tensor
    low: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        low: Tensor | None,
        bias: Tensor | None,
        n_in: int,
        activations: Activations = "float",
    ) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("low", low)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.in_features, self.out_features = n_in, len(packed)
        self.activations = activations
        self._kernel: Tensor | None = None
        self.rounded = Rounded(_block_rows(n_in, len(packed)))

    def __getstate__(self) -> dict[str, Any]:
        # The kernel's own form of the weights cannot be copied; a copy makes its own.
        return {**self.__dict__, "_kernel": None}

    @property
    def weight(self) -> Tensor:
        """The weights in floats, float32 [n_out, n_in]."""
        if self.low is None:
            return self.packed.float().mul_(self.scale)
        return unpack_groups(self.packed, self.scale, self.low, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "float":
            return functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return self._whole_numbers(x).view(*x.shape[:-1], self.out_features)

    def _whole_numbers(self, x: Tensor) -> Tensor:
        rows = self.rounded.rows
        blocks = Rounded(rows).blocks(x) if torch.is_grad_enabled() else self.rounded.blocks(x)
        weight = self._without_kernel(x)
        out = x.new_empty(x.numel() // self.in_features, self.out_features)
        for (numbers, scale), target in zip(blocks, out.split(rows), strict=True):
            target.copy_(self._answer(numbers, scale, weight))
        return out

    def _without_kernel(self, rows: Tensor) -> Tensor | None:
        """The weights in floats, where whole numbers cannot be multiplied."""
        fits = rows.device.type == "cpu" and not torch.is_grad_enabled() and whole_number_kernel()
        return None if fits else self.weight

    def _answer(self, numbers: Tensor, scale: Tensor, weight: Tensor | None) -> Tensor:
        """What the layer says of :func:`_rounded` inputs, float32 [n, n_out]."""
        found = self._multiply(numbers) if weight is None else functional.linear(numbers.float() - 128.0, weight)
        # In place: a second block of the same size would push this one out of the cache.
        return found.mul_(scale) if self.bias is None else torch.addcmul(self.bias, found, scale, out=found)

    def _multiply(self, numbers: Tensor) -> Tensor:
        """Weights times ``numbers`` (uint8, 128 is zero), float32 [n, n_out]."""
        if self._kernel is None:
            self._kernel = torch.ops.onednn.qlinear_prepack(self.packed, None)
        zeros = torch.zeros(self.out_features, dtype=torch.int32)
        scale = self.scale.view(-1)
        return torch.ops.onednn.qlinear_pointwise(
            numbers, 1.0, 128, self._kernel, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


def one_after_the_other(
    first: QuantisedLinear, second: QuantisedLinear, x: Tensor, between: Callable[[Tensor], Tensor]
) -> Tensor:
    """Two layers with 8-bit activations and what is done ``between`` them, without gradients: [..., n] -> [..., n_out].

    Block by block, so that what lies between them, often four times as wide, never leaves the cache; it stays in
    float32. ``between`` is given [n, width] and must not look from one row to another.
    """
    rows = _block_rows(first.in_features, first.out_features, second.out_features)
    weights = first._without_kernel(x), second._without_kernel(x)
    out = x.new_empty(x.numel() // first.in_features, second.out_features)
    for (numbers, scale), target in zip(Rounded(rows).blocks(x), out.split(rows), strict=True):
        inner = between(first._answer(numbers, scale, weights[0]))
        target.copy_(second._answer(*_rounded(inner), weights[1]))
    return out.view(*x.shape[:-1], second.out_features)


def _block_rows(*widths: int) -> int:
    """Tokens in a block of layers that are as wide."""
    return max(_LEAST_ROWS, _BLOCK_CELLS // max(widths))


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as uint8 around 128, and its scale float32 [n, 1]; ``rows``, float32, is used up."""
    top = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg()).clamp_min_(1e-20)
    # By way of signed numbers, which processors convert to several times as fast; flipping the first bit adds 128.
    numbers = rows.mul_(127.0 / top).round_().to(torch.int8)
    return numbers.view(torch.uint8).bitwise_xor_(128), top / 127.0


def whole_number_kernel() -> bool:
    """Whether this processor multiplies whole numbers of 8 bits without overflow (VNNI), and PyTorch offers it."""
    return bool(torch.cpu._is_vnni_supported()) and hasattr(torch.ops.onednn, "qlinear_pointwise")
