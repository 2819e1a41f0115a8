"""Home: what is here, what runs, one button that does the main job on sample data, and the four steps."""

from __future__ import annotations

import streamlit as st

from llmrec_core.data import DatasetStore, import_sample
from llmrec_core.errors import LLMRecError
from llmrec_core.models.catalogue import list_models
from llmrec_core.presets import PRESETS, preset_spec
from llmrec_core.prompts import STARTERS, TemplateStore
from pages._studio.base import header, plain, show_error, workspace
from pages._studio.live import LIVE, finished_runs, live_panel, outcome, run_store, state_badge

SAMPLE = "sample"


def start_main_job() -> None:
    """Sample data, then the quick preset. A second click while it runs finds the same run."""
    space = workspace()
    try:
        if not any(meta.name == SAMPLE for meta in DatasetStore(space).list()):
            with st.spinner("Preparing the sample data …"):
                import_sample(space)
        attempts = sum(run.spec.name == "First look" for run in run_store().list())
        spec = preset_spec("quick", SAMPLE, {"name": "First look"})
        run_id = run_store().submit(spec, request_key=f"home-{attempts}")
    except LLMRecError as error:
        show_error(error)
        return
    st.query_params["run"] = run_id
    st.rerun()


def main_job() -> None:
    runs = [run for run in run_store().list() if run.spec.name == "First look"]
    live = [run for run in runs if run.status.state in LIVE]
    linked = st.query_params.get("run")
    shown = next((run for run in runs if run.run_id == linked), next(iter(live or runs), None))
    with st.container(border=True):
        left, right = st.columns([3, 2], vertical_alignment="center")
        left.subheader("See the whole journey once", anchor=False)
        left.write(
            "Fine-tunes MiniLM on the bundled sample catalogue, ranks for its users, measures the result against two "
            "simple recommenders and explains it. About a minute on two idle cores; the first time the model "
            "(91 MB) is fetched as well."
        )
        with right:
            if st.button(
                "Fine-tune, rank, explain",
                key="main_job",
                type="primary",
                icon=":material/rocket_launch:",
                disabled=bool(live),
                width="stretch",
            ):
                start_main_job()
        if shown is None:
            return
        if shown.status.state == "done":
            state_badge("done")
            outcome(shown.run_id)
            with st.expander("How the training went", icon=":material/show_chart:"):
                live_panel(shown.run_id, controls=False, head=False)
        else:
            live_panel(shown.run_id, controls=False)
            st.page_link(
                "pages/finetune.py",
                label="Open on Fine-tune, to stop, cancel or resume it",
                icon=":material/open_in_new:",
                query_params={"run": shown.run_id},
            )


def card(step: int, title: str, text: str, state: str, ready: bool, page: str, action: str) -> None:
    with st.container(border=True, height="stretch"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{step}. {title}**", width="stretch")
            st.badge("ready" if ready else "to do", color="green" if ready else "gray")
        st.caption(text)
        st.markdown(state)
        st.page_link(page, label=action, icon=":material/arrow_forward:")


def steps() -> None:
    space = workspace()
    datasets = DatasetStore(space).list()
    saved = [t for t in TemplateStore(space).list() if not t.starter]
    finished = finished_runs()
    on_disk = [model for model in list_models(space) if model.on_disk]
    columns = st.columns(4)
    with columns[0]:
        names = ", ".join(plain(meta.name, 30) for meta in datasets[:3])
        card(
            1,
            "Data",
            "Upload interactions, items and users; correct what was guessed.",
            f"{len(datasets)} dataset{'s' if len(datasets) != 1 else ''}: {names}" if datasets else "No dataset yet.",
            bool(datasets),
            "pages/data.py",
            "Open Data",
        )
    with columns[1]:
        card(
            2,
            "Prompts",
            "How a user's history and a candidate become the text the model reads.",
            f"{len(STARTERS)} starters, {len(saved)} of your own.",
            True,
            "pages/prompts.py",
            "Open Prompts",
        )
    with columns[2]:
        card(
            3,
            "Fine-tune",
            f"{len(PRESETS)} presets; every setting can be changed.",
            f"{len(finished)} finished run{'s' if len(finished) != 1 else ''}, {len(on_disk)} model"
            f"{'s' if len(on_disk) != 1 else ''} on disk.",
            bool(finished),
            "pages/finetune.py",
            "Open Fine-tune",
        )
    with columns[3]:
        card(
            4,
            "Inspect",
            "Rankings of one user, metrics with intervals, reasons for each item.",
            f"Newest: {plain(finished[0].spec.name or finished[0].run_id, 40)}"
            if finished
            else "Needs a finished run.",
            bool(finished),
            "pages/rankings.py",
            "Open Rankings",
        )


header("LLMRec Studio", "Fine-tune a language model as a recommender, see what it ranks, measure it, and ask it why.")
main_job()
st.subheader("Four steps", anchor=False)
steps()
