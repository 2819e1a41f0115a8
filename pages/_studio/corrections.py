"""What a person said about the files before an import: kept between reruns as the corrections that ``--map`` takes.

Widgets of the screen never hold the truth: each shows what the core made of the files with everything said so far,
and a change is written down here. So a control cannot show one thing and the import do another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import streamlit as st

from llmrec_core.data.mapping import ImportMapping

_SAID, _BASE = "import_said", "import_base"


def said() -> dict[str, str]:
    """Corrections made by hand, in the order they were made: left side of the entry -> right side."""
    found: dict[str, str] = st.session_state.setdefault(_SAID, {})
    return found


def say(left: str, right: str) -> None:
    """Notes one correction; the last word about a thing counts."""
    said().pop(left, None)
    said()[left] = right


def unsay(left: str) -> None:
    said().pop(left, None)


def file_option(option: str, table: str) -> str:
    """The left side of a correction of one table ("=" would end the name, "?" stands for it)."""
    return f"{option}:{table.replace('=', '?')}"


def base() -> ImportMapping | None:
    """A mapping that was uploaded or remembered; what is said by hand goes over it."""
    found: ImportMapping | None = st.session_state.get(_BASE)
    return found


def set_base(mapping: ImportMapping | None) -> None:
    st.session_state[_BASE] = mapping


def entries() -> list[str]:
    """Everything said, as corrections for the core."""
    mapping = base()
    return [*(mapping.entries() if mapping else []), *(f"{left}={right}" for left, right in said().items())]


def start_over() -> None:
    """Forgets everything that was said."""
    for key in (_SAID, _BASE):
        st.session_state.pop(key, None)


def forget_files(kept: Iterable[str]) -> None:
    """Forgets what was said about files other than these; what holds for the whole import stays."""
    names = [name.replace("=", "?") for name in kept]
    for left in list(said()):
        option, colon, table = left.partition(":")
        if colon and option != "mask" and not any(table == name or table.startswith(f"{name}/") for name in names):
            unsay(left)


def controlled_select(
    place: Any,
    title: str,
    options: Sequence[Any],
    now: Any,
    *,
    key: str,
    note: Callable[[Any], None],
    format_func: Callable[[Any], Any] = str,
    help: str | None = None,
) -> None:
    """A selectbox that shows ``now``; a pick goes to ``note``, and the next rerun shows what came of it."""
    options = list(dict.fromkeys([*options, now] if now not in options else options))
    st.session_state[key] = now

    def changed() -> None:
        note(st.session_state[key])

    place.selectbox(title, options, key=key, on_change=changed, format_func=format_func, help=help)
