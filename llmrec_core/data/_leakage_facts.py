"""What the leakage checks say and look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import TIME, IntArray
from llmrec_core.data.splitting.cutting import time_keys, time_order
from llmrec_core.data.splitting.protocols import KNOWN, NONE, TEST, TRAIN, VALID
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

    @cached_property
    def _keys(self) -> list[npt.NDArray[Any]]:
        return time_keys(self.dataset, self.spec)

    def in_order(self, rows: IntArray) -> bool:
        """Whether each row comes after the one before it, by user, time and the tie rule, with ties in file order.

        A list of all kept rows that is so can only be the one that sorting them gives.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_rows):
            return False
        tied = np.ones(max(0, len(rows) - 1), bool)
        for cells in chain((key[rows] for key in reversed(self._keys)), [rows]):
            if (tied & ~(cells[:-1] <= cells[1:])).any():
                return False
            tied &= cells[:-1] == cells[1:]
        return not tied.any()

    def sorted_rows(self, rows: IntArray) -> IntArray:
        """These rows in the order of :attr:`time_order`."""
        return rows[np.lexsort((rows, *(key[rows] for key in self._keys)))]

    @cached_property
    def codes(self) -> npt.NDArray[np.int8]:
        """The part of each row by the split's lists, [n_rows]; where a row is in several, the last one counts."""
        split = self.split
        codes = np.full(self.n_rows, NONE, np.int8)
        for code, rows in ((TRAIN, split.train), (KNOWN, split.known), (VALID, split.valid), (TEST, split.test)):
            codes[rows[(rows >= 0) & (rows < self.n_rows)]] = code
        return codes

    @cached_property
    def train_users(self) -> IntArray:
        """Users of the training rows, in their order."""
        return self.users[self.split.train]

    @cached_property
    def train_items(self) -> IntArray:
        return self.items[self.split.train]

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
