"""Ways of tuning on the Fine-tune screen: each with its line on when to take it, and with its own fields alone."""

from __future__ import annotations

from llmrec_core.specs import TUNING_METHODS


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
