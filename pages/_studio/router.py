"""Which screens there are, in which order; and a way back to ``app.py`` when Streamlit goes past it."""

from __future__ import annotations

from typing import Any

import streamlit as st

#: Whether ``app.py`` has routed in this process. Grows true once and stays so.
_routed: list[bool] = []


def studio_pages() -> dict[str, list[Any]]:
    """Sections of the sidebar -> their pages."""
    return {
        "": [st.Page("pages/home.py", title="Home", icon=":material/home:", default=True)],
        "Build": [
            st.Page("pages/data.py", title="Data", icon=":material/table_chart:"),
            st.Page("pages/prompts.py", title="Prompts", icon=":material/edit_note:"),
            st.Page("pages/finetune.py", title="Fine-tune", icon=":material/model_training:"),
        ],
        "Inspect": [
            st.Page("pages/rankings.py", title="Rankings", icon=":material/format_list_numbered:"),
            st.Page("pages/metrics.py", title="Metrics", icon=":material/monitoring:"),
            st.Page("pages/explain.py", title="Explain", icon=":material/psychology_alt:"),
            st.Page("pages/compress.py", title="Compress", icon=":material/compress:"),
        ],
        "Studio": [st.Page("pages/settings.py", title="Settings", icon=":material/settings:")],
    }


def route() -> Any:
    """The page that was asked for; called by ``app.py`` alone."""
    _routed.append(True)
    del _routed[1:]
    return st.navigation(studio_pages())


def ensure_routed() -> None:
    """Starts the run again through ``app.py`` if this page is running without it.

    A server that has just been started, and is first asked for a deep link, takes a ``pages/`` folder for an app of
    Streamlit's older kind and runs the page alone. Naming the pages once switches that off for the whole process.
    """
    if not _routed:
        st.navigation(studio_pages(), position="hidden")
        st.rerun()
