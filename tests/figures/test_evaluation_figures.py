"""Metrics, paired differences and trade-offs: values drawn, missing values said, hostile names literal."""

from __future__ import annotations

import pandas as pd
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless, metric, shown_texts

from llmrec_core.figures import difference_figure, metrics_figure, models_of, tradeoff_figure

RESULT = {
    "model": "model",
    "metrics": {"ndcg@10": metric(0.11), "novelty@10": metric(3.0), "rmse": metric(0.9)},
    "baselines": {"popularity": {"ndcg@10": metric(0.05), "novelty@10": metric(1.5)}},
}


def test_models_of_both_forms():
    assert list(models_of(RESULT)) == ["model", "popularity"]
    assert models_of({"run a": RESULT["metrics"]}) == {"run a": RESULT["metrics"]}
    assert models_of({}) == {}


def test_bars_carry_their_intervals():
    figure = metrics_figure(RESULT, ["ndcg@10"])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.x[0] for bar in bars] == [0.11, 0.05]
    assert bars[0].error_x.array[0] == pytest.approx(0.01)
    assert bars[0].error_x.arrayminus[0] == pytest.approx(0.01)
    assert "users: 400" in bars[0].hovertext[0]
    assert list(figure.layout.yaxis.ticktext) == ["model", "popularity"]


def test_each_metric_gets_its_panel_and_gaps_are_said():
    figure = metrics_figure(RESULT)
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["NDCG@10 (higher is better)", "novelty@10", "RMSE (lower is better)"]
    assert "not measured" in shown_texts(figure)


def test_values_without_interval_or_number():
    figure = metrics_figure({"a": {"auc": metric(0.7, None)}, "b": {"auc": metric(float("nan"))}, "c": {"auc": {}}})
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.x[0] for bar in bars] == [0.7]
    assert shown_texts(figure).count("not measured") == 2


@pytest.mark.parametrize("result", [{}, {"metrics": {}, "baselines": {}}, {"a": {}}])
def test_no_metrics_at_all(result):
    assert not metrics_figure(result).data
    assert not tradeoff_figure(result).data


def _per_user(model, floor, name="ndcg@10"):
    rows = [("model", f"u{i}", name, v) for i, v in enumerate(model)]
    rows += [("floor", f"u{i}", name, v) for i, v in enumerate(floor)]
    return pd.DataFrame(rows, columns=["model", "user_id", "metric", "value"])


def _counts(figure):
    return {trace.name: sum(trace.y) for trace in figure.data}


def test_differences_count_gains_ties_and_losses():
    per_user = _per_user([1.0, 0.5, 0.0, 0.3, float("nan")], [0.0, 0.5, 0.2, 0.1, 0.4])
    figure = difference_figure(per_user, "ndcg@10", "model", "floor", {"mean": 0.2, "ci_low": -0.1, "ci_high": 0.5})
    assert _counts(figure) == {"1 lost": 1, "1 equal": 1, "2 gained": 2}
    assert any("mean 0.2 (−0.1 to 0.5)" in text for text in shown_texts(figure))


def test_differences_turn_the_sign_where_less_is_better():
    per_user = _per_user([0.5, 0.9], [1.0, 0.8], "rmse")
    figure = difference_figure(per_user, "rmse", "model", "floor", {"mean": -0.2, "ci_low": -0.4, "ci_high": 0.1})
    assert _counts(figure) == {"1 lost": 1, "0 equal": 0, "1 gained": 1}
    assert any("mean 0.2 (−0.1 to 0.4)" in text for text in shown_texts(figure))


@pytest.mark.parametrize(
    "per_user",
    [_per_user([], []), _per_user([1.0], []), _per_user([float("nan")], [0.1]), _per_user([1.0], [0.5], "auc")],
)
def test_differences_without_pairs(per_user):
    assert not difference_figure(per_user, "ndcg@10", "model", "floor").data


def test_differences_of_users_who_are_all_equal():
    figure = difference_figure(_per_user([0.5], [0.5]), "ndcg@10", "model", "floor")
    assert _counts(figure) == {"0 lost": 0, "1 equal": 1, "0 gained": 0}


def test_tradeoff_places_each_model():
    figure = tradeoff_figure(RESULT)
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [(3.0, 0.11), (1.5, 0.05)]
    assert figure.layout.xaxis.title.text == "novelty (bits) of the first 10"
    assert len({trace.marker.symbol for trace in figure.data}) == 2


def test_names_are_shown_literally():
    models = {HOSTILE: {"ndcg@10": metric(0.1), "novelty@10": metric(1), HOSTILE: metric(0.2)}, "b": {}}
    assert_harmless(metrics_figure(models))
    assert_harmless(tradeoff_figure(models))
    per_user = _per_user([1.0], [0.5]).replace({"model": {"model": HOSTILE}, "metric": {"ndcg@10": HOSTILE}})
    figure = difference_figure(per_user, HOSTILE, HOSTILE, "floor", {"mean": 1})
    assert figure.data
    assert_harmless(figure)
