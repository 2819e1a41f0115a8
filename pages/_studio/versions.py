"""The versions of a dataset: where each came from, what changed, which runs use it; and an end to all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.data.versions import compare_versions
from llmrec_core.workspace import Workspace
from pages._studio.base import faults_in_words, label, plain, workspace
from pages._studio.import_report import mapping_download, refused_rows
from pages._studio.live import run_store, run_title
from pages._studio.table_card import ROLE_WORDS, notes_list

_MAX_LISTED = 20
_LOCAL = st.column_config.NumberColumn(format="localized")


@st.cache_data(max_entries=200, show_spinner="Comparing versions …")
def _change(root: str, name: str, old: int, new: int, fingerprints: tuple[str, str]) -> str:
    return compare_versions(DatasetStore(Workspace.open(root)), name, old, new).sentence


def show_versions(dataset: Dataset) -> None:
    """Every version in a row, then the origin of the one that is open."""
    _list(dataset.name)
    _origin(dataset)
    _delete(dataset.name)


def _list(name: str) -> None:
    store = DatasetStore(workspace())
    metas = [store.meta(name, version) for version in store.versions(name)]
    runs = _runs_by_version(name)
    rows = []
    for before, meta in zip([None, *metas], metas, strict=False):
        change = "first version"
        if before is not None:
            with faults_in_words():
                sides = (before.fingerprint, meta.fingerprint)
                change = _change(str(workspace().root), name, before.version, meta.version, sides)
        rows.append(
            {
                "version": meta.version,
                "imported": meta.created_at[:16].replace("T", " "),
                "rows": meta.n_interactions,
                "users": meta.n_users,
                "items": meta.n_items,
                "refused": meta.rows_rejected,
                "changed": change,
                "used by runs": ", ".join(label(title, 40) for title in runs.get(meta.version, [])) or "–",
            }
        )
    st.dataframe(
        pd.DataFrame(rows[::-1][:_MAX_LISTED]),
        hide_index=True,
        key="versions_table",
        column_config=dict.fromkeys(("rows", "users", "items", "refused"), _LOCAL),
    )
    st.caption("A run keeps the version that it was started with; a new import never changes it.")


def _runs_by_version(name: str) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for run in run_store().list():
        if not run.problem and run.spec.dataset.name == name:
            found.setdefault(run.spec.dataset.version, []).append(run_title(run))
    return found


def _origin(dataset: Dataset) -> None:
    meta = dataset.meta
    st.markdown(f"**Version {meta.version}**")
    st.caption(f"Made {meta.created_at[:16].replace('T', ' ')} UTC, fingerprint `{meta.fingerprint[:16]}`")
    if meta.roles:
        said = [f"{ROLE_WORDS.get(role, plain(role))} from *{plain(name, 60)}*" for role, name in meta.roles.items()]
        st.markdown(", ".join(said))
    if meta.sources:
        sources = [
            {
                "table": label(s.name),
                "holds": s.kind,
                "encoding": s.encoding or "–",
                "rows": s.rows_read,
                "refused": s.rows_rejected,
                "sha256": s.sha256[:16],
            }
            for s in meta.sources
        ]
        st.dataframe(
            pd.DataFrame(sources),
            hide_index=True,
            key="sources_table",
            column_config={"rows": _LOCAL, "refused": _LOCAL},
        )
    notes_list(meta.warnings)
    refused_rows(meta.name, meta.version, key="version")
    mapping_download(meta.name, meta.version, key="version")


def _delete(name: str) -> None:
    finished = [run for runs in _runs_by_version(name).values() for run in runs]
    with st.popover("Delete dataset", icon=":material/delete:"):
        st.write("Removes all its versions.")
        if finished:
            runs = f"{len(finished):,} run{'s' * (len(finished) != 1)}"
            st.write(f"{runs} used it: what they learned stays, but they can no longer rank or explain.")
        if not st.button("Delete all versions", key="dataset_delete", type="primary"):
            return
        with faults_in_words():
            DatasetStore(workspace()).delete(name, in_use=_in_use)
            st.query_params.pop("dataset", None)
            st.session_state.pop("data_dataset", None)
            st.toast("The dataset is deleted.")
            st.rerun()


def _in_use(name: str) -> Sequence[str]:
    return [run.run_id for run in run_store().active() if run.spec.dataset.name == name]
