"""Constant matrices in bfloat16 laid out once for the products of a processor, instead of anew inside every one.

PyTorch's product has its library bring the weights into the order that its kernel reads, each time, and copies the bias
into the result before it adds the product. A matrix that is multiplied often and never changes is brought into that
order once here; the library then adds the bias, and applies GELU, to sums that still lie in registers. The operations
are those that PyTorch's compiler writes for frozen models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertIntermediate, BertLayer, BertOutput
from transformers.models.electra.modeling_electra import ElectraIntermediate, ElectraLayer, ElectraOutput

from llmrec_core.models.calling import called_instead
from llmrec_core.models.device import cpu_bf16_unit, keepable_memory
from llmrec_core.models.quantised import QuantisedLinear, one_after_the_other

Activation = Literal["none", "gelu"]

#: Tokens from which on laying a matrix out costs less than it saves.
LEAST_TOKENS = 2000
#: Parts of BERT's and ELECTRA's layers.
_LAYER, _INNER, _OUTPUT = (
    (BertLayer, ElectraLayer),
    (BertIntermediate, ElectraIntermediate),
    (BertOutput, ElectraOutput),
)
#: Rows for which a layout is chosen; it serves any number of them.
_ROWS = 1024


class LaidOut:
    """A linear layer whose weights do not change any more.

    Args:
        weight: bfloat16 [n_out, n_in]; see :func:`can_be_laid_out`.
        bias: [n_out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._plain = weight.detach()
        self._bias = None if bias is None else bias.detach().to(torch.bfloat16)
        self._forwards = _in_order(self._plain)
        self._backwards: Tensor | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """The layer's outputs [..., n_out] of bfloat16 [..., n_in]; "gelu" is the exact one, by the error function."""
        return _product(x, self._forwards, self._bias, activation)

    @torch.no_grad()
    def to_input(self, gradient: Tensor) -> Tensor:
        """``gradient`` times the weights: [n, n_out] -> [n, n_in]; the first call lays them out this way round too."""
        if self._backwards is None:
            self._backwards = _in_order(self._plain.T)
        return _product(gradient, self._backwards, None, "none")


def can_be_laid_out(weight: Tensor) -> bool:
    """Whether :class:`LaidOut` takes this matrix, and this processor multiplies it faster for that."""
    return _is_matrix(weight) and _offered()


@contextmanager
def laid_out(model: nn.Module, n_tokens: int) -> Iterator[None]:
    """Inside, the model reads without gradients as fast as its constant weights allow; they must not change meanwhile.

    Linear layers in bfloat16 are laid out when they are first called, and let go at the end: not where fewer than 2,000
    tokens are going to be read, nor where memory is short for a second copy of the weights. Layers of whole numbers
    that follow one another go block by block (``models.quantised``).
    """
    with ExitStack() as replaced:
        layers = {id(layer): _Replacement(layer) for layer in _layers(model, n_tokens)}
        for replacement in layers.values():
            replaced.enter_context(called_instead([replacement.layer], replacement))
        for part in model.modules():
            if type(part) in _LAYER:
                replaced.enter_context(_fed_forward(part, layers))
        yield


class _Replacement:
    """What a layer does while its weights are laid out."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._laid_out: LaidOut | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.ready()(x) if _takes(x) else functional.linear(x, self.layer.weight, self.layer.bias)

    def ready(self) -> LaidOut:
        if self._laid_out is None:
            self._laid_out = LaidOut(self.layer.weight, self.layer.bias)
        return self._laid_out


def _layers(model: nn.Module, n_tokens: int) -> list[nn.Linear]:
    """The layers that are worth it."""
    if n_tokens < LEAST_TOKENS:
        return []
    # What was replaced from elsewhere, or is watched by a hook, stays as it is; so do kinds of layers made from Linear.
    found = [
        part for part in model.modules() if type(part) is nn.Linear and _is_matrix(part.weight) and _is_plain(part)
    ]
    if not found or not _offered():
        return []
    size_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in found)
    return found if size_bytes <= keepable_memory(found[0].weight.device) else []


def _fed_forward(layer: Any, laid_out: dict[int, _Replacement]) -> AbstractContextManager[None]:
    """Inside, GELU of a layer of BERT's kind is part of the product before it, or whole numbers go by blocks."""
    inner, output = layer.intermediate, layer.output
    if type(inner) not in _INNER or type(output) not in _OUTPUT:
        return nullcontext()
    first, second, between = inner.dense, output.dense, inner.intermediate_act_fn
    if not all(_is_plain(part) for part in (inner, between) if isinstance(part, nn.Module)):
        return nullcontext()
    exact_gelu = type(between) is GELUActivation
    if id(first) in laid_out and exact_gelu:
        return called_instead([inner], partial(_with_gelu, inner, laid_out[id(first)]))
    whole_numbers = all(type(part) is QuantisedLinear and part.activations == "int8" for part in (first, second))
    # Hooks of the layer itself are run as before: transformers leaves some where attention was once asked for.
    replaced = "feed_forward_chunk" in vars(layer)
    if whole_numbers and not replaced and all(_is_plain(part) for part in (first, second, output)):
        # In place where that can be: a second block of this size would push the first out of the cache.
        in_block = torch.ops.aten.gelu_ if exact_gelu else between
        return called_instead([layer], partial(_by_blocks, layer, in_block), "feed_forward_chunk")
    return nullcontext()


def _with_gelu(inner: Any, dense: _Replacement, states: Tensor) -> Tensor:
    return dense.ready()(states, "gelu") if _takes(states) else inner.intermediate_act_fn(inner.dense(states))


def _by_blocks(layer: Any, between: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    inner, output = layer.intermediate, layer.output
    if torch.is_grad_enabled():
        found: Tensor = output(inner(states), states)
        return found
    read = one_after_the_other(inner.dense, output.dense, states, between)
    found = output.LayerNorm(output.dropout(read) + states)
    return found


def _is_plain(part: nn.Module) -> bool:
    """Whether nothing but what its class says is run when the module is called."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(part)


def _is_matrix(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.numel() > 0


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _offered() -> bool:
    """Whether the processor multiplies in bfloat16, and PyTorch has the operations."""
    there = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return there and torch.backends.mkldnn.is_available() and cpu_bf16_unit() is not None


def _in_order(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return found


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, activation, [], "none" if activation == "gelu" else ""
    )
    return found
