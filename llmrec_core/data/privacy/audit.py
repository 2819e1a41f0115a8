"""The audit: one JSON line for each act upon personal data, each carrying the hash of the line before it.

No line holds a raw id: persons stand there as keyed hashes. A line that was changed, removed or slipped in breaks the
chain, and :func:`read_audit` says where. (The last lines can be cut off unseen; keep a copy of the last hash elsewhere
if that matters.)
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec_core.data.privacy.keys import privacy_folder
from llmrec_core.errors import DataError, LLMRecError
from llmrec_core.specs import canonical_json
from llmrec_core.workspace import Workspace

FILE = "audit.jsonl"
_START = "0" * 64


@dataclass(frozen=True)
class AuditLine:
    """One act. ``t``: seconds since 1970 UTC; ``person``: keyed hash, "" where the act concerns no single one."""

    n: int
    t: float
    action: str
    dataset: str
    person: str
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """All lines, oldest first. ``broken_at``: number of the first line that does not fit the chain; None: all fit."""

    lines: tuple[AuditLine, ...]
    broken_at: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "intact": self.broken_at is None,
            "broken_at": self.broken_at,
            "lines": [{**vars(line), "counts": dict(line.counts)} for line in self.lines],
        }


def append_audit(
    workspace: Workspace,
    action: str,
    *,
    dataset: str = "",
    person: str = "",
    counts: Mapping[str, int] | None = None,
    note: str = "",
) -> AuditLine:
    """Appends a line, flushed to disk; lines of two processes never mix.

    Args:
        person: a keyed hash, see :func:`llmrec_core.data.privacy.keys.keyed_hash`; never a raw id.

    Raises:
        LLMRecError: the file cannot be written.
        DataError: the chain is broken already; it must be looked into before it goes on.
    """
    with exclusive(workspace, "audit", wait_s=30.0):
        path = privacy_folder(workspace) / FILE
        found, last = _read(path)
        if found.broken_at is not None:
            raise DataError(
                f"line {found.broken_at} of the audit was changed or is missing.",
                where=str(path),
                fix="Keep this file for whoever looks into it, and move it away; a new one is begun then.",
            )
        line = AuditLine(len(found.lines) + 1, round(time.time(), 3), action, dataset, person, dict(counts or {}), note)
        body = {**vars(line), "previous": last}
        text = canonical_json({**body, "hash": _hash(body)})
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            try:
                os.write(handle, text.encode() + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise LLMRecError(
                f"the audit cannot be written: {error.strerror or error}.", where=str(path), fix="Free some space."
            ) from None
    return line


def read_audit(workspace: Workspace) -> Audit:
    """The audit with its chain checked; empty where nothing was done yet."""
    return _read(privacy_folder(workspace) / FILE)[0]


def _read(path: Path) -> tuple[Audit, str]:
    """The audit, and the hash of its last good line."""
    lines: list[AuditLine] = []
    last = _START
    try:
        raw_lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return Audit(()), last
    for n, raw in enumerate(raw_lines, start=1):
        try:
            body = json.loads(raw)
            claimed = body.pop("hash")
            previous = body.pop("previous")
            line = AuditLine(**body)
            good = previous == last and claimed == _hash({**body, "previous": previous}) and line.n == n
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good = False
        if not good:
            return Audit(tuple(lines), n), last
        lines.append(line)
        last = claimed
    return Audit(tuple(lines)), last


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


@contextmanager
def exclusive(workspace: Workspace, name: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds a named lock of the workspace that ends with the process, however it dies.

    Raises:
        LLMRecError: another process holds it for longer than ``wait_s``.
    """
    path = privacy_folder(workspace) / f"{name}.lock"
    with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as connection:
        try:
            # SQLite's own file lock: the same on every system, and gone when the process is.
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise LLMRecError(
                f"another process is at work on the {name} of this workspace ({error}).",
                where=str(path.parent),
                fix="Wait until it has ended, then try again.",
            ) from None
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
