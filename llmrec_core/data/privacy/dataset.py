"""Personal data in a stored dataset, table by table, read in blocks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.contracts import ITEM, USER
from llmrec_core.data.dataset import TABLES
from llmrec_core.data.privacy.detect import PersonalFinding, find_personal

if TYPE_CHECKING:
    from llmrec_core.data.store import DatasetStore

_BLOCK_ROWS = 1 << 17
_ABOUT: dict[str, Literal["users", "items", "interactions"]] = {"users": "users", "items": "items"}


def personal_in_dataset(
    store: DatasetStore, name: str, version: int | None = None
) -> list[tuple[str, PersonalFinding]]:
    """(table, finding) for every text column of every table, ids included: an e-mail address may be somebody's id.

    Every cell is looked at. Names are judged block by block, since a few of them say nothing.

    Raises:
        NotFoundError: no such dataset or version.
    """
    meta, folder = store.meta(name, version), store.folder(name, version)
    found = []
    for table in (*TABLES, *meta.extras):
        with pq.ParquetFile(folder / f"{table}.parquet") as opened:
            text = [field.name for field in opened.schema_arrow if _is_text(field.type) and _worth(table, field.name)]
            merged: dict[tuple[str, str], PersonalFinding] = {}
            filled: dict[str, int] = defaultdict(int)
            for batch in opened.iter_batches(_BLOCK_ROWS, columns=text) if text else ():
                block = pa.Table.from_batches([batch])
                for column in text:
                    filled[column] += int(pc.sum(pc.not_equal(block.column(column), "")).as_py() or 0)
                for one in find_personal(block, about=_ABOUT.get(table, "interactions")):
                    known = merged.get((one.column, one.kind))
                    merged[one.column, one.kind] = one if known is None else _joined(known, one)
        found += [(table, replace(one, share=one.n_cells / max(1, filled[one.column]))) for one in merged.values()]
    return found


def _worth(table: str, column: str) -> bool:
    """Ids of items and of users in side tables are the same as in the first one."""
    return column != ITEM and (column != USER or table == "users")


def _joined(first: PersonalFinding, second: PersonalFinding) -> PersonalFinding:
    return replace(
        first,
        n_cells=first.n_cells + second.n_cells,
        examples=(*first.examples, *second.examples)[:3],
        whole_cells=first.whole_cells and second.whole_cells,
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
