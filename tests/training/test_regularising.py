"""Adversarial embeddings, passes that must agree, and softened labels: by hand, and off by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training.training_cases import fit, planted_run, planted_split

from llmrec_core.errors import RunFailedError, SpecError
from llmrec_core.specs import parse_run_spec
from llmrec_core.training import trainer as trainer_module
from llmrec_core.training.objectives import Labels, task_losses, weighted_loss
from llmrec_core.training.regularising import Adversary, disagreements

SHORT = {"max_samples": 32, "validation_every": 10, "early_stopping_patience": 0}


@pytest.fixture(scope="module")
def split():
    return planted_split(n_users=12)


def _labels(list_of, **values) -> Labels:
    tensors = {task: torch.tensor(v, dtype=torch.float32) for task, v in values.items()}
    return Labels(tensors, torch.tensor(list_of), max(list_of) + 1)


def _table() -> torch.nn.Embedding:
    table = torch.nn.Embedding(5, 3)
    with torch.no_grad():
        table.weight.copy_(torch.arange(15.0).reshape(5, 3))
    return table


@pytest.mark.parametrize("frozen", [True, False])
def test_the_push_follows_the_gradient_of_each_row_and_leaves_the_table_alone(frozen):
    table = _table().requires_grad_(not frozen)
    before = table.weight.detach().clone()
    ids = torch.tensor([[1, 2], [3, 0]])
    # d loss / d output: 3 and 4 in the first row, 0 and 2 in the second.
    slope = torch.tensor([[[3.0, 0, 0], [0, 4.0, 0]], [[0, 0, 0], [0, 0, 2.0]]])
    adversary = Adversary(table, epsilon=0.5)
    with adversary.watching():
        seen = table(ids)
        (seen * slope).sum().backward()
    assert torch.equal(seen, before[ids]), "what is watched is not changed"
    with adversary.attacking():
        pushed = table(ids)
    expected = torch.tensor([[[0.3, 0, 0], [0, 0.4, 0]], [[0, 0, 0], [0, 0, 0.5]]])
    torch.testing.assert_close(pushed.detach() - before[ids], expected)
    assert torch.equal(table(ids), before[ids]), "afterwards nothing is pushed"
    assert torch.equal(table.weight, before)
    assert pushed.requires_grad is not frozen


def test_a_row_without_gradient_stays_and_a_loss_without_embeddings_is_told():
    table = _table()
    adversary = Adversary(table, epsilon=1.0)
    with adversary.watching():
        (table(torch.tensor([[1], [2]]))[0] * 0.0).sum().backward()
    with adversary.attacking():
        assert torch.equal(table(torch.tensor([[1], [2]])), table.weight[torch.tensor([[1], [2]])])
    with adversary.watching():
        table(torch.tensor([[1]]))
    with pytest.raises(RunFailedError, match="does not reach the word embeddings"), adversary.attacking():
        pytest.fail("entered")


def test_disagreements_are_mean_divergences_and_squares():
    labels = _labels(
        [0, 0, 1, 1, 2], click=[1.0, 0, 1, float("nan"), 0], rank=[1.0, 0, 0, 1, 0], rating=[0.5, 0, 1, 0, 1]
    )
    one = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])
    two = torch.tensor([0.1, -0.5, 1.0, 0.7, 0.4])
    outputs = [dict.fromkeys(("click", "rank", "rating"), values) for values in (one, two)]
    found = disagreements(*outputs, labels, ("click", "rank", "rating"), labels.counts())

    def divergence(p, q):
        return float((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2

    def answers(logit):
        return torch.stack([logit.sigmoid(), 1 - logit.sigmoid()])

    clicks = [divergence(answers(one[i]), answers(two[i])) for i in (0, 1, 2, 4)]
    assert float(found["click"]) == pytest.approx(np.mean(clicks), rel=1e-5)
    # The third list has no right item, so it is in no mean.
    lists = [divergence(one[i : i + 2].softmax(0), two[i : i + 2].softmax(0)) for i in (0, 2)]
    assert float(found["rank"]) == pytest.approx(np.mean(lists), rel=1e-5)
    assert float(found["rating"]) == pytest.approx(float((one - two).square().mean()))
    same = disagreements(outputs[0], outputs[0], labels, ("click", "rank", "rating"), labels.counts())
    assert all(float(value) == 0.0 for value in same.values())


def test_smoothing_is_that_of_cross_entropy_and_leaves_ratings_alone():
    labels = _labels([0, 0, 0, 1, 1], rank=[0, 1, 0, 1, 0], click=[1, 0, 1, 1, 0], rating=[0.2, 1, 0, 0.5, 0.4])
    scores = torch.tensor([0.2, 1.5, -0.3, 0.7, 0.9])
    outputs = dict.fromkeys(("rank", "click", "rating"), scores)
    found = task_losses(outputs, labels, ("rank", "click", "rating"), smoothing=0.2)
    ranks = [
        F.cross_entropy(scores[:3][None], torch.tensor([1]), label_smoothing=0.2),
        F.cross_entropy(scores[3:][None], torch.tensor([0]), label_smoothing=0.2),
    ]
    torch.testing.assert_close(found["rank"], torch.stack(ranks).mean())
    soft = torch.tensor([0.9, 0.1, 0.9, 0.9, 0.1])
    torch.testing.assert_close(found["click"], F.binary_cross_entropy_with_logits(scores, soft))
    assert torch.equal(found["rating"], weighted_loss(outputs, labels, {"rating": 1.0}))


@pytest.mark.parametrize(
    ("tricks", "dropout"),
    [({"adversarial_epsilon": 1.0}, 0.0), ({"r_drop": 1.0}, 0.1), ({"label_smoothing": 0.2}, 0.0)],
    ids=["adversarial", "r-drop", "smoothing"],
)
def test_a_trick_changes_the_training(models, split, tricks, dropout):
    """Word embeddings are frozen here, as they are by default."""
    settings = {**SHORT, "tuning": {}, "dropout": dropout}
    plain, changed = (fit(planted_run(models, **settings, **t), split, models).outcome.losses for t in ({}, tricks))
    assert not np.allclose(changed, plain, rtol=1e-6)
    if "adversarial_epsilon" in tricks:
        assert changed[0] == plain[0], "what is told is the loss of the real texts"


def test_two_objectives_with_learned_weights_take_every_trick(models, split):
    tricks = {"adversarial_epsilon": 0.5, "r_drop": 1.0, "dropout": 0.1, "label_smoothing": 0.1}
    objectives = [{"task": "click"}, {"task": "rating"}, {"task": "rank"}]
    run = planted_run(models, objectives=objectives, rank_candidates=2, balance="grad-norm", **SHORT, **tricks)
    assert np.isfinite(fit(run, split, models).outcome.losses).all()


def test_parts_of_a_batch_give_the_same_training(models, split, monkeypatch):
    settings = {**SHORT, "adversarial_epsilon": 0.5, "label_smoothing": 0.1}
    plain = fit(planted_run(models, **settings), split, models)
    forward = trainer_module.PromptNetwork.forward

    def small_memory(self, packed):
        if self.training and len(packed.row) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, packed)

    monkeypatch.setattr(trainer_module.PromptNetwork, "forward", small_memory)
    parted = fit(planted_run(models, **settings), split, models)
    np.testing.assert_allclose(parted.outcome.losses, plain.outcome.losses, rtol=1e-4)


def test_agreement_needs_dropout_and_a_title_has_no_soft_label():
    raw = {"dataset": {"name": "d"}, "recommender": {"family": "cross-encoder"}, "training": {"r_drop": 1.0}}
    with pytest.raises(SpecError, match=r"training\.r_drop: without dropout"):
        parse_run_spec(raw)
    parse_run_spec({**raw, "training": {"r_drop": 1.0, "dropout": 0.1}})
    lora = {"family": "cross-encoder", "tuning": {"method": "lora", "lora_dropout": 0.1}}
    parse_run_spec({**raw, "recommender": lora})
    writes = {**raw, "recommender": {"family": "generative"}, "training": {"label_smoothing": 0.1}}
    with pytest.raises(SpecError, match=r"training\.label_smoothing: a generative recommender"):
        parse_run_spec(writes)
