"""Forgetting one user: first what would be touched, then the removal, a search for what is left, and the audit line.

The order is made for a crash at any moment: the removal is noted before anything is touched (under the lock of the
queue, so that no run slips in), runs are flagged before the data goes that tells whom they saw, and the note is struck
off last. Calling again with the same user finishes what was cut short; every step does no harm the second time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec_core.data import DatasetStore
from llmrec_core.data.privacy import append_audit, person_hash, pseudonym, read_audit, workspace_key
from llmrec_core.data.privacy.audit import exclusive
from llmrec_core.data.privacy.removals import (
    FORGET,
    Removal,
    begin_removal,
    count_removal,
    end_removal,
    new_removal,
    pending_removals,
)
from llmrec_core.data.store import is_abandoned
from llmrec_core.errors import InputError, LLMRecError, NotFoundError
from llmrec_core.feedback import FeedbackStore
from llmrec_core.forgetting.files import TEXT_ENDINGS, clean_file
from llmrec_core.forgetting.person import Person
from llmrec_core.forgetting.run_folders import RunChange, clean_run, runs_that_saw
from llmrec_core.forgetting.versions import VersionChange, clean_version, recover
from llmrec_core.runs import Run, RunStore, reconcile
from llmrec_core.workspace import Workspace, check_name

#: Top folders that hold nothing of one person, or are gone through in their own way.
_KNOWN = frozenset({"datasets", "runs", "models", "downloads", "templates", "privacy", "uploads", "feedback", "cache"})
_SEARCH_BYTES = 1 << 24
#: An import says with every block that it lives.
_BUILD_QUIET_S = 600.0

Say = Callable[[str], None]


@dataclass
class ForgetReport:
    """What was found of a person and, unless it was a dry run, removed.

    Attributes:
        person: keyed hash that stands for the person in the audit.
        versions, runs: what each version and run held; those without a trace are left out.
        uploads: temporary upload folders cleared; they are not opened, so all go.
        tokens: files of kept tokens of the dataset's prompts cleared; whose history is in them nobody can tell, so all
            go.
        other_files: logs and other files of the workspace that named the person.
        elsewhere: places that still hold the id and are not this dataset's, such as another dataset.
        already: the person had been removed before and nothing was left to do.
        finished: a removal that was cut short has been finished.
    """

    dataset: str
    person: str
    dry_run: bool
    versions: list[VersionChange] = field(default_factory=list)
    runs: list[RunChange] = field(default_factory=list)
    feedback: int = 0
    uploads: int = 0
    tokens: int = 0
    other_files: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    already: bool = False
    finished: bool = False

    @property
    def flagged(self) -> list[str]:
        """Runs whose models saw the person."""
        return [run.run_id for run in self.runs if run.saw]

    @property
    def found(self) -> bool:
        """Whether anything of the person is there."""
        return bool(self.versions or self.runs or self.feedback or self.other_files)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers for the audit."""
        return {
            "versions": len(self.versions),
            "interactions": sum(version.interactions for version in self.versions),
            "profile_rows": sum(version.users for version in self.versions),
            "other_rows": sum(version.other_rows for version in self.versions),
            "runs": len(self.runs),
            "run_rows": sum(run.rows for run in self.runs),
            "run_lines": sum(run.lines for run in self.runs),
            "checkpoints": sum(run.checkpoints for run in self.runs),
            "flagged_models": len(self.flagged),
            "feedback": self.feedback,
            "uploads": self.uploads,
            "tokens": self.tokens,
            "other_files": len(self.other_files),
        }

    def lines(self) -> list[str]:
        """What was found, in words, a place a line."""
        found = []
        for version in self.versions:
            parts = [_n(version.interactions, "interaction"), _n(version.users, "profile")]
            parts += [_n(version.other_rows, "row") + " of other tables"] if version.other_rows else []
            gone = "; nobody else is in it, so the version goes" if version.emptied else ""
            found.append(f"version {version.version}: {', '.join(parts)}{gone}")
        for run in self.runs:
            parts = [_n(run.rows, "row")] if run.rows else []
            parts += [_n(run.lines, "text")] if run.lines else []
            parts += [_n(run.checkpoints, "checkpoint")] if run.checkpoints else []
            parts += ["trained on this person: flagged"] if run.saw else []
            found.append(f"run {run.run_id}: {', '.join(parts) or 'its data changes'}")
        if self.feedback:
            found.append(f"feedback: {_n(self.feedback, 'thumb')}")
        if self.uploads:
            found.append(f"uploads: {_n(self.uploads, 'temporary folder')}, cleared unopened")
        if self.tokens:
            found.append(f"tokens of prompts: {_n(self.tokens, 'kept file')}, cleared")
        return [*found, *(f"file {name}" for name in self.other_files)]

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "person": self.person,
            "dry_run": self.dry_run,
            "already_forgotten": self.already,
            "finished_interrupted": self.finished,
            "counts": self.counts,
            "versions": [vars(version) for version in self.versions],
            "runs": [vars(run) for run in self.runs],
            "flagged_runs": self.flagged,
            "other_files": self.other_files,
            "elsewhere": self.elsewhere,
        }


