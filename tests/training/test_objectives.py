"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llmrec_core.training.objectives import Labels, weighted_loss

NAN = math.nan


def _labels(list_of, **values) -> Labels:
    tensors = {task: torch.tensor(v, dtype=torch.float32) for task, v in values.items()}
    return Labels(tensors, torch.tensor(list_of), max(list_of) + 1)


def test_click_is_the_mean_cross_entropy_of_labelled_prompts():
    labels = _labels([0, 0, 0], click=[1.0, 0.0, NAN])
    outputs = {"click": torch.tensor([0.0, math.log(3.0), 50.0])}
    # -log 1/2, -log(1 - 3/4)
    assert weighted_loss(outputs, labels, {"click": 1.0}).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_rating_is_the_mean_squared_error():
    labels = _labels([0, 1], rating=[0.5, 1.0])
    loss = weighted_loss({"rating": torch.tensor([0.0, 0.5])}, labels, {"rating": 1.0})
    assert loss.item() == pytest.approx(0.25)


def test_rank_is_the_softmax_over_each_list_of_any_length():
    labels = _labels([0, 0, 1, 1, 1], rank=[1.0, 0.0, 0.0, 1.0, NAN])
    outputs = {"rank": torch.tensor([math.log(3.0), 0.0, 100.0, 100.0, 200.0])}
    # 3 / (3 + 1); 1 / 2, however large the scores; the last prompt is not in its list's softmax
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert weighted_loss(outputs, labels, {"rank": 1.0}).item() == pytest.approx(expected)


def test_tasks_are_weighted_and_one_without_labels_adds_nothing():
    labels = _labels([0, 0], click=[1.0, 0.0], rating=[NAN, NAN])
    outputs = {"click": torch.zeros(2), "rating": torch.ones(2)}
    loss = weighted_loss(outputs, labels, {"click": 0.5, "rating": 9.0})
    assert loss.item() == pytest.approx(0.5 * math.log(2))


def test_parts_of_a_batch_add_up_to_the_whole():
    torch.manual_seed(0)
    scores = {"click": torch.randn(6), "rank": torch.randn(6), "rating": torch.randn(6)}
    values = {"click": [1.0, 0.0, NAN, 0.0, 0.0, 1.0], "rank": [1, 0, 0, 1, 0, 0], "rating": [0.1, NAN, NAN, 0.9, 0, 1]}
    weights = {"click": 1.0, "rank": 0.3, "rating": 2.0}
    whole = _labels([0, 0, 0, 1, 1, 1], **values)
    expected = weighted_loss(scores, whole, weights)
    total = 0.0
    for part in (slice(0, 3), slice(3, 6)):
        labels = _labels([0, 0, 0], **{task: v[part] for task, v in values.items()})
        total += weighted_loss({t: s[part] for t, s in scores.items()}, labels, weights, whole.counts())
    assert float(total) == pytest.approx(float(expected))


def test_gradients_reach_only_labelled_prompts():
    scores = torch.zeros(3, requires_grad=True)
    weighted_loss({"click": scores}, _labels([0, 0, 0], click=[1.0, NAN, 0.0]), {"click": 1.0}).backward()
    assert scores.grad.tolist() == [-0.25, 0.0, 0.25]
