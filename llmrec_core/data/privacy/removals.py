"""Removals of persons: which are unfinished, how many there were, and who was removed. No raw id is ever written.

A removal is noted before anything is touched and struck off when all is done, so one that was cut short is known and
holds up new runs on its dataset. The count tells processes that keep data in memory when to drop it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from llmrec_core.data.privacy.audit import read_audit
from llmrec_core.data.privacy.keys import privacy_folder, workspace_key
from llmrec_core.data.privacy.pseudonyms import person_hash
from llmrec_core.errors import InputError
from llmrec_core.workspace import Workspace, write_json_atomic, write_text_atomic

FORGET = "forget"


@dataclass(frozen=True)
class Removal:
    """A removal that began. ``saw``: runs whose models were trained on the person, found before the data went."""

    dataset: str
    person: str
    started_at: float
    saw: tuple[str, ...] = ()


def pending_removals(workspace: Workspace, dataset: str | None = None) -> list[Removal]:
    """Removals that began and did not end, of one dataset or of all."""
    found = []
    for path in sorted(_folder(workspace).glob("*.json")):
        raw = json.loads(path.read_bytes())
        found.append(Removal(raw["dataset"], raw["person"], raw["started_at"], tuple(raw["saw"])))
    return [removal for removal in found if dataset is None or removal.dataset == dataset]


def refuse_while_pending(workspace: Workspace, dataset: str) -> None:
    """Nothing may be trained on data from which a person is just being taken.

    Raises:
        InputError: a removal on this dataset has not ended.
    """
    if pending_removals(workspace, dataset):
        raise InputError(
            "a person is being removed from this dataset, or the removal was cut short.",
            where=f"dataset {dataset}",
            fix="Wait for it; if it was cut short, start `llmrec data forget` with the same user again.",
        )


def begin_removal(workspace: Workspace, removal: Removal) -> None:
    """Notes a removal, or replaces what is noted of it."""
    write_json_atomic(_path(workspace, removal), asdict(removal))


def end_removal(workspace: Workspace, removal: Removal) -> None:
    """Strikes it off; doing so twice does no harm."""
    _path(workspace, removal).unlink(missing_ok=True)


def removal_count(workspace: Workspace) -> int:
    """Changes whenever data was removed. Whoever keeps data in memory drops it when this moves."""
    try:
        return int((workspace.root / "privacy" / "removals").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def count_removal(workspace: Workspace) -> None:
    write_text_atomic(privacy_folder(workspace) / "removals", f"{removal_count(workspace) + 1}\n")


def forgotten_among(workspace: Workspace, dataset: str, user_ids: pa.Array | Sequence[str]) -> list[str]:
    """Those of ``user_ids`` who were removed from this dataset before: an import may bring them back unawares.

    Costs one hash a distinct id, and nothing where nobody was ever removed.
    """
    gone = {line.person for line in read_audit(workspace).lines if line.action == FORGET and line.dataset == dataset}
    key = workspace_key(workspace, create=False) if gone else None
    if key is None:
        return []
    ids = user_ids.unique().to_pylist() if isinstance(user_ids, pa.Array | pa.ChunkedArray) else set(user_ids)
    return sorted(one for one in ids if one and person_hash(key, one) in gone)


def new_removal(dataset: str, person: str) -> Removal:
    return Removal(dataset, person, round(time.time(), 3))


def _folder(workspace: Workspace) -> Path:
    folder = privacy_folder(workspace) / "pending"
    folder.mkdir(exist_ok=True)
    return folder


def _path(workspace: Workspace, removal: Removal) -> Path:
    return _folder(workspace) / f"{removal.dataset}-{removal.person}.json"
