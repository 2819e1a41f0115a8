"""A dataset in train, validation and test rows, and what was known before a held-out row.

The one rule behind everything here: a query's history holds only rows of earlier parts, strictly before the row it is
about, in the user's time order. Rows with equal times are ordered by ``SplitSpec.tie_order``; without timestamps the
file order is the time order. Rows that are known when a user is asked ("known") come after training and before
validation in this sense: they are history, and nothing is trained on them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import RATING, TIME, FloatArray, HistoryItem, IntArray, Query
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting.protocols import NONE, TEST, TRAIN, VALID
from llmrec_core.data.splitting.words import describe
from llmrec_core.errors import InputError
from llmrec_core.specs import Part, SplitSpec

HeldOut = Literal["valid", "test"]

_CODES: dict[str, int] = {"train": TRAIN, "valid": VALID, "test": TEST}
#: Users whose history objects are kept; bounds memory on large data, holds small data whole.
_CACHED_USERS = 4096


@dataclass(frozen=True)
class LabelledRows:
    """Held-out rows with their ratings; all arrays [n_rows], rows in each user's time order.

    ``row``: position in ``dataset.interactions``. ``rating``: float32, NaN where the row has none.
    """

    row: IntArray
    user_idx: IntArray
    item_idx: IntArray
    rating: FloatArray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class EvalSet:
    """One ranking query for each user with something to find; all four have length n_users.

    Attributes:
        users: user_idx, ascending.
        queries: what was known before the user's first held-out row.
        targets: item_idx of the user's held-out items that are new to the user, sorted, never empty.
        exclude: item_idx never to be ranked, sorted: items the user had in earlier parts, and items that are not
            offered in this part (:meth:`Split.offered`). Disjoint from ``targets``.
        n_repeats: users left out because all their held-out items were repeats.
    """

    users: IntArray
    queries: list[Query]
    targets: list[IntArray]
    exclude: list[IntArray]
    n_repeats: int = 0

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True, eq=False)
class Split:
    """Row positions of ``dataset.interactions`` in parts. Build one with :func:`make_split`.

    Attributes:
        spec: what was asked, with "auto" decided.
        train, valid, test: int64 row positions, by user and within a user in time order; disjoint.
        catalogue: item_idx that are ranked, ascending: all items, or with an item k-core those that it kept.
        cut_times: (start of validation, start of test) in seconds for the protocols that cut in time.
        known: rows that are in histories and in no part: of held-out users (cold-user, random-users), or all but the
            last of each user (records).
        window: (first second used, first second after the test window) of rolling-temporal, infinite where open; rows
            outside are in no part.
        withheld: "valid" and "test" -> item_idx, ascending, of the items that training must not know (cold-item).
        notes: what the protocol decided for want of better, in words.
    """

    dataset: Dataset
    spec: SplitSpec
    train: IntArray
    valid: IntArray
    test: IntArray
    catalogue: IntArray
    cut_times: tuple[float, float] | None = None
    known: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    window: tuple[float, float] | None = None
    withheld: Mapping[str, IntArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    #: Kept rows by user and time; rows of user u are _order[_starts[u]:_starts[u + 1]].
    _order: IntArray = field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    _starts: IntArray = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    #: For each row of the dataset: its part's code, or -1 where a filter dropped it; and its place in _order.
    _part: npt.NDArray[np.int8] = field(repr=False, default_factory=lambda: np.empty(0, np.int8))
    _place: IntArray = field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    _cache: OrderedDict[int, list[HistoryItem]] = field(repr=False, default_factory=OrderedDict)

    def rows(self, part: Part) -> IntArray:
        """Row positions of one part."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[_checked(part)]

    def history_before(self, row: int, limit: int | None = None) -> tuple[HistoryItem, ...]:
        """What was known just before ``row``, oldest first.

        For a training row: the user's earlier training rows. For a validation row: training rows before it; for a
        test row: training and validation rows before it. Known rows count like training rows, so the history of
        every asked row of a cold user is exactly the k known ones.

        Args:
            row: position in ``dataset.interactions``.
            limit: keep only the most recent that many.

        Raises:
            InputError: the row is outside the split (left out by a filter or a window, or no row at all).
        """
        code = int(self._part[row]) if 0 <= row < len(self._part) else NONE
        if code == NONE:
            raise InputError(f"row {row} is in no part of this split.", where=f"dataset {self.dataset.name}")
        user = int(self._user_idx[row])
        before = int(self._place[row]) - int(self._starts[user])
        return self._history(user, before, max(code, VALID), limit)

    def query(self, user_id: str, part: Part = "test") -> Query:
        """The state of knowledge at the start of ``part`` for any user.

        A user with rows in that part: as in :meth:`queries`. Other known users: all their rows of earlier parts.
        Unknown users: empty history and profile.
        """
        code = _CODES[_checked(part)]
        user = self.dataset.user_index.get(user_id)
        if user is None:
            return Query(user_id=user_id)
        return self._query(user, code)

    def queries(self, part: HeldOut, max_users: int | None = None, seed: int = 0) -> EvalSet:
        """One query for each user with held-out rows in ``part``.

        An item the user already had in an earlier part is not a target (the ranking shows new items only); users
        left without a target are not asked.

        Args:
            part: "valid" or "test".
            max_users: draw at most that many users by ``seed``; None: all.
        """
        code = _CODES[_checked(part)]
        if code == TRAIN:
            raise InputError("training rows are not held out: ask for 'valid' or 'test'.", where="part")
        n_items = self.dataset.n_items
        held, known = self.rows(part), self._rows_before(code)
        held_pairs = distinct(self._user_idx[held] * n_items + self._item_idx[held])
        known_pairs = self._user_idx[known] * n_items + self._item_idx[known]
        # Found by place among the few held-out pairs: sorting all known ones would take seconds on large data.
        place = np.minimum(np.searchsorted(held_pairs, known_pairs), len(held_pairs) - 1)
        is_new = np.ones(len(held_pairs), bool)
        is_new[place[held_pairs[place] == known_pairs]] = False
        new_pairs = held_pairs[is_new]
        users = distinct(new_pairs // n_items)
        n_repeats = len(distinct(held_pairs // n_items)) - len(users)
        if max_users is not None and len(users) > max_users:
            users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
        asked = np.zeros(self.dataset.n_users, bool)
        asked[users] = True
        targets = _by_user(new_pairs, users, n_items)
        seen = _by_user(distinct(known_pairs[asked[self._user_idx[known]]]), users, n_items)
        outside = np.setdiff1d(np.arange(n_items, dtype=np.int64), self.offered(part), assume_unique=True)
        if len(outside):
            seen = [np.union1d(items, outside) for items in seen]
        return EvalSet(users, [self._query(int(user), code) for user in users], targets, seen, n_repeats)

    def labelled(self, part: Part) -> LabelledRows:
        """Rows of a part with their ratings, for click and rating metrics."""
        rows = self.rows(part)
        return LabelledRows(rows, self._user_idx[rows], self._item_idx[rows], self._rating[rows])

    def offered(self, part: Part) -> IntArray:
        """item_idx that are ranked or drawn as negatives in this part, ascending.

        The catalogue, but for cold-item: training sees no withheld item, validation none of the test's, and with
        ``rank_among="withheld"`` a held-out part offers nothing but its own withheld items.
        """
        if self.spec.protocol != "cold-item":
            return self.catalogue
        own = {name: self.withheld.get(name, self.catalogue[:0]) for name in ("valid", "test")}
        if _checked(part) != "train" and self.spec.rank_among == "withheld":
            return own[part]
        hidden = {"train": [own["valid"], own["test"]], "valid": [own["test"]], "test": []}[part]
        return np.setdiff1d(self.catalogue, np.concatenate([self.catalogue[:0], *hidden]), assume_unique=True)

    @cached_property
    def train_item_counts(self) -> IntArray:
        """Training interactions of each item, [n_items]."""
        return np.bincount(self._item_idx[self.train], minlength=self.dataset.n_items).astype(np.int64)

    @property
    def n_users(self) -> int:
        """Users with a row in any part."""
        return int((np.diff(self._starts) > 0).sum())

    def describe(self) -> str:
        """The protocol in words; printed beside every figure that was measured under it."""
        return describe(self)

    @cached_property
    def _user_idx(self) -> IntArray:
        return self.dataset.interactions["user_idx"].to_numpy(np.int64)

    @cached_property
    def _item_idx(self) -> IntArray:
        return self.dataset.interactions["item_idx"].to_numpy(np.int64)

    @cached_property
    def _rating(self) -> FloatArray:
        return self.dataset.interactions[RATING].to_numpy(np.float32)

    @cached_property
    def _times(self) -> npt.NDArray[np.float64]:
        return self.dataset.interactions[TIME].to_numpy()

    def _rows_before(self, code: int) -> IntArray:
        if code == TRAIN:
            return self.train[:0]
        return np.concatenate([self.train, self.known, self.valid] if code == TEST else [self.train, self.known])

    def _query(self, user: int, code: int) -> Query:
        rows = self._order[self._starts[user] : self._starts[user + 1]]
        held = np.flatnonzero(self._part[rows] == code)
        before = int(held[0]) if len(held) else len(rows)
        user_id = str(self.dataset.user_ids[user])
        return Query(user_id, self._history(user, before, code, None), self.dataset.profile(user_id))

    def _history(self, user: int, before: int, code: int, limit: int | None) -> tuple[HistoryItem, ...]:
        """The user's first ``before`` rows, of parts earlier than ``code``."""
        start = int(self._starts[user])
        kept = np.flatnonzero(self._part[self._order[start : start + before]] < code)
        if limit is not None:
            kept = kept[max(0, len(kept) - limit) :]
        if len(kept) == 0:
            return ()
        items = self._history_items(user)
        return tuple([items[i] for i in kept.tolist()])

    def _history_items(self, user: int) -> list[HistoryItem]:
        items = self._cache.get(user)
        if items is None:
            rows = self._order[self._starts[user] : self._starts[user + 1]]
            ids = self.dataset.item_ids[self._item_idx[rows]].tolist()
            ratings = self._rating[rows].astype(float).tolist()
            times = self._times[rows].tolist()
            items = [
                HistoryItem(item, None if r != r else r, None if t != t else t)
                for item, r, t in zip(ids, ratings, times, strict=True)
            ]
            self._cache[user] = items
            if len(self._cache) > _CACHED_USERS:
                self._cache.popitem(last=False)
        return items


def distinct(values: IntArray) -> IntArray:
    """Distinct values, ascending. NumPy's own ``unique`` hashes integers, which is many times slower on millions."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _by_user(pairs: IntArray, users: IntArray, n_items: int) -> list[IntArray]:
    """Items of each user from sorted ``user * n_items + item`` codes; empty arrays for users without any."""
    low = np.searchsorted(pairs, users * n_items)
    high = np.searchsorted(pairs, (users + 1) * n_items)
    items = pairs % n_items
    return [items[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def _checked(part: str) -> Part:
    if part not in _CODES:
        raise InputError(f"unknown part {part!r}.", where="part", fix="Use train, valid or test.")
    return part  # type: ignore[return-value]
