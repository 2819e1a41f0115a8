"""Small doubles: a catalogue, and recommenders whose scores are games solved by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    HistoryItem,
    IntArray,
    Query,
    Recommender,
    RenderedPrompt,
    Span,
)
from llmrec_core.specs import PopularitySpec


@dataclass
class Catalogue:
    """As much of a Dataset as explanations read."""

    rows: list[dict[str, str]]
    item_ids: Any = field(init=False)
    item_index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.item_ids = np.array([row["item_id"] for row in self.rows], dtype=object)
        self.item_index = {row["item_id"]: i for i, row in enumerate(self.rows)}

    @property
    def n_items(self) -> int:
        return len(self.rows)

    def item_text(self, idx: int, name: str) -> str:
        return self.rows[idx].get(name, "")

    def item_idx(self, item_id: str) -> int:
        return self.item_index[item_id]


def catalogue(n_items: int = 30) -> Catalogue:
    return Catalogue([{"item_id": f"i{i}", "title": f"Film {i}", "genre": f"genre {i % 3}"} for i in range(n_items)])


def query_of(n_history: int, **fields: Any) -> Query:
    history = tuple(HistoryItem(f"i{i}", rating=float(1 + i % 5)) for i in range(n_history))
    return Query("u1", history, **fields)


class GameRecommender(Recommender):
    """Scores ``worth(query)``; counts what it was asked. No text, no attention."""

    family: ClassVar[str] = "game"

    def __init__(self, worth: Callable[[Query], float], n_items: int = 30) -> None:
        self.spec = PopularitySpec()
        self.worth = worth
        self.asked: list[Query] = []
        self.n_calls = 0
        self._n_items = n_items

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset({"rank"}))

    @property
    def n_items(self) -> int:
        return self._n_items

    def fit(self, split: Any, ctx: FitContext) -> None:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, dataset: Any, ctx: FitContext) -> GameRecommender:
        raise NotImplementedError

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        assert candidates.shape == (len(queries), 1)
        self.asked.extend(queries)
        self.n_calls += 1
        return np.array([[self.worth(query)] for query in queries], dtype=np.float32)


class TextGameRecommender(GameRecommender):
    """Reads a prompt with the last ``n_shown`` history items, every field, and the candidate's title and genre."""

    family: ClassVar[str] = "text-game"

    def __init__(
        self, worth: Callable[[Query], float], dataset: Catalogue, n_shown: int = 5, reads_prompt_only: bool = True
    ) -> None:
        super().__init__(worth, dataset.n_items)
        self.dataset = dataset
        self.n_shown = n_shown
        self.reads_prompt_only = reads_prompt_only

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset({"click"}), text=True, attention=True)

    @property
    def renderer(self) -> TextGameRecommender:
        return self

    def shown(self, query: Query) -> Query:
        return query.with_history(query.history[-self.n_shown :] if self.n_shown else ())

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        seen = [self.shown(query) for query in queries] if self.reads_prompt_only else queries
        return super().score(seen, candidates, task=task)

    def render(self, query: Query, item_idx: int) -> RenderedPrompt:
        text, spans = "User:", []

        def add(kind: Any, ref: str, value: str) -> None:
            nonlocal text
            text += " "
            spans.append(Span(len(text), len(text) + len(value), kind, ref))
            text += value

        for key, value in query.profile.items():
            add("profile", key, value)
        for key, value in query.context.items():
            add("context", key, value)
        first = max(0, len(query.history) - self.n_shown)
        for position in range(first, len(query.history)):
            index = self.dataset.item_index[query.history[position].item_id]
            add("history", str(position), self.dataset.item_text(index, "title"))
        text += " | "
        for name in ("title", "genre"):
            hidden = name in query.hidden_fields
            add("candidate", name, "unknown" if hidden else self.dataset.item_text(item_idx, name))
        return RenderedPrompt(text, tuple(spans), len(text.split()), dropped_history=first)

    def attention(self, query: Query, item_idx: int) -> tuple[RenderedPrompt, IntArray, FloatArray, FloatArray]:
        """Words as tokens after a special one; one layer, two heads, everything reads everything evenly."""
        prompt = self.render(query, item_idx)
        offsets, at = [(0, 0)], 0
        for word in prompt.text.split(" "):
            offsets.append((at, at + len(word)))
            at += len(word) + 1
        n = len(offsets)
        even = np.full((1, 2, n, n), 1 / n, dtype=np.float32)
        return prompt, np.array(offsets, dtype=np.int64), even, np.full(n, 1 / n, dtype=np.float32)


def brute_force_shapley(value: Callable[[frozenset[int]], float], n_players: int) -> list[float]:
    """Shapley values as the mean marginal contribution over all orders of arrival: an independent formula."""
    totals = [0.0] * n_players
    for order in itertools.permutations(range(n_players)):
        present: frozenset[int] = frozenset()
        for player in order:
            grown = present | {player}
            totals[player] += value(grown) - value(present)
            present = grown
    return [total / math.factorial(n_players) for total in totals]
