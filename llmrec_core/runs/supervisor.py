"""Keeps the queue moving: starts workers, ends those that are to end, and explains the deaths of those that could not.

Any number of supervisors (two apps, a command line) may work on one workspace: every decision is taken in a transaction
of the index, and a worker belongs to nobody once it runs. Killing the app therefore leaves its run alone, and the next
app finds the worker by pid and start time.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_core.errors import LLMRecError, RunCancelledError
from llmrec_core.runs import processes
from llmrec_core.runs.folder import TERMINAL, RunFolder, RunStatus
from llmrec_core.runs.processes import ProcessId
from llmrec_core.runs.queue import QueueRow, Transaction
from llmrec_core.runs.store import DELETED, NEW, RunStore, adopt, is_damaged, run_folders
from llmrec_core.workspace import Workspace

logger = logging.getLogger(__name__)

#: Workers started by this process; only their parent learns how they ended. Shared by its supervisors.
_children: dict[str, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Timing:
    """Patience of a supervisor, in seconds.

    Attributes:
        poll_s: between two looks at the queue.
        term_after_s: from the wish to cancel to TERM; a worker looks at its wishes at every step.
        kill_after_s: from TERM, or from the last word of a worker that does not go, to KILL.
        settle_after_s: how long a dead worker is left to the living process that started it.
        stalled_after_s: silence after which a living worker counts as stalled.
    """

    poll_s: float = 0.5
    term_after_s: float = 10.0
    kill_after_s: float = 10.0
    settle_after_s: float = 5.0
    stalled_after_s: float = 30.0


def worker_argv(folder: Path) -> list[str]:
    """How the worker of a run folder is started."""
    return processes.module_argv("llmrec_core.runs.worker", str(folder))


class _Clock:
    """Since when something is so, per run, on a clock that nobody can set."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[Any, float]] = {}

    def held_s(self, key: str, value: Any) -> float:
        """Seconds for which ``key`` has had this value, as seen from here."""
        now = time.monotonic()
        known = self._since.get(key)
        if known is None or known[0] != value:
            self._since[key] = (value, now)
            return 0.0
        return now - known[1]

    def keep_only(self, keys: set[str]) -> None:
        self._since = {key: value for key, value in self._since.items() if key in keys}


