"""Compress: a finished run made smaller or faster, and what that costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.errors import LLMRecError
from llmrec_core.figures.compression import compression_figure
from llmrec_core.models.catalogue import usable_model
from llmrec_core.runs import Run
from llmrec_core.runs.children import compressed_children, compression_run, family_rows, methods_for, why_not
from llmrec_core.specs.compression import COMPRESSION_WORDS, COMPRESSIONS
from llmrec_core.specs.titles import metric_title
from pages._studio.base import FIGURE_TOOLS, faults_in_words, header, plain, size
from pages._studio.live import LIVE, run_store, state_badge
from pages._studio.pickers import pick_run
from pages._studio.spec_form import edit_field, spec_fields


def choose(run: Run) -> None:
    """The methods with when to use each, their settings, and the button."""
    methods = methods_for(run.spec)
    if not methods:
        what, fix = why_not(run)
        st.info(plain(f"{what[0].upper()}{what[1:]} {fix}", 600), icon=":material/compress:")
        return
    chosen = st.multiselect(
        "Methods",
        methods,
        default=methods[:1],
        key="compress_methods",
        format_func=lambda method: COMPRESSION_WORDS[method][0],
        help="Each makes a run of its own, measured as this one was.",
    )
    wishes: dict[str, dict[str, Any]] = {}
    for method in chosen:
        title, when = COMPRESSION_WORDS[method]
        with st.container(border=True):
            st.markdown(f"**{title}**: {when}")
            wishes[method] = settings(method)
    with st.expander("When to use which"):
        st.markdown("\n".join(f"- **{title}**: {when}" for title, when in (COMPRESSION_WORDS[m] for m in methods)))
    missing = [method for method in COMPRESSION_WORDS if method not in methods]
    if missing:
        what, fix = why_not(run, missing[0])
        others = "; ".join(COMPRESSION_WORDS[method][0] for method in missing)
        st.caption(plain(f"Not for this run: {others}. {what[0].upper()}{what[1:]} {fix}", 700))
    if st.button("Compress", type="primary", icon=":material/compress:", disabled=not chosen, key="compress_start"):
        start(run, wishes)


def settings(method: str) -> dict[str, Any]:
    """Fields of one method that a person changed: dotted path -> value."""
    fields = [f for f in spec_fields(COMPRESSIONS[method](), "") if f.path != "method" and "family" not in f.path]
    # The student's own fields are those of the two-tower family, which has its place on Fine-tune.
    fields = [field for field in fields if not field.path.startswith("student.")]
    changed: dict[str, Any] = {}
    if not fields:
        return changed
    with st.expander("Settings"):
        columns = st.columns(3)
        for number, field in enumerate(fields):
            with columns[number % 3]:
                value = edit_field(field, f"compress_{method}_{field.path}")
            if value != field.value:
                changed[field.path] = value
    return changed


def start(run: Run, wishes: dict[str, dict[str, Any]]) -> None:
    """Queues one run a method, all or none."""
    try:
        at_hand = partial(usable_model, run_store().workspace)
        specs = [compression_run(run, method, fields, at_hand) for method, fields in wishes.items()]
    except LLMRecError as error:
        st.error(plain(str(error), 800))
        return
    for spec in specs:
        run_store().submit(spec)
    st.rerun()


def underway(run: Run) -> None:
    """Children that are not done, polled while they run."""
    states = [(child.run_id, child.status.state) for child in compressed_children(run_store(), run.run_id)]
    if states != st.session_state.get(f"compress_states_{run.run_id}"):
        first = f"compress_states_{run.run_id}" not in st.session_state
        st.session_state[f"compress_states_{run.run_id}"] = states
        if not first:
            st.rerun()
    for child in compressed_children(run_store(), run.run_id):
        status = child.status
        if status.state == "done" or child.spec.compression is None:
            continue
        with st.container(border=True, horizontal=True):
            state_badge(status.state)
            st.markdown(f"**{COMPRESSION_WORDS[child.spec.compression.method][0]}** · {child.run_id}")
            if status.state in LIVE:
                at = f", {status.step} of {status.total}" if status.step and status.total else ""
                st.caption(f"{status.stage or 'waiting'}{at}")
            elif status.error:
                st.caption(plain(status.error, 600))


def comparison(rows: list[dict[str, Any]]) -> None:
    metric = metric_title(rows[0]["metric"])
    alone = next((row["alone"]["metric"] for row in rows if row["alone"]), None)
    by_itself = f"{metric_title(alone)} alone" if alone else None
    frame = pd.DataFrame(
        {
            "What": f"{row['title']} ({row['settings']})" if row["settings"] else row["title"],
            "Size": f"{size(row['size_bytes'])} ({row['size_share']:.0%})",
            "Memory": size(row["memory_bytes"]),
            "Speed": f"{row['speed_ratio']:.2f}x",
            metric: figure_of(row["value"]),
            "Difference to its parent": difference(row["difference"]),
            "Same order": figure_of(row["agreement"], 3),
            **({by_itself: figure_of(row["alone"] and row["alone"]["value"])} if by_itself else {}),
            "Run": row["run_id"],
        }
        for row in rows
    )
    columns: dict[str, Any] = {
        "What": st.column_config.TextColumn(width="medium"),
        metric: st.column_config.TextColumn(help="Of the whole run, on its test users."),
        "Speed": st.column_config.TextColumn(
            help="Candidates a second, child over parent, measured in turns on the same validation users."
        ),
        "Difference to its parent": st.column_config.TextColumn(
            width="medium", help="Paired over the same test users, with its bootstrap interval."
        ),
        "Same order": st.column_config.TextColumn(
            help="Rank correlation of what the model by itself scores with its parent's, on validation users: 1 is the "
            "same order. A retriever beside the model hides in the metrics what this shows.",
        ),
    }
    if by_itself:
        columns[by_itself] = st.column_config.TextColumn(
            help="Of the model by itself on the validation samples that its training watched."
        )
    st.dataframe(frame, hide_index=True, column_config=columns, height="content")
    for row in rows:
        if row["advice"]:
            st.warning(f"**{row['title']}** ({row['run_id']}) lost quality. {plain(row['advice'], 400)}")
    st.plotly_chart(compression_figure(rows), key="compress_figure", config=FIGURE_TOOLS)


def figure_of(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:+.4f} [{found['ci_low']:+.4f}, {found['ci_high']:+.4f}]"


def screen() -> None:
    run = pick_run("compress", "compress")
    if run is None:
        return
    choose(run)
    live = any(child.status.state in LIVE for child in compressed_children(run_store(), run.run_id))
    st.fragment(underway, run_every=2.0 if live else None)(run)
    rows = family_rows(run_store(), run.run_id)
    if not (rows or methods_for(run.spec)):
        return
    st.subheader("Parent and children", anchor=False)
    if rows:
        comparison(rows)
    else:
        st.caption("Nothing was compressed from this run yet.")


header("Compress", "A finished model made smaller or faster: what it saves, and what it costs in quality.")
with faults_in_words():
    screen()
