"""Lists read in one prompt: what a score is, orders, windows, and that the letters can be learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import VOCABULARY, write_lettered_llama, write_tiny_bert
from training.training_cases import Events
from transformers import AutoModelForCausalLM

from llmrec_core.contracts import FitContext, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import ModelError, SpecError
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.listwise import MARGIN, ListwiseRecommender, _window_starts
from llmrec_core.recommenders.pipeline import PipelineRecommender
from llmrec_core.specs import RunSpec, SplitSpec, parse_run_spec
from llmrec_core.training.samples import validation_lists

LETTERS = [VOCABULARY.index(word) for word in ("a", "ten", "nine", "eight")]
SHORT = (
    "{% for item in history %}{{ item.category }} {% endfor %}"
    "{% for item in candidates %}{{ item.letter }} {{ item.category }} {% endfor %} answer:"
)


def world(*, shuffled: bool = False) -> Split:
    """Everybody takes comedies and nothing else; ``shuffled``: anything."""
    rng = np.random.default_rng(2)
    words = ("red", "blue", "green", "dark", "light", "old", "new", "star")
    items = pd.DataFrame(
        [
            {"item_id": f"{kind}{n}", "title": f"{word} {kind} story", "category": kind}
            for kind in ("comedy", "horror")
            for n, word in enumerate(words)
        ]
    )
    rows = []
    for user in range(60):
        for step, item in enumerate(rng.permutation(16 if shuffled else 8)[:7]):
            rows.append((f"u{user}", items["item_id"][item], 4.0, 100.0 * step))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return make_split(Dataset.from_frames("world", frame, items), SplitSpec())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    write_lettered_llama(models / "llama", seed=3)
    return models


def run_of(models, source=None, training=None, retriever=None, **ranker) -> RunSpec:
    raw = {
        "dataset": {"name": "world"},
        "recommender": {
            "family": "pipeline",
            "retriever": retriever or {"family": "item-knn"},
            "n_candidates": ranker.pop("n_candidates", 4),
            "fusion_users": 10,
            "ranker": {
                "family": "listwise", "model": str(models / "llama"), "window": 4,
                "tuning": {"method": "none"}, **ranker,
            },
        },
        "prompt": {"template": "choice", "source": source, "max_tokens": 96, "max_history": 2},
        "objectives": [{"task": "rank"}],
        "training": {
            "rank_candidates": 4, "validation_metric": "ndcg@3", "validation_samples": 40, "precision": "fp32",
            **(training or {}),
        },
    }  # fmt: skip
    return RunSpec.model_validate(raw)


def fit(run: RunSpec, split: Split, models, events: Events | None = None) -> PipelineRecommender:
    found = registry.build(run, run.recommender)
    assert isinstance(found, PipelineRecommender)
    emit = (events if events is not None else Events()).emit
    found.fit(split, FitContext(workspace_models=models, device="cpu", seed=run.seed, emit=emit))
    return found


@pytest.fixture(scope="module")
def split() -> Split:
    return world()


@pytest.fixture(scope="module")
def pipeline(models, split) -> PipelineRecommender:
    return fit(run_of(models, n_permutations=3), split, models)


@pytest.fixture(scope="module")
def ranker(pipeline) -> ListwiseRecommender:
    assert isinstance(pipeline.ranker, ListwiseRecommender)
    return pipeline.ranker


def test_a_score_is_the_letters_share_averaged_over_orders(ranker, pipeline, split, models):
    query = split.queries("valid").queries[0]
    near = pipeline._unseen([query], 4)[0].tolist()
    whole = AutoModelForCausalLM.from_pretrained(models / "llama", attn_implementation="eager").eval()
    wanted = np.zeros(4)
    for order in ranker._orders(query, 4):
        (prompt,) = ranker.renderer.render_lists([(query, [near[i] for i in order], None)])
        assert prompt.text.endswith("Answer:")
        ids = torch.tensor([ranker._network.backbone.tokenizer.encode(prompt.text).ids])
        with torch.no_grad():
            wanted[order] += whole(input_ids=ids).logits[0, -1, LETTERS].log_softmax(-1).double().numpy() / 3
    np.testing.assert_allclose(ranker.score([query], np.array(near))[0], wanted, atol=1e-5)
    assert np.ptp(wanted) > 1e-4


def test_kept_tokens_of_lists_are_those_that_were_made(ranker, split, tmp_path):
    lists = validation_lists(split, ranker.run, 0)
    events = Events()
    context = FitContext(emit=events.emit, token_cache=tmp_path / "world")
    fresh, made, read = (ranker._tokenise(lists, None, ctx, "validation") for ctx in (None, context, context))
    for name, expected in vars(fresh).items():
        for found in (made, read):
            rows = [getattr(found, name), expected]
            flat = [row.flat if hasattr(row, "flat") and hasattr(row, "starts") else row for row in rows]
            np.testing.assert_array_equal(*flat)
    assert f"Tokens of {len(lists.queries)} validation prompts: read from the cache" in events.messages


def test_others_are_read_in_the_place_of_the_last(ranker, pipeline, split):
    query = split.queries("valid").queries[0]
    near = pipeline._unseen([query], 4)[0].tolist()
    outside = next(item for item in range(ranker.n_items) if item not in near)
    read = ranker._read([(query, (*near[:3], outside), None)])[0]
    assert ranker.score([query], np.array([outside]))[0, 0] == pytest.approx(read[3], abs=1e-6)
    assert (ranker.score([query], np.arange(ranker.n_items)) <= 0).all()


def test_hidden_fields_are_those_of_the_one_that_is_asked(ranker, pipeline, split):
    query = split.queries("valid").queries[0]
    near = pipeline._unseen([query], 4)[0]
    hidden = replace(query, hidden_fields=frozenset({"title", "category"}))
    prompt = ranker.renderer.render(hidden, int(near[1]))
    assert prompt.text.count("unknown") == 2
    assert {span.ref for span in prompt.spans if span.kind == "candidate"} == {"title", "category"}
    together = ranker.score([hidden], near)[0]
    alone = np.array([ranker.score([hidden], near[[i]])[0, 0] for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert abs(together - ranker.score([query], near)[0]).max() > 1e-5


def test_each_second_order_is_backwards_and_cancels_a_taste_for_letters(ranker, split, monkeypatch):
    query, other = split.queries("valid").queries[:2]
    first, second, third = ranker._orders(query, 6)
    assert first.tolist() == second[::-1].tolist()
    assert third.tolist() != first.tolist()
    assert ranker._orders(other, 6)[0].tolist() != first.tolist()
    taste = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    monkeypatch.setattr(ranker, "_letters", lambda windows, jobs: np.tile(taste, (len(jobs), 1)))
    for n_permutations, level in ((2, True), (1, False)):
        monkeypatch.setattr(ranker, "spec", ranker.spec.model_copy(update={"n_permutations": n_permutations}))
        (scores,) = ranker._read([(query, (0, 1, 2, 3), None)])
        assert (np.ptp(scores) < 1e-9) == level


def test_windows_slide_from_the_bottom_to_the_top(ranker, split, monkeypatch):
    assert [_window_starts(n, 4) for n in (0, 3, 4, 5, 10)] == [[], [0], [0], [1, 0], [6, 4, 2, 0]]
    worth = np.random.default_rng(0).permutation(10).astype(float)
    seen = []

    def read(windows):
        seen.extend(tuple(items) for _, items, _ in windows)
        return [worth[list(items)] - 20.0 for _, items, _ in windows]

    monkeypatch.setattr(ranker, "_read_windows", read)
    (scores,) = ranker._read([(Query("u0"), tuple(range(10)), None)])
    assert seen[0] == (6, 7, 8, 9)
    best = sorted((6, 7, 8, 9), key=lambda item: -worth[item])[:2]
    assert seen[1] == (4, 5, *best), "the better half moves on upwards"
    assert len(seen) == 4
    order = np.argsort(-scores)
    assert order[:2].tolist() == np.argsort(-worth)[:2].tolist(), "half a window of the best is sure to reach the top"
    assert (np.diff(scores[order]) <= -MARGIN + 1e-12).all()
    for item in order[:4]:
        assert scores[item] == worth[item] - 20.0, "what the top window held keeps its share"


def test_long_lists_are_a_function_of_query_and_item_too(models, split):
    long = fit(run_of(models, n_candidates=9), split, models).ranker
    queries = split.queries("valid").queries[:2]
    some = np.array([0, 5, 9, 15])
    whole = long.score(queries, some)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(long.score(queries[1:], some[::-1])[0, ::-1], whole[1], atol=1e-5)


def test_without_a_retriever_a_score_is_relative_to_what_is_asked(ranker, split, monkeypatch):
    monkeypatch.setattr(ranker, "candidates", None)
    query = split.queries("valid").queries[0]
    shares = np.exp(ranker.score([query], np.array([3, 1, 2]))[0].astype(float))
    assert (shares < 1).all()
    np.testing.assert_allclose(
        ranker.score([query], np.array([2, -1, 3, 1]))[0, [2, 3, 0]], np.log(shares), atol=1e-5
    )  # fmt: skip
    assert ranker.score([query], np.array([5]))[0, 0] == 0.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objectives": [{"task": "click"}]}, "objectives: a listwise ranker"),
        ({"training": {"rank_candidates": 30}}, "do not fit a window of 20"),
        ({"recommender": {"family": "pipeline", "ranker": {"family": "listwise", "window": 27}}}, "ranker.window"),
        ({"recommender": {"family": "listwise"}}, "recommender"),
    ],
)
def test_specs_that_cannot_be_are_refused(fields, said):
    raw = {
        "dataset": {"name": "x"}, "recommender": {"family": "pipeline", "ranker": {"family": "listwise"}},
        "objectives": [{"task": "rank"}], **fields,
    }  # fmt: skip
    with pytest.raises(SpecError, match=said):
        parse_run_spec(raw)


def test_models_and_templates_that_read_no_lists_are_refused(models, split):
    with pytest.raises(ModelError, match="decoder"):
        fit(run_of(models, model=str(write_tiny_bert(models / "bert"))), split, models)
    with pytest.raises(SpecError, match="choice"):
        fit(run_of(models, source="{{ candidate.title }}"), split, models)


def test_a_planted_rule_is_learned_and_a_shuffled_one_is_not(models):
    """Of two letters the right one must be told from what stands behind it."""
    ahead = {}
    training = {
        "max_samples": 480, "batch_size": 32, "learning_rate": 5e-3, "validation_every": 1000, "rank_candidates": 2,
        "hard_negatives": 0.0, "epochs": 6,
    }  # fmt: skip
    for shuffled in (True, False):
        run = run_of(
            models, SHORT, training, {"family": "popularity"}, window=2, n_candidates=2,
            tuning={"method": "full", "freeze_embeddings": False},
        )  # fmt: skip
        ranker = fit(run, world(shuffled=shuffled), models).ranker
        ranker.candidates = None
        pairs = np.stack([np.arange(8), 8 + np.arange(8)], axis=1)
        scores = ranker.score([Query(f"u{n}") for n in range(8)], pairs)
        ahead[shuffled] = float((scores[:, 0] - scores[:, 1]).mean())
    assert ahead[False] > 0.7
    assert abs(ahead[True]) < 0.2
