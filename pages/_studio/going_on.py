"""The form of a training that starts from a finished run's weights: on the same data, or on a newer version of it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from llmrec_core.data import DatasetStore
from llmrec_core.errors import LLMRecError
from llmrec_core.models.catalogue import list_models
from llmrec_core.runs import Run
from llmrec_core.specs import DatasetRef, RunSpec, ranker_of
from llmrec_core.specs.continuing import kept_fields
from pages._studio.base import plain, workspace
from pages._studio.live import run_title
from pages._studio.pickers import load_dataset
from pages._studio.reader import ranker_path
from pages._studio.spec_form import FormField, edit_field


def second_stage(run: Run) -> dict[str, Any]:
    """What is other than in the spec of the run that it starts from."""
    st.info(f"Starts from the weights of {plain(run_title(run))}, on the same data.", icon=":material/stairs_2:")
    return {
        "continue_from": run.run_id,
        "continual": None,
        "dataset": run.spec.dataset.model_dump(mode="json"),
        "name": _name(run, "second stage"),
    }


def newer_data(run: Run, dataset: str) -> dict[str, Any] | None:
    """The same on the newest version of ``dataset``; None, and the way to a newer one, where that was learned."""
    newest = DatasetRef(name=dataset, version=load_dataset(dataset).version)
    if newest == run.spec.dataset:
        st.warning(
            f"{plain(run_title(run))} was trained on version {newest.version} of {plain(dataset)}, and there is no "
            "newer one. Import the data with what came since under the same name: that makes a new version, and the "
            "training goes on there.",
            icon=":material/update_disabled:",
        )
        st.page_link("pages/data.py", label="Import newer data", icon=":material/table_chart:")
        return None
    st.info(
        f"Goes on from the weights of {plain(run_title(run))}, with version {newest.version} of {plain(dataset)}. "
        f"{_growth(run, newest)}",
        icon=":material/update:",
    )
    return {
        "continue_from": run.run_id,
        "continual": {},
        "dataset": newest.model_dump(mode="json"),
        "name": _name(run, f"on version {newest.version}"),
    }


def _growth(run: Run, newest: DatasetRef) -> str:
    """How much came since, in a sentence; "" where the older version is gone, or nothing is more."""
    store, older = DatasetStore(workspace()), run.spec.dataset
    try:
        before, now = (store.load(ref.name, ref.version).meta for ref in (older, newest))
    except LLMRecError:
        return ""
    counts = (
        (now.n_interactions - before.n_interactions, "interactions"),
        (now.n_items - before.n_items, "items"),
        (now.n_users - before.n_users, "users"),
    )
    more = ", ".join(f"{n:,} more {what}" for n, what in counts if n > 0)
    which = f"version {older.version}" + ("" if older.name == newest.name else f" of {plain(older.name)}")
    return f"It has {more} than {which}, which that run was trained on." if more else ""


def _name(run: Run, what: str) -> str:
    """A name that tells the new run from the first."""
    first = run.spec.name or run.spec.preset or run.spec.recommender.family
    return f"{first[:90]}, {what}"


def kept_shape(spec: RunSpec, fields: dict[str, FormField]) -> None:
    """Takes out of ``fields`` what the weights that are taken over depend on, and says what they are of."""
    path, part = ranker_path(spec), ranker_of(spec.recommender)
    for name in kept_fields(spec.recommender):
        for found in [p for p in fields if p == f"{path}.{name}" or p.startswith(f"{path}.{name}.")]:
            del fields[found]
    model = getattr(part, "model", None)
    titles = {entry.name: entry.title for entry in list_models(workspace())}
    if model is not None:
        st.markdown(f"**Model** {plain(titles.get(model, model))}, as in the first run: its weights are taken over.")


def replay_choice(fields: dict[str, FormField], key: str, changes: dict[str, Any]) -> None:
    """How much of the old is mixed in, where a training goes on with newer data."""
    found = fields.pop("continual.replay", None)
    if found is None:
        return
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        changes[found.path] = edit_field(found, f"{key}-{found.path}", "Share of old interactions")
    right.caption(
        "What came since the first run is mixed with what it learned, so that this is not forgotten: .2 to .5 is "
        "usual; 0 shows what forgetting costs."
    )
