"""Models with whole-number weights or fewer attention heads: how they lie in a model folder, and how they come back.

``config.json`` carries a note under :data:`KEY`; the safetensors hold packed weights, and attention projections without
the heads that are gone. On load the note and every tensor are checked against the architecture, the plain weights are
worked out and loaded like any model's, and then the model is made compact again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmrec_core.errors import InputError, ModelError
from llmrec_core.models.quantised import (
    QuantisedEmbedding,
    QuantisedLinear,
    padded_width,
    quantise_groups,
    quantise_rows,
    share_rounding,
    unpack_groups,
)
from llmrec_core.models.tuning import layer_stack

#: Where the note stands in config.json.
KEY = "llmrec_compact"
_FIX = "Compress the run again."
#: Names of (queries, keys, values, output) in a layer, by how architectures write them.
_PROJECTIONS = (
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
)
#: Architectures whose code takes the number of heads from the projections themselves.
_PRUNABLE = frozenset(
    {"bert", "camembert", "electra", "llama", "mistral", "qwen2", "qwen3", "roberta", "smollm3", "xlm-roberta"}
)


class Compact(BaseModel):
    """The note. ``kept_heads``: layer -> heads (of keys) that are left; layers that are not named have all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    linear_bits: Literal[4, 8] | None = None
    group_size: int = Field(32, ge=8, le=4096, multiple_of=2)
    activations: Literal["int8", "float"] = "float"
    embeddings: bool = False
    kept_heads: dict[int, tuple[int, ...]] = Field(default_factory=dict)

    @property
    def quantised(self) -> bool:
        return self.linear_bits is not None or self.embeddings


def read_note(config: Mapping[str, Any], where: str = "config.json") -> Compact | None:
    """The note of a model's configuration; None: it is plain.

    Raises:
        ModelError: the note is not one.
    """
    raw = config.get(KEY)
    if raw is None:
        return None
    try:
        return Compact.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModelError(
            f"its note on compression is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            where=where,
            fix=_FIX,
        ) from None


# ---- attention heads -------------------------------------------------------------------------------------------------


def projections(layer: nn.Module) -> tuple[str, str, str, str]:
    """Names of queries, keys, values and output in a layer.

    Raises:
        InputError: this architecture keeps them in another way.
    """
    for names in _PROJECTIONS:
        try:
            found = [layer.get_submodule(name) for name in names]
        except AttributeError:
            continue
        if all(isinstance(module, nn.Linear) for module in found):
            return names
    raise InputError("heads of this architecture cannot be taken out.", fix="Prune its layers, or use int8.")


def head_layout(model: PreTrainedModel) -> tuple[int, int, int]:
    """(heads of keys, query heads each of them serves, width of a head) of the whole architecture.

    Raises:
        InputError: heads of this architecture cannot be taken out.
    """
    config: Any = model.config
    if config.model_type not in _PRUNABLE:
        raise InputError(
            f"heads of {config.model_type} models cannot be taken out.",
            where="compression.method",
            fix=f"It works for {', '.join(sorted(_PRUNABLE))}; prune layers instead, or use int8.",
        )
    n_heads = int(config.num_attention_heads)
    n_key_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    return n_key_heads, n_heads // n_key_heads, width


def _positions(kept: tuple[int, ...], size: int) -> Tensor:
    return (torch.tensor(kept)[:, None] * size + torch.arange(size)).flatten()


def prune_heads(model: PreTrainedModel, kept: Mapping[int, tuple[int, ...]]) -> None:
    """Takes out all heads but ``kept`` (layer -> heads of keys, with the query heads they serve), in place."""
    if not kept:
        return
    _, shared, width = head_layout(model)
    layers = layer_stack(model)
    for number, heads in kept.items():
        layer = layers[number]
        query, key, value, output = projections(layer)
        for name, size in ((query, shared * width), (key, width), (value, width)):
            _cut(layer, name, _positions(heads, size), 0)
        _cut(layer, output, _positions(heads, shared * width), 1)


