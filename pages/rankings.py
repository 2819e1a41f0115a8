"""Rankings: one user's history, what each model puts on top, and what happens when the history changes."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset
from llmrec_core.feedback import FeedbackStore
from llmrec_core.runs import Run
from llmrec_core.specs.titles import FAMILY_TITLES, SHORT_FAMILY_TITLES
from pages._studio.base import faults_in_words, header, plain, workspace
from pages._studio.pickers import MAX_OPTIONS, ask, item_label, load_dataset, pick_run, pick_user
from pages._studio.policies import side_by_side_part
from pages._studio.similar import similar_part


def what_if(run: Run, user: str, dataset: Dataset, real: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The history as edited, oldest first; None while it is the real one."""
    state = f"whatif:{run.run_id}:{user}"
    edit = st.session_state.setdefault(state, {"added": [], "round": 0})
    entries = real + edit["added"]
    st.markdown("**History**, newest first")
    if entries:
        table = pd.DataFrame(
            {
                "keep": [True] * len(entries),
                "title": [e["title"] or e["item_id"] for e in entries],
                "rating": [e.get("rating") for e in entries],
                "when": pd.to_datetime([e.get("timestamp") for e in entries], unit="s"),
            }
        ).iloc[::-1]
        edited = st.data_editor(
            table,
            key=f"history_{run.run_id}_{user}_{edit['round']}_{len(entries)}",
            hide_index=True,
            disabled=["title", "when"],
            height=min(560, 38 + 35 * len(entries)),
            column_config={
                "keep": st.column_config.CheckboxColumn("In", width=44, help="Untick to see the ranking without it"),
                "title": st.column_config.TextColumn("Item", width=150),
                "rating": st.column_config.NumberColumn("★", width=54, format="%g"),
                "when": st.column_config.DateColumn("When", width=72, format="MMM YYYY"),
            },
        ).iloc[::-1]
    else:
        st.caption("No history: the model sees the profile and the candidates alone.")
        edited = pd.DataFrame({"keep": [], "rating": []})
    add_item(state, dataset, {e["item_id"] for e in entries})
    changed = []
    for entry, keep, rating in zip(entries, edited["keep"], edited["rating"], strict=True):
        if keep:
            given = None if pd.isna(rating) else float(rating)
            changed.append({"item_id": entry["item_id"], "rating": given, "timestamp": entry.get("timestamp")})
    original = [{"item_id": e["item_id"], "rating": e.get("rating"), "timestamp": e.get("timestamp")} for e in real]
    if changed == original:
        return None
    if st.button("Back to the real history", key="whatif_reset", icon=":material/undo:"):
        st.session_state[state] = {"added": [], "round": edit["round"] + 1}
        st.rerun()
    return changed


def add_item(state: str, dataset: Dataset, present: set[str]) -> None:
    with st.popover("Add an item", icon=":material/add:", width="stretch"):
        options = [str(i) for i in dataset.item_ids[:MAX_OPTIONS] if str(i) not in present]
        chosen = st.selectbox(
            "Item",
            options,
            index=None,
            key="whatif_item",
            format_func=lambda i: item_label(dataset, i),
            accept_new_options=dataset.n_items > MAX_OPTIONS,
        )
        rating = None
        if dataset.rating_scale:
            low, high = dataset.rating_scale
            rating = st.slider("Rating", float(low), float(high), float(high), key="whatif_rating")
        if st.button("Add as the newest", key="whatif_add", type="primary", disabled=chosen is None) and chosen:
            dataset.item_idx(chosen)
            title = dataset.item_text(dataset.item_idx(chosen), "title")
            st.session_state[state]["added"].append({"item_id": chosen, "title": title, "rating": rating})
            st.rerun()


