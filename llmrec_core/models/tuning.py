"""Which weights of a backbone are trained: all, the last layers, none, or only what a method adds to a frozen model.

The model is changed in place and keeps its class and its forward, so nothing downstream knows how it is tuned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.models.tuning_adalora import adalora_config
from llmrec_core.models.tuning_bottleneck import Bottleneck, add_bottlenecks, attention_of, last_linear
from llmrec_core.models.tuning_lora import FusedLoraLinear
from llmrec_core.models.tuning_soft import SoftStates, add_soft_states, soft_states
from llmrec_core.specs import TuningSpec

#: How much faster than ``training.learning_rate`` what a method adds is trained, by a part of its weights' names: few
#: numbers, each of which must move far (rates of the papers over those of LoRA).
_RATE_FACTORS = {"ia3_l": 20.0, "soft_states.keys_values": 20.0, "soft_states.embeddings": 50.0}
#: LoRA on an encoder: at the rate of full tuning it falls far behind it, AdaLoRA does not gain (benchmarks/README.md).
#: Rates of decoders are meant for LoRA, by which they are tuned as a rule.
_LORA_OF_ENCODERS = 5.0
#: What the projections to keys and values are called in known architectures, on their own or fused with the queries.
_KEY_VALUE_NAMES = frozenset(
    {"key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "k", "v", "c_attn", "qkv", "Wqkv", "query_key_value"}
)


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of weights; shared ones count once."""

    trainable: int
    total: int


