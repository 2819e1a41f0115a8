"""How a dataset is cut: a protocol and its fields, drawn before use, with the leakage check beside it."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st
from pydantic import ValidationError
from streamlit.delta_generator import DeltaGenerator

from llmrec_core.data import COMMON_FIELDS, PROTOCOLS, Dataset, Split, SplitPicture, split_picture
from llmrec_core.data.leakage import Check, LeakageReport
from llmrec_core.errors import SpecError
from llmrec_core.figures import split_figures
from llmrec_core.recommenders.leakage import leakage_report
from llmrec_core.specs import SplitSpec, spec_errors
from llmrec_core.specs.titles import field_title
from pages._studio.base import FIGURE_TOOLS, plain, show_error, workspace
from pages._studio.pickers import load_split
from pages._studio.spec_form import FormField, edit_field, spec_fields

_ICONS = {
    "passed": ":green[:material/check_circle: passed]",
    "violated": ":red[:material/cancel: violated]",
    "note": ":orange[:material/info: to know]",
}


@st.cache_data(max_entries=12, show_spinner="Looking for leaks …")
def _checked(root: str, name: str, version: int, spec_json: str, _split: Split) -> LeakageReport:
    return leakage_report(_split)


@st.cache_data(max_entries=12, show_spinner="Drawing the split …")
def _picture(root: str, name: str, version: int, spec_json: str, _split: Split) -> SplitPicture:
    return split_picture(_split)


def used_fields(protocol: str) -> tuple[str, ...]:
    """Fields of SplitSpec that say something under ``protocol``, the filters last."""
    guide = PROTOCOLS.get(protocol)
    return (*(guide.fields if guide else ()), *COMMON_FIELDS)


def show_split(dataset: Dataset) -> None:
    """The Splits tab of a dataset."""
    spec = _choose(dataset)
    if spec is None:
        return
    split = load_split(dataset, spec)
    key = (str(workspace().root), dataset.name, dataset.version, spec.model_dump_json())
    report = _checked(*key, split)
    picture = _picture(*key, split)
    _verdict(report)
    st.markdown(plain(split.describe(), 2000))
    _use(spec, dataset)
    figures = split_figures(picture)
    for name in ("folds", "groups", "lines"):
        if name in figures:
            st.plotly_chart(figures[name], key=f"split_{name}", config=FIGURE_TOOLS)
    for name in ("shares", "time"):
        st.plotly_chart(figures[name], key=f"split_{name}", config=FIGURE_TOOLS)
    _sizes(picture)
    _leakage(report)


def _choose(dataset: Dataset) -> SplitSpec | None:
    """The protocol and those of its fields that apply; None while they do not fit together."""
    linked = linked_split()
    # Widgets keep what they were told under their key: another link is another form.
    key = "split" if linked is None else f"split-{st.query_params['split']}"
    start = linked or SplitSpec()
    protocol = _protocol(start.protocol, dataset, f"{key}_protocol")
    guide = PROTOCOLS[protocol]
    fields = {field.path: field for field in spec_fields(start, "")}
    raw: dict[str, Any] = {"protocol": protocol}
    if guide.fields:
        _fields(dataset, [fields[name] for name in guide.fields], raw, key)
    filtered = any(fields[name].value != getattr(SplitSpec(), name) for name in COMMON_FIELDS)
    with st.expander("Filters and order", icon=":material/filter_alt:", expanded=filtered):
        _fields(dataset, [fields[name] for name in COMMON_FIELDS], raw, key)
    try:
        return SplitSpec.model_validate(raw)
    except ValidationError as error:
        st.error(plain("; ".join(message for _, message in spec_errors(error))), icon=":material/error:")
        return None


def _protocol(value: str, dataset: Dataset, key: str) -> str:
    """The protocol of a split, and beside it what it does and when it is the right one."""
    options = [name for name in PROTOCOLS if name != "given" or "part" in dataset.interactions.columns]
    if value not in options:
        options.append(value)
    left, right = st.columns([1, 2], gap="medium")
    protocol: str = left.selectbox(
        "Protocol",
        options,
        index=options.index(value),
        key=key,
        format_func=lambda name: PROTOCOLS[name].title,
        persist_state="session",
    )
    guide = PROTOCOLS[protocol]
    right.markdown(f"**{plain(guide.what)}**  \n{plain(guide.when, 600)}")
    return protocol


def _fields(dataset: Dataset, fields: list[FormField], raw: dict[str, Any], key: str) -> None:
    for column, field in zip(_grid(len(fields)), fields, strict=True):
        name = field.path
        with column:
            if name == "group_by":
                raw[name] = group_choice(dataset, str(field.value), f"{key}_group_by")
            else:
                raw[name] = edit_field(field, f"{key}_{name}")


def _grid(n: int) -> list[DeltaGenerator]:
    """Places for ``n`` fields, four in a row, read from left to right."""
    return [column for _ in range(-(-n // 4)) for column in st.columns(4, vertical_alignment="bottom")][:n]


def group_choice(dataset: Dataset, value: str, key: str) -> str:
    """Groups that this data can be cut by."""
    words = {"activity": "Users by activity", "popularity": "Items by popularity"}
    for kind, table in (("user", dataset.users), ("item", dataset.items)):
        for column in table.columns[1:]:
            if column != "title":
                words[f"{kind}:{column}"] = f"{kind.capitalize()}s by {column}"
    options = list(words) if value in words else [*words, value]
    chosen: str = st.selectbox(
        field_title("group_by"),
        options,
        index=options.index(value),
        key=key,
        format_func=lambda name: words.get(name, name),
        help="Every group gives the same share of its rows to each part",
        persist_state="session",
    )
    return chosen


def _verdict(report: LeakageReport) -> None:
    n_rules = sum(check.hard for check in report.checks)
    if not report.ok:
        names = "; ".join(plain(check.title) for check in report.violated)
        st.error(f"**Held-out rows leak:** {names}. A run with this split would stop.", icon=":material/error:")
        return
    n_notes = len(report.notes)
    notes = f" {n_notes} fact{'s' if n_notes > 1 else ''} to know below." if n_notes else ""
    st.success(f"No leak: all {n_rules} rules hold.{notes}", icon=":material/verified_user:")


def _sizes(picture: SplitPicture) -> None:
    words = {"train": "training", "known": "known, not trained on", "valid": "validation", "test": "test"}
    table = pd.DataFrame(
        [
            {
                "part": words[part],
                **{owner: picture.shares[owner].get(part, 0) for owner in ("rows", "users", "items")},
            }
            for part in words
            if part in picture.shares["rows"]
        ]
    )
    local = st.column_config.NumberColumn(format="localized")
    st.dataframe(table, hide_index=True, column_config=dict.fromkeys(("rows", "users", "items"), local))
    st.caption(
        "A user or an item counts in every part that it has a row in. The pictures are drawn from the rows as they "
        "will be used."
    )


def _leakage(report: LeakageReport) -> None:
    st.subheader("Leakage check", anchor=False)
    table = pd.DataFrame(
        [
            {
                "result": _ICONS[check.verdict],
                "rule or fact": plain(check.title),
                "what was looked at": plain(check.words, 600),
                "found": plain(_found(check)),
            }
            for check in report.checks
        ]
    )
    # A table of Markdown: words wrap, and a result is a word and a sign, not a colour alone.
    st.table(table.set_index("result"))
    st.caption(
        "Every run looks again before it learns, and stops if a rule is broken. Facts to know are what the protocol "
        "allows."
    )


def _found(check: Check) -> str:
    found = f"{check.n_violations:,} of {check.n_checked:,}"
    return f"{found}: {', '.join(check.examples)}" if check.examples else found


def _link(spec: SplitSpec, dataset: Dataset) -> dict[str, str]:
    """Parameters of an address that carry a dataset and its split from one screen to the other."""
    used = {"protocol", *used_fields(spec.protocol)}
    raw = spec.model_dump(mode="json", exclude_defaults=True) | {"protocol": spec.protocol}
    kept = {name: value for name, value in raw.items() if name in used}
    return {"dataset": dataset.name, "split": json.dumps(kept, separators=(",", ":"))}


def _use(spec: SplitSpec, dataset: Dataset) -> None:
    """A link that carries the split to the Fine-tune form."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            "pages/finetune.py",
            label="Use in Fine-tune",
            icon=":material/model_training:",
            query_params=_link(spec, dataset),
        )
        st.caption("Takes this protocol and its fields into the form; a run keeps its own split in its spec.")


