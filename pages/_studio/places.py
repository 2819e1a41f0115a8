"""Where data comes from: dropped files, an address, or a path on this machine."""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

import streamlit as st

from llmrec_core.data.download import download
from llmrec_core.errors import InputError
from pages._studio.base import label, workspace
from pages._studio.uploads import forget_uploads, keep_uploads, upload_folder

#: A place is a file or folder on this machine, or a URL as text.
Place = Path | str

_WAYS = {"files": "Drop files", "address": "From an address", "path": "From this machine"}
_FETCHED = "import_fetched"
_URL_STARTS = ("http://", "https://", "postgresql://", "postgres://")


def bound_to_this_machine() -> bool:
    """Whether the server answers this machine alone, so that whoever asks may read its files anyway."""
    address = st.get_option("server.address")
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(address)).is_loopback
    except ValueError:
        return False


def choose_places() -> list[Place]:
    """What a person wants to import, [] while nothing is chosen.

    Raises:
        InputError: too many or too large files, an address of an unknown kind, a path that is not there.
    """
    ways = list(_WAYS) if bound_to_this_machine() else ["files", "address"]
    way = st.segmented_control(
        "Your data",
        ways,
        default="files",
        required=True,
        format_func=_WAYS.__getitem__,
        key="import_way",
        label_visibility="collapsed",
    )
    if way == "address":
        return _address()
    if way == "path":
        return _path()
    return _dropped()


def _dropped() -> list[Place]:
    files = st.file_uploader(
        "Drop your own files: interactions, and if you have them items and users",
        accept_multiple_files=True,
        key=f"uploader_{st.session_state.get('upload_round', 0)}",
        help="CSV and its kin, Excel, JSON, JSON Lines, Parquet, SQLite, DuckDB; also in .gz and .zip (a folder as "
        "a .zip). Nothing leaves this machine.",
    )
    return list(keep_uploads(workspace(), list(files))) if files else []


def _address() -> list[Place]:
    with st.form("import_address_form", border=False):
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        typed = left.text_input(
            "Address of a file, or of a PostgreSQL database",
            key="import_address",
            placeholder="https://example.org/ratings.csv.gz   or   postgresql://reader@db.example.org/shop",
            help="Fetched by this machine, from public addresses alone. The password of a database is not kept.",
        ).strip()
        pressed = right.form_submit_button("Look at it", width="stretch")
    if pressed:
        st.session_state.pop(_FETCHED, None)
        st.session_state[_FETCHED] = (typed, _reached(typed))
    known: tuple[str, Place] | None = st.session_state.get(_FETCHED)
    return [known[1]] if known is not None and known[0] == typed else []


def _reached(address: str) -> Place:
    """A file fetched from its address, or the address of a database as it is."""
    if not address.lower().startswith(_URL_STARTS):
        raise InputError(
            "this is not an address that data comes from.",
            where=address[:80],
            fix="Addresses begin with https://, http:// or postgresql://.",
        )
    if not address.lower().startswith("http"):
        return address
    folder = upload_folder(workspace()) / ".fetched"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with st.status("Fetching …") as status:
        return download(address, folder, progress=lambda line: status.update(label=label(line, 160)))


def _path() -> list[Place]:
    typed = st.text_input(
        "Path of a file or folder",
        key="import_path",
        placeholder="/home/me/exports/ratings.csv",
        help="Offered because this Studio answers this machine alone. The file is read where it lies.",
    ).strip()
    if not typed:
        return []
    path = Path(typed.strip("\"'")).expanduser()
    if not path.exists():
        raise InputError("there is no such file or folder on this machine.", where=typed[:120])
    return [path.absolute()]


def place_name(place: Place) -> str:
    """What a person calls a place: the last part of its path, never a password."""
    if isinstance(place, Path):
        return place.name
    return place.split("?")[0].rstrip("/").rpartition("/")[2] or "address"


def place_state(places: list[Place]) -> tuple[tuple[str, int, int], ...]:
    """What tells whether places changed: path, size, time of change."""
    found = []
    for place in places:
        facts = place.stat() if isinstance(place, Path) else None
        found.append((str(place), facts.st_size if facts else 0, facts.st_mtime_ns if facts else 0))
    return tuple(found)


def forget_places() -> None:
    """After an import: uploads go, fields are empty, the uploader starts anew."""
    forget_uploads(workspace())
    for key in ("import_address", "import_path", _FETCHED):
        st.session_state.pop(key, None)
