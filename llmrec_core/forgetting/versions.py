"""Taking a person out of one version of a dataset: a whole new folder is built and then swapped in.

Items stay as they are, so ``item_idx`` and every saved recommender stay valid. The positions of users move up where the
person was, and with them ``user_idx``; saved runs name users by id.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import USER
from llmrec_core.data.dataset import TABLES, USER_IDX, Fingerprint
from llmrec_core.data.store import REJECTS
from llmrec_core.forgetting.files import (
    TEXT_ENDINGS,
    clean_file,
    clean_parquet,
    open_parquet,
    redact_columns,
    rewrite_parquet,
    sync,
)
from llmrec_core.forgetting.person import Person
from llmrec_core.workspace import write_json_atomic

_BUILD, _OLD = ".forget-", ".forgotten-"
#: Files that are made again from the tables when somebody asks.
_CACHES = ("portrait", "preview", "cache")

Positions = npt.NDArray[np.int64]


@dataclass
class VersionChange:
    """What taking the person out of one version concerns. ``emptied``: nobody is left, so the version goes."""

    version: int
    interactions: int = 0
    users: int = 0
    other_rows: int = 0
    caches: int = 0
    emptied: bool = False

    @property
    def any(self) -> bool:
        return bool(self.interactions or self.users or self.other_rows)


def clean_version(folder: Path, version: int, person: Person, *, write: bool) -> VersionChange:
    """Counts, and with ``write`` removes, everything of the person in one version.

    Raises:
        DataError: a table is damaged.
    """
    found = _count(folder, version, person)
    if not write or not found.any:
        return found
    if found.emptied:
        doomed = folder.with_name(f".deleted-{folder.name}")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
        return found
    build = folder.with_name(f"{_BUILD}{folder.name}")
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    _write(folder, build, person)
    _swap(folder, build)
    return found


def recover(place: Path) -> None:
    """Puts a version whole again whose swap was cut short, and clears what was being built."""
    for old in place.glob(f"{_OLD}*"):
        target, build = place / old.name.removeprefix(_OLD), place / old.name.replace(_OLD, _BUILD)
        if not target.exists():
            # The old one only ever moves once the new one is whole.
            os.rename(build if build.is_dir() else old, target)
        shutil.rmtree(old, ignore_errors=True)
    for leftover in (*place.glob(f"{_BUILD}*"), *place.glob(".deleted-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _count(folder: Path, version: int, person: Person) -> VersionChange:
    found = VersionChange(version)
    gone, _ = _positions(folder, person)
    found.users = len(gone)
    n_rows = 0
    with open_parquet(folder / "interactions.parquet") as opened:
        for batch in opened.iter_batches(columns=[USER_IDX]):
            n_rows += batch.num_rows
            found.interactions += int(np.isin(batch.column(0).to_numpy(zero_copy_only=False), gone).sum())
    found.emptied = n_rows > 0 and found.interactions == n_rows
    for path in _others(folder):
        if _is_cache(path):
            found.caches += 1
        elif path.name == f"{REJECTS}.parquet":
            found.other_rows += sum(
                int(pc.sum(_own_rejects(pa.Table.from_batches([batch]), person)).as_py() or 0)
                for batch in _batches(path)
            )
        elif path.name != "meta.json":
            found.other_rows += clean_file(path, person, write=False)
    return found


def _write(folder: Path, build: Path, person: Person) -> None:
    """The version without the person, complete but for its place."""
    gone, _ = _positions(folder, person)
    meta = json.loads((folder / "meta.json").read_bytes())
    digest = Fingerprint()
    rows: dict[str, int] = {}

    def user_rows(table: pa.Table) -> pa.Table:
        return redact_columns(table.filter(pc.invert(person.matches(table.column(USER)))), person)[0]

    def interaction_rows(table: pa.Table) -> pa.Table:
        place = table.column_names.index(USER_IDX)
        codes = table.column(place).to_numpy()
        keep = ~np.isin(codes, gone)
        moved = codes - np.searchsorted(gone, codes)
        kind = table.schema.field(place).type
        table = table.set_column(place, table.schema.field(place), pa.array(moved).cast(kind)).filter(pa.array(keep))
        return redact_columns(table, person)[0]

    rewrite_parquet(folder / "users.parquet", build / "users.parquet", user_rows)
    rewrite_parquet(folder / "interactions.parquet", build / "interactions.parquet", interaction_rows)
    _copy(folder / "items.parquet", build / "items.parquet")
    for path in _others(folder):
        if _is_cache(path) or path.name == "meta.json":
            continue
        target = build / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name == f"{REJECTS}.parquet":
            rewrite_parquet(path, target, lambda table: table.filter(pc.invert(_own_rejects(table, person))))
        elif path.suffix == ".parquet":
            # A copy of its own: links share their bytes with the version that is to go.
            shutil.copyfile(path, target)
            clean_parquet(target, person, write=True)
        else:
            shutil.copyfile(path, target)
            if path.suffix in TEXT_ENDINGS:
                clean_file(target, person, write=True)
        sync(target)
    for table in (*TABLES, *meta.get("extras", ())):
        rows[table] = 0
        for batch in _batches(build / f"{table}.parquet"):
            rows[table] += batch.num_rows
            digest.add(table, {name: batch.column(name) for name in batch.schema.names})
    meta |= {
        "n_interactions": rows["interactions"],
        "n_users": rows["users"],
        "fingerprint": digest.hexdigest(),
        "former_fingerprints": [*meta.get("former_fingerprints", []), meta["fingerprint"]],
        "n_removed_users": meta.get("n_removed_users", 0) + len(gone),
        "warnings": person.scrub(list(meta.get("warnings", []))),
        "mapping": person.scrub(list(meta.get("mapping", []))),
    }
    write_json_atomic(build / "meta.json", meta)


def _swap(folder: Path, build: Path) -> None:
    old = folder.with_name(f"{_OLD}{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    os.rename(build, folder)
    shutil.rmtree(old)


def _positions(folder: Path, person: Person) -> tuple[Positions, int]:
    """Rows of the person in the users table, ascending, and the number of all."""
    with open_parquet(folder / "users.parquet") as opened:
        ids = opened.read(columns=[USER]).column(0)
    mask = person.matches(ids)
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False)).astype(np.int64), len(ids)


def _others(folder: Path) -> list[Path]:
    """Every file beside the three tables."""
    known = {folder / f"{table}.parquet" for table in TABLES}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in known)


def _is_cache(path: Path) -> bool:
    return any(path.name.lstrip(".").startswith(word) for word in _CACHES) and path.suffix != ".yaml"


def _own_rejects(table: pa.Table, person: Person) -> pa.Array:
    """Refused rows that show the person's id as one of their cells; bool [n].

    The raw line is cut at every separator there is: a refused row too many is no loss, one too few is.
    """
    own = np.zeros(table.num_rows, bool)
    for column in table.column_names:
        kind = table.schema.field(column).type
        if column in ("file", "column") or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        cells = table.column(column).cast(pa.large_string())
        for one in person.ids:
            for row in np.flatnonzero(pc.fill_null(pc.match_substring(cells, one), False).to_numpy()):
                text = cells[int(row)].as_py()
                own[row] |= one in _cells(text) or person.redact(text) != text
    return pa.array(own)


def _cells(line: str) -> set[str]:
    found = {line}
    for separator in (",", ";", "\t", "|", "::", "#"):
        found |= {cell.strip().strip("'\"") for cell in line.split(separator)}
    return found


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as opened:
        yield from opened.iter_batches()


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
