"""Taking attention heads or whole layers out of a tuned model: the ones that validation prompts miss least.

The importance of a head is the sum over batches of |gradient x activation| at a gate of 1 behind it (Michel et al.,
"Are sixteen heads really better than one?", NeurIPS 2019), or the rise of the loss without it. Layers are taken out one
after the other, each time the one whose absence raises the loss least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.compression._wishes import asked_to_stop
from llmrec_core.compression.quantise import noted
from llmrec_core.contracts import FitContext
from llmrec_core.errors import InputError
from llmrec_core.models.compact import head_layout, projections, prune_heads, read_note
from llmrec_core.models.loading import Backbone
from llmrec_core.models.tuning import layer_stack
from llmrec_core.specs.compression import PruneHeadsSpec
from llmrec_core.training.batches import Batch
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import weighted_loss


def heads_of(backbone: Backbone) -> dict[int, tuple[int, ...]]:
    """Layer -> heads (of keys) that it still has.

    Raises:
        InputError: heads of this architecture cannot be taken out.
    """
    n_heads, _, _ = head_layout(backbone.model)
    note = read_note(backbone.facts.config)
    gone = {} if note is None else note.kept_heads
    return {layer: gone.get(layer, tuple(range(n_heads))) for layer in range(len(layer_stack(backbone.model)))}


def head_importance(
    network: PromptNetwork, batches: list[Batch], weights: Mapping[str, float], how: str, ctx: FitContext
) -> list[npt.NDArray[np.float64]]:
    """For each layer the importance of each head that it has, larger is more.

    Raises:
        RunCancelledError: ``ctx.should_stop()`` said "cancel". At "stop" gradients of the batches so far say it, the
            first at least; losses without a head are worked out for all heads.
    """
    backbone = network.backbone
    _, shared, width = head_layout(backbone.model)
    sizes = [len(heads) for heads in heads_of(backbone).values()]
    gates = [torch.ones(size, device=network.device, requires_grad=how == "gradient") for size in sizes]
    with _gated(backbone, gates, shared * width):
        if how == "gradient":
            sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
            for batch in batches:
                loss = _loss(network, batch, weights)
                for total, gradient in zip(sums, torch.autograd.grad(loss, gates), strict=True):
                    total += gradient.cpu().double().abs()
                if asked_to_stop(ctx):
                    break
            return [total.numpy() for total in sums]
        base = _mean_loss(network, batches, weights)
        found_all = []
        for layer, size in enumerate(sizes):
            found = np.empty(size)
            for head in range(size):
                asked_to_stop(ctx)
                gates[layer][head] = 0.0
                found[head] = _mean_loss(network, batches, weights) - base
                gates[layer][head] = 1.0
            found_all.append(found)
        return found_all


@contextmanager
def _gated(backbone: Backbone, gates: list[Tensor], size: int) -> Iterator[None]:
    """Multiplies what each head hands on by its gate."""

    def gate(layer: int) -> Callable[..., tuple[Tensor]]:
        return lambda module, inputs: (inputs[0] * gates[layer].repeat_interleave(size).to(inputs[0].dtype),)

    hooks = []
    for number, layer in enumerate(layer_stack(backbone.model)):
        output = layer.get_submodule(projections(layer)[3])
        hooks.append(output.register_forward_pre_hook(gate(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_heads(backbone: Backbone, importance: list[npt.NDArray[np.float64]], spec: PruneHeadsSpec) -> Backbone:
    """``backbone`` (changed in place) without the least important share of its heads; each layer keeps one."""
    had = heads_of(backbone)
    ranked = sorted(
        (value, layer, place) for layer, values in enumerate(importance) for place, value in enumerate(values.tolist())
    )
    wanted = round(spec.share * len(ranked))
    left = {layer: set(range(len(heads))) for layer, heads in had.items()}
    for _, layer, place in ranked:
        if wanted and len(left[layer]) > 1:
            left[layer].discard(place)
            wanted -= 1
    prune_heads(backbone.model, {layer: tuple(sorted(places)) for layer, places in left.items()})
    kept = {layer: tuple(had[layer][place] for place in sorted(places)) for layer, places in left.items()}
    return noted(backbone, kept_heads=kept)


def with_layers(backbone: Backbone, kept: list[int]) -> Backbone:
    """``backbone`` (changed in place) with these layers alone, in order.

    Raises:
        InputError: no layer would be left, or the layers are of different kinds.
    """
    model = backbone.model
    stack = layer_stack(model)
    if not kept or len(kept) > len(stack):
        raise InputError(f"{len(kept)} layers cannot be kept of {len(stack)}.", where="compression.n_layers")
    config = dict(backbone.facts.config)
    lists = [key for key, value in config.items() if isinstance(value, list) and len(value) == len(stack)]
    for key in lists:
        config[key] = [config[key][layer] for layer in kept]
    note = read_note(config)
    parent_name = next(name for name, module in model.named_modules() if module is stack)
    layers = nn.ModuleList(stack[layer] for layer in kept)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            # Decoders number their layers for the cache of keys and values.
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]
    owner, _, leaf = parent_name.rpartition(".")
    setattr(model.get_submodule(owner) if owner else model, leaf, layers)
    count = next(key for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config)
    config[count] = len(kept)
    model.config.num_hidden_layers = len(kept)
    for key in lists:
        setattr(model.config, key, config[key])
    child = replace(backbone, facts=replace(backbone.facts, config=config, n_layers=len(kept)))
    if note is None or not note.kept_heads:
        return child
    return noted(
        child, kept_heads={new: note.kept_heads[old] for new, old in enumerate(kept) if old in note.kept_heads}
    )


def least_missed_layers(
    network: PromptNetwork, n_gone: int, batches: list[Batch], weights: Mapping[str, float], ctx: FitContext
) -> list[int]:
    """The layers that are left when ``n_gone`` were taken out one by one, the least missed first.

    Raises:
        InputError: no layer would be left.
    """
    stack = layer_stack(network.encoder)
    if n_gone >= len(stack):
        raise InputError(
            f"{n_gone} layers cannot be taken out of {len(stack)}.",
            where="compression.n_layers",
            fix=f"Give at most {len(stack) - 1}.",
        )
    gone: list[int] = []
    for _ in range(n_gone):
        losses = {}
        for layer in range(len(stack)):
            if layer not in gone:
                asked_to_stop(ctx)
                with _skipped(stack, [*gone, layer]):
                    losses[layer] = _mean_loss(network, batches, weights)
        gone.append(min(losses, key=lambda layer: losses[layer]))
    return [layer for layer in range(len(stack)) if layer not in gone]


@contextmanager
def _skipped(stack: nn.ModuleList, layers: list[int]) -> Iterator[None]:
    """Lets what comes into these layers out as it came."""

    def through(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> object:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    hooks = [stack[layer].register_forward_hook(through) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _loss(network: PromptNetwork, batch: Batch, weights: Mapping[str, float]) -> Tensor:
    return weighted_loss(network(batch.packed), batch.labels.to(network.device), weights)


@torch.no_grad()
def _mean_loss(network: PromptNetwork, batches: list[Batch], weights: Mapping[str, float]) -> float:
    return float(np.mean([float(_loss(network, batch, weights)) for batch in batches]))
