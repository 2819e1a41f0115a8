"""LoRA as one operation: what the frozen matrix gives and what the low-rank one adds, without a gradient for the first.

peft's own layer casts its inputs to float32, drops nothing out in a copy, and adds the two products in passes over the
whole output; on a CPU that costs as much as LoRA saves. Here the second product is added in place by the matrix product
itself, forwards and backwards, in the dtype of the inputs. Everything else (names of weights, merging, switching off)
stays peft's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor
from torch.autograd.function import once_differentiable


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer over ``nn.Linear`` or ``Conv1D`` with a forward and backward of its own.

    Where that would not compute the same (dropout before the adapter, autocast, merged, switched off), peft's is used.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.is_fused(x):
            return super().forward(x, *args, **kwargs)
        given: tuple[Any, ...] = (x.reshape(-1, x.shape[-1]), *self.factors())
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

    def factors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
        """Weight [out, in], bias, A [rank, in], B [out, rank], scale."""
        name, base = self.active_adapters[0], cast(Any, self.get_base_layer())
        weight = base.weight.T if self.fan_in_fan_out else base.weight
        down, up = cast(Any, self.lora_A[name]).weight, cast(Any, self.lora_B[name]).weight
        return weight, base.bias, down, up, self.scaling[name]


def side_by_side(layers: Sequence[FusedLoraLinear], x: Tensor) -> Tensor | None:
    """What layers with biases give that read the same ``x`` [n, in], each [n, out], side by side.

    None where they cannot go as one product: peft's way is used in one of them, or scales differ.
    """
    weights, biases, downs, ups, scales = zip(*(layer.factors() for layer in layers), strict=True)
    if len(set(scales)) > 1 or not all(layer.is_fused(x) for layer in layers):
        return None
    weight, bias = torch.cat(weights).detach(), torch.cat(biases).detach()
    found: Tensor = _LowRank.apply(x, weight, bias, torch.cat(downs), torch.block_diag(*ups), scales[0])
    return found


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(x W' + b + scale (x A') B', x A')."""
    inner = x @ down.to(x.dtype).T
    y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    y.addmm_(inner, up.to(x.dtype).T, alpha=scale)
    return y, inner


class _LowRank(torch.autograd.Function):
    """y = x W' + b + scale (x A') B' for x [n, in], W [out, in], A [rank, in], B [out, rank]; W and b are constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        y, inner = _product(x, weight, bias, down, up, scale)
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, down, up, inner = ctx.saved_tensors
        down, up = down.to(x.dtype), up.to(x.dtype)
        inner_grad = (grad @ up).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ weight
            to_x.addmm_(inner_grad, down)
        # Summed over tokens in the dtype of the products, kept in that of the adapters.
        # The few rows stand first in both: the other way round takes a third longer.
        to_down, to_up = (inner_grad.T @ x).float(), (inner.T @ grad).mul_(ctx.scale).T.float().contiguous()
        return to_x, None, None, to_down, to_up, None
