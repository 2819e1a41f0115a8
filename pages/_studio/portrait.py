"""One dataset on the screen: its portrait, how it is cut, its tables, and where it came from."""

from __future__ import annotations

import streamlit as st

from llmrec_core.data import Dataset, DatasetStore, Drift, Portrait, drift, stored_portrait
from llmrec_core.errors import InputError
from llmrec_core.figures import drift_figure, portrait_figures
from llmrec_core.models.catalogue import DEFAULT_MODEL, model_folder, token_counter
from llmrec_core.specs import SplitSpec
from pages._studio.base import FIGURE_TOOLS, empty_state, faults_in_words, label, linked_choice, plain, workspace
from pages._studio.pickers import load_dataset, load_split
from pages._studio.privacy import show_privacy
from pages._studio.splits import show_split
from pages._studio.tables import show_tables
from pages._studio.versions import show_versions

_TABS = ("Portrait", "Splits", "Tables", "Versions", "Privacy")
#: More interactions than this are cut into parts only when somebody asks.
_DRIFT_AT_ONCE = 2_000_000
_SECTIONS = {
    "Users and items": ("tail", "history_lengths", "cold", "shares"),
    "Time": ("months", "week_hours", "sessions", "gaps"),
    "Ratings and text": ("ratings", "text_lengths", "coverage", "top_items"),
}


@st.cache_data(max_entries=6, show_spinner="Drawing the portrait …")
def _portrait(root: str, name: str, version: int, in_tokens: bool) -> Portrait:
    return stored_portrait(load_dataset(name, version), token_counter(workspace()) if in_tokens else None)


@st.cache_data(max_entries=6, show_spinner="Measuring drift …")
def _drift(root: str, name: str, version: int, spec_json: str) -> Drift:
    return drift(load_split(load_dataset(name, version), SplitSpec.model_validate_json(spec_json)))


def dataset_view() -> None:
    """The datasets of the workspace, one of them opened."""
    store = DatasetStore(workspace())
    metas = {meta.name: meta for meta in store.list()}
    if not metas:
        empty_state("**No dataset yet.** Take the sample data, or drop files above.")
        return
    st.subheader("Datasets", anchor=False)
    left, right = st.columns([3, 1])
    with left:
        name = linked_choice(
            "Dataset",
            list(metas),
            param="dataset",
            key="data_dataset",
            format_func=lambda n: label(f"{n} · {metas[n].n_interactions:,} interactions"),
            kind="dataset",
        )
    if name is None:
        return
    versions = store.versions(name)
    version = right.selectbox("Version", versions[::-1], key=f"data_version_{name}_{len(versions)}")
    dataset = load_dataset(name, version)
    facts(dataset)
    _follow_tab()
    for tab, title in zip(st.tabs(list(_TABS), key="data_tab", on_change="rerun"), _TABS, strict=True):
        if not tab.open:
            continue
        with tab, faults_in_words():
            screens = {
                "Portrait": show_portrait,
                "Splits": show_split,
                "Tables": show_tables,
                "Versions": show_versions,
                "Privacy": show_privacy,
            }
            screens[title](dataset)


def _follow_tab() -> None:
    """Opens the tab that a link names (``?tab=``), once; after that the person chooses."""
    linked = st.query_params.get("tab")
    if linked in _TABS and linked != st.session_state.get("url:data_tab"):
        st.session_state["data_tab"] = linked
    st.session_state["url:data_tab"] = linked


def facts(dataset: Dataset) -> None:
    meta = dataset.meta
    scale = dataset.rating_scale
    shown = {
        "Interactions": f"{meta.n_interactions:,}",
        "Users": f"{meta.n_users:,}",
        "Items": f"{meta.n_items:,}",
        "Per user": f"{meta.n_interactions / meta.n_users:,.1f}",
        "Ratings": f"{scale[0]:g} to {scale[1]:g}" if scale else meta.rating_kind or "none",
    }
    # Side by side also on a phone, where columns would stand below each other.
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        for title, value in shown.items():
            st.metric(title, value, width="content")


def show_portrait(dataset: Dataset) -> None:
    # The default model may be fetched later: then the same texts are counted in its tokens.
    in_tokens = model_folder(workspace(), DEFAULT_MODEL) is not None
    found = _portrait(str(workspace().root), dataset.name, dataset.version, in_tokens)
    st.markdown("\n".join(f"- {plain(reading, 400)}" for reading in found.readings))
    for heading, names in _SECTIONS.items():
        st.subheader(heading, anchor=False)
        _figures(found, names)
    st.subheader("Drift from training to test", anchor=False)
    _show_drift(dataset)


def _figures(found: Portrait, names: tuple[str, ...]) -> None:
    """Two figures a row; what this data cannot show is left out, with one sentence for all of it."""
    missing = _missing(found)
    shown = [name for name in names if name not in missing]
    figures = portrait_figures(found)
    for start in range(0, len(shown), 2):
        for column, name in zip(st.columns(2), shown[start : start + 2], strict=False):
            column.plotly_chart(figures[name], key=f"portrait_{name}", config=FIGURE_TOOLS)
    for why in dict.fromkeys(why for name, why in missing.items() if name in names):
        st.caption(why)


def _missing(found: Portrait) -> dict[str, str]:
    """Figure -> why this data has none."""
    why = {
        "none": dict.fromkeys(("months", "week_hours", "sessions", "gaps"), "The interactions have no times."),
        "order": dict.fromkeys(
            ("months", "week_hours", "sessions", "gaps"),
            "The times are an order and no calendar, so there are no months, hours, sessions or waits to show.",
        ),
        "days": dict.fromkeys(
            ("week_hours", "sessions"),
            "The times are whole days, so the hours of the week and sessions cannot be told and are left out.",
        ),
        "moments": {},
    }[found.clock]
    if not found.ratings.labels:
        why["ratings"] = "The interactions have no ratings."
    if found.item_text is None:
        why["text_lengths"] = "No item has text."
    if not found.item_coverage and not found.user_coverage:
        why["coverage"] = "Items and users have no further fields."
    return why


def _show_drift(dataset: Dataset) -> None:
    spec = SplitSpec()
    if dataset.meta.n_interactions > _DRIFT_AT_ONCE and not st.toggle("Measure drift", key="portrait_drift_wanted"):
        st.caption("Cutting this many interactions takes a while, so it waits to be asked for.")
        return
    try:
        found = _drift(str(workspace().root), dataset.name, dataset.version, spec.model_dump_json())
    except InputError as error:
        st.info(f"There is no drift to measure: {plain(error, 400)}", icon=":material/info:")
        return
    left, right = st.columns(2)
    left.plotly_chart(drift_figure(found), key="portrait_drift", config=FIGURE_TOOLS)
    right.markdown("\n".join(f"- {plain(reading, 400)}" for reading in found.readings))
    right.caption(
        "Measured on the split that runs use unless told otherwise; the tab Splits draws others. Every row enters."
    )
