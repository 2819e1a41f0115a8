"""A workspace whose runs are invented jobs in real processes, with impatient supervisors."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec_core.runs import Run, RunStatus, RunStore, Supervisor, processes, run_foreground
from llmrec_core.runs.folder import RunFolder
from llmrec_core.runs.supervisor import Timing
from llmrec_core.specs import DatasetRef, RunSpec
from llmrec_core.workspace import Workspace

HERE = Path(__file__).parent
IMPATIENT = Timing(poll_s=0.05, term_after_s=0.4, kill_after_s=0.4, settle_after_s=0.4, stalled_after_s=0.5)


def fake_argv(folder: Path) -> list[str]:
    return [sys.executable, str(HERE / "fake_worker.py"), str(folder)]


def version_one(workspace: Workspace, wanted: DatasetRef) -> DatasetRef:
    """Stands in for the data room: every dataset exists, in one version."""
    return DatasetRef(name=wanted.name, version=wanted.version or 1)


class Lab:
    """One workspace with shorthands for what tests do with it."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root)
        self.store = RunStore(self.workspace, version_one)
        self.supervisor = Supervisor(self.workspace, fake_argv, IMPATIENT)
        self.supervisor.store = self.store

    def spec(self, job: str, **fields: Any) -> RunSpec:
        return RunSpec(name=job, dataset=DatasetRef(name="films"), **fields)

    def submit(self, job: str = "nothing", **fields: Any) -> str:
        return self.store.submit(self.spec(job, **fields))

    def run(self, job: str, **fields: Any) -> Run:
        """Submits and waits for the end."""
        run_id = self.submit(job, **fields)
        self.finish(run_id)
        return self.store.get(run_id)

    def finish(self, run_id: str, on_event: Callable[[dict[str, Any]], None] = lambda event: None) -> RunStatus:
        return run_foreground(self.workspace, run_id, on_event, self.supervisor)

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.workspace.runs / run_id)

    def until(self, condition: Callable[[], object], *, tick: bool = True, limit_s: float = 15.0) -> None:
        """Serves the queue until the condition holds."""
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            if tick:
                self.supervisor.tick()
            time.sleep(0.02)

    def started(self, job: str, **fields: Any) -> str:
        """A run whose job is at work."""
        run_id = self.submit(job, **fields)
        self.until(lambda: self.store.events(run_id))
        self.until(lambda: self.store.get(run_id).status.state == "running")
        return run_id

    def close(self) -> None:
        """Ends the workers that a test left."""
        self.supervisor.stop()
        for row in self.store.queue.live():
            if row.worker is not None:
                processes.kill(row.worker)
        end = time.monotonic() + 10
        while any(row.state == "claimed" for row in self.store.queue.live()) and time.monotonic() < end:
            self.supervisor.tick(start=False)
            time.sleep(0.02)

    def worker(self, run_id: str) -> processes.ProcessId:
        process = self.store.get(run_id).status.process
        assert process is not None
        return process
