"""The process of one run: ``python -m llmrec_core.runs.worker RUN_FOLDER``.

It makes sure that the queue means this very process, does the job, and leaves a last word in ``status.json`` whatever
happens: done (after the manifest), failed with the reason, cancelled or interrupted. Only a death that gives no chance
to write, such as KILL, is left for the supervisor to explain.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from llmrec_core.errors import LLMRecError, RunCancelledError
from llmrec_core.runs.events import json_safe
from llmrec_core.runs.folder import RunFolder, RunStatus
from llmrec_core.runs.handle import RunHandle
from llmrec_core.runs.manifest import build_manifest
from llmrec_core.runs.processes import ProcessId
from llmrec_core.runs.queue import Queue
from llmrec_core.specs import RunSpec
from llmrec_core.workspace import write_json_atomic

__all__ = ["Job", "RunHandle", "main"]

Job = Callable[[RunSpec, RunHandle], dict[str, Any]]

#: The worker is refused when the queue names another process.
EXIT_NOT_MINE = 3
#: Enough for the last status and for the index to note it; random, so that no file system stores it as nothing.
_BALLAST_BYTES = 256 * 1024
_ENVIRONMENT = {
    # What a run loads comes from disk; libraries are not to look for newer files on a hub behind its back.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Terminated(BaseException):
    """Somebody sent a signal; not an Exception, so that no job swallows it."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


def run_job(spec: RunSpec, run: RunHandle) -> dict[str, Any]:
    """The real job; imported only here, inside the worker, because it brings PyTorch along."""
    from llmrec_core.runs.jobs import run_job as job

    return job(spec, run)


def main(path: Path, job: Job = run_job, *, heartbeat_s: float = 2.0) -> int:
    """Does the job of one run folder; returns the exit code of this process.

    Args:
        path: the run's folder.
        job: what to compute; tests give their own.
        heartbeat_s: seconds between two signs of life.
    """
    folder = RunFolder(path.resolve())
    worker = _confirm(folder)
    if worker is None:
        print(f"run {folder.run_id} was not given to process {os.getpid()}; leaving it alone", flush=True)
        return EXIT_NOT_MINE
    os.environ.update(_ENVIRONMENT)
    faulthandler.enable()
    _prefer_to_die()
    return _Worker(folder, worker).work(job, heartbeat_s)


