"""Checked blocks -> the tables of a dataset, in memory that grows with the ids alone.

Interactions wait on disk as codes until all ids are known, since an index is the place of an id among all of them in
order. Then they are written once more, as they are kept, in the order of the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, USER
from llmrec_core.data._blocks import prefetched
from llmrec_core.data._checking import CheckedBlock
from llmrec_core.data._faults import RefusedRows
from llmrec_core.data._item_columns import drop_columns, told_by_interactions
from llmrec_core.data._repeats import Repeats
from llmrec_core.data.dataset import ITEM_IDX, USER_IDX, Fingerprint, side_columns
from llmrec_core.data.store import REJECTS, Build, parquet_options

Codes = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PART = "part"
MAX_LISTED = 1000
#: Ids of blocks that are not yet among the known ones; beyond it they are joined.
_MAX_WAITING_IDS = 2_000_000
_NARROW = {USER_IDX: pa.int32(), ITEM_IDX: pa.int32(), RATING: pa.float32(), TIME: pa.float64()}


class IdPool:
    """Distinct ids of many blocks, and where each id of a block is among them."""

    def __init__(self) -> None:
        self._known = pa.array([], pa.large_string())
        self._waiting: list[pa.Array] = []
        self._n_waiting = 0
        self._places: list[Codes] = []

    def add(self, words: pa.Array) -> None:
        """Distinct ids of the next block."""
        self._waiting.append(words)
        self._n_waiting += len(words)
        if self._n_waiting > max(_MAX_WAITING_IDS, len(self._known)):
            self._join()

    def _join(self) -> None:
        joined = pa.concat_arrays([self._known, *self._waiting]).dictionary_encode()
        places, start = joined.indices.to_numpy(zero_copy_only=False), len(self._known)
        for words in self._waiting:
            self._places.append(places[start : start + len(words)].copy())
            start += len(words)
        self._known, self._waiting, self._n_waiting = joined.dictionary, [], 0

    def ids(self) -> tuple[pa.Array, list[Codes]]:
        """(all ids in order of first appearance; for each block, the places of its words among them)."""
        if self._waiting:
            self._join()
        return self._known, self._places


class Spill:
    """The accepted interactions of one table, waiting on disk as codes of their ids."""

    def __init__(self, folder: Path, number: int, part: str | None) -> None:
        folder.mkdir(exist_ok=True)
        self._path = folder / f"rows-{number}.arrow"
        self._writer: Any = None
        self.part = part
        self.users, self.items = IdPool(), IdPool()
        self.columns: list[str] = []
        self.n_rows = 0

    def add(self, block: CheckedBlock) -> None:
        table = block.table
        self.columns = list(table.column_names)
        if not len(table):
            return
        columns: dict[str, pa.Array] = {}
        for name in table.column_names:
            cells = _flat(table.column(name))
            if name in (USER, ITEM):
                (self.users if name == USER else self.items).add(cells.dictionary)
                cells = cells.indices
            columns[name] = cells
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), batch.schema)
        self._writer.write_batch(batch)
        self.n_rows += len(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def blocks(self) -> Iterator[pa.RecordBatch]:
        if self._writer is None:
            return
        with pa.OSFile(str(self._path)) as stream:
            reader = pa.ipc.open_file(stream)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class RejectLog:
    """Refused rows of all tables: every one on disk, the first ones at hand."""

    _SCHEMA = pa.schema(
        [
            ("file", pa.large_string()),
            ("line", pa.int64()),
            ("column", pa.large_string()),
            ("reason", pa.large_string()),
            ("text", pa.large_string()),
        ]
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listed: list[dict[str, Any]] = []
        self.count = 0
        self._paths: list[Path] = []

    def table(self) -> _TableLog:
        """Where the refused rows of the next table go; they count once it is kept."""
        return _TableLog(self._folder / f"rejects-{len(self._paths)}.parquet", self._SCHEMA)

    def keep(self, log: _TableLog) -> None:
        log.close()
        self.count += log.count
        self.listed += log.listed[: MAX_LISTED - len(self.listed)]
        self._paths.append(log.path)

    def write(self, folder: Path) -> None:
        """All of them as one table beside the others; none where nothing was refused."""
        if not self.count:
            return
        with pq.ParquetWriter(folder / f"{REJECTS}.parquet", self._SCHEMA, compression="zstd") as writer:
            for path in self._paths:
                if path.is_file():
                    with pq.ParquetFile(path) as opened:
                        for batch in opened.iter_batches(100_000):
                            writer.write_batch(batch)


class _TableLog:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self._schema = path, schema
        self.count = 0
        self.listed: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, file: str, refused: RefusedRows) -> None:
        if not len(refused):
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, self._schema)
        cells = [[file] * len(refused), refused.lines, refused.columns, refused.reasons, refused.texts]
        arrays = [pa.array(c, kind) for c, kind in zip(cells, self._schema.types, strict=True)]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        rows = zip(refused.lines.tolist(), refused.columns, refused.reasons, strict=True)
        for _, (line, column, reason) in zip(range(MAX_LISTED - len(self.listed)), rows, strict=False):
            self.listed.append({"file": file, "line": line, "column": column, "reason": reason})
        self.count += len(refused)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def forget(self) -> None:
        """The table is read again."""
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass
class Written:
    """What came out: aligned tables of text, and what is known about the interactions on disk."""

    items: dict[str, pa.Array]
    users: dict[str, pa.Array]
    n_rows: int
    n_merged: int
    has_timestamps: bool
    digest: Fingerprint
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is to be done with the waiting interactions.

    Attributes:
        timed: rows keep their times.
        duplicates: what becomes of rows of one user and item (of one part): keep, last, mean or count.
        carried: text columns that may belong to the items.
        rename: what users are called in the dataset, in the order of the given ids (pseudonyms); None: as they are.
    """

    name: str
    timed: bool
    duplicates: str = "keep"
    carried: Sequence[str] = ()
    rename: Callable[[pa.Array], pa.Array] | None = None