def linked_split() -> SplitSpec | None:
    """The split that the address carries (``?split=``); None without one, or where it is none, which is then said."""
    text = st.query_params.get("split")
    if not text:
        return None
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("no mapping")
    except ValueError:
        words = "it was cut off or changed on its way here"
    else:
        try:
            return SplitSpec.model_validate(raw)
        except ValidationError as error:
            words = "; ".join(": ".join(filter(None, fault)) for fault in spec_errors(error))
    del st.query_params["split"]
    show_error(
        SpecError(
            f"the split in the address of this page cannot be used: {words}.",
            fix="The usual split stands below instead; choose another one there.",
        )
    )
    return None


def split_form(spec: SplitSpec, dataset: Dataset, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    """The split of a run: the protocol and what applies to it. Takes its fields out of ``fields``."""
    mine = {path.removeprefix("split."): fields.pop(path) for path in list(fields) if path.startswith("split.")}
    changes: dict[str, Any] = {}
    chosen = st.session_state.get(f"{key}-split.protocol") or spec.protocol
    with st.expander(f"Split: {PROTOCOLS[chosen].title.lower()}", icon=":material/call_split:", key=f"{key}-split"):
        protocol = _protocol(spec.protocol, dataset, f"{key}-split.protocol")
        changes["split.protocol"] = protocol
        names = used_fields(protocol)
        for column, name in zip(_grid(len(names)), names, strict=True):
            with column:
                if name == "group_by":
                    changes["split.group_by"] = group_choice(dataset, spec.group_by, f"{key}-split.group_by")
                else:
                    changes[f"split.{name}"] = edit_field(mine[name], f"{key}-split.{name}")
        st.page_link(
            "pages/data.py",
            label="See this split drawn on Data",
            icon=":material/insights:",
            query_params=_drawn(changes, dataset),
        )
    return changes


def _drawn(changes: dict[str, Any], dataset: Dataset) -> dict[str, str]:
    """The address of the Splits tab with this split; without its fields while they do not fit together."""
    raw = {path.removeprefix("split."): value for path, value in changes.items()}
    try:
        link = _link(SplitSpec.model_validate(raw), dataset)
    except ValidationError:
        link = {"dataset": dataset.name}
    return link | {"tab": "Splits"}
