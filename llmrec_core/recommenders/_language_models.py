"""How a tuned language model lies in a recommender's folder: whole after full tuning, else what was trained and the
name and hash of the model below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec_core.contracts import FitContext
from llmrec_core.errors import InputError, ModelError
from llmrec_core.models.catalogue import require_model
from llmrec_core.models.device import resolve_device, resolve_precision
from llmrec_core.models.loading import Backbone, load_backbone, save_backbone
from llmrec_core.models.tuning import apply_tuning, load_trainable_state
from llmrec_core.recommenders._storage import sha256_of
from llmrec_core.saved import FIX
from llmrec_core.specs import RunSpec, TuningSpec

_MODEL, _TRAINED = "model", "trained.safetensors"


def base_folder(ctx: FitContext, name: str) -> Path:
    """Where a prepared model lies.

    Raises:
        InputError: the context names no folder of models. NotFoundError, ModelError: as ``require_model``.
    """
    if ctx.workspace_models is None:
        raise InputError("a text model needs the folder of prepared models.", fix="Set FitContext.workspace_models.")
    return require_model(ctx.workspace_models, name)


def load_base(name: str, ctx: FitContext, *, trainable: bool) -> Backbone:
    """A prepared model in float32 on the context's device.

    Raises:
        InputError: the context names no folder of models. NotFoundError, ModelError: as ``load_backbone``.
    """
    return load_backbone(base_folder(ctx, name), device=resolve_device(ctx.device), trainable=trainable)


def fingerprint(name: str, backbone: Backbone) -> dict[str, str]:
    """Name of a model, and SHA-256 over its weight files in order."""
    digests = [sha256_of(backbone.facts.folder / file) for file in backbone.facts.weight_files]
    return {"model": name, "weights_sha256": " ".join(digests)}


def save_model(folder: Path, backbone: Backbone, base: Mapping[str, str], trained: frozenset[str]) -> dict[str, Any]:
    """Writes what was trained; returns what the head of the folder must say of it.

    Args:
        base: :func:`fingerprint` of the model that was tuned.
        trained: names of its trained weights; all of them: the whole model is written.
    """
    state = backbone.model.state_dict()
    if trained >= {name for name, _ in backbone.model.named_parameters()}:
        (folder / _MODEL).mkdir()
        save_backbone(backbone, folder / _MODEL)
        return {"base": dict(base), "whole_model": True}
    if trained:
        save_file({n: state[n].detach().cpu().contiguous() for n in sorted(trained)}, folder / _TRAINED)
    return {"base": dict(base), "whole_model": False}


def load_model(folder: Path, head: Mapping[str, Any], name: str, tuning: TuningSpec, ctx: FitContext) -> Backbone:
    """The model that :func:`save_model` wrote, frozen.

    Args:
        head: of the folder, already checked.
        name: of the model below, and ``tuning``: how it was tuned.

    Raises:
        ModelError: it is damaged, or the model below is not the one that was tuned.
    """
    device = resolve_device(ctx.device)
    if head.get("whole_model"):
        return load_backbone(folder / _MODEL, device=device, trainable=False)
    backbone = load_base(name, ctx, trainable=False)
    if fingerprint(name, backbone) != head.get("base"):
        raise ModelError(
            f"the base model {name!r} is not the one it was trained on.",
            where=str(folder),
            fix="Put the base model back, or run the training again.",
        )
    if (folder / _TRAINED).is_file():
        apply_tuning(backbone.model, tuning)
        try:
            load_trainable_state(backbone.model, load_file(folder / _TRAINED, device=str(device)))
        except (SafetensorError, OSError):
            raise ModelError("its trained weights cannot be read.", where=str(folder), fix=FIX) from None
    backbone.model.requires_grad_(False)
    backbone.model.eval()
    return backbone


def freeze(backbone: Backbone) -> frozenset[str]:
    """Ends a training; returns the names of the weights that were trained."""
    trained = frozenset(name for name, p in backbone.model.named_parameters() if p.requires_grad)
    backbone.model.requires_grad_(False)
    backbone.model.eval()
    return trained


def trained_names(folder: Path, head: Mapping[str, Any], backbone: Backbone) -> frozenset[str]:
    """What :func:`freeze` gave before the model of ``folder`` was saved."""
    if head.get("whole_model"):
        return frozenset(name for name, _ in backbone.model.named_parameters())
    path = folder / _TRAINED
    return frozenset(load_file(path)) if path.is_file() else frozenset()


def precision_of(run: RunSpec, device: torch.device) -> tuple[torch.dtype, torch.dtype | None, str]:
    """(dtype of the weights, dtype of autocast or None, the reason in words).

    On a CPU with matrix units the weights themselves are bf16 (masters are float32, see ``training.optimizer``):
    casting under autocast costs half of the gain there. On a GPU the casts are cheap and autocast keeps norms and
    softmax in float32. Weights that are rounded at random are bf16 everywhere: that is what saves memory.
    """
    choice = resolve_precision(run.training.precision, device)
    if choice.dtype == torch.float32:
        return torch.float32, None, choice.reason
    if device.type == "cpu" or run.training.weights == "stochastic":
        return torch.bfloat16, None, choice.reason
    return torch.float32, choice.dtype, choice.reason


__all__ = [
    "base_folder",
    "fingerprint",
    "freeze",
    "load_base",
    "load_model",
    "precision_of",
    "save_model",
    "trained_names",
]
