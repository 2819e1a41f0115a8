"""Bottleneck adapters: small two-layer networks behind the parts of each layer of a frozen model.

Behind attention and feed-forward (Houlsby et al., ICML 2019) or behind the feed-forward alone (Pfeiffer et al., EACL
2021); inside the residual connection, and beginning at no change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmrec_core.errors import SpecError


class Bottleneck(nn.Module):
    """``y + up(gelu(down(y)))`` behind a linear layer whose output is y; products run in the dtype of y.

    Attributes:
        down, up: float32 [width, n] and [n, width], with biases.
        enabled: False leaves the layer as it came.
    """

    def __init__(self, base_layer: nn.Module, n_features: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.enabled = True
        device = next(base_layer.parameters()).device
        bound = 1.0 / math.sqrt(n_features)
        drawn = torch.empty(width, n_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(drawn.to(device))
        self.down_bias = nn.Parameter(torch.zeros(width, device=device))
        self.up = nn.Parameter(torch.zeros(n_features, width, device=device))
        self.up_bias = nn.Parameter(torch.zeros(n_features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        if not self.enabled:
            return y
        kind = y.dtype
        inner = nn.functional.gelu(nn.functional.linear(y, self.down.to(kind), self.down_bias.to(kind)))
        return y + nn.functional.linear(inner, self.up.to(kind), self.up_bias.to(kind)).to(kind)


def add_bottlenecks(model: PreTrainedModel, layers: nn.ModuleList, width: int, seed: int, *, attention: bool) -> None:
    """Puts a bottleneck behind the feed-forward part of each layer, and behind its attention if asked for; in place.

    Raises:
        SpecError: a layer has parts that are not found.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        ends = [last_linear(layer)]
        if attention:
            ends.insert(0, last_linear(attention_of(layer)))
        for parent, child, linear in ends:
            n_features = linear.nf if isinstance(linear, Conv1D) else linear.out_features
            if n_features != model.config.hidden_size:
                raise SpecError(
                    f"the ends of {type(layer).__name__}'s parts were not found.",
                    where="tuning.method",
                    fix="Choose lora.",
                )
            setattr(parent, child, Bottleneck(linear, n_features, width, generator))


def attention_of(layer: nn.Module) -> nn.Module:
    """The self-attention of a layer.

    Raises:
        SpecError: it has another name than in all known architectures.
    """
    for name, child in layer.named_children():
        if "att" in name and last_linear_or_none(child) is not None:
            return child
    raise SpecError(
        f"the attention of {type(layer).__name__} was not found.", where="tuning.method", fix="Choose lora."
    )


def last_linear(part: nn.Module) -> tuple[nn.Module, str, nn.Linear | Conv1D]:
    """(parent, name in it, layer) of the last linear layer of a part: the one that writes into the residual stream.

    Raises:
        SpecError: there is none.
    """
    found = last_linear_or_none(part)
    if found is None:
        raise SpecError(f"{type(part).__name__} has no linear layer.", where="tuning.method", fix="Choose full.")
    return found


def last_linear_or_none(part: nn.Module) -> tuple[nn.Module, str, nn.Linear | Conv1D] | None:
    """:func:`last_linear`, or None."""
    names = [(name, module) for name, module in part.named_modules() if isinstance(module, nn.Linear | Conv1D) and name]
    if not names:
        return None
    path, module = names[-1]
    parent, _, child = path.rpartition(".")
    return part.get_submodule(parent), child, module
