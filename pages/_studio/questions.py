"""What the data itself does not say, asked in words before an import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from llmrec_core.data import ImportGuess, Question
from pages._studio.base import plain
from pages._studio.corrections import entries, say, unsay

#: What an answer means, by question and option; options of other questions speak for themselves.
_WORDS: dict[str, dict[str, str]] = {
    "zero": {
        "rating": "the lowest rating: the person did not like it",
        "unrated": "no rating: the person used it without rating it",
    },
    "day_first": {"yes": "the day comes first: 31/01/2024", "no": "the month comes first: 01/31/2024"},
    "decimal": {
        "comma": "the comma is a decimal mark: 3,500 is three and a half",
        "point": "the comma parts thousands",
    },
    "missing_time": {
        "refuse": "refuse the rows without a time",
        "keep-order": "keep them, at the time of the row before",
        "drop-all": "import without times; the order in the file counts",
    },
    "duplicates": {
        "keep": "keep every row",
        "last": "the last one counts",
        "mean": "one row with the mean rating",
        "count": "one row, rated by how often it stands there",
    },
    "time_unit": {
        "s": "seconds since 1970",
        "ms": "milliseconds since 1970",
        "us": "microseconds since 1970",
        "ns": "nanoseconds since 1970",
        "excel": "days as Excel counts them",
        "order": "an order without a calendar",
    },
}
_SHORT = {
    "zero": "what a rating of 0 means",
    "missing": "whether a number far from the other ratings is one",
    "day_first": "whether the day or the month comes first",
    "decimal": "what the comma in numbers means",
    "missing_time": "what to do with rows without a time",
    "time_unit": "the unit of the times",
}
_LATER = "import_asked_later"
#: Always offered: whether rows repeat is known only after the last one was read.
_DUPLICATES = ("keep", "last", "mean", "count")


def ask_questions(guesses: Sequence[ImportGuess]) -> list[str]:
    """Radio buttons for what only a person can know; returns what is still open, in words."""
    questions = {question.id: question for guess in guesses for question in guess.questions} | _later()
    answered = answers()
    still_open = []
    if questions:
        st.markdown("**Questions about these files**")
    for name, question in questions.items():
        text = question.text[:1].upper() + question.text[1:]
        _radio(name, plain(text, 600), list(question.options), answered.get(name) or question.default)
        if name not in answered and question.default is None:
            still_open.append(_SHORT.get(name.partition(":")[0], name.replace("_", " ")))
    if "duplicates" not in questions and any(guess.kind == "interactions" for guess in guesses):
        text = "When the same user and item stand in more than one row"
        _radio("duplicates", text, list(_DUPLICATES), answered.get("duplicates", "keep"))
    return still_open


def ask_later(question: Question) -> None:
    """Adds a question that only the whole data brought up."""
    st.session_state[_LATER] = {**_later(), question.id: question}


def _later() -> dict[str, Question]:
    found: dict[str, Question] = st.session_state.get(_LATER, {})
    return found


def forget_later() -> None:
    st.session_state.pop(_LATER, None)


def answers() -> dict[str, str]:
    """What was said so far by option, as in "zero" or "missing:ratings.csv"; the last word counts."""
    return {left: right for left, _, right in (entry.partition("=") for entry in entries())}


def _radio(name: str, text: str, options: list[str], now: str | None) -> None:
    key = f"ask_{name}"
    st.session_state[key] = now if now in options else None
    words = _WORDS.get(name, {})
    if name.startswith("missing:"):
        words = {option: f"{option} says that there is no rating" for option in options} | {"none": "it is a rating"}

    def changed() -> None:
        chosen: Any = st.session_state[key]
        if chosen is None:
            unsay(name)
        else:
            say(name, str(chosen))

    st.radio(
        text, options, index=None, key=key, on_change=changed, format_func=lambda option: words.get(option, option)
    )
