"""A small catalogue for the tests of policies, and lists made from told scores instead of a recommender's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from llmrec_core.contracts import HistoryItem, Query
from llmrec_core.data import Dataset
from llmrec_core.data.item_features import Categories, ItemFeatures
from llmrec_core.policies import Applied, Candidates, PolicyChain
from llmrec_core.specs import parse_policies

#: item -> (categories, training users of 16): surprise 1, 2, 3, 4, 4, 4 bits.
FILMS = {
    "a": ("Drama", 8),
    "b": ("Drama", 4),
    "c": ("Drama; Comedy", 2),
    "d": ("Comedy", 1),
    "e": ("Horror", 1),
    "f": ("", 1),
}
A, B, C, D, E, F = range(6)


@cache
def catalogue() -> Dataset:
    items = pd.DataFrame(
        {
            "item_id": list(FILMS),
            "title": [f"Film {item}" for item in FILMS],
            "category": [categories for categories, _ in FILMS.values()],
            "year": ["1990", "1991", "1991", "1992", "1993", "1994"],
        }
    )
    rows = pd.DataFrame({"user_id": ["u"] * 6, "item_id": list(FILMS), "timestamp": np.arange(6.0)})
    return Dataset.from_frames("films", rows, items)


@cache
def features() -> ItemFeatures:
    return ItemFeatures(np.array([n for _, n in FILMS.values()]), 16, Categories.of(catalogue()))


def chain(*policies: Any, depth: int = 100, vectors: Any = None) -> PolicyChain:
    """Policies as lines or mappings."""
    return PolicyChain(parse_policies(policies), depth, catalogue(), features(), vectors)


def query(history: str = "", user: str = "u") -> Query:
    return Query(user, tuple(HistoryItem(item) for item in history))


def candidates(made: PolicyChain, scores: Sequence[Sequence[float]], histories: Sequence[str] = ()) -> Candidates:
    """Items ranked by ``scores`` [n_users, 6], ties by index, -inf left out."""
    table = np.array(scores, np.float32)
    order = np.argsort(-table, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(table, order, axis=1)
    items = np.where(np.isfinite(sorted_scores), order, -1)
    told = histories or [""] * len(table)
    wanted = made.wanted([query(history) for history in told])
    return Candidates(items, np.where(np.isfinite(sorted_scores), sorted_scores, np.nan), wanted)


def apply(
    policies: Sequence[Any], scores: Sequence[Sequence[float]], k: int, histories: Sequence[str] = (), **options: Any
) -> Applied:
    made = chain(*policies, **options)
    return made.apply(candidates(made, scores, histories), k)


def listed(applied: Applied) -> list[str]:
    """The finished lists as words: "abc"."""
    return ["".join("abcdef"[i] for i in row if i >= 0) for row in applied.final.items]
