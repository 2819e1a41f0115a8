"""``make_split``: filters, order in time, the protocol's cut, and the :class:`Split` that comes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import TIME, IntArray
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting.protocols import CUTS, KNOWN, NONE, TEST, TRAIN, VALID, Rows, given_parts, stable_order
from llmrec_core.data.splitting.split import Split
from llmrec_core.errors import DataError
from llmrec_core.specs import SplitSpec

Mask = npt.NDArray[np.bool_]


def make_split(dataset: Dataset, spec: SplitSpec) -> Split:
    """Cuts ``dataset`` as ``spec`` says; the same spec and data give the same split.

    First the time filter, then the k-core filter (over all rows that are left), then the protocol.

    Raises:
        DataError: nothing is left after the filters, nothing can be held out or trained on, or the protocol needs
            times or parts that the data does not have.
        InputError: groups are asked by a field that is not there.
    """
    spec = resolved(dataset, spec)
    table = dataset.interactions
    user_idx, item_idx = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    where = f"dataset {dataset.name}"
    kept = kept_rows(dataset, spec)
    if not kept.any():
        raise DataError(
            "no interaction is left after the filters.",
            where=where,
            fix="Lower min_user_interactions or min_item_interactions, or widen time_from and time_to.",
        )
    order = time_order(dataset, spec)
    order = order[kept[order]]
    cut = CUTS[spec.protocol](Rows(dataset, user_idx, item_idx, order, _starts(dataset, user_idx[order])), spec)
    part = cut.part
    order = order[part[order] != NONE]
    train, known, valid, test = (order[part[order] == code] for code in (TRAIN, KNOWN, VALID, TEST))
    if not len(test) or not len(valid) or not len(train):
        raise DataError(
            f"this split leaves {len(train)} rows to train on, {len(valid)} to validate and {len(test)} to test.",
            where=where,
            fix=_FIX.get(spec.protocol, "Use more data, other shares, or another protocol."),
        )
    place = np.full(len(table), -1, np.int64)
    place[order] = np.arange(len(order))
    if spec.min_item_interactions > 0:
        catalogue = np.flatnonzero(np.bincount(item_idx[order], minlength=dataset.n_items)).astype(np.int64)
    else:
        catalogue = np.arange(dataset.n_items, dtype=np.int64)
    return Split(
        dataset,
        spec,
        train,
        valid,
        test,
        catalogue,
        cut.cut_times,
        known,
        cut.window,
        {"valid": cut.withheld.get(VALID, _NO_ITEMS), "test": cut.withheld.get(TEST, _NO_ITEMS)},
        cut.notes,
        order,
        _starts(dataset, user_idx[order]),
        part,
        place,
    )


_FIX = {
    "leave-one-out": "It needs users with at least 3 interactions: use more data, or another protocol.",
    "given": "Each of the given parts needs rows: import the missing one, or choose another protocol.",
    "cold-user": "It needs several users with more than known_interactions interactions: lower it, or use more data.",
}
_NO_ITEMS: IntArray = np.empty(0, np.int64)


def resolved(dataset: Dataset, spec: SplitSpec) -> SplitSpec:
    """``spec`` with "auto" decided: the data's own parts, whole (no k-core filter), else leave-one-out."""
    if spec.protocol != "auto":
        return spec
    parts = given_parts(dataset)
    if parts is None or not (parts == TEST).any():
        return spec.model_copy(update={"protocol": "leave-one-out"})
    return spec.model_copy(update={"protocol": "given", "min_user_interactions": 0, "min_item_interactions": 0})


def kept_rows(dataset: Dataset, spec: SplitSpec) -> Mask:
    """Rows that stay: inside the times asked, then users and items with enough rows, again and again.

    Raises:
        DataError: a time filter meets data without times.
    """
    table = dataset.interactions
    user_idx, item_idx = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    kept = np.ones(len(table), bool)
    low, high = spec.seconds_from, spec.seconds_to
    if low is not None or high is not None:
        if not dataset.meta.has_timestamps:
            raise DataError(
                "time_from and time_to need timestamps, and this data has none.",
                where=f"dataset {dataset.name}",
                fix="Leave both empty, or import a timestamp column.",
            )
        times = table[TIME].to_numpy(np.float64)
        kept &= times >= (-np.inf if low is None else low)
        kept &= times <= (np.inf if high is None else high)
    if max(spec.min_user_interactions, spec.min_item_interactions) <= 1:
        # Nothing can fall below one row, and counting again and again takes its time.
        return kept
    while True:
        users = np.bincount(user_idx[kept], minlength=dataset.n_users)
        items = np.bincount(item_idx[kept], minlength=dataset.n_items)
        strong = (users >= spec.min_user_interactions)[user_idx] & (items >= spec.min_item_interactions)[item_idx]
        if (strong | ~kept).all():
            return kept
        kept &= strong


def time_order(dataset: Dataset, spec: SplitSpec) -> IntArray:
    """All row positions by user, then time, then the tie rule; file order is the last resort.

    With given parts, equal times (or all rows, where the data has no times) come as train, valid, test first.
    """
    # Sorts one key after the other, each stable: what ties at all of them stays in file order.
    order = np.arange(len(dataset.interactions), dtype=np.int64)
    for key in time_keys(dataset, spec):
        order = order[stable_order(key[order])]
    return order


def time_keys(dataset: Dataset, spec: SplitSpec) -> list[npt.NDArray[Any]]:
    """What :func:`time_order` sorts by, each [n_rows], the last one first: ties, then time, then user."""
    table = dataset.interactions
    keys: list[npt.NDArray[Any]] = []
    if dataset.meta.has_timestamps:
        if spec.tie_order == "item_id":
            keys.append(table["item_idx"].to_numpy(np.int64))
        if spec.protocol == "given":
            keys.append(_parts(dataset))
        keys.append(table[TIME].to_numpy(np.float64))
    elif spec.protocol == "given":
        keys.append(_parts(dataset))
    return [*keys, table["user_idx"].to_numpy(np.int64)]


def _parts(dataset: Dataset) -> npt.NDArray[np.int8]:
    parts = given_parts(dataset)
    return np.zeros(len(dataset.interactions), np.int8) if parts is None else parts


def _starts(dataset: Dataset, ordered_users: IntArray) -> IntArray:
    counts = np.bincount(ordered_users, minlength=dataset.n_users)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
