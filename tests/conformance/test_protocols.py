"""Every split protocol from fit to figures: baselines and a tiny text model learn, rank and are measured under each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conformance.families import FAMILIES, tiny_interactions, tiny_items

from llmrec_core.contracts import FitContext
from llmrec_core.data import PROTOCOLS, Dataset, Split, make_split
from llmrec_core.evaluation import evaluate
from llmrec_core.recommenders.leakage import leakage_report
from llmrec_core.specs import EvaluationSpec, SplitSpec

SPEC = EvaluationSpec(ks=(5,), primary_metric="ndcg@5", max_users=None, n_bootstrap=100, click_negatives=2)
#: Protocol and fields; the shares are large enough for nine users and twelve items.
CASES: dict[str, dict[str, object]] = {
    **{name: {} for name in PROTOCOLS},
    "rolling-temporal": {"n_folds": 3, "fold": 2, "train_window": "sliding"},
    "random-users": {"fold_in": 0.4},
    "cold-user": {"known_interactions": 3},
    "cold-user from nothing": {"known_interactions": 0},
    "cold-item among the withheld": {"rank_among": "withheld"},
    "records": {"test_fraction": 0.4},
    "group-stratified": {"group_by": "item:category", "n_folds": 4},
}


def tiny(protocol: str) -> Split:
    table = tiny_interactions()
    # Users start at different times, so that a cut in time leaves some without held-out rows.
    table["timestamp"] += table["user_id"].str[1:].astype(int) * 7
    if protocol == "given":
        table["part"] = np.tile(["train", "train", "train", "train", "valid", "test", "test"], 9)
    fields = {"valid_fraction": 0.2, "test_fraction": 0.2, **CASES[protocol], "protocol": protocol.split(" ")[0]}
    return make_split(Dataset.from_frames("tiny", table, tiny_items()), SplitSpec.model_validate(fields))


@pytest.mark.parametrize("protocol", list(CASES))
def test_fit_and_evaluate_under_every_protocol(protocol, tmp_path):
    split = tiny(protocol)
    assert leakage_report(split).ok
    ctx = FitContext(workspace_models=tmp_path, device="cpu")
    models = {family: FAMILIES[family](split, ctx) for family in ("popularity", "item-knn", "cross-encoder")}
    result = evaluate(models, split, SPEC, model_name="cross-encoder")
    assert result.protocol.startswith(split.describe())
    held = split.queries("test")
    assert len(held)
    offered = set(split.dataset.item_ids[split.offered("test")])
    for name, report in result.models.items():
        assert {"ndcg@5", "hit_rate@5", "coverage@5", "auc"} <= set(report.metrics), name
        assert report.metrics["ndcg@5"].n == len(held)
        assert set(report.rankings["item_id"]) <= offered
        assert 0 < report.metrics["coverage@5"].mean <= 1
    assert "rmse" in result.models["popularity"].metrics
    if split.spec.protocol == "cold-item":
        cold = split.dataset.item_ids[np.concatenate([split.withheld["valid"], split.withheld["test"]])]
        popular = models["popularity"].score(held.queries, np.array([split.dataset.item_idx(i) for i in cold]))
        assert (popular == 0).all()
    if split.spec.protocol == "cold-user":
        assert {len(query.history) for query in held.queries} == {split.spec.known_interactions}
    if split.spec.protocol == "records":
        assert {len(query.history) for query in held.queries} == {len(split.dataset.interactions) // 9 - 1}


def test_the_pipeline_draws_no_withheld_item_as_a_hard_negative(tmp_path, monkeypatch):
    from llmrec_core.training import samples

    split = tiny("cold-item")
    cold = set(np.concatenate([split.withheld["valid"], split.withheld["test"]]).tolist())
    drawn: list[np.ndarray] = []
    honest = samples._lists

    def watched(*args):
        lists = honest(*args)
        if args[1] == "train":
            drawn.append(lists.items)
        return lists

    monkeypatch.setattr(samples, "_lists", watched)
    FAMILIES["pipeline"](split, FitContext(workspace_models=tmp_path, device="cpu"))
    assert drawn
    assert not set(np.concatenate(drawn).tolist()) & cold


def test_validation_prompts_of_cold_users_hold_what_is_known_and_no_more():
    from llmrec_core.specs import DatasetRef, RunSpec
    from llmrec_core.training.samples import validation_lists

    split = tiny("cold-user")
    lists = validation_lists(split, RunSpec(dataset=DatasetRef(name="tiny")), 0)
    assert {len(query.history) for query in lists.queries} == {3}
    for at, item in zip(lists.list_of.tolist(), lists.items.tolist(), strict=True):
        known = {entry.item_id for entry in lists.queries[at].history}
        assert split.dataset.item_ids[item] not in known
    assert isinstance(split.dataset.interactions, pd.DataFrame)