def _cut(layer: nn.Module, name: str, at: Tensor, side: int) -> None:
    """Keeps rows (side 0: outputs) or columns (side 1: inputs) of a linear layer."""
    old: Any = layer.get_submodule(name)
    at = at.to(old.weight.device)
    n_out, n_in = (len(at), old.in_features) if side == 0 else (old.out_features, len(at))
    new = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=old.bias is not None, device=old.weight.device)
    new.weight = nn.Parameter(old.weight.detach().index_select(side, at), requires_grad=old.weight.requires_grad)
    if old.bias is not None:
        bias = old.bias.detach()
        new.bias = nn.Parameter(bias[at] if side == 0 else bias.clone(), requires_grad=old.bias.requires_grad)
    parent, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, new)


def _regrown(model: PreTrainedModel, kept: Mapping[int, tuple[int, ...]], weights: dict[str, Tensor]) -> None:
    """Puts zeros where heads were taken out, in place; they are cut again after the load."""
    if not kept:
        return
    n_key_heads, shared, width = head_layout(model)
    prefix = _layer_prefix(model)
    for number, heads in kept.items():
        query, key, value, output = projections(layer_stack(model)[number])
        for name, size in ((query, shared * width), (key, width), (value, width)):
            for leaf in ("weight", "bias"):
                whole = f"{prefix}{number}.{name}.{leaf}"
                if whole in weights:
                    part = weights[whole]
                    grown = part.new_zeros(n_key_heads * size, *part.shape[1:])
                    grown[_positions(heads, size)] = part
                    weights[whole] = grown
        whole = f"{prefix}{number}.{output}.weight"
        part = weights[whole]
        grown = part.new_zeros(len(part), n_key_heads * shared * width)
        grown[:, _positions(heads, shared * width)] = part
        weights[whole] = grown


def _layer_prefix(model: PreTrainedModel) -> str:
    stack = layer_stack(model)
    return next(f"{name}." for name, module in model.named_modules() if module is stack)


# ---- whole numbers ---------------------------------------------------------------------------------------------------


def _targets(model: PreTrainedModel, note: Compact) -> dict[str, nn.Module]:
    """Name -> layer that the note makes whole-numbered: linear ones inside the layers, and the table of words."""
    found: dict[str, nn.Module] = {}
    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        linear = isinstance(module, nn.Linear | Conv1D) and inside and note.linear_bits is not None
        if linear or (note.embeddings and module is words and isinstance(module, nn.Embedding)):
            found[name] = module
    return found


def _matrix(module: nn.Module) -> Tensor:
    """Weights of a linear layer as [n_out, n_in]."""
    weight: Any = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight


def quantise(model: PreTrainedModel, note: Compact) -> None:
    """Makes the model's weights whole numbers as the note says, in place; they are frozen by that."""
    for name, module in _targets(model, note).items():
        if isinstance(module, nn.Embedding):
            packed, scale = quantise_rows(module.weight)
            _put(model, name, QuantisedEmbedding(packed, scale, module.weight.dtype))
            continue
        weight, bias = _matrix(module), getattr(module, "bias", None)
        low = None
        if note.linear_bits == 8:
            packed, scale = quantise_rows(weight)
        else:
            packed, scale, low = quantise_groups(weight, note.group_size)
        activations = note.activations if note.linear_bits == 8 else "float"
        _put(model, name, QuantisedLinear(packed, scale, low, bias, weight.shape[1], activations))
    _share_inputs(model)
    model.requires_grad_(False)


def _share_inputs(model: nn.Module) -> None:
    """Layers of one part of the model that are as wide may be given the same input; whether they are is seen then."""
    for part in model.modules():
        inside = [layer for layer in part.children() if isinstance(layer, QuantisedLinear)]
        for width in {layer.in_features for layer in inside}:
            share_rounding(layer for layer in inside if layer.in_features == width)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


# ---- the way back ----------------------------------------------------------------------------------------------------


