"""Specs: unknown keys are errors, every fault names its field, equal specs have equal hashes."""

import pytest
from pydantic import ValidationError

from llmrec_core.errors import SpecError
from llmrec_core.specs import RunSpec, check_metric, parse_run_spec

MINIMAL = {"dataset": {"name": "d"}}


def test_a_dataset_alone_is_a_whole_spec():
    spec = parse_run_spec(MINIMAL)
    assert spec.recommender.family == "pipeline"
    assert [b.family for b in spec.baselines] == ["popularity", "item-knn"]


def test_round_trip_through_json_keeps_the_hash():
    spec = parse_run_spec({**MINIMAL, "seed": 7, "objectives": [{"task": "rating", "weight": 0.5}]})
    again = parse_run_spec(spec.model_dump(mode="json"))
    assert again == spec
    assert again.spec_hash() == spec.spec_hash()
    assert spec.spec_hash() != parse_run_spec({**MINIMAL, "seed": 8}).spec_hash()


def test_specs_are_frozen():
    spec = parse_run_spec(MINIMAL)
    with pytest.raises(ValidationError):
        spec.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"seeds": 1}, "seeds: unknown field"),
        ({"training": {"epoch": 3}}, "training.epoch: unknown field"),
        ({"training": {"epochs": -1}}, "training.epochs"),
        ({"recommender": {"family": "pipeline", "ranker": {"modle": "x"}}}, "recommender.ranker.modle: unknown field"),
        ({"recommender": {"family": "magic"}}, "recommender"),
        ({"objectives": [{"task": "buy"}]}, "objectives.0.task"),
        ({"objectives": [{"task": "click"}, {"task": "click"}]}, "each task may stand there once"),
        ({"objectives": []}, "objectives"),
        ({"evaluation": {"primary_metric": "ndgc@10"}}, "unknown metric 'ndgc@10'"),
        ({"evaluation": {"primary_metric": "ndcg@20"}}, "cut-off is not in ks"),
        ({"training": {"validation_metric": "accuracy"}}, "unknown metric 'accuracy'"),
        ({"device": "gpu; rm -rf"}, "device"),
        ({"kind": "evaluate"}, "parent_run"),
        ({"dataset": {}}, "dataset.name"),
    ],
)
def test_every_fault_names_its_field(change, path):
    with pytest.raises(SpecError) as caught:
        parse_run_spec({**MINIMAL, **change})
    assert path in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_fault_of_no_single_field_stands_without_a_path():
    with pytest.raises(SpecError) as caught:
        parse_run_spec({"dataset": {"name": "d"}, "recommender": {"family": "blend"}, "continue_from": "r"})
    assert caught.value.what.startswith("continue_from: a blend recommender has no second stage")


@pytest.mark.parametrize(("name", "value"), [("crop_history", 0.2), ("paraphrases", ["text"]), ("r_drop", 1.0)])
def test_what_changes_prompts_is_refused_where_none_are_read(name, value):
    raw = {**MINIMAL, "recommender": {"family": "sequential"}, "training": {name: value}}
    with pytest.raises(SpecError, match=rf"training\.{name}: it changes training prompts, .*recommender\.reverse"):
        parse_run_spec(raw)
    with pytest.raises(SpecError, match="a ease recommender reads none; leave it out"):
        parse_run_spec({**raw, "recommender": {"family": "ease"}})
    pipeline = {"family": "pipeline", "retriever": {"family": "sequential"}}
    parse_run_spec({**raw, "recommender": pipeline, "training": {name: value, "dropout": 0.1}})


def test_all_faults_are_named_at_once():
    with pytest.raises(SpecError) as caught:
        parse_run_spec({"dataset": {"name": "d"}, "seed": -1, "nonsense": 1})
    assert "seed" in str(caught.value)
    assert "nonsense" in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_spec_must_be_a_mapping(raw):
    with pytest.raises(SpecError, match="mapping"):
        parse_run_spec(raw)


@pytest.mark.parametrize("name", ["ndcg@10", "auc", "rmse", "coverage@5"])
def test_known_metrics_pass(name):
    check_metric(name, None)


@pytest.mark.parametrize("name", ["ndcg", "auc@10", "ndcg@", "ndcg@0", "ndcg@-1", "NDCG@10", ""])
def test_other_metric_names_are_refused(name):
    with pytest.raises(ValueError, match="unknown metric"):
        check_metric(name, None)


def test_every_field_says_what_it_is_for():
    """The expert form and its help are generated from the descriptions."""
    from llmrec_core import specs

    kinds = [
        k for k in vars(specs).values() if isinstance(k, type) and issubclass(k, specs.Spec) and k is not specs.Spec
    ]
    bare = [
        f"{k.__name__}.{n}"
        for k in kinds
        for n, f in k.model_fields.items()
        if not f.description and n not in ("family", "policy")
    ]
    assert bare == []
    assert RunSpec in kinds
