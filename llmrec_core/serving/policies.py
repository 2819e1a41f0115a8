"""One user's list with policies beside the list without, each change with its reason, as plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrec_core.contracts import IntArray, Query, Recommender
from llmrec_core.data import Split
from llmrec_core.data.item_features import ItemFeatures
from llmrec_core.policies import PolicyChain, build_chain, changes_of
from llmrec_core.specs import PolicySpec, RunSpec, canonical_json, parse_policies

Describe = Callable[[int, float], dict[str, Any]]
#: Chains held for one run: each position of a slider asks for another.
_KEEP = 8


@dataclass
class PolicyDesk:
    """The chains that were asked for on one run; facts of the items are gathered once."""

    split: Split
    _features: ItemFeatures | None = None
    _chains: dict[str, PolicyChain] = field(default_factory=dict)

    def chain(self, policies: Sequence[PolicySpec], name: str, recommender: Recommender, spec: RunSpec) -> PolicyChain:
        """The chain for the recommender called ``name``; strengths are found for the longest lists of the run."""
        plain = [policy.model_dump(mode="json") for policy in policies]
        key = canonical_json([name, spec.policy_depth, max(spec.evaluation.ks), plain])
        if key not in self._chains:
            if self._features is None:
                self._features = ItemFeatures.of(self.split)
            k = max(spec.evaluation.ks)
            depth = spec.policy_depth
            made = build_chain(policies, depth, recommender, self.split, k, spec.seed, features=self._features)
            while len(self._chains) >= _KEEP:
                self._chains.pop(next(iter(self._chains)))
            self._chains[key] = made
        return self._chains[key]


def policies_of(
    spec: RunSpec, result: Mapping[str, Any] | None, given: Sequence[Any] | None, is_model: bool
) -> tuple[PolicySpec, ...]:
    """The policies to use: those given (mappings or lines), else the run's own on its own model.

    ``result`` is the run's result document: it holds the strengths that the run found.

    Raises:
        SpecError: a given policy is wrong.
    """
    if given is not None:
        return parse_policies(given)
    if not is_model:
        return ()
    found = (result or {}).get("policies") or {}
    return parse_policies(found["settings"]) if "settings" in found else spec.policies


def answer_with_policies(
    chain: PolicyChain, recommender: Recommender, query: Query, k: int, seen: IntArray, describe: Describe
) -> dict[str, Any]:
    """``items`` with policies, ``without`` them, those ``removed``, and the ``policies`` themselves.

    Every item has ``rank_without``: its place among the candidates; those that changed have ``reason{policy, code,
    text}``. ``describe`` makes the JSON of an item from item_idx and score.
    """
    found = chain.candidates(recommender, [query], k, [seen])
    applied = chain.apply(found, k)
    reasons = {
        change.item_idx: {"policy": change.policy, "code": change.code, "text": change.text}
        for change in changes_of(chain, found, applied, 0)
    }
    place = {int(item): rank for rank, item in enumerate(found.items[0], start=1) if item >= 0}

    def lines(items: IntArray, scores: np.ndarray) -> list[dict[str, Any]]:
        listed = [(int(item), float(score)) for item, score in zip(items, scores, strict=True) if item >= 0]
        return [
            {"rank": rank, **describe(item, score), "rank_without": place[item], "reason": reasons.get(item)}
            for rank, (item, score) in enumerate(listed, start=1)
        ]

    final = applied.final
    items, without = lines(final.items[0], final.scores[0]), lines(applied.without.items[0], applied.without.scores[0])
    kept = {item["item_id"] for item in items}
    return {
        "items": items,
        "without": without,
        "removed": [item for item in without if item["item_id"] not in kept],
        "policies": {
            "settings": [policy.model_dump(mode="json") for policy in chain.policies],
            "depth": chain.depth,
            "notes": list(chain.notes),
        },
    }
