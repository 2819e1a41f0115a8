"""Weights of several losses: they do what their papers say, and a training goes on with them where it stopped."""

import math
from pathlib import Path

import pytest
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.contracts import FitContext
from llmrec_core.specs import TrainingSpec
from llmrec_core.training.balancing import Balance, make_balance

_BOTH = [{"task": "click"}, {"task": "rating"}]


def _balance(how: str, given: dict[str, float], **fields: float) -> Balance:
    return make_balance(given, TrainingSpec(balance=how, **fields))  # type: ignore[arg-type]


def test_uncertainty_gives_losses_of_any_scale_the_same_share() -> None:
    losses = {"click": 20.0, "rank": 0.05}
    balance = _balance("uncertainty", {"click": 1.0, "rank": 1.0}, balance_rate=0.1)
    assert balance.weights() == {"click": 1.0, "rank": 1.0}
    for _ in range(400):
        balance.follow(losses, {})
    # At the minimum of w L + log(1 / w) / 2 each weighted loss is 1/2.
    for task, weight in balance.weights().items():
        assert weight * losses[task] == pytest.approx(0.5, rel=1e-3)


def test_uncertainty_takes_squared_errors_for_half_a_likelihood() -> None:
    balance = _balance("uncertainty", {"rating": 1.0, "click": 1.0}, balance_rate=0.1)
    assert balance.weights()["rating"] == 0.5
    for _ in range(300):
        balance.follow({"rating": 4.0}, {})
    # exp(-s) = 1 / L, so the weight is 1 / (2 L); click had no labels and stays.
    assert balance.weights() == {"rating": pytest.approx(1 / 8, rel=1e-3), "click": 1.0}


def test_gradnorm_draws_gradients_to_the_same_length_and_keeps_the_sum() -> None:
    norms = {"click": 8.0, "rank": 0.5}
    balance = _balance("grad-norm", {"click": 1.0, "rank": 1.0}, balance_rate=0.02)
    for _ in range(300):
        balance.follow({"click": 1.0, "rank": 1.0}, norms)
    weights = balance.weights()
    assert weights["click"] * norms["click"] == pytest.approx(weights["rank"] * norms["rank"], rel=0.05)
    assert sum(weights.values()) == pytest.approx(2.0)


def test_gradnorm_pushes_the_task_that_has_learned_less() -> None:
    def ratio(alpha: float) -> float:
        balance = _balance("grad-norm", {"click": 1.0, "rank": 1.0}, balance_rate=0.02, balance_alpha=alpha)
        balance.follow({"click": 1.0, "rank": 1.0}, {"click": 1.0, "rank": 1.0})
        for _ in range(200):
            # Click still has all of its first loss, rank has a quarter left.
            balance.follow({"click": 1.0, "rank": 0.25}, {"click": 1.0, "rank": 1.0})
        return balance.weights()["click"] / balance.weights()["rank"]

    assert ratio(0.0) == pytest.approx(1.0, rel=0.05)
    assert ratio(0.5) == pytest.approx(2.0, rel=0.1)


def test_one_task_alone_keeps_its_weight() -> None:
    balance = _balance("uncertainty", {"click": 2.0})
    balance.follow({"click": 9.0}, {})
    assert balance.weights() == {"click": 2.0}


@pytest.mark.parametrize("how", ["uncertainty", "grad-norm"])
def test_weights_move_in_training_are_told_and_go_on_where_it_stopped(tmp_path: Path, how: str) -> None:
    split = planted_split(n_users=8)
    settings = {"max_samples": 64, "validation_every": 2, "balance": how, "objectives": _BOTH, "balance_rate": 0.2}
    events = Events()
    whole = fit(planted_run(tmp_path, **settings), split, tmp_path, events=events, checkpoints=tmp_path / "a")
    last = events.of("train")[-1]
    assert last["weights"].keys() == last["losses"].keys() == {"click", "rating"}
    assert not math.isclose(last["weights"]["click"], 1.0, abs_tol=0.01)
    steps = iter([None, None, "stop"])
    first = Events()
    fit(
        planted_run(tmp_path, **settings), split, tmp_path, events=first, checkpoints=tmp_path / "b",
        should_stop=lambda: next(steps, "stop"),
    )  # fmt: skip
    assert whole.outcome is not None
    assert len(first.of("train")) < whole.outcome.steps
    again = Events()
    fit(planted_run(tmp_path, **settings), split, tmp_path, events=again, resume=tmp_path / "b")
    assert again.of("train")[-1]["weights"] == pytest.approx(last["weights"], rel=1e-4)


def test_fixed_weights_are_told_and_stay(tmp_path: Path) -> None:
    events = Events()
    fit(planted_run(tmp_path, max_samples=32, objectives=_BOTH), planted_split(n_users=6), tmp_path, events=events)
    assert events.of("train")[-1]["weights"] == {"click": 1.0, "rating": 1.0}
    assert FitContext().start_from is None
