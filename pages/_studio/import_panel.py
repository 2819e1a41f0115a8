"""Bringing data in: choose it, see what it was taken for, correct that, answer what is open, import."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import streamlit as st

from llmrec_core.data import NEEDED_OF, DatasetStore, ImportGuess, UnansweredError, guess_files, import_files, part_hint
from llmrec_core.data.mapping import (
    MAPPING_FILE,
    ImportMapping,
    dump_mapping,
    fitted,
    load_mapping,
    mapping_of,
    names_file,
    read_mapping,
)
from llmrec_core.errors import LLMRecError
from pages._studio.base import faults_in_words, label, plain, show_error, workspace
from pages._studio.corrections import entries, file_option, forget_files, said, say, set_base, start_over, unsay
from pages._studio.import_privacy import privacy_switches
from pages._studio.import_report import arrived
from pages._studio.places import Place, choose_places, forget_places, place_name, place_state
from pages._studio.questions import ask_later, ask_questions, forget_later
from pages._studio.table_card import ROLE_WORDS, left_out_card, repairs, table_card
from pages._studio.uploads import upload_folder
from pages._studio.value_settings import value_settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_LOOKS = 24
#: Files in which another encoding or separator changes nothing.
_NO_TEXT = {".parquet", ".pq", ".xlsx", ".xlsm", ".xls", ".ods", ".sqlite", ".db", ".duckdb", ".zip", ".tar", ".gz", ""}
#: More tables than this are folded away until somebody opens them.
_OPEN_CARDS = 6
_MAX_CARDS = 24


def import_panel() -> bool:
    """The whole way from a file to a dataset; whether files are on that way now."""
    try:
        places = choose_places()
    except LLMRecError as error:
        show_error(error)
        return False
    if places:
        _on_the_way(places)
    return bool(places)


def _on_the_way(places: Sequence[Place]) -> None:
    _places_changed(places)
    _choose_mapping(_look_at(places, [])[0])
    guesses, broken = _look_at(places, entries())
    for place, why in broken:
        show_error(why)
        if isinstance(place, Path) and place.suffix.lower() not in _NO_TEXT and place.stat().st_size:
            repairs(place.name, re.sub(r"[^A-Za-z0-9]", "_", place.name))
    if not guesses:
        return
    _cards(guesses)
    taken = [guess for guess in guesses if not guess.left_out and guess.fault is None]
    still_open = _open_ends(guesses, [place_name(place) for place, _ in broken])
    left, right = st.columns(2, gap="large")
    with left:
        still_open += ask_questions(taken)
        with st.expander("How numbers and times are read"):
            value_settings(taken)
    with right:
        st.markdown("**Privacy**")
        privacy_switches(taken)
    _finish(places, guesses, still_open)


def _places_changed(places: Sequence[Place]) -> None:
    """Starts the questions over where other files came; what was said about files that stayed is kept."""
    state = place_state(list(places))
    if st.session_state.get("import_places") == state:
        return
    st.session_state["import_places"] = state
    forget_files(place_name(place) for place in places)
    forget_later()
    guesses, _ = _look_at(places, [])
    _suggest_parts(guesses)
    found = _remembered(guesses, places)
    st.session_state["import_remembered"] = found
    st.session_state["import_use_remembered"] = found is not None
    # Equal columns alone are no proof that it is the same data: only a file of the same name goes on with a dataset.
    goes_on = found is not None and found.same_names
    st.session_state["import_name"] = found.dataset if found and goes_on else dataset_name(place_name(places[0]))


def dataset_name(name: str) -> str:
    """A safe name made from a file name; "train" and the like name a part, not a dataset."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in name.split(".")[0]).strip("-_")
    return "my-data" if not kept or part_hint(kept) else kept[:40]


# ------------------------------------------------------------------------------------------------ looking


def _look_at(
    places: Sequence[Place], said_entries: list[str]
) -> tuple[list[ImportGuess], list[tuple[Place, LLMRecError]]]:
    """(guesses about all tables, places that cannot be read at all and why)."""
    found: list[ImportGuess] = []
    broken: list[tuple[Place, LLMRecError]] = []
    for place in places:
        try:
            found += _look(place, said_entries)
        except LLMRecError as error:
            broken.append((place, error))
    return found, broken


def _look(place: Place, said_entries: list[str]) -> list[ImportGuess]:
    """Guesses about one place, made once for each state of the file and of what was said."""
    looks: dict[object, list[ImportGuess]] = st.session_state.setdefault("import_looks", {})
    key = (place_state([place]), tuple(said_entries))
    if key not in looks:
        # In the workspace, not in a temporary folder of the system, which may be small.
        with (
            st.spinner(f"Looking at {label(place_name(place))} …"),
            TemporaryDirectory(prefix=".look-", dir=upload_folder(workspace())) as scratch,
        ):
            looks[key] = guess_files([place], said_entries, Path(scratch))
        for old in list(looks)[:-_MAX_LOOKS]:
            del looks[old]
    return looks[key]


