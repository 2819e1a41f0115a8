"""Children of models with behaviour beside their text: judged and taught by the joined output, as the parent was."""

from dataclasses import replace

import numpy as np
import pytest
from compression.compression_cases import saved, scores
from conformance.families import VARIANTS
from training.training_cases import Events

from llmrec_core.compression import children
from llmrec_core.compression.children import compress
from llmrec_core.recommenders import cross_encoder
from llmrec_core.recommenders.reworked import network_of, practice, validation_of
from llmrec_core.specs.compression import DistilSpec, Int8Spec, PruneHeadsSpec


@pytest.fixture(scope="module")
def beside(fitted_family):
    return fitted_family("cross-encoder, behaviour")


def test_what_stands_beside_the_text_is_what_stood_there_in_training(beside, tmp_path, monkeypatch):
    """Also for a parent from disk, which has forgotten what it knew without each user."""
    _, split, ctx = beside
    events, plans = Events(), []
    train = cross_encoder.train

    def noted(network, plan, *rest):
        plans.append(plan)
        return train(network, plan, *rest)

    monkeypatch.setattr(cross_encoder, "train", noted)
    parent = VARIANTS["cross-encoder, behaviour"](split, replace(ctx, emit=events.emit))
    loaded = saved(parent, split, ctx, tmp_path / "parent")
    plan, validation, _ = practice(loaded, split, parent.run.training.epochs, ctx)
    assert plan.fingerprint() == plans[0].fingerprint(), "the same batches, labels and offsets"
    assert all(plan[0].labels.offsets[task].std() > 0 for task in parent.tasks)
    best = next(e["metrics"] for e in events.of("validation") if e["step"] == parent.outcome.best_step)
    for watched in (validation, validation_of(loaded, split, ctx)):
        assert watched.measure(network_of(loaded)) == pytest.approx(best, abs=1e-5)


def test_heads_are_judged_and_students_taught_beside_behaviour(beside, monkeypatch):
    recommender, split, ctx = beside
    given = []
    judge, teach = children.head_importance, children.teach

    def judged(network, batches, *rest):
        given.append(batches[0].labels)
        return judge(network, batches, *rest)

    def taught(student, teacher, pairs, plan, *rest):
        given.append(plan[0].labels)
        return teach(student, teacher, pairs, plan, *rest)

    monkeypatch.setattr(children, "head_importance", judged)
    monkeypatch.setattr(children, "teach", taught)
    compress(recommender, PruneHeadsSpec(share=0.25, epochs=0.2), split, ctx)
    assert len(given) == 2
    for labels in given:
        assert set(labels.offsets) == set(recommender.tasks)


def test_the_weight_of_the_text_is_chosen_again_for_the_child_alone(beside, tmp_path):
    recommender, split, ctx = beside
    before, weights = scores(recommender, split), dict(recommender.behaviour.text_weight)
    events = Events()
    child = compress(recommender, DistilSpec(n_layers=1, epochs=0.2), split, replace(ctx, emit=events.emit))
    for task in recommender.tasks:
        assert f"{task}: weight of the text {child.behaviour.text_weight[task]:g} beside behaviour" in events.messages
    child.behaviour.text_weight["click"] += 1
    assert recommender.behaviour.text_weight == weights
    assert np.array_equal(scores(recommender, split), before)
    found = scores(child, split)
    assert np.array_equal(scores(saved(child, split, ctx, tmp_path / "child"), split), found)
    # Rounding leaves the model nearly as it was, and its weight too.
    assert compress(recommender, Int8Spec(), split, ctx).behaviour.text_weight == weights
