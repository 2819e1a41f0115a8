"""Chains with every strength known: a novelty policy with ``raise_by`` is set on validation users.

The strength is the smallest that raises the mean novelty (mean inverse user frequency) of the finished lists of k by
the wanted share over the lists without any policy. It is found by bisection: more strength cannot lower the novelty
of what the policy chooses. The held-out items of the validation users play no part, only their histories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmrec_core.contracts import FloatArray, IntArray, Recommender
from llmrec_core.data.item_features import ItemFeatures
from llmrec_core.policies.chain import PolicyChain
from llmrec_core.specs import DiversitySpec, NoveltySpec, PolicySpec

if TYPE_CHECKING:
    from llmrec_core.data import Split

#: Bisection ends when the strength is known to this share of itself.
_PRECISION = 1e-3
#: The most that a NoveltySpec takes.
_STRONGEST = 100.0
#: Validation users of a model that reads prompts: it takes seconds for each, and the mean of some hundred is steady.
_TEXT_USERS = 200


def build_chain(
    policies: Sequence[PolicySpec],
    depth: int,
    recommender: Recommender,
    split: Split,
    k: int,
    seed: int = 0,
    features: ItemFeatures | None = None,
) -> PolicyChain:
    """The chain for a fitted recommender; ``raise_by`` is turned into a strength.

    Args:
        policies: see :mod:`llmrec_core.specs.policies`.
        depth: best items of each user that policies choose from.
        recommender: fitted on ``split``; asked for lists of validation users where a strength must be found.
        split: its training rows say how known items are.
        k: length of the lists on which ``raise_by`` is to hold.
        seed: draws the validation users.
        features: of ``split``, where they are known already.

    Raises:
        InputError: see :class:`PolicyChain`.
    """
    notes: list[str] = []
    n_ranked = getattr(recommender.spec, "n_candidates", None)
    if n_ranked is not None and max(n_ranked, k) < depth:
        # What stands behind them was never compared with them: its scores say nothing but an order.
        depth = max(n_ranked, k)
        notes.append(f"policies choose from {depth} items of each user: the recommender compares no more.")
    wanted = next((p for p in policies if isinstance(p, NoveltySpec) and p.strength is None), None)
    known = [p.model_copy(update={"strength": 0.0}) if p is wanted else p for p in policies]
    facts = ItemFeatures.of(split) if features is None else features
    chain = PolicyChain(known, depth, split.dataset, facts, _vectors(policies, recommender), notes)
    return chain if wanted is None else _raised(chain, wanted, recommender, split, k, seed)


def _raised(
    chain: PolicyChain, wanted: NoveltySpec, recommender: Recommender, split: Split, k: int, seed: int
) -> PolicyChain:
    """``chain`` with the strength that reaches ``wanted.raise_by``."""
    share_wanted = wanted.raise_by or 0.0
    n_users = min(wanted.validation_users, _TEXT_USERS) if recommender.capabilities.text else wanted.validation_users
    users = split.queries("valid", n_users, seed)
    if not len(users):
        chain.notes.append("novelty: there is no validation user, so no strength could be found; 0 was taken.")
        return chain
    found = chain.candidates(recommender, users.queries, k, users.exclude)
    before = _mean_surprise(found.items[:, :k], chain.features)

    def novelty(strength: float) -> float:
        return _mean_surprise(chain.with_novelty(strength).apply(found, k).final.items, chain.features)

    strength = smallest(lambda value: novelty(value) >= before * (1 + share_wanted), _STRONGEST)
    tuned = chain.with_novelty(_STRONGEST if strength is None else strength)
    reached = _mean_surprise(tuned.apply(found, k).final.items, chain.features)
    share = reached / before - 1 if before > 0 else 0.0
    words = f"on {len(users):,} validation users, from {before:.3f} to {reached:.3f} bits in the first {k}"
    tuned.notes.append(
        f"novelty could be raised by {share:+.1%} only, {words}: policies choose from {chain.depth} items."
        if strength is None
        else f"novelty: strength {strength:.4g} raises it by {share:+.1%} {words}."
    )
    return tuned


def smallest(enough: Callable[[float], bool], most: float) -> float | None:
    """The smallest value in 0 to ``most`` that is enough, by bisection; None where even ``most`` is not.

    ``enough`` must not turn false again as the value grows.
    """
    if enough(0.0):
        return 0.0
    high = 1.0
    while not enough(high):
        if high >= most:
            return None
        high = min(most, 4 * high)
    low = 0.0
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _vectors(policies: Sequence[PolicySpec], recommender: Recommender) -> FloatArray | None:
    """Item vectors of the recommender, asked for only where a policy compares items; None where it has none."""
    offered = getattr(recommender, "item_vectors", None)
    if offered is None or not any(isinstance(policy, DiversitySpec) for policy in policies):
        return None
    found = offered()
    return None if found is None else np.asarray(found, np.float32)


def _mean_surprise(items: IntArray, features: ItemFeatures) -> float:
    """Mean over users of the mean surprise of their listed items, in bits; users without a list are left out."""
    listed = items >= 0
    own = np.where(listed, features.surprise[items], 0.0).sum(axis=1) / np.maximum(listed.sum(axis=1), 1)
    return float(own[listed.any(axis=1)].mean()) if listed.any() else 0.0
