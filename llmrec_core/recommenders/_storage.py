"""How a text recommender lies on disk: a JSON head with the hash of every file beside it, safetensors for weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrec_core.errors import ModelError
from llmrec_core.specs import canonical_json
from llmrec_core.workspace import write_json_atomic

HEAD_FILE = "recommender.json"
FORMAT = 1
_FIX = "Run the training again, or choose another run."


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def catalogue_sha256(item_ids: Any) -> str:
    """SHA-256 (hex) of the ordered item ids: equal hashes mean that ``item_idx`` names the same items."""
    return hashlib.sha256(canonical_json([str(item) for item in item_ids]).encode()).hexdigest()


def write_head(folder: Path, family: str, values: Mapping[str, Any]) -> None:
    """Writes the head last, so that a torn save has none; every file in ``folder`` is hashed into it."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != HEAD_FILE
    }
    write_json_atomic(folder / HEAD_FILE, {"format": FORMAT, "family": family, **values, "files": files})


def read_head(folder: Path) -> dict[str, Any]:
    """The head of any saved recommender, baselines included.

    Raises:
        ModelError: it is missing or is no JSON object with a family.
    """
    path = folder / HEAD_FILE
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror or error}.", where=str(path), fix=_FIX) from None
    except (ValueError, RecursionError):
        raise ModelError("it is not valid JSON.", where=str(path), fix=_FIX) from None
    if not isinstance(head, dict) or not isinstance(head.get("family"), str):
        raise ModelError("it is not the head of a saved recommender.", where=str(path), fix=_FIX)
    return head


def check_head(folder: Path, family: str, item_ids: Any) -> dict[str, Any]:
    """The head of a text recommender, with every file hashed again.

    Raises:
        ModelError: another family or catalogue, or a file that is missing or damaged.
    """
    head = read_head(folder)
    where = str(folder / HEAD_FILE)
    if head.get("format") != FORMAT or head["family"] != family or not isinstance(head.get("files"), dict):
        raise ModelError(f"this is not a saved {family!r} recommender.", where=where, fix=_FIX)
    if head.get("catalogue_sha256") != catalogue_sha256(item_ids):
        raise ModelError(
            "it was fitted on another catalogue than this dataset's.",
            where=str(folder),
            fix="Load it with the dataset version of its run.",
        )
    root = folder.resolve()
    for name, digest in head["files"].items():
        path = (folder / str(name)).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise ModelError(f"the file {str(name)[:80]!r} is missing.", where=str(folder), fix=_FIX)
        if sha256_of(path) != digest:
            raise ModelError("the file is damaged: its hash is not the saved one.", where=str(path), fix=_FIX)
    return head
