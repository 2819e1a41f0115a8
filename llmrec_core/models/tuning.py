"""Which weights of a backbone are trained: all, the last layers, low-rank adapters (LoRA), or none.

The model is changed in place and keeps its class and its forward, so nothing downstream knows how it is tuned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.specs import TuningSpec


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of weights; shared ones count once."""

    trainable: int
    total: int


def apply_tuning(model: PreTrainedModel, spec: TuningSpec, *, seed: int = 0) -> PreTrainedModel:
    """Marks (and for LoRA adds) the trained weights, in place.

    - full: every weight; without the embedding tables if ``freeze_embeddings``.
    - top-layers: the last ``n_top_layers`` layers and the norm behind them; everything below is frozen.
    - lora: adapters on every linear layer of the stack, starting at no change; the embedding tables too, in full,
      unless ``freeze_embeddings``.
    - none: nothing; the model answers as it came (zero-shot).

    Args:
        seed: of the adapters' initial weights; the global generator is left as it was.

    Raises:
        SpecError: more layers asked for than there are, or the model shares one layer at all depths.
    """
    if spec.method == "full":
        model.requires_grad_(True)
        if spec.freeze_embeddings:
            _embeddings_require_grad(model, False)
    elif spec.method == "top-layers":
        _tune_top_layers(model, spec.n_top_layers)
    elif spec.method == "none":
        model.requires_grad_(False)
    else:
        _add_lora(model, spec, seed)
        if not spec.freeze_embeddings:
            _embeddings_require_grad(model, True)
    return model


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """How many weights are trained, and how many there are."""
    parameters = list(model.parameters())
    return ParameterCounts(
        trainable=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
    )


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Name -> CPU copy of every trained weight: with the base model, all there is to save."""
    return {
        name: parameter.detach().cpu().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies a :func:`trainable_state` into a model that was given the same tuning.

    Raises:
        ModelError: names or shapes differ; nothing is changed then.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(
            f"the saved weights do not fit the model: {', '.join(wrong[:3])}.",
            fix="Load them with the model and the tuning that they were trained with.",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Adds LoRA updates to the weights they belong to and removes the adapters, in place; outputs stay the same.

    A model without adapters is left as it is.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """A frozen model as it came: LoRA updates do not count inside; without adapters nothing changes."""
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for module in adapted:
            module.enable_adapters(False)
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)
            # peft takes adapters that are switched on for ones to be trained.
            module.requires_grad_(False)


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The list of transformer layers, first to last.

    Raises:
        SpecError: the model has no such list (ALBERT runs one shared layer many times).
    """
    n_layers = model.config.num_hidden_layers
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise SpecError(
        f"{type(model).__name__} shares its layers, so single ones cannot be tuned.",
        where="tuning.method",
        fix="Choose full or lora.",
    )


def _tune_top_layers(model: PreTrainedModel, n_top_layers: int) -> None:
    layers = layer_stack(model)
    if n_top_layers > len(layers):
        raise SpecError(
            f"{n_top_layers} layers asked for; the model has {len(layers)}.",
            where="tuning.n_top_layers",
            fix=f"Give 1 to {len(layers)}.",
        )
    model.requires_grad_(False)
    for layer in layers[-n_top_layers:]:
        layer.requires_grad_(True)
    for name in ("norm", "ln_f", "final_norm", "final_layer_norm", "final_layernorm"):
        # Behind the last layer; "embeddings.LayerNorm" and the like stand before it and have other names.
        for path in (name, f"decoder.{name}"):
            module = _submodule(model, path)
            if module is not None:
                module.requires_grad_(True)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _embeddings_require_grad(model: PreTrainedModel, flag: bool) -> None:
    """Word, position and type tables; not the norm that follows them."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(flag)


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers (GPT-2 writes them as Conv1D) inside the layers, found by type."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    ]


def _add_lora(model: PreTrainedModel, spec: TuningSpec, seed: int) -> None:
    names = _linear_names(model)
    if not names:
        raise SpecError(f"{type(model).__name__} has no linear layers for LoRA.", where="tuning.method")
    config = LoraConfig(
        r=spec.lora_rank,
        # Annotated as int by peft, used as a factor only.
        lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=spec.lora_dropout,
        target_modules=names,
        # Conv1D keeps its matrix transposed.
        fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
    )
    model.requires_grad_(False)
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for part in (*module.lora_A.values(), *module.lora_B.values()):
                # Updates of adapters are small against bf16's steps; peft casts inputs to their dtype.
                part.float()
    model.train(training)
