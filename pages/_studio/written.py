"""A text that the model wrote about an item, and which fields of the item stand behind its words."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.runs import Run
from llmrec_core.specs import GenerativeSpec, ranker_of
from pages._studio.base import plain
from pages._studio.pickers import ask
from pages._studio.words import spans_html

_KINDS = {"title": "title", "category": "category", "number": "number", "name": "name"}


def written_part(run: Run, user: str, item: str) -> None:
    """Writes when asked, for runs whose model writes; shows nothing for the others."""
    if not isinstance(ranker_of(run.spec.recommender), GenerativeSpec):
        return
    st.subheader("A text for this user", anchor=False)
    state = f"written:{run.run_id}:{user}:{item}"
    seed = st.session_state.get(state)
    st.button(
        "Write a text" if seed is None else "Write another",
        key="write_text",
        icon=":material/edit_note:",
        help="The model writes from the item's fields and facts; what nothing backs is put aside",
        on_click=_next_seed,
        args=(state,),
    )
    if seed is None:
        return
    with st.spinner("Writing and checking …"):
        answer = ask("say", run_id=run.run_id, user_id=user, item_id=item, seed=seed)
    show_written(answer)


def _next_seed(state: str) -> None:
    st.session_state[state] = st.session_state.get(state, -1) + 1


def show_written(answer: dict[str, Any]) -> None:
    """The text with its claims tinted, what backs each, and what was put aside."""
    st.html(spans_html(answer["text"], [_span(claim) for claim in answer["claims"]]))
    if answer["source"] == "fields":
        st.caption(
            "The model wrote nothing that could stand, so this plain sentence is made of the item's fields instead."
        )
    else:
        st.caption(
            "Titles, categories, numbers and names are checked against the item's fields and the user's history; "
            "opinions, and what the words say of each other, are not."
        )
    if answer["claims"]:
        table = pd.DataFrame(
            {
                "says": [claim["text"] for claim in answer["claims"]],
                "kind": [_KINDS[claim["kind"]] for claim in answer["claims"]],
                "backed by": [", ".join(claim["backed_by"]) for claim in answer["claims"]],
            }
        )
        st.dataframe(table, hide_index=True, key="written_claims")
    if answer["rejected"]:
        with st.expander(f"Put aside: {len(answer['rejected'])}", icon=":material/block:"):
            for attempt in answer["rejected"]:
                wrong = ", ".join(claim["text"] for claim in attempt["unbacked"])
                nothing = "It does not name the item." if attempt["text"] else "Nothing was written."
                st.caption(f"Nothing backs: {plain(wrong, 300)}" if wrong else nothing)
                if attempt["text"]:
                    st.markdown(f"> {plain(attempt['text'], 1000)}")
    with st.expander("What the model read", icon=":material/menu_book:"):
        st.code(answer["prompt"], language=None, wrap_lines=True)


def _span(claim: dict[str, Any]) -> dict[str, Any]:
    own = [source for source in claim["backed_by"] if source != "history"]
    return {
        "start": claim["start"],
        "end": claim["end"],
        "kind": "candidate" if own else "history",
        "ref": ", ".join(claim["backed_by"]),
    }
