"""What makes a training harder on purpose: each field with a line on when to use it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import streamlit as st

from llmrec_core.prompts import STARTERS, TemplateStore
from llmrec_core.specs import GenerativeSpec, RunSpec, ranker_of
from llmrec_core.specs.tricks import AUGMENTING, TrickFields
from llmrec_core.specs.unread import SOFTENED
from pages._studio.base import label, workspace
from pages._studio.spec_form import FormField, edit_field

#: What is chosen by itself, not as a number.
_WORDINGS = "paraphrases"
#: Titles are learned word by word: none of these is theirs.
_NOT_WRITTEN = (*AUGMENTING, "augment_extent", "label_smoothing")


def trick_choice(
    spec: RunSpec, key: str, fields: dict[str, FormField], tasks: Collection[str] = SOFTENED
) -> dict[str, Any]:
    """The fields of :class:`TrickFields`, taken out of ``fields``; what was chosen, by path.

    Args:
        tasks: what is learned: where no label can be softened, that is not offered.
    """
    writes = isinstance(ranker_of(spec.recommender), GenerativeSpec)
    names = [name for name in TrickFields.model_fields if not (writes and name in _NOT_WRITTEN)]
    for name in TrickFields.model_fields:
        if name not in names:
            fields.pop(f"training.{name}", None)
    changes: dict[str, Any] = {}
    hard = "label_smoothing" in names and not set(tasks) & set(SOFTENED)
    if hard:
        names.remove("label_smoothing")
        fields.pop("training.label_smoothing", None)
        changes["training.label_smoothing"] = 0.0
    on = [name for name in names if getattr(spec.training, name) and name != "augment_extent"]
    title = "Against learning by heart" + (f" ({len(on)} on)" if on else "")
    with st.expander(title, icon=":material/fitness_center:"):
        st.caption("All off unless you choose them; the first two take twice the time.")
        if hard:
            st.caption("Labels are softened of clicks and of the right order alone: neither is learned here.")
        numbers = [found for name in names if name != _WORDINGS and (found := fields.pop(f"training.{name}", None))]
        for start in range(0, len(numbers), 2):
            for column, found in zip(st.columns(2, gap="large"), numbers[start : start + 2], strict=False):
                with column:
                    changes[found.path] = edit_field(found, f"{key}-{found.path}")
                    st.caption(found.help[0].upper() + found.help[1:] + ".")
        wordings = fields.pop(f"training.{_WORDINGS}", None)
        if wordings is not None:
            changes[wordings.path] = _wordings(wordings, key)
    return changes


def _wordings(found: FormField, key: str) -> list[str]:
    kept = list(found.value)
    options = [*(template.name for template in TemplateStore(workspace()).list())]
    chosen = st.multiselect(
        found.title,
        [*options, *(text for text in kept if text not in options)],
        default=kept,
        key=f"{key}-{found.path}",
        format_func=lambda text: f"{STARTERS[text].title} (starter)" if text in STARTERS else label(text, 60),
        persist_state="session",
    )
    st.caption(found.help[0].upper() + found.help[1:] + ".")
    return list(chosen)
