"""The learning curve: what is drawn, the best baseline's line, torn and empty events."""

from __future__ import annotations

import pytest
from figures.figure_helpers import HOSTILE, assert_harmless, shown_texts

from llmrec_core.figures import training_figure


def _train(step, loss):
    return {"type": "train", "step": step, "loss": loss}


def _valid(step, **metrics):
    return {"type": "validation", "step": step, "metrics": metrics}


def test_loss_and_metric_over_steps():
    figure = training_figure([_train(1, 0.7), _valid(2, auc=0.6), _train(2, 0.5)])
    loss, metric = figure.data
    assert (list(loss.x), list(loss.y)) == ([1, 2], [0.7, 0.5])
    assert (list(metric.x), list(metric.y)) == ([2], [0.6])
    assert "higher is better" in figure.layout.yaxis2.title.text


@pytest.mark.parametrize(("metric", "best"), [("auc", "good 0.8"), ("rmse", "bad 0.3")])
def test_line_of_the_best_baseline(metric, best):
    events = [
        {"type": "baseline", "name": "bad", "metrics": {metric: 0.3}},
        {"type": "baseline", "name": "good", "metrics": {metric: 0.8}},
        {"type": "baseline", "name": "unmeasured", "metrics": {metric: None}},
        _valid(1, **{metric: 0.5}),
    ]
    texts = shown_texts(training_figure(events))
    assert any(best in text for text in texts)
    assert sum("best baseline" in text for text in texts) == 1


def test_loss_that_is_no_number_leaves_a_gap_and_a_note():
    figure = training_figure([_train(1, 0.7), _train(2, float("nan")), _train(3, float("inf")), _train(4, 0.4)])
    assert list(figure.data[0].y) == [0.7, None, None, 0.4]
    assert any("not finite at step 2" in text for text in shown_texts(figure))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"type": "stage", "stage": "data"}],
        [{"type": "train"}, {"type": "validation", "step": 1}, {"type": "validation", "step": 2, "metrics": None}],
        [{"type": "baseline", "name": "x", "metrics": {"auc": 0.5}}],
    ],
)
def test_nothing_to_draw_yet(events):
    figure = training_figure(events)
    assert not figure.data
    assert "No training step yet" in figure.layout.annotations[0].text


def test_one_single_point_is_visible():
    figure = training_figure([_train(1, 0.7)])
    assert figure.data[0].mode == "lines+markers"


def test_resumed_steps_replace_the_earlier_ones():
    figure = training_figure([_train(1, 0.7), _train(2, 0.6), _train(2, 0.5)])
    assert list(figure.data[0].y) == [0.7, 0.5]


def test_names_are_shown_literally():
    events = [
        {"type": "baseline", "name": HOSTILE, "metrics": {HOSTILE: 0.3}},
        _valid(1, **{HOSTILE: 0.5}),
        _train(1, 1),
    ]
    assert_harmless(training_figure(events))


def test_weights_that_follow_the_training_have_a_panel_of_their_own():
    def step(number, click, rank):
        return {**_train(number, 0.5), "weights": {"click": click, "rank": rank}}

    figure = training_figure([step(1, 1.0, 1.0), _valid(2, auc=0.6), step(2, 1.2, 0.8)])
    assert [(trace.name, list(trace.y)) for trace in figure.data[2:]] == [
        ("weight of click", [1.0, 1.2]),
        ("weight of rank", [1.0, 0.8]),
    ]
    assert figure.layout.yaxis3.title.text == "weight of the loss"
    # Fixed weights are no news.
    assert len(training_figure([step(1, 1.0, 0.5), step(2, 1.0, 0.5)]).data) == 1
