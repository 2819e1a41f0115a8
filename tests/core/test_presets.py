"""Presets and dotted overrides."""

import pytest

from llmrec_core.errors import SpecError
from llmrec_core.presets import PRESETS, parse_assignment, preset_spec
from llmrec_core.specs import TrainingSpec


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_valid_spec(name):
    spec = preset_spec(name, "d")
    assert spec.preset == name
    assert spec.dataset.name == "d"


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(SpecError, match="bert-click"):
        preset_spec("berd-click", "d")


def test_override_changes_only_its_field():
    base = preset_spec("bert-click", "d")
    changed = preset_spec("bert-click", "d", {"training.epochs": 2, "objectives.0.weight": 3})
    assert changed.training.epochs == 2
    assert changed.objectives[0].weight == 3
    assert changed.model_copy(update={"training": base.training, "objectives": base.objectives}) == base


def test_a_new_family_drops_the_fields_of_the_old_one():
    spec = preset_spec("bert-click", "d", {"recommender.window": 5, "recommender.family": "item-knn"})
    assert spec.recommender.family == "item-knn"
    assert spec.recommender.window == 5


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.epoch", 1, "training.epoch: unknown field"),
        ("nowhere.at.all", 1, "nowhere: unknown field"),
        ("seed.x", 1, "single value"),
        ("objectives.4.task", "rank", "not one of the 1 entries"),
        ("objectives.first.task", "rank", "not one of the 1 entries"),
        ("training.epochs", "many", "training.epochs"),
    ],
)
def test_wrong_overrides_are_refused(path, value, message):
    with pytest.raises(SpecError, match=message):
        preset_spec("bert-click", "d", {path: value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", ("a.b", 3)),
        ("a=null", ("a", None)),
        ("a=x=y", ("a", "x=y")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=1.0e-4", ("a", 1e-4)),
    ],
)
def test_assignments_are_read_as_yaml(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["a", "=3", "a=[1", "a={"])
def test_other_assignments_are_refused(text):
    with pytest.raises(SpecError):
        parse_assignment(text)


def test_yaml_tags_build_no_objects():
    with pytest.raises(SpecError):
        parse_assignment("a=!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", ["popularity", "sequential", "two-tower"])
def test_another_family_in_a_preset_leaves_behind_what_it_does_not_read(preset, family):
    made = preset_spec(preset, "mini", {"recommender.family": family, "seed": 3})
    assert made.recommender.family == family
    if preset_spec(preset, "mini").recommender.family != family:
        assert made.training.max_samples == TrainingSpec().max_samples
    with pytest.raises(SpecError, match=r"training\.batch_size.*does not read it|recommender\.batch_size"):
        preset_spec(preset, "mini", {"recommender.family": family, "training.batch_size": 7})
