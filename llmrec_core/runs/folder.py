"""One run's folder: which file means what, and how it is read when somebody has damaged it.

``spec.json`` is written once, ``status.json`` is replaced whole, ``events.jsonl`` and ``worker.log`` grow,
``control.json`` carries wishes to the worker, and ``manifest.json`` comes last: only a run with a manifest is done.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_core.errors import LLMRecError, SpecError
from llmrec_core.runs.flags import read_flags
from llmrec_core.runs.processes import ProcessId
from llmrec_core.specs import DatasetRef, RunSpec, parse_run_spec
from llmrec_core.workspace import write_json_atomic, write_text_atomic

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
Wish = Literal["cancel", "stop"]
#: States that nothing leaves any more.
TERMINAL: frozenset[str] = frozenset({"done", "failed", "cancelled", "interrupted"})
#: States from which a run can be taken up again.
RESUMABLE: frozenset[str] = frozenset({"failed", "cancelled", "interrupted"})

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")


class RunStatus(BaseModel):
    """Where a run stands. Times are seconds since 1970, for people; nothing is decided by comparing them.

    Attributes:
        state: queued, running, done, failed, cancelled or interrupted.
        stage, step, total: what it is at; ``total`` None where the length is not known.
        eta_s: seconds left in this stage as the job estimates it.
        pid, pid_started_at, boot: the worker, see :class:`~llmrec_core.runs.processes.ProcessId`.
        heartbeat_at: changes every other second while the worker lives.
        submitted_at, started_at, ended_at: when it was queued, taken up, ended.
        error: why it failed, was cancelled or interrupted, in words.
        error_kind: class of that error ("DataError" ...).
        exit_code: exit code that fits the error on the command line.
        device: device asked for, then the device used.
        request_key: key under which it was submitted; the same key is the same run.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: State
    stage: str | None = None
    step: int | None = None
    total: int | None = None
    eta_s: float | None = None
    pid: int | None = None
    pid_started_at: float | None = None
    boot: str = ""
    heartbeat_at: float | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    error_kind: str | None = None
    exit_code: int | None = None
    device: str = "auto"
    request_key: str | None = None

    @property
    def live(self) -> bool:
        """Queued or running."""
        return self.state not in TERMINAL

    @property
    def process(self) -> ProcessId | None:
        """The worker, if one has begun."""
        if self.pid is None or self.pid_started_at is None:
            return None
        return ProcessId(self.pid, self.pid_started_at, self.boot)

    def ended(
        self,
        state: State,
        error: str | None = None,
        *,
        error_kind: str | None = None,
        exit_code: int | None = None,
    ) -> RunStatus:
        """This status brought to a terminal state, now."""
        return self.model_copy(
            update={
                "state": state,
                "error": error,
                "error_kind": error_kind,
                "exit_code": exit_code,
                "ended_at": time.time(),
                "eta_s": None,
            }
        )


