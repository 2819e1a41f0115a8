"""LoRA as one operation: what the frozen matrix gives and what the low-rank one adds, without a gradient for the first.

peft's own layer casts its inputs to float32, drops nothing out in a copy, and adds the two products in passes over the
whole output; on a CPU that costs as much as LoRA saves. Here the second product is added in place by the matrix product
itself, forwards and backwards, in the dtype of the inputs, and while such a model is trained its frozen matrices are
laid out once (see ``laid_out``). Everything else (names of weights, merging, switching off) stays peft's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmrec_core.models.device import keepable_memory
from llmrec_core.models.laid_out import LaidOut, can_be_laid_out


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer over ``nn.Linear`` or ``Conv1D`` with a forward and backward of its own.

    Where that would not compute the same (dropout before the adapter, autocast, merged, switched off), peft's is used.
    """

    #: While frozen matrices are laid out: those made so far, of this layer and of the ones beside it.
    _laid_out: dict[str, LaidOut] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.is_fused(x):
            return super().forward(x, *args, **kwargs)
        given: tuple[Any, ...] = (x.reshape(-1, x.shape[-1]), self.frozen(), *self.adapter())
        # Without gradients the products alone, which exporters can follow.
        found: Tensor = _LowRank.apply(*given) if torch.is_grad_enabled() else _product(*given)[0]
        return found.view(*x.shape[:-1], found.shape[-1])

    def is_fused(self, x: Tensor) -> bool:
        """Whether ``x`` would go through the one operation."""
        dropout = self.lora_dropout[self.active_adapters[0]]
        return not (
            self.disable_adapters
            or self.merged
            or (self.training and isinstance(dropout, torch.nn.Dropout))
            or torch.is_autocast_enabled(x.device.type)
        )

    def matrix(self) -> Tensor:
        """The frozen weight, [out, in]."""
        weight = cast(Tensor, self.get_base_layer().weight)
        return weight.T if self.fan_in_fan_out else weight

    def frozen(self, beside: Sequence[FusedLoraLinear] = ()) -> _Frozen:
        """The frozen product, with those of the layers ``beside`` this one behind it."""
        if self._laid_out is None:
            return _Plain(*_joint([self, *beside]))
        key = "beside" if beside else "own"
        if key not in self._laid_out:
            self._laid_out[key] = LaidOut(*_joint([self, *beside]))
        return self._laid_out[key]

    def adapter(self) -> tuple[Tensor, Tensor, float]:
        """A [rank, in], B [out, rank], scale."""
        name = self.active_adapters[0]
        down, up = cast(Any, self.lora_A[name]).weight, cast(Any, self.lora_B[name]).weight
        return down, up, self.scaling[name]


@contextmanager
def frozen_laid_out(model: nn.Module) -> Iterator[None]:
    """Inside, LoRA's frozen matrices are laid out, each when it is first multiplied; they must not change meanwhile.

    None of them is where memory is short for two more copies of them, or nothing is gained.
    """
    layers = [module for module in model.modules() if isinstance(module, FusedLoraLinear)]
    matrices = [layer.matrix() for layer in layers]
    n_bytes = 2 * sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    gained = bool(layers) and all(map(can_be_laid_out, matrices))
    if gained and n_bytes <= keepable_memory(matrices[0].device):
        for layer in layers:
            layer._laid_out = {}
    try:
        yield
    finally:
        for layer in layers:
            layer._laid_out = None


def side_by_side(layers: Sequence[FusedLoraLinear], x: Tensor) -> Tensor | None:
    """What layers with biases give that read the same ``x`` [n, in], each [n, out], side by side.

    None where they cannot go as one product: peft's way is used in one of them, or scales differ.
    """
    downs, ups, scales = zip(*(layer.adapter() for layer in layers), strict=True)
    if len(set(scales)) > 1 or not all(layer.is_fused(x) for layer in layers):
        return None
    frozen = layers[0].frozen(layers[1:])
    found: Tensor = _LowRank.apply(x, frozen, torch.cat(downs), torch.block_diag(*ups), scales[0])
    return found


class _Frozen(Protocol):
    """``x W' + b`` for constants."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def to_input(self, gradient: Tensor) -> Tensor: ...


class _Plain(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T if self.bias is None else torch.addmm(self.bias, x, self.weight.T)

    def to_input(self, gradient: Tensor) -> Tensor:
        return gradient @ self.weight


def _joint(layers: Sequence[FusedLoraLinear]) -> tuple[Tensor, Tensor | None]:
    """Frozen weights and biases of layers side by side."""
    weights = [layer.matrix().detach() for layer in layers]
    biases = [cast(Any, layer.get_base_layer()).bias for layer in layers]
    if len(layers) == 1:
        return weights[0], biases[0]
    return torch.cat(weights), torch.cat(biases).detach()


def _product(x: Tensor, frozen: _Frozen, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(x W' + b + scale (x A') B', x A')."""
    inner = x @ down.to(x.dtype).T
    return frozen(x).addmm_(inner, up.to(x.dtype).T, alpha=scale), inner


class _LowRank(torch.autograd.Function):
    """y = x W' + b + scale (x A') B' for x [n, in], A [rank, in], B [out, rank]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: _Frozen, down: Tensor, up: Tensor, scale: float) -> Tensor:
        y, inner = _product(x, frozen, down, up, scale)
        ctx.save_for_backward(x, down, up, inner)
        ctx.frozen, ctx.scale = frozen, scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, down, up, inner = ctx.saved_tensors
        down, up = down.to(x.dtype), up.to(x.dtype)
        inner_grad = (grad @ up).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = ctx.frozen.to_input(grad).addmm_(inner_grad, down)
        # Summed over tokens in the dtype of the products, kept in that of the adapters.
        # The few rows stand first in both: the other way round takes a third longer.
        to_down, to_up = (inner_grad.T @ x).float(), (inner.T @ grad).mul_(ctx.scale).T.float().contiguous()
        return to_x, None, to_down, to_up, None
