"""Small things every screen needs: the workspace, safe text, faults in words, choices kept in the address bar."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import streamlit as st

from llmrec_core.data.privacy import removal_count
from llmrec_core.errors import LLMRecError
from llmrec_core.serving.client import serving_client
from llmrec_core.workspace import Workspace
from pages._studio.router import ensure_routed

#: Tools over a figure: save it, show all of it again. Zooming is done by dragging; more tools would cover the title.
FIGURE_TOOLS: dict[str, Any] = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
}
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:^&=\"'@/])")
#: Control characters, and marks that turn the direction of text, have no business in a label.
_INVISIBLE = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@st.cache_resource(show_spinner=False)
def _workspace(root: str | None) -> Workspace:
    return Workspace.open(root)


def workspace() -> Workspace:
    """The workspace this server works in (``LLMREC_WORKSPACE`` or the user's data folder)."""
    import os

    return _workspace(os.environ.get("LLMREC_WORKSPACE"))


def plain(text: object, limit: int = 300) -> str:
    """``text`` so that Markdown shows it letter by letter: what users wrote is text, never markup."""
    cleaned = _INVISIBLE.sub("", str(text))
    if len(cleaned) > limit:
        cleaned = cleaned[: limit - 1] + "…"
    return _PUNCTUATION.sub(r"\\\1", cleaned).replace("\n", "  \n")


def label(text: object, limit: int = 80) -> str:
    """``text`` for places that show plain text already (options of a selectbox, cells of a table)."""
    cleaned = " ".join(_INVISIBLE.sub("", str(text)).split())
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def show_error(error: LLMRecError) -> None:
    """What was wrong, where, and what to do next, as one box."""
    where = f"**{plain(error.where)}**: " if error.where else ""
    # Behind a place the sentence goes on; alone it begins like one.
    what = error.what if error.where else error.what[:1].upper() + error.what[1:]
    fix = f"  \n{plain(error.fix, 500)}" if error.fix else ""
    st.error(f"{where}{plain(what, 2000)}{fix}", icon=":material/error:")


@contextmanager
def faults_in_words() -> Iterator[None]:
    """Shows an :class:`LLMRecError` as a box and lets the rest of the screen live."""
    try:
        yield
    except LLMRecError as error:
        show_error(error)


@st.cache_resource(show_spinner=False)
def _removals_known(root: str) -> dict[str, int]:
    """The number of removals when this server began to keep things in memory."""
    return {"count": removal_count(Workspace(Path(root)))}


def follow_removals() -> None:
    """Drops what this server and this session hold in memory once a person was removed, by whatever process."""
    root = str(workspace().root)
    count = removal_count(workspace())
    if _removals_known(root)["count"] != count:
        st.cache_data.clear()
        st.cache_resource.clear()
        serving_client(workspace()).stop()
    if st.session_state.setdefault("removals_seen", count) != count:
        # The tab and the answer of the act itself stay on the screen.
        for key in [key for key in st.session_state if key != "data_tab" and not str(key).startswith("forget_")]:
            del st.session_state[key]
        st.session_state["removals_seen"] = count


def header(title: str, lead: str) -> None:
    """Title and one sentence of a screen; the first thing every screen calls."""
    ensure_routed()
    follow_removals()
    st.title(title, anchor=False)
    st.caption(lead)


def empty_state(text: str, *links: tuple[str, str, str]) -> None:
    """A calm box for a screen with nothing to show yet; ``links`` are (page, label, icon)."""
    with st.container(border=True):
        st.markdown(text)
        with st.container(horizontal=True):
            for page, title, icon in links:
                st.page_link(page, label=title, icon=icon)


def remembered(key: str, default: Any = None) -> Any:
    """A value that outlives a change of page (widgets' own state does not)."""
    return st.session_state.get(f"kept:{key}", default)


def remember(key: str, value: Any) -> None:
    st.session_state[f"kept:{key}"] = value


def linked_choice(
    title: str,
    options: Sequence[str],
    *,
    param: str,
    key: str,
    format_func: Callable[[str], str] = label,
    default: str | None = None,
    help: str | None = None,
    accept_new: bool = False,
    kind: str = "option",
) -> str | None:
    """A selectbox whose value stands in the address bar as ``?param=`` and is kept between pages.

    The address wins when it changed (a deep link, the back button), else what was chosen here, else what was last
    chosen on another page, else ``default``, else the first option. An unknown value in a link is shown as text.
    """
    in_url = st.query_params.get(param)
    if in_url is not None and in_url != st.session_state.get(f"url:{key}"):
        if in_url in options or accept_new:
            st.session_state[key] = in_url
        else:
            st.warning(f"This link names the {kind} {plain(in_url, 80)}, which is not in this workspace.")
    if key in st.session_state and st.session_state[key] not in options and not accept_new:
        del st.session_state[key]
    if key not in st.session_state:
        kept = remembered(param)
        candidates = [c for c in (kept, default) if c in options]
        if candidates:
            st.session_state[key] = candidates[0]
    shown = list(options)
    if accept_new and st.session_state.get(key) and st.session_state[key] not in shown:
        shown.append(st.session_state[key])
    chosen = st.selectbox(title, shown, key=key, format_func=format_func, help=help, accept_new_options=accept_new)
    if chosen is not None:
        st.session_state[f"url:{key}"] = chosen
        if st.query_params.get(param) != chosen:
            st.query_params[param] = chosen
        remember(param, chosen)
    return chosen


def ago(epoch_s: float | None) -> str:
    """How long ago, in words."""
    if not epoch_s:
        return "some time ago"
    seconds = max(0.0, time.time() - epoch_s)
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {unit}{'s' if n != 1 else ''} ago"
    return "just now"


def moment(epoch_s: float | None) -> str:
    """A moment in words that stay the same however long a page is open: ``2026-01-31 14:05 UTC``."""
    return "some time ago" if not epoch_s else datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float | None) -> str:
    """``75`` as ``1 min 15 s``; an unknown length is a dash."""
    if seconds is None or seconds != seconds or seconds < 0:
        return "–"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def size(n_bytes: float | None) -> str:
    """Bytes for people, in powers of 1000."""
    if n_bytes is None:
        return "–"
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` decimals; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"
