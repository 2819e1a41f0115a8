"""The metric that families which rank whole catalogues watch while they train: NDCG@10 on validation users."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.evaluation.validation import ndcg_of_scores

if TYPE_CHECKING:
    from llmrec_core.data import Split

METRIC = "ndcg@10"
#: Score cells held at once (float32): 64 MB.
_BLOCK_CELLS = 16_000_000


def watched(split: Split, n_users: int, ctx: FitContext) -> Callable[[Recommender], float] | None:
    """recommender -> NDCG@10 over the whole catalogue, seen items removed; None without validation users.

    Tells of every floor in the context.

    Args:
        n_users: at most so many validation users, drawn by the context's seed.
    """
    held_out = split.queries("valid", max_users=n_users, seed=ctx.seed)
    if not len(held_out):
        ctx.emit("log", level="warning", message="no validation user has a new item: training runs to its end.")
        return None
    n_items = split.dataset.n_items
    relevant = np.zeros((len(held_out), n_items), bool)
    for row, targets in enumerate(held_out.targets):
        relevant[row, targets] = True
    n_targets = np.array([len(targets) for targets in held_out.targets], np.int64)
    everything = np.arange(n_items, dtype=np.int64)

    def value(recommender: Recommender) -> float:
        total, block = 0.0, max(1, _BLOCK_CELLS // n_items)
        for start in range(0, len(held_out), block):
            part = slice(start, start + block)
            scores = recommender.score(held_out.queries[part], everything)
            for row, seen in enumerate(held_out.exclude[part]):
                scores[row, seen] = -np.inf
            total += float(np.nansum(ndcg_of_scores(scores, relevant[part], n_targets[part], 10)))
        return total / len(held_out)

    for name, floor in ctx.floors.items():
        ctx.emit("baseline", name=name, metrics={METRIC: value(floor)})
    return value
