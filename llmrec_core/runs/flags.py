"""What a removal leaves in a run: a note that its model saw a person who asked to be forgotten, or that its data moved.

``removals.json`` in the run's folder; the artifacts stay, so a flagged run still ranks and explains until it is trained
again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_core.workspace import write_json_atomic

FILE = "removals.json"
SAW = "Trained on a person who asked to be forgotten; retrain."
BEFORE = (
    "Trained before a person was removed from its data. Held-out rows are cut anew since then; train it again before "
    "relying on new numbers."
)


@dataclass(frozen=True)
class RunFlags:
    """``saw``: how many removed persons its model was trained on. ``before``: how many left its data altogether."""

    saw: int = 0
    before: int = 0

    @property
    def sentence(self) -> str:
        """What a person has to know of the run; "" when there is nothing."""
        return SAW if self.saw else BEFORE if self.before else ""


def read_flags(folder: Path) -> RunFlags:
    """The flags of one run. A file that cannot be read counts as a flag: a doubt is shown, never hidden."""
    try:
        raw = json.loads((folder / FILE).read_bytes())
        removals = raw["removals"]
        return RunFlags(sum(bool(one["saw"]) for one in removals), len(removals))
    except FileNotFoundError:
        return RunFlags()
    except (OSError, ValueError, KeyError, TypeError):
        return RunFlags(1, 1)


def add_flag(folder: Path, *, person: str, t: float, saw: bool) -> None:
    """Notes a removal; the same person twice is one note.

    Args:
        person: keyed hash, never a raw id.
    """
    path = folder / FILE
    removals: list[dict[str, Any]] = json.loads(path.read_bytes())["removals"] if path.is_file() else []
    known = [one for one in removals if one["person"] == person]
    saw = saw or any(one["saw"] for one in known)
    kept = [one for one in removals if one["person"] != person]
    write_json_atomic(path, {"removals": [*kept, {"person": person, "t": t, "saw": saw}]})
