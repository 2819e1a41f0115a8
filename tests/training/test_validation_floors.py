"""The floors' line in the live plot: the same rows, the same metric, from a fitted baseline."""

import numpy as np
import pytest
from conformance.families import tiny_split
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.baselines import PopularityRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.evaluation.metrics import auc
from llmrec_core.specs import RunSpec
from llmrec_core.training.packing import Ragged, TokenisedPrompts
from llmrec_core.training.samples import SampleLists, validation_lists
from llmrec_core.training.validation import Validation


def _validation(metric: str, lists: SampleLists, task: str, scale: tuple[float, float]) -> Validation:
    empty = TokenisedPrompts(Ragged.of([]), Ragged.of([]), np.empty(0, np.int64), np.empty(0, np.int64))
    return Validation(metric, lists, empty, {task: 1.0}, rating_scale=scale)


@pytest.fixture(scope="module")
def split():
    return tiny_split()


@pytest.fixture(scope="module")
def popularity(split):
    floor = PopularityRecommender()
    floor.fit(split, FitContext())
    return floor


def _lists(split, task: str) -> SampleLists:
    raw = {"dataset": {"name": "tiny"}, "objectives": [{"task": task}]}
    return validation_lists(split, RunSpec.model_validate(raw), 0)


def test_auc_of_popularity_is_the_auc_of_counts(split, popularity):
    lists = _lists(split, "click")
    found = _validation("auc", lists, "click", (1.0, 5.0)).measure_floor(popularity)
    labels = lists.labels["click"]
    known = ~np.isnan(labels)
    counts = split.train_item_counts[lists.items]
    assert found["auc"] == pytest.approx(auc(labels[known] > 0, counts[known].astype(float)))


def test_rmse_of_popularity_is_in_the_units_of_the_ratings(split, popularity):
    lists = _lists(split, "rating")
    found = _validation("rmse", lists, "rating", split.dataset.rating_scale).measure_floor(popularity)
    table = split.dataset.interactions.iloc[split.valid]
    errors = []
    for user, item, rating in zip(table["user_id"], table["item_idx"], table["rating"], strict=True):
        predicted = popularity.predict_ratings([split.query(user, "valid")], np.array([item]))
        errors.append(float(predicted[0, 0]) - rating)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_a_fit_reports_its_floors(tmp_path):
    split, events = planted_split(), Events()
    floor = PopularityRecommender()
    floor.fit(split, FitContext())
    run = planted_run(tmp_path, max_samples=32)
    fit(run, split, tmp_path, events=events, floors={"popularity": floor})
    (event,) = events.of("baseline")
    assert event["name"] == "popularity"
    assert 0 <= event["metrics"]["auc"] <= 1