def apply_tuning(model: PreTrainedModel, spec: TuningSpec, *, seed: int = 0) -> PreTrainedModel:
    """Marks (and for most methods adds) the trained weights, in place.

    - full: every weight; without the embedding tables if ``freeze_embeddings``.
    - top-layers: the last ``n_top_layers`` layers and the norm behind them; everything below is frozen.
    - none: nothing; the model answers as it came (zero-shot).
    - lora, adalora: low-rank adapters on every linear layer of the stack (or of its attention), starting at no change.
    - ia3: factors on keys, values and the insides of the feed-forward parts, starting at 1.
    - bottleneck: small networks inside the layers, starting at no change.
    - prefix, prompt: learned states before the text (``models.tuning_soft``), starting as real words.

    All that add something freeze the rest, but tune the embedding tables in full too if not ``freeze_embeddings``.
    AdaLoRA also wants a :class:`~llmrec_core.models.tuning_adalora.RankSchedule` while it is trained.

    Args:
        seed: of the adapters' initial weights; the global generator is left as it was.

    Raises:
        SpecError: more layers asked for than there are, the model shares one layer at all depths, or its architecture
            does not have what the method changes.
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
        if spec.method in ("prefix", "prompt"):
            add_soft_states(model, spec.n_virtual_tokens, seed, deep=spec.method == "prefix")
        elif spec.method == "bottleneck":
            both = spec.bottleneck_places == "both"
            add_bottlenecks(model, layer_stack(model), spec.bottleneck_width, seed, attention=both)
        else:
            _add_adapters(model, spec, seed)
        if not spec.freeze_embeddings:
            _embeddings_require_grad(model, True)
    return model


def rate_factor(name: str, *, causal: bool = False) -> float:
    """What the learning rate of a weight is multiplied by, from its name: 1 for the model's own weights.

    Args:
        causal: the model is a decoder.
    """
    # What LoRA adds are layers, with a weight each; AdaLoRA's parts are bare parameters and keep the rate.
    if "lora_" in name and name.endswith(".weight"):
        return 1.0 if causal else _LORA_OF_ENCODERS
    return next((factor for part, factor in _RATE_FACTORS.items() if part in name), 1.0)


def decays(name: str) -> bool:
    """Whether weight decay may pull a matrix of this name towards zero; the few numbers of some methods are no such."""
    return not any(part in name for part in _RATE_FACTORS)


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
    """Puts LoRA, AdaLoRA or IA3 into the weights they belong to and removes them, in place; outputs stay the same.

    A model to which nothing was added is left as it is.

    Raises:
        ModelError: what was added is no change of weights (prefix, prompt, bottleneck); nothing is changed then.
    """
    if soft_states(model) is not None or any(isinstance(module, Bottleneck) for module in model.modules()):
        raise ModelError(
            "states before the text and small networks inside the layers cannot be merged into the weights.",
            fix="Keep the model as it was trained, or tune with lora, adalora or ia3.",
        )
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether anything stands beside the weights that :func:`merge_adapters` would put into them."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """A frozen model as it came: what a method added does not count inside; without anything nothing changes."""
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    own = [module for module in model.modules() if isinstance(module, Bottleneck | SoftStates)]
    try:
        for module in adapted:
            module.enable_adapters(False)
        for part in own:
            part.enabled = False
        yield
    finally:
        for part in own:
            part.enabled = True
        for module in adapted:
            module.enable_adapters(True)
            # peft takes adapters that are switched on for ones to be trained.
            module.requires_grad_(False)


@contextmanager
def recomputed_layers(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """With ``on``, a backward pass computes the insides of the layers again instead of finding them in memory.

    Raises:
        SpecError: the architecture cannot, or learned states stand before the text (layers that are computed twice
            cannot be handed keys and values).
    """
    if not on:
        yield
        return
    if soft_states(model) is not None or not model.supports_gradient_checkpointing:
        raise SpecError(
            f"layers of {type(model).__name__} cannot be computed twice with this way of tuning.",
            where="training.gradient_checkpointing",
            fix="Leave it off, or tune with another method than prefix and prompt.",
        )
    # transformers renamed both on the way to version 6.
    whole: Any = model
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(whole, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(whole, f"{name}_checkpointing_disable")()


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
    for norm in norms_behind(model):
        norm.requires_grad_(True)


def norms_behind(model: PreTrainedModel) -> list[nn.Module]:
    """The norm behind the last layer, where there is one."""
    # "embeddings.LayerNorm" and the like stand before the first layer and have other names.
    names = ("norm", "ln_f", "final_norm", "final_layer_norm", "final_layernorm")
    found = (_submodule(model, path) for name in names for path in (name, f"decoder.{name}"))
    return [module for module in found if module is not None]


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


def _add_adapters(model: PreTrainedModel, spec: TuningSpec, seed: int) -> None:
    """LoRA, AdaLoRA or IA3, by peft."""
    names = _linear_names(model)
    if spec.lora_targets == "attention" and spec.method != "ia3":
        inside = {id(module) for layer in layer_stack(model) for module in attention_of(layer).modules()}
        names = [name for name in names if id(model.get_submodule(name)) in inside]
    if not names:
        raise SpecError(f"{type(model).__name__} has no linear layers for adapters.", where="tuning.method")
    # Conv1D keeps its matrix transposed.
    transposed = isinstance(model.get_submodule(names[0]), Conv1D)
    config: PeftConfig
    if spec.method == "ia3":
        # The way back from the inside of a feed-forward part is the last linear layer of its layer.
        ends = {id(last_linear(layer)[2]) for layer in layer_stack(model)}
        inner = [name for name in names if id(model.get_submodule(name)) in ends]
        outer = [name for name in names if name.rpartition(".")[2] in _KEY_VALUE_NAMES]
        if not inner or not outer:
            raise SpecError(
                f"the keys and values of {type(model).__name__} were not found.",
                where="tuning.method",
                fix="Choose lora.",
            )
        config = IA3Config(target_modules=outer + inner, feedforward_modules=inner, fan_in_fan_out=transposed)
    elif spec.method == "adalora":
        config = adalora_config(spec.lora_rank, spec.lora_alpha, spec.lora_dropout, names, transposed=transposed)
    else:
        config = LoraConfig(
            r=spec.lora_rank,
            # Annotated as int by peft, used as a factor only.
            lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=spec.lora_dropout,
            target_modules=names,
            fan_in_fan_out=transposed,
        )
        config._register_custom_module({nn.Linear: FusedLoraLinear, Conv1D: FusedLoraLinear})
    model.requires_grad_(False)
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        added = "lora_" in name or "ia3_l" in name
        parameter.requires_grad_(added)
        if added:
            # Updates of adapters are small against bf16's steps.
            parameter.data = parameter.data.float()
    model.train(training)
