"""The screens under AppTest: an empty workspace, and one with sample data and a finished run of a light recommender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from page_helpers import open_page
from streamlit.testing.v1 import AppTest

from llmrec_core.workspace import Workspace

Open = Callable[..., AppTest]


@pytest.fixture(autouse=True)
def fresh_caches() -> None:
    """Every test stands for a server of its own."""
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Open:
    """Opens a page on an empty workspace."""

    def opened(page: str, **query: str) -> AppTest:
        return open_page(page, tmp_path / "workspace", monkeypatch, **query)

    return opened


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """(workspace, run id): sample data, and a finished run whose recommender needs no language model."""
    from llmrec_core.data import import_sample
    from llmrec_core.runs import RunStore, run_foreground
    from llmrec_core.serving.client import serving_client
    from llmrec_core.specs import parse_run_spec

    root = tmp_path_factory.mktemp("studio")
    workspace = Workspace.open(root)
    import_sample(workspace)
    spec = parse_run_spec(
        {
            "name": "light <b>run</b>",
            "dataset": {"name": "sample"},
            "recommender": {"family": "item-knn"},
            "baselines": [{"family": "popularity"}, {"family": "content-knn", "model": None}],
            "evaluation": {"max_users": 60, "n_bootstrap": 100},
        }
    )
    run_id = RunStore(workspace).submit(spec)
    run_foreground(workspace, run_id, lambda event: None)
    yield root, run_id
    serving_client(workspace).stop()


@pytest.fixture
def studio(finished_workspace, monkeypatch) -> Open:
    """Opens a page on the workspace with a finished run."""

    def opened(page: str, **query: str) -> AppTest:
        return open_page(page, finished_workspace[0], monkeypatch, **query)

    return opened
