"""Settings without effect, and those that a training would refuse once it has begun: refused first, by their names."""

from __future__ import annotations

from typing import Any

import pytest

from llmrec_core.errors import SpecError
from llmrec_core.runs.folder import RunFolder
from llmrec_core.specs import RunSpec, TrainingSpec, parse_run_spec

ENCODER = {"family": "cross-encoder"}
TOWERS = {"family": "two-tower"}
WRITER = {"family": "generative"}
STILL = {"family": "cross-encoder", "head": "label-words", "tuning": {"method": "none"}}


def _spec(recommender: dict[str, Any], tasks: tuple[str, ...] = ("click",), **training: Any) -> RunSpec:
    objectives = [{"task": task} for task in tasks]
    raw = {"dataset": {"name": "d"}, "recommender": recommender, "objectives": objectives, "training": training}
    return parse_run_spec(raw)


@pytest.mark.parametrize("family", ["sequential", "two-tower", "blend", "ease"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("precision", "fp32"), ("optimizer", "adamw-8bit"), ("weights", "stochastic"), ("gradient_checkpointing", True)],
)
def test_what_a_family_does_not_read_is_refused(family, name, value):
    with pytest.raises(SpecError, match=rf"training\.{name}: a {family} recommender does not read it; leave it out"):
        _spec({"family": family}, **{name: value})
    _spec({"family": family}, **{name: TrainingSpec.model_fields[name].default}, like_threshold=3.0)


def test_its_own_field_of_that_name_is_named():
    with pytest.raises(SpecError, match=r"training\.learning_rate: .* use recommender\.learning_rate"):
        _spec({"family": "sequential"}, learning_rate=1e-3)
    _spec({"family": "pipeline", "retriever": {"family": "sequential"}}, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("recommender", "path"),
    [
        (TOWERS, "recommender"),
        ({"family": "blend", "members": [{"family": "ease"}, TOWERS]}, r"recommender\.members\.1"),
        ({"family": "pipeline", "retriever": TOWERS}, r"recommender\.retriever"),
    ],
)
def test_towers_that_tune_nothing_are_not_told_how(recommender, path):
    def with_towers(**fields: Any) -> dict[str, Any]:
        def changed(part: Any) -> Any:
            if isinstance(part, list):
                return [changed(each) for each in part]
            if not isinstance(part, dict):
                return part
            found = {name: changed(value) for name, value in part.items()}
            return found | fields if part.get("family") == "two-tower" else found

        return dict(changed(recommender))

    for tuning in ({"method": "lora"}, {"freeze_embeddings": False}):
        with pytest.raises(SpecError, match=rf"{path}\.tuning\.\w+: the language model stays .*tuning_steps is 0"):
            _spec(with_towers(tuning=tuning))
        _spec(with_towers(tuning=tuning, tuning_steps=5))
    # What goes on may keep what was tuned before; whether anything was is asked of the first run.
    went_on = {"dataset": {"name": "d"}, "continue_from": "first", "continual": {}}
    parse_run_spec({**went_on, "recommender": with_towers(tuning={"method": "lora"})})
    with pytest.raises(SpecError, match=rf"{path}\.tuning_steps: with tuning.method none"):
        _spec(with_towers(tuning={"method": "none"}, tuning_steps=5))
    with pytest.raises(SpecError, match=r"tuning\.method: two towers give no ranks.*choose lora"):
        _spec(with_towers(tuning={"method": "adalora"}, tuning_steps=5))


@pytest.mark.parametrize(
    ("recommender", "what"),
    [
        ({**ENCODER, "tuning": {"method": "top-layers", "freeze_embeddings": False}}, "top-layers"),
        ({**STILL, "tuning": {"method": "none", "freeze_embeddings": False}}, "none"),
        ({**WRITER, "tuning": {"method": "lora", "freeze_embeddings": False}}, "generative"),
        ({**TOWERS, "tuning_steps": 9, "tuning": {"method": "top-layers", "freeze_embeddings": False}}, "top-layers"),
    ],
)
def test_word_embeddings_that_stay_anyway_are_not_asked_to_move(recommender, what):
    with pytest.raises(SpecError, match=rf"tuning\.freeze_embeddings: {what} keeps word embeddings as they are"):
        _spec(recommender)
    trained = {**ENCODER, "tuning": {"method": "lora", "freeze_embeddings": False}}
    _spec(trained)
    with pytest.raises(SpecError, match=r"recommender\.ranker\.tuning\.freeze_embeddings: generative"):
        _spec({"family": "pipeline", "ranker": {**WRITER, "tuning": {"freeze_embeddings": False}}})


def test_labels_that_nothing_softens():
    for tasks in (("rating",), ("rating", "similarity")):
        with pytest.raises(SpecError, match=rf"training\.label_smoothing: .*\({', '.join(tasks)}\) has none"):
            _spec(ENCODER, tasks, label_smoothing=0.1)
        _spec(ENCODER, (*tasks, "rank"), label_smoothing=0.1)


def test_random_rounding_needs_bf16_weights():
    with pytest.raises(SpecError, match=r"training\.weights: .*training\.precision is fp32"):
        _spec(ENCODER, weights="stochastic", precision="fp32")
    with pytest.raises(SpecError, match=r"training\.weights: .*what lora trains is small and float32"):
        _spec({**ENCODER, "tuning": {"method": "lora"}}, weights="stochastic")
    for method in ("full", "top-layers"):
        _spec({**ENCODER, "tuning": {"method": method}}, weights="stochastic", precision="bf16")


def test_a_finished_run_with_such_a_field_stays_readable(tmp_path):
    spec = _spec({"family": "sequential"})
    spec = spec.model_copy(update={"training": TrainingSpec(precision="fp32")})
    with pytest.raises(SpecError, match=r"training\.precision"):
        parse_run_spec(spec.model_dump(mode="json"))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    folder = RunFolder(tmp_path)
    assert folder.spec_path.name == "spec.json"
    assert folder.read_spec() == spec
    # A second measuring of that run trains nothing.
    parse_run_spec({**spec.model_dump(mode="json"), "kind": "evaluate", "parent_run": "first"})
