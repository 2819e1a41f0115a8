"""Which files of a folder or an archive are tables: judged by their names before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmrec_core.errors import DataError

MAX_FILES, _MAX_DEPTH = 10_000, 8
_TABLES = re.compile(
    r"(?i)\.(csv|tsv|tab|psv|txt|dat|data|json|jsonl|ndjson|parquet|pq|parq|xlsx|xlsm|xlsb|xls|ods|sqlite3?|db3?"
    r"|duckdb|ddb|item|user|inter|kg|link|net|base|test|train|valid|gz|bz2|xz|zip|tar|tgz)"
)
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|copying|changelog|notice)[^/]*")
#: Files that systems leave in folders, whose endings may look like those of tables.
_LEFT_BY_SYSTEMS = ("_success", "thumbs.db", "ehthumbs.db", "desktop.ini")
_CUTS = re.compile(r"u[1-5ab]\.(base|test)")


def table_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of files that may be tables, names that are passed over), each in the order given."""
    bare = {name.rpartition("/")[2] for name in names}
    tables: list[str] = []
    passed: list[str] = []
    for name in names:
        parts = name.split("/")
        hidden = any(part.startswith((".", "__MACOSX", "~$")) or part.lower() in _LEFT_BY_SYSTEMS for part in parts)
        suffix = Path(parts[-1]).suffix
        # Ready cuts of MovieLens repeat the rows of u.data.
        repeated = "u.data" in bare and _CUTS.fullmatch(parts[-1])
        takes = _TABLES.fullmatch(suffix) and not hidden and not _ABOUT.fullmatch(Path(parts[-1]).stem) and not repeated
        (tables if takes else passed).append(name)
    return tables, passed


def passed_note(passed: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in passed[:5])
    return f"{len(passed)} files were passed over: {shown}{' ...' if len(passed) > 5 else ''}"


def files_below(folder: Path, where: str) -> list[str]:
    """Paths of all files below a folder, relative to it and sorted, with forward slashes.

    Raises:
        DataError: there is a symbolic link, or there are too many files or levels.
    """
    found: list[str] = []
    waiting = [(folder, "", 0)]
    while waiting:
        place, prefix, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise DataError(f"the folder goes deeper than {_MAX_DEPTH} levels.", where=where, fix="Choose files.")
        for entry in sorted(place.iterdir()):
            if entry.is_symlink():
                raise DataError(
                    f"the folder holds a symbolic link ({prefix}{entry.name}).",
                    where=where,
                    fix="Put the file itself there, or choose files.",
                )
            if entry.is_dir():
                if not entry.name.startswith("."):
                    waiting.append((entry, f"{prefix}{entry.name}/", depth + 1))
            elif entry.is_file():
                found.append(prefix + entry.name)
            if len(found) > MAX_FILES:
                raise DataError(f"the folder holds more than {MAX_FILES:,} files.", where=where, fix="Choose files.")
    return sorted(found)
