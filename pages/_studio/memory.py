"""What saves memory while a model is trained: each field with a line on when to use it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from llmrec_core.specs import RunSpec, TuningMethod
from pages._studio.spec_form import FormField, edit_field

#: Dearest first in memory saved for time.
_FIELDS = ("gradient_checkpointing", "optimizer", "weights")


def memory_choice(spec: RunSpec, method: TuningMethod, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    """These fields, taken out of ``fields``; what was chosen, by path."""
    shown = [found for name in _FIELDS if (found := fields.pop(f"training.{name}", None))]
    lean = method in ("full", "top-layers") or spec.training.weights != "masters"
    changes: dict[str, Any] = {}
    if not shown:
        return changes
    with st.expander("When memory is short", icon=":material/memory:"):
        for column, found in zip(st.columns(len(_FIELDS), gap="large"), shown, strict=False):
            with column:
                if found.path == "training.weights" and not lean:
                    st.caption(f"**{found.title}** What {method} trains is small and stays float32: nothing to choose.")
                    continue
                changes[found.path] = edit_field(found, f"{key}-{found.path}")
                st.caption(found.help[0].upper() + found.help[1:] + ".")
    return changes
