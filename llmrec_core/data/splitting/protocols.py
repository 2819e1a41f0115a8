"""The protocols: which rows go to which part. Each is one function ``(rows, spec) -> Cut``.

A part is a small number for each row of the dataset. Numbers grow with what is known when: the history of a row holds
rows of smaller numbers only. ``KNOWN`` marks rows that are shown as history but never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import TIME, IntArray
from llmrec_core.data.dataset import Dataset
from llmrec_core.errors import DataError, InputError
from llmrec_core.specs import SplitSpec

NONE, TRAIN, KNOWN, VALID, TEST = -1, 0, 1, 2, 3
#: Column of the interactions that says which part a row was given to.
PART = "part"

Codes = npt.NDArray[np.int8]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """What the filters kept: rows of user u are ``order[starts[u]:starts[u + 1]]``, in time order."""

    dataset: Dataset
    user_idx: IntArray
    item_idx: IntArray
    order: IntArray
    starts: IntArray

    @property
    def where(self) -> str:
        return f"dataset {self.dataset.name}"

    @property
    def counts(self) -> IntArray:
        """Kept rows of each user, [n_users]."""
        return np.diff(self.starts)

    def no_part(self) -> Codes:
        return np.full(len(self.user_idx), NONE, np.int8)

    def all_train(self) -> Codes:
        part = self.no_part()
        part[self.order] = TRAIN
        return part

    def times(self, protocol: str) -> Seconds:
        """Seconds of every row of the dataset.

        Raises:
            DataError: the data has no times.
        """
        if not self.dataset.meta.has_timestamps:
            raise DataError(
                f"the {protocol} protocol needs timestamps, and this data has none.",
                where=self.where,
                fix="Import a timestamp column, or use leave-one-out or random.",
            )
        return self.dataset.interactions[TIME].to_numpy(np.float64)


@dataclass(frozen=True, eq=False)
class Cut:
    """What a protocol decided.

    Attributes:
        part: code of each row of the dataset, [n_rows]; NONE where a filter or a window left it out.
        cut_times: (start of validation, start of test) in seconds.
        window: (first second that is used, first second after the test window); infinite where open.
        withheld: item_idx that training must not know, by the part that asks for them.
        notes: what was decided for want of better, in words.
    """

    part: Codes
    cut_times: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    withheld: dict[int, IntArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def given_parts(dataset: Dataset) -> Codes | None:
    """The parts that the data came with, one code for each row; None where it came without.

    Rows without a part ("") are for training.

    Raises:
        DataError: a part that is none of train, valid and test.
    """
    found = _given_parts(dataset)
    return None if found is None else found[0]


def _given_parts(dataset: Dataset) -> tuple[Codes, int] | None:
    """As :func:`given_parts`, and how many rows have no part."""
    table = dataset.interactions
    if PART not in table.columns:
        return None
    names = table[PART].astype("category")
    codes = {"train": TRAIN, "": TRAIN, "valid": VALID, "test": TEST}
    known = [str(name).strip().lower() for name in names.cat.categories]
    odd = [name for name in known if name not in codes]
    if odd:
        raise DataError(
            f"the column {PART!r} has the value {odd[0][:80]!r}.",
            where=f"dataset {dataset.name}",
            fix="Use train, valid and test.",
        )
    # A missing value has code -1: the last place.
    by_category = np.array([*(codes[name] for name in known), TRAIN], np.int8)
    unnamed = np.array([*(name == "" for name in known), True])
    places = names.cat.codes.to_numpy()
    return by_category[places], int(unnamed[places].sum())


def _given(rows: Rows, spec: SplitSpec) -> Cut:
    """The data's own parts. Without validation rows, the last training row of users with two or more is taken."""
    found = _given_parts(rows.dataset)
    if found is None:
        raise DataError(
            "the given protocol needs data that came already split, and this data did not.",
            where=rows.where,
            fix="Import it with --part train=FILE --part test=FILE, or choose another protocol.",
        )
    parts, n_unnamed = found
    part = rows.no_part()
    part[rows.order] = parts[rows.order]
    if not (part == TEST).any():
        raise DataError(
            "the data came split, but no row is in the part test.",
            where=rows.where,
            fix="Name the held-out file as the test (--part test=FILE), or choose another protocol.",
        )
    notes: list[str] = []
    if n_unnamed:
        notes.append(f"{n_unnamed:,} rows without a part count as training.")
    if not (part == VALID).any():
        mine = rows.order[part[rows.order] == TRAIN]
        users = rows.user_idx[mine]
        last = np.flatnonzero(np.diff(users, append=-1) != 0)
        several = np.bincount(users, minlength=rows.dataset.n_users)[users[last]] >= 2
        part[mine[last[several]]] = VALID
        notes.append(
            "No validation part came with the data: each user's last training interaction is taken for it, where the "
            "user has two or more."
        )
    return Cut(part, notes=tuple(notes))


