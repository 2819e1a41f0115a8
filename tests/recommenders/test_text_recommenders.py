"""Cross-encoder and pipeline beyond the common contract."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conformance.families import FAMILIES, tiny_split
from safetensors.torch import load_file
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.errors import ModelError
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.pipeline import Fusion, PipelineRecommender


@pytest.fixture(scope="module")
def ctx(tmp_path_factory):
    return FitContext(workspace_models=tmp_path_factory.mktemp("models"), device="cpu")


@pytest.fixture(scope="module")
def split():
    return tiny_split()


@pytest.fixture(scope="module")
def pipeline(split, ctx) -> PipelineRecommender:
    return FAMILIES["pipeline"](split, ctx)


@pytest.fixture(scope="module")
def ranker(pipeline) -> CrossEncoderRecommender:
    return pipeline.ranker


def test_equal_prompts_are_read_once(ranker, split, monkeypatch):
    queries = split.queries("test").queries[:1] * 3
    sizes = []
    predict = type(ranker._network).predict
    monkeypatch.setattr(
        type(ranker._network),
        "predict",
        lambda self, tokens, tasks: sizes.append(len(tokens)) or predict(self, tokens, tasks),
    )
    scores = ranker.score(queries, np.array([1, 2, 1]))
    assert sizes == [2]
    assert np.ptp(scores[:, [0, 2]]) == 0


def test_attention_fits_the_prompt(ranker, split):
    query = split.queries("test").queries[0]
    prompt, offsets, attention, weights = ranker.attention(query, 5)
    n_tokens = prompt.n_tokens
    assert prompt == ranker.renderer.render(query, 5)
    assert offsets.shape == (n_tokens, 2)
    assert attention.shape == (2, 4, n_tokens, n_tokens)
    assert attention.dtype == weights.dtype == np.float32
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    start = min(span.start for span in prompt.spans if span.kind == "candidate")
    assert (weights[offsets[:, 1] > start] > 0).all(), "the candidate is read into the score"
    before = ranker.score([query], np.array([5]))
    ranker.attention(query, 5)
    np.testing.assert_array_equal(ranker.score([query], np.array([5])), before)


def test_history_and_hidden_fields_reach_the_model(ranker, split):
    from dataclasses import replace

    query = next(q for q in split.queries("test").queries if len(q.history) > 2)
    item = np.array([5])
    whole = ranker.score([query], item)
    assert abs(whole - ranker.score([query.with_history(query.history[:-1])], item)).max() > 1e-6
    assert abs(whole - ranker.score([replace(query, hidden_fields=frozenset({"title"}))], item)).max() > 1e-6


@pytest.mark.parametrize("method", ["lora", "top-layers"])
def test_adapters_are_saved_with_a_reference_to_their_base(ctx, tmp_path, method):
    planted = planted_split(n_users=12)
    models = ctx.workspace_models
    run = planted_run(models, tuning={"method": method, "n_top_layers": 1}, max_samples=48)
    fitted = fit(run, planted, models)
    fitted.save(tmp_path)
    assert not (tmp_path / "model").exists()
    names = set(load_file(tmp_path / "adapter.safetensors"))
    assert names
    assert all(("lora_" if method == "lora" else "layer.1.") in name for name in names)
    queries = planted.queries("test").queries[:3]
    loaded = registry.load(tmp_path, planted.dataset, ctx)
    everything = np.arange(planted.dataset.n_items)
    np.testing.assert_allclose(loaded.score(queries, everything), fitted.score(queries, everything), atol=1e-5)
    head = json.loads((tmp_path / "recommender.json").read_text())
    head["base"]["weights_sha256"] = "0" * 64
    (tmp_path / "recommender.json").write_text(json.dumps(head))
    with pytest.raises(ModelError, match="base model"):
        registry.load(tmp_path, planted.dataset, ctx)


def test_an_unknown_family_is_refused(tmp_path, split, ctx):
    (tmp_path / "recommender.json").write_text(json.dumps({"format": 1, "family": "oracle"}))
    with pytest.raises(ModelError, match="oracle"):
        registry.load(tmp_path, split.dataset, ctx)


def test_fusion_by_hand():
    fusion = Fusion(0.25, model_mean=1.0, model_std=2.0, retriever_mean=0.5, retriever_std=0.1)
    fused = fusion.fuse(np.array([5.0, -np.inf]), np.array([0.6, -np.inf]))
    assert fused[0] == pytest.approx(0.25 * 2.0 + 0.75 * 1.0)
    assert fused[1] == -np.inf
    assert Fusion(0.0, 0, 1, 0, 1).fuse(np.array([9.0]), np.array([0.5])) == pytest.approx(0.5)


def test_the_weight_is_chosen_on_validation_and_said(split, ctx, monkeypatch):
    """A model that knows the validation targets must get the whole say; one that is always wrong, none."""
    held_out = split.queries("valid")
    wanted = {q.user_id: set(t.tolist()) for q, t in zip(held_out.queries, held_out.targets, strict=True)}

    for sign, expected in ((1.0, lambda w: w > 0), (-1.0, lambda w: w == 0)):
        built = FAMILIES["pipeline"](split, ctx)
        built.spec = built.spec.model_copy(update={"model_weight": None, "n_candidates": 12})

        def oracle(queries, items, *, task=None, sign=sign):
            hits = [[item in wanted[q.user_id] for item in row] for q, row in zip(queries, items.tolist(), strict=True)]
            return np.where(items < 0, -np.inf, sign * np.array(hits, np.float32)).astype(np.float32)

        monkeypatch.setattr(built.ranker, "score", oracle)
        events = Events()
        built._choose_weight(split, FitContext(emit=events.emit))
        assert expected(built.fusion.model_weight)
        assert built.fusion_grid[built.fusion.model_weight] == max(built.fusion_grid.values())
        assert {0.0, 1.0} <= set(built.fusion_grid)
        assert f"model weight {built.fusion.model_weight:g}" in events.messages
        if sign > 0:
            assert built.fusion_grid[1.0] > built.fusion_grid[0.0]


def test_candidates_first_then_the_retrievers_order(pipeline, split):
    asked = split.queries("test")
    n = pipeline.spec.n_candidates
    for query, exclude in zip(asked.queries, asked.exclude, strict=True):
        whole = pipeline.top_k([query], pipeline.n_items, [exclude])[0]
        retrieved = pipeline.retriever.top_k([query], pipeline.n_items, [exclude])[0]
        assert set(whole.items[:n]) == set(retrieved.items[:n])
        assert whole.items[n:].tolist() == retrieved.items[n:].tolist()
        assert (np.diff(whole.scores) <= 0).all()
        fused = pipeline.score([query], whole.items[:n])[0]
        np.testing.assert_allclose(whole.scores[:n], fused, atol=1e-4)


def test_a_pipeline_without_a_say_for_the_model_is_the_retriever(split, ctx, monkeypatch):
    built = FAMILIES["pipeline"](split, ctx)
    built.fusion = Fusion(0.0, 0.0, 1.0, 0.0, 1.0)
    asked = split.queries("test")
    floor = ItemKNNRecommender(built.spec.retriever)
    floor.fit(split, ctx)
    # Nobody waits for a model that has no say.
    monkeypatch.setattr(built.ranker, "score", None)
    for left, right in zip(
        built.top_k(asked.queries, 10, asked.exclude), floor.top_k(asked.queries, 10, asked.exclude), strict=True
    ):
        assert left.items.tolist() == right.items.tolist()


def test_stages_are_told(split, ctx):
    events = Events()
    FAMILIES["pipeline"](split, FitContext(workspace_models=ctx.workspace_models, device="cpu", emit=events.emit))
    assert [e["stage"] for e in events.of("stage")] == ["tokenizing", "training", "fusion"]


def test_fits_leave_threads_and_grad_mode_alone(ranker):
    assert torch.is_grad_enabled()
    assert not any(parameter.requires_grad for parameter in ranker._network.parameters())
