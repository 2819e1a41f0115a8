"""How numbers and times are read, where the guess about them should be another one."""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence

import streamlit as st

from llmrec_core.data import ImportGuess
from pages._studio.base import label
from pages._studio.corrections import controlled_select, entries, say, unsay
from pages._studio.questions import answers

_AUTO = "auto"
_CHOICES = {
    "zero": (
        "A rating of 0",
        {_AUTO: "as found", "rating": "is the lowest rating", "unrated": "means that there is no rating"},
    ),
    "decimal": ("Decimal mark", {_AUTO: "as found", "point": "point: 3.5", "comma": "comma: 3,5"}),
    "day_first": ("Dates with slashes", {_AUTO: "as found", "yes": "day first: 31/01/2024", "no": "month first"}),
    "time_unit": (
        "Times that are numbers",
        {
            _AUTO: "as found",
            "s": "seconds since 1970",
            "ms": "milliseconds since 1970",
            "us": "microseconds since 1970",
            "ns": "nanoseconds since 1970",
            "excel": "days as Excel counts them",
            "order": "an order without a calendar",
        },
    ),
    "missing_time": (
        "Rows without a time",
        {
            "refuse": "are refused",
            "keep-order": "take the time of the row before",
            "drop-all": "are why no row keeps a time",
        },
    ),
}
_UTC = "UTC"


def value_settings(guesses: Sequence[ImportGuess]) -> None:
    """A control for each option of values that no question above asks."""
    asked = {question.id for guess in guesses for question in guess.questions}
    now = answers()
    columns = st.columns(2)
    place = 0
    for name, (title, words) in _CHOICES.items():
        if name not in asked:
            first = next(iter(words))
            _choice(columns[place % 2], name, title, words, now.get(name, first), first)
            place += 1
    zones = [_UTC, *sorted(zoneinfo.available_timezones() - {_UTC})]
    controlled_select(
        columns[place % 2], "Times without a zone are of", zones, now.get("timezone", _UTC), key="set_timezone",
        note=lambda zone: say("timezone", zone),
    )  # fmt: skip
    _scale(columns[(place + 1) % 2], now.get("scale", ""))
    events = _events(guesses)
    if events:
        st.caption("What an event counts as a rating; empty: every event is one interaction without a rating.")
        for column, event in zip(st.columns(4) * 3, events, strict=False):
            _event(column, event)


def _choice(
    place: st.delta_generator.DeltaGenerator, name: str, title: str, words: dict[str, str], now: str, first: str
) -> None:
    def note(value: str) -> None:
        if value == first:
            unsay(name)
        else:
            say(name, value)

    controlled_select(
        place, title, list(words), now, key=f"set_{name}", note=note, format_func=lambda word: words.get(word, word)
    )


def _scale(place: st.delta_generator.DeltaGenerator, now: str) -> None:
    st.session_state["set_scale"] = now

    def changed() -> None:
        value = st.session_state["set_scale"].strip()
        if value:
            say("scale", value)
        else:
            unsay("scale")

    place.text_input(
        "Scale of the ratings", key="set_scale", on_change=changed, placeholder="as found, or 1..5",
        help="Lowest and highest rating that one could give, also where nobody gave them.",
    )  # fmt: skip


def _events(guesses: Sequence[ImportGuess]) -> list[str]:
    """Names of events in the first rows, most frequent first."""
    found: dict[str, int] = {}
    for guess in guesses:
        column = guess.roles.get("event")
        if column is not None and guess.sample is not None:
            for entry in guess.sample.column(column).value_counts().to_pylist():
                word = str(entry["values"]).strip().lower()
                found[word] = found.get(word, 0) + int(entry["counts"])
    return sorted((word for word in found if word), key=lambda word: -found[word])[:12]


def _event(place: st.delta_generator.DeltaGenerator, event: str) -> None:
    left, key = f"event_weight:{event}", f"weight_{event}"
    said = dict(entry.split("=", 1) for entry in entries())
    try:
        st.session_state[key] = float(said[left]) if left in said else None
    except ValueError:
        st.session_state[key] = None

    def changed() -> None:
        value = st.session_state[key]
        if value is None:
            unsay(left)
        else:
            say(left, f"{value:g}")

    place.number_input(label(event, 30), key=key, on_change=changed, value=None, min_value=-1e5, max_value=1e5)
