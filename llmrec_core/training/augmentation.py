"""Training prompts that differ a little from what is asked later: changed histories, other wordings.

Histories are cropped to one stretch, thinned out, or shuffled in one stretch (the three operators of CL4SRec, Xie et
al., "Contrastive learning for sequential recommendation", ICDE 2022, here on what a prompt shows, with the usual loss).
Every draw is seeded. All candidates of a list read the same changed history, so it is still read once for all of them.
Only what training prompts say is changed: labels, negatives and numbers beside the text are those of the real history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llmrec_core.contracts import HistoryItem, IntArray, Query, RenderedPrompt
from llmrec_core.prompts import PromptRenderer
from llmrec_core.specs import PromptSpec, TrainingSpec
from llmrec_core.training.samples import SampleLists

#: Passes over the training prompts that are drawn anew; later passes go through these again.
_MAX_ROUNDS = 10


def n_rounds(spec: TrainingSpec) -> int:
    """Passes whose prompts are drawn one by one: as many as there are epochs, where anything is drawn at all."""
    return min(_MAX_ROUNDS, math.ceil(spec.epochs)) if spec.augments else 1


def augmented(lists: SampleLists, spec: TrainingSpec, max_history: int, seed: int) -> SampleLists:
    """All lists :func:`n_rounds` times over, one round behind the other, each with histories changed anew.

    Args:
        max_history: items that a prompt shows; what is older is not counted when a stretch is chosen.
    """
    rounds = n_rounds(spec)
    if not spec.augments:
        return lists
    rng = np.random.default_rng([seed, 5])
    shares = np.cumsum([spec.crop_history, spec.mask_history, spec.reorder_history])
    queries: list[Query] = []
    for _ in range(rounds):
        which = np.searchsorted(shares, rng.random(len(lists.queries)), side="right")
        for query, number in zip(lists.queries, which.tolist(), strict=True):
            shown = query.history[-max_history:] if max_history else ()
            if number < len(_CHANGES) and len(shown) > 1:
                query = query.with_history(_CHANGES[number](shown, spec.augment_extent, rng))
            queries.append(query)
    n_lists = len(lists.queries)
    list_of = np.concatenate([lists.list_of + number * n_lists for number in range(rounds)])
    return replace(
        lists,
        queries=queries,
        users=np.tile(lists.users, rounds),
        list_of=list_of,
        items=np.tile(lists.items, rounds),
        labels={task: np.tile(values, rounds) for task, values in lists.labels.items()},
        offsets={task: np.tile(values, rounds) for task, values in lists.offsets.items()},
    )


History = Sequence[HistoryItem]


def _crop(history: History, extent: float, rng: np.random.Generator) -> History:
    """One stretch of it, without a share ``extent`` of the items."""
    kept = _some(len(history), 1 - extent)
    start = int(rng.integers(len(history) - kept + 1))
    return history[start : start + kept]


def _mask(history: History, extent: float, rng: np.random.Generator) -> History:
    """Without a share ``extent`` of its items, wherever they stand."""
    left = np.sort(rng.permutation(len(history))[: _some(len(history), 1 - extent)])
    return [history[at] for at in left.tolist()]


def _reorder(history: History, extent: float, rng: np.random.Generator) -> History:
    """With one stretch, a share ``extent`` of the items (at least two), in another order."""
    size = max(2, _some(len(history), extent))
    start = int(rng.integers(len(history) - size + 1))
    order = start + rng.permutation(size)
    return [*history[:start], *(history[at] for at in order.tolist()), *history[start + size :]]


def _some(n: int, share: float) -> int:
    return min(n, max(1, round(share * n)))


_CHANGES = (_crop, _mask, _reorder)


class Wordings:
    """Several renderers in the place of one: each list of prompts is worded by one of them, drawn by seed.

    Args:
        renderers: the prompt's own, then those of the paraphrases; all alike likely.
    """

    def __init__(self, renderers: Sequence[PromptRenderer], seed: int) -> None:
        self._renderers = renderers
        self._seed = seed
        self._rng = np.random.default_rng([seed, 6])

    @property
    def spec(self) -> PromptSpec:
        """What all renderers have in common."""
        return self._renderers[0].spec

    def identity(self) -> str:
        """As :meth:`PromptRenderer.identity`, for what is rendered first."""
        return json.dumps([self._seed, *(renderer.identity() for renderer in self._renderers)])

    def render_many(self, pairs: Sequence[tuple[Query, int]]) -> list[RenderedPrompt]:
        """As :meth:`PromptRenderer.render_many`; neighbours with one and the same query are one list."""
        queries = [query for query, _ in pairs]
        begins = np.array([at == 0 or query is not queries[at - 1] for at, query in enumerate(queries)], bool)
        list_of = np.cumsum(begins) - 1
        drawn = self._rng.integers(len(self._renderers), size=int(begins.sum()))[list_of] if len(pairs) else list_of
        return self._gathered(drawn, lambda renderer, chosen: renderer.render_many([pairs[i] for i in chosen]))

    def render_lists(self, lists: Sequence[tuple[Query, Sequence[int], int | None]]) -> list[RenderedPrompt]:
        """As :meth:`PromptRenderer.render_lists`."""
        drawn = self._rng.integers(len(self._renderers), size=len(lists))
        return self._gathered(drawn, lambda renderer, chosen: renderer.render_lists([lists[i] for i in chosen]))

    def _gathered(
        self, drawn: IntArray, render: Callable[[PromptRenderer, list[int]], list[RenderedPrompt]]
    ) -> list[RenderedPrompt]:
        """What each renderer makes of its own, put back in order."""
        found: dict[int, RenderedPrompt] = {}
        for number, renderer in enumerate(self._renderers):
            chosen = np.flatnonzero(drawn == number).tolist()
            found.update(zip(chosen, render(renderer, chosen), strict=True))
        return [found[place] for place in range(len(drawn))]
