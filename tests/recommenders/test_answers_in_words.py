"""The cross-encoder that answers in words, trained and zero-shot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.test_models_loading import write_tiny
from pydantic import ValidationError
from tiny_models import VOCABULARY, write_tiny_bert, write_tiny_llama
from training.training_cases import Events, fit, planted_run, planted_split, test_auc
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from llmrec_core.contracts import FitContext
from llmrec_core.errors import ModelError, SpecError
from llmrec_core.recommenders import registry
from llmrec_core.specs import CrossEncoderSpec, RunSpec

YES, NO = VOCABULARY.index("yes"), VOCABULARY.index("no")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    write_tiny_llama(models / "llama", seed=1)
    write_tiny(model_type="bert", folder=models / "masked")
    return models


def run_of(models, model="llama", method="none", template="yes-no", recommender=None, **training) -> RunSpec:
    run = planted_run(models, **training)
    spec = {
        "family": "cross-encoder", "model": str(models / model), "head": "label-words",
        "tuning": {"method": method, "freeze_embeddings": False}, **(recommender or {}),
    }  # fmt: skip
    prompt = run.prompt.model_copy(update={"template": template})
    return run.model_copy(update={"recommender": CrossEncoderSpec.model_validate(spec), "prompt": prompt})


@pytest.fixture(scope="module")
def split():
    return planted_split(n_users=12)


@pytest.fixture(scope="module")
def zero_shot(models, split):
    events = Events()
    return fit(run_of(models), split, models, events=events), events


def test_the_score_is_yes_minus_no(zero_shot, models, split):
    recommender, _ = zero_shot
    whole = (
        AutoModelForCausalLM.from_pretrained(models / "llama", attn_implementation="eager").eval().requires_grad_(False)
    )
    queries = split.queries("valid").queries[:3]
    items = np.arange(4)
    scores = recommender.score(queries, items)
    for row, query in enumerate(queries):
        for item in items:
            prompt = recommender.renderer.render(query, item)
            assert prompt.text.endswith("Answer:")
            ids = torch.tensor([recommender._network.backbone.tokenizer.encode(prompt.text).ids])
            logits = whole(input_ids=ids).logits[0, -1]
            assert scores[row, item] == pytest.approx(float(logits[YES] - logits[NO]), abs=1e-5)
    assert np.ptp(scores) > 1e-4


def test_shared_histories_answer_like_separate_prompts(zero_shot, models, split):
    alone = fit(run_of(models, recommender={"share_history": False}), split, models)
    assert zero_shot[0]._network.shared
    assert not alone._network.shared
    queries = split.queries("valid").queries
    everything = np.arange(split.dataset.n_items)
    shared = zero_shot[0].score(queries, everything)
    np.testing.assert_allclose(shared, alone.score(queries, everything), atol=1e-5)


def test_zero_shot_trains_nothing_and_says_so(zero_shot, models, split, tmp_path):
    recommender, events = zero_shot
    assert not events.of("train")
    assert "no weight is trained" in events.messages
    assert [set(e["metrics"]) for e in events.of("validation")] == [{"loss", "auc"}]
    assert recommender.outcome.steps == 0
    assert recommender.outcome.best_value == events.of("validation")[0]["metrics"]["auc"]
    recommender.save(tmp_path)
    queries = split.queries("valid").queries
    loaded = registry.load(tmp_path, split.dataset, FitContext(workspace_models=models, device="cpu"))
    np.testing.assert_array_equal(
        loaded.score(queries, np.arange(5)), recommender.score(queries, np.arange(5))
    )  # fmt: skip
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000, "nothing but the words' rows is kept"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tuning": {"method": "none"}}, "would guess"),
        ({"head": "label-words", "pooling": "mean"}, "pooling"),
        ({"head": "label-words", "label_words": ["Yes"]}, "label_words"),
    ],
)
def test_what_cannot_answer_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        CrossEncoderSpec.model_validate(fields)


def test_words_the_model_does_not_have_are_refused_before_training(models, split):
    events = Events()
    with pytest.raises(SpecError, match="single token"):
        fit(run_of(models, recommender={"label_words": ["Absolutely", "No"]}), split, models, events=events)
    assert not events.of("train")


def test_an_encoder_fills_in_a_blank(models, split, tmp_path):
    recommender = fit(run_of(models, "masked"), split, models)
    assert not recommender._network.shared, "zero-shot, an encoder reads whole prompts as it did in pretraining"
    whole = (
        AutoModelForMaskedLM.from_pretrained(models / "masked", attn_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    query = split.queries("valid").queries[0]
    prompt = recommender.renderer.render(query, 3)
    assert prompt.text.endswith("Answer: [MASK]")
    ids = torch.tensor([recommender._network.backbone.tokenizer.encode(prompt.text).ids])
    logits = whole(input_ids=ids).logits[0, int((ids[0] == VOCABULARY.index("[MASK]")).nonzero())]
    (score,) = recommender.score([query], np.array([3]))[0]
    assert score == pytest.approx(float(logits[YES] - logits[NO]), abs=1e-5)
    recommender.save(tmp_path)
    loaded = registry.load(tmp_path, split.dataset, FitContext(workspace_models=models, device="cpu"))
    assert loaded.renderer.render(query, 3) == prompt
    # Weights that lie elsewhere in memory may be summed in another order.
    assert loaded.score([query], np.array([3]))[0, 0] == pytest.approx(score, abs=1e-6)
    weights = recommender.attention(query, 3)[3]
    assert weights.argmax() == int((ids[0] == VOCABULARY.index("[MASK]")).nonzero())
    with pytest.raises(ModelError, match="no language-model head"):
        fit(run_of(models, str(write_tiny_bert(models / "headless"))), split, models)


def test_ratings_are_said_in_digits(models, split):
    run = run_of(models, template="stars", objectives=[{"task": "rating"}], validation_metric="rmse")
    recommender = fit(run, split, models)
    predicted = recommender.predict_ratings(split.queries("valid").queries, np.arange(4))
    assert ((predicted > 1) & (predicted < 5)).all()
    assert recommender.capabilities.tasks == {"rating"}


def test_a_planted_rule_is_learned_and_a_shuffled_one_is_not(models, tmp_path):
    auc = {}
    for shuffled in (True, False):
        planted = planted_split(n_users=24, shuffled=shuffled)
        run = run_of(models, method="full", learning_rate=1e-2, validation_every=12)
        recommender = fit(run, planted, models)
        auc[shuffled] = test_auc(recommender, planted)
    assert auc[False] > 0.9
    assert auc[True] < 0.7
    assert set(recommender._network.heads.state_dict()) == {"head.model.lm_head.weight"}
    wanted = fit(run_of(models), planted, models)._network.heads.state_dict()["head.model.lm_head.weight"]
    trained = recommender._network.heads.state_dict()["head.model.lm_head.weight"]
    assert torch.equal(trained, wanted), "the words' rows stay as they came"
    recommender.save(tmp_path)
    queries = planted.queries("valid").queries[:3]
    loaded = registry.load(tmp_path, planted.dataset, FitContext(workspace_models=models, device="cpu"))
    np.testing.assert_allclose(
        loaded.score(queries, np.arange(5)), recommender.score(queries, np.arange(5)), atol=1e-5
    )  # fmt: skip