class Supervisor:
    """The queue of one workspace, served by a background thread or by hand with :meth:`tick`.

    Args:
        workspace: whose runs.
        argv: how a worker is started on a run folder; tests give their own program.
        timing: how patient to be.
    """

    def __init__(
        self,
        workspace: Workspace,
        argv: Callable[[Path], list[str]] = worker_argv,
        timing: Timing | None = None,
    ) -> None:
        self.workspace = workspace
        self.store = RunStore(workspace)
        self.timing = timing or Timing()
        #: The last fault of the background thread, for the settings page; None while all is well.
        self.last_error: str | None = None
        self._argv = argv
        self._me = processes.current()
        self._wishes, self._deaths, self._beats = _Clock(), _Clock(), _Clock()
        self._silent: dict[str, float] = {}
        self._tick_lock = threading.Lock()
        self._life_lock = threading.Lock()
        self._quit = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the background thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread unless it runs already; the first thing it does is :meth:`reconcile`."""
        with self._life_lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._quit = threading.Event()
            self._thread = threading.Thread(
                target=self._serve, args=(self._quit,), name="llmrec-supervisor", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread; workers go on."""
        with self._life_lock:
            self._quit.set()
            if self._thread is not None:
                self._thread.join()
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def _serve(self, quit_: threading.Event) -> None:
        step: Callable[[], object] = self.reconcile
        while not quit_.is_set():
            try:
                step()
                step, self.last_error = self.tick, None
            except Exception as error:
                # The thread must outlive a full disk or a locked file; the fault is logged and shown, and tried again.
                if str(error) != self.last_error:
                    logger.exception("the supervisor could not do its round")
                self.last_error = str(error)
            quit_.wait(self.timing.poll_s if self.last_error is None else 10 * self.timing.poll_s)

    # -- one round ------------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Brings index, folders and process table together after a crash or a lost index; starts nothing."""
        runs = self.workspace.runs
        with self.store.queue.transaction() as transaction:
            # Submissions and deletions hold this lock while such folders exist under way, so these are left-overs.
            for path in runs.iterdir():
                if path.name.startswith((NEW, DELETED)) and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
            known = transaction.known()
            lost = [RunFolder(path) for path in run_folders(self.workspace) if path.name not in known]
            for folder in sorted(lost, key=lambda f: (f.load().status.submitted_at or 0.0, f.run_id)):
                adopt(transaction, folder)
        self.tick(start=False)

    def tick(self, *, start: bool = True) -> bool:
        """One look at everything live; returns whether anything is still live.

        Args:
            start: also start the next run of each free device.
        """
        with self._tick_lock:
            rows = self.store.queue.live()
            claimed = [row for row in rows if row.state == "claimed"]
            for clock in (self._wishes, self._deaths, self._beats):
                clock.keep_only({row.run_id for row in claimed})
            self._silent = {row.run_id: self._silent.get(row.run_id, 0.0) for row in claimed}
            for row in claimed:
                if row.worker is not None and processes.is_alive(row.worker):
                    self._watch(row, row.worker)
                else:
                    self._settle(row)
            if start and any(row.state == "queued" for row in rows):
                self._start_next()
            return bool(rows)

    def silent_s(self, run_id: str) -> float:
        """Seconds without a heartbeat of a living worker, by this process's own clock; 0 for others."""
        return self._silent.get(run_id, 0.0)

    def stalled(self) -> list[str]:
        """Runs whose worker lives but has been silent for too long (suspended, or stuck in a broken driver)."""
        return [run_id for run_id, silent_s in self._silent.items() if silent_s > self.timing.stalled_after_s]

    def _watch(self, row: QueueRow, worker: ProcessId) -> None:
        """Hears the heartbeat of a living worker, and ends one that was told to end and does not."""
        folder = RunFolder(self.workspace.runs / row.run_id)
        status = folder.load().status
        self._silent[row.run_id] = self._beats.held_s(row.run_id, status.heartbeat_at)
        if status.state in TERMINAL and not is_damaged(status):
            # Its last word is written. What keeps it (a thread, a driver) only keeps the device from the next run.
            if self._wishes.held_s(row.run_id, "ended") > self.timing.kill_after_s:
                processes.kill(worker)
        elif folder.wish() == "cancel":
            waited_s = self._wishes.held_s(row.run_id, "cancel")
            if waited_s > self.timing.term_after_s + self.timing.kill_after_s:
                processes.kill(worker)
            elif waited_s > self.timing.term_after_s:
                processes.terminate(worker)

    def _settle(self, row: QueueRow) -> None:
        """Frees the place of a dead worker, and explains its death if it could not."""
        child = _children.get(row.run_id)
        if child is not None and row.worker is not None and child.pid != row.worker.pid:
            child = None
        if (
            child is None
            and row.owner is not None
            and processes.is_alive(row.owner)
            and self._deaths.held_s(row.run_id, "dead") < self.timing.settle_after_s
        ):
            # Its parent knows more than "gone", and speaks first unless it has stopped looking.
            return
        if child is not None and row.worker is not None:
            processes.kill_orphans(row.worker)
        code = child.wait() if child is not None else None
        with self.store.queue.transaction() as transaction:
            now = transaction.get(row.run_id)
            if now is None or now.state != "claimed":
                return
            folder = RunFolder(self.workspace.runs / row.run_id)
            if folder.path.is_dir():
                run = folder.load()
                if run.status.live or is_damaged(run.status):
                    folder.ballast_path.unlink(missing_ok=True)
                    folder.write_status(_last_word(folder, run.status, code))
            transaction.end(row.run_id)
        _children.pop(row.run_id, None)

    def _start_next(self) -> None:
        """Starts the oldest queued run of each device that is free.

        A run that has to wait keeps its device from younger ones, so "auto" (it may take any) is not overtaken forever.
        """
        with self.store.queue.transaction() as transaction:
            rows = transaction.live()
            taken = [
                self._device(row)
                for row in rows
                if row.state == "claimed" and row.worker is not None and processes.is_alive(row.worker)
            ]
            for row in rows:
                if row.state != "queued":
                    continue
                if not any(same_device(row.device, other) for other in taken):
                    self._start(transaction, row)
                taken.append(row.device)

    def _device(self, row: QueueRow) -> str:
        """The device that a running worker took; what it asked for until it says so."""
        status = RunFolder(self.workspace.runs / row.run_id).load().status
        return row.device if is_damaged(status) else status.device

    def _start(self, transaction: Transaction, row: QueueRow) -> None:
        folder = RunFolder(self.workspace.runs / row.run_id)
        if not folder.path.is_dir():
            # Somebody removed it by hand.
            transaction.remove(row.run_id)
            return
        run = folder.load()
        if run.problem:
            folder.write_status(run.status.ended("failed", run.problem, error_kind="SpecError", exit_code=2))
            transaction.end(row.run_id)
            return
        try:
            environment = processes.import_path() | processes.computing_environment()
            child = processes.spawn(self._argv(folder.path), folder.log_path, environment)
        except OSError as error:
            text = f"the worker could not be started: {error}."
            folder.write_status(run.status.ended("failed", text, error_kind=type(error).__name__, exit_code=1))
            transaction.end(row.run_id)
            return
        _children[row.run_id] = child
        worker = processes.identify(child.pid, remains=True) or ProcessId(child.pid, 0.0)
        # The worker waits for this transaction and leaves if it does not name it: there is never a second one.
        transaction.claim(row.run_id, worker, self._me)


