"""Histories as the networks read them: those of the training rows, and those of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmrec_core.contracts import IntArray, Query
from llmrec_core.training.sequences import Histories, gap_bins, rating_bins

if TYPE_CHECKING:
    from llmrec_core.data import Split


def training_rows(split: Split) -> IntArray:
    """Training rows by user, in each user's time order: what row of the dataset each row of the histories is."""
    users = split.dataset.interactions["user_idx"].to_numpy(np.int64)[split.train]
    return np.asarray(split.train[np.argsort(users, kind="stable")], np.int64)


def training_histories(split: Split) -> Histories:
    """Those of :func:`training_rows`."""
    table = split.dataset.interactions
    rows = training_rows(split)
    users = table["user_idx"].to_numpy(np.int64)[rows]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(users)) + 1, [len(users)]]).astype(np.int64)
    return Histories(
        table["item_idx"].to_numpy(np.int64)[rows],
        rating_bins(table["rating"].to_numpy(np.float64)[rows], split.dataset.rating_scale),
        gap_bins(table["timestamp"].to_numpy(np.float64)[rows], starts),
        starts,
    )


def query_histories(
    queries: Sequence[Query], item_index: Mapping[str, int], max_history: int, scale: tuple[float, float] | None
) -> Histories:
    """The last ``max_history`` known items of each query.

    Args:
        item_index: item_id -> item_idx; other ids are passed over.
        scale: ends of the rating scale.
    """
    items: list[int] = []
    ratings: list[float] = []
    times: list[float] = []
    starts = [0]
    for query in queries:
        known = [(entry, item_index[entry.item_id]) for entry in query.history if entry.item_id in item_index]
        for entry, item in known[-max_history:]:
            items.append(item)
            ratings.append(np.nan if entry.rating is None else entry.rating)
            times.append(np.nan if entry.timestamp is None else entry.timestamp)
        starts.append(len(items))
    bounds = np.array(starts, np.int64)
    return Histories(np.array(items, np.int64), rating_bins(ratings, scale), gap_bins(times, bounds), bounds)