def _n(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"


def forget_user(
    workspace: Workspace, dataset: str, user_id: str, *, dry_run: bool = False, progress: Say | None = None
) -> ForgetReport:
    """Removes a person from a dataset and everything made of it, or tells what that would touch.

    Args:
        user_id: as it stands in the data, or the id before pseudonyms were made of it.
        dry_run: look only.
        progress: told what is going on, one sentence a call; never the id.

    Raises:
        NotFoundError: no such dataset, or no trace of this user in it.
        InputError: a run on the dataset is queued or running, or the id is empty.
        LLMRecError: another removal is going on, or something still held the id after all was done.
    """
    check_name(dataset, "dataset")
    if not user_id.strip():
        raise InputError("an empty id is nobody.", where="user", fix="Give the id of a user.")
    say = progress or (lambda message: None)
    key = workspace_key(workspace)
    assert key is not None
    person_hashed = person_hash(key, user_id)
    with exclusive(workspace, "removal"):
        place = workspace.datasets / dataset
        if place.is_dir() and not dry_run:
            recover(place)
        person = Person((user_id, pseudonym("user", user_id, key)))
        earlier = next((r for r in pending_removals(workspace, dataset) if r.person == person_hashed), None)
        store = RunStore(workspace)
        reconcile(workspace)
        if not dry_run:
            _sweep_builds(place)
        say("looking for everything that names this user")
        report = _gone_through(workspace, dataset, person, person_hashed, earlier, store, write=False, say=say)
        report.dry_run = dry_run
        if not report.found and earlier is None:
            return _nothing(workspace, report)
        if dry_run:
            return report
        removal = _begin(workspace, dataset, person_hashed, earlier, report.flagged, store)
        count_removal(workspace)
        report = _gone_through(workspace, dataset, person, person_hashed, removal, store, write=True, say=say)
        report.finished = earlier is not None
        say("looking whether anything is left")
        _check_gone(workspace, dataset, person, report)
        note = f"models that saw the person: {', '.join(report.flagged)}" if report.flagged else ""
        append_audit(workspace, FORGET, dataset=dataset, person=person_hashed, counts=report.counts, note=note)
        count_removal(workspace)
        end_removal(workspace, removal)
    return report


def _begin(
    workspace: Workspace,
    dataset: str,
    person_hash: str,
    earlier: Removal | None,
    saw: list[str],
    store: RunStore,
) -> Removal:
    """Notes the removal while the queue stands still, so that no run starts on the data from here on."""
    with store.queue.transaction():
        _refuse_live(store, dataset)
        removal = earlier or new_removal(dataset, person_hash)
        removal = replace(removal, saw=tuple(sorted({*removal.saw, *saw})))
        begin_removal(workspace, removal)
    return removal


def _refuse_live(store: RunStore, dataset: str) -> None:
    live = [run for run in store.active() if run.spec.dataset.name == dataset]
    if live:
        named = ", ".join(f"{run.run_id} ({run.status.state})" for run in live[:5])
        raise InputError(
            f"runs on this dataset have not ended: {named}.",
            where=f"dataset {dataset}",
            fix="Wait for them or cancel them, then forget the user.",
        )


def _gone_through(
    workspace: Workspace,
    dataset: str,
    person: Person,
    person_hash: str,
    removal: Removal | None,
    store: RunStore,
    *,
    write: bool,
    say: Say,
) -> ForgetReport:
    """One pass over the workspace: the inventory, or the act."""
    report = ForgetReport(dataset, person_hash, dry_run=not write)
    versions = DatasetStore(workspace)
    numbers = versions.versions(dataset)
    runs = [run for run in store.list() if run.spec.dataset.name == dataset and not run.problem]
    if not numbers and not runs and removal is None:
        raise NotFoundError(f"there is no dataset {dataset!r}.", fix="`llmrec data list` shows what there is.")
    _refuse_live(store, dataset)
    changes = [clean_version(versions.folder(dataset, n), n, person, write=False) for n in numbers]
    held = {change.version for change in changes if change.interactions or change.users}
    saw = set(removal.saw if removal else ()) | runs_that_saw(workspace, runs, person)
    for run in runs:
        if write:
            say(f"run {run.run_id}")
        moved = run.spec.kind != "evaluate" and run.spec.dataset.version in held
        change = clean_run(
            run,
            person,
            person_hash,
            removal.started_at if removal else 0.0,
            saw=run.run_id in saw,
            moved=moved,
            again=removal is not None,
            write=write,
        )
        if change.saw or moved or change.files:
            report.runs.append(change)
    if write:
        _clear_leftovers(workspace.runs)
    report.feedback = FeedbackStore(workspace).remove(dataset, person.ids, write=write)
    report.versions = [change for change in changes if change.any]
    for version in report.versions if write else []:
        say(f"version {version.version} of the dataset")
        clean_version(versions.folder(dataset, version.version), version.version, person, write=True)
    report.uploads = _clear_uploads(workspace, write=write)
    report.tokens = _clear_tokens(workspace, dataset, write=write)
    report.other_files = [
        path.relative_to(workspace.root).as_posix()
        for path in _other_files(workspace)
        if person.needles and clean_file(path, person, write=write)
    ]
    return report


def _sweep_builds(place: Path) -> None:
    """Removes what killed imports left of this dataset; whom that names, nobody can tell.

    Raises:
        InputError: an import is at work, or may be.
    """
    for build in place.glob(".build-*"):
        if not is_abandoned(build) and time.time() - build.stat().st_mtime < _BUILD_QUIET_S:
            raise InputError(
                "an import of this dataset is at work, or was killed just now.",
                where=str(place),
                fix="Wait until it has ended; after a killed one, try again in ten minutes.",
            )
        shutil.rmtree(build, ignore_errors=True)


def _nothing(workspace: Workspace, report: ForgetReport) -> ForgetReport:
    """Nobody of that id: fine if the audit says why, else probably a typing mistake."""
    lines = read_audit(workspace).lines
    if any(line.action == FORGET and (line.dataset, line.person) == (report.dataset, report.person) for line in lines):
        report.already = True
        return report
    raise NotFoundError(
        "no version, run or feedback names this user.",
        where=f"dataset {report.dataset}",
        fix="Ids are compared as text, so '7' is not '007'. Check the id.",
    )


def _clear_leftovers(folder: Path) -> None:
    """What was being deleted when a process died."""
    for path in folder.glob(".deleted-*"):
        shutil.rmtree(path, ignore_errors=True)


def _clear_uploads(workspace: Workspace, *, write: bool) -> int:
    """Temporary copies of uploaded files; in what encoding or archive a person is in there, nobody can tell."""
    root = workspace.root / "uploads"
    folders = list(root.iterdir()) if root.is_dir() else []
    filled = [path for path in folders if not path.is_dir() or any(path.iterdir())]
    for path in filled if write else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return len(filled)


def _clear_tokens(workspace: Workspace, dataset: str, *, write: bool) -> int:
    """Kept tokens of prompts, those that a killed process left half written included."""
    folder = workspace.token_cache(dataset)
    found = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    if found and write:
        shutil.rmtree(folder)
    return len(found)


def _other_files(workspace: Workspace) -> Iterator[Path]:
    """Logs at the top of the workspace, and whatever later rooms keep beside the known ones."""
    for top in sorted(workspace.root.iterdir()):
        if top.name in _KNOWN or top.is_symlink():
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix in (".parquet", *TEXT_ENDINGS):
                yield path


def _check_gone(workspace: Workspace, dataset: str, person: Person, report: ForgetReport) -> None:
    """Searches every file for a distinctive id: none may be left in what belongs to the dataset.

    Raises:
        LLMRecError: a file still holds it; the removal stays open.
    """
    own = [f"datasets/{dataset}/", f"cache/tokens/{dataset}/", f"feedback/{dataset}.jsonl", "uploads/", "serving.log"]
    own += [f"runs/{run.run_id}/" for run in _runs_on(workspace, dataset)]
    left: list[str] = []
    for path in sorted(workspace.root.rglob("*")):
        name = path.relative_to(workspace.root).as_posix()
        if not person.needles or path.is_symlink() or not path.is_file() or name.startswith(("models/", "privacy/")):
            continue
        if _holds(path, person):
            (left if name.startswith(tuple(own)) else report.elsewhere).append(name)
    if left:
        raise LLMRecError(
            f"the id is gone from all known places and still stands in {', '.join(left[:5])}.",
            where=f"dataset {dataset}",
            fix="Delete these files, then forget the user again.",
        )


def _runs_on(workspace: Workspace, dataset: str) -> list[Run]:
    return [run for run in RunStore(workspace).list() if run.spec.dataset.name == dataset]


def _holds(path: Path, person: Person) -> bool:
    """Whether a distinctive id stands in a file of any size: in the cells of a table, or in the bytes."""
    if path.suffix == ".parquet":
        return clean_file(path, person, write=False) > 0
    overlap = max(map(len, person.needles))
    tail = b""
    with path.open("rb") as stream:
        while block := stream.read(_SEARCH_BYTES):
            if person.holds(tail + block):
                return True
            tail = block[-overlap:]
    return False
