"""Does anything of the held-out rows reach what is learned? The checks that every split has to pass before use.

A check is either a rule (``hard``: a violation makes every figure of the split wrong, so a run stops) or a fact to know
(a note: the protocol allows it, and the reader should hear of it). What is fitted is checked by fitting: a probe gets
the split and a copy of it from which the held-out rows are removed, and has to answer the same twice.

Examples name rows by their place in the interactions (from 0) and items by id; never users, since reports are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmrec_core.contracts import IntArray
from llmrec_core.data._leakage_facts import EXAMPLES, Check, Facts, made
from llmrec_core.data._leakage_notes import (
    filters,
    id_times,
    other_users_future,
    rating_scale,
    repeats,
    twin_texts,
)
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting.cutting import kept_rows
from llmrec_core.data.splitting.protocols import NONE, VALID
from llmrec_core.data.splitting.split import HeldOut, Split

#: Held-out rows whose histories are asked one by one, beside the check of the whole order.
_ASKED = 500
#: Protocols that cut at a moment in time, and those that hold out whole users.
_IN_TIME = ("temporal", "rolling-temporal")
_BY_USER = ("cold-user", "random-users", "records")

Mask = npt.NDArray[np.bool_]
#: What was learned from a split, by name; equal arrays mean that the same was learned.
Learned = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Probe:
    """Something that learns from a split: ``learn`` must not change when held-out rows are taken away."""

    name: str
    title: str
    learn: Callable[[Split], Learned]


@dataclass(frozen=True)
class LeakageReport:
    """All checks of one split, in the order in which they are shown."""

    protocol: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No rule is broken; notes do not count."""
        return all(check.ok or not check.hard for check in self.checks)

    @property
    def violated(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict == "violated")

    @property
    def notes(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict == "note")

    def summary(self) -> str:
        """One sentence for a log."""
        n_passed = sum(check.ok for check in self.checks)
        words = f"Leakage check: {n_passed} of {len(self.checks)} passed"
        if self.violated:
            words += f", {len(self.violated)} violated ({'; '.join(check.title for check in self.violated)})"
        if self.notes:
            words += f", {len(self.notes)} to know ({'; '.join(check.title for check in self.notes)})"
        return f"{words}."

    def as_json(self) -> dict[str, Any]:
        """``ok, protocol, checks[{name, title, verdict, ok, hard, n_checked, n_violations, examples, words}]``."""
        checks = [
            {**asdict(check), "examples": list(check.examples), "verdict": check.verdict} for check in self.checks
        ]
        return {"ok": self.ok, "protocol": self.protocol, "checks": checks}


def check_leakage(split: Split, probes: Sequence[Probe] = (), seed: int = 0) -> LeakageReport:
    """Every check that applies to the split's protocol. Seconds for millions of rows, plus what the probes take.

    Args:
        split: as :func:`make_split` gave it, or put together by hand.
        probes: what else is learned from training rows; item counts are always looked at.
        seed: draws the rows whose histories are asked one by one.
    """
    facts = Facts(split)
    checks = [_parts(facts), _order(facts), _histories(facts, seed)]
    if split.spec.protocol in _IN_TIME:
        checks.append(_cut_in_time(facts))
    if split.spec.protocol in _BY_USER:
        checks.append(_held_out_users(facts))
    if split.spec.protocol == "cold-item":
        checks.append(_withheld_items(facts))
    checks += _statistics(facts, (_COUNTS, *probes))
    checks += [_targets(facts), _id_sorting(facts)]
    if split.spec.protocol not in _IN_TIME and split.dataset.meta.has_timestamps:
        checks.append(other_users_future(facts))
    checks += [repeats(facts), filters(facts), rating_scale(facts), id_times(facts), twin_texts(facts)]
    return LeakageReport(split.describe(), tuple(checks))


def _parts(facts: Facts) -> Check:
    """Each row that the filters keep is in one part, once; no other row is in any."""
    split = facts.split
    together = np.concatenate([split.train, split.known, split.valid, split.test])
    inside = (together >= 0) & (together < facts.n_rows)
    times_named = np.bincount(together[inside], minlength=facts.n_rows)
    expected = kept_rows(facts.dataset, facts.spec)
    if split.window is not None and facts.timed:
        low, stop = split.window
        expected &= (facts.times >= low) & (facts.times < stop)
    # What the split remembers of each row has to agree with its lists, or histories would be of another split.
    wrong = (times_named != expected) | (facts.codes != split._part)
    bad = np.flatnonzero(wrong)
    n_left_out = facts.n_rows - int(expected.sum())
    left_out = f" {n_left_out:,} rows are left out by filters or windows." if n_left_out else ""
    return made(
        "parts",
        "Every row is in one part, once",
        facts.n_rows,
        len(bad) + int((~inside).sum()),
        facts.rows(bad, lambda row: f": {times_named[row]} times in a part"),
        f"Training, validation and test share no row and miss none of {int(expected.sum()):,}.{left_out}",
    )