def write_interactions(
    build: Build, spills: Sequence[Spill], items: Mapping[str, pa.Array], users: Mapping[str, pa.Array], plan: Plan
) -> Written:
    """Writes ``interactions.parquet`` and aligns items and users with it.

    Args:
        items, users: what is known beside the interactions, as columns of text; {} for nothing.

    Raises:
        DataError: an id stands more than once among ``items`` or ``users``.
    """
    with ThreadPoolExecutor(1) as beside:
        of_items = beside.submit(_settled_ids, [spill.items for spill in spills], items, ITEM, plan.name)
        user_table, user_places = _settled_ids(
            [spill.users for spill in spills], users, USER, plan.name, plan.rename
        )  # fmt: skip
        item_table, item_places = of_items.result()
    texts = list(dict.fromkeys(c for s in spills for c in s.columns if c not in (USER, ITEM, RATING, TIME)))
    if any(spill.part for spill in spills):
        texts.append(PART)
    schema = pa.schema([*_NARROW.items(), *((name, pa.large_string()) for name in texts)])

    def rows() -> Iterator[dict[str, pa.Array]]:
        for spill, user_of, item_of in zip(spills, user_places, item_places, strict=True):
            for number, batch in enumerate(spill.blocks()):
                yield _stored(batch, user_of[number], item_of[number], texts, plan.timed, spill.part)

    settled = None if plan.duplicates == "keep" else _settle(rows(), plan, len(item_table[ITEM]))
    digest, repeated = Fingerprint(), Repeats()

    def kept() -> Iterator[tuple[int, pa.Table]]:
        """(rows before duplicates were settled, the rows to be written) of each block."""
        start = 0
        for columns in rows():
            n_block = len(columns[USER_IDX])
            if settled is not None:
                columns = settled.apply(columns, start)
            start += n_block
            digest.add("interactions", columns)
            if settled is None:
                repeated.add(columns)
            yield n_block, pa.table(columns, schema=schema)

    path = build.folder / "interactions.parquet"
    n_before = n_rows = 0
    with pq.ParquetWriter(path, schema, **parquet_options(schema)) as writer, closing(prefetched(kept())) as ready:
        for n_block, table in ready:
            n_before += n_block
            n_rows += len(table)
            if len(table):
                writer.write_table(table)
            build.alive()
    written = Written(item_table, user_table, n_rows, n_before - n_rows, plan.timed, digest)
    carried = [column for column in plan.carried if column in texts]
    if carried:
        _carry(build, written, carried, items, schema)
    if settled is None:
        repeats = repeated.count()
        if repeats:
            written.notes.append(
                f"{repeats:,} interactions repeat an earlier row exactly; they are kept (duplicates=last drops them)"
            )
    elif written.n_merged:
        written.notes.append(f"duplicates={plan.duplicates}: {_POLICIES[plan.duplicates].format(n=written.n_merged)}")
    title = item_table.get(TITLE)
    ids = item_table[ITEM]
    full = ids if title is None else pc.if_else(pc.equal(title, ""), ids, title)
    written.items = {ITEM: ids, TITLE: full, **{c: v for c, v in item_table.items() if c not in (ITEM, TITLE)}}
    return written


