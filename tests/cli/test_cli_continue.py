"""`llmrec train --continue`: the spec that is submitted, and how old and new are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmrec_core import runs
from llmrec_core.cli import runs as commands
from llmrec_core.specs import RunSpec

FIRST = RunSpec.model_validate(
    {"dataset": {"name": "mini", "version": 1}, "recommender": {"family": "cross-encoder"}, "training": {"epochs": 3}}
)


@pytest.fixture
def submitted(monkeypatch):
    """Specs that would be run; run "first" is finished."""
    found: list[RunSpec] = []
    monkeypatch.setattr(runs, "RunStore", lambda place: SimpleNamespace(get={"first": SimpleNamespace(spec=FIRST)}.get))
    monkeypatch.setattr(commands, "_run", lambda place, spec, **_: found.append(spec))
    return found


def test_it_takes_over_the_spec_on_the_newest_version_of_the_data(llmrec, submitted):
    assert llmrec("train", "--continue", "first").exit_code == 0
    assert llmrec("train", "--continue", "first", "--dataset", "more", "--set", "continual.replay=0.5").exit_code == 0
    assert llmrec("train", "--continue-from", "first").exit_code == 0
    newest, other, second = submitted
    assert (newest.continue_from, newest.training.epochs) == ("first", 3.0)
    assert (newest.dataset.name, newest.dataset.version) == ("mini", None)
    assert newest.continual is not None
    assert newest.continual.replay == 0.3
    assert (other.dataset.name, other.continual.replay if other.continual else None) == ("more", 0.5)
    assert (second.dataset.version, second.continual) == (1, None)


def test_one_way_to_begin_is_enough(llmrec, submitted):
    answer = llmrec("train", "--continue", "first", "--continue-from", "first")
    assert answer.exit_code == 2
    assert "--continue" in answer.stderr
    assert not submitted


def test_tricks_are_set_on_the_command_line(llmrec, submitted):
    sets = ("training.adversarial_epsilon=1", "training.paraphrases=[text, yes-no]", "training.crop_history=0.2")
    assert llmrec("train", "--continue", "first", *(word for s in sets for word in ("--set", s))).exit_code == 0
    training = submitted[0].training
    assert (training.adversarial_epsilon, training.crop_history) == (1.0, 0.2)
    assert training.paraphrases == ("text", "yes-no")


def test_old_and_new_are_printed_side_by_side(capsys):
    value = {"mean": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 9, "n_excluded": 0}
    apart = {"mean": -0.1, "ci_low": -0.2, "ci_high": -0.05, "n": 9}
    metrics = {"auc": {"before": value, "after": {**value, "mean": 0.6}, "difference": apart}}
    part = {"title": "What the first run was asked", "n_users": 9, "metrics": metrics}
    commands._print_continual({"parts": {"old": part, "new": None}, "sentence": "Some of it is forgotten."})
    shown = capsys.readouterr().out
    assert "0.7000" in shown
    assert "-0.1000" in shown
    assert "Some of it is forgotten." in shown