def _order(facts: Facts) -> Check:
    """The order that histories are cut from is that of time and the tie rule, worked out again."""
    split = facts.split
    bad = np.empty(0, np.int64)
    n_kept = int(np.count_nonzero(split._part != NONE))
    if len(split._order) != n_kept or not facts.in_order(split._order) or (split._part[split._order] == NONE).any():
        again = facts.time_order[split._part[facts.time_order] != NONE]
        bad = split._order[:1] if len(again) != len(split._order) else split._order[again != split._order]
    ties = {"file": "file order", "item_id": "item id"}[facts.spec.tie_order]
    return made(
        "order",
        "Each user's rows stand in time order",
        len(split._order),
        len(bad),
        facts.rows(bad),
        f"Worked out again from the times; equal times by {ties}."
        if facts.timed
        else "The data has no times: file order.",
    )


def _histories(facts: Facts, seed: int) -> Check:
    """Histories as a model gets them, against rows chosen by comparing times directly."""
    split, rng = facts.split, np.random.default_rng([seed, 7])
    rows = facts.held
    if len(rows) > _ASKED:
        rows = np.sort(rng.choice(rows, _ASKED, replace=False))
    if len(split.train):
        rows = np.concatenate([rows, rng.choice(split.train, min(_ASKED // 2, len(split.train)), replace=False)])
    code = facts.codes
    of_user = _by_user(facts, np.unique(facts.users[rows]))
    ids = facts.dataset.item_ids
    bad = []
    for row in rows.tolist():
        mine = of_user[int(facts.users[row])]
        limit = max(int(code[row]), VALID)
        earlier = mine[: int(np.flatnonzero(mine == row)[0])]
        allowed = earlier[(code[earlier] != NONE) & (code[earlier] < limit)]
        given = split.history_before(row) if split._part[row] != NONE else ()
        expected = [
            (str(ids[item]), time) for item, time in zip(facts.items[allowed], _times(facts, allowed), strict=True)
        ]
        if [(entry.item_id, entry.timestamp) for entry in given] != expected:
            bad.append(row)
    return made(
        "history",
        "No future in a history",
        len(rows),
        len(bad),
        facts.rows(np.array(bad, np.int64)),
        f"Histories of {len(rows):,} rows, drawn by seed, hold only rows of earlier parts, strictly before the row in "
        "time and tie order.",
    )


def _times(facts: Facts, rows: IntArray) -> list[float | None]:
    return facts.times[rows].tolist() if facts.timed else [None] * len(rows)


def _by_user(facts: Facts, users: IntArray) -> dict[int, IntArray]:
    """Row positions of the users asked, in the order of time and ties."""
    asked = np.zeros(facts.dataset.n_users, bool)
    asked[users] = True
    rows = facts.sorted_rows(np.flatnonzero(asked[facts.users]))
    bounds = np.searchsorted(facts.users[rows], users)
    return dict(zip(users.tolist(), np.split(rows, bounds[1:]), strict=True))


def _cut_in_time(facts: Facts) -> Check:
    split = facts.split
    valid_start, test_start = split.cut_times or (np.nan, np.nan)
    stop = np.inf if split.window is None else split.window[1]
    t = facts.times
    bad = np.concatenate(
        [
            split.train[~(t[split.train] < valid_start)],
            split.valid[~((t[split.valid] >= valid_start) & (t[split.valid] < test_start))],
            split.test[~((t[split.test] >= test_start) & (t[split.test] < stop))],
        ]
    )
    return made(
        "cut",
        "Nothing after the cut is trained on",
        len(split.train) + len(facts.held),
        len(bad),
        facts.rows(bad, lambda row: f" at {np.datetime64(int(t[row]), 's')}"),
        "All training rows lie before the start of the validation, all validation rows before the start of the test.",
    )


def _held_out_users(facts: Facts) -> Check:
    """Users that are asked have no training row, and of each exactly the promised rows are known."""
    split, n_users = facts.split, facts.dataset.n_users
    asked = np.unique(facts.users[facts.held])
    trained = np.bincount(facts.train_users, minlength=n_users)[asked] > 0
    known = np.bincount(facts.users[split.known], minlength=n_users)[asked]
    if facts.spec.protocol == "cold-user":
        k = facts.spec.known_interactions
        wrong = known != k
        words = f"None of their rows is trained on; of each exactly {k} are known when asked."
    elif facts.spec.protocol == "records":
        wrong = np.bincount(facts.users[facts.held], minlength=n_users)[asked] != 1
        words = "None of their rows is trained on; of each the last row is asked and all before it are known."
    else:
        total = known + np.bincount(facts.users[facts.held], minlength=n_users)[asked]
        promised = np.clip(np.rint(total * facts.spec.fold_in), 1, np.maximum(1, total - 1))
        wrong = known != promised
        words = f"None of their rows is trained on; of each the first {facts.spec.fold_in:.0%} are known when asked."
    bad = np.flatnonzero(trained | wrong)
    first_row = np.array([int(np.flatnonzero(facts.users == user)[0]) for user in asked[bad[:EXAMPLES]]], np.int64)
    return made(
        "cold-users", "Held-out users are absent from training", len(asked), len(bad), facts.rows(first_row), words
    )


def _withheld_items(facts: Facts) -> Check:
    split = facts.split
    withheld = np.concatenate([split.withheld.get(part, facts.items[:0]) for part in ("valid", "test")])
    trained = np.bincount(facts.train_items, minlength=facts.dataset.n_items)[withheld] > 0
    offered = np.isin(withheld, split.offered("train"))
    # The other way round as well: what is asked has to be of a withheld item.
    warm = {
        part: ~np.isin(facts.items[rows], split.withheld.get(part, facts.items[:0]))
        for part, rows in (("valid", split.valid), ("test", split.test))
    }
    bad = withheld[trained | offered]
    asked_warm = np.unique(
        np.concatenate([facts.items[split.valid[warm["valid"]]], facts.items[split.test[warm["test"]]]])
    )
    return made(
        "cold-items",
        "Withheld items are absent from training",
        len(withheld),
        len(bad) + len(asked_warm),
        facts.item_names(np.concatenate([bad, asked_warm])),
        "No training row names a withheld item, none is drawn as a negative in training, and only they are asked.",
    )


def _counts(split: Split) -> Learned:
    return {"train_item_counts": split.train_item_counts, "offered": split.offered("train")}


_COUNTS = Probe("statistics", "Item counts and catalogue", _counts)


def _statistics(facts: Facts, probes: Sequence[Probe]) -> list[Check]:
    copy = without_held_out(facts.split)
    found = []
    for probe in probes:
        here, there = probe.learn(facts.split), probe.learn(copy)
        different = [name for name in here if not _equal(here[name], there.get(name))]
        found.append(
            made(
                probe.name,
                f"{probe.title}: nothing from held-out rows",
                sum(int(np.size(array)) for array in here.values()),
                len(different),
                tuple(different[:EXAMPLES]),
                f"Learned twice, with the {len(facts.held):,} held-out rows there and removed: the same numbers.",
            )
        )
    return found


def _equal(left: npt.NDArray[Any], right: npt.NDArray[Any] | None) -> bool:
    if right is None or left.shape != right.shape:
        return False
    return bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))


def without_held_out(split: Split) -> Split:
    """The same training rows in a dataset from which validation and test rows are removed; ids stay as they are."""
    kept = np.ones(len(split.dataset.interactions), bool)
    kept[split.valid] = False
    kept[split.test] = False
    place = np.cumsum(kept) - 1
    dataset = split.dataset
    table = dataset.interactions[kept].reset_index(drop=True)
    smaller = with_interactions(dataset, table)
    order = split._order[kept[split._order]]
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[kept & (split._part != NONE)]
    starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=dataset.n_users))]).astype(np.int64)
    # Left out on purpose: the catalogue is a promise of the split, and training may not see it change.
    in_order = place[order]
    back = np.full(len(table), -1, np.int64)
    back[in_order] = np.arange(len(in_order))
    nobody = np.empty(0, np.int64)
    train = place[split.train[kept[split.train]]]
    return replace(
        split,
        dataset=smaller,
        train=train,
        known=place[split.known[kept[split.known]]],
        valid=nobody,
        test=nobody,
        _order=in_order,
        _starts=starts,
        _part=split._part[kept],
        _place=back,
        _cache=type(split._cache)(),
    )


