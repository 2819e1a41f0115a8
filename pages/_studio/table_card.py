"""One table before its import: what it was taken for and why, over a preview; every guess can be changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from llmrec_core.data import KINDS, LAYOUTS, ROLES_OF, ImportGuess
from pages._studio.base import label, plain
from pages._studio.corrections import controlled_select, file_option, said, say, unsay

KIND_WORDS = {
    "interactions": "interactions (who chose what)",
    "items": "items (the catalogue)",
    "users": "users",
    "impressions": "impressions (what was shown, what was clicked)",
    "knowledge": "facts about things (head, relation, tail)",
    "links": "links from items to things in the facts",
    "instructions": "instruction records (instruction, input, output)",
    "vectors": "vectors of items",
}
LAYOUT_WORDS = {
    "rows": "one row for each event or thing",
    "matrix": "users in rows, items in columns",
    "histories": "one row for each user, with a list of items",
    "impressions": "one row for each list that was shown",
    "instructions": "one text in each record",
    "knowledge": "head, relation, tail",
    "links": "item and thing",
    "vectors": "an id and numbers",
    "tags": "one row for each tag that somebody gave",
}
ROLE_WORDS = {
    "user_id": "User",
    "item_id": "Item",
    "rating": "Rating",
    "timestamp": "Time",
    "title": "Title",
    "description": "Description",
    "category": "Category",
    "event": "Kind of event",
    "price": "Price",
    "image": "Image",
    "impression_id": "List shown",
    "history": "History",
    "history_ratings": "Ratings of the history",
    "history_times": "Times of the history",
    "history_labels": "Labels of the history",
    "candidates": "Candidates",
    "labels": "Labels",
    "label": "Label",
    "position": "Position",
}
#: Layouts that turn columns of a file into other rows, and the columns they ask for.
ROLES_OF_LAYOUT: dict[str, tuple[str, ...]] = {
    "matrix": ("user_id",),
    "histories": ("user_id", "history", "history_ratings", "history_times"),
    "impressions": ("user_id", "timestamp", "history", "history_labels", "candidates", "labels", "impression_id"),
    "instructions": ("instruction", "input", "output"),
}
PART_WORDS = {"": "(choose)", "train": "training", "valid": "validation", "test": "test"}
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar |", "::": "double colon ::", " ": "space"}
_ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "big5", "shift_jis", "euc-kr")
_NONE = "(none)"
_AS_FOUND = {"": "as found"}
_PAIRS = _AS_FOUND | {
    "no": "an item and nothing else",
    "rating": "item and rating, as in p1:4",
    "time": "item and time",
    "rating:time": "item, rating and time",
    "time:rating": "item, time and rating",
}
_REPAIRS: dict[str, tuple[str, dict[str, str]]] = {
    "encoding": ("Encoding", _AS_FOUND | {encoding: encoding for encoding in _ENCODINGS}),
    "separator": ("Columns are separated by", _AS_FOUND | _SEPARATORS),
    "layout": ("Laid out as", _AS_FOUND | LAYOUT_WORDS),
}
#: Formats that hold several tables, and what one is called there.
_CONTAINERS = {"excel": "sheet", "sqlite": "table", "duckdb": "table", "postgresql": "table"}
_FORMAT_WORDS = {
    "text": "text in columns",
    "jsonl": "JSON lines",
    "json": "JSON",
    "excel": "Excel",
    "parquet": "Parquet",
}
_PREVIEW_ROWS = 6
_NAMES_HELP = "A number, where titles or notes stand above the names of the columns"
#: How the command line says otherwise, at the end of a note; here the controls do.
_OPTION = re.compile(r" \([a-z_]+(?::[^()=]*)?=[^()]*\)")


def _note(option: str, table: str) -> Callable[[Any], None]:
    return lambda value: say(file_option(option, table), str(value))


def table_card(guess: ImportGuess, key: str, *, several: bool, parts: bool, beside: Sequence[ImportGuess] = ()) -> None:
    """A card with the guess about one table.

    Args:
        beside: further tables that the same rows give, such as the impressions behind clicks.
        key: makes the names of this card's widgets its own.
        several: other tables are there, so that this one may be left out.
        parts: the import may come split; offers which part this table is.
    """
    with st.container(border=True, key=f"card_{key}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(guess.file)}**", width="content")
            n_columns = len(guess.file_columns or guess.columns)
            facts = [_FORMAT_WORDS.get(guess.format, guess.format), f"{n_columns:,} column{'s' * (n_columns != 1)}"]
            st.caption(plain(" · ".join(facts)), width="content")
            if several:
                st.space("stretch")
                _leave_out(guess.file, key, False)
        _what_it_is(guess, key, parts)
        _how_it_is_read(guess, key)
        _preview(guess)
        _roles(guess, key)
        notes_list([*guess.notes, *(note for other in beside for note in other.notes)])
        for other in beside:
            with st.expander(f"The same rows also give {KIND_WORDS.get(other.kind, other.kind)}"):
                _preview(other)


def notes_list(notes: Iterable[str]) -> None:
    """What was found out about a table, each thing said once, close together."""
    lines = [f":material/info: {plain(_OPTION.sub('', note), 500)}" for note in dict.fromkeys(notes)]
    if lines:
        st.caption("  \n".join(lines))


def left_out_card(table: str, key: str, *, out: bool = True) -> None:
    """One line for a table that stays out, so that it can come back; or for one that cannot be read."""
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"card_{key}"):
        st.markdown(plain(table), width="content")
        st.caption("is left out" if out else "cannot be read as things stand", width="content")
        st.space("stretch")
        _leave_out(table, key, out)


def repairs(table: str, key: str) -> None:
    """Controls for a table that cannot be read as it was guessed, since it has no card of its own then."""
    with st.container(horizontal=True, vertical_alignment="bottom", key=f"repairs_{key}"):
        for option, (title, words) in _REPAIRS.items():
            left = file_option(option, table)
            controlled_select(
                st, title, list(words), said().get(left, ""), key=f"repair_{option}_{key}",
                note=_repair_note(left), format_func=partial(_in_words, words),
            )  # fmt: skip
        _text(st, "Column names are in row", "header_row", table, f"repair_{key}", _NAMES_HELP)


def _in_words(words: dict[str, str], word: str) -> str:
    return words.get(word, word)


def _repair_note(left: str) -> Callable[[Any], None]:
    return lambda value: say(left, str(value)) if value else unsay(left)


def _leave_out(table: str, key: str, now: bool) -> None:
    name = f"leave_{key}"
    st.session_state[name] = now

    def changed() -> None:
        left = file_option("leave_out", table)
        if st.session_state[name]:
            say(left, "yes")
        else:
            say(left, "no")

    st.toggle("Leave out", key=name, on_change=changed, width="content")


def _what_it_is(guess: ImportGuess, key: str, parts: bool) -> None:
    columns = st.columns(3)
    table = guess.file
    kinds = [kind for kind in KINDS if kind in KIND_WORDS]
    guessed = columns[0]
    controlled_select(
        guessed,
        "This table holds",
        kinds,
        guess.kind,
        key=f"kind_{key}",
        note=_note("kind", table),
        format_func=lambda kind: KIND_WORDS.get(kind, kind),
    )
    _why(guessed, guess, "kind")
    controlled_select(
        columns[1],
        "Laid out as",
        list(LAYOUTS),
        guess.layout,
        key=f"layout_{key}",
        note=_note("layout", table),
        format_func=lambda layout: LAYOUT_WORDS.get(layout, layout),
    )
    _why(columns[1], guess, "layout")
    if parts and guess.kind == "interactions":
        controlled_select(
            columns[2],
            "Part of a split",
            list(PART_WORDS),
            guess.part or "",
            key=f"part_{key}",
            note=lambda part: say(file_option("part", table), part) if part else _no_part(table),
            format_func=PART_WORDS.__getitem__,
            help="Data that comes already split keeps its split: training uses it unless told otherwise.",
        )
    elif guess.layout == "matrix":
        _text(columns[2], "Mark of an empty cell", "missing", table, key, "Such as 99, or none; blank cells are empty")
    elif guess.layout == "histories":
        left = file_option("pairs", table)
        controlled_select(
            columns[2], "Each value of a list is", list(_PAIRS), said().get(left, ""), key=f"pairs_{key}",
            note=_repair_note(left), format_func=partial(_in_words, _PAIRS),
        )  # fmt: skip


def _no_part(table: str) -> None:
    unsay(file_option("part", table))


def _how_it_is_read(guess: ImportGuess, key: str) -> None:
    """Encoding, separator and header of a text file, sheet and header of a workbook; others carry all that in them."""
    table = guess.file
    if guess.encoding is None and guess.format not in _CONTAINERS:
        return
    columns = iter(st.columns(4))
    if guess.encoding is not None:
        place = next(columns)
        controlled_select(
            place, "Encoding", [guess.encoding, *_ENCODINGS], guess.encoding, key=f"encoding_{key}",
            note=_note("encoding", table),
        )  # fmt: skip
        _why(place, guess, "encoding")
    if guess.separator is not None:
        place = next(columns)
        controlled_select(
            place, "Columns are separated by", [guess.separator, *_SEPARATORS], guess.separator,
            key=f"separator_{key}", note=_note("separator", table), format_func=lambda s: _SEPARATORS.get(s, repr(s)),
        )  # fmt: skip
        _why(place, guess, "separator")
    if guess.format in _CONTAINERS:
        container = table.rpartition("/")[0] or table
        word = _CONTAINERS[guess.format]
        _text(
            next(columns), f"Only this {word}", "table", container, key, f"Any {word} of the file; empty: all with data"
        )
    if guess.separator is not None or guess.format == "excel":
        place = next(columns)
        controlled_select(
            place, "First row", ["yes", "no"], "yes" if guess.header else "no", key=f"header_{key}",
            note=_note("header", table), format_func={"yes": "column names", "no": "data"}.__getitem__,
        )  # fmt: skip
        _why(place, guess, "header")
        _text(next(columns), "Column names are in row", "header_row", table, key, _NAMES_HELP)


def _why(place: Any, guess: ImportGuess, what: str) -> None:
    reason = _reason(guess, what)
    if reason:
        place.caption(plain(reason, 160))


def _text(place: Any, title: str, option: str, table: str, key: str, help: str) -> None:
    name, left = f"{option}_{key}", file_option(option, table)
    st.session_state[name] = said().get(left, "")

    def changed() -> None:
        value = st.session_state[name].strip()
        if value:
            say(left, value)
        else:
            unsay(left)

    place.text_input(title, key=name, on_change=changed, help=help, placeholder="as found")


def _preview(guess: ImportGuess) -> None:
    """The first rows; a column that plays a role says so in its head."""
    role_of = {column: ROLE_WORDS.get(role, role) for role, column in guess.roles.items()}
    shown = guess.preview.head(_PREVIEW_ROWS).astype(str)
    config = {column: st.column_config.TextColumn(f"{label(column)}  ▸ {role}") for column, role in role_of.items()}
    st.dataframe(shown, hide_index=True, column_config=config, height="auto")


def _roles(guess: ImportGuess, key: str) -> None:
    """A selectbox for each role, with the reason of the guess under it."""
    now, options = guess.roles, [_NONE, *guess.columns]
    wanted: Sequence[str] = ROLES_OF[guess.kind]
    if guess.layout in ROLES_OF_LAYOUT or guess.origin:
        now, options = guess.origin, [_NONE, *guess.file_columns]
        wanted = list(dict.fromkeys([*ROLES_OF_LAYOUT.get(guess.layout, ()), *guess.origin]))
    for start in range(0, len(wanted), 4):
        columns = st.columns(4)
        for column, role in zip(columns, wanted[start : start + 4], strict=False):
            controlled_select(
                column,
                ROLE_WORDS.get(role, role.replace("_", " ").capitalize()),
                options,
                now.get(role, _NONE),
                key=f"role_{role}_{key}",
                note=_role_note(role, guess.file),
                format_func=label,
            )
            _why(column, guess, role)


def _role_note(role: str, table: str) -> Callable[[Any], None]:
    return lambda column: say(file_option(role, table), "" if column == _NONE else str(column))


def _reason(guess: ImportGuess, what: str) -> str | None:
    reason = guess.reasons.get(what)
    if reason == "you said so" and file_option(what, guess.file) not in said():
        return "the mapping says so"
    return reason
