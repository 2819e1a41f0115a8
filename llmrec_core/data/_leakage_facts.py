"""What the leakage checks say and look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import TIME, IntArray
from llmrec_core.data.splitting.cutting import time_order
from llmrec_core.data.splitting.split import Split

#: Examples that a check names at most.
EXAMPLES = 5


@dataclass(frozen=True)
class Check:
    """One rule or fact. ``n_checked`` counts what ``words`` says was looked at; ``examples`` are at most five."""

    name: str
    title: str
    ok: bool
    n_checked: int
    n_violations: int
    examples: tuple[str, ...]
    words: str
    hard: bool = True

    @property
    def verdict(self) -> str:
        """passed, violated (a rule is broken) or note (a fact to know)."""
        return "passed" if self.ok else "violated" if self.hard else "note"


class Facts:
    """What several checks look at, read from the tables and not from what the split remembers."""

    def __init__(self, split: Split) -> None:
        table = split.dataset.interactions
        self.split, self.dataset, self.spec = split, split.dataset, split.spec
        self.n_rows = len(table)
        self.users, self.items = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
        self.timed = split.dataset.meta.has_timestamps
        self.times: npt.NDArray[np.float64] = table[TIME].to_numpy(np.float64) if self.timed else np.empty(0)
        self.held = np.concatenate([split.valid, split.test])

    @cached_property
    def time_order(self) -> IntArray:
        """All rows by user and time, worked out from the tables."""
        return time_order(self.dataset, self.spec)

    def rows(self, rows: IntArray, more: Callable[[int], str] = lambda row: "") -> tuple[str, ...]:
        return tuple(f"row {row}{more(row)}" for row in rows[:EXAMPLES].tolist())

    def item_names(self, items: IntArray) -> tuple[str, ...]:
        return tuple(f"item {self.dataset.item_ids[item]}" for item in items[:EXAMPLES].tolist())


def made(
    name: str,
    title: str,
    n_checked: int,
    n_violations: int,
    examples: tuple[str, ...],
    words: str,
    *,
    hard: bool = True,
) -> Check:
    return Check(name, title, n_violations == 0, int(n_checked), int(n_violations), examples, words, hard)