def same_device(one: str, other: str) -> bool:
    """Whether two runs could meet on a device; "auto" may be any."""
    names = ["cuda:0" if name == "cuda" else name for name in (one, other)]
    return "auto" in names or names[0] == names[1]


def _last_word(folder: RunFolder, status: RunStatus, code: int | None) -> RunStatus:
    """The terminal status of a worker that died without writing one; ``code`` None where nobody knows how it ended."""
    if folder.manifest_path.is_file():
        return status.ended("done")
    if folder.wish() == "cancel":
        return status.ended(
            "cancelled",
            "cancelled by a person",
            error_kind="RunCancelledError",
            exit_code=RunCancelledError.exit_code,
        )
    if code is None:
        text = "the worker is gone without a word: killed, or the machine was restarted. Resume the run to go on."
        return status.ended("interrupted", text, error_kind="Gone", exit_code=1)
    if code < 0:
        name = _signal_name(-code)
        if name in ("SIGTERM", "SIGINT", "SIGHUP"):
            return status.ended("interrupted", f"the worker was ended by {name}.", error_kind=name, exit_code=1)
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        text = f"killed by {name}{hint}. Resume the run to go on; the end of its log may say more."
        return status.ended("failed", text, error_kind=name, exit_code=1)
    last = folder.log_tail(1).strip()
    text = f"the worker ended with exit code {code} before the run was done" + (f": {last[:500]}" if last else ".")
    return status.ended("failed", text, error_kind="WorkerExit", exit_code=1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- ways to have a supervisor ------------------------------------------------------------------------------------

_singletons: dict[Path, Supervisor] = {}
_singletons_lock = threading.Lock()


def supervisor_for(workspace: Workspace) -> Supervisor:
    """The one supervisor of this process for that workspace; the caller starts it."""
    with _singletons_lock:
        root = workspace.root.resolve()
        if root not in _singletons:
            _singletons[root] = Supervisor(workspace)
        return _singletons[root]


def reconcile(workspace: Workspace) -> None:
    """Settles runs whose worker is gone; for commands that list runs while no app is open."""
    Supervisor(workspace).reconcile()


def cancel_run(workspace: Workspace, run_id: str, supervisor: Supervisor | None = None) -> RunStatus:
    """Cancels a run and waits until it has ended, by TERM and KILL if it does not listen; returns its last status.

    Raises:
        NotFoundError: no such run. InputError: it had ended already.
    """
    supervisor = supervisor or Supervisor(workspace)
    supervisor.store.cancel(run_id)
    return _until_ended(supervisor, run_id, start=False)


def _until_ended(supervisor: Supervisor, run_id: str, *, start: bool) -> RunStatus:
    while True:
        supervisor.tick(start=start)
        status = supervisor.store.get(run_id).status
        if not status.live and not any(row.run_id == run_id for row in supervisor.store.queue.live()):
            return status
        time.sleep(min(0.1, supervisor.timing.poll_s))


def run_foreground(
    workspace: Workspace,
    run_id: str,
    on_event: Callable[[dict[str, Any]], None],
    supervisor: Supervisor | None = None,
) -> RunStatus:
    """Serves the queue until that run has ended; returns its last status.

    While the device is busy, older runs come first, and a ``log`` event with ``n`` 0 says what is waited for. Ctrl-C
    cancels the run; a second one does so without waiting for the worker to listen.

    Args:
        workspace: where the run is.
        run_id: a queued or running run.
        on_event: gets every event of the run, in order.
        supervisor: to use instead of a new one.

    Raises:
        NotFoundError: no such run.
    """
    supervisor = supervisor or Supervisor(workspace)
    store = supervisor.store
    store.get(run_id)
    supervisor.reconcile()
    seen, said = 0, ""
    with _interrupts() as asked:
        while True:
            try:
                if asked:
                    asked.pop()
                    _cancel_now(supervisor, run_id)
                status, live = _look(supervisor, run_id)
                for event in store.events(run_id, after=seen):
                    seen = event["n"]
                    on_event(event)
                if not live:
                    return status
                if status.state == "queued" and (wait := _waiting_for(store, run_id)) != said:
                    said = wait
                    if said:
                        on_event({"n": 0, "t": time.time(), "type": "log", "level": "info", "message": said})
                time.sleep(min(0.2, supervisor.timing.poll_s))
            except KeyboardInterrupt:
                _cancel_now(supervisor, run_id)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as entries of a list, to be looked at between two steps.

    Raised as an exception it can fall into a callback of a library, where Python drops it and the run goes on. Outside
    the main thread, where no handler may be set, nothing is changed.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


def _look(supervisor: Supervisor, run_id: str) -> tuple[RunStatus, bool]:
    """Serves the queue once; the run's status, and whether it is live.

    On a full disk the index may not even open. The run's folder still tells how it ends, so nothing is given up while
    its worker lives.
    """
    store = supervisor.store
    try:
        supervisor.tick()
        live = any(row.run_id == run_id for row in store.queue.live())
        return store.get(run_id).status, live
    except LLMRecError:
        status = store.get(run_id).status
        if status.live and (status.process is None or not processes.is_alive(status.process)):
            raise
        return status, status.live


def _cancel_now(supervisor: Supervisor, run_id: str) -> None:
    """First Ctrl-C: the gentle way. Second: the worker is ended at once."""
    try:
        again = RunFolder(supervisor.workspace.runs / run_id).wish() == "cancel"
        supervisor.store.cancel(run_id)
    except LLMRecError:
        # It ended in this very moment; the loop reports how.
        return
    if again:
        for row in supervisor.store.queue.live():
            if row.run_id == run_id and row.worker is not None:
                processes.kill(row.worker)


def _waiting_for(store: RunStore, run_id: str) -> str:
    """Why a queued run has not begun; "" when nothing is before it."""
    rows = store.queue.live()
    mine = next((row for row in rows if row.run_id == run_id), None)
    if mine is None:
        return ""
    before = [row.run_id for row in rows[: rows.index(mine)] if same_device(row.device, mine.device)]
    return f"waiting for run {', '.join(before)} on device {mine.device}" if before else ""


def detach(workspace: Workspace) -> int:
    """Starts a supervisor of its own session that serves the queue until it is empty; returns its pid.

    For ``--detach``: the run begins although neither an app nor this command stays.
    """
    argv = processes.module_argv("llmrec_core.runs", str(workspace.root), "--until-idle")
    child = processes.spawn(argv, workspace.runs / "supervisor.log", processes.import_path())
    # It is not this process's to wait for, and says so itself in its log.
    child.returncode = 0
    return child.pid


def serve(workspace: Workspace, *, until_idle: bool, supervisor: Supervisor | None = None) -> None:
    """Serves the queue in this process, for ever or until nothing is queued or running."""
    supervisor = supervisor or Supervisor(workspace)
    supervisor.reconcile()
    while supervisor.tick() or not until_idle:
        time.sleep(supervisor.timing.poll_s)