class _Worker:
    """One life: from taking the run up to the last word."""

    def __init__(self, folder: RunFolder, process: ProcessId) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.deaf = False
        self.began = time.monotonic()
        self.handle: RunHandle | None = None
        try:
            before = folder.read_status()
        except LLMRecError as error:
            # Times and the request key are lost with the damaged file; the run itself need not be.
            _say(f"{error}")
            before = RunStatus(state="queued")
        self.status = before.model_copy(
            update={
                "state": "running",
                "pid": process.pid,
                "pid_started_at": process.started_at,
                "boot": process.boot,
                "started_at": time.time(),
                "heartbeat_at": time.time(),
            }
        )

    def work(self, job: Job, heartbeat_s: float) -> int:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            self.folder.write_status(self.status)
            self.folder.ballast_path.write_bytes(os.urandom(_BALLAST_BYTES))
            spec = self.folder.read_spec()
            self.handle = RunHandle(self.folder, spec, self.status, heartbeat_s)
            self.handle.start()
            result = self._result(job(spec, self.handle))
            self._leave(spec, result)
        except BaseException as error:
            self.deaf = True
            self._record(error)
        self.folder.ballast_path.unlink(missing_ok=True)
        return 0 if self.status.state == "done" else 1

    def _result(self, result: dict[str, Any]) -> dict[str, Any]:
        assert self.handle is not None
        elapsed_s = round(time.monotonic() - self.began, 3)
        filled = {"run_id": self.folder.run_id, "state": "done", "elapsed_s": elapsed_s}
        plain: dict[str, Any] = json_safe({**filled, **result})
        write_json_atomic(self.folder.result_path, plain)
        self.handle.emit("result", **{key: value for key, value in plain.items() if key not in ("n", "t", "type")})
        return plain

    def _leave(self, spec: RunSpec, result: dict[str, Any]) -> None:
        """Manifest last; a wish to cancel counts until it is there."""
        assert self.handle is not None
        status = self.handle.status.ended("done")
        manifest = build_manifest(self.folder, spec, status, result)
        if self.folder.wish() == "cancel":
            raise RunCancelledError("the run was cancelled.")
        self.deaf = True
        self.handle.close()
        write_json_atomic(self.folder.manifest_path, manifest)
        self._end(status)

    def _record(self, error: BaseException) -> None:
        """The last word of a run that did not get to its manifest."""
        if self.handle is not None:
            self.status = self.handle.close()
        cancelled = self.folder.wish() == "cancel"
        if isinstance(error, RunCancelledError) or (cancelled and isinstance(error, _Terminated)):
            ended = self.status.ended(
                "cancelled",
                "cancelled by a person",
                error_kind="RunCancelledError",
                exit_code=RunCancelledError.exit_code,
            )
        elif isinstance(error, _Terminated):
            ended = self.status.ended(
                "interrupted",
                f"the worker was asked to end by {error.name}. Resume the run to go on.",
                error_kind=error.name,
                exit_code=1,
            )
        else:
            if _disk_full(error):
                self.folder.ballast_path.unlink(missing_ok=True)
            _say("".join(traceback.format_exception(error)).rstrip())
            ended = self.status.ended(
                "failed", reason(error), error_kind=type(error).__name__, exit_code=getattr(error, "exit_code", 1)
            )
        self._end(ended)

    def _end(self, status: RunStatus) -> None:
        """Writes the terminal status; on a full disk with the room kept aside for it."""
        self.status = status
        for patience_s in (0.0, 0.1, 0.5, 2.0):
            time.sleep(patience_s)
            try:
                self.folder.write_status(status)
                return
            except OSError as error:
                _say(f"last status not written: {error}")
                self.folder.ballast_path.unlink(missing_ok=True)
        # The supervisor finds the process gone, and this line with it.
        _say(f"the run ended as {status.state}: {status.error}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            # A forked helper inherited this handler; it simply ends.
            os._exit(128 + number)
        if not self.deaf:
            self.deaf = True
            raise _Terminated(number)


def reason(error: BaseException) -> str:
    """Why a run failed, for a person: known causes in words, the rest as ``ErrorType: message``."""
    if isinstance(error, LLMRecError):
        return str(error)
    kind = type(error).__name__
    text = f"{kind}: {error}" if str(error) else kind
    if _disk_full(error):
        return f"the disk is full ({text}). Free some space, then resume the run."
    if isinstance(error, MemoryError):
        return f"out of memory ({text}). Close other programs, or lower training.batch_size or prompt.max_tokens."
    if kind == "OutOfMemoryError":
        return f"out of device memory ({text}). Lower training.batch_size or prompt.max_tokens, or use device cpu."
    return text


def _disk_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            return True
        # Libraries in other languages report the system's words inside errors of their own.
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _confirm(folder: RunFolder) -> ProcessId | None:
    """The identity under which the queue holds this run, if it is this process's.

    The supervisor starts the worker and names it inside one transaction; waiting for the lock here means that its
    decision is known. A worker whose supervisor died before that finds itself unnamed and leaves.
    """
    with Queue(folder.path.parent / "runs.sqlite").transaction() as transaction:
        row = transaction.get(folder.run_id)
    if row is None or row.state != "claimed" or row.worker is None:
        return None
    # In a virtual environment on Windows the started program is a launcher, and this process its child.
    mine = {os.getpid(), os.getppid()} if sys.platform == "win32" else {os.getpid()}
    return row.worker if row.worker.pid in mine else None


def _say(text: str) -> None:
    """A line for ``worker.log``; that file lies on the same disk, and a full one must not cost the last word."""
    with suppress(OSError):
        print(text, flush=True)


def _prefer_to_die() -> None:
    """When memory runs out, Linux is to end this process rather than the app."""
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
