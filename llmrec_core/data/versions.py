"""What changed from one version of a dataset to the next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from llmrec_core.data.store import DatasetStore
from llmrec_core.errors import DataError

#: Interactions of one version under their ids. Row i of the users is user_idx i.
_ROWS = """
    SELECT u.user_id, i.item_id, x.rating, x.timestamp, {sign} AS side
    FROM read_parquet(${which}_interactions) AS x
    JOIN read_parquet(${which}_users, file_row_number = true) AS u ON u.file_row_number = x.user_idx
    JOIN read_parquet(${which}_items, file_row_number = true) AS i ON i.file_row_number = x.item_idx
"""
_CHANGE = f"""
    WITH sides AS ({_ROWS.format(sign=1, which="new")} UNION ALL {_ROWS.format(sign=-1, which="old")}),
    net AS (SELECT sum(side) AS n FROM sides GROUP BY user_id, item_id, rating, timestamp)
    SELECT coalesce(sum(n) FILTER (n > 0), 0)::BIGINT, coalesce(-sum(n) FILTER (n < 0), 0)::BIGINT FROM net
"""
_NEW_IDS = """
    SELECT count(*) FROM (SELECT {key} FROM read_parquet($left) EXCEPT SELECT {key} FROM read_parquet($right))
"""


@dataclass(frozen=True)
class VersionChange:
    """Rows (user, item, rating, time; repeated rows count each) and ids that came and went."""

    rows_added: int = 0
    rows_removed: int = 0
    users_added: int = 0
    users_removed: int = 0
    items_added: int = 0
    items_removed: int = 0

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        """``+1,200 −3 rows, +4 users, −1 items``; "the same rows" where nothing moved."""
        parts = []
        for noun in ("rows", "users", "items"):
            added, removed = getattr(self, f"{noun}_added"), getattr(self, f"{noun}_removed")
            signs = [f"+{added:,}" if added else "", f"−{removed:,}" if removed else ""]
            if added or removed:
                parts.append(f"{' '.join(sign for sign in signs if sign)} {noun}")
        return ", ".join(parts) or "the same rows, users and items"


def compare_versions(store: DatasetStore, name: str, old: int, new: int) -> VersionChange:
    """Rows and ids that version ``new`` has and ``old`` has not, and the other way round.

    Raises:
        NotFoundError: no such dataset or version.
        DataError: a table is damaged.
    """
    if store.meta(name, old).fingerprint == store.meta(name, new).fingerprint:
        return VersionChange()
    folders = {"old": store.folder(name, old), "new": store.folder(name, new)}
    tables = ("interactions", "users", "items")
    paths = {
        f"{which}_{table}": str(folder / f"{table}.parquet") for which, folder in folders.items() for table in tables
    }
    with TemporaryDirectory(prefix="llmrec-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": "false",
            "memory_limit": "2GB",
            "temp_directory": spill,
        }
        try:
            with duckdb.connect(config=settings) as database:
                counts = database.execute(_CHANGE, paths).fetchone() or (0, 0)
                users = [_count(database, "user_id", paths[f"{a}_users"], paths[f"{b}_users"]) for a, b in _BOTH]
                items = [_count(database, "item_id", paths[f"{a}_items"], paths[f"{b}_items"]) for a, b in _BOTH]
        except duckdb.Error as error:
            raise DataError(
                f"the versions cannot be compared ({str(error).splitlines()[0][:160]}).",
                where=str(Path(folders["old"]).parent),
            ) from None
    return VersionChange(int(counts[0]), int(counts[1]), *users, *items)


_BOTH = (("new", "old"), ("old", "new"))


def _count(database: duckdb.DuckDBPyConnection, key: str, left: str, right: str) -> int:
    found = database.execute(_NEW_IDS.format(key=key), {"left": left, "right": right}).fetchone()
    return 0 if found is None else int(found[0])
