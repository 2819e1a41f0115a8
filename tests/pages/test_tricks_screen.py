"""Fine-tune: what makes a training harder on purpose, and going on with newer data."""

from __future__ import annotations

import yaml
from page_helpers import texts
from streamlit.testing.v1 import AppTest

from llmrec_core.specs.tricks import TrickFields


def _spec(app: AppTest) -> dict:
    return next(yaml.safe_load(c.value) for c in app.code if c.language == "yaml")


def test_every_trick_is_offered_with_when_to_use_it_and_reaches_the_spec(studio):
    app = studio("finetune", dataset="sample")
    keys = [widget.key or "" for widget in (*app.number_input, *app.multiselect)]
    for name, info in TrickFields.model_fields.items():
        assert any(key.endswith(f"training.{name}") for key in keys), name
        assert info.description is not None
        assert info.description[1:40] in texts(app).replace("\\", ""), name
    next(w for w in app.number_input if (w.key or "").endswith("training.adversarial_epsilon")).set_value(1.0)
    next(w for w in app.multiselect if (w.key or "").endswith("training.paraphrases")).set_value(["text"])
    app.run()
    assert not app.exception
    training = _spec(app)["training"]
    assert (training["adversarial_epsilon"], training["paraphrases"]) == (1.0, ["text"])


def test_agreement_without_dropout_is_told_at_the_form(studio):
    app = studio("finetune", dataset="sample")
    next(w for w in app.number_input if (w.key or "").endswith("training.r_drop")).set_value(1.0)
    app.run()
    assert any("dropout" in error.value for error in app.error)
    assert app.button(key="ft_submit").disabled
