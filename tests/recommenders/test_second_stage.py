"""A second stage: a training that starts from the weights of a finished run."""

from pathlib import Path

import numpy as np
import pytest
from training.training_cases import Events, planted_run, planted_split

from llmrec_core.contracts import FitContext, Query
from llmrec_core.errors import ModelError, SpecError
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.specs import RunSpec, parse_run_spec


def _fitted(run: RunSpec, models: Path, start_from: Path | None = None) -> tuple[CrossEncoderRecommender, Events]:
    events = Events()
    recommender = CrossEncoderRecommender(run, run.recommender)  # type: ignore[arg-type]
    recommender.fit(
        planted_split(n_users=10),
        FitContext(workspace_models=models, device="cpu", emit=events.emit, start_from=start_from),
    )
    return recommender, events


def _saved(recommender: CrossEncoderRecommender, folder: Path) -> Path:
    folder.mkdir(parents=True)
    recommender.save(folder)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_starts_from_the_weights_and_goes_on_with_one_objective(tmp_path: Path, method: str) -> None:
    tuning = {"method": method}
    both = [{"task": "click"}, {"task": "rating"}]
    first, _ = _fitted(planted_run(tmp_path, max_samples=64, objectives=both, tuning=tuning), tmp_path)
    folder = _saved(first, tmp_path / "first")
    # Steps too small to see: what the second stage answers is what it started from.
    still = {"max_samples": 16, "learning_rate": 1e-12, "head_learning_rate": 1e-12, "tuning": tuning}
    second, events = _fitted(planted_run(tmp_path, **still), tmp_path, folder)
    fresh, _ = _fitted(planted_run(tmp_path, **still), tmp_path)
    query, items = Query("nobody"), np.arange(6)
    np.testing.assert_allclose(second.score([query], items), first.score([query], items, task="click"), atol=1e-5)
    assert np.abs(fresh.score([query], items) - second.score([query], items)).max() > 1e-3
    assert second.capabilities.tasks == {"click"}
    assert "heads taken over: click" in events.messages


def test_another_way_of_tuning_is_refused(tmp_path: Path) -> None:
    first, _ = _fitted(planted_run(tmp_path, max_samples=16), tmp_path)
    folder = _saved(first, tmp_path / "first")
    with pytest.raises(ModelError, match="continue_from"):
        _fitted(planted_run(tmp_path, max_samples=16, tuning={"method": "lora"}), tmp_path, folder)


def test_only_what_reads_prompts_has_a_second_stage() -> None:
    raw = {"dataset": {"name": "d"}, "recommender": {"family": "ease"}, "continue_from": "20260101-000000-aaaaa"}
    with pytest.raises(SpecError, match="continue_from: a ease recommender"):
        parse_run_spec(raw)
