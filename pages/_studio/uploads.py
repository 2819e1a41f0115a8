"""Uploads go to disk at once: out of the server's memory, into a folder of this session, and away after the import."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import streamlit as st

from llmrec_core.errors import InputError
from llmrec_core.workspace import Workspace

#: More files than this are no dataset, but a mistake.
MAX_FILES = 12
_MAX_BYTES = 4_000_000_000
_STALE_S = 24 * 3600.0
_BLOCK = 1 << 20


class Upload(Protocol):
    """What Streamlit hands over for one file."""

    name: str
    file_id: str
    size: int


def upload_folder(space: Workspace) -> Path:
    """The folder of this browser session; folders that nobody came back to are removed."""
    root = space.root / "uploads"
    root.mkdir(exist_ok=True)
    token = st.session_state.setdefault("upload_token", secrets.token_hex(8))
    for old in root.iterdir():
        if old.name != token and time.time() - old.stat().st_mtime > _STALE_S:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / token
    folder.mkdir(exist_ok=True)
    return folder


def safe_name(name: str, taken: set[str]) -> str:
    """The last part of a file name with odd characters replaced, different from those taken."""
    last = PurePosixPath(name.replace("\\", "/")).name
    kept = "".join(c if c.isalnum() or c in "._- " else "_" for c in last).strip(". ")[-100:] or "file"
    stem, dot, ending = kept.rpartition(".")
    found, n = kept, 1
    while found in taken:
        n += 1
        found = f"{stem}-{n}{dot}{ending}" if dot else f"{kept}-{n}"
    return found


def keep_uploads(space: Workspace, uploads: list[Upload]) -> list[Path]:
    """Paths of the uploaded files on disk, in the order given; each is written once.

    Raises:
        InputError: too many files, or too many bytes together.
    """
    if len(uploads) > MAX_FILES:
        raise InputError(f"{len(uploads)} files at once are too many.", fix=f"Upload up to {MAX_FILES}.")
    if sum(upload.size for upload in uploads) > _MAX_BYTES:
        raise InputError(
            "the files are larger than 4 GB together.",
            fix="Import them with `llmrec data import`, which reads from disk.",
        )
    known: dict[str, Path] = st.session_state.setdefault("upload_paths", {})
    present = {upload.file_id for upload in uploads}
    for gone in [key for key in known if key not in present]:
        known.pop(gone).unlink(missing_ok=True)
    folder = upload_folder(space)
    for upload in uploads:
        if upload.file_id not in known or not known[upload.file_id].is_file():
            path = folder / safe_name(upload.name, {p.name for p in known.values()})
            _write(upload, path)
            known[upload.file_id] = path
    return [known[upload.file_id] for upload in uploads]


def _write(upload: Upload, path: Path) -> None:
    stream: BinaryIO = upload  # type: ignore[assignment]
    stream.seek(0)
    with open(path, "wb") as target:
        while block := stream.read(_BLOCK):
            target.write(block)


def forget_uploads(space: Workspace) -> None:
    """Removes this session's files; the uploader starts empty again."""
    shutil.rmtree(upload_folder(space), ignore_errors=True)
    st.session_state["upload_paths"] = {}
    st.session_state["upload_round"] = st.session_state.get("upload_round", 0) + 1
