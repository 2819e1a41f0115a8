"""Pickers of datasets, runs, users and items, and the questions asked of a finished run; all cached, all bounded."""

from __future__ import annotations

from typing import Any

import streamlit as st

from llmrec_core.data import Dataset, DatasetStore, Split, make_split
from llmrec_core.models.catalogue import ModelEntry
from llmrec_core.runs import Run
from llmrec_core.serving.client import serving_client
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace
from pages._studio.base import empty_state, label, linked_choice, moment, plain, size, workspace
from pages._studio.live import finished_runs, run_title

#: Longer lists are cut in pickers; any id can still be typed.
MAX_OPTIONS = 3000


@st.cache_resource(max_entries=3, show_spinner="Loading the dataset …")
def _dataset(root: str, name: str, version: int) -> Dataset:
    return DatasetStore(Workspace.open(root)).load(name, version)


def load_dataset(name: str, version: int | None = None) -> Dataset:
    """The dataset, kept in memory between reruns. Raises: NotFoundError."""
    space = workspace()
    if version is None:
        version = max(DatasetStore(space).versions(name), default=1)
    return _dataset(str(space.root), name, version)


@st.cache_resource(max_entries=4, show_spinner="Cutting the data …")
def _split(root: str, name: str, version: int, spec_json: str) -> Split:
    return make_split(_dataset(root, name, version), SplitSpec.model_validate_json(spec_json))


def load_split(dataset: Dataset, spec: SplitSpec) -> Split:
    return _split(str(workspace().root), dataset.name, dataset.version, spec.model_dump_json())


def pick_run(page: str, what: str, *, evaluations: bool = False) -> Run | None:
    """The finished run to look at, in ``?run=``; an empty state where there is none."""
    runs = {run.run_id: run for run in finished_runs(evaluations=evaluations)}
    if not runs:
        empty_state(
            f"**Nothing to {what} yet.** A finished run is needed: start one on Home with sample data, or on Fine-tune "
            "with your own.",
            ("pages/home.py", "Home", ":material/home:"),
            ("pages/finetune.py", "Fine-tune", ":material/model_training:"),
        )
        return None
    chosen = linked_choice(
        "Run",
        list(runs),
        param="run",
        key=f"{page}_run",
        # The very moment: words such as "2 minutes ago" change under a page that stays open, and the choice is lost.
        format_func=lambda run_id: f"{run_title(runs[run_id])} · {moment(runs[run_id].status.ended_at)}",
        kind="run",
    )
    run = runs.get(chosen) if chosen else None
    if run is not None and run.warning:
        st.warning(run.warning, icon=":material/flag:")
    return run


def pick_user(page: str, dataset: Dataset, first: str | None = None) -> str | None:
    """A user of the dataset, in ``?user=``; beyond ``MAX_OPTIONS`` users the id is typed."""
    users = [str(u) for u in dataset.user_ids[:MAX_OPTIONS]]
    return linked_choice(
        "User",
        users,
        param="user",
        key=f"{page}_user",
        default=first,
        accept_new=dataset.n_users > MAX_OPTIONS,
        help=f"{dataset.n_users:,} users; type to search",
        kind="user",
    )


def item_label(dataset: Dataset, item_id: str) -> str:
    """Title and id of an item, for a selectbox."""
    title = dataset.item_text(dataset.item_idx(item_id), "title") if item_id in dataset.item_index else ""
    return label(f"{title} ({item_id})" if title and title != item_id else item_id)


@st.cache_data(ttl=3600, max_entries=300, show_spinner=False)
def _ask(root: str, action: str, args: dict[str, Any]) -> dict[str, Any]:
    return serving_client(Workspace.open(root)).call(action, **args)


def ask(action: str, **args: Any) -> dict[str, Any]:
    """The answer of a finished run, remembered for an hour; see :mod:`llmrec_core.serving.actions`."""
    return _ask(str(workspace().root), action, args)


def model_facts(entry: ModelEntry) -> list[str]:
    """Size, licence and source of a catalogue model, for people; already escaped."""
    facts = []
    if entry.n_parameters is not None:
        facts.append(f"{entry.n_parameters / 1e6:.0f} M parameters")
    if entry.size_bytes is not None:
        facts.append(size(entry.size_bytes))
    facts.append(f"licence {plain(entry.licence)}")
    facts.append(
        {"wheel": "fetched from the Python package index", "hub": "model hub", "folder": "local folder"}[entry.source]
    )
    return facts
