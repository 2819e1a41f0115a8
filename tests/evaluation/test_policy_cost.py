"""The price of policies: the same users with and without, step by step, and the target that validation users set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.data import Dataset, make_split
from llmrec_core.evaluation import evaluate
from llmrec_core.policies import build_chain
from llmrec_core.specs import EvaluationSpec, ItemKNNSpec, SplitSpec, parse_policies

SPEC = EvaluationSpec(ks=(2, 4), primary_metric="ndcg@4", n_bootstrap=200, click_negatives=0, max_users=None)


@pytest.fixture(scope="module")
def split():
    """60 users over 30 items of three categories, low numbers far more popular."""
    rng = np.random.default_rng(3)
    weights = 1.0 / np.arange(1, 31)
    rows = [
        (f"u{user:02d}", f"i{item:02d}", float(step))
        for user in range(60)
        for step, item in enumerate(rng.choice(30, 9, replace=False, p=weights / weights.sum()))
    ]
    categories = [("A", "B", "C; A")[number % 3] for number in range(30)]
    items = pd.DataFrame({"item_id": [f"i{number:02d}" for number in range(30)], "category": categories})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return make_split(Dataset.from_frames("skewed", frame, items), SplitSpec())


@pytest.fixture(scope="module")
def knn(split):
    recommender = ItemKNNRecommender(ItemKNNSpec(direction="both"))
    recommender.fit(split, FitContext())
    return recommender


def measured(split, knn, *lines, depth=20):
    chain = build_chain(parse_policies(lines), depth, knn, split, 4)
    return chain, evaluate({"model": knn, "floor": knn}, split, SPEC, policies=chain)


def test_strength_zero_costs_nothing(split, knn):
    _, result = measured(split, knn, "novelty:strength=0", "diversity:strength=0", "calibration:strength=0")
    found = result.as_json()["policies"]
    assert len(found["steps"]) == 3
    for step in (found["difference"], *(s["cost"] for s in found["steps"])):
        assert {(v["mean"], v["ci_low"], v["ci_high"]) for v in step.values()} == {(0.0, 0.0, 0.0)}
    assert found["removed"] == {}
    assert found["n_short"] == 0


def test_each_policy_has_its_own_price_and_moves_what_it_is_for(split, knn):
    lines = ("diversity:strength=0.8", "calibration:strength=0.9", "novelty:strength=1", "exposure:max_share=0.2")
    _, result = measured(split, knn, *lines)
    report = result.policies
    assert report is not None
    steps = dict(zip(("diversity", "calibration", "novelty", "exposure"), report.steps, strict=True))
    assert [s.policy["policy"] for s in report.steps] == list(steps)
    assert steps["diversity"].cost["diversity@4"].ci_low > 0
    assert steps["calibration"].cost["miscalibration@4"].mean < 0
    assert steps["novelty"].cost["novelty@4"].ci_low > 0
    assert steps["exposure"].cost["gini@4"].ci_high < 0
    for metric, total in report.total.items():
        assert total.mean == pytest.approx(sum(step.cost[metric].mean for step in report.steps))
        assert total.mean == pytest.approx(report.steps[-1].metrics[metric].mean - report.without[metric].mean)
    # The floor, and the model's own numbers, are what they are without policies.
    plain = evaluate({"model": knn, "floor": knn}, split, SPEC)
    assert {n: v.as_json() for n, v in plain.models["model"].metrics.items()} == {
        n: v.as_json() for n, v in result.models["model"].metrics.items()
    }
    assert set(result.as_json()["baselines"]) == {"floor"}
    assert set(result.per_user["model"]) == {"model", "floor", "with policies"}
    assert "policies" not in plain.as_json()
    assert "NDCG@4 is" in report.sentence


def test_blocked_and_missing_places_are_counted(split, knn):
    first = sorted(evaluate({"model": knn}, split, SPEC).rankings.query("rank == 1")["item_id"])[0]
    chain, result = measured(split, knn, f"blocklist:items=[{first}],reason=taken down", "category-cap:max_items=1")
    shown = result.models["model"].rankings
    assert result.policies is not None
    assert result.policies.removed == {"taken down": int((shown["item_id"] == first).sum())}
    # Three categories at one each, and items of two: no list of four is full.
    assert result.policies.n_short == result.n_users
    assert first not in set(result.with_policies.rankings["item_id"])
    assert chain.blocked


def test_the_target_is_reached_on_validation_users_by_the_smallest_strength(split, knn):
    chain = build_chain(parse_policies(["novelty:raise_by=0.15"]), 20, knn, split, 4)
    users = split.queries("valid", 1000, 0)
    found = chain.candidates(knn, users.queries, 4, users.exclude)
    surprise = chain.features.surprise

    def raised(strength):
        applied = chain.with_novelty(strength).apply(found, 4)
        return surprise[applied.final.items].mean() / surprise[applied.without.items].mean() - 1

    (policy,) = chain.policies
    assert raised(policy.strength) >= 0.15
    assert raised(policy.strength * 0.99) < 0.15
    assert "validation users" in chain.notes[0]


def test_a_target_beyond_reach_is_said(split, knn):
    chain = build_chain(parse_policies(["novelty:raise_by=9"]), 20, knn, split, 4)
    assert chain.policies[0].strength == 100
    assert "only" in chain.notes[0]


def test_targets_look_at_no_held_out_item(split, knn, monkeypatch):
    """The strength is the same whatever the held-out items are."""
    policies = parse_policies(["novelty:raise_by=0.1"])
    honest = build_chain(policies, 20, knn, split, 4).policies[0].strength
    asked = split.queries
    monkeypatch.setattr(
        type(split), "queries", lambda self, part, *a: _without_targets(asked(part, *a)) if part == "valid" else 1 / 0
    )
    assert build_chain(policies, 20, knn, split, 4).policies[0].strength == honest


def _without_targets(users):
    return type(users)(users.users, users.queries, [t[:0] for t in users.targets], users.exclude, users.n_repeats)


def test_no_deeper_than_a_pipeline_compares(split, knn):
    class Shallow(ItemKNNRecommender):
        @property
        def spec(self):
            return type("Spec", (), {"n_candidates": 6})

        @spec.setter
        def spec(self, value):
            pass

    shallow = Shallow.__new__(Shallow)
    chain = build_chain(parse_policies(["diversity"]), 20, shallow, split, 4)
    assert chain.depth == 6
    assert "6 items" in chain.notes[0]
