"""Behaviour beside the text: what the features are, that a row is never in its own, and what the join says."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import ModelError
from llmrec_core.evaluation.metrics import auc
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.specs import BehaviourSpec, RunSpec, SplitSpec
from llmrec_core.training.behaviour import Behaviour
from llmrec_core.training.features import FEATURES, BehaviourFeatures
from llmrec_core.training.samples import training_lists, validation_lists

_AT = {name: column for column, name in enumerate(FEATURES)}


def _tastes(seed: int = 0, n_users: int = 60, *, shuffled: bool = False) -> Split:
    """Every user loves either the even or the odd items; ``shuffled``: the same ratings dealt out at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        for step, item in enumerate(rng.permutation(24)[:12]):
            rows.append((f"u{user}", f"i{item:02d}", 5.0 if item % 2 == user % 2 else 1.0, 86_400.0 * step))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    if shuffled:
        frame["rating"] = rng.permutation(frame["rating"].to_numpy())
    return make_split(Dataset.from_frames("tastes", frame), SplitSpec())


def _with_ratings(split: Split, ratings: dict[int, float]) -> Split:
    """The same split with other ratings in some rows."""
    frame = split.dataset.interactions[["user_id", "item_id", "rating", "timestamp"]].copy()
    frame["user_id"], frame["item_id"] = frame["user_id"].astype(str), frame["item_id"].astype(str)
    for row, rating in ratings.items():
        frame.loc[row, "rating"] = rating
    return make_split(Dataset.from_frames("tastes", frame), SplitSpec())


def _of_training(split: Split, rows: np.ndarray) -> np.ndarray:
    """Features of training rows."""
    features = BehaviourFeatures.learn(split, BehaviourSpec(), 3.0, FitContext())
    table = split.dataset.interactions
    users, items = (table[name].to_numpy(np.int64)[rows] for name in ("user_idx", "item_idx"))
    queries = [Query(str(split.dataset.user_ids[u]), split.history_before(r)) for u, r in zip(users, rows, strict=True)]
    return features.of_training(queries, users, np.arange(len(rows)), items)


def test_a_row_and_what_its_user_did_later_are_not_in_its_own_features() -> None:
    split = _tastes()
    user = split.dataset.user_index["u7"]
    own = split.train[split.dataset.interactions["user_idx"].to_numpy()[split.train] == user]
    before = _of_training(split, own)
    turned = {int(row): 6.0 - float(split.dataset.interactions["rating"].iloc[row]) for row in own[4:]}
    after = _of_training(_with_ratings(split, turned), own)
    np.testing.assert_array_equal(before[:5], after[:5])
    # The history of later rows did change: the features are no constants.
    assert np.abs(before[6:] - after[6:]).max() > 0.1


