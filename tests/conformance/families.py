"""Every recommender family, fitted on a tiny dataset: what the conformance suite runs over.

A new family adds one function ``(split, ctx) -> fitted recommender`` to :data:`FAMILIES` under the name its spec has in
``family``. ``ctx.workspace_models`` is an empty scratch folder: put tiny models there; the same ``ctx`` is given to
``load`` later. The dataset has 14 items (one without title, one in Chinese, two without any interaction), 9 users and
ratings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tiny_models import write_lettered_llama, write_tiny_bert, write_tiny_llama

from llmrec_core.baselines import ItemKNNRecommender, PopularityRecommender
from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.recommenders.blend import make_retriever
from llmrec_core.recommenders.registry import build
from llmrec_core.specs import (
    ALSSpec,
    BiasKNNSpec,
    BPRSpec,
    ContentKNNSpec,
    EASESpec,
    ItemKNNSpec,
    PopularitySpec,
    RatingFactorsSpec,
    RatingsSpec,
    RetrieverSpec,
    RunSpec,
    SplitSpec,
    SVDSpec,
    TrendSpec,
    TwoTowerSpec,
    UserKNNSpec,
)

Factory = Callable[[Split, FitContext], Recommender]

N_ITEMS, N_USERS, N_ROWS = 14, 9, 7
UNTITLED, CHINESE, COLD = "i03", "i04", ("i12", "i13")


def tiny_interactions(seed: int = 0) -> pd.DataFrame:
    """Rows of 9 users, 7 distinct items each, out of the 12 warm ones; times rise with the rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        for step, item in enumerate(rng.permutation(N_ITEMS - len(COLD))[:N_ROWS]):
            rows.append((f"u{user}", f"i{item:02d}", float(rng.integers(1, 6)), 1_000.0 + 10 * step))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def tiny_items() -> pd.DataFrame:
    titles = [f"film {number} of the night" for number in range(N_ITEMS)]
    titles[3], titles[4] = "", "我喜欢的电影"
    categories = ["comedy", "drama"] * (N_ITEMS // 2)
    categories[3] = ""
    return pd.DataFrame(
        {"item_id": [f"i{number:02d}" for number in range(N_ITEMS)], "title": titles, "category": categories}
    )


def tiny_split(interactions: pd.DataFrame | None = None, items: pd.DataFrame | None = None) -> Split:
    """Leave-one-out over :func:`tiny_interactions` and :func:`tiny_items`, or over what is given instead."""
    frame = tiny_interactions() if interactions is None else interactions
    dataset = Dataset.from_frames("tiny", frame, tiny_items() if items is None else items)
    return make_split(dataset, SplitSpec())


def _popularity(split: Split, ctx: FitContext) -> Recommender:
    recommender = PopularityRecommender(PopularitySpec())
    recommender.fit(split, ctx)
    return recommender


def _item_knn(split: Split, ctx: FitContext) -> Recommender:
    recommender = ItemKNNRecommender(ItemKNNSpec(window=3, last_items=4, shrink=1.0))
    recommender.fit(split, ctx)
    return recommender


def _baseline(spec: RetrieverSpec) -> Factory:
    def fitted(split: Split, ctx: FitContext) -> Recommender:
        recommender = make_retriever(spec)
        recommender.fit(split, ctx)
        return recommender

    return fitted


def _tiny_run(models: Path, **fields: object) -> RunSpec:
    """A run of three heads on a random BERT in ``models``; a few steps, since only the contract is looked at."""
    folder = models / "tiny-bert"
    if not folder.exists():
        write_tiny_bert(folder)
    return RunSpec.model_validate(
        {
            "dataset": {"name": "tiny"},
            "recommender": {"family": "cross-encoder", "model": str(folder)},
            "prompt": {"max_tokens": 96, "max_history": 4},
            "objectives": [{"task": "click"}, {"task": "rating", "weight": 0.5}, {"task": "rank"}],
            "training": {
                "max_samples": 48, "batch_size": 16, "rank_candidates": 3, "validation_every": 2,
                "validation_samples": 16, "precision": "fp32",
            },
            **fields,
        }
    )  # fmt: skip


def _cross_encoder(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    run = _tiny_run(ctx.workspace_models)
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _sequential(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    model = _tiny_run(ctx.workspace_models).recommender.model  # type: ignore[union-attr]
    spec = {"family": "sequential", "model": model, "n_text": 6, "width": 16, "max_history": 4, "epochs": 3}
    run = _tiny_run(ctx.workspace_models, recommender=spec, training={})
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _generative(split: Split, ctx: FitContext, **pipeline: object) -> Recommender:
    """By itself, or with ``pipeline`` the second stage of one."""
    assert ctx.workspace_models is not None
    folder = ctx.workspace_models / "tiny-llama"
    if not folder.exists():
        write_tiny_llama(folder)
    spec = {"family": "generative", "model": str(folder), "tuning": {"method": "lora", "lora_rank": 2}}
    if pipeline:
        spec = {"family": "pipeline", "ranker": spec, **pipeline}
    run = _tiny_run(ctx.workspace_models, recommender=spec)
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _content_knn(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    model = _tiny_run(ctx.workspace_models).recommender.model  # type: ignore[union-attr]
    return _baseline(ContentKNNSpec(model=model, n_text=6))(split, ctx)


def _ratings(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    model = _tiny_run(ctx.workspace_models).recommender.model  # type: ignore[union-attr]
    return _baseline(RatingsSpec(model=model, n_text=4, n_factors=2, n_models=2, n_iterations=10))(split, ctx)


def _two_tower(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    model = _tiny_run(ctx.workspace_models).recommender.model  # type: ignore[union-attr]
    spec = TwoTowerSpec(
        model=model, n_text=6, width=16, max_history=4, epochs=2, tuning_steps=3, tuning_texts=6, n_negatives=4
    )
    return _baseline(spec)(split, ctx)


def _blend(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    members = [{"family": "item-knn"}, {"family": "ease"}, {"family": "sequential", "model": None, "epochs": 2}]
    run = _tiny_run(ctx.workspace_models, recommender={"family": "blend", "members": members}, training={})
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _behaviour(split: Split, ctx: FitContext) -> Recommender:
    """Behaviour beside the text, and all four heads."""
    assert ctx.workspace_models is not None
    encoder = _tiny_run(ctx.workspace_models).recommender.model_dump()
    tasks = [{"task": task} for task in ("click", "rating", "rank", "similarity")]
    run = _tiny_run(ctx.workspace_models, recommender=encoder | {"behaviour": {"shrink": 2.0}}, objectives=tasks)
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _pipeline(split: Split, ctx: FitContext) -> Recommender:
    assert ctx.workspace_models is not None
    model = _tiny_run(ctx.workspace_models).recommender
    pipeline = {"family": "pipeline", "ranker": model, "n_candidates": 4, "fusion_users": 10, "model_weight": 0.5}
    run = _tiny_run(ctx.workspace_models, recommender=pipeline)
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


def _listwise(split: Split, ctx: FitContext) -> Recommender:
    """A pipeline whose ranker reads lists; zero-shot, as only the contract is looked at."""
    assert ctx.workspace_models is not None
    folder = ctx.workspace_models / "lettered-llama"
    if not folder.exists():
        write_lettered_llama(folder)
    ranker = {"family": "listwise", "model": str(folder), "window": 5, "n_permutations": 1}
    ranker["tuning"] = {"method": "none"}
    pipeline = {"family": "pipeline", "ranker": ranker, "n_candidates": 5, "fusion_users": 10, "model_weight": 0.5}
    run = _tiny_run(
        ctx.workspace_models,
        recommender=pipeline,
        objectives=[{"task": "rank"}],
        prompt={"template": "choice", "max_tokens": 96, "max_history": 4},
    )
    recommender = build(run, run.recommender)
    recommender.fit(split, ctx)
    return recommender


FAMILIES: dict[str, Factory] = {
    "popularity": _popularity,
    "item-knn": _item_knn,
    "user-knn": _baseline(UserKNNSpec(n_neighbours=4)),
    "ease": _baseline(EASESpec(l2=2.0)),
    "svd": _baseline(SVDSpec(n_factors=3)),
    "als": _baseline(ALSSpec(n_factors=4, n_iterations=5)),
    "bpr": _baseline(BPRSpec(n_factors=4, n_iterations=20)),
    "trend": _baseline(TrendSpec(half_life_days=2.0)),
    "bias-knn": _baseline(BiasKNNSpec(n_neighbours=3, shrink=2.0)),
    "rating-factors": _baseline(RatingFactorsSpec(n_factors=2, n_iterations=10)),
    "content-knn": _content_knn,
    "ratings": _ratings,
    "cross-encoder": _cross_encoder,
    "sequential": _sequential,
    "generative": _generative,
    "two-tower": _two_tower,
    "blend": _blend,
    "pipeline": _pipeline,
}

#: The same families with other parts.
VARIANTS: dict[str, Factory] = {
    "pipeline, listwise": _listwise,
    "pipeline, generative": partial(_generative, model_weight=0.5, n_candidates=5),
    "cross-encoder, behaviour": _behaviour,
}
