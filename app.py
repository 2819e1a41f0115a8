"""LLMRec Studio in the browser: the router, the theme and the strip of live runs."""

from __future__ import annotations

import streamlit as st

from llmrec_core.errors import LLMRecError
from pages._studio.base import show_error, workspace
from pages._studio.live import live_strip, start_supervisor

st.set_page_config(page_title="LLMRec Studio", page_icon=":material/recommend:", layout="wide")

page = st.navigation(
    {
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
        ],
        "Studio": [st.Page("pages/settings.py", title="Settings", icon=":material/settings:")],
    }
)
try:
    start_supervisor(workspace())
    live_strip()
    page.run()
except LLMRecError as error:
    show_error(error)