def _leave_one_out(rows: Rows, spec: SplitSpec) -> Cut:
    part = rows.all_train()
    last = rows.starts[1:][rows.counts >= 3] - 1
    part[rows.order[last]], part[rows.order[last - 1]] = TEST, VALID
    return Cut(part)


def _temporal(rows: Rows, spec: SplitSpec) -> Cut:
    """One window that reaches to the end."""
    times = rows.times(spec.protocol)[rows.order]
    ordered = np.sort(times)
    n_test = _share(len(ordered), spec.test_fraction)
    test_start = float(ordered[max(0, len(ordered) - n_test)])
    valid_start, part = _before(rows, spec, times, ordered, test_start)
    part[rows.order[times >= test_start]] = TEST
    return Cut(part, (valid_start, test_start))


def _rolling_temporal(rows: Rows, spec: SplitSpec) -> Cut:
    """Equally many rows in each test window, the last window at the end; equal times are never parted."""
    times = rows.times(spec.protocol)[rows.order]
    ordered = np.sort(times)
    bounds = window_bounds(ordered, spec)
    start, stop = bounds[spec.fold - 1], bounds[spec.fold]
    valid_start, part = _before(rows, spec, times, ordered, start)
    low = -np.inf
    if spec.train_window == "sliding":
        first_valid, _ = _before(rows, spec, times, ordered, bounds[0])
        n_train = int(np.searchsorted(ordered, first_valid))
        low = float(ordered[max(0, int(np.searchsorted(ordered, valid_start)) - n_train)])
    part[rows.order[times >= start]] = TEST
    part[rows.order[(times < low) | (times >= stop)]] = NONE
    return Cut(part, (valid_start, start), (low, stop))


def window_bounds(ordered: Seconds, spec: SplitSpec) -> list[float]:
    """Starts of the n_folds test windows and the end of the last (infinity); ``ordered``: times, ascending."""
    n_test = _share(len(ordered), spec.test_fraction)
    starts = [float(ordered[max(0, len(ordered) - n * n_test)]) for n in range(spec.n_folds, 0, -1)]
    return [*starts, np.inf]


def _before(rows: Rows, spec: SplitSpec, times: Seconds, ordered: Seconds, test_start: float) -> tuple[float, Codes]:
    """Start of the validation before ``test_start``, and parts in which everything from there on is validation."""
    n_before = int(np.searchsorted(ordered, test_start))
    valid_start = float(ordered[max(0, n_before - _share(len(ordered), spec.valid_fraction))])
    part = rows.all_train()
    part[rows.order[times >= valid_start]] = VALID
    return valid_start, part


def _random(rows: Rows, spec: SplitSpec) -> Cut:
    part = rows.all_train()
    # The draw runs over file order, so that it does not change with the tie rule.
    drawn = np.random.default_rng(spec.seed).permutation(np.sort(rows.order))
    n_test, n_valid = _share(len(drawn), spec.test_fraction), _share(len(drawn), spec.valid_fraction)
    part[drawn[:n_test]], part[drawn[n_test : n_test + n_valid]] = TEST, VALID
    return Cut(part)


