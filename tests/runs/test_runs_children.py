"""What may be compressed, what is said where it may not, and what is advised where a child lost quality."""

from types import SimpleNamespace

import pytest

from llmrec_core.errors import SpecError
from llmrec_core.runs.children import advice, compression_run, methods_for, settings_in_words
from llmrec_core.specs import parse_run_spec
from llmrec_core.specs.compression import (
    COMPRESSION_WORDS,
    DistilSpec,
    DistilTwoTowerSpec,
    Int4Spec,
    Int8Spec,
    PruneLayersSpec,
)


def run(recommender, **fields):
    spec = parse_run_spec({"dataset": {"name": "d"}, "recommender": recommender, **fields})
    return SimpleNamespace(run_id="20260101-000000-aaaaa", spec=spec)


def test_each_family_is_told_what_can_be_done():
    reader = {"family": "cross-encoder"}
    assert methods_for(run(reader).spec) == list(COMPRESSION_WORDS)
    assert methods_for(run({"family": "pipeline", "ranker": reader}).spec) == list(COMPRESSION_WORDS)
    lists = run({"family": "pipeline", "ranker": {"family": "listwise"}}, objectives=[{"task": "rank"}])
    assert methods_for(lists.spec) == ["int8", "int4"]
    with pytest.raises(SpecError, match=r"this run orders lists\..*int8 or int4"):
        compression_run(lists, "onnx", {})
    for family, way in (
        ("sequential", r"smaller width.*recommender\.width=64.*model reads prompts"),
        ("two-tower", r"smaller width or n_text.*model reads prompts"),
        ("popularity", "Choose a run whose model reads prompts"),
    ):
        with pytest.raises(SpecError, match=f"a {family} model neither reads.*{way}"):
            compression_run(run({"family": family}), "int8", {})
    titles = run({"family": "pipeline", "ranker": {"family": "generative"}})
    assert methods_for(titles.spec) == methods_for(run({"family": "generative"}).spec) == ["int8", "int4"]
    with pytest.raises(SpecError, match=r"this run writes titles\..*int8 or int4"):
        compression_run(titles, "distil", {})
    again = run(reader, kind="evaluate", parent_run="20250101-000000-bbbbb")
    with pytest.raises(SpecError, match="Compress run 20250101-000000-bbbbb"):
        compression_run(again, "int8", {})


@pytest.mark.parametrize("method", ["int8", "int4", "onnx", "distil", "prune-layers"])
def test_what_is_compressed_to_its_end_names_its_parent(method):
    parent = "20250101-000000-bbbbb"
    child = run({"family": "cross-encoder"}, kind="compress", parent_run=parent, compression={"method": method})
    if method in ("distil", "prune-layers"):
        assert compression_run(child, "int8", {}).parent_run == child.run_id
        return
    with pytest.raises(SpecError, match=f"to its end already.*made from: {parent}"):
        compression_run(child, "int8", {})
    if method == "int8":
        with pytest.raises(SpecError, match="field int8 switched on for an ONNX file"):
            compression_run(child, "onnx", {})


def test_settings_are_told_where_they_are_not_the_usual_ones():
    assert settings_in_words(PruneLayersSpec()) == ""
    assert settings_in_words(PruneLayersSpec(n_layers=3, epochs=0)) == "epochs of training 0, layers taken out 3"
    assert settings_in_words(Int8Spec(embeddings=False)) == "round the word table too off"
    towers = DistilTwoTowerSpec.model_validate({"student": {"width": 64}})
    assert settings_in_words(towers) == "size of the vectors 64"


def row(metric="ndcg@10", ends=(-0.02, 0.01), agreement=0.99, alone=None):
    difference = None if ends is None else {"mean": sum(ends) / 2, "ci_low": ends[0], "ci_high": ends[1]}
    return {"metric": metric, "difference": difference, "agreement": agreement, "alone": alone}


def test_a_loss_is_told_with_what_to_do():
    lost = row(ends=(-0.03, -0.01))
    assert advice(row(), PruneLayersSpec()) is None
    assert advice(row(ends=None, agreement=None), PruneLayersSpec()) is None
    assert advice(lost, PruneLayersSpec()) == "Teach it longer (epochs=2), take out less, or choose distil."
    assert "choose distil" in advice(lost, PruneLayersSpec(epochs=0))
    assert advice(lost, DistilSpec()) == "Teach it longer (epochs=4), or keep more layers."
    assert "group_size=16" in advice(lost, Int4Spec())
    # Fewer errors are no loss.
    assert advice(row("rmse", (-0.03, -0.01)), Int4Spec()) is None
    assert advice(row("rmse", (0.01, 0.03)), Int4Spec()) is not None


def test_another_order_is_a_loss_only_where_it_is_a_worse_one():
    worse = {"metric": "auc", "parent": 0.7, "child": 0.65}
    better = {"metric": "auc", "parent": 0.7, "child": 0.72}
    smaller = {"metric": "rmse", "parent": 1.0, "child": 0.9}
    assert advice(row(agreement=0.5, alone=worse), PruneLayersSpec()) is not None
    assert advice(row(agreement=0.5, alone=better), PruneLayersSpec()) is None
    assert advice(row(agreement=0.5, alone=smaller), PruneLayersSpec()) is None
    assert advice(row(agreement=0.95, alone=worse), PruneLayersSpec()) is None
