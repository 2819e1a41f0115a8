"""Parquet files of any nesting -> blocks of text, row group by row group, whatever the file unfolds to.

A partitioned folder (``day=2024-01-01/part-0.parquet`` and the like) is one table; the keys in its folder names are
columns.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.data._arrow_text import TEXT, flat_columns, flat_names, flat_types, is_binary, text_block
from llmrec_core.data._roles import Corrections, check_headers
from llmrec_core.data._sources import Source
from llmrec_core.data._text_files import MAX_LISTED_REJECTS, RawTable, Rejects
from llmrec_core.errors import DataError

_BLOCK_ROWS = 65_536
#: Text of one block. Larger blocks are cut before their dictionaries unfold.
_BLOCK_BYTES = 64 << 20
_MAX_COLUMNS = 2000
_MAX_ROWS = 4_000_000_000
_MAX_FILES = 10_000
#: A file that unfolds to more than both is no table that anybody exported.
_MAX_RATIO, _RATIO_FREE_BYTES = 1000, 1 << 30
#: One row group is decoded page by page; a column of one larger than this cannot be held.
_MAX_COLUMN_BYTES = 2 << 30
_PROBE_ROWS = 1000
_SUFFIXES = (".parquet", ".pq", ".parq")
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"


def parquet_source(path: Path, corrections: Corrections, name: str = "") -> Source:
    """One Source of a Parquet file, or of a folder of Parquet files that share their columns.

    Raises:
        DataError: damaged, cut short, encrypted, or unfolding to more than any table holds; files of a folder differ.
    """
    name = name or path.name
    files = _files(path, name)
    plan = _plan(files, path, name)
    notes = list(plan.notes)
    if len(files) > 1 or path.is_dir():
        notes.append(f"{len(files)} files are one table; rows are counted through them in the order of their names")

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        return _blocks(plan, max_rows)

    def careful(max_rows: int | None) -> RawTable:
        return joined(list(batches(max_rows)), plan.columns, name)

    return Source(
        path, "parquet", plan.columns, lambda: careful(None), careful, notes=tuple(notes), name=name, batches=batches,
    )  # fmt: skip


def joined(blocks: Sequence[RawTable], columns: Sequence[str], name: str) -> RawTable:
    """Blocks as one table."""
    rejects = Rejects(name)
    for block in blocks:
        rejects.count += block.rejects.count
        rejects.listed += block.rejects.listed
    rejects.listed = sorted(rejects.listed)[:MAX_LISTED_REJECTS]
    if not blocks:
        empty = pa.table({column: pa.array([], TEXT) for column in columns})
        return RawTable(empty, np.zeros(0, np.int64), rejects)
    lines = [block.lines for block in blocks if block.lines is not None]
    return RawTable(
        pa.concat_tables([block.table for block in blocks]).combine_chunks(), np.concatenate(lines), rejects
    )


@dataclass(frozen=True)
class _Plan:
    """``kept``: positions of the flattened columns that hold text; ``keys``: partition columns of each file."""

    name: str
    files: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...]
    key_names: tuple[str, ...]
    kept: tuple[int, ...]
    file_columns: tuple[str, ...]
    size_bytes: int
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(self.file_columns[i] for i in self.kept), *self.key_names)


def _files(path: Path, name: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(
        f for f in path.rglob("*")
        if f.name.lower().endswith(_SUFFIXES) and not f.name.startswith((".", "_")) and f.is_file()
    )  # fmt: skip
    root = path.resolve()
    if any(not f.resolve().is_relative_to(root) for f in files):
        raise DataError("the folder holds links that lead out of it.", where=name, fix="Copy the files into it.")
    if not files or len(files) > _MAX_FILES:
        raise DataError(f"the folder holds {len(files):,} Parquet files.", where=name, fix=f"Give 1 to {_MAX_FILES:,}.")
    return files


def _plan(files: Sequence[Path], root: Path, name: str) -> _Plan:
    schema, _ = _look(files[0], name)
    size = rows = 0
    keys: list[tuple[str, ...]] = []
    key_names: tuple[str, ...] = ()
    for file in files:
        found, n_rows = _look(file, name)
        if flat_names(found) != flat_names(schema):
            raise DataError(
                "the files of this folder do not have the same columns.",
                where=f"{name}: {files[0].name} and {file.name}",
                fix="Import the files one by one.",
            )
        pairs = _partition(file.parent.relative_to(root)) if root.is_dir() else []
        if keys and key_names != tuple(key for key, _ in pairs):
            raise DataError("the files lie under different partition keys.", where=f"{name}: {file.name}")
        key_names = tuple(key for key, _ in pairs)
        keys.append(tuple(value for _, value in pairs))
        size += file.stat().st_size
        rows += n_rows
    if rows > _MAX_ROWS:
        raise DataError(f"the file claims {rows:,} rows.", where=name, fix="Nothing was read.")
    columns = flat_names(schema)
    kept, notes = _text_columns(files[0], schema, columns, name)
    key_names = tuple(key if key not in columns else f"{key} (folder)" for key in key_names)
    plan = _Plan(name, tuple(files), tuple(keys), key_names, kept, tuple(columns), size, tuple(notes))
    if len(plan.columns) > _MAX_COLUMNS:
        raise DataError(f"more than {_MAX_COLUMNS:,} columns.", where=name, fix="Keep the columns that matter.")
    check_headers(plan.columns, name)
    return plan


def _look(file: Path, name: str) -> tuple[pa.Schema, int]:
    """(schema, rows) by the file's own description, which must be whole and believable."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, size - 4))
        tail = stream.read(4)
    if _ENCRYPTED in (head, tail):
        raise DataError("this Parquet file is encrypted.", where=name, fix="Export it without encryption.")
    if head != _MAGIC:
        raise DataError("this is not a Parquet file.", where=name, fix="Export it again.")
    if tail != _MAGIC:
        raise DataError("the Parquet file is cut short.", where=name, fix="Copy or export it again.")
    try:
        with pq.ParquetFile(file) as parquet:
            described, schema = parquet.metadata, parquet.schema_arrow
            if described.num_columns > _MAX_COLUMNS:
                raise DataError(f"more than {_MAX_COLUMNS:,} columns.", where=name, fix="Keep those that matter.")
            unfolded = largest = 0
            for group in range(described.num_row_groups):
                row_group = described.row_group(group)
                for column in range(described.num_columns):
                    chunk = row_group.column(column)
                    unfolded += chunk.total_uncompressed_size
                    largest = max(largest, chunk.total_uncompressed_size)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(name, error) from None
    if largest > _MAX_COLUMN_BYTES or (unfolded > _RATIO_FREE_BYTES and unfolded > _MAX_RATIO * size):
        raise _bomb(name, size, unfolded)
    return schema, described.num_rows


