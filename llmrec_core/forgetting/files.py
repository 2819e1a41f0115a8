"""Taking a person out of one file: tables lose rows, JSON loses entries, running text loses the id. Always atomic.

Every function counts first and writes only if told to, so that a dry run and the act look at the same things.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.errors import DataError
from llmrec_core.forgetting.person import USER_KEYS, Person
from llmrec_core.workspace import write_text_atomic

_BLOCK_ROWS = 1 << 18
#: Larger texts are logs gone wild; they are cut into lines and never held as one.
TEXT_ENDINGS = frozenset({".json", ".jsonl", ".csv", ".tsv", ".txt", ".log", ".yaml", ".yml", ".html", ".md"})

Clean = Callable[[pa.Table], pa.Table]


def clean_parquet(path: Path, person: Person, *, write: bool) -> int:
    """Rows of the person, by ``user_id`` or ``user``, go; other text loses a distinctive id.

    Returns:
        Rows removed, plus cells changed where no row went.
    """
    changed = 0

    def clean(table: pa.Table) -> pa.Table:
        nonlocal changed
        for column in USER_KEYS:
            if column in table.column_names and _is_text(table.schema.field(column).type):
                keep = pc.invert(person.matches(table.column(column)))
                changed += table.num_rows - int(pc.sum(keep).as_py() or 0)
                table = table.filter(keep)
        table, n_cells = redact_columns(table, person)
        changed += n_cells
        return table

    if not write:
        with open_parquet(path) as opened:
            for batch in opened.iter_batches(_BLOCK_ROWS):
                clean(pa.Table.from_batches([batch]))
        return changed
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        rewrite_parquet(path, temporary, clean)
        if changed:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return changed


def redact_columns(table: pa.Table, person: Person) -> tuple[pa.Table, int]:
    """``table`` without a distinctive id in its text columns, and how many cells that changed."""
    n_cells = 0
    for number, field in enumerate(table.schema):
        if not _is_plain_text(field.type):
            continue
        before = table.column(number).combine_chunks()
        before = before if isinstance(before, pa.Array) else pa.concat_arrays(before.chunks)
        after = person.redact_column(before)
        if after is not before:
            n_cells += int(pc.sum(pc.fill_null(pc.not_equal(before, after), False)).as_py() or 0)
            table = table.set_column(number, field, after)
    return table, n_cells


def rewrite_parquet(source: Path, target: Path, clean: Clean) -> tuple[int, int]:
    """Writes what ``clean`` leaves of each block, in bounded memory. Returns: (rows before, rows after)."""
    before = after = 0
    with open_parquet(source) as opened:
        schema = opened.schema_arrow
        codecs = _codecs(opened.metadata)
        writer: pq.ParquetWriter | None = None
        try:
            for batch in opened.iter_batches(_BLOCK_ROWS):
                table = _fresh(clean(pa.Table.from_batches([batch])))
                before, after = before + batch.num_rows, after + table.num_rows
                if writer is None:
                    writer = pq.ParquetWriter(target, table.schema, compression=codecs)
                writer.write_table(table)
            if writer is None:
                writer = pq.ParquetWriter(target, clean(schema.empty_table()).schema, compression=codecs)
        finally:
            if writer is not None:
                writer.close()
    sync(target)
    return before, after


def _codecs(metadata: pq.FileMetaData) -> dict[str, str] | str:
    """The compression of each column, as the writer takes it."""
    if not metadata.num_row_groups:
        return "snappy"
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    return {column.path_in_schema: column.compression.lower().replace("uncompressed", "none") for column in columns}


def clean_text(path: Path, person: Person, *, write: bool) -> int:
    """A JSON document, JSON lines or any other text without the person. Returns: lines (JSON: documents) changed."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return 0
    if path.suffix == ".json":
        cleaned, changed = _clean_document(text, person)
    elif path.suffix == ".jsonl":
        cleaned, changed = _clean_json_lines(text, person)
    else:
        lines = text.splitlines(keepends=True)
        kept = [person.redact(line) for line in lines]
        cleaned, changed = "".join(kept), sum(a != b for a, b in zip(lines, kept, strict=True))
    if changed and write:
        write_text_atomic(path, cleaned)
    return changed


def clean_file(path: Path, person: Person, *, write: bool) -> int:
    """Any file whose kind is known; others are left for the search at the end."""
    if path.suffix == ".parquet":
        return clean_parquet(path, person, write=write)
    return clean_text(path, person, write=write) if path.suffix in TEXT_ENDINGS else 0


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises: DataError: it is damaged."""
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the table cannot be read ({str(error).splitlines()[0][:200]}), so nobody can be taken out of it.",
            where=str(path),
            fix="Delete the dataset or run it belongs to, then forget the user again.",
        ) from error


def sync(path: Path) -> None:
    """Makes a file durable before it takes another's place."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _clean_document(text: str, person: Person) -> tuple[str, int]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        cleaned = person.redact(text)
        return cleaned, int(cleaned != text)
    scrubbed = person.scrub(value)
    if scrubbed == value:
        return text, 0
    return json.dumps(scrubbed, indent=2, ensure_ascii=False) + "\n", 1


def _clean_json_lines(text: str, person: Person) -> tuple[str, int]:
    """Lines about the person go, others lose the id. A line that is no JSON is cleaned as text."""
    kept: list[str] = []
    changed = 0
    for line in text.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            cleaned = person.redact(line)
            changed += cleaned != line
            kept.append(cleaned)
            continue
        if person.owns(value):
            changed += 1
            continue
        scrubbed = person.scrub(value)
        if scrubbed == value:
            kept.append(line)
        else:
            changed += 1
            kept.append(json.dumps(scrubbed, ensure_ascii=False) + "\n")
    return "".join(kept), changed


def _is_plain_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text(kind: pa.DataType) -> bool:
    return _is_plain_text(kind) or (pa.types.is_dictionary(kind) and _is_plain_text(kind.value_type))


def _fresh(table: pa.Table) -> pa.Table:
    """Dictionary columns encoded anew: a dictionary keeps values that no row has any more."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(number).cast(field.type.value_type)
            table = table.set_column(number, field, pc.dictionary_encode(plain).cast(field.type))
    return table
