"""Privacy before an import: pseudonyms for users, and an offer to mask personal data found in the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import streamlit as st

from llmrec_core.data import ImportGuess
from llmrec_core.data.privacy import WHOLE_CELL, PersonalFinding, find_personal
from pages._studio.base import label, plain
from pages._studio.corrections import entries, say, unsay

About = Literal["users", "items", "interactions"]


def privacy_switches(guesses: Sequence[ImportGuess]) -> None:
    """Switches over the whole import; each is a correction as any other."""
    said = dict(entry.split("=", 1) for entry in entries())
    name = "import_pseudonymise"
    st.session_state[name] = said.get("pseudonymise") == "yes"
    st.toggle(
        "Replace user ids by pseudonyms",
        key=name,
        on_change=lambda: say("pseudonymise", "yes" if st.session_state[name] else "no"),
        help="Made with a key that stays in this workspace: the same person has the same pseudonym in every version.",
    )
    for finding in personal_ids(guesses):
        what = plain(finding.sentence.partition(": ")[2])
        st.caption(f":material/warning: The user ids tell who people are: {what}. Pseudonyms hide them.")
    findings = personal_findings(guesses)
    if not findings:
        st.caption("No e-mail addresses, phone numbers or names were found in the text of the first rows.")
        return
    st.caption("Found in the text of the first rows; a switch masks them in every row.")
    for column, found in findings.items():
        _mask_switch(column, found, said.get(f"mask:{column}"))


def personal_ids(guesses: Sequence[ImportGuess]) -> list[PersonalFinding]:
    """What the user ids of the first table with any give away."""
    for guess in guesses:
        column = guess.roles.get("user_id")
        if column is not None and guess.sample is not None:
            return find_personal({column: guess.sample.column(column)}, about="users")
    return []


def personal_findings(guesses: Sequence[ImportGuess]) -> dict[str, list[PersonalFinding]]:
    """Column -> what was found there. Ids are left to pseudonyms."""
    found: dict[str, list[PersonalFinding]] = {}
    for guess in guesses:
        ids = {guess.roles.get("user_id"), guess.roles.get("item_id"), guess.roles.get("rating")}
        if guess.sample is None:
            continue
        columns = {c: guess.sample.column(c) for c in guess.sample.column_names if c not in ids}
        about: About = "users" if guess.kind == "users" else "items" if guess.kind == "items" else "interactions"
        for finding in find_personal(columns, about=about):
            found.setdefault(finding.column, []).append(finding)
    return found


def _mask_switch(column: str, found: Sequence[PersonalFinding], now: str | None) -> None:
    key = f"mask_{column}"
    st.session_state[key] = bool(now)
    # A column that is nothing but names has to go as a whole: a name that no list knows would stay readable.
    kinds = [WHOLE_CELL] if any(finding.whole_cells for finding in found) else [finding.kind for finding in found]

    def changed() -> None:
        if st.session_state[key]:
            say(f"mask:{column}", "+".join(kinds))
        else:
            unsay(f"mask:{column}")

    examples = ", ".join(label(example, 30) for finding in found for example in finding.examples[:1])
    st.toggle(f"Mask personal data in {plain(column, 60)}", key=key, on_change=changed)
    words = "; ".join(finding.sentence.partition(": ")[2] or finding.sentence for finding in found)
    st.caption(f"{plain(words)}, such as {plain(examples)}")
