"""Runs on the screen: the supervisor of this server, the strip of live runs, the panel of one run.

Polling happens in fragments that are told ``run_every`` only while something is queued or running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from llmrec_core.errors import LLMRecError
from llmrec_core.evaluation.report import metric_title
from llmrec_core.figures import training_figure
from llmrec_core.runs import Run, RunStore, supervisor_for
from llmrec_core.specs import goes_on, has_second_stage
from llmrec_core.workspace import Workspace
from pages._studio.base import (
    FIGURE_TOOLS,
    ago,
    duration,
    faults_in_words,
    label,
    number,
    plain,
    show_error,
    size,
    workspace,
)

LIVE = ("queued", "running")
_POLL_S = 1.5
_STAGES = ("data", "baselines", "tokenizing", "training", "fusion", "saving", "evaluating")
_STAGE_WORDS = {"tokenizing": "prompts"}
_BADGES = {
    "queued": ("gray", ":material/schedule:"),
    "running": ("blue", ":material/autorenew:"),
    "done": ("green", ":material/check_circle:"),
    "failed": ("red", ":material/error:"),
    "cancelled": ("gray", ":material/block:"),
    "interrupted": ("orange", ":material/power_off:"),
}
_MAX_EVENTS = 20_000


@st.cache_resource(show_spinner=False)
def _store(root: str) -> RunStore:
    return RunStore(Workspace.open(root))


def run_store() -> RunStore:
    """The runs of this workspace."""
    return _store(str(workspace().root))


def start_supervisor(space: Workspace) -> None:
    """Makes sure that the one supervisor thread of this server works on the queue."""
    supervisor_for(space).start()


def run_title(run: Run) -> str:
    """How a run is called in lists: its name or preset, the dataset, its id."""
    name = run.spec.name or run.spec.preset or run.spec.recommender.family
    if run.spec.kind == "evaluate":
        name += " · measured again"
    return label(f"{name} · {run.spec.dataset.name} · {run.run_id}", 110)


def state_badge(state: str) -> None:
    colour, icon = _BADGES.get(state, ("gray", ":material/help:"))
    with st.container(key=f"run_state_{state}", width="content"):
        st.badge(state, icon=icon, color=colour)  # type: ignore[arg-type]


def finished_runs(*, evaluations: bool = False) -> list[Run]:
    """Trained runs whose artifacts can be ranked, measured and explained; newest first.

    ``evaluations``: also later evaluations of such runs, which hold figures but no model of their own.
    """
    kinds = {"train", "compress", "evaluate"} if evaluations else {"train", "compress"}
    return [r for r in run_store().list() if r.status.state == "done" and r.spec.kind in kinds]


def live_strip() -> None:
    """In the sidebar: what runs now, on every screen."""
    live = [run for run in run_store().list() if run.status.state in LIVE]
    st.session_state["live_states"] = states_of(live)
    with st.sidebar:
        st.fragment(_strip, run_every=2.0 if live else None)()


def states_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(run id, state) of each, in a fixed order."""
    return sorted((run.run_id, run.status.state) for run in runs)


def _strip() -> None:
    live = [run for run in run_store().list() if run.status.state in LIVE]
    if states_of(live) != st.session_state.get("live_states"):
        # Something was taken up or ended: the screens show other things now, and polling may stop.
        st.rerun()
    for run in live[:5]:
        with st.container(border=True):
            st.markdown(f"**{plain(run.spec.name or run.spec.preset or run.run_id, 40)}**")
            status = run.status
            fraction = status.step / status.total if status.step and status.total else 0.0
            st.progress(min(1.0, fraction), text=f"{status.state} · {status.stage or 'waiting'}")
            st.page_link(
                "pages/finetune.py", label="Open", icon=":material/open_in_new:", query_params={"run": run.run_id}
            )


def read_events(run_id: str) -> list[dict[str, Any]]:
    """All events of a run; only new ones are read from disk."""
    cache: dict[str, list[dict[str, Any]]] = st.session_state.setdefault("events", {})
    known = cache.setdefault(run_id, [])
    after = known[-1]["n"] if known else 0
    known.extend(run_store().events(run_id, after=after))
    if len(known) > _MAX_EVENTS:
        # Old progress ticks go first; curves and stages stay.
        cache[run_id] = known = [e for e in known if e["type"] != "progress"][-_MAX_EVENTS:]
    while len(cache) > 4:
        cache.pop(next(iter(cache)))
    return known


def live_panel(run_id: str, *, controls: bool = True, head: bool = True) -> None:
    """The panel of one run; polls while it is queued or running."""
    live = run_store().get(run_id).status.state in LIVE
    st.session_state["panel_live"] = live
    st.fragment(_panel, run_every=_POLL_S if live else None)(run_id, controls, head)


