"""Explain: why this item for this user, as a waterfall, over the words, and in one sentence."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset, safe_csv
from llmrec_core.figures import attention_words_html, waterfall_figure, words_html
from pages._studio.base import FIGURE_TOOLS, faults_in_words, header, linked_choice, plain
from pages._studio.pickers import MAX_OPTIONS, ask, item_label, load_dataset, pick_run, pick_user
from pages._studio.table_card import notes_list
from pages._studio.words import KIND_TITLES, legend_html, spans_html
from pages._studio.written import written_part

_METHODS = {"shap": "SHAP (exact Shapley values)", "attention": "Attention roll-out"}
_USUAL = "usual"
#: Reasons told apart; each doubles the scorings.
_DETAILS = (_USUAL, "6", "8", "10", "12", "14")


def pick_item(dataset: Dataset, run_id: str, user: str) -> str | None:
    """The model's top ten first, then the rest of the catalogue."""
    with st.spinner("Ranking; the first time the model is loaded …"):
        top = [i["item_id"] for i in ask("recommend", run_id=run_id, user_id=user, k=10)["items"]]
    ranks = {item: rank for rank, item in enumerate(top, start=1)}
    rest = [str(i) for i in dataset.item_ids[:MAX_OPTIONS] if str(i) not in ranks]
    return linked_choice(
        "Item",
        top + rest,
        param="item",
        key="explain_item",
        format_func=lambda i: (f"#{ranks[i]} " if i in ranks else "") + item_label(dataset, i),
        default=top[0] if top else None,
        accept_new=dataset.n_items > MAX_OPTIONS,
        help="The ten top-ranked items come first; any other can be asked about too",
        kind="item",
    )


def pick_detail(place: Any) -> int | None:
    """The most reasons that are told apart; None: as many as suit the model."""
    with place:
        chosen = linked_choice(
            "Detail",
            _DETAILS,
            param="detail",
            key="explain_detail",
            format_func=lambda d: "As suits the model" if d == _USUAL else f"{d} reasons ({2 ** int(d):,} scorings)",
            help="The newest history items and the fields are reasons of their own, what is older is one together. "
            "Each reason more doubles the scorings; as suits the model: 12, for decoders 8",
            kind="detail",
        )
    return None if chosen in (None, _USUAL) else int(chosen)


def words(answer: dict[str, Any]) -> None:
    """The prompt, tinted by what moved the score."""
    prompt = answer["prompt"]
    if prompt is None:
        st.caption("This model reads no text, so there are no words to show.")
        return
    text = prompt["text"]
    if answer["method"] == "attention":
        st.caption("The stronger the tint, the more of the attention a word got.")
        st.html(attention_words_html(answer))
    else:
        st.caption("Blue words raised the score, orange ones lowered it; the number behind them says by how much.")
        st.html(words_html(answer))
    with st.popover("Who is who", icon=":material/palette:"):
        st.html(legend_html(list(dict.fromkeys(s["kind"] for s in prompt["spans"]))))
        st.html(spans_html(text, prompt["spans"]))
    dropped = prompt["dropped_history"]
    if dropped:
        st.caption(f"{dropped} older history item{'s' if dropped != 1 else ''} did not fit into the prompt.")


def reasons_table(answer: dict[str, Any]) -> None:
    table = pd.DataFrame(
        [
            {"kind": KIND_TITLES.get(p["kind"], p["kind"]), "reason": p["text"], "value": p["value"]}
            for p in answer["players"]
        ]
    )
    if table.empty:
        return
    table = table.iloc[table["value"].abs().argsort()[::-1]]
    with st.expander("All reasons as a table", icon=":material/table:"):
        st.dataframe(
            table, hide_index=True, column_config={"value": st.column_config.NumberColumn("Value", format="%+.4f")}
        )
        st.download_button(
            "Download CSV", safe_csv(table), "explanation.csv", "text/csv", key="explain_csv", on_click="ignore"
        )


def parts(answer: dict[str, Any]) -> None:
    """The text's part of the score and what each feature of behaviour adds, where both stand side by side."""
    if not answer.get("parts"):
        return
    with st.expander("Text and behaviour: the same score as a sum", icon=":material/add:"):
        st.caption(
            "Numbers of user and item stand beside the text. What an item itself brings (its mean, its popularity) is "
            "no reason above: it is in the score without any reason."
        )
        st.dataframe(
            pd.DataFrame(
                {"part": [part["name"] for part in answer["parts"]], "adds": [p["value"] for p in answer["parts"]]}
            ),
            hide_index=True,
            column_config={"adds": st.column_config.NumberColumn("Adds", format="%+.4f")},
            key="explain_parts",
        )


def show(answer: dict[str, Any]) -> None:
    st.markdown(f"### {plain(answer['title'], 120)}")
    st.info(plain(answer["sentence"], 1500), icon=":material/chat:")
    columns = st.columns(4)
    columns[0].metric("Score", f"{answer['target']:.4f}")
    if answer["method"] == "shap":
        columns[1].metric(
            "Without any reason", f"{answer['base_value']:.4f}", help="The score with every reason hidden"
        )
        columns[2].metric(
            "Additivity gap", f"{answer['additivity_gap']:.1g}", help="|base + sum of reasons − score|; exact is 0"
        )
        columns[3].metric(
            "Scorings", f"{answer['budget']:,}", help="How often the model was asked: every coalition of reasons"
        )
    else:
        columns[1].metric(
            "Outside reasons", f"{answer['additivity_gap']:.0%}", help="Attention on words of the template"
        )
        st.warning(
            "Attention shows what the model looked at. It is a view of the model, not a reason: two models can look at "
            "the same words and decide differently.",
            icon=":material/visibility:",
        )
    notes_list(answer["notes"])
    parts(answer)
    figure_side, words_side = st.columns([3, 2], gap="large")
    with figure_side:
        st.plotly_chart(waterfall_figure(answer), key="waterfall", config=FIGURE_TOOLS)
    with words_side:
        st.markdown("**The words the model read**")
        words(answer)
    reasons_table(answer)


def screen() -> None:
    first, second = st.columns(2)
    with first:
        run = pick_run("explain", "explain")
    if run is None:
        return
    dataset = load_dataset(run.spec.dataset.name, run.spec.dataset.version)
    with second:
        user = pick_user("explain", dataset)
    if user is None:
        return
    third, fourth, fifth = st.columns([2, 1, 1])
    with third:
        item = pick_item(dataset, run.run_id, user)
    with fourth:
        method = linked_choice(
            "Method",
            list(_METHODS),
            param="method",
            key="explain_method",
            format_func=_METHODS.__getitem__,
            kind="method",
        )
    detail = pick_detail(fifth) if method == "shap" else None
    if item is None or method is None:
        return
    with st.spinner(
        "Asking the model with and without each reason …" if method == "shap" else "Reading the attention …"
    ):
        answer = ask("explain", run_id=run.run_id, user_id=user, item_id=item, method=method, max_players=detail)
    show(answer)
    written_part(run, user, item)


header("Explain", "One user, one item: which parts of the history and of the item moved the score.")
with faults_in_words():
    screen()