def with_interactions(dataset: Dataset, table: pd.DataFrame) -> Dataset:
    """``dataset`` with other interactions; items, users and their numbers stay."""
    frames = {"interactions": table, "items": dataset.items, "users": dataset.users}
    return replace(dataset, _frames=frames)


def _targets(facts: Facts) -> Check:
    """What is to be found can be found: no target of a question is among its excluded or known items."""
    split, n_checked, bad = facts.split, 0, 0
    parts: tuple[HeldOut, ...] = ("valid", "test")
    for part in parts:
        found = split.queries(part, max_users=_ASKED)
        for query, targets, exclude in zip(found.queries, found.targets, found.exclude, strict=True):
            n_checked += len(targets)
            known = {entry.item_id for entry in query.history}
            bad += int(np.isin(targets, exclude).sum())
            bad += sum(str(facts.dataset.item_ids[item]) in known for item in targets.tolist())
    return made(
        "targets",
        "No target is known when it is asked for",
        n_checked,
        bad,
        (),
        f"Targets of at most {_ASKED:,} users of each part: none stands in the history, none is excluded.",
    )


def _id_sorting(facts: Facts) -> Check:
    """Inner numbers follow the ids' code points. Any other order, by first appearance say, would carry the time."""
    bad = []
    for ids in (facts.dataset.item_ids, facts.dataset.user_ids):
        bad += [int(n) for n in np.flatnonzero(ids[1:] <= ids[:-1])[:EXAMPLES]]
    return made(
        "numbers",
        "Inner numbers of users and items do not come from time",
        facts.dataset.n_items + facts.dataset.n_users,
        len(bad),
        tuple(f"place {n}" for n in bad[:EXAMPLES]),
        "They follow the ids in alphabetical order, so ties that go to the lower number tell nothing.",
    )


__all__ = ["Check", "LeakageReport", "Probe", "check_leakage", "without_held_out"]
