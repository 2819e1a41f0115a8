"""Metrics: runs against each other and against the baselines, with intervals, a verdict, and who gained or lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.data import safe_csv
from llmrec_core.evaluation.comparison import compare_users
from llmrec_core.evaluation.policy_cost import WITH_POLICIES
from llmrec_core.evaluation.report import METRIC_WORDS, metric_title
from llmrec_core.figures import difference_figure, metrics_figure, training_figure
from llmrec_core.runs import Run
from llmrec_core.specs import LOWER_IS_BETTER
from llmrec_core.specs.titles import SHORT_FAMILY_TITLES
from pages._studio.base import FIGURE_TOOLS, faults_in_words, header, label, plain
from pages._studio.live import finished_runs, read_events, run_store, run_title, watched_metric
from pages._studio.pickers import pick_run
from pages._studio.policies import cost_part
from pages._studio.slices import slices

Metrics = Mapping[str, Mapping[str, Any]]
_SHOWN = ("ndcg@10", "hit_rate@10", "auc", "rmse", "coverage@10", "novelty@10")


def verdict(result: Mapping[str, Any]) -> None:
    text = plain(result["verdict"], 1200)
    if result["beats_floor"]:
        st.success(text, icon=":material/trending_up:")
    else:
        st.warning(text, icon=":material/flag:")


def baseline_title(family: str) -> str:
    return SHORT_FAMILY_TITLES.get(family, family)


def contestants(run: Run, result: Mapping[str, Any], others: list[Run]) -> dict[str, Metrics]:
    """Name -> metrics: this run, its baselines, and the other runs chosen."""
    found: dict[str, Metrics] = {"This run": result["metrics"]}
    if "policies" in result:
        found["This run with policies"] = result["policies"]["metrics"]
    found |= {baseline_title(name): metrics for name, metrics in result["baselines"].items()}
    for other in others:
        found[run_title(other)] = run_store().result(other.run_id)["metrics"]
    return found


def table(models: Mapping[str, Metrics]) -> pd.DataFrame:
    """One row for each model and metric, with its interval."""
    rows = [
        {"model": model, "metric": metric_title(name), **{k: value.get(k) for k in ("mean", "ci_low", "ci_high", "n")}}
        for model, metrics in models.items()
        for name, value in metrics.items()
    ]
    return pd.DataFrame(rows)


def overview(models: Mapping[str, Metrics], run_id: str) -> None:
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    wide = pd.DataFrame(
        {
            metric_title(name): {
                model: "–" if name not in metrics else interval(metrics[name]) for model, metrics in models.items()
            }
            for name in names
        }
    )
    wide.index.name = "model"
    st.dataframe(
        wide.reset_index(), hide_index=True, column_config={"model": st.column_config.TextColumn("Model", pinned=True)}
    )
    st.download_button(
        "Download CSV",
        safe_csv(table(models)),
        f"metrics-{run_id}.csv",
        "text/csv",
        key="metrics_csv",
        on_click="ignore",
    )


def interval(value: Mapping[str, Any]) -> str:
    mean, low, high = value.get("mean"), value.get("ci_low"), value.get("ci_high")
    if mean is None:
        return "–"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def per_user(run: Run) -> pd.DataFrame:
    """Columns model, user_id, metric, value."""
    return pd.read_parquet(run.folder / "artifacts" / "per_user.parquet")


def gained_and_lost(run: Run, result: Mapping[str, Any], others: list[Run]) -> None:
    """The paired difference to a baseline or another run, user by user."""
    values = per_user(run)
    mine = values[values["model"] == result["model"]]
    rivals = {baseline_title(name): values[values["model"] == name] for name in (*result["baselines"], WITH_POLICIES)}
    for other in others:
        frame = per_user(other)
        rivals[run_title(other)] = frame[frame["model"] == run_store().result(other.run_id)["model"]]
    rivals = {name: frame for name, frame in rivals.items() if not frame.empty}
    metrics = list(dict.fromkeys(mine["metric"]))
    if not rivals or not metrics:
        st.caption("There is nothing to compare with.")
        return
    left, right = st.columns(2)
    floor = baseline_title(result.get("floor") or "")
    rival = left.selectbox(
        "Against",
        list(rivals),
        index=list(rivals).index(floor) if floor in rivals else 0,
        key="metrics_rival",
        format_func=label,
    )
    primary = result["primary_metric"]
    metric = right.selectbox(
        "Metric",
        metrics,
        index=metrics.index(primary) if primary in metrics else 0,
        key="metrics_metric",
        format_func=metric_title,
        help="; ".join(f"{title}: {meaning}" for title, meaning in METRIC_WORDS.values()),
    )
    found = compare_users(mine, rivals[rival], metric, seed=run.spec.seed)
    columns = st.columns(4)
    columns[0].metric(
        "Mean difference",
        f"{found.difference.mean:+.4f}",
        help=f"95 % interval {found.difference.ci_low:+.4f} to {found.difference.ci_high:+.4f}, bootstrap over users",
    )
    columns[0].caption(f"95 %: {found.difference.ci_low:+.4f} to {found.difference.ci_high:+.4f}")
    columns[1].metric("Users better off", found.n_gained)
    columns[2].metric("Users worse off", found.n_lost)
    columns[3].metric("No difference", found.n_equal)
    if metric.partition("@")[0] in LOWER_IS_BETTER:
        st.caption("For this metric less is better: a negative difference is a gain.")
    chart, lists = st.columns([3, 2], gap="large")
    with chart:
        both = pd.concat([mine.assign(model="This run"), rivals[rival].assign(model=rival)])
        figure = difference_figure(both, metric, "This run", rival, asdict(found.difference))
        st.plotly_chart(figure, key="who", config=FIGURE_TOOLS)
    with lists:
        extremes = pd.concat([found.users.head(10), found.users.tail(10)]).drop_duplicates("user_id")
        shown = st.dataframe(
            extremes,
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key=f"who_table_{run.run_id}_{rival}_{metric}",
            column_config={
                "user_id": "User",
                "left": st.column_config.NumberColumn("This run", format="%.3f"),
                "right": st.column_config.NumberColumn("Against", format="%.3f"),
                "difference": st.column_config.NumberColumn("Difference", format="%+.3f"),
            },
        )
        rows = shown.selection.rows
        user = str(extremes.iloc[rows[0]]["user_id"]) if rows else None
        st.page_link(
            "pages/rankings.py",
            label="See this user's ranking" if user else "Tick a user to see the ranking",
            icon=":material/format_list_numbered:",
            disabled=user is None,
            query_params={"run": run.run_id, "user": user} if user else None,
        )
        st.download_button(
            "Download all users", safe_csv(found.users), "users.csv", "text/csv", key="users_csv", on_click="ignore"
        )


def screen() -> None:
    left, right = st.columns(2)
    with left:
        run = pick_run("metrics", "measure", evaluations=True)
    if run is None:
        return
    candidates = {
        r.run_id: r
        for r in finished_runs(evaluations=True)
        if r.run_id != run.run_id and r.spec.dataset == run.spec.dataset
    }
    with right:
        chosen = st.multiselect(
            "Compare with other runs on this dataset",
            list(candidates),
            key="metrics_others",
            format_func=lambda run_id: run_title(candidates[run_id]),
            placeholder="None" if candidates else "There is no other run on this dataset",
            disabled=not candidates,
        )
    others = [candidates[run_id] for run_id in chosen]
    result = run_store().result(run.run_id)
    verdict(result)
    models = contestants(run, result, others)
    overview(models, run.run_id)
    for other in others:
        if other.spec.split != run.spec.split or other.spec.evaluation != run.spec.evaluation:
            st.warning(
                f"{plain(run_title(other))} was measured under another protocol; its numbers do not compare.",
                icon=":material/warning:",
            )
    names = list(result["metrics"])
    shown = st.pills(
        "Metrics shown",
        names,
        selection_mode="multi",
        default=[name for name in _SHOWN if name in names] or names[:3],
        format_func=metric_title,
        key="metrics_shown",
    )
    if shown:
        st.plotly_chart(metrics_figure(models, shown), key="bars", config=FIGURE_TOOLS)
    st.subheader("Who gained, who lost", anchor=False)
    gained_and_lost(run, result, others)
    cost_part(run, result)
    st.subheader("By group of users", anchor=False)
    values = per_user(run)
    slices(run, values, result["model"], list(dict.fromkeys(values["metric"])))
    events = read_events(run.run_id)
    if any(e["type"] in ("train", "validation") for e in events):
        st.plotly_chart(training_figure(events, watched_metric(run, events)), key="curve", config=FIGURE_TOOLS)
    st.subheader("How this was measured", anchor=False)
    st.markdown(plain(result["protocol"], 3000))


header("Metrics", "Every number with its interval over users, beside simple recommenders that the model has to beat.")
with faults_in_words():
    screen()
