"""Checkpoints that hold safetensors and JSON only, are whole or not there, and are checked before they are used."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec_core.errors import ModelError, RunFailedError
from llmrec_core.training.optimizer import MasterWeightAdamW
from llmrec_core.workspace import write_json_atomic

HEAD_FILE = "checkpoint.json"
_FORMAT = 1
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """One training state.

    Attributes:
        tensors: file stem -> tensors by name ("weights", "best", "optimizer", "rng").
        state: JSON values: step, scheduler, generators, early stopping.
        trainer_state: what transformers' TrainerState wrote, as JSON.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    trainer_state: Mapping[str, Any]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes ``folder/checkpoint-<step>``; its head, with the hash of every file, comes last.

    Older checkpoints beyond ``keep`` are removed afterwards, never before.

    Raises:
        RunFailedError: the disk is full or refuses; earlier checkpoints stay as they were.
    """
    target = folder / f"{_PREFIX}{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        files = {}
        for stem, tensors in checkpoint.tensors.items():
            path = target / f"{stem}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            files[path.name] = _sha256(path)
        for name, value in (("state.json", checkpoint.state), ("trainer_state.json", checkpoint.trainer_state)):
            write_json_atomic(target / name, value)
            files[name] = _sha256(target / name)
        write_json_atomic(target / HEAD_FILE, {"format": _FORMAT, "step": step, "files": files})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise RunFailedError(
            f"the checkpoint of step {step} could not be written: {error}.",
            where=str(target),
            fix="Free disk space and resume the run; the checkpoint before it is whole.",
        ) from error
    for old in _by_step(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path, log: Callable[[str, str], None]) -> Path | None:
    """The newest undamaged checkpoint in ``folder`` (or ``folder`` itself); None if there is none.

    Args:
        log: called as ``log(level, message)`` for every checkpoint that is passed over.
    """
    candidates = [folder] if (folder / HEAD_FILE).is_file() else _by_step(folder)[::-1]
    for candidate in candidates:
        fault = _fault(candidate)
        if fault is None:
            return candidate
        log("warning", f"{candidate.name} is damaged ({fault}); trying the one before it.")
    return None


def read_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """Tensors of one file of a checkpoint that :func:`newest_checkpoint` found whole; empty if it was not saved.

    Raises:
        ModelError: the file is not safetensors.
    """
    path = checkpoint / f"{stem}.safetensors"
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"it cannot be read: {error}.", where=str(path), fix="Start the run again.") from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json`` of a whole checkpoint."""
    found = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError("it is not a JSON object.", where=str(checkpoint / "state.json"), fix="Start the run again.")
    return found


def _by_step(folder: Path) -> list[Path]:
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            number = path.name.removeprefix(_PREFIX)
            if path.name.startswith(_PREFIX) and number.isdecimal() and path.is_dir() and not path.is_symlink():
                found.append((int(number), path))
    return [path for _, path in sorted(found)]


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        head = json.loads((checkpoint / HEAD_FILE).read_text(encoding="utf-8"))
        files = head["files"]
        if head["format"] != _FORMAT or not {"weights.safetensors", "state.json", "trainer_state.json"} <= set(files):
            return "its head names other files"
        for name, digest in files.items():
            if Path(name).name != name or _sha256(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or HEAD_FILE).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "its head cannot be read"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def optimizer_tensors(optimizer: MasterWeightAdamW) -> dict[str, Tensor]:
    """``<number of the parameter>.<name>`` -> CPU copy of each piece of the optimizer's state."""
    found = {}
    for number, (_, master) in enumerate(optimizer.pairs):
        for name, value in optimizer.state.get(master, {}).items():
            found[f"{number}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return found


def load_optimizer(optimizer: MasterWeightAdamW, tensors: Mapping[str, Tensor]) -> None:
    """Puts :func:`optimizer_tensors` back.

    Raises:
        ModelError: the state belongs to other parameters.
    """
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(optimizer.pairs):
            raise ModelError("the optimizer state belongs to another model.", fix="Start the run again.")
        master = optimizer.pairs[int(number)][1]
        # 8-bit moments have one scale a block; see ``optimizer``.
        fits = value.ndim <= 1 if name == "step" or name.endswith("_scale") else value.shape == master.shape
        if not fits:
            raise ModelError("the optimizer state belongs to another model.", fix="Start the run again.")
        # Fused AdamW keeps its step counter beside the weights.
        optimizer.state[master][name] = value.to(master.device)


def generator_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of PyTorch's generators as tensors, of Python's and NumPy's as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{number}"] = state
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def restore_generators(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Undoes :func:`generator_state`."""
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            if f"cuda.{number}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{number}"], number)
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, cached))
