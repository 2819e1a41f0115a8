"""Policies through the command line: in a training, on a finished run, and on one user's list."""

import pandas as pd
import pytest

from llmrec_core.runs import RunStore
from llmrec_core.specs import DiversitySpec, ExposureSpec
from llmrec_core.workspace import Workspace


@pytest.fixture(scope="module")
def with_policies(llmrec):
    """The result of a run of item-kNN on "mini" whose lists are made more novel and lose one item."""
    spec = llmrec.workspace / "policies.yaml"
    spec.write_text(
        "dataset: {name: mini}\nrecommender: {family: item-knn, window: 3}\nbaselines: [{family: popularity}]\n"
        "evaluation: {ks: [1, 3], primary_metric: ndcg@3, n_bootstrap: 100}\n"
    )
    lines = ("--policy=novelty:raise_by=0.1", "--policy=blocklist:items=[003, 005],reason=sold out")
    answer = llmrec("train", spec, "--set", "seed=3", *lines, "--json")
    assert answer.exit_code == 0, answer.stderr
    return answer.json


def test_a_spec_file_with_another_family(llmrec, with_policies):
    assert {"hit_rate@1", "auc"} <= set(with_policies["metrics"])
    kept = RunStore(Workspace.open(llmrec.workspace)).get(with_policies["run_id"]).spec
    assert kept.recommender.family == "item-knn"
    assert kept.recommender.window == kept.seed == 3


def test_a_run_states_what_its_policies_cost(llmrec, with_policies):
    found = with_policies["policies"]
    assert [s["policy"] for s in found["settings"]] == ["blocklist", "novelty"]
    strength = found["settings"][1]["strength"]
    assert strength > 0
    assert found["settings"][1]["raise_by"] == 0.1
    assert any(f"strength {strength:.4g}" in note for note in found["notes"])
    first, second = found["steps"]
    for metric, value in found["difference"].items():
        assert value["mean"] == pytest.approx(first["cost"][metric]["mean"] + second["cost"][metric]["mean"], abs=1e-9)
        assert value["ci_low"] <= value["ci_high"]
        own = with_policies["metrics"][metric]["mean"]
        assert found["metrics"][metric]["mean"] - own == pytest.approx(value["mean"], abs=1e-9)
    assert {"ndcg@3", "novelty@3", "diversity@3", "miscalibration@3", "gini@3"} <= set(found["difference"])
    assert "NDCG@3" in found["sentence"]
    artifacts = llmrec.workspace / "runs" / with_policies["run_id"] / "artifacts"
    lists = pd.read_parquet(artifacts / "rankings.parquet")
    blocked = lists["item_id"].isin(["003", "005"])
    assert found["removed"] == {"sold out": int((blocked & (lists["model"] == "model")).sum())}
    assert not (blocked & (lists["model"] == "with policies")).any()
    values = pd.read_parquet(artifacts / "per_user.parquet").query("metric == 'novelty@3' and model == 'with policies'")
    assert values["value"].mean() == pytest.approx(found["metrics"]["novelty@3"]["mean"])


def test_the_list_of_a_user_follows_the_run_and_the_command(llmrec, with_policies):
    run = with_policies["run_id"]
    own = llmrec("recommend", run, "--user", "u03", "-k", 5, "--json").json
    # The strength is the one that the run found, not looked for again.
    assert own["policies"]["settings"] == with_policies["policies"]["settings"]
    assert not {"003", "005"} & {item["item_id"] for item in own["items"]}
    plain = llmrec("recommend", run, "--user", "u03", "-k", 5, "--no-policies", "--json").json
    assert "policies" not in plain
    assert [i["item_id"] for i in own["without"]] == [i["item_id"] for i in plain["items"]]
    assert {i["item_id"]: i["score"] for i in own["without"]}.items() >= {
        i["item_id"]: i["score"] for i in own["items"] if i["rank_without"] <= 5
    }.items()
    gone = plain["items"][0]
    line = f"blocklist:items=[{gone['item_id']}],reason=seen at a friend's"
    answer = llmrec("recommend", run, "--user", "u03", "-k", 5, "--policy", line, "--json").json
    (removed,) = answer["removed"]
    assert removed["item_id"] == gone["item_id"]
    assert removed["reason"]["code"] == "seen at a friend's"
    assert [i["rank_without"] for i in answer["items"]] == [2, 3, 4, 5, 6]
    assert answer["items"][-1]["reason"]["policy"] == "blocklist"
    told = llmrec("recommend", run, "--user", "u03", "-k", 5, "--policy", line).stdout
    assert "blocked (seen at a friend's)" in told


def test_policies_are_tried_on_a_finished_run(llmrec, with_policies, monkeypatch):
    asked = []
    monkeypatch.setattr("llmrec_core.cli.runs._run", lambda place, spec, **options: asked.append(spec))
    run = with_policies["run_id"]
    answer = llmrec("evaluate", run, "--policy=diversity:strength=0.8", "--policy=exposure:max_share=0.3")
    assert answer.exit_code == 0, answer.stderr
    assert llmrec("evaluate", run).exit_code == 0
    tried, again = asked
    assert (tried.kind, tried.parent_run) == ("evaluate", run)
    assert tried.policies == (DiversitySpec(strength=0.8), ExposureSpec(max_share=0.3))
    assert [p.policy for p in again.policies] == ["novelty", "blocklist"], "without --policy the run keeps its own"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("magic", "no policy 'magic'"),
        ("novelty", "strength"),
        ("novelty:strength=-1", "strength"),
        ("diversity:strength", "not field=value"),
        ("blocklist:rules=[Horror]", "not field=value"),
        ("calibration:power=1", "power: unknown field"),
    ],
)
def test_wrong_policies_are_refused_before_anything_is_done(llmrec, line, words):
    answer = llmrec("train", "--preset", "quick", "--dataset", "mini", "--policy", line)
    assert answer.exit_code == 2
    assert words in answer.stderr
    answer = llmrec("recommend", "any", "--user", "u03", "--no-policies", "--policy", line)
    assert answer.exit_code == 2
