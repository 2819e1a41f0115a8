"""A run's metric by group of users: by a profile field or by the length of their history; small groups hidden."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset, safe_csv
from llmrec_core.data.privacy import min_group_users
from llmrec_core.evaluation import slice_means, small_group_words
from llmrec_core.evaluation.report import metric_title
from llmrec_core.runs import Run
from pages._studio.base import faults_in_words, label, plain, workspace
from pages._studio.pickers import load_dataset, load_split

HISTORY = "Length of the history"
_MAX_GROUPS = 20
#: Upper ends of the groups by training interactions.
_LENGTHS = (5, 10, 20, 50, 100)
_ORDER = re.compile(r"^\d+\. ")


def slices(run: Run, per_user: pd.DataFrame, model: str, metrics: list[str]) -> None:
    """Lets a person choose a grouping and a metric, and shows the means with their intervals."""
    with faults_in_words():
        dataset = load_dataset(run.spec.dataset.name, run.spec.dataset.version)
        choices = [HISTORY, *grouping_fields(dataset)]
        left, right = st.columns(2)
        by = left.selectbox("Group users by", choices, key="slices_by", format_func=label)
        metric = right.selectbox("Metric of the groups", metrics, key="slices_metric", format_func=metric_title)
        groups = history_groups(run, dataset) if by == HISTORY else profile_groups(dataset, by)
        values = per_user[(per_user["model"] == model) & (per_user["metric"] == metric)]
        k = max(run.spec.evaluation.min_group_users, min_group_users(workspace()))
        found = slice_means(
            values[["user_id", "value"]], groups, k=k, confidence=run.spec.evaluation.confidence, seed=run.spec.seed
        )
        show(found, k, metric, by)


def show(found: pd.DataFrame, k: int, metric: str, by: str) -> None:
    words = small_group_words(k)
    rows = found.to_dict(orient="records")
    cells = [
        {
            # The number only keeps the order; where a group is empty, it would begin anywhere.
            "Group": label(_ORDER.sub("", str(row["group"])) if by == HISTORY else row["group"]),
            "Users": words if row["hidden"] else f"{row['n']:,.0f}",
            metric_title(metric): "–"
            if row["hidden"]
            else f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
        }
        for row in rows
    ]
    st.dataframe(pd.DataFrame(cells), hide_index=True, key="slices_table")
    if found["hidden"].any():
        st.caption(
            f"Groups with fewer than {k} users stay without values, and so do others where a value could be worked out "
            "as the rest of the total. The number is set on Settings, under Privacy."
        )
    st.download_button(
        "Download the groups", safe_csv(found), f"groups-{plain(by, 30)}.csv", "text/csv", key="slices_csv",
        on_click="ignore",
    )  # fmt: skip


def grouping_fields(dataset: Dataset) -> list[str]:
    """Profile fields with a few different values."""
    fields = [str(column) for column in dataset.users.columns if column != "user_id"]
    return [field for field in fields if 2 <= dataset.users[field].nunique() <= _MAX_GROUPS]


def profile_groups(dataset: Dataset, field: str) -> dict[str, str]:
    """user_id -> value of the field; an empty one is a group of its own."""
    values = dataset.users[field].replace("", "(not given)")
    return dict(zip(dataset.users["user_id"].astype(str), values.astype(str), strict=True))


def history_groups(run: Run, dataset: Dataset) -> dict[str, str]:
    """user_id -> range of how many training interactions they have; ordered as text."""
    split = load_split(dataset, run.spec.split)
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[split.train]
    counts = np.bincount(users, minlength=dataset.n_users)
    ends = np.array(_LENGTHS)
    names = ["up to 5", *(f"{a + 1} to {b}" for a, b in itertools.pairwise(_LENGTHS)), "over 100"]
    names = [f"{number}. {name}" for number, name in enumerate(names, start=1)]
    return {str(user): names[i] for user, i in zip(dataset.user_ids, np.searchsorted(ends, counts), strict=True)}
