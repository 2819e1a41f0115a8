"""Cutting a dataset into train, validation and test rows, and asking what was known before a held-out row.

The one rule behind everything here: a query's history holds only rows of earlier parts, strictly before the row it is
about, in the user's time order. Rows with equal times are ordered by ``SplitSpec.tie_order``; without timestamps the
file order is the time order.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import RATING, TIME, FloatArray, HistoryItem, IntArray, Query
from llmrec_core.data.dataset import Dataset
from llmrec_core.errors import DataError, InputError
from llmrec_core.specs import Part, SplitSpec

HeldOut = Literal["valid", "test"]

_NONE, _TRAIN, _VALID, _TEST = -1, 0, 1, 2
_CODES: dict[str, int] = {"train": _TRAIN, "valid": _VALID, "test": _TEST}
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
        exclude: item_idx never to be ranked, sorted: items the user had in earlier parts, and items outside the
            split's catalogue. Disjoint from ``targets``.
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
    """Row positions of ``dataset.interactions`` in three parts. Build one with :func:`make_split`.

    Attributes:
        train, valid, test: int64 row positions, by user and within a user in time order; disjoint.
        catalogue: item_idx that are ranked, ascending: all items, or with an item k-core those that it kept.
        cut_times: (start of validation, start of test) in seconds for the temporal protocol.
    """

    dataset: Dataset
    spec: SplitSpec
    train: IntArray
    valid: IntArray
    test: IntArray
    catalogue: IntArray
    cut_times: tuple[float, float] | None = None
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
        test row: training and validation rows before it.

        Args:
            row: position in ``dataset.interactions``.
            limit: keep only the most recent that many.

        Raises:
            InputError: the row is outside the split (dropped by the k-core filter, or no row at all).
        """
        code = int(self._part[row]) if 0 <= row < len(self._part) else _NONE
        if code == _NONE:
            raise InputError(f"row {row} is in no part of this split.", where=f"dataset {self.dataset.name}")
        user = int(self._user_idx[row])
        before = int(self._place[row]) - int(self._starts[user])
        return self._history(user, before, max(code, _VALID), limit)

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
        if code == _TRAIN:
            raise InputError("training rows are not held out: ask for 'valid' or 'test'.", where="part")
        n_items = self.dataset.n_items
        held, known = self.rows(part), self._rows_before(code)
        held_pairs = np.unique(self._user_idx[held] * n_items + self._item_idx[held])
        known_pairs = np.unique(self._user_idx[known] * n_items + self._item_idx[known])
        new_pairs = held_pairs[~np.isin(held_pairs, known_pairs, assume_unique=True)]
        users = np.unique(new_pairs // n_items)
        n_repeats = len(np.unique(held_pairs // n_items)) - len(users)
        if max_users is not None and len(users) > max_users:
            users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
        targets = _by_user(new_pairs, users, n_items)
        seen = _by_user(known_pairs, users, n_items)
        outside = np.setdiff1d(np.arange(n_items, dtype=np.int64), self.catalogue, assume_unique=True)
        if len(outside):
            seen = [np.union1d(items, outside) for items in seen]
        return EvalSet(users, [self._query(int(user), code) for user in users], targets, seen, n_repeats)

    def labelled(self, part: Part) -> LabelledRows:
        """Rows of a part with their ratings, for click and rating metrics."""
        rows = self.rows(part)
        return LabelledRows(rows, self._user_idx[rows], self._item_idx[rows], self._rating[rows])

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
        spec, timed = self.spec, self.dataset.meta.has_timestamps
        ties = {"file": "in file order", "item_id": "by item id"}[spec.tie_order]
        if not timed:
            order = "The data has no timestamps, so file order stands for time."
        elif spec.protocol == "temporal":
            order = f"Within a user, interactions of equal time are ordered {ties}; the cuts never part equal times."
        else:
            order = f"Interactions of equal time are ordered {ties}."
        if spec.protocol == "leave-one-out":
            cut = (
                "Leave-one-out: each user's last interaction is the test target, the one before it the validation "
                "target; users with fewer than 3 interactions are for training only."
            )
        elif spec.protocol == "temporal":
            first, second = self.cut_times or (float("nan"), float("nan"))
            cut = (
                f"Temporal: validation starts at {_date(first)}, test at {_date(second)} (asked: the last "
                f"{spec.test_fraction:.0%} of rows for test, {spec.valid_fraction:.0%} before them for validation)."
            )
        else:
            cut = (
                f"Random: {spec.test_fraction:.0%} of rows for test and {spec.valid_fraction:.0%} for validation, "
                f"drawn with seed {spec.seed}; training may hold rows later than a held-out one, its history does not."
            )
        core = ""
        if spec.min_user_interactions > 1 or spec.min_item_interactions > 1:
            core = (
                f" Users with at least {spec.min_user_interactions} and items with at least "
                f"{spec.min_item_interactions} interactions, filtered until both hold."
            )
        n_rows = len(self.train) + len(self.valid) + len(self.test)
        with_rows = len(np.unique(self._item_idx[self._order]))
        return (
            f"{cut}{core} {order} {self.n_users:,} users, {with_rows:,} items with interactions, {n_rows:,} rows: "
            f"{len(self.train):,} train, {len(self.valid):,} validation, {len(self.test):,} test. "
            f"Rankings are over {len(self.catalogue):,} items without those the user already had."
        )

    @cached_property
    def _user_idx(self) -> IntArray:
        return self.dataset.interactions["user_idx"].to_numpy(np.int64)

    @cached_property
    def _item_idx(self) -> IntArray:
        return self.dataset.interactions["item_idx"].to_numpy(np.int64)

    @cached_property
    def _rating(self) -> FloatArray:
        return self.dataset.interactions[RATING].to_numpy(np.float32)

    def _rows_before(self, code: int) -> IntArray:
        return {_TRAIN: self.train[:0], _VALID: self.train, _TEST: np.concatenate([self.train, self.valid])}[code]

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
            table = self.dataset.interactions
            rows = self._order[self._starts[user] : self._starts[user + 1]]
            ids = self.dataset.item_ids[self._item_idx[rows]].tolist()
            ratings = self._rating[rows].astype(float).tolist()
            times = table[TIME].to_numpy()[rows].tolist()
            items = [
                HistoryItem(item, None if r != r else r, None if t != t else t)
                for item, r, t in zip(ids, ratings, times, strict=True)
            ]
            self._cache[user] = items
            if len(self._cache) > _CACHED_USERS:
                self._cache.popitem(last=False)
        return items


def make_split(dataset: Dataset, spec: SplitSpec) -> Split:
    """Cuts ``dataset`` as ``spec`` says; the same spec and data give the same split.

    Raises:
        DataError: nothing is left after the filters, nothing can be held out or trained on, or the temporal protocol
            meets data without times.
    """
    table = dataset.interactions
    user_idx, item_idx = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    where = f"dataset {dataset.name}"
    kept = _k_core(user_idx, item_idx, dataset, spec)
    if not kept.any():
        raise DataError(
            "no interaction is left after the filters.",
            where=where,
            fix="Lower min_user_interactions or min_item_interactions.",
        )
    order = _time_order(dataset, spec, user_idx, item_idx)
    order = order[kept[order]]
    counts = np.bincount(user_idx[order], minlength=dataset.n_users)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    place = np.full(len(table), -1, np.int64)
    place[order] = np.arange(len(order))
    part = np.full(len(table), _NONE, np.int8)
    part[order] = _TRAIN
    cut_times = None
    if spec.protocol == "leave-one-out":
        last = starts[1:][counts >= 3] - 1
        part[order[last]], part[order[last - 1]] = _TEST, _VALID
    elif spec.protocol == "temporal":
        cut_times = _cut_in_time(dataset, spec, order, part, where)
    else:
        # The draw runs over file order, so that it does not change with the tie rule.
        rows = np.random.default_rng(spec.seed).permutation(np.flatnonzero(kept))
        n_test, n_valid = _n_held_out(len(rows), spec)
        part[rows[:n_test]], part[rows[n_test : n_test + n_valid]] = _TEST, _VALID
    train, valid, test = (order[part[order] == code] for code in (_TRAIN, _VALID, _TEST))
    if not len(test) or not len(valid) or not len(train):
        raise DataError(
            f"this split leaves {len(train)} rows to train on, {len(valid)} to validate and {len(test)} to test.",
            where=where,
            fix="Leave-one-out needs users with at least 3 interactions, the others at least 3 rows: use more data.",
        )
    if spec.min_item_interactions > 0:
        catalogue = np.unique(item_idx[order])
    else:
        catalogue = np.arange(dataset.n_items, dtype=np.int64)
    return Split(dataset, spec, train, valid, test, catalogue, cut_times, order, starts, part, place)


def _k_core(user_idx: IntArray, item_idx: IntArray, dataset: Dataset, spec: SplitSpec) -> npt.NDArray[np.bool_]:
    """Rows that stay when users and items with too few rows are dropped, again and again until none is left."""
    kept = np.ones(len(user_idx), bool)
    while True:
        users = np.bincount(user_idx[kept], minlength=dataset.n_users)
        items = np.bincount(item_idx[kept], minlength=dataset.n_items)
        strong = (users >= spec.min_user_interactions)[user_idx] & (items >= spec.min_item_interactions)[item_idx]
        if (strong | ~kept).all():
            return kept
        kept &= strong


def _time_order(dataset: Dataset, spec: SplitSpec, user_idx: IntArray, item_idx: IntArray) -> IntArray:
    """All row positions by user, then time, then the tie rule; file order is the last resort."""
    keys: list[npt.NDArray[np.generic]] = [np.arange(len(user_idx))]
    if dataset.meta.has_timestamps:
        if spec.tie_order == "item_id":
            keys.append(item_idx)
        keys.append(dataset.interactions[TIME].to_numpy(np.float64))
    keys.append(user_idx)
    return np.lexsort(keys).astype(np.int64)


def _n_held_out(n_rows: int, spec: SplitSpec) -> tuple[int, int]:
    return max(1, round(n_rows * spec.test_fraction)), max(1, round(n_rows * spec.valid_fraction))


def _cut_in_time(
    dataset: Dataset, spec: SplitSpec, order: IntArray, part: npt.NDArray[np.int8], where: str
) -> tuple[float, float]:
    if not dataset.meta.has_timestamps:
        raise DataError(
            "the temporal protocol needs timestamps, and this data has none.",
            where=where,
            fix="Import a timestamp column, or use leave-one-out or random.",
        )
    times = dataset.interactions[TIME].to_numpy(np.float64)[order]
    sorted_times = np.sort(times)
    n_test, n_valid = _n_held_out(len(order), spec)
    test_start = float(sorted_times[max(0, len(order) - n_test)])
    n_before = int(np.searchsorted(sorted_times, test_start))
    valid_start = float(sorted_times[max(0, n_before - n_valid)])
    part[order[times >= valid_start]] = _VALID
    part[order[times >= test_start]] = _TEST
    return valid_start, test_start


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


def _date(seconds: float) -> str:
    moment = np.datetime64(0, "s") + np.timedelta64(int(seconds), "s")
    return f"{str(moment).replace('T', ' ')} UTC"


__all__ = ["EvalSet", "LabelledRows", "Split", "make_split"]
