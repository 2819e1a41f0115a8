"""How a baseline lies on disk: one ``recommender.json`` and one ``.npy`` file for each array, each with its hash.

A folder is read as if a stranger had written it: no pickle, file names come from the code and not from the JSON,
and a hash, shape or catalogue that does not match is an error before any array is used.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from llmrec_core.errors import ModelError
from llmrec_core.saved import FIX, FORMAT, HEAD_FILE, read_head
from llmrec_core.specs import Spec
from llmrec_core.workspace import write_json_atomic

SpecT = TypeVar("SpecT", bound=Spec)


def write_parts(
    folder: Path, *, family: str, spec: Spec, catalogue_sha256: str, arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Writes ``arrays`` as ``<name>.npy`` and then the JSON head, so that a torn save has no head."""
    parts = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        (folder / f"{name}.npy").write_bytes(data)
        parts[name] = {"sha256": hashlib.sha256(data).hexdigest()}
    head = {
        "format": FORMAT,
        "family": family,
        "spec": spec.model_dump(mode="json"),
        "catalogue_sha256": catalogue_sha256,
        "arrays": parts,
    }
    write_json_atomic(folder / HEAD_FILE, head)


def read_parts(
    folder: Path, *, family: str, spec_type: type[SpecT], catalogue_sha256: str, arrays: Mapping[str, str]
) -> tuple[SpecT, dict[str, npt.NDArray[Any]]]:
    """The spec and the arrays (name -> wanted dtype) that :func:`write_parts` wrote.

    Raises:
        ModelError: a part is missing or damaged, of another family, or of another catalogue.
    """
    head = read_head(folder)
    if head.get("format") != FORMAT or head.get("family") != family:
        raise ModelError(f"this is not a saved {family!r} recommender.", where=str(folder / HEAD_FILE), fix=FIX)
    try:
        spec = spec_type.model_validate(head.get("spec"))
    except ValidationError:
        raise ModelError("its spec cannot be read.", where=str(folder / HEAD_FILE), fix=FIX) from None
    if head.get("catalogue_sha256") != catalogue_sha256:
        raise ModelError(
            "it was fitted on another catalogue than this dataset's.",
            where=str(folder),
            fix="Load it with the dataset version of its run.",
        )
    parts = head.get("arrays")
    found = {}
    for name, dtype in arrays.items():
        part = parts.get(name) if isinstance(parts, dict) else None
        found[name] = _read_array(folder / f"{name}.npy", part, dtype)
    return spec, found


def _read_array(path: Path, part: Any, dtype: str) -> npt.NDArray[Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror or error}.", where=str(path), fix=FIX) from None
    if not isinstance(part, dict) or hashlib.sha256(data).hexdigest() != part.get("sha256"):
        raise ModelError("the file is damaged: its hash is not the saved one.", where=str(path), fix=FIX)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ModelError(f"it is not a NumPy array: {error}.", where=str(path), fix=FIX) from None
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        raise ModelError(f"it does not hold {dtype} numbers.", where=str(path), fix=FIX)
    return array
