"""LLMRec Studio in the browser: the router, the theme and the strip of live runs."""

from __future__ import annotations

import streamlit as st

from llmrec_core.errors import LLMRecError
from pages._studio.base import show_error, workspace
from pages._studio.live import live_strip, start_supervisor
from pages._studio.router import route

st.set_page_config(
    page_title="LLMRec Studio", page_icon=":material/recommend:", layout="wide", initial_sidebar_state=220
)

page = route()
try:
    start_supervisor(workspace())
    live_strip()
    page.run()
except LLMRecError as error:
    show_error(error)
