"""Thumbs up and down from the screens, kept as data: one JSON line each, per dataset, append-only."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llmrec_core.workspace import Workspace, check_name, write_text_atomic


@dataclass(frozen=True)
class Feedback:
    """A person's verdict on one recommended item. ``t``: seconds since 1970 UTC; ``rank`` starts at 1."""

    dataset: str
    run_id: str
    model: str
    user_id: str
    item_id: str
    rank: int
    verdict: Literal["up", "down"]
    t: float


class FeedbackStore:
    """``feedback/<dataset>.jsonl`` in the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._root = workspace.root / "feedback"

    def _path(self, dataset: str) -> Path:
        return self._root / f"{check_name(dataset, 'dataset')}.jsonl"

    def add(
        self,
        dataset: str,
        *,
        run_id: str,
        model: str,
        user_id: str,
        item_id: str,
        rank: int,
        verdict: Literal["up", "down"],
    ) -> Feedback:
        """Appends one verdict. Raises: InputError: an unsafe dataset name."""
        entry = Feedback(dataset, run_id, model, user_id, item_id, rank, verdict, time.time())
        path = self._path(dataset)
        self._root.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n"
        # One short write in append mode: lines of two sessions never mix.
        with open(path, "ab+") as stream:
            stream.seek(max(0, stream.seek(0, 2) - 1))
            # A line torn by a crash is ended here, else it would swallow this one too.
            torn = stream.read(1) not in (b"", b"\n")
            stream.write(b"\n" + line if torn else line)
        return entry

    def list(self, dataset: str) -> list[Feedback]:
        """All verdicts on a dataset, oldest first; a line torn by a crash is left out."""
        path = self._path(dataset)
        if not path.is_file():
            return []
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(Feedback(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def remove(self, dataset: str, user_ids: Sequence[str], *, write: bool = True) -> int:
        """Takes all entries of these users out, torn lines with them; ``write=False`` counts only. Returns: entries."""
        path = self._path(dataset)
        if not path.is_file():
            return 0
        gone, kept = 0, []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = Feedback(**json.loads(line))
            except (ValueError, TypeError):
                # A torn line is no entry for anybody; it may still name them.
                gone += any(one in line for one in user_ids)
                continue
            if entry.user_id in user_ids:
                gone += 1
            else:
                kept.append(line)
        if gone and write:
            write_text_atomic(path, "".join(f"{line}\n" for line in kept))
        return gone

    def latest(self, dataset: str, user_id: str) -> dict[str, str]:
        """The last verdict of each item for one user: item_id -> "up" or "down"."""
        return {f.item_id: f.verdict for f in self.list(dataset) if f.user_id == user_id}