# ------------------------------------------------------------------------------------------------ mappings


@dataclass(frozen=True)
class _Earlier:
    """An earlier import of files with the same columns; ``same_names``: a file of it had the name of one of these."""

    dataset: str
    version: int
    mapping: ImportMapping
    same_names: bool


def _remembered(guesses: Sequence[ImportGuess], places: Sequence[Place]) -> _Earlier | None:
    """The newest import that the same columns came with."""
    tables = _columns(guesses)
    store = DatasetStore(workspace())
    for meta in sorted(store.list(), key=lambda meta: meta.created_at, reverse=True):
        path = store.folder(meta.name, meta.version) / MAPPING_FILE
        if not path.is_file():
            continue
        try:
            kept = load_mapping(path)
        except LLMRecError:
            # A mapping that was damaged by hand is no reason to hold up an import that can do without.
            continue
        mapping, unused = fitted(kept, tables)
        if mapping.files and not unused and _same_columns(mapping, places, tables):
            same_names = any(names_file(name, table) for name in kept.files for table in tables)
            return _Earlier(meta.name, meta.version, mapping, same_names)
    return None


def _same_columns(mapping: ImportMapping, places: Sequence[Place], tables: dict[str, tuple[str, ...]]) -> bool:
    """Whether reading the places by the mapping gives the columns that it was made with."""
    made_with = sorted(tuple(file.columns) for file in mapping.files.values() if not file.leave_out)
    found = _columns(
        guess for guess in _look_at(places, mapping.entries())[0] if not guess.left_out and guess.fault is None
    )
    return bool(tables) and sorted(found.values()) == made_with


def _columns(guesses: Iterable[ImportGuess]) -> dict[str, tuple[str, ...]]:
    """Columns of each table by its name; of what else the same rows give, the first counts."""
    found: dict[str, tuple[str, ...]] = {}
    for guess in guesses:
        found.setdefault(guess.file, guess.columns)
    return found


def _choose_mapping(first: Sequence[ImportGuess]) -> None:
    """An earlier import of such files, or a mapping file, as the ground on which corrections are made."""
    remembered: _Earlier | None = st.session_state.get("import_remembered")
    with st.container(horizontal=True, vertical_alignment="center"):
        use = remembered is not None and st.toggle(
            f"Read these files as {plain(remembered.dataset)}, version {remembered.version}, was read",
            key="import_use_remembered",
            help="Files with the same columns were imported before; their mapping is used. Off: start fresh.",
        )
        st.space("stretch")
        if said() and st.button("Undo my corrections", key="import_undo", icon=":material/undo:", type="tertiary"):
            said().clear()
            _suggest_parts(first)
            st.rerun()
        with st.popover("Use a mapping file", icon=":material/rule_settings:"):
            upload = st.file_uploader(
                "A mapping that an earlier import gave you",
                type=["yaml", "yml"],
                key=f"mapping_file_{st.session_state.get('upload_round', 0)}",
                help="A small YAML document: what each file holds and how it is read; `--mapping` on the command line.",
            )
    set_base(remembered.mapping if remembered is not None and use else None)
    if upload is None:
        return
    with faults_in_words():
        mapping, unused = fitted(read_mapping(upload.getvalue(), label(upload.name)), _columns(first))
        set_base(mapping)
        st.caption(f":material/rule_settings: The mapping {plain(upload.name)} is used.")
        if unused:
            st.warning(
                "The mapping also speaks of files that are not here: " + ", ".join(plain(name, 60) for name in unused)
            )


# ------------------------------------------------------------------------------------------------ cards


def _cards(guesses: Sequence[ImportGuess]) -> None:
    parts = _parts_switch(guesses)
    by_file: dict[str, list[ImportGuess]] = {}
    for guess in guesses:
        by_file.setdefault(guess.file, []).append(guess)
    # What cannot be read has to be settled, so it is never among those without a card.
    shown = sorted(by_file.items(), key=lambda entry: entry[1][0].fault is None)[:_MAX_CARDS]
    if len(by_file) > _MAX_CARDS:
        st.info(
            f"There are {len(by_file):,} tables; the first {_MAX_CARDS} have a card here, the others come in as they "
            "are guessed. A mapping file, whose names may be patterns, corrects them all.",
            icon=":material/table_rows:",
        )
    places = {file: number for number, file in enumerate(by_file)}
    for file, (guess, *beside) in shown:
        number = places[file]
        key = f"{number}_{re.sub(r'[^A-Za-z0-9]', '_', file)}"
        if guess.left_out:
            left_out_card(file, key)
        elif guess.fault is not None:
            show_error(guess.fault)
            left_out_card(file, key, out=False)
            repairs(file, key)
        else:
            folded = st.expander(f"{label(file)}: {guess.kind}") if number >= _OPEN_CARDS else st.container()
            with folded:
                table_card(guess, key, several=len(by_file) > 1, parts=parts, beside=beside)


