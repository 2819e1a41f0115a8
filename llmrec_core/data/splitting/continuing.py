"""A split of newer data for a model that was trained on an older version of it: nothing it learned from is asked again.

Rows are recognised by user, item and time; users and items by their ids, since their numbers differ between versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import ITEM, TIME, USER, IntArray
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting.cutting import time_order
from llmrec_core.data.splitting.protocols import KNOWN, NONE, TEST, TRAIN, VALID
from llmrec_core.data.splitting.split import Split
from llmrec_core.errors import DataError, SpecError

Codes = npt.NDArray[np.int8]

#: Protocols that hold out whole users or items: an older model knows who they are.
_NOT_FOR = ("cold-user", "random-users", "cold-item", "records")
#: Share of the first data that must be in the newer data for it to count as its continuation.
_MOST = 0.9


@dataclass(frozen=True)
class ContinuedSplit:
    """Splits of one newer dataset, and what the first model learned from.

    Attributes:
        split: what the training goes on with. Old test rows are in no training row's place: they are known history.
            Rows that the first model was trained on are never held out.
        old: the first model's own test rows, after what it knew then, ranked among the items of its time.
        new: the test rows of ``split`` that the first model did not hold out itself; None where there are none.
        trained: rows that the first model (and those that it went on from) was trained on, ascending.
        n_missing: interactions of the first data that the newer data does not have.
    """

    split: Split
    old: Split
    new: Split | None
    trained: IntArray
    n_missing: int


def continue_split(split: Split, first: Split, trained: IntArray) -> ContinuedSplit:
    """``split`` of newer data, for a model that was fitted on ``first``.

    Args:
        trained: rows of ``first.dataset`` that the model has seen in training.

    Raises:
        SpecError: the protocol holds out users or items.
        DataError: the newer data is no continuation, or nothing is left to test.
    """
    for part in (split, first):
        if part.spec.protocol in _NOT_FOR:
            raise SpecError(
                f"protocol {part.spec.protocol} holds out users or items, and a model that goes on may know them.",
                where="split.protocol",
                fix="Use temporal, rolling-temporal, leave-one-out, random or given.",
            )
    dataset, where = split.dataset, f"dataset {split.dataset.name}, version {split.dataset.version}"
    place = rows_in(first.dataset, dataset)
    n_missing = int((place < 0).sum())
    if n_missing > (1 - _MOST) * len(place):
        raise DataError(
            f"{n_missing:,} of {len(place):,} interactions of the first run's data are not in it.",
            where=where,
            fix="Go on with a newer version of the same data: what was there, and what came since.",
        )
    n_rows = len(dataset.interactions)
    was = np.full(n_rows, NONE, np.int8)
    found = place >= 0
    was[place[found]] = first._part[found]
    seen = np.zeros(n_rows, bool)
    seen[place[trained][place[trained] >= 0]] = True
    now = split._part.copy()
    # Known history is neither trained on nor asked.
    now[(now == TRAIN) & (was == TEST)] = KNOWN
    now[((now == VALID) | (now == TEST)) & seen] = KNOWN
    now[(now == TEST) & (was == VALID)] = KNOWN
    # Old questions that choose when to stop now would flatter what comes out.
    was[(was == TEST) & (now == VALID)] = KNOWN
    going_on = _recut(split, now)
    if not len(going_on.test) or not len(going_on.valid):
        raise DataError(
            "the first run has seen all that this split holds out.",
            where=where,
            fix="Use a protocol that cuts in time, or data with more new interactions.",
        )
    items = {str(item) for item in first.dataset.item_ids[first.catalogue].tolist()}
    catalogue = np.flatnonzero([str(item) in items for item in dataset.item_ids.tolist()]).astype(np.int64)
    old = _recut(first, was, dataset, catalogue)
    now_new = now.copy()
    now_new[(now == TEST) & (was == TEST)] = KNOWN
    new = _recut(split, now_new) if (now_new == TEST).any() else None
    return ContinuedSplit(going_on, old, new, np.flatnonzero(seen).astype(np.int64), n_missing)


def rows_in(first: Dataset, later: Dataset) -> IntArray:
    """For each interaction of ``first`` the same one's row in ``later``, -1 where it is missing.

    The same: user, item and time. Several equal ones are told apart by their order in the file.
    """
    keys = [USER, ITEM, TIME]
    tables = []
    for dataset in (first, later):
        table = dataset.interactions[keys].copy()
        table[USER], table[ITEM] = table[USER].astype(str), table[ITEM].astype(str)
        # Rows without a time are compared as well; NaN is no equal of itself.
        table[TIME] = table[TIME].fillna(-np.inf)
        table["copy"] = table.groupby(keys, sort=False).cumcount()
        tables.append(table)
    tables[1]["row"] = np.arange(len(tables[1]), dtype=np.int64)
    merged = tables[0].merge(tables[1], how="left", on=[*keys, "copy"])
    return merged["row"].fillna(-1).to_numpy(np.int64)


def _recut(like: Split, part: Codes, dataset: Dataset | None = None, catalogue: IntArray | None = None) -> Split:
    """A split with the protocol of ``like`` and these parts of each row."""
    dataset = like.dataset if dataset is None else dataset
    order = time_order(dataset, like.spec)
    order = order[part[order] != NONE]
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=dataset.n_users))]).astype(np.int64)
    place = np.full(len(part), -1, np.int64)
    place[order] = np.arange(len(order))
    train, known, valid, test = (order[part[order] == code] for code in (TRAIN, KNOWN, VALID, TEST))
    return Split(
        dataset,
        like.spec,
        train,
        valid,
        test,
        like.catalogue if catalogue is None else catalogue,
        like.cut_times,
        known,
        like.window,
        like.withheld,
        like.notes,
        order,
        starts,
        part,
        place,
    )
