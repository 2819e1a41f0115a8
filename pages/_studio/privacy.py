"""Privacy on the screen: personal data in a dataset, forgetting a user, and the audit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.data.privacy import (
    PersonalFinding,
    min_group_users,
    pending_removals,
    read_audit,
    set_min_group_users,
)
from llmrec_core.data.privacy.dataset import personal_in_dataset
from llmrec_core.errors import LLMRecError
from llmrec_core.forgetting import ForgetReport, forget_user
from llmrec_core.workspace import Workspace
from pages._studio.base import faults_in_words, label, plain, show_error, workspace


def show_privacy(dataset: Dataset) -> None:
    """What the texts of a dataset tell about persons, and the way out for one of them."""
    left, right = st.columns(2, gap="large")
    with left:
        _findings(dataset)
    with right:
        _forget(dataset.name)


@st.cache_data(max_entries=8, show_spinner="Looking through every text …")
def _personal(root: str, name: str, version: int, fingerprint: str) -> list[tuple[str, PersonalFinding]]:
    return personal_in_dataset(DatasetStore(Workspace.open(root)), name, version)


def _findings(dataset: Dataset) -> None:
    st.markdown("**Personal data in texts**")
    st.caption(
        "E-mail addresses, phone numbers, names, network addresses, card and identity numbers. Names are guesses. "
        "Nothing is masked unasked."
    )
    state = f"personal_{dataset.name}_{dataset.version}"
    if st.button("Look through every text", key="look_personal", icon=":material/search:"):
        st.session_state[state] = True
    if not st.session_state.get(state):
        return
    found = _personal(str(workspace().root), dataset.name, dataset.version, dataset.fingerprint)
    if not found:
        st.success("None was found in the text columns.", icon=":material/check_circle:")
        return
    rows = [
        {
            "Table": table,
            "Column": label(one.column),
            "What": one.kind.replace("_", " "),
            "Cells": one.n_cells,
            "Share": 100 * one.share,
            "For example": label("; ".join(one.examples)),
        }
        for table, one in found
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, column_config={"Share": st.column_config.NumberColumn(format="%.1f %%")}
    )
    st.caption(
        "To mask a column, import the files again with its switch on, or replace user ids by pseudonyms there: that "
        "makes a new version. Forget the old versions by deleting the dataset."
    )


def _forget(name: str) -> None:
    st.markdown("**Forget a user**")
    st.caption(
        "Takes a person out of every version of this dataset and out of runs, logs, feedback, uploads and kept tokens. "
        "Models that learnt from them are flagged: only training again takes that out."
    )
    done = st.session_state.get("forget_done")
    if done is not None and done.dataset == name:
        _result(done)
    round_ = st.session_state.setdefault("forget_round", 0)
    user = st.text_input(
        "User id", key=f"forget_user_{round_}", placeholder="as in the data, or as before pseudonyms", max_chars=512
    )
    if st.button("Show what would be touched", key="forget_look", icon=":material/visibility:", disabled=not user):
        st.session_state.pop("forget_done", None)
        with faults_in_words(), st.spinner("Looking through versions, runs and logs …"):
            st.session_state["forget_seen"] = (user, forget_user(workspace(), name, user, dry_run=True))
    seen = st.session_state.get("forget_seen")
    if seen is None or seen[0] != user or seen[1].dataset != name:
        return
    _inventory(seen[1])
    if seen[1].found or pending_removals(workspace(), name):
        _confirm(name, user, round_)


def _inventory(report: ForgetReport) -> None:
    if report.already and not report.found:
        st.info("This user was forgotten before; nothing is left of them.", icon=":material/check_circle:")
        return
    st.markdown("\n".join(f"- {plain(line)}" for line in report.lines()))


def _confirm(name: str, user: str, round_: int) -> None:
    typed = st.text_input("Type the id again to confirm", key=f"forget_again_{round_}", max_chars=512)
    st.caption("This cannot be undone.")
    if not st.button(
        "Forget this user", key="forget_now", type="primary", icon=":material/delete_forever:", disabled=typed != user
    ):
        return
    with st.status("Forgetting …", expanded=True) as box:
        try:
            report = forget_user(workspace(), name, user, progress=lambda words: box.update(label=label(words, 120)))
        except LLMRecError as error:
            box.update(label="It is not finished", state="error")
            show_error(error)
            return
    st.session_state.pop("forget_seen", None)
    # The fields are made anew, so that the id does not stay on the screen.
    st.session_state["forget_round"] = round_ + 1
    st.session_state["forget_done"] = report
    st.rerun()


def _result(report: ForgetReport) -> None:
    counts = report.counts
    st.success(
        f"Forgotten: {counts['interactions']:,} interactions in {counts['versions']} "
        f"version{'s' * (counts['versions'] != 1)}, traces in {counts['runs']} run{'s' * (counts['runs'] != 1)}. "
        f"In the audit the person is `{report.person}`.",
        icon=":material/check_circle:",
    )
    if report.flagged:
        st.warning(
            f"Trained on this person, to be trained again: {plain(', '.join(report.flagged), 600)}",
            icon=":material/flag:",
        )
    if report.elsewhere:
        st.warning(
            "The same id also stands elsewhere, where it may be another person: "
            f"{plain(places_in_words(report.elsewhere), 600)}. To forget it there too, open that dataset.",
            icon=":material/warning:",
        )


def places_in_words(paths: Sequence[str]) -> str:
    """Files of the workspace in words: those of a dataset by its name and version."""
    found = []
    for path in paths:
        area, _, rest = path.partition("/")
        name, _, rest = rest.partition("/")
        version = rest.partition("/")[0]
        stored = area == "datasets" and version[:1] == "v" and version[1:].isdigit()
        found.append(f"dataset {name}, version {version[1:]}" if stored else path)
    return "; ".join(dict.fromkeys(found))


def show_audit() -> None:
    """The privacy part of Settings: the smallest group shown, and what was done to personal data, newest first."""
    st.subheader("Privacy", anchor=False)
    space = workspace()
    now = min_group_users(space)
    chosen = st.number_input(
        "Smallest group of users shown with values",
        1,
        1000,
        now,
        key="min_group",
        width=320,
        help="Smaller ones are shown as “fewer than …”. A run may ask for more (evaluation.min_group_users), not less.",
    )
    if chosen != now:
        set_min_group_users(space, int(chosen))
    audit = read_audit(space)
    for removal in pending_removals(space):
        st.warning(
            f"A removal from {plain(removal.dataset)} was cut short. Forget the same user there again; until then no "
            "run starts on it.",
            icon=":material/warning:",
        )
    if audit.broken_at is not None:
        st.error(
            f"Line {audit.broken_at} of the audit was changed, or one before it is missing.", icon=":material/error:"
        )
    if not audit.lines:
        st.caption("Nothing was done to personal data yet. A user is forgotten on Data, under Privacy.")
        return
    rows = [
        {
            "When (UTC)": datetime.fromtimestamp(line.t, UTC).replace(tzinfo=None),
            "What": line.action,
            "Dataset": label(line.dataset),
            "Person": line.person,
            "Counts": ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in line.counts.items() if n),
            "Note": label(line.note, 200),
        }
        for line in reversed(audit.lines)
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        key="audit_table",
        column_config={"When (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")},
    )
    if audit.broken_at is None:
        st.caption(
            f"{len(rows):,} in all, each chained to the one before: the record is whole. Persons are keyed hashes."
        )