def _bomb(name: str, size: int, unfolded: int) -> DataError:
    return DataError(
        f"{size:,} bytes of Parquet unfold to more than {unfolded:,}: this is refused.",
        where=name,
        fix="Export the table again, in smaller row groups.",
    )


def _damaged(name: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or ["unreadable"])[0][:160]
    return DataError(f"the Parquet file is damaged ({reason}).", where=name, fix="Export it again.")


def _partition(folder: Path) -> list[tuple[str, str]]:
    """``day=2024-01-01/shop=3`` -> [("day", "2024-01-01"), ("shop", "3")], as Hive and Spark write it."""
    pairs = []
    for part in folder.parts:
        key, equals, value = part.partition("=")
        if equals and key:
            value = urllib.parse.unquote(value)
            pairs.append((urllib.parse.unquote(key), "" if value == "__HIVE_DEFAULT_PARTITION__" else value))
    return pairs


def _text_columns(
    file: Path, schema: pa.Schema, columns: Sequence[str], name: str
) -> tuple[tuple[int, ...], list[str]]:
    """Columns that can be told as text: bytes count as text where the first ones are UTF-8."""
    kinds = flat_types(schema)
    binary = [i for i, kind in enumerate(kinds) if is_binary(kind)]
    left_out: list[int] = []
    if binary:
        for batch, _ in _raw_batches(file, name, _PROBE_ROWS):
            arrays = flat_columns(batch)
            left_out = [i for i in binary if not _is_text(arrays[i])]
            break
    kept = tuple(i for i in range(len(columns)) if i not in left_out)
    notes = [f"column {columns[i][:60]!r} holds bytes that are not text: it is left out" for i in left_out]
    if not kept:
        raise DataError("no column holds text or numbers.", where=name)
    return kept, notes