def _random_users(rows: Rows, spec: SplitSpec) -> Cut:
    """Of n interactions the first round(n * fold_in) are known, at least one, and at least one is asked."""
    n = rows.counts
    n_known = np.clip(np.rint(n * spec.fold_in).astype(np.int64), 1, np.maximum(1, n - 1))
    return _users_held_out(rows, spec, n_known)


def _cold_user(rows: Rows, spec: SplitSpec) -> Cut:
    return _users_held_out(rows, spec, np.full(rows.dataset.n_users, spec.known_interactions, np.int64))


def _users_held_out(rows: Rows, spec: SplitSpec, n_known: IntArray) -> Cut:
    """Whole users leave training; the first ``n_known`` rows of each are known, all later ones are asked.

    All users are ranked by the seed once, and the first that have a row to ask are taken: another ``n_known`` holds
    out the same users as far as their histories reach.
    """
    part = rows.all_train()
    with_rows = np.flatnonzero(rows.counts > 0)
    ranked = np.random.default_rng(spec.seed).permutation(with_rows)
    able = ranked[rows.counts[ranked] > n_known[ranked]]
    n_test, n_valid = _share(len(with_rows), spec.test_fraction), _share(len(with_rows), spec.valid_fraction)
    notes: tuple[str, ...] = ()
    if len(able) < n_test + n_valid:
        notes = (f"Only {len(able):,} users have enough interactions to be held out.",)
        n_valid = max(1, len(able) * n_valid // (n_test + n_valid))
        n_test = len(able) - n_valid
    user_part = np.full(rows.dataset.n_users, TRAIN, np.int8)
    user_part[able[:n_test]], user_part[able[n_test : n_test + n_valid]] = TEST, VALID
    ordered_users = rows.user_idx[rows.order]
    nth = np.arange(len(rows.order)) - rows.starts[ordered_users]
    codes = user_part[ordered_users]
    part[rows.order] = np.where((codes != TRAIN) & (nth < n_known[ordered_users]), np.int8(KNOWN), codes)
    return Cut(part, notes=notes)


def _records(rows: Rows, spec: SplitSpec) -> Cut:
    """The last row of each user is learned or asked; all rows before it are known and nothing else.

    Which are asked, the parts that came with the data say; without them, or without validation, it is drawn.

    An instruction record becomes a user whose last row is the judged item. What the record tells before it is no
    question that anybody answered: its order is that of the text (first all likes, then all dislikes), so a model
    that learned from those rows would learn that order.
    """
    part = rows.no_part()
    part[rows.order] = KNOWN
    last = rows.order[rows.starts[1:][rows.counts > 0] - 1]
    drawn = np.random.default_rng(spec.seed).permutation(last)
    part[last] = TRAIN
    notes: tuple[str, ...] = ()
    given = given_parts(rows.dataset)
    if given is not None and (given[last] == TEST).any():
        part[last] = given[last]
        missing = " Validation records are drawn from the training, since none came." * bool(
            (given[last] != VALID).all()
        )
        notes = (f"The parts that came with the data are kept.{missing}",)
    else:
        part[drawn[: _share(len(last), spec.test_fraction)]] = TEST
    if (part[last] != VALID).all():
        drawn = drawn[part[drawn] == TRAIN]
        part[drawn[: _share(len(last), spec.valid_fraction)]] = VALID
    return Cut(part, notes=notes)


def _cold_item(rows: Rows, spec: SplitSpec) -> Cut:
    part = rows.all_train()
    with_rows = np.flatnonzero(np.bincount(rows.item_idx[rows.order], minlength=rows.dataset.n_items))
    drawn = np.random.default_rng(spec.seed).permutation(with_rows)
    n_test, n_valid = _share(len(drawn), spec.test_fraction), _share(len(drawn), spec.valid_fraction)
    withheld = {TEST: np.sort(drawn[:n_test]), VALID: np.sort(drawn[n_test : n_test + n_valid])}
    item_part = np.full(rows.dataset.n_items, TRAIN, np.int8)
    for code, items in withheld.items():
        item_part[items] = code
    part[rows.order] = item_part[rows.item_idx[rows.order]]
    return Cut(part, withheld=withheld)


def _group_stratified(rows: Rows, spec: SplitSpec) -> Cut:
    """Rows are shuffled within their group and dealt to the folds in turn, going on from group to group."""
    group = row_groups(rows, spec)
    # Shuffled in file order, then brought together by a sort that keeps the shuffle within each group.
    dealt = np.random.default_rng(spec.seed).permutation(np.sort(rows.order))
    dealt = dealt[stable_order(group[dealt])]
    is_test = np.arange(len(dealt)) % spec.n_folds == spec.fold - 1
    # Validation takes its share of each group from what is left; fractions are carried on to the next group.
    sizes = np.bincount(group[dealt])
    ends = np.cumsum(sizes)
    quota = np.diff(np.rint(ends * spec.valid_fraction).astype(np.int64), prepend=0)
    group_of = group[dealt]
    nth_left = np.cumsum(~is_test) - 1
    first_left = np.concatenate([[0], np.cumsum(np.bincount(group_of[~is_test], minlength=len(sizes)))])[:-1]
    is_valid = ~is_test & (nth_left - first_left[group_of] < quota[group_of])
    part = rows.all_train()
    part[dealt[is_test]], part[dealt[is_valid]] = TEST, VALID
    n_groups = int((sizes > 0).sum())
    return Cut(part, notes=(f"{n_groups:,} group{'s have' if n_groups != 1 else ' has'} rows.",))


def row_groups(rows: Rows, spec: SplitSpec) -> IntArray:
    """Group of each row of the dataset, [n_rows], from 0.

    Raises:
        InputError: there is no such field.
    """
    dataset = rows.dataset
    if spec.group_by == "activity":
        counts = np.bincount(rows.user_idx[rows.order], minlength=dataset.n_users)
        return _quantile_groups(counts, spec.n_groups)[rows.user_idx]
    if spec.group_by == "popularity":
        counts = np.bincount(rows.item_idx[rows.order], minlength=dataset.n_items)
        return _quantile_groups(counts, spec.n_groups)[rows.item_idx]
    kind, _, name = spec.group_by.partition(":")
    table, index = (dataset.users, rows.user_idx) if kind == "user" else (dataset.items, rows.item_idx)
    if name not in table.columns[1:]:
        fields = ", ".join(map(str, table.columns[1:])) or "none"
        raise InputError(
            f"{kind}s have no field {name[:80]!r}.", where="split.group_by", fix=f"Fields of {kind}s are: {fields}."
        )
    values = table[name].to_numpy(dtype=object)
    found: IntArray = np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64)
    return found[index]


