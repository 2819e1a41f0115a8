"""Ways of tuning on the Fine-tune screen: each with its line on when to take it, and with its own fields alone."""

from __future__ import annotations

from typing import Any

import yaml
from page_helpers import texts
from streamlit.testing.v1 import AppTest

from llmrec_core.specs import TUNING_METHODS, TrainingSpec


def _spec(app: AppTest) -> dict[str, Any]:
    return dict(next(yaml.safe_load(c.value) for c in app.code if c.language == "yaml"))


def _one(widgets: Any, end: str) -> Any:
    (found,) = [widget for widget in widgets if (widget.key or "").endswith(end)]
    return found


def _keys(app: AppTest) -> list[str]:
    kinds = (app.number_input, app.selectbox, app.toggle, app.text_input, app.button_group)
    return [widget.key or "" for kind in kinds for widget in kind]


def _towers(studio) -> AppTest:
    app = studio("finetune", dataset="sample")
    app.selectbox(key="ft_preset").set_value("two-tower").run()
    assert not app.exception
    return app


def test_each_way_of_tuning_says_when_to_take_it_and_shows_its_own_fields(studio):
    app = studio("finetune")
    labels = {
        "lora": ("LoRA rank", {"Matrices that LoRA adds to"}),
        "prompt": ("Learned states before the text", set()),
        "bottleneck": ("Width of the small networks", {"Where small networks stand"}),
    }
    own = {title for first, more in labels.values() for title in (first, *more)}
    for method, (first, more) in labels.items():
        (choice,) = [control for control in app.button_group if control.key and control.key.endswith("-method")]
        choice.set_value(method).run()
        assert not app.exception
        assert any(TUNING_METHODS[method] == caption.value for caption in app.caption)
        shown = {control.label for control in (*app.number_input, *app.selectbox)}
        assert shown & own == {first, *more}


def test_word_embeddings_are_asked_about_where_they_can_be_trained(studio):
    app = studio("finetune", dataset="sample")
    for method, asked in (("lora", True), ("top-layers", False), ("full", True)):
        _one(app.button_group, "-method").set_value(method).run()
        assert not app.exception
        assert any(key.endswith("tuning.freeze_embeddings") for key in _keys(app)) == asked, method
    # What was chosen for another way of tuning does not stay behind unseen.
    _one(app.toggle, "tuning.freeze_embeddings").set_value(False).run()
    assert _spec(app)["recommender"]["ranker"]["tuning"]["freeze_embeddings"] is False
    _one(app.button_group, "-method").set_value("top-layers").run()
    assert _spec(app)["recommender"]["ranker"]["tuning"]["freeze_embeddings"] is True
    assert not app.button(key="ft_submit").disabled


def test_what_saves_memory_says_when_to_use_it(studio):
    app = studio("finetune", dataset="sample")
    for name in ("optimizer", "weights", "gradient_checkpointing"):
        line = TrainingSpec.model_fields[name].description
        assert line is not None
        assert line[1:] in texts(app), name
    _one(app.selectbox, "-training.optimizer").set_value("adamw-8bit").run()
    assert _spec(app)["training"]["optimizer"] == "adamw-8bit"
    _one(app.button_group, "-method").set_value("lora").run()
    assert not [key for key in _keys(app) if key.endswith("-training.weights")], "what LoRA adds stays float32"
    assert "What lora trains is small and stays float32" in texts(app)


def test_towers_show_how_they_are_tuned_once_steps_are_spent_on_it(studio):
    app = _towers(studio)
    assert not [key for key in _keys(app) if ".tuning." in key or key.endswith(("-method", "tuning_rate"))]
    assert "While these steps are 0 the language model stays as it came" in texts(app)
    _one(app.number_input, "recommender.tuning_steps").set_value(300).run()
    choice = _one(app.button_group, "-method")
    assert TUNING_METHODS["full"] in texts(app)
    assert not {"AdaLoRA", "None: zero-shot"} & set(choice.options)
    choice.set_value("lora").run()
    assert TUNING_METHODS["lora"] in texts(app)
    _one(app.number_input, "tuning.lora_rank").set_value(4).run()
    tuning = _spec(app)["recommender"]["tuning"]
    assert (tuning["method"], tuning["lora_rank"]) == ("lora", 4)
    _one(app.number_input, "recommender.tuning_steps").set_value(0).run()
    assert _spec(app)["recommender"]["tuning"]["method"] == "full"
    assert not app.button(key="ft_submit").disabled


def test_towers_that_read_prompts_of_users_show_what_is_in_them(studio):
    app = _towers(studio)
    assert not [key for key in _keys(app) if "-prompt." in key or key.endswith("-template")]
    _one(app.selectbox, "recommender.user").set_value("prompt").run()
    assert not app.exception
    _one(app.selectbox, "-template").set_value("text").run()
    _one(app.number_input, "prompt.max_history").set_value(5).run()
    spec = _spec(app)
    assert (spec["recommender"]["user"], spec["prompt"]["template"], spec["prompt"]["max_history"]) == (
        "prompt", "text", 5,
    )  # fmt: skip


def test_labels_are_softened_only_where_there_are_any(studio):
    app = studio("finetune", dataset="sample")
    _one(app.number_input, "training.label_smoothing").set_value(0.1).run()
    assert _spec(app)["training"]["label_smoothing"] == 0.1
    _one(app.button_group, "-tasks").set_value(["rating"]).run()
    assert not [key for key in _keys(app) if key.endswith("training.label_smoothing")]
    assert _spec(app)["training"]["label_smoothing"] == 0.0
    assert not app.button(key="ft_submit").disabled