def _panel(run_id: str, controls: bool, head: bool) -> None:
    with faults_in_words():
        run = run_store().get(run_id)
        live = run.status.state in LIVE
        if st.session_state.get("panel_live") and not live:
            st.rerun()
        events = read_events(run_id)
        if head:
            _head(run)
        _progress(run, events)
        if run.warning:
            st.warning(run.warning, icon=":material/flag:")
        if run.status.error:
            if run.status.state == "failed":
                st.error(plain(run.status.error, 2000), icon=":material/error:")
            else:
                st.info(plain(run.status.error, 2000), icon=":material/info:")
        metric = watched_metric(run, events)
        _numbers(events, metric)
        if any(e["type"] in ("train", "validation") for e in events):
            st.plotly_chart(training_figure(events, metric), key=f"curve_{run_id}", config=FIGURE_TOOLS)
        if controls:
            _controls(run)
        with st.expander("Log", icon=":material/notes:"):
            st.code(run_store().log(run_id, lines=60) or "Nothing written yet.", language=None, wrap_lines=True)


def outcome(run_id: str) -> None:
    """What came of it, in a sentence, and where to look next."""
    with faults_in_words():
        result = run_store().result(run_id)
        st.info(plain(result["verdict"], 800), icon=":material/flag:")
        if result.get("continual"):
            _old_and_new(result["continual"])
    with st.container(horizontal=True):
        for page, title, icon in (
            ("pages/rankings.py", "See the rankings", ":material/format_list_numbered:"),
            ("pages/metrics.py", "Read the metrics", ":material/monitoring:"),
            ("pages/explain.py", "Ask why", ":material/psychology_alt:"),
        ):
            st.page_link(page, label=title, icon=icon, query_params={"run": run_id})


def _old_and_new(found: Mapping[str, Any]) -> None:
    """What is known and forgotten after going on with newer data."""
    st.markdown("**Before and after the new data**")
    st.markdown(plain(found["sentence"], 800))
    rows = [
        {
            "questions": part["title"],
            "metric": metric_title(metric),
            "users": part["n_users"],
            "before": values["before"]["mean"],
            "after": values["after"]["mean"],
            "difference (interval)": _signed(values["difference"]),
        }
        for part in found["parts"].values()
        if part
        for metric, values in part["metrics"].items()
    ]
    four = st.column_config.NumberColumn(format="%.4f")
    st.dataframe(rows, hide_index=True, key="continual_table", column_config={"before": four, "after": four})
    unknown = (found["parts"].get("new") or {}).get("n_unknown_targets")
    if unknown:
        st.caption(
            f"{unknown:,} of the {found['parts']['new']['n_targets']:,} new answers are items that the first run has "
            "never heard of: it ranks them behind all others."
        )


