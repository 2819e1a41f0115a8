"""What a compressed child saves and costs beside its parent: bytes on disk and in memory, candidates a second, and how
its text model by itself orders candidates.

The last is asked for by itself because a pipeline hides it: where a retriever's score counts as much as the model's, a
model that lost everything still ranks well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from llmrec_core.contracts import FitContext, FloatArray, Recommender
from llmrec_core.errors import SpecError
from llmrec_core.models.loading import Backbone
from llmrec_core.models.quantised import QuantisedLinear
from llmrec_core.recommenders.pipeline import ranker_of
from llmrec_core.recommenders.reworked import validation_of

if TYPE_CHECKING:
    from llmrec_core.data import Split

#: Validation users and candidates of each that speed is measured on, and how often.
_N_USERS, _N_CANDIDATES, _N_ROUNDS = 12, 32, 5


@dataclass(frozen=True)
class Cost:
    """``size_bytes``: the saved recommender, with the language model it needs where that lies elsewhere;
    ``memory_bytes``: weights held while it scores; ``candidates_per_s``: scored from query to number."""

    size_bytes: int
    memory_bytes: int
    candidates_per_s: float


def measure_pair(
    parent: tuple[Recommender, Path], child: tuple[Recommender, Path], split: Split, seed: int
) -> dict[str, Any]:
    """Both as JSON, child / parent in candidates a second (``speed_ratio``), and what the text models say alone.

    The sides alternate, each round in the other order, and the median of five counts; both score the same validation
    users' candidates, without a retriever: a pipeline does not even ask a model whose weight is 0. ``agreement``: mean
    over these users of the rank correlation (Spearman) between the two, None where nothing can be ordered. ``alone``:
    the metric that the parent's training watched, of both, on its validation samples; None where it is not defined
    there.
    """
    held_out = split.queries("valid", max_users=_N_USERS, seed=seed)
    queries = list(held_out.queries) or [split.query(str(split.dataset.user_ids[0]), "valid")]
    rng = np.random.default_rng([seed, 11])
    n_items = split.dataset.n_items
    items = np.stack([rng.permutation(n_items)[: min(_N_CANDIDATES, n_items)] for _ in queries]).astype(np.int64)
    sides = {"parent": ranker_of(parent[0]), "child": ranker_of(child[0])}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for recommender in sides.values():
        recommender.score(queries[:2], items[:2])
    for number in range(_N_ROUNDS):
        for name in sides if number % 2 else reversed(sides):
            start = time.perf_counter()
            sides[name].score(queries, items)
            seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, (recommender, folder) in {"parent": parent, "child": child}.items():
        per_second = items.size / statistics.median(seconds[name])
        found[name] = Cost(saved_bytes(folder, recommender), held_bytes(recommender), per_second)
    ratio = statistics.median(p / c for p, c in zip(seconds["parent"], seconds["child"], strict=True))
    theirs, ours = sides.values()
    return {name: asdict(cost) for name, cost in found.items()} | {
        "speed_ratio": ratio,
        "agreement": rank_correlation(theirs.score(queries, items), ours.score(queries, items)),
        "alone": _watched_metric(parent[0], theirs, ours, split, seed),
    }


def rank_correlation(one: FloatArray, other: FloatArray) -> float | None:
    """Mean over rows of Spearman's correlation, float [n_rows, n_candidates] each; rows of one score are left out."""
    left, right = (rankdata(scores, axis=1) - (scores.shape[1] + 1) / 2 for scores in (one, other))
    spread = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    kept = spread > 0
    return float(((left * right).sum(1)[kept] / spread[kept]).mean()) if kept.any() else None


def _watched_metric(
    parent: Recommender, theirs: Recommender, ours: Recommender, split: Split, seed: int
) -> dict[str, Any] | None:
    try:
        validation = validation_of(parent, split, FitContext(seed=seed))
    except SpecError:
        # The metric asks for a head that the parent lacks.
        return None
    found = [validation.measure_floor(side).get(validation.metric) for side in (theirs, ours)]
    if None in found:
        return None
    return {"metric": validation.metric, "parent": found[0], "child": found[1]}


def saved_bytes(folder: Path, recommender: Recommender) -> int:
    """Bytes of a saved recommender, and of the base models that it needs beside it."""
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    root = folder.resolve()
    bases = {
        part.facts.folder: part.facts.size_bytes
        for part in _parts(recommender)
        if isinstance(part, Backbone) and not part.facts.folder.resolve().is_relative_to(root)
    }
    return own + sum(bases.values())


def held_bytes(recommender: Recommender) -> int:
    """Bytes of all weights in memory, shared ones once."""
    tensors: dict[int, int] = {}
    extra = 0
    for part in _parts(recommender):
        extra += getattr(part, "session_bytes", 0)
        module = part.model if isinstance(part, Backbone) else part
        if isinstance(module, nn.Module):
            for tensor in _tensors(module):
                tensors[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return extra + sum(tensors.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        if isinstance(part, QuantisedLinear) and isinstance(part._kernel, Tensor):
            # Laid out for the processor in a way of its own, of the same size; it has no address to ask for.
            yield torch.empty_like(part.packed)


def _parts(recommender: Recommender) -> Iterator[object]:
    """Whatever a recommender holds, and what the recommenders inside it hold."""
    for value in vars(recommender).values():
        yield value
        if isinstance(value, Recommender):
            yield from _parts(value)
        elif getattr(value, "backbone", None) is not None:
            yield value.backbone
