"""One dataset on the screen: its portrait, how it is cut, its tables, and where it came from."""

from __future__ import annotations

import streamlit as st

from llmrec_core.data import Dataset, DatasetStore, Portrait, portrait
from llmrec_core.figures import portrait_figures
from pages._studio.base import empty_state, faults_in_words, label, linked_choice, workspace
from pages._studio.pickers import load_dataset
from pages._studio.privacy import show_privacy
from pages._studio.splits import show_split
from pages._studio.tables import show_tables
from pages._studio.versions import show_versions

_TABS = ("Portrait", "Splits", "Tables", "Versions", "Privacy")


@st.cache_data(max_entries=6, show_spinner="Drawing the portrait …")
def _portrait(root: str, name: str, version: int) -> Portrait:
    return portrait(load_dataset(name, version))


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


def facts(dataset: Dataset) -> None:
    meta = dataset.meta
    columns = st.columns(5)
    columns[0].metric("Interactions", f"{meta.n_interactions:,}")
    columns[1].metric("Users", f"{meta.n_users:,}")
    columns[2].metric("Items", f"{meta.n_items:,}")
    columns[3].metric("Density", f"{meta.n_interactions / (meta.n_users * meta.n_items):.2%}")
    scale = dataset.rating_scale
    columns[4].metric("Ratings", f"{scale[0]:g} to {scale[1]:g}" if scale else "none")


def show_portrait(dataset: Dataset) -> None:
    found = _portrait(str(workspace().root), dataset.name, dataset.version)
    words = [f"{found.n_cold_items:,} items without any interaction"]
    if found.n_repeats:
        words.append(f"{found.n_repeats:,} repeated pairs of user and item")
    half = found.history_quantiles["0.5"]
    words.append(f"half of the users have {half:g} interactions or fewer")
    st.caption(" · ".join(words))
    figures = list(portrait_figures(found).items())
    for start in range(0, len(figures), 2):
        for column, (name, figure) in zip(st.columns(2), figures[start : start + 2], strict=False):
            column.plotly_chart(figure, key=f"portrait_{name}", config={"displaylogo": False})
