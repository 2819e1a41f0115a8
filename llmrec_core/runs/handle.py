"""The worker's side of a run while it goes on: events out, wishes in, a heart that beats.

Only the side thread writes ``status.json`` while the job runs, so neither a slow disk nor a flush ever holds up a
training step.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmrec_core.runs.events import EventWriter
from llmrec_core.runs.folder import RunFolder, RunStatus, Wish
from llmrec_core.runs.store import newest_with_checkpoint
from llmrec_core.specs import RunSpec
from llmrec_core.workspace import Workspace

#: The status follows the events at most this often.
_STATUS_EVERY_S = 0.5
#: ``control.json`` is looked at most this often, so that polling at every step costs nothing.
_CONTROL_EVERY_S = 0.1


class RunHandle:
    """What a job gets to know and to say.

    Attributes:
        run_id: the run's name.
        workspace: where datasets and models are.
        folder: the run's folder.
        checkpoint_dir: for checkpoints of this run.
        artifacts_dir: for what the run leaves; hashed into the manifest.
        resume_from: ``checkpoints`` folder of the nearest ancestor that left any, None when starting anew.
    """

    def __init__(self, folder: RunFolder, spec: RunSpec, status: RunStatus, heartbeat_s: float = 2.0) -> None:
        self.run_id = folder.run_id
        self.workspace = Workspace(folder.path.parent.parent)
        self.folder: Path = folder.path
        self.checkpoint_dir: Path = folder.checkpoints
        self.artifacts_dir: Path = folder.artifacts
        self._ancestor = self._find_ancestor(folder, spec)
        self.resume_from: Path | None = None if self._ancestor is None else self._ancestor.checkpoints
        self._files = folder
        self._events = EventWriter(folder.events_path)
        self._status = status
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._heartbeat_s = heartbeat_s
        self._control_seen_at = float("-inf")
        self._wish: Wish | None = None
        self._heart = threading.Thread(target=self._beat, name=f"heartbeat-{self.run_id}", daemon=True)

    @staticmethod
    def _find_ancestor(folder: RunFolder, spec: RunSpec) -> RunFolder | None:
        return newest_with_checkpoint(folder) if spec.kind == "train" and spec.parent_run is not None else None

    @property
    def status(self) -> RunStatus:
        """The status as it will be written next."""
        with self._lock:
            return self._status

    def start(self) -> None:
        """Starts the heart, and says from where the run goes on."""
        self._heart.start()
        if self._ancestor is not None:
            newest = self._ancestor.checkpoint_names()[0]
            self.emit(
                "log", level="info", message=f"going on from the checkpoints of run {self._ancestor.run_id} ({newest})"
            )

    def emit(self, event_type: str, **payload: Any) -> None:
        """Appends an event (see :mod:`llmrec_core.runs.events`) and keeps the status in step with it.

        Raises:
            ValueError: unknown type. OSError: the disk is full or gone.
        """
        event = self._events.write(event_type, **payload)
        if event_type == "stage":
            self._update(stage=event.get("stage"), step=None, total=None, eta_s=None)
        elif event_type in ("progress", "train"):
            stage = event.get("stage") or ("training" if event_type == "train" else self.status.stage)
            self._update(stage=stage, step=event.get("step"), total=event.get("total"), eta_s=event.get("eta_s"))

    def set_device(self, device: str) -> None:
        """Says which device the job took, so that "auto" keeps no other device busy."""
        self._update(device=device)

    def should_stop(self) -> Wish | None:
        """What people want, to be asked at each step: "cancel" (raise RunCancelledError) or "stop" (end and keep)."""
        now = time.monotonic()
        if self._wish != "cancel" and now - self._control_seen_at >= _CONTROL_EVERY_S:
            self._control_seen_at = now
            self._wish = self._files.wish()
        return self._wish

    def close(self) -> RunStatus:
        """Stops the heart; from here on the caller alone writes the status. Returns the last one."""
        self._closing.set()
        self._changed.set()
        if self._heart.is_alive():
            self._heart.join()
        self._events.close()
        return self.status

    def _update(self, **changes: Any) -> None:
        with self._lock:
            # Validated: events are written by jobs, and a status that cannot be read back hides the run.
            self._status = RunStatus.model_validate({**self._status.model_dump(), **changes})
        self._changed.set()

    def _beat(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                self._status = self._status.model_copy(update={"heartbeat_at": time.time()})
                status = self._status
            try:
                self._files.write_status(status, durable=False)
            except OSError as error:
                # A full disk may be freed again; the job will meet it too when it matters.
                # Its log lies on the same disk.
                with suppress(OSError):
                    print(f"status not written: {error}", flush=True)
            self._closing.wait(min(_STATUS_EVERY_S, self._heartbeat_s))
            self._changed.wait(self._heartbeat_s)
            self._changed.clear()
