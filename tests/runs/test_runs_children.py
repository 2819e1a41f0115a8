"""What may be compressed, what is said where it may not, and what is advised where a child lost quality."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import write_tiny_bert

from llmrec_core.errors import SpecError
from llmrec_core.models.catalogue import usable_model
from llmrec_core.runs import children
from llmrec_core.runs.children import advice, compression_run, methods_for, settings_in_words, why_not
from llmrec_core.specs import parse_run_spec
from llmrec_core.specs.compression import (
    COMPRESSION_WORDS,
    DistilSpec,
    DistilTwoTowerSpec,
    Int4Spec,
    Int8Spec,
    PruneLayersSpec,
)

RUN = "20260101-000000-aaaaa"


@pytest.fixture(autouse=True)
def all_packages(monkeypatch):
    """Whatever is installed here."""
    monkeypatch.setattr(children, "find_spec", lambda name: name)


def run(recommender, workspace=Path("nowhere"), **fields):
    spec = parse_run_spec({"dataset": {"name": "d"}, "recommender": recommender, **fields})
    return SimpleNamespace(run_id=RUN, spec=spec, folder=workspace / "runs" / RUN)


def config(folder, **fields):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields))


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


@pytest.mark.parametrize("tuning", ["prefix", "prompt", "bottleneck"])
def test_what_stands_beside_the_weights_is_refused_before_it_is_queued(tuning):
    reader = {"family": "cross-encoder", "tuning": {"method": tuning}}
    alone, staged = run(reader), run({"family": "pipeline", "ranker": reader})
    for method in COMPRESSION_WORDS:
        if method == "distil-two-tower":
            assert compression_run(alone, method, {}).parent_run == RUN
            continue
        told = rf"tuning by {tuning} learns .* {method} needs them merged.*recommender\.tuning\.method=lora.*two-tower"
        with pytest.raises(SpecError, match=told):
            compression_run(alone, method, {})
    assert methods_for(staged.spec) == ["distil-two-tower"]
    assert "recommender.ranker.tuning.method=lora" in why_not(staged, "int8")[1]
    for family, more in (("listwise", {"objectives": [{"task": "rank"}]}), ("generative", {})):
        ranker = {"family": family, "tuning": {"method": tuning}}
        other = run({"family": "pipeline", "ranker": ranker}, **more)
        assert methods_for(other.spec) == []
        what, fix = why_not(other)
        assert "compression needs them merged" in what
        assert fix.endswith("and compress that run.")
    merged = run({"family": "cross-encoder", "tuning": {"method": "ia3"}})
    assert methods_for(merged.spec) == list(COMPRESSION_WORDS)


READER = {"family": "cross-encoder"}
LATE = [
    ({"model_type": "distilbert", "n_layers": 6}, READER, "onnx", {}, "distilbert have no ONNX form.*Use int8"),
    ({"model_type": "mistral", "sliding_window": 9}, READER, "onnx", {}, "mistral have no ONNX form"),
    ({"model_type": "gpt2", "n_layer": 6}, READER, "prune-heads", {}, "heads of gpt2 models.*prune layers instead"),
    ({"model_type": "albert", "num_hidden_layers": 6}, READER, "distil", {}, "albert models share one layer"),
    ({"model_type": "gpt2", "n_layer": 2}, READER, "prune-layers", {}, "2 layers cannot be taken out of 2.*at most 1"),
    ({"model_type": "bert", "num_hidden_layers": 3}, READER, "distil", {}, "model of 3.*at most 2"),
    ({"model_type": "bert", "num_hidden_layers": 1}, READER, "distil", {"n_layers": 1}, "Use int8 or int4"),
    ({"model_type": "llama", "tie_word_embeddings": False}, {"family": "generative"}, "int8", {}, "words of its own"),
]


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(("found", "part", "method", "fields", "told"), LATE, ids=lambda v: str(v)[:30])
def test_what_the_model_in_a_run_cannot_is_said_before_it_is_queued(
    tmp_path, found, part, method, fields, told, staged
):
    recommender = {"family": "pipeline", "ranker": part} if staged else part
    parent = run(recommender, tmp_path)
    saved = parent.folder / "artifacts" / "recommender"
    config(saved / "ranker" / "model" if staged else saved / "model", **found)
    with pytest.raises(SpecError, match=told):
        compression_run(parent, method, fields)


def test_a_model_that_can_is_let_through_and_one_below_the_run_is_found(tmp_path):
    config(tmp_path / "runs" / RUN / "artifacts" / "recommender" / "model", model_type="bert", num_hidden_layers=4)
    parent = run(READER, tmp_path)
    for method in COMPRESSION_WORDS:
        assert compression_run(parent, method, {}).parent_run == RUN
    adapters = {"family": "cross-encoder", "tuning": {"method": "lora"}}
    config(tmp_path / "below", model_type="gpt2", n_layer=6)
    config(tmp_path / "models" / "minilm", model_type="gpt2", n_layer=6)
    for model in (str(tmp_path / "below"), "minilm"):
        parent = run(adapters | {"model": model}, tmp_path)
        parent.folder = tmp_path / "runs" / "other"
        with pytest.raises(SpecError, match="heads of gpt2"):
            compression_run(parent, "prune-heads", {})
    # What cannot be read says nothing: the worker will.
    (tmp_path / "below" / "config.json").write_text("[" * 100_000)
    for model in (str(tmp_path / "below"), "../below", "hub:owner/name"):
        assert compression_run(run(adapters | {"model": model}, tmp_path / "x"), "prune-heads", {}).parent_run == RUN


def saved_head(folder, **values):
    folder.mkdir(parents=True)
    (folder / "recommender.json").write_text(json.dumps({"family": "cross-encoder", **values}))


@pytest.mark.parametrize("place", [".", "ranker"])
def test_a_model_below_a_run_that_is_gone_is_told_before_it_is_queued(tmp_path, place):
    """Adapters alone are nothing: the model may come from the catalogue or from a folder of one's own."""
    reader = {"family": "cross-encoder", "tuning": {"method": "lora"}}
    parent = run({"family": "pipeline", "ranker": reader} if place == "ranker" else reader, tmp_path)
    head = parent.folder / "artifacts" / "recommender" / place
    own, at_hand = tmp_path / "own", partial(usable_model, tmp_path / "models")
    saved_head(head, whole_model=False, base={"model": "minilm"})
    for method in COMPRESSION_WORDS:
        with pytest.raises(SpecError, match=r"RUN: .*'minilm'.* no longer at hand: .*`llmrec models get minilm`"):
            compression_run(parent, method, {}, at_hand)
    write_tiny_bert(tmp_path / "models" / "minilm")
    (tmp_path / "models" / "minilm" / "provenance.json").write_text("{}")
    assert compression_run(parent, "int8", {}, at_hand).parent_run == RUN
    (tmp_path / "models" / "minilm" / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"no longer at hand: .*`llmrec models get minilm`"):
        compression_run(parent, "int8", {}, at_hand)
    (head / "recommender.json").unlink()
    head.rmdir()
    saved_head(head, whole_model=False, base={"model": str(own)})
    with pytest.raises(SpecError, match=r"no longer at hand: there is no such model folder\. Put it back as it was"):
        compression_run(parent, "int8", {}, at_hand)
    write_tiny_bert(own)
    assert compression_run(parent, "int8", {}, at_hand).parent_run == RUN


