"""Quick metrics for use while fitting: early stopping, and the fusion weight of a two-stage ranking. No intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import IntArray
from llmrec_core.errors import SpecError
from llmrec_core.evaluation.metrics import Hits, Values, auc, discount, gauc, mae, rmse
from llmrec_core.specs import LOWER_IS_BETTER, check_metric


def validation_metric(name: str, truth: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> float:
    """One metric over validation rows; NaN if it is not defined on them (one class only, no ratings).

    Ranking metrics rank each user's own rows by score: they say how well these rows are ordered, not where a target
    stands in the whole catalogue. A tie is read against the model (not-clicked rows first), so that equal scores for
    everything do not look like a good order.

    Args:
        name: ``auc``, ``gauc``, ``rmse``, ``mae`` or ``ndcg@k``, ``hit_rate@k``, ``precision@k``, ``recall@k``,
            ``map@k``, ``mrr@k``.
        truth: labels 0 or 1, [n_rows]; for rmse and mae ratings (NaN is left out), on the scale of ``scores``.
        scores: scores or predicted ratings, [n_rows].
        users: who each row belongs to, [n_rows]; any values that can be compared.

    Raises:
        SpecError: an unknown name, or one that needs rankings of the whole catalogue (coverage, novelty and the like).
    """
    try:
        check_metric(name, None)
    except ValueError as error:
        raise SpecError(f"{error}.", where="validation_metric") from None
    base, _, cut = name.partition("@")
    if base == "auc":
        return auc(truth, scores)
    if base == "gauc":
        return gauc(truth, scores, users)
    if base == "rmse":
        return rmse(truth, scores)
    if base == "mae":
        return mae(truth, scores)
    if not hasattr(Hits, base):
        raise SpecError(
            f"{name} cannot be watched while training: it needs rankings of the whole catalogue.",
            where="validation_metric",
            fix="Watch auc, gauc or ndcg@k.",
        )
    values = getattr(_hits_in_rows(truth, scores, users), base)(int(cut))
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _hits_in_rows(truth: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> Hits:
    positive, score = np.asarray(truth) > 0, np.asarray(scores, np.float64)
    names, user = np.unique(np.asarray(users), return_inverse=True)
    order = np.lexsort((positive, -score, user))
    positive, user = positive[order], user[order]
    sizes = np.bincount(user, minlength=len(names))
    place = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    at = np.zeros((len(names), int(sizes.max(initial=0))), bool)
    at[user, place] = positive
    return Hits(at, at.sum(axis=1).astype(np.int64))


def is_better(name: str, new: float, best: float) -> bool:
    """True if ``new`` improves on ``best``: smaller for rmse and mae, larger for the rest. NaN never improves;
    anything improves on NaN."""
    if math.isnan(new):
        return False
    if math.isnan(best):
        return True
    return new < best if name in LOWER_IS_BETTER else new > best


def ndcg_of_scores(
    scores: npt.NDArray[np.floating], relevant: npt.NDArray[np.bool_], n_targets: IntArray, k: int
) -> Values:
    """NDCG@k of each query for many score matrices at once, [..., n_queries]; ties by column.

    Args:
        scores: [..., n_queries, n_candidates]; padding scores -inf.
        relevant: which candidates are targets, bool [n_queries, n_candidates], False for padding.
        n_targets: targets of each query, retrieved or not, [n_queries]; 0 gives NaN.
        k: cut-off.
    """
    scores = np.asarray(scores)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    found = np.take_along_axis(np.broadcast_to(relevant, scores.shape), order, axis=-1)
    discounts = discount(k)
    gain = (found * discounts[: found.shape[-1]]).sum(axis=-1)
    ideal = np.concatenate([[np.nan], np.cumsum(discounts)])[np.minimum(n_targets, k)]
    return gain / ideal