@dataclass(frozen=True)
class Run:
    """One run as it lies on disk.

    Attributes:
        run_id: its name, also of its folder.
        spec: what it does; a stand-in with a telling name when ``problem`` is set.
        status: where it stands.
        folder: where its files are.
        problem: why its spec or status cannot be read; "" when all is well.
    """

    run_id: str
    spec: RunSpec
    status: RunStatus
    folder: Path
    problem: str = ""

    @property
    def warning(self) -> str:
        """What removals of persons mean for this run, or for the one it measured again; "" when nothing."""
        measured = self.spec.parent_run if self.spec.kind == "evaluate" else None
        folder = self.folder if measured is None else self.folder.with_name(measured)
        return read_flags(folder).sentence


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.spec_path = path / "spec.json"
        self.status_path = path / "status.json"
        self.events_path = path / "events.jsonl"
        self.log_path = path / "worker.log"
        self.control_path = path / "control.json"
        self.manifest_path = path / "manifest.json"
        #: Bytes kept aside by the worker, given back on a full disk so that there is room for its last word.
        self.ballast_path = path / ".ballast"
        self.checkpoints = path / "checkpoints"
        self.artifacts = path / "artifacts"
        self.result_path = self.artifacts / "result.json"

    def create(self, spec: RunSpec, status: RunStatus) -> None:
        """Fills a new folder; the caller moves it into place when it is whole."""
        self.path.mkdir()
        self.checkpoints.mkdir()
        self.artifacts.mkdir()
        write_json_atomic(self.spec_path, spec.model_dump(mode="json"))
        self.write_status(status)

    def load(self) -> Run:
        """The run, whatever state its files are in: damage shows in ``Run.problem`` and never raises."""
        problem = ""
        try:
            spec = self.read_spec()
        except LLMRecError as error:
            problem = str(error)
            spec = RunSpec(name="(unreadable spec)", dataset=DatasetRef(name="?"))
        try:
            status = self.read_status()
        except LLMRecError as error:
            problem = problem or str(error)
            status = RunStatus(state="failed", error=str(error), error_kind="unreadable")
        if problem and not status.error:
            status = status.model_copy(update={"error": problem, "error_kind": "unreadable"})
        if problem and status.state in ("queued", "done"):
            # It can neither start nor be used; a running worker has its spec in memory and goes on.
            status = status.model_copy(update={"state": "failed"})
        return Run(self.run_id, spec, status, self.path, problem)

    def read_spec(self) -> RunSpec:
        """Raises: SpecError: the file is missing, is no JSON, or is not a run spec."""
        try:
            stat = self.spec_path.stat()
        except OSError:
            stat = None
        return _parsed_spec(self.spec_path, stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size))

    def read_status(self) -> RunStatus:
        """Raises: SpecError: the file is missing or damaged."""
        try:
            return RunStatus.model_validate(_read_json(self.status_path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise SpecError(
                f"the status is unreadable: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
                where=str(self.status_path),
                fix="Delete the run, or restore the file.",
            ) from None

    def write_status(self, status: RunStatus, *, durable: bool = True) -> None:
        """Replaces ``status.json``. Raises: OSError: the disk is full or gone."""
        write_text_atomic(self.status_path, status.model_dump_json(indent=2) + "\n", durable=durable)

    def wish(self) -> Wish | None:
        """What people want of the worker; None when nothing, or nothing readable."""
        try:
            action = json.loads(self.control_path.read_bytes()).get("action")
        except (OSError, ValueError, AttributeError):
            return None
        return action if action in ("cancel", "stop") else None

    def set_wish(self, wish: Wish) -> None:
        """Asks the worker; a cancellation is never taken back."""
        if self.wish() != "cancel":
            write_json_atomic(self.control_path, {"action": wish, "asked_at": time.time()})

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint folder with something in it."""
        return bool(self.checkpoint_names())

    def checkpoint_names(self) -> list[str]:
        """``checkpoint-<step>`` folders, newest first; whether each is whole is for the trainer to judge."""
        if not self.checkpoints.is_dir():
            return []
        found = [
            (int(match[1]), child.name)
            for child in self.checkpoints.iterdir()
            if (match := _CHECKPOINT.fullmatch(child.name))
            and child.is_dir()
            and not child.is_symlink()
            and any(child.iterdir())
        ]
        return [name for _, name in sorted(found, reverse=True)]

    def log_tail(self, lines: int) -> str:
        """The last lines of ``worker.log``; at most the last 512 KiB are looked at."""
        try:
            with open(self.log_path, "rb") as stream:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - 512 * 1024))
                text = stream.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""


@lru_cache(maxsize=2048)
def _parsed_spec(path: Path, version: tuple[int, int, int] | None) -> RunSpec:
    """The spec in that version of the file. Pages list all runs every other second, and specs are written once."""
    return parse_run_spec(_read_json(path), where=str(path), stored=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpecError("the file is missing.", where=str(path), fix="Delete the run, or restore the file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(
            f"the file cannot be read: {error}.", where=str(path), fix="Delete the run, or restore the file."
        ) from None
