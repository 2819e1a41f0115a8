"""What happened in a run, one JSON object a line in ``events.jsonl``.

Every event has ``n`` (running number from 1, equal to its line), ``t`` (seconds since 1970) and ``type``:

=============  ==========================================================================================
stage          stage: data | baselines | tokenizing | training | fusion | evaluating | saving
progress       stage, step, total, eta_s
train          step, total, epoch, loss, learning_rate, samples_per_s, tokens_per_s, memory_bytes, eta_s
validation     step, metrics {name: value}
baseline       name, metrics {name: value}: a floor on the validation part, for the line in the live plot
log            level: info | warning | error, message
result         the result document of the run
=============  ==========================================================================================
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENT_TYPES = frozenset({"stage", "progress", "train", "validation", "baseline", "log", "result"})


class EventWriter:
    """Appends events; each is one write of one whole line, so that a reader never meets half of two."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        written = path.read_bytes() if path.exists() else b""
        self._n = written.count(b"\n")
        self._torn = bool(written) and not written.endswith(b"\n")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o644)

    def write(self, event_type: str, **payload: Any) -> dict[str, Any]:
        """Appends one event and returns it as written: NaN and infinities are null, arrays are lists.

        Raises:
            ValueError: the type is not one of :data:`EVENT_TYPES`, or a payload key is ``n``, ``t`` or ``type``.
            OSError: the disk is full or gone.
        """
        if event_type not in EVENT_TYPES:
            raise ValueError(f"unknown event type {event_type!r}; known are {', '.join(sorted(EVENT_TYPES))}")
        if taken := payload.keys() & {"n", "t", "type"}:
            raise ValueError(f"event payload may not use {', '.join(sorted(taken))}")
        with self._lock:
            if self._torn:
                # A line cut short by a full disk is ended here, else it would swallow this one too.
                self._append(b"\n")
                self._n += 1
                self._torn = False
            event = {"n": self._n + 1, "t": time.time(), "type": event_type, **json_safe(payload)}
            line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
            self._append(line)
            self._n += 1
        return event

    def _append(self, line: bytes) -> None:
        written = os.write(self._file, line)
        if written < len(line):
            self._torn = True
            raise OSError(errno.ENOSPC, "No space left on device: an event was cut short")

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def read_events(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """Events with a number above ``after``, oldest first; a last line still being written is left for the next time.

    A whole line that cannot be read becomes a ``log`` event that says so, under its own number.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    after = max(0, after)
    return [_parse(line, n) for n, line in enumerate(lines[after:], start=after + 1)]


def _parse(line: bytes, n: int) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and event.get("type") in EVENT_TYPES and isinstance(event.get("t"), int | float):
        return {**event, "n": n}
    return {"n": n, "t": 0.0, "type": "log", "level": "warning", "message": f"line {n} of the events is unreadable"}


def json_safe(value: Any) -> Any:
    """``value`` as plain JSON: NaN and infinities become None, NumPy values lists and numbers, the rest its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    # NumPy scalars and arrays, and tensors, know how to become Python values; importing their libraries is not needed.
    if callable(convert := getattr(value, "tolist", None)):
        return json_safe(convert())
    return str(value)