_POLICIES = {
    "last": "{n:,} earlier rows of the same user and item gave way to the last one",
    "mean": "{n:,} rows were taken together with others of the same user and item; the rating is their mean",
    "count": "{n:,} rows were taken together with others of the same user and item; the rating is how many there were",
}


def write_side(build: Build, name: str, columns: Mapping[str, pa.Array], digest: Fingerprint) -> None:
    """A table of text beside the interactions."""
    table = pa.table(dict(columns))
    pq.write_table(table, build.folder / f"{name}.parquet", **parquet_options(table.schema))
    digest.add(name, columns)


def clear(folder: Path) -> None:
    """Removes what waited on disk."""
    shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ rows


def _settled_ids(
    pools: Sequence[IdPool],
    known: Mapping[str, pa.Array],
    key: str,
    name: str,
    rename: Callable[[pa.Array], pa.Array] | None = None,
) -> tuple[dict[str, pa.Array], list[list[Codes]]]:
    """(columns of the items or users; for each table and block, the index of each of its words).

    Args:
        known: what is known of them beside the interactions.
        rename: what they are called in the dataset.

    Raises:
        DataError: an id stands more than once in ``known``.
    """
    everyone = IdPool()
    places = []
    for pool in pools:
        ids, blocks = pool.ids()
        everyone.add(ids)
        places.append(blocks)
    seen, of_pools = everyone.ids()
    seen = seen if rename is None else rename(seen)
    table = side_columns(known, key, seen, name)
    rank = pc.index_in(seen, table[key]).to_numpy(zero_copy_only=False).astype(np.int32)
    return table, [
        [rank[of_pool[block]] for block in blocks] for of_pool, blocks in zip(of_pools, places, strict=True)
    ]  # fmt: skip


def _stored(
    batch: pa.RecordBatch, user_of: Codes, item_of: Codes, texts: Sequence[str], timed: bool, part: str | None
) -> dict[str, pa.Array]:
    """A waiting block by its final columns."""
    n_rows = batch.num_rows
    names = set(batch.schema.names)

    def numbers(name: str, kind: npt.DTypeLike, used: bool = True) -> pa.Array:
        if name in names and used:
            return pa.array(batch.column(name).to_numpy(zero_copy_only=False).astype(kind))
        return pa.array(np.full(n_rows, np.nan, kind))

    columns = {
        USER_IDX: pa.array(user_of[batch.column(USER).to_numpy(zero_copy_only=False)]),
        ITEM_IDX: pa.array(item_of[batch.column(ITEM).to_numpy(zero_copy_only=False)]),
        RATING: numbers(RATING, np.float32),
        TIME: numbers(TIME, np.float64, timed),
    }
    for name in texts:
        if name == PART:
            columns[name] = pa.repeat(pa.scalar(part or "", pa.large_string()), n_rows)
        elif name in names:
            columns[name] = batch.column(name)
        else:
            columns[name] = pa.repeat(pa.scalar("", pa.large_string()), n_rows)
    return columns


