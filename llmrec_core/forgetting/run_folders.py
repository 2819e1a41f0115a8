"""Taking a person out of one finished run: rankings, per-user values, events, logs and checkpoints; then the flag.

The hashes of changed artifacts are brought up to date in the manifest, and the manifest says so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_core.data import DatasetStore, make_split
from llmrec_core.data.dataset import USER_IDX
from llmrec_core.errors import LLMRecError
from llmrec_core.forgetting.files import TEXT_ENDINGS, clean_file
from llmrec_core.forgetting.person import Person
from llmrec_core.runs import Run
from llmrec_core.runs.flags import FILE as FLAGS
from llmrec_core.runs.flags import add_flag
from llmrec_core.runs.folder import RunFolder
from llmrec_core.workspace import Workspace, write_json_atomic

_SAVED = ("recommender", "baselines")


@dataclass
class RunChange:
    """What taking the person out of one run concerns. ``saw``: its model was trained on the person."""

    run_id: str
    saw: bool
    rows: int = 0
    lines: int = 0
    checkpoints: int = 0
    files: list[str] = field(default_factory=list)


def clean_run(
    run: Run, person: Person, person_hash: str, t: float, *, saw: bool, moved: bool, again: bool, write: bool
) -> RunChange:
    """Counts, and with ``write`` removes, everything of the person in one run that has ended.

    Args:
        saw: its model was trained on the person: checkpoints go, and the run is flagged.
        moved: the person was in its data, so the rows it was cut from are not the same any more.
        again: a removal that was cut short goes on; it may have changed files before it could note them.
    """
    folder = RunFolder(run.folder)
    found = RunChange(run.run_id, saw)
    if saw:
        found.checkpoints = len(folder.checkpoint_names())
    # Flagged first: whatever happens next, nobody takes the model for clean.
    if write and (saw or moved):
        add_flag(run.folder, person=person_hash, t=t, saw=saw)
    for path in _files(run.folder):
        changed = clean_file(path, person, write=write)
        if not changed:
            continue
        name = path.relative_to(run.folder).as_posix()
        found.files.append(name)
        if path.suffix == ".parquet":
            found.rows += changed
        else:
            found.lines += changed
    if write:
        for checkpoint in folder.checkpoint_names() if saw else []:
            shutil.rmtree(folder.checkpoints / checkpoint)
        _renew_manifest(folder, found.files, person_hash, t, again=again)
    return found


def runs_that_saw(workspace: Workspace, runs: list[Run], person: Person) -> set[str]:
    """Ids of runs with a trained model whose training or validation rows hold the person.

    Where the rows cannot be told any more, the run counts as one that saw: a doubt is flagged.
    """
    store = DatasetStore(workspace)
    known: dict[tuple[int | None, str], bool] = {}
    found = set()
    for run in runs:
        if run.spec.kind == "evaluate" or not _has_model(run):
            continue
        cut = (run.spec.dataset.version, run.spec.split.model_dump_json())
        if cut not in known:
            known[cut] = _in_training(store, run, person)
        if known[cut]:
            found.add(run.run_id)
    return found


def _in_training(store: DatasetStore, run: Run, person: Person) -> bool:
    try:
        dataset = store.load(run.spec.dataset.name, run.spec.dataset.version)
        codes = [dataset.user_index[one] for one in person.ids if one in dataset.user_index]
        if not codes:
            return False
        split = make_split(dataset, run.spec.split)
        users = dataset.interactions[USER_IDX].to_numpy()
        return bool(np.isin(users[split.train], codes).any() or np.isin(users[split.valid], codes).any())
    except LLMRecError:
        return True


def _has_model(run: Run) -> bool:
    folder = RunFolder(run.folder)
    saved = any((folder.artifacts / name).is_dir() and any((folder.artifacts / name).iterdir()) for name in _SAVED)
    return saved or folder.has_checkpoint()


def _files(root: Path) -> list[Path]:
    """Files of a run that can name a user. Saved models hold none: weights, tokenizers and counts by item."""
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        inside_model = len(parts) > 2 and parts[0] == "artifacts" and parts[1] in _SAVED
        if path.is_symlink() or not path.is_file() or parts[0] == "checkpoints" or parts[0] == FLAGS:
            continue
        if path.name == "manifest.json" or (inside_model and path.name != "recommender.json"):
            continue
        if path.suffix == ".parquet" or path.suffix in TEXT_ENDINGS:
            found.append(path)
    return found


def _renew_manifest(folder: RunFolder, changed: list[str], person_hash: str, t: float, *, again: bool) -> None:
    """Puts hashes of changed artifacts right, and keeps a note of which changed and why."""
    if not folder.manifest_path.is_file():
        return
    manifest: dict[str, Any] = json.loads(folder.manifest_path.read_bytes())
    names = []
    for name, entry in manifest.get("files", {}).items():
        path = folder.artifacts / name
        if not path.is_file() or path.is_symlink():
            continue
        if f"artifacts/{name}" in changed or (again and _may_change(name)):
            digest = _sha256(path)
            if digest != entry["sha256"]:
                names.append(name)
                manifest["files"][name] = {"sha256": digest, "size_bytes": path.stat().st_size}
    if names or "spec.json" in changed:
        note = {"t": t, "person": person_hash, "files": sorted(names)}
        if "spec.json" in changed:
            note["spec_hash_before"] = manifest.get("spec_hash")
            manifest["spec_hash"] = folder.read_spec().spec_hash()
        manifest["removals"] = [*manifest.get("removals", []), note]
        write_json_atomic(folder.manifest_path, manifest)


def _may_change(name: str) -> bool:
    return name.split("/")[0] not in _SAVED and Path(name).suffix in (".parquet", *TEXT_ENDINGS)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