def test_runs_that_need_no_model_below_them_are_let_through(tmp_path):
    """They hold it whole, or do not say: the worker will."""
    parent = run(READER, tmp_path)
    folder = parent.folder / "artifacts" / "recommender"
    at_hand = partial(usable_model, tmp_path / "models")
    saved_head(folder, whole_model=True, base={"model": "minilm"})
    assert compression_run(parent, "int8", {}, at_hand).parent_run == RUN
    for text in ("[" * 100_000, json.dumps({"family": "cross-encoder", "whole_model": False})):
        (folder / "recommender.json").write_text(text)
        assert compression_run(parent, "int8", {}, at_hand).parent_run == RUN


def test_packages_and_students_that_are_missing_are_told_before(monkeypatch):
    with pytest.raises(SpecError, match="not prompts"):
        compression_run(run(READER), "distil-two-tower", {"student.user": "prompt"})
    monkeypatch.setattr(children, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SpecError, match=r"not installed: onnxscript\..*llmrec-studio\[onnx\]"):
        compression_run(run(READER), "onnx", {})
    assert compression_run(run(READER), "int8", {}).parent_run == RUN


def test_kinds_of_models_are_those_of_the_rooms_that_decide():
    from llmrec_core.models import compact, tuning_soft

    assert children.PRUNABLE == compact._PRUNABLE
    assert children.GRAPHS == tuning_soft.READY_MASK_TYPES


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
