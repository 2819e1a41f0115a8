"""The runs of a workspace: submitted, listed, steered and read. Nothing here computes or starts processes.

A run is a folder; the index only orders the queue. So pages and the command line may look at runs while any number of
other processes work on them.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec_core.data.privacy.removals import refuse_while_pending
from llmrec_core.errors import InputError, LLMRecError, NotFoundError, RunCancelledError, RunFailedError
from llmrec_core.prompts import STARTERS, TemplateStore, paraphrase_source, template_source
from llmrec_core.runs.events import read_events
from llmrec_core.runs.folder import RESUMABLE, Run, RunFolder, RunStatus
from llmrec_core.runs.processes import is_alive
from llmrec_core.runs.queue import Queue, QueueRow, Transaction
from llmrec_core.specs import DatasetRef, RunSpec, changed_shape
from llmrec_core.workspace import Workspace, check_name

#: Letters of the random part of a run id; none that are mistaken for another when read aloud or typed.
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
NEW, DELETED = ".new-", ".deleted-"
# Named here because inside RunStore "list" is a method.
Runs = list[Run]
Events = list[dict[str, Any]]


def resolve_dataset(workspace: Workspace, wanted: DatasetRef) -> DatasetRef:
    """The dataset with a concrete version: the newest, unless one was named.

    Raises:
        NotFoundError: no such dataset or version.
    """
    from llmrec_core.data import DatasetStore

    versions = DatasetStore(workspace).versions(wanted.name)
    if not versions:
        raise NotFoundError(f"there is no dataset {wanted.name!r}.", fix="Import it, or choose one from the list.")
    version = max(versions) if wanted.version is None else wanted.version
    if version not in versions:
        raise NotFoundError(
            f"dataset {wanted.name!r} has no version {version}.", fix=f"It has: {', '.join(map(str, versions))}."
        )
    return DatasetRef(name=wanted.name, version=version)


class RunStore:
    """All runs of one workspace.

    Args:
        workspace: where they live.
        resolve: gives a dataset reference its concrete version; raises NotFoundError for an unknown one.
    """

    def __init__(
        self, workspace: Workspace, resolve: Callable[[Workspace, DatasetRef], DatasetRef] = resolve_dataset
    ) -> None:
        self.workspace = workspace
        self.queue = Queue(workspace.runs / "runs.sqlite")
        self._resolve = resolve

    def submit(self, spec: RunSpec, request_key: str | None = None) -> str:
        """Writes the spec once and queues the run; returns its id.

        Args:
            spec: what to do; an open dataset version becomes the newest one.
            request_key: 1-200 characters. The same key again is the same run, from whatever process it comes.

        Raises:
            InputError: an impossible key, a parent run that does not fit, or a person is being removed from the data.
            NotFoundError: no such dataset, version or parent run.
        """
        if request_key is not None:
            if not 1 <= len(request_key) <= 200:
                raise InputError("a request key has 1 to 200 characters.", where="request_key")
            if known := self.queue.by_key(request_key):
                return known
        return self._submit(self._checked(spec), request_key)

    def get(self, run_id: str) -> Run:
        """Raises: NotFoundError: no such run. InputError: the id is no run id."""
        return self._folder(run_id).load()

    def list(self) -> Runs:
        """All runs, newest first. Damaged ones are among them with ``problem`` set."""
        runs = [RunFolder(path).load() for path in run_folders(self.workspace)]
        return sorted(runs, key=lambda run: (run.status.submitted_at or 0.0, run.run_id), reverse=True)

    def active(self) -> Runs:
        """Queued and running runs, newest first."""
        return [run for run in self.list() if run.status.live]

    def events(self, run_id: str, after: int = 0) -> Events:
        """Events with a running number above ``after``; see :mod:`llmrec_core.runs.events`."""
        return read_events(self._folder(run_id).events_path, after)

    def log(self, run_id: str, lines: int = 200) -> str:
        """The last lines of what the worker printed."""
        return self._folder(run_id).log_tail(lines)

    def result(self, run_id: str) -> dict[str, Any]:
        """The result document of a finished run.

        Raises:
            NotFoundError: no such run.
            RunFailedError, RunCancelledError: it ended without a result, and why.
            InputError: it has not ended yet.
        """
        folder = self._folder(run_id)
        run = folder.load()
        status = run.status
        if status.live:
            raise InputError(f"run {run_id} is {status.state}.", fix="Wait for it to end.")
        if status.state == "cancelled":
            raise RunCancelledError(status.error or "the run was cancelled.", where=f"run {run_id}")
        if status.state != "done" or not folder.manifest_path.is_file():
            raise RunFailedError(status.error or "the run has no manifest.", where=f"run {run_id}")
        try:
            result = json.loads(folder.result_path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunFailedError(
                f"the result cannot be read: {error}.", where=str(folder.result_path), fix="Run it again."
            ) from None
        return dict(result)

    def cancel(self, run_id: str) -> RunStatus:
        """Ends a queued run at once and asks a running one to end; cancelling twice does no harm.

        The worker looks at each step; a supervisor sends TERM and then KILL to one that does not listen.

        Raises:
            NotFoundError: no such run. InputError: it has ended already, otherwise than by cancelling.
        """
        folder = self._folder(run_id)
        with self.queue.transaction() as transaction:
            row = self._row(transaction, folder)
            status = folder.load().status
            if row.state == "queued":
                status = status.ended("cancelled", "cancelled before it began", exit_code=RunCancelledError.exit_code)
                folder.write_status(status)
                transaction.end(run_id)
            elif row.state == "claimed" and (status.live or is_damaged(status)):
                folder.set_wish("cancel")
            elif status.state != "cancelled":
                raise InputError(f"run {run_id} is {status.state} already.", fix="There is nothing to cancel.")
        return status

    def stop(self, run_id: str) -> RunStatus:
        """Asks a running run to end training now and to measure and keep what it has.

        Raises:
            NotFoundError: no such run. InputError: it is not running.
        """
        folder = self._folder(run_id)
        with self.queue.transaction() as transaction:
            row = self._row(transaction, folder)
            status = folder.load().status
            if row.state != "claimed" or not status.live:
                fix = "Cancel it instead." if row.state == "queued" else "There is nothing to stop."
                raise InputError(f"run {run_id} is {status.state}, not running.", fix=fix)
            folder.set_wish("stop")
        return status

    def resume(self, run_id: str) -> str:
        """A new run with the same spec that goes on where this one stopped; returns its id.

        It goes on from :meth:`resume_point`, and starts anew where there is none; its first log event says which.
        While a resumption of the run is queued or running, that one's id is returned.

        Raises:
            NotFoundError: no such run. InputError: it is live or done, or its spec is damaged.
        """
        run = self.get(run_id)
        if run.status.state not in RESUMABLE:
            raise InputError(
                f"run {run_id} is {run.status.state}.",
                fix="Only a failed, cancelled or interrupted run can be resumed.",
            )
        spec = RunFolder(run.folder).read_spec()
        if spec.kind == "train":
            spec = spec.model_copy(update={"parent_run": run_id})
        return self._submit(self._checked(spec), None, twin_of=run_id if spec.kind == "train" else None)

    def resume_point(self, run_id: str) -> Path | None:
        """Newest checkpoint that resuming this run would begin with; None: it would start anew."""
        folder = newest_with_checkpoint(self._folder(run_id))
        return None if folder is None else folder.checkpoints / folder.checkpoint_names()[0]

    def delete(self, run_id: str) -> None:
        """Removes the run with everything in its folder.

        Raises:
            NotFoundError: no such run. InputError: it is running, or a live run goes on from it.
        """
        folder = self._folder(run_id)
        with self.queue.transaction() as transaction:
            row = self._row(transaction, folder)
            if row.state == "claimed" and row.worker is not None and is_alive(row.worker):
                raise InputError(f"run {run_id} is running.", fix="Cancel it and wait until it has ended.")
            for other in transaction.live():
                if other.parent_run == run_id:
                    raise InputError(f"run {other.run_id} goes on from run {run_id}.", fix="Cancel that one first.")
            gone = folder.path.with_name(f"{DELETED}{run_id}-{secrets.token_hex(4)}")
            folder.path.rename(gone)
            transaction.remove(run_id)
        shutil.rmtree(gone)

    def _folder(self, run_id: str) -> RunFolder:
        path = self.workspace.runs / check_name(run_id, "run")
        if path.is_symlink() or not path.is_dir():
            raise NotFoundError(f"there is no run {run_id!r}.", fix="`llmrec runs list` shows the runs there are.")
        return RunFolder(path)

    def _checked(self, spec: RunSpec) -> RunSpec:
        """``spec`` with a concrete dataset version and template text, once everything it refers to is there."""
        if spec.parent_run is not None:
            parent = self.get(spec.parent_run)
            if spec.kind != "train" and parent.status.state != "done":
                done = "evaluated" if spec.kind == "evaluate" else "compressed"
                raise InputError(
                    f"run {spec.parent_run} is {parent.status.state}, only a finished run can be {done}.",
                    where="parent_run",
                    fix="Wait for it, or resume it.",
                )
        if spec.kind == "train" and spec.continue_from is not None:
            self._check_second_stage(spec, self.get(spec.continue_from))
        # The template's text goes into the spec: a saved template may get new versions while the run waits.
        templates = TemplateStore(self.workspace)
        source = template_source(spec.prompt, templates)
        further = tuple(
            text if text in STARTERS else paraphrase_source(text, templates) for text in spec.training.paraphrases
        )
        return spec.model_copy(
            update={
                "dataset": self._resolve(self.workspace, spec.dataset),
                "prompt": spec.prompt.model_copy(update={"source": source}),
                "training": spec.training.model_copy(update={"paraphrases": further}),
            }
        )

    def _check_second_stage(self, spec: RunSpec, first: Run) -> None:
        """Raises: InputError: the run is not finished, of another shape, or of other data or another split."""
        if first.status.state != "done":
            raise InputError(
                f"run {first.run_id} is {first.status.state}, only a finished run has weights to go on from.",
                where="continue_from",
                fix="Wait for it, or resume it.",
            )
        if first.spec.kind == "compress":
            raise InputError(
                f"run {first.run_id} is a compressed one; its weights cannot be trained on.",
                where="continue_from",
                fix=f"Go on from the run that it was made from, {first.spec.parent_run}.",
            )
        if first.spec.kind == "evaluate":
            raise InputError(
                f"run {first.run_id} only measured another run again; it has no weights of its own.",
                where="continue_from",
                fix=f"Go on from the run that it measured, {first.spec.parent_run}.",
            )
        dataset = self._resolve(self.workspace, spec.dataset)
        if spec.continual is not None and first.spec.dataset == dataset:
            raise InputError(
                f"run {first.run_id} was trained on version {dataset.version} of {dataset.name} already.",
                where="continual",
                fix="Import the data with what came since, or start a second stage without continual.",
            )
        fault = changed_shape(first.spec.recommender, spec.recommender)
        if fault is not None:
            raise InputError(
                f"run {first.run_id} cannot be gone on from: {fault}.",
                where="continue_from",
                fix="Keep the recommender of that run (other fields may change), or train this one anew.",
            )
        if spec.continual is not None:
            return
        if first.spec.continual is not None:
            raise InputError(
                f"run {first.run_id} went on from an older one, which may know what a second stage would hold out.",
                where="continue_from",
                fix="Go on with newer data (continual), or make the second stage of a run that began by itself.",
            )
        if (first.spec.dataset, first.spec.split) != (dataset, spec.split):
            raise InputError(
                f"run {first.run_id} was trained on other data or another split: it may know what is held out here.",
                where="continue_from",
                fix=f"Use dataset {first.spec.dataset.name}, version {first.spec.dataset.version}, and the same split.",
            )

    def _submit(self, spec: RunSpec, request_key: str | None, twin_of: str | None = None) -> str:
        runs = self.workspace.runs
        with self.queue.transaction() as transaction:
            # Under the lock: a removal that begins after this look finds the run in the queue.
            refuse_while_pending(self.workspace, spec.dataset.name)
            if request_key is not None and (known := transaction.by_key(request_key)):
                return known
            if twin_of is not None:
                for row in transaction.live():
                    if row.parent_run == twin_of:
                        return row.run_id
            run_id = _new_id()
            while (runs / run_id).exists():
                run_id = _new_id()
            transaction.add(
                run_id, state="queued", device=spec.device, parent_run=spec.parent_run, request_key=request_key
            )
            status = RunStatus(state="queued", submitted_at=time.time(), device=spec.device, request_key=request_key)
            # Built under another name: a folder with a run's name is always whole.
            new = RunFolder(runs / f"{NEW}{run_id}")
            try:
                new.create(spec, status)
                new.path.rename(runs / run_id)
            except OSError as error:
                shutil.rmtree(new.path, ignore_errors=True)
                raise LLMRecError(
                    f"the run cannot be written: {error.strerror or error}.",
                    where=str(runs),
                    fix="Free disk space or check the folder's permissions; nothing was queued.",
                ) from error
        return run_id

    def _row(self, transaction: Transaction, folder: RunFolder) -> QueueRow:
        row = transaction.get(folder.run_id)
        if row is None:
            adopt(transaction, folder)
            row = transaction.get(folder.run_id)
        if row is None:
            raise NotFoundError(f"there is no run {folder.run_id!r}.")
        return row


def adopt(transaction: Transaction, folder: RunFolder) -> None:
    """Enters a run folder that the index does not know, after the index was lost or its writer died."""
    run = folder.load()
    status, key = run.status, run.status.request_key
    twin = transaction.by_key(key) if key else None
    queued = status.state == "queued"
    if twin and queued:
        folder.write_status(status.ended("cancelled", f"the same request is run {twin}"))
        queued = False
    transaction.add(
        run.run_id,
        state="queued" if queued else "ended",
        device=status.device,
        parent_run=run.spec.parent_run,
        request_key=None if twin else key,
    )
    if status.state == "running" and status.process is not None:
        transaction.claim(run.run_id, status.process, owner=None)


def run_folders(workspace: Workspace) -> list[Path]:
    """Folders of runs, oldest id first; links and half-made or half-deleted folders are not among them."""
    return sorted(
        path for path in workspace.runs.iterdir() if is_name(path.name) and not path.is_symlink() and path.is_dir()
    )


def is_name(text: str) -> bool:
    """Whether a run may be called that."""
    try:
        check_name(text, "run")
    except InputError:
        return False
    return True


def newest_with_checkpoint(folder: RunFolder) -> RunFolder | None:
    """The run, or its nearest ancestor, that left a checkpoint; None where none did."""
    seen: set[str] = set()
    while folder.run_id not in seen:
        seen.add(folder.run_id)
        if folder.has_checkpoint():
            return folder
        run = folder.load()
        if run.problem or run.spec.kind != "train" or run.spec.parent_run is None:
            return None
        if not is_name(run.spec.parent_run):
            return None
        path = folder.path.with_name(run.spec.parent_run)
        if path.is_symlink() or not path.is_dir():
            return None
        folder = RunFolder(path)
    return None


def is_damaged(status: RunStatus) -> bool:
    """Whether this status stands in for a file that cannot be read."""
    return status.error_kind == "unreadable"


def _new_id() -> str:
    """Sorted by time to the second, readable, and different for every submission."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{stamp}-{''.join(secrets.choice(_LETTERS) for _ in range(5))}"
