"""Columns of the interactions that tell about the items: whether they say one thing of each item, and what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.data.dataset import ITEM_IDX
from llmrec_core.data.store import parquet_options

#: A column is believed to be about the items where at most this share of them has contradicting values.
_MAX_CONFLICTS = 0.1


@dataclass(frozen=True)
class ToldOfItems:
    """What one column of the interactions says about items: the first filled cell of each."""

    item_idx: np.ndarray
    first: pa.Array
    n_conflicting: int

    @property
    def believable(self) -> bool:
        return self.n_conflicting <= _MAX_CONFLICTS * max(1, len(self.first))

    def cells(self, n_items: int) -> pa.Array:
        """[n_items] text, "" where nothing was told."""
        place = np.full(n_items, len(self.first), np.int64)
        place[self.item_idx] = np.arange(len(self.first))
        return pa.concat_arrays([self.first, pa.array([""], pa.large_string())]).take(pa.array(place))


def told_by_interactions(path: Path, column: str, scratch: Path) -> ToldOfItems:
    """Looks through a whole Parquet file of interactions; DuckDB goes to ``scratch`` when memory runs short."""
    name = '"' + column.replace('"', '""') + '"'
    query = (
        f"SELECT {ITEM_IDX} AS item, arg_min({name}, file_row_number) AS first, min({name}) <> max({name}) AS differs "
        f"FROM read_parquet($path, file_row_number = true) WHERE {name} <> '' GROUP BY {ITEM_IDX} ORDER BY {ITEM_IDX}"
    )
    with database(scratch) as connection:
        table = connection.sql(query, params={"path": str(path)}).to_arrow_table()
    return ToldOfItems(
        table.column("item").to_numpy(),
        table.column("first").cast(pa.large_string()).combine_chunks(),
        int(np.asarray(table.column("differs").to_numpy(), bool).sum()),
    )


def database(scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database of its own with bounded memory; it fetches nothing, and its overflow is removed with ``scratch``."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "memory_limit": "1GB",
        "temp_directory": str(scratch / "overflow"),
        "threads": "2",
    }
    return duckdb.connect(config=config)


def drop_columns(path: Path, gone: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Writes a Parquet file anew without some columns, and with others by another name."""
    if not gone and not renamed:
        return
    fresh = path.with_suffix(".new")
    with pq.ParquetFile(path) as opened:
        names = [name for name in opened.schema_arrow.names if name not in gone]
        called = [renamed.get(name, name) for name in names]
        schema = pa.schema([opened.schema_arrow.field(n).with_name(c) for n, c in zip(names, called, strict=True)])
        with pq.ParquetWriter(fresh, schema, **parquet_options(schema)) as writer:
            for group in range(opened.num_row_groups):
                writer.write_table(opened.read_row_group(group, columns=names).rename_columns(called))
    fresh.replace(path)


def beside(columns: Mapping[str, pa.Array], further: Mapping[str, pa.Array], key: str) -> dict[str, pa.Array]:
    """Two tables side by side by their ids, each of which stands once in a table; "" where one does not know an id."""
    own, other = columns[key], further[key]
    new = other.filter(pc.is_null(pc.index_in(other, own)))
    ids = pa.concat_arrays([own, new])
    found: dict[str, pa.Array] = {key: ids}
    for table in (columns, further):
        place = pc.index_in(ids, table[key])
        found |= {name: pc.fill_null(cells.take(place), "") for name, cells in table.items() if name != key}
    return found