# ------------------------------------------------------------------------------------------------ duplicates


@dataclass(frozen=True)
class _Settled:
    """Which rows stay, [n_rows]; and the rating of each row, where the policy gives a new one."""

    keep: npt.NDArray[np.bool_]
    ratings: npt.NDArray[np.float32] | None

    def apply(self, columns: dict[str, pa.Array], start: int) -> dict[str, pa.Array]:
        rows = slice(start, start + len(columns[USER_IDX]))
        if self.ratings is not None:
            columns = {**columns, RATING: pa.array(self.ratings[rows])}
        chosen = pa.array(self.keep[rows])
        return {name: cells.filter(chosen) for name, cells in columns.items()}


def _settle(blocks: Iterator[dict[str, pa.Array]], plan: Plan, n_items: int) -> _Settled:
    """Of the rows of one user, item and part, the latest stays, and of equally late ones the last in the files."""
    pairs: list[Ints] = []
    times: list[Floats] = []
    ratings: list[Floats] = []
    for columns in blocks:
        pair = columns[USER_IDX].to_numpy(zero_copy_only=False).astype(np.int64) * n_items
        pair += columns[ITEM_IDX].to_numpy(zero_copy_only=False)
        if PART in columns:
            codes = pc.index_in(columns[PART], pa.array(["", "train", "valid", "test"], pa.large_string()))
            pair = pair * 4 + codes.to_numpy(zero_copy_only=False)
        pairs.append(pair)
        times.append(columns[TIME].to_numpy(zero_copy_only=False))
        ratings.append(columns[RATING].to_numpy(zero_copy_only=False).astype(np.float64))
    pair, rating = np.concatenate(pairs), np.concatenate(ratings)
    order = np.lexsort((np.concatenate(times), pair)) if plan.timed else np.argsort(pair, kind="stable")
    ordered = pair[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    keep = np.zeros(len(pair), bool)
    keep[order[last]] = True
    if plan.duplicates == "last":
        return _Settled(keep, None)
    starts = np.flatnonzero(np.insert(last[:-1], 0, True))
    given = ~np.isnan(rating[order])
    n_rows = np.diff(np.append(starts, len(pair)))
    if plan.duplicates == "count":
        values = n_rows.astype(np.float64)
    else:
        total = np.add.reduceat(np.where(given, rating[order], 0.0), starts)
        n_given = np.add.reduceat(given.astype(np.int64), starts)
        values = np.divide(total, n_given, out=np.full(len(starts), np.nan), where=n_given > 0)
    settled = rating.astype(np.float32)
    settled[order[last]] = values
    return _Settled(keep, settled)


# ------------------------------------------------------------------------------------------------ columns of items


def _carry(
    build: Build, written: Written, carried: Sequence[str], items: Mapping[str, pa.Array], schema: pa.Schema
) -> None:
    """Moves titles and the like that stood in the interactions to the items, where they say one thing of each item."""
    path = build.folder / "interactions.parquet"
    moved, renamed = [], {}
    for column in carried:
        told = told_by_interactions(path, column, build.folder)
        if column in items or not told.believable:
            renamed[column] = f"interaction_{column}"
            written.digest.rename("interactions", column, renamed[column])
            why = "items have their own" if column in items else "it differs within one item"
            written.notes.append(f"column {column!r} of the interactions is kept as {renamed[column]!r}: {why}")
            continue
        if told.n_conflicting:
            written.notes.append(f"{told.n_conflicting:,} items had more than one {column}; the first is kept")
        written.items[column] = told.cells(len(written.items[ITEM]))
        written.digest.drop("interactions", column)
        moved.append(column)
    drop_columns(path, moved, renamed)


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


__all__ = ["MAX_LISTED", "IdPool", "Plan", "RejectLog", "Spill", "Written", "clear", "write_interactions", "write_side"]
