"""Policies on the screens: a list with and without them, reasons, the table of costs, and measuring them on a run."""

from __future__ import annotations

import pandas as pd
from page_helpers import texts
from streamlit.testing.v1 import AppTest

from llmrec_core.runs import RunStore
from llmrec_core.workspace import Workspace


def item(rank, name, without, reason=None):
    facts = {"score": 1.0 / rank, "popularity": rank, "cold": False, "hit": False}
    return {
        "rank": rank,
        "item_id": name,
        "title": f"Film <b>{name}</b>",
        **facts,
        "rank_without": without,
        "reason": reason,
    }


def test_a_list_with_and_without_policies(monkeypatch):
    def page():
        from types import SimpleNamespace

        from policies.policy_cases import catalogue

        from pages._studio.policies import side_by_side_part

        side_by_side_part(SimpleNamespace(run_id="r", spec=SimpleNamespace(policies=())), "u", catalogue(), 3, None)

    out = {"policy": "blocklist", "code": "not today", "text": "blocked (not today): category=Drama"}
    came = {"policy": "novelty", "code": "novelty", "text": "known to 3 of 16 people"}
    answer = {
        "without": [item(1, "a", 1, out), item(2, "b", 2)],
        "items": [item(1, "b", 2), item(2, "c", 9, came)],
        "removed": [item(1, "a", 1, out)],
        "policies": {"settings": [], "depth": 100, "notes": ["a note"]},
    }
    asked = []
    monkeypatch.setattr("pages._studio.policies.ask", lambda action, **args: asked.append(args) or answer)
    app = AppTest.from_function(page, default_timeout=60)
    app.run()
    assert not app.exception
    assert asked == [], "nothing is set, nothing is asked"
    assert "With policies" not in texts(app)
    app.slider(key="policies_r-novelty").set_value(0.5)
    app.multiselect(key="policies_r-rules").select("category=Drama")
    app.text_input(key="policies_r-reason").set_value("not today").run()
    assert not app.exception
    assert asked[0]["policies"] == [
        {"policy": "novelty", "strength": 0.5, "raise_by": None, "validation_users": 1000},
        {"policy": "blocklist", "items": [], "rules": ["category=Drama"], "reason": "not today"},
    ]
    shown = texts(app)
    assert "1 out, 1 in, chosen from the best 100 items" in shown
    assert "Blocklist: blocked" in shown
    assert "Novelty: known to 3 of 16 people" in shown
    assert "place 9 without" in shown
    assert "shorter" in shown
    assert "<b>" not in shown.replace("\\<b\\>", "")


def test_policies_are_measured_on_a_finished_run(studio, finished_workspace):
    root, run_id = finished_workspace
    app = studio("metrics", run=run_id)
    assert "ranks without policies" in texts(app)
    assert app.button(key="policies_measure").disabled
    app.slider(key=f"cost_{run_id}-diversity").set_value(0.5).run()
    app.toggle(key=f"cost_{run_id}-target").set_value(True).run()
    app.slider(key=f"cost_{run_id}-exposure").set_value(20).run()
    app.button(key="policies_measure").click().run()
    assert not app.exception
    store = RunStore(Workspace.open(root))
    (asked,) = [run for run in store.list() if run.spec.kind == "evaluate" and run.spec.policies]
    try:
        assert asked.spec.parent_run == run_id
        assert [(p.policy, getattr(p, "raise_by", None)) for p in asked.spec.policies] == [
            ("novelty", 0.15),
            ("diversity", None),
            ("exposure", None),
        ]
        assert asked.spec.policies[2].max_share == 0.2
    finally:
        store.cancel(asked.run_id)


def value(mean):
    return {"mean": mean, "ci_low": mean - 0.01, "ci_high": mean + 0.01, "n": 20, "n_excluded": 0}


def difference(mean):
    return {"mean": mean, "ci_low": mean - 0.005, "ci_high": mean + 0.005, "n": 20}


RESULT = {
    "metrics": {"ndcg@10": value(0.2), "novelty@10": value(2.0), "diversity@10": {**value(0.5), "mean": None}},
    "policies": {
        "k": 10,
        "sentence": "With the policies NDCG@10 is .19 *instead* of .2.",
        "notes": ["novelty: strength 0.4"],
        "metrics": {"ndcg@10": value(0.19), "novelty@10": value(2.4)},
        "steps": [
            {
                "policy": {"policy": "novelty", "strength": 0.4321, "raise_by": None},
                "metrics": {"ndcg@10": value(0.19), "novelty@10": value(2.4)},
                "cost": {"ndcg@10": difference(-0.01), "novelty@10": difference(0.4)},
            }
        ],
    },
}


def test_the_table_of_costs():
    from pages._studio.policies import cost_table

    table = cost_table(RESULT, RESULT["policies"])
    assert table.columns.tolist() == ["policy", "setting", "NDCG@10", "novelty@10"]
    assert table["NDCG@10"].tolist() == ["0.2000", "0.1900 (-0.0100; -0.0150 to -0.0050)"]
    assert table["setting"].tolist() == ["", "strength 0.4321"]


def test_costs_are_shown_with_their_trade_off():
    def page(result):
        from pages._studio.policies import _cost

        _cost(result, result["policies"])

    app = AppTest.from_function(page, kwargs={"result": RESULT}, default_timeout=60)
    app.run()
    assert not app.exception
    assert "\\*instead\\*" in app.markdown[0].value
    assert isinstance(app.dataframe[0].value, pd.DataFrame)
    assert app.selectbox(key="policy_tradeoff_x").value == "novelty@10"
    assert len(app.get("plotly_chart")) == 1