def list_of(
    run: Run, user: str, name: str, answer: dict[str, Any], before: dict[str, int] | None, verdicts: dict[str, str]
) -> None:
    """One model's list; the fine-tuned model's carries thumbs."""
    st.markdown(f"**{plain(model_title(run, name))}**")
    for item in answer["items"]:
        with st.container(border=True, gap="xxsmall"):
            with st.container(horizontal=True, wrap=False, gap="xsmall", vertical_alignment="top"):
                st.markdown(f"{item['rank']}\\. **{plain(item['title'] or item['item_id'], 90)}**", width="stretch")
                if name == "model":
                    link = {"run": run.run_id, "user": user, "item": item["item_id"]}
                    st.page_link("pages/explain.py", label="Why?", query_params=link)
            with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
                badges(item)
                words = [f"{item['score']:.3g}"]
                if before is not None:
                    words.append(movement(before.get(item["item_id"]), item["rank"]))
                st.caption(" · ".join(words), width="content")
                if name == "model":
                    thumbs(run, user, item, verdicts)
    if not answer["items"]:
        st.caption("Nothing left to recommend: the user has seen every item.")


def model_title(run: Run, name: str) -> str:
    """ "model" is called by what it is; floors by their own names."""
    if name != "model":
        return SHORT_FAMILY_TITLES.get(name) or FAMILY_TITLES.get(name, name)
    family = run.spec.recommender.family
    return f"{SHORT_FAMILY_TITLES[family]} (this run)" if family in SHORT_FAMILY_TITLES else "Fine-tuned model"


def badges(item: dict[str, Any]) -> None:
    if item["hit"]:
        st.badge("held out", icon=":material/check:", color="green", help="The user really chose it next")
    if item["cold"]:
        st.badge("cold", color="blue", help="Nobody chose it in the training data")
    else:
        st.badge(f"{item['popularity']}×", color="gray", help="How often it was chosen in the training data")


def movement(old: int | None, new: int) -> str:
    if old is None:
        return "new here"
    return "same place" if old == new else f"{'up' if new < old else 'down'} {abs(old - new)}"


def thumbs(run: Run, user: str, item: dict[str, Any], verdicts: dict[str, str]) -> None:
    key = f"thumb:{run.run_id}:{user}:{item['item_id']}"
    known = {"up": 1, "down": 0}.get(verdicts.get(item["item_id"], ""))
    given = st.feedback("thumbs", key=key, default=known)
    if given is not None and given != known:
        FeedbackStore(workspace()).add(
            run.spec.dataset.name,
            run_id=run.run_id,
            model="model",
            user_id=user,
            item_id=item["item_id"],
            rank=item["rank"],
            verdict="up" if given else "down",
        )
        st.toast("Kept.")


def screen() -> None:
    left, middle, right = st.columns([5, 3, 2])
    with left:
        run = pick_run("rankings", "rank")
    if run is None:
        return
    dataset = load_dataset(run.spec.dataset.name, run.spec.dataset.version)
    with middle:
        user = pick_user("rankings", dataset)
    with right:
        k = st.slider("Length of the list", 3, 30, 10, key="rankings_k", persist_state="session")
    if user is None:
        return
    names = ["model", *(b.family for b in run.spec.baselines)]
    with st.spinner("Ranking; the first time the model is loaded …"):
        real = {name: ask("recommend", run_id=run.run_id, user_id=user, k=k, model=name) for name in names}
    base = real["model"]
    history_side, lists_side = st.columns([9, 15], gap="medium")
    with history_side:
        held_out = ", ".join(plain(h["title"] or h["item_id"], 60) for h in base["held_out"])
        st.caption(f"Held out for the test: {held_out or 'nothing for this user'}")
        history = what_if(run, user, dataset, base["history"])
    with lists_side:
        shown = real
        if history is not None:
            st.info("This is a what-if: the lists follow the edited history.", icon=":material/science:")
            with st.spinner("Ranking again …"):
                shown = {
                    name: ask("recommend", run_id=run.run_id, user_id=user, k=k, model=name, history=history)
                    for name in names
                }
        verdicts = FeedbackStore(workspace()).latest(dataset.name, user)
        for column, name in zip(st.columns([6] + [5] * (len(names) - 1)), names, strict=True):
            with column:
                before = {i["item_id"]: i["rank"] for i in real[name]["items"]} if history is not None else None
                list_of(run, user, name, shown[name], before, verdicts)
    side_by_side_part(run, user, dataset, k, history)
    similar_part(run, dataset, names, lambda name: model_title(run, name), k)


header(
    "Rankings", "One user: what they chose, what each model puts on top, and how that moves when the history changes."
)
with faults_in_words():
    screen()