def test_held_out_ratings_are_in_nothing() -> None:
    split = _tastes()
    held = np.concatenate([split.valid, split.test])
    turned = {int(row): 6.0 - float(split.dataset.interactions["rating"].iloc[row]) for row in held}
    one, other = (
        BehaviourFeatures.learn(s, BehaviourSpec(), 3.0, FitContext()).arrays()
        for s in (split, _with_ratings(split, turned))
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_features_by_hand() -> None:
    day = 86_400.0
    rows = [
        ("a", "x", 5, 0), ("a", "y", 1, 1), ("b", "x", 5, 2), ("b", "z", 3, 3), ("c", "x", 4, 4), ("c", "y", 2, 5),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    frame["timestamp"] *= day
    # Two more rows of each user are held out.
    held = [(user, item, 1, (20 + step) * day) for user in "abc" for step, item in enumerate(("v", "w"))]
    frame = pd.concat([frame, pd.DataFrame(held, columns=frame.columns)], ignore_index=True)
    split = make_split(Dataset.from_frames("hand", frame), SplitSpec())
    features = BehaviourFeatures.learn(split, BehaviourSpec(n_folds=2), 3.0, FitContext())
    history = (
        HistoryItem("x", 5.0, 1.0 * day),
        HistoryItem("nowhere", 1.0, 3.0 * day),
        HistoryItem("y", 2.0, 4.5 * day),
    )
    found = features.of([Query("new", history)], np.zeros(3, np.int64), np.arange(2, 5))
    value = {name: found[:, column] for name, column in _AT.items()}
    np.testing.assert_allclose(value["history_length"], np.log(3))  # the unknown item is passed over
    # 3 of 6 training rows are liked; the history has 1 of 2: (1 + .5 * .5) / 2.5.
    np.testing.assert_allclose(value["like_rate"], 0.5)
    np.testing.assert_allclose(value["mean_rating"], (3.5 - 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(value["rating_spread"], 1.5)
    np.testing.assert_allclose(value["popularity"], np.log1p([3, 2, 1]), rtol=1e-6)
    # Before day 4.5: x on days 0, 2 and 4, y on day 1, z on day 3.
    np.testing.assert_allclose(value["recent_popularity"], np.log1p([3, 1, 1]), rtol=1e-6)
    np.testing.assert_allclose(value["item_age"], np.log1p([4.5, 3.5, 1.5]), rtol=1e-6)
    np.testing.assert_array_equal(value["repeat"], [1, 1, 0])
    share = (np.array([3.0, 0.0, 0.0]) + 5 * 0.5) / (np.array([3, 2, 1]) + 5)
    np.testing.assert_allclose(value["item_like_rate"], np.log(share / (1 - share)), rtol=1e-6)
    assert value["item_mean"][0] > 0 > value["item_mean"][1]


def test_neighbours_say_what_the_taste_is() -> None:
    split = _tastes()
    features = BehaviourFeatures.learn(split, BehaviourSpec(shrink=1.0), 3.0, FitContext())
    even = Query("new", tuple(HistoryItem(f"i{item:02d}", 5.0 if item % 2 == 0 else 1.0) for item in range(8)))
    found = features.of([even], np.zeros(16, np.int64), np.arange(8, 24))
    for name in ("neighbour_rating", "like_agreement"):
        values = found[:, _AT[name]]
        assert values[::2].min() > values[1::2].max(), name


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_a_planted_taste_is_learned_and_a_shuffled_one_is_not(model: str) -> None:
    def test_auc(shuffled: bool) -> float:
        split = _tastes(shuffled=shuffled)
        run = RunSpec.model_validate({"dataset": {"name": "t"}, "training": {"negatives_per_positive": 0}})
        spec = BehaviourSpec(model=model, shrink=1.0)  # type: ignore[arg-type]
        behaviour = Behaviour.fit(split, run, spec, validation_lists(split, run, 0), None, FitContext())
        rows = split.labelled("test")
        queries = [split.query(str(split.dataset.user_ids[user]), "test") for user in rows.user_idx]
        scores = behaviour.scores(queries, np.arange(len(queries)), rows.item_idx, "click")
        return auc(rows.rating > 3, scores)

    assert test_auc(shuffled=False) > 0.95
    assert test_auc(shuffled=True) < 0.75


def test_data_without_ratings_or_times_has_features_as_well() -> None:
    frame = pd.DataFrame(
        [(f"u{u}", f"i{(u * 3 + step) % 7}") for u in range(12) for step in range(5)], columns=["user_id", "item_id"]
    )
    split = make_split(Dataset.from_frames("plain", frame), SplitSpec())
    features = BehaviourFeatures.learn(split, BehaviourSpec(), None, FitContext())
    run = RunSpec.model_validate({"dataset": {"name": "t"}})
    lists = training_lists(split, run, 0)
    found = features.of_training(lists.queries, lists.users, lists.list_of, lists.items)
    assert np.isfinite(found).all()
    assert (found[:, _AT["neighbour_rating"]] == 0).all()
    assert np.ptp(found[:, _AT["co_visit"]]) > 0
    assert np.isfinite(features.of([Query("nobody")], np.zeros(7, np.int64), np.arange(7))).all()


def _joined(models: Path, split: Split, events: Events | None = None, **training: object) -> CrossEncoderRecommender:
    raw = planted_run(models, max_samples=96, **training).model_dump(mode="json")
    raw["recommender"]["behaviour"] = {"max_history": 5}
    return fit(RunSpec.model_validate(raw), split, models, events=events)


def test_the_joined_score_is_the_sum_of_its_parts_and_survives_the_disk(tmp_path: Path) -> None:
    split, events = planted_split(n_users=12), Events()
    both = [{"task": "click"}, {"task": "rating"}]
    joined = _joined(tmp_path, split, events, objectives=both)
    assert joined.behaviour is not None
    joined.behaviour.text_weight = {"click": 0.75, "rating": 0.5}
    queries = [split.query("u3"), Query("nobody"), split.query("u5")]
    items = np.array([[4, 0, -1], [2, 1, 3], [19, 4, 4]])
    scores = joined.score(queries, items)
    for row, query in enumerate(queries):
        for column, item in enumerate(items[row].tolist()):
            if item >= 0:
                parts = joined.parts(query, item)
                assert parts is not None
                assert {name for name, _ in parts} >= {"text", *FEATURES.values()}
                assert sum(share for _, share in parts) == pytest.approx(scores[row, column], abs=1e-4)
    text = joined.score_prompts([joined.renderer.render(queries[0], 4)])[0]
    assert joined.parts(queries[0], 4)[0] == ("text", pytest.approx(0.75 * text))  # type: ignore[index]
    assert "behaviour alone" in events.messages
    assert events.of("baseline")[-1]["name"] == "behaviour alone"
    folder = tmp_path / "saved"
    folder.mkdir()
    joined.save(folder)
    context = FitContext(workspace_models=tmp_path, device="cpu")
    loaded = registry.load(folder, split.dataset, context)
    for task in ("click", "rating"):
        np.testing.assert_array_equal(loaded.score(queries, items, task=task), joined.score(queries, items, task=task))
    # What somebody wrote by hand is refused, also under a hash that fits.
    place = folder / "behaviour" / "co_visits" / "counts.npy"
    place.unlink()
    head = json.loads((folder / "recommender.json").read_text())
    del head["files"]["behaviour/co_visits/counts.npy"]
    (folder / "recommender.json").write_text(json.dumps(head))
    with pytest.raises(ModelError):
        registry.load(folder, split.dataset, context)


def test_text_that_says_nothing_gets_no_weight_and_text_that_knows_gets_one() -> None:
    split = _tastes()
    run = RunSpec.model_validate({"dataset": {"name": "t"}, "training": {"negatives_per_positive": 0}})
    held_out = validation_lists(split, run, 0)
    behaviour = Behaviour.fit(split, run, BehaviourSpec(), held_out, None, FitContext())
    outputs = behaviour.of_lists(held_out)
    truth = np.where(held_out.labels["click"] > 0.5, 2.0, -2.0).astype(np.float32)
    behaviour.choose_text_weight(held_out, {"click": truth}, {"click": 0 * truth}, FitContext())
    assert behaviour.text_weight["click"] == 1.25
    behaviour.choose_text_weight(held_out, {"click": -truth}, outputs, FitContext())
    assert behaviour.text_weight["click"] == 0.0
    np.testing.assert_array_equal(behaviour.join(-truth, outputs["click"], "click"), outputs["click"])
