"""Policies that choose: which of a user's candidates make the list of k.

Each function gives, for a batch of users at once, which candidates are in. Candidates stand best first in columns;
``values`` fall from left to right. All are greedy and deterministic; ties go to the better candidate.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmrec_core.data.item_features import Values, kl_divergence

Mask = npt.NDArray[np.bool_]
#: Cells of the largest array of one block of users (float64: 32 MB).
_BLOCK_CELLS = 4_000_000


def by_novelty(values: Values, surprise: Values, valid: Mask, k: int, strength: float) -> Mask:
    """The k candidates with the largest standardised score + strength * surprise.

    Scores are standardised over each user's candidates (mean 0, deviation 1), so that a strength means the same for
    every recommender: one bit of surprise is worth so many deviations. The sum of surprise in the list cannot fall
    when the strength grows.

    Args:
        values, surprise: [n_users, n_candidates]; surprise in bits. valid: False for padding.
    """
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean = np.where(valid, values, 0.0).sum(axis=1, keepdims=True) / count
    centred = np.where(valid, values - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    worth = centred / np.where(deviation > 1e-9, deviation, 1.0) + strength * surprise
    best = np.argsort(np.where(valid, -worth, np.inf), axis=1, kind="stable")[:, :k]
    return _taken(best, valid)


def by_diversity(values: Values, features: Values, valid: Mask, k: int, strength: float) -> Mask:
    """Maximal marginal relevance: one by one the candidate with the largest (1 - s) * score - s * likeness.

    Scores are scaled to 0-1 over each user's candidates; likeness is the largest cosine to an item chosen before
    (Carbonell and Goldstein, "The Use of MMR", SIGIR 1998; s is 1 - lambda).

    Args:
        features: rows of length 1, [n_users, n_candidates, size].
    """
    relevance = (1.0 - strength) * _scaled(values, valid)
    likeness = np.zeros(values.shape)
    taken = np.zeros(values.shape, bool)
    rows = np.arange(len(values))
    for _ in range(min(k, values.shape[1])):
        worth = np.where(valid & ~taken, relevance - strength * likeness, -np.inf)
        best = worth.argmax(axis=1)
        taken[rows, best] |= valid[rows, best]
        alike = np.einsum("ucd,ud->uc", features, features[rows, best])
        likeness = np.maximum(likeness, alike)
    return taken


def by_calibration(values: Values, shares: Values, wanted: Values, valid: Mask, k: int, strength: float) -> Mask:
    """One by one the candidate with which (1 - s) * sum of scores - s * KL(wanted, mix of the list) is largest.

    (Steck, "Calibrated Recommendations", RecSys 2018: greedy, as the divergence is submodular.) Scores are scaled to
    0-1 over each user's candidates. A user without a wanted mix keeps the list as it is. Items without a category do
    not move the mix.

    Args:
        shares: categories of each candidate, rows sum to 1 or 0, [n_users, n_candidates, n_categories].
        wanted: [n_users, n_categories], rows sum to 1 or 0.
    """
    relevance = (1.0 - strength) * _scaled(values, valid)
    known = shares.sum(axis=2) > 0
    weight = np.where(wanted.sum(axis=1) > 0, strength, 0.0)[:, None]
    sums, counts = np.zeros(wanted.shape), np.zeros(len(wanted))
    taken = np.zeros(values.shape, bool)
    rows = np.arange(len(values))
    for _ in range(min(k, values.shape[1])):
        size = np.maximum(counts[:, None] + known, 1)[:, :, None]
        divergence = kl_divergence(wanted[:, None, :], (sums[:, None, :] + shares) / size)
        worth = np.where(valid & ~taken, relevance - weight * divergence, -np.inf)
        best = worth.argmax(axis=1)
        added = valid[rows, best]
        taken[rows, best] |= added
        sums += shares[rows, best] * added[:, None]
        counts += known[rows, best] & added
    return taken


def _scaled(values: Values, valid: Mask) -> Values:
    """Each row between 0 and 1; a row of equal values becomes 0."""
    low = np.where(valid, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(valid, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread = high - low
    safe = np.isfinite(spread) & (spread > 0)
    return np.where(valid & safe, (values - np.where(safe, low, 0.0)) / np.where(safe, spread, 1.0), 0.0)


def _taken(columns: npt.NDArray[np.int64], valid: Mask) -> Mask:
    taken = np.zeros(valid.shape, bool)
    np.put_along_axis(taken, columns, True, axis=1)
    return taken & valid


def blocks(n_users: int, cells_per_user: int) -> Iterator[slice]:
    """Slices over users that keep the arrays of one block small."""
    size = max(1, _BLOCK_CELLS // max(1, cells_per_user))
    for start in range(0, n_users, size):
        yield slice(start, min(start + size, n_users))
