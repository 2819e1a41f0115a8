"""Similar items: what each recommender of a run holds to be like a chosen item."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset
from llmrec_core.errors import InputError
from llmrec_core.runs import Run
from pages._studio.base import plain
from pages._studio.pickers import MAX_OPTIONS, ask, item_label


def similar_part(run: Run, dataset: Dataset, names: list[str], title: Callable[[str], str], k: int) -> None:
    """A picker and, once an item is chosen, a table for each recommender that has item vectors."""
    st.subheader("Similar items", anchor=False)
    chosen = st.selectbox(
        "Item to start from",
        [str(i) for i in dataset.item_ids[:MAX_OPTIONS]],
        index=None,
        key="similar_item",
        placeholder="Choose an item",
        format_func=lambda i: item_label(dataset, i),
        accept_new_options=dataset.n_items > MAX_OPTIONS,
        help="Works for recommenders that place items in a space: two towers, sequence models, content-kNN, factors",
        persist_state="session",
    )
    if not chosen:
        return
    answers, silent = {}, []
    with st.spinner("Comparing …"):
        for name in names:
            try:
                answers[name] = ask("similar", run_id=run.run_id, item_id=chosen, k=k, model=name)["items"]
            except InputError as error:
                if chosen not in dataset.item_index:
                    raise
                silent.append(f"{title(name)}: {error.what}")
    for column, (name, items) in zip(st.columns(max(1, len(answers))), answers.items(), strict=False):
        with column:
            st.markdown(f"**{plain(title(name))}**")
            table = pd.DataFrame(
                {
                    "title": [i["title"] or i["item_id"] for i in items],
                    "cosine": [i["similarity"] for i in items],
                    "chosen": ["new" if i["cold"] else f"{i['popularity']}×" for i in items],
                }
            )
            st.dataframe(
                table,
                hide_index=True,
                key=f"similar_{name}",
                column_config={
                    "title": st.column_config.TextColumn("Item"),
                    "cosine": st.column_config.NumberColumn("Cosine", format="%.3f", help="1: the same direction"),
                    "chosen": st.column_config.TextColumn("Chosen", help="How often in the training data"),
                },
            )
    if not answers:
        st.info(
            "No recommender of this run places items in a space, so none can say which are alike. Runs of the presets "
            "Nearest items, What comes next and Rank everything can.",
            icon=":material/info:",
        )
        return
    for line in silent:
        st.caption(plain(line, 300))