def _is_text(values: pa.Array) -> bool:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    for value in values.slice(0, _PROBE_ROWS).to_pylist():
        try:
            (value or b"").decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


def _raw_batches(file: Path, name: str, rows: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(batch, row of its first row in the file from 0); texts stay behind their dictionaries."""
    try:
        with pq.ParquetFile(file) as parquet:
            described = parquet.metadata
            texts = [
                described.schema.column(i).path
                for i in range(described.num_columns)
                if described.schema.column(i).physical_type == "BYTE_ARRAY"
            ]
        with pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False) as parquet:
            at = 0
            for batch in parquet.iter_batches(batch_size=rows, use_threads=True):
                yield batch, at
                at += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(name, error) from None


def _blocks(plan: _Plan, max_rows: int | None) -> Iterator[RawTable]:
    before, unfolded = 0, 0
    for file, keys in zip(plan.files, plan.keys, strict=True):
        in_file = 0
        rows = _BLOCK_ROWS if max_rows is None else min(_BLOCK_ROWS, max(1, max_rows - before))
        for batch, at in _raw_batches(file, plan.name, rows):
            in_file = at + len(batch)
            if max_rows is not None:
                batch = batch.slice(0, max(0, max_rows - before - at))
            for piece, start in _pieces(flat_columns(batch), len(batch)):
                block = _block(plan, piece, keys, before + at + start)
                unfolded += block.table.nbytes
                if unfolded > _RATIO_FREE_BYTES and unfolded > _MAX_RATIO * plan.size_bytes:
                    raise _bomb(plan.name, plan.size_bytes, unfolded)
                yield block
            if max_rows is not None and before + in_file >= max_rows:
                return
        before += in_file


def _pieces(columns: Sequence[pa.Array], n_rows: int) -> Iterator[tuple[list[pa.Array], int]]:
    """Slices whose text fits a block, without copying: repeated texts still lie in their dictionaries."""
    if not n_rows:
        return
    weight = np.zeros(n_rows, np.int64)
    for column in columns:
        weight += _row_bytes(column, n_rows)
    ends = np.cumsum(weight)
    start = 0
    while start < n_rows:
        used = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, used + _BLOCK_BYTES, side="right")))
        yield [column.slice(start, end - start) for column in columns], start
        start = end


def _row_bytes(column: pa.Array, n_rows: int) -> npt.NDArray[np.int64]:
    """[n_rows] bytes of each row as text, roughly."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not pa.types.is_nested(kind.value_type):
        lengths = pc.fill_null(pc.binary_length(column.dictionary), 0) if len(column.dictionary) else None
        if lengths is None:
            return np.zeros(n_rows, np.int64)
        return pc.fill_null(pc.take(lengths, column.indices), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = column.flatten()
        each = np.concatenate([[0], np.cumsum(_row_bytes(inner, len(inner)))])
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        edges = np.concatenate([[0], np.cumsum(lengths)])
        return np.asarray(each[edges[1:]] - each[edges[:-1]] + 2 * lengths, np.int64)
    return np.full(n_rows, max(16, column.nbytes // max(1, n_rows)), np.int64)


def _block(plan: _Plan, arrays: Sequence[pa.Array], keys: Sequence[str], before: int) -> RawTable:
    repeated = pa.array(np.zeros(len(arrays[0]), np.int64))
    kept = [arrays[i] for i in plan.kept] + [pa.array([key], TEXT).take(repeated) for key in keys]
    return text_block(kept, plan.columns, plan.name, before)
