"""What reads and is trained in a run: which model it may have, and what of the form it has a use for."""

from __future__ import annotations

from typing import Any

import streamlit as st

from llmrec_core.errors import SpecError
from llmrec_core.models.catalogue import list_models
from llmrec_core.specs import GenerativeSpec, ListwiseSpec, PipelineSpec, RunSpec, ranker_of
from llmrec_core.specs.tricks import TrickFields
from pages._studio.base import workspace
from pages._studio.pickers import model_facts

#: What these families learn is fixed, so nothing is chosen.
LEARNS = {
    "generative": "What is learned is to write the title of the next item.",
    "listwise": "What is learned is to choose the right item of a list.",
}
#: Fields that nothing reads where nothing is trained.
OF_TRAINING = (
    "max_samples",
    "epochs",
    "gradient_accumulation_steps",
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "warmup_ratio",
    "dropout",
    "max_grad_norm",
    "hard_negatives",
    "balance",
    "balance_rate",
    "balance_alpha",
    *TrickFields.model_fields,
    "validation_every",
    "early_stopping_patience",
    "optimizer",
    "weights",
    "gradient_checkpointing",
)


def ranker_path(spec: RunSpec) -> str:
    return "recommender.ranker" if isinstance(spec.recommender, PipelineSpec) else "recommender"


def writes(spec: RunSpec) -> bool:
    """Whether the model goes on with a text, which only decoders do."""
    return isinstance(ranker_of(spec.recommender), GenerativeSpec | ListwiseSpec)


def check_model(spec: RunSpec) -> None:
    """Raises: SpecError: a catalogue model of the wrong kind, told before anything is prepared."""
    kinds = {entry.name: entry.kind for entry in list_models(workspace())}
    model = getattr(ranker_of(spec.recommender), "model", None)
    if writes(spec) and kinds.get(str(model)) == "encoder":
        raise SpecError(
            f"{model!r} is an encoder, which cannot go on with a text.",
            where="Model",
            fix="Choose a decoder, such as smollm2-135m.",
        )


def model_card(spec: RunSpec, key: str) -> dict[str, Any]:
    path = ranker_path(spec)
    current = getattr(ranker_of(spec.recommender), "model", None)
    if current is None:
        return {}
    entries = {entry.name: entry for entry in list_models(workspace())}
    options = [name for name, entry in entries.items() if not (writes(spec) and entry.kind == "encoder")]
    if current not in options:
        options.append(current)
    chosen = st.selectbox(
        "Model",
        options,
        index=options.index(current),
        key=f"{key}-model",
        format_func=lambda name: entries[name].title if name in entries else name,
        help="A catalogue model; a local folder or hub:owner/name can be typed",
        accept_new_options=True,
        persist_state="session",
    )
    entry = entries.get(chosen)
    if entry is not None:
        with st.container(horizontal=True, gap="xsmall"):
            for fact in model_facts(entry):
                st.badge(fact, color="gray")
            if entry.on_disk:
                st.badge("on disk", color="green", icon=":material/check:")
            else:
                st.badge("is fetched when the run starts", color="orange", icon=":material/download:")
    return {f"{path}.model": chosen}