def _quantile_groups(counts: IntArray, n_groups: int) -> IntArray:
    """Groups of about equally many members, fewest interactions first; equal counts stay together."""
    active = np.sort(counts[counts > 0])
    edges = np.unique(active[np.linspace(0, len(active), n_groups, endpoint=False).astype(int)])
    return np.maximum(0, np.searchsorted(edges, counts, side="right") - 1).astype(np.int64)


def stable_order(key: npt.NDArray[np.generic]) -> IntArray:
    """Stable argsort; integers that fit go through 16 bits at a time, which NumPy sorts by radix."""
    if key.dtype.kind == "i" and key.dtype.itemsize > 2 and len(key):
        low, high = int(key.min()), int(key.max())
        if low >= 0 and high < 2**32:
            words = key.astype(np.uint32)
            order = np.argsort((words & 0xFFFF).astype(np.uint16), kind="stable")
            if high >= 2**16:
                order = order[np.argsort((words >> 16).astype(np.uint16)[order], kind="stable")]
            return order
    return np.argsort(key, kind="stable")


def _share(n: int, fraction: float) -> int:
    return max(1, round(n * fraction))


CUTS: dict[str, Callable[[Rows, SplitSpec], Cut]] = {
    "given": _given,
    "leave-one-out": _leave_one_out,
    "temporal": _temporal,
    "rolling-temporal": _rolling_temporal,
    "random": _random,
    "random-users": _random_users,
    "cold-user": _cold_user,
    "cold-item": _cold_item,
    "group-stratified": _group_stratified,
    "records": _records,
}
