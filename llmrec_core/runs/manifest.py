"""The last file of a run: what was made, from what, with which versions. Only a run that has it is done."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from llmrec_core import __version__
from llmrec_core.runs.folder import RunFolder, RunStatus
from llmrec_core.specs import RunSpec

#: Distributions whose version can change a result.
_DISTRIBUTIONS = (
    "accelerate",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "shap",
    "tokenizers",
    "torch",
    "transformers",
)


def build_manifest(folder: RunFolder, spec: RunSpec, status: RunStatus, result: dict[str, Any]) -> dict[str, Any]:
    """Hashes of every artifact and everything needed to repeat the run.

    Args:
        folder: the run; each file under ``artifacts/`` is listed by its path there.
        spec: what was done.
        status: for device and times.
        result: its ``dataset`` entry holds the fingerprint of the data, if the job gave one.

    Raises:
        OSError: an artifact cannot be read.
    """
    dataset = result.get("dataset")
    return {
        "run_id": folder.run_id,
        "parent_run": spec.parent_run,
        "spec_hash": spec.spec_hash(),
        "dataset": dataset if isinstance(dataset, dict) else spec.dataset.model_dump(),
        "seed": spec.seed,
        "device": status.device,
        "submitted_at": status.submitted_at,
        "started_at": status.started_at,
        "ended_at": status.ended_at,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "files": file_hashes(folder.artifacts),
    }


def file_hashes(root: Path) -> dict[str, dict[str, Any]]:
    """``{relative path with /: {"sha256", "size_bytes"}}`` of every file under ``root``; links are left out."""
    found = {}
    for parent, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_symlink() or not path.is_file():
                continue
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[path.relative_to(root).as_posix()] = {"sha256": digest, "size_bytes": path.stat().st_size}
    return dict(sorted(found.items()))


def changed_files(manifest: dict[str, Any], root: Path) -> list[str]:
    """Artifacts that are missing, changed or new since the manifest was written; [] when all is as it was."""
    then, now = manifest.get("files", {}), file_hashes(root)
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def versions() -> dict[str, str]:
    """Installed versions of this project and of the libraries that can change a result."""
    found = {"llmrec-studio": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