def _suggest_parts(guesses: Sequence[ImportGuess]) -> None:
    """Takes files called train, valid and test for the parts of a given split; each can be changed on its card."""
    hints = {guess.file: part_hint(guess.file) for guess in guesses if guess.kind == "interactions"}
    st.session_state["import_parts"] = len({part for part in hints.values() if part}) > 1
    if st.session_state["import_parts"]:
        for file, part in hints.items():
            if part and file_option("part", file) not in said():
                say(file_option("part", file), part)


def _parts_switch(guesses: Sequence[ImportGuess]) -> bool:
    """Whether the data comes already split; on by itself where names of files say so."""
    if sum(guess.kind == "interactions" and not guess.left_out for guess in guesses) < 2:
        return False

    def changed() -> None:
        if st.session_state["import_parts"]:
            _suggest_parts(guesses)
            st.session_state["import_parts"] = True
        else:
            for guess in guesses:
                unsay(file_option("part", guess.file))

    return st.toggle(
        "The data comes already split into training, validation and test",
        key="import_parts",
        on_change=changed,
        help="Say which table is which part; training then uses this split unless told otherwise.",
    )


def _open_ends(guesses: Sequence[ImportGuess], broken: Sequence[str]) -> list[str]:
    """What has to be settled before an import beside the questions."""
    ends = [f"{plain(name)} cannot be read: take it away above, or correct how it is read" for name in broken]
    ends += [f"{plain(guess.file)} cannot be read" for guess in guesses if guess.fault is not None]
    taken = [guess for guess in guesses if not guess.left_out and guess.fault is None]
    if not taken:
        ends.append("every table is left out")
    elif not any(guess.kind == "interactions" for guess in taken):
        ends.append("which table holds interactions: one with both a user and an item column")
    elif all(_is_empty(guess) for guess in taken if guess.kind == "interactions"):
        ends.append("there is no row of interactions: below its header the table is empty")
    for guess in taken:
        missing = [ROLE_WORDS.get(role, role) for role in NEEDED_OF[guess.kind] if role not in guess.roles]
        if missing:
            words = " and which ".join(f"the {word.lower()}" for word in missing)
            ends.append(f"which column of {plain(guess.file)} is {words}")
    events = {guess.file: guess.part for guess in taken if guess.kind == "interactions"}
    if len(events) > 1 and st.session_state.get("import_parts"):
        ends += [f"which part of the split {plain(file)} is" for file, part in events.items() if not part]
    return ends


def _is_empty(guess: ImportGuess) -> bool:
    return guess.layout == "rows" and guess.sample is not None and not len(guess.sample)


# ------------------------------------------------------------------------------------------------ the end


def _finish(places: Sequence[Place], guesses: Sequence[ImportGuess], still_open: Sequence[str]) -> None:
    left, middle, right = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = left.text_input("Name of the dataset", key="import_name", help="A known name gets a new version")
    known = DatasetStore(workspace()).versions(name.strip()) if _NAME.fullmatch(name.strip()) else []
    if known:
        st.caption(f"The dataset {plain(name)} is there: this becomes version {known[-1] + 1}, unless nothing changed.")
    middle.download_button(
        "Download the mapping",
        _mapping_text(guesses),
        f"{dataset_name(name)}.mapping.yaml",
        "application/yaml",
        key="mapping_download",
        icon=":material/rule_settings:",
        on_click="ignore",
        width="stretch",
        help="What is said here, to use next time: on this screen, or as `llmrec data import --mapping FILE`.",
    )
    pressed = right.button(
        "Import",
        key="import_button",
        type="primary",
        icon=":material/input:",
        disabled=bool(still_open),
        width="stretch",
    )
    if still_open:
        st.info("Still open: " + "; ".join(still_open) + ".", icon=":material/help:")
    if pressed:
        _import(places, name)


def _mapping_text(guesses: Sequence[ImportGuess]) -> str:
    return dump_mapping(mapping_of(guesses, entries()))


def _import(places: Sequence[Place], name: str) -> None:
    fault: LLMRecError | None = None
    with st.status("Reading every row …") as status:
        try:
            report = import_files(
                workspace(),
                places,
                name.strip(),
                entries(),
                progress=lambda line: status.update(label=label(line, 160)),
            )
        except UnansweredError as error:
            # It showed only after the first rows: the screen asks it now, and nothing was written.
            ask_later(error.question)
            st.rerun()
        except LLMRecError as error:
            fault = error
            status.update(label="Nothing was imported.", state="error")
        else:
            status.update(label="Imported.", state="complete")
    if fault is not None:
        # Below the box of the status, which folds itself when the work ends.
        show_error(fault)
        return
    forget_places()
    start_over()
    forget_later()
    for key in ("import_places", "import_remembered", "import_looks", "import_parts"):
        st.session_state.pop(key, None)
    arrived(report)