def _signed(difference: Mapping[str, Any]) -> str:
    """A difference with its interval; what rounds to nothing has no sign of its own."""
    mean, low, high = (round(difference[name], 4) + 0.0 for name in ("mean", "ci_low", "ci_high"))
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _head(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(plain(run.spec.name or run.spec.preset or "Run"), anchor=False, width="content")
        state_badge(run.status.state)
        st.caption(f"{plain(run.spec.dataset.name)} · `{run.run_id}`", width="content")


def _progress(run: Run, events: Sequence[Mapping[str, Any]]) -> None:
    if run.status.state not in LIVE:
        return
    if run.status.state == "queued":
        st.progress(0.0, text="Waiting for its turn")
        return
    stage, step, total, eta = run.status.stage or "starting", 0, 0, None
    for event in events:
        if event["type"] == "stage":
            stage, step, total, eta = event["stage"], 0, 0, None
        elif event["type"] in ("progress", "train"):
            step, total, eta = event.get("step", 0), event.get("total", 0), event.get("eta_s")
    text = f"**{_STAGE_WORDS.get(stage, stage).capitalize()}**"
    if total:
        text += f" · {step} of {total}"
    if eta is not None:
        text += f" · about {duration(eta)} left"
    st.progress(min(1.0, step / total) if total else 0.0, text=text)
    done = _STAGES[: _STAGES.index(stage)] if stage in _STAGES else ()
    words = {s: _STAGE_WORDS.get(s, s) for s in _STAGES}
    st.caption(" → ".join(f"**{w}**" if s == stage else (f"✓ {w}" if s in done else w) for s, w in words.items()))


def watched_metric(run: Run, events: Sequence[Mapping[str, Any]]) -> str | None:
    """The validation metric to draw: the one that early stopping watches, if it was measured."""
    measured = [name for e in events if e["type"] == "validation" for name in e["metrics"]]
    wanted = run.spec.training.validation_metric
    return wanted if wanted in measured else None


def _numbers(events: Sequence[Mapping[str, Any]], metric: str | None) -> None:
    trains = [e for e in events if e["type"] == "train"]
    validations = [e for e in events if e["type"] == "validation"]
    if not trains:
        return
    last = trains[-1]
    columns = st.columns(5)
    columns[0].metric("Loss", number(last.get("loss"), 4))
    if validations:
        name = metric or next(iter(validations[-1]["metrics"]), "validation")
        title = metric_title(name) if name == metric else name
        columns[1].metric(f"Validation {title}", number(validations[-1]["metrics"].get(name), 4))
    else:
        columns[1].metric("Validation", "–", help="Not measured yet")
    columns[2].metric("Step", f"{last['step']} / {last['total']}")
    columns[3].metric("Samples a second", number(last.get("samples_per_s"), 1))
    columns[4].metric("Memory", size(last.get("memory_bytes")))


def _controls(run: Run) -> None:
    """Buttons that fit the state; each does its work and redraws the screen."""
    run_id, state, store = run.run_id, run.status.state, run_store()
    trained = state == "done" and run.spec.kind == "train"
    with st.container(horizontal=True):
        if state == "running" and st.button(
            "Stop and keep",
            key="run_stop",
            icon=":material/stop_circle:",
            help="End training now, measure what is there",
        ):
            _act(lambda: store.stop(run_id), "Training ends after this step; what it learned is kept.")
        if state in LIVE and st.button("Cancel", key="run_cancel", icon=":material/cancel:"):
            _act(lambda: store.cancel(run_id), "Cancelling.")
        if state in ("failed", "cancelled", "interrupted") and st.button(
            "Resume", key="run_resume", icon=":material/play_circle:", type="primary"
        ):
            with faults_in_words():
                open_run(store.resume(run_id))
        if st.button("Clone", key="run_clone", icon=":material/content_copy:", help="Start a new form from this spec"):
            st.session_state["clone_of"] = run_id
            st.session_state.pop("second_stage", None)
            st.session_state.pop("continual", None)
            st.rerun()
        if (
            trained
            and has_second_stage(run.spec.recommender)
            and run.spec.continual is None
            and st.button(
                "Second stage",
                key="run_second_stage",
                icon=":material/stairs_2:",
                help="A new training that starts from this run's weights: choose one objective to go on with",
            )
        ):
            st.session_state["clone_of"] = run_id
            st.session_state["second_stage"] = run_id
            st.session_state.pop("continual", None)
            st.rerun()
        if (
            trained
            and goes_on(run.spec.recommender)
            and st.button(
                "Continue with new data",
                key="run_continue",
                icon=":material/update:",
                help="A new training that starts from this run's weights, on a newer version of the data: what came "
                "since, mixed with some of what it learned. Afterwards you see what is known and what is forgotten.",
            )
        ):
            st.session_state["clone_of"] = run_id
            st.session_state["second_stage"] = st.session_state["continual"] = run_id
            # What came since is most likely a newer version of the same data, whatever was looked at last.
            st.query_params["dataset"] = run.spec.dataset.name
            st.rerun()
        if state not in LIVE:
            with st.popover("Delete", icon=":material/delete:"):
                st.write("Removes the run with its model, metrics and log. This cannot be undone.")
                if st.button("Delete this run", key="run_delete", type="primary"):
                    _delete(run_id)


def _delete(run_id: str) -> None:
    from llmrec_core.serving.client import serving_client

    try:
        client = serving_client(workspace())
        if client.running:
            client.call("forget", run_id=run_id)
        run_store().delete(run_id)
    except LLMRecError as error:
        show_error(error)
        return
    st.query_params.pop("run", None)
    st.toast("The run is deleted.")
    st.rerun()


def _act(action: Any, message: str) -> None:
    try:
        action()
    except LLMRecError as error:
        show_error(error)
        return
    st.toast(message)


def open_run(run_id: str) -> None:
    """Shows the run on the Fine-tune screen."""
    st.switch_page("pages/finetune.py", query_params={"run": run_id})


def run_line(run: Run) -> dict[str, Any]:
    """One row of the list of runs."""
    status = run.status
    return {
        "run": run.run_id,
        "name": label(run.spec.name or run.spec.preset or ""),
        "dataset": label(run.spec.dataset.name),
        "state": status.state,
        "stage": (status.stage or "") if status.live else "",
        "started": ago(status.started_at or status.submitted_at),
    }
