"""How a text recommender lies on disk: a JSON head with the hash of every file beside it, safetensors for weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmrec_core.errors import ModelError
from llmrec_core.saved import FIX, FORMAT, HEAD_FILE, catalogue_sha256, read_head
from llmrec_core.specs import RunSpec
from llmrec_core.specs.unread import STORED
from llmrec_core.workspace import write_json_atomic

#: Where a saved pipeline keeps what reads the candidates.
RANKER_FOLDER = "ranker"


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_head(folder: Path, family: str, values: Mapping[str, Any]) -> None:
    """Writes the head last, so that a torn save has none; every file in ``folder`` is hashed into it."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != HEAD_FILE
    }
    write_json_atomic(folder / HEAD_FILE, {"format": FORMAT, "family": family, **values, "files": files})


def check_head(folder: Path, family: str, item_ids: Any) -> dict[str, Any]:
    """The head of a text recommender, with every file hashed again.

    Raises:
        ModelError: another family or catalogue, or a file that is missing or damaged.
    """
    head = read_head(folder)
    where = str(folder / HEAD_FILE)
    if head.get("format") != FORMAT or head["family"] != family or not isinstance(head.get("files"), dict):
        raise ModelError(f"this is not a saved {family!r} recommender.", where=where, fix=FIX)
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
            raise ModelError(f"the file {str(name)[:80]!r} is missing.", where=str(folder), fix=FIX)
        if sha256_of(path) != digest:
            raise ModelError("the file is damaged: its hash is not the saved one.", where=str(path), fix=FIX)
    return head


def read_run(head: Mapping[str, Any], folder: Path) -> RunSpec:
    """The spec of the run that a checked head belongs to.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return RunSpec.model_validate(head.get("run"), context=STORED)
    except ValidationError:
        raise ModelError("its spec cannot be read.", where=str(folder), fix=FIX) from None
