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
from pages._studio.base import FIGURE_TOOLS, plain, workspace
from pages._studio.pickers import load_split
from pages._studio.spec_form import FormField, edit_field, spec_fields

#: Words over the fields; the spec's own description is their help.
TITLES = {
    "test_fraction": "Share for the test",
    "valid_fraction": "Share for validation",
    "n_folds": "Folds",
    "fold": "Fold to test",
    "train_window": "Training window",
    "known_interactions": "Known interactions (k)",
    "fold_in": "Known share of a history",
    "rank_among": "Rank among",
    "group_by": "Groups",
    "n_groups": "Number of groups",
    "seed": "Seed of the draw",
    "min_user_interactions": "Fewest interactions of a user",
    "min_item_interactions": "Fewest interactions of an item",
    "time_from": "From (date)",
    "time_to": "Up to (date)",
    "tie_order": "Equal times",
}
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
    options = [name for name in PROTOCOLS if name != "given" or "part" in dataset.interactions.columns]
    left, right = st.columns([1, 2], gap="medium")
    protocol = left.selectbox(
        "Protocol",
        options,
        key="split_protocol",
        format_func=lambda name: PROTOCOLS[name].title,
        persist_state="session",
    )
    guide = PROTOCOLS[protocol]
    right.markdown(f"**{plain(guide.what)}**  \n{plain(guide.when, 600)}")
    fields = {field.path: field for field in spec_fields(SplitSpec(), "")}
    raw: dict[str, Any] = {"protocol": protocol}
    if guide.fields:
        _fields(dataset, [fields[name] for name in guide.fields], raw)
    with st.expander("Filters and order", icon=":material/filter_alt:"):
        _fields(dataset, [fields[name] for name in COMMON_FIELDS], raw)
    try:
        return SplitSpec.model_validate(raw)
    except ValidationError as error:
        st.error(plain("; ".join(message for _, message in spec_errors(error))), icon=":material/error:")
        return None


def _fields(dataset: Dataset, fields: list[FormField], raw: dict[str, Any]) -> None:
    for column, field in zip(_grid(len(fields)), fields, strict=True):
        name = field.path
        with column:
            if name == "group_by":
                raw[name] = group_choice(dataset, str(field.value), "split_group_by")
            else:
                raw[name] = edit_field(field, f"split_{name}", TITLES[name])


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
        TITLES["group_by"],
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


def _use(spec: SplitSpec, dataset: Dataset) -> None:
    """A link that carries the split to the Fine-tune form."""
    changed = spec.model_dump(mode="json", exclude_defaults=True) | {"protocol": spec.protocol}
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            "pages/finetune.py",
            label="Use in Fine-tune",
            icon=":material/model_training:",
            query_params={"dataset": dataset.name, "split": json.dumps(changed, separators=(",", ":"))},
        )
        st.caption("Takes this protocol and its fields into the form; a run keeps its own split in its spec.")


def linked_split() -> SplitSpec | None:
    """The split that the address carries (``?split=``); None without one.

    Raises:
        SpecError: it is no split.
    """
    text = st.query_params.get("split")
    if not text:
        return None
    try:
        return SplitSpec.model_validate_json(text)
    except ValidationError as error:
        words = "; ".join(f"{path}: {message}" for path, message in spec_errors(error))
        raise SpecError(f"this link's split cannot be used: {words}.", where="split", fix="Choose it again.") from None


def split_form(spec: SplitSpec, dataset: Dataset, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    """The split of a run: the protocol and what applies to it. Takes its fields out of ``fields``."""
    mine = {path.removeprefix("split."): fields.pop(path) for path in list(fields) if path.startswith("split.")}
    changes: dict[str, Any] = {}
    with st.expander(f"Split: {PROTOCOLS[spec.protocol].title.lower()}", icon=":material/call_split:"):
        left, right = st.columns([1, 2], gap="medium")
        options = [name for name in PROTOCOLS if name != "given" or "part" in dataset.interactions.columns]
        if spec.protocol not in options:
            options.append(spec.protocol)
        protocol = left.selectbox(
            "Protocol",
            options,
            index=options.index(spec.protocol),
            key=f"{key}-split.protocol",
            format_func=lambda name: PROTOCOLS[name].title,
            persist_state="session",
        )
        changes["split.protocol"] = protocol
        right.markdown(f"**{plain(PROTOCOLS[protocol].what)}**  \n{plain(PROTOCOLS[protocol].when, 600)}")
        names = used_fields(protocol)
        for column, name in zip(_grid(len(names)), names, strict=True):
            with column:
                if name == "group_by":
                    changes["split.group_by"] = group_choice(dataset, spec.group_by, f"{key}-split.group_by")
                else:
                    changes[f"split.{name}"] = edit_field(mine[name], f"{key}-split.{name}", TITLES[name])
        st.page_link(
            "pages/data.py",
            label="See splits drawn on Data",
            icon=":material/insights:",
            query_params={"dataset": dataset.name},
        )
    return changes