def plain_weights(
    skeleton: PreTrainedModel, note: Compact, stored: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The weights that the plain architecture loads, worked out from stored ones.

    Args:
        skeleton: the plain architecture, on the meta device; its heads are cut here.

    Raises:
        ModelError: the note does not fit the architecture, or a stored tensor is missing, of another shape or type,
            or holds what is no number.
    """
    _check_heads(skeleton, note, where)
    with torch.device("meta"):
        whole = type(skeleton)(skeleton.config)
    prune_heads(skeleton, note.kept_heads)
    expected = _expected(skeleton, note)
    for name, (shape, dtype) in expected.items():
        tensor = stored.get(name)
        if tensor is None or tuple(tensor.shape) != shape or (dtype is not None and tensor.dtype != dtype):
            told = "is missing" if tensor is None else f"is {tuple(tensor.shape)} {tensor.dtype}, not {shape}"
            raise ModelError(f"the compressed weight {name} {told}.", where=where, fix=_FIX)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the compressed weight {name} holds values that are no numbers.", where=where, fix=_FIX)
    strange = sorted(stored.keys() - expected.keys())
    if strange:
        raise ModelError(f"the weight {strange[0][:80]!r} belongs nowhere.", where=where, fix=_FIX)
    weights: dict[str, Tensor] = {}
    targets = _targets(skeleton, note)
    for name, tensor in stored.items():
        owner, _, leaf = name.rpartition(".")
        if owner not in targets or leaf == "bias":
            weights[name] = tensor
    for name, module in targets.items():
        packed, scale = stored[f"{name}.packed"], stored[f"{name}.scale"]
        if packed.dtype == torch.int8:
            matrix = packed.float() * scale
        else:
            matrix = unpack_groups(packed, scale, stored[f"{name}.low"], _matrix(module).shape[1])
        weights[f"{name}.weight"] = matrix.t().contiguous() if isinstance(module, Conv1D) else matrix
    _regrown(whole, note.kept_heads, weights)
    return weights


def make_compact(model: PreTrainedModel, note: Compact, stored: Mapping[str, Tensor]) -> None:
    """Cuts the heads of a loaded plain model and puts the stored whole numbers in, in place."""
    prune_heads(model, note.kept_heads)
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for name, module in _targets(model, note).items():
        tensors = {leaf: stored.get(f"{name}.{leaf}") for leaf in ("packed", "scale", "low", "bias")}
        at = {leaf: None if tensor is None else tensor.to(device) for leaf, tensor in tensors.items()}
        packed, scale = at["packed"], at["scale"]
        assert packed is not None
        assert scale is not None
        if isinstance(module, nn.Embedding):
            _put(model, name, QuantisedEmbedding(packed, scale, dtype))
        else:
            n_in = _matrix(module).shape[1]
            activations = note.activations if note.linear_bits == 8 else "float"
            _put(model, name, QuantisedLinear(packed, scale, at["low"], at["bias"], n_in, activations))
    _share_inputs(model)


def _check_heads(skeleton: PreTrainedModel, note: Compact, where: str) -> None:
    if not note.kept_heads:
        return
    try:
        n_heads, _, _ = head_layout(skeleton)
        n_layers = len(layer_stack(skeleton))
    except InputError as error:
        raise ModelError(str(error), where=where, fix=_FIX) from None
    for layer, heads in note.kept_heads.items():
        if not (0 <= layer < n_layers and heads and list(heads) == sorted(set(heads))) or not (
            heads[0] >= 0 and heads[-1] < n_heads
        ):
            raise ModelError(f"the heads kept in layer {layer} do not fit the model.", where=where, fix=_FIX)


def _expected(skeleton: PreTrainedModel, note: Compact) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Name -> shape and type (None: any float) of every tensor of a model saved with this note."""
    targets = _targets(skeleton, note)
    found: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {}
    for name, tensor in skeleton.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if not name.startswith("pooler.") and (owner not in targets or leaf == "bias"):
            found[name] = (tuple(tensor.shape), None)
    for name, module in targets.items():
        n_out, n_in = _matrix(module).shape
        if isinstance(module, nn.Embedding) or note.linear_bits == 8:
            found[f"{name}.packed"] = ((n_out, n_in), torch.int8)
            found[f"{name}.scale"] = ((n_out, 1), torch.float32)
            continue
        width = padded_width(n_in, note.group_size)
        found[f"{name}.packed"] = ((n_out, width // 2), torch.uint8)
        for leaf in ("scale", "low"):
            found[f"{name}.{leaf}"] = ((n_out, width // note.group_size), torch.float16)
    return found
