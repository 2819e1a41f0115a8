"""What an import took and what it refused: counts by reason, each refused row with its place, all to download."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.data import DatasetStore, ImportReport, safe_csv
from llmrec_core.data.mapping import MAPPING_FILE
from pages._studio.base import faults_in_words, label, plain, workspace
from pages._studio.table_card import notes_list

_SHOWN = 1000
#: What a person wrote, inside a reason: reasons are counted without it.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\b\d[\d.,]*\b")


def arrived(report: ImportReport) -> None:
    """Keeps the report for the next run of the screen and opens the dataset."""
    st.session_state["import_report"] = {
        **report.as_json(),
        "version": report.version,
        "files": [
            {"table": label(f.file), "holds": f.kind, "rows read": f.rows_read, "refused": f.rows_rejected}
            for f in report.files
        ],
    }
    st.query_params["dataset"] = report.dataset
    # The report stands at the top, which may be out of sight after long questions.
    refused = f", {report.rows_rejected:,} refused" if report.rows_rejected else ""
    st.toast(
        f"{plain(report.dataset)} is imported: {report.rows_accepted:,} rows taken{refused}.",
        icon=":material/report:" if report.rows_rejected else ":material/check_circle:",
    )
    st.rerun()


def last_report() -> None:
    """The report of the last import of this session, until somebody closes it."""
    found = st.session_state.get("import_report")
    if not found:
        return
    with st.container(border=True, key="import_report_box"):
        _headline(found)
        if len(found["files"]) > 1:
            st.dataframe(pd.DataFrame(found["files"]), hide_index=True)
        with faults_in_words():
            refused_rows(found["dataset"], found["version"], key="report")
        notes_list(found["warnings"])
        with st.container(horizontal=True):
            mapping_download(found["dataset"], found["version"], key="report")
            if st.button("Close this report", key="report_close"):
                st.session_state.pop("import_report")
                st.rerun()


def _headline(found: dict[str, Any]) -> None:
    sizes = f"{_counted(found['n_users'], 'user')}, {_counted(found['n_items'], 'item')}"
    text = (
        f"**{plain(found['dataset'])}**, version {found['version']}: {found['rows_accepted']:,} of "
        f"{found['rows_read']:,} rows taken, {sizes}."
    )
    if found["rows_rejected"]:
        st.warning(f"{text} {found['rows_rejected']:,} rows were refused.", icon=":material/report:")
    else:
        st.success(f"{text} Nothing was refused.", icon=":material/check_circle:")


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"


def refused_rows(name: str, version: int, *, key: str) -> None:
    """Refused rows of one version: by reason, one by one, and as a file."""
    rejects = DatasetStore(workspace()).rejects(name, version)
    if rejects.empty:
        return
    with st.expander(f"Refused rows: {len(rejects):,}", expanded=key == "report"):
        st.dataframe(by_reason(rejects), hide_index=True)
        st.dataframe(rejects.head(_SHOWN), hide_index=True, height=240 if len(rejects) > 6 else "auto")
        if len(rejects) > _SHOWN:
            st.caption(f"The first {_SHOWN:,} are shown; the file has all {len(rejects):,}.")
        st.download_button(
            "Download all refused rows",
            lambda: safe_csv(rejects),
            f"refused-{name}-v{version}.csv",
            "text/csv",
            key=f"rejects_csv_{key}",
            icon=":material/download:",
            on_click="ignore",
        )


def by_reason(rejects: pd.DataFrame) -> pd.DataFrame:
    """Table, reason (without the cells it speaks of, where they differ), and number of rows; most first."""
    reason = rejects["reason"].astype(str)
    rows = pd.DataFrame(
        {
            "table": rejects["file"].astype(str),
            "bare": reason.str.replace(_QUOTED, "…", regex=True),
            "reason": reason,
        }
    )
    counted = rows.groupby(["table", "bare"], sort=False)["reason"].agg(["size", "nunique", "first"]).reset_index()
    # Where all say the same, nothing has to be left out of it.
    counted["reason"] = counted["first"].where(counted["nunique"] == 1, counted["bare"])
    counted = counted.sort_values("size", ascending=False, kind="stable", ignore_index=True)
    return counted[["table", "reason", "size"]].rename(columns={"size": "rows"})


def mapping_download(name: str, version: int, *, key: str) -> None:
    """A button with the mapping that an import kept, where it kept one."""
    path = DatasetStore(workspace()).folder(name, version) / MAPPING_FILE
    if not path.is_file():
        return
    st.download_button(
        "Download the mapping",
        path.read_text(encoding="utf-8"),
        f"{name}.mapping.yaml",
        "application/yaml",
        key=f"mapping_{key}",
        icon=":material/rule_settings:",
        on_click="ignore",
        help="What each file was read as, to use next time: on this screen, or as `llmrec data import --mapping FILE`.",
    )
