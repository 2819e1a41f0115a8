"""JSON in its several coats -> columns of text: lines of objects, one list of them, a list inside an object; bare lists
of cells instead of objects.

Everything is streamed: no more than one block of rows is held, but for a table by columns, which has no rows before its
end and may therefore not be large. Numbers stay the text they are, so that ids keep every
digit. A row that is no object, or not valid, is refused with its line.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from llmrec_core.data._encodings import MAX_LINE_BYTES, detect_encoding, utf8_blocks, utf8_chunks
from llmrec_core.data._json_shapes import Shape, rows_of, shape_of
from llmrec_core.data._json_window import Broken, Refused, Twice, Window, decoded
from llmrec_core.data._raw import MAX_RAW_CHARS, RawTable, Rejects, text_schema
from llmrec_core.data._roles import check_headers, is_role_name
from llmrec_core.errors import DataError

_BLOCK_ROWS, _BLOCK_CHARS = 20_000, 32 << 20
_MAX_COLUMNS = 2000
#: An object with more different fields than this is a mapping, not a part of the table.
_MAX_INNER = 32
_MAX_DEPTH = 64
#: One object that is a whole table is held in memory, as ten times as much.
_MAX_WHOLE_BYTES = 64 << 20
#: An object whose first field holds many values.
_LONG_FIELD = re.compile(r'\{\s*"[^"]*"\s*:\s*[\[{]')
#: (line, object) or (line, why it is refused).
Elements = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class JsonFile:
    """How a JSON file is to be read.

    Attributes:
        form: "lines" (one object a line), "python" (one Python dict a line), "list", "inside" (a list that is a field
            of one object, named by ``inside``), "stream" (objects over several lines, one after another) or "whole"
            (one object that is a table by ``shape``; the line of a row is its number then).
        columns: all fields of all objects, in order of appearance; ``a.b`` is field b of the object in field a.
    """

    path: Path
    name: str
    encoding: str
    form: str
    inside: str = ""
    columns: tuple[str, ...] = ()
    #: For each column: the field, and the field inside that one or None.
    places: tuple[tuple[str, str | None], ...] = ()
    shape: Shape | None = None
    notes: tuple[str, ...] = ()
    #: Names of the cells, where rows are bare lists; whether the first of them gave these names.
    cells: tuple[str, ...] = ()
    header: bool = True


def sniff_json(path: Path, encoding: str | None = None, *, name: str = "") -> list[JsonFile]:
    """Looks at all of the file, for its tables and the names of their fields.

    Returns:
        One table; several where one object holds several lists.

    Raises:
        DataError: it is no text, no row can be read, or there are too many fields.
    """
    name = name or path.name
    codec, notes = detect_encoding(path, encoding, name)
    lists = _inner_lists(path, codec, name)
    shape = None if lists else _whole_shape(path, codec, name)
    if shape is not None:
        notes = [*notes, f"{shape.note}; refused rows are told by their number, not by their line"]
        tables = [JsonFile(path, name, codec, "whole", shape=shape)]
    elif lists:
        notes = [*notes, f"one object: its lists {', '.join(key[:40] for key in lists)} are taken as tables"]
        alone = len(lists) == 1
        tables = [JsonFile(path, name if alone else f"{name}/{key}", codec, "inside", key) for key in lists]
    else:
        form, more_notes = _form_of(path, codec, name)
        notes = [*notes, *more_notes]
        cells, header = _cells_of(path, codec, name, form)
        if cells:
            named = "the first names the columns" if header else f"the columns are called {', '.join(cells[:2])} ..."
            notes = [*notes, f"rows are bare lists of cells; {named}"]
        tables = [JsonFile(path, name, codec, form, cells=cells, header=header or not cells)]
    return [_with_columns(table, notes) for table in tables]


def _with_columns(table: JsonFile, notes: Sequence[str]) -> JsonFile:
    places = _places(table)
    check_headers(list(places), table.name)
    return replace(table, columns=tuple(places), places=tuple(places.values()), notes=tuple(notes))


def _inner_lists(path: Path, codec: str, name: str) -> list[str]:
    """Fields of the one object in the file that hold lists of objects; [] where the file is anything else."""
    head = _start_of(path, codec, name)
    first = re.split(r"\r\n?|\n", head, maxsplit=1)[0]
    if not head.startswith("{") or (len(head) > len(first) and not isinstance(decoded(first), Refused)):
        return []
    window = Window(path, codec, name)
    try:
        keys = list(window.lists())
        window.skip_space()
        # More objects behind the first one: rows, not one object around them.
        return keys if window.ahead() == "" else []
    except Broken:
        return []


def _whole_shape(path: Path, codec: str, name: str) -> Shape | None:
    """How the one object in the file is a table; None where it is a row, or there are more of them.

    Raises:
        DataError: it is neither, or larger than can be held.
    """
    head = _start_of(path, codec, name)
    if not head.startswith("{"):
        return None
    window = Window(path, codec, name)
    window.skip_space()
    try:
        value = window.value()
        window.skip_space()
    except (Broken, Twice):
        if not window.too_long or not _LONG_FIELD.match(head):
            return None
        whole = _whole(path, codec, name)
        # Anything else begins with a row that is too long, and is refused alone.
        return shape_of(whole, name) if isinstance(whole, dict) else None
    return shape_of(value, name) if isinstance(value, dict) and window.ahead() == "" else None


def _whole(path: Path, codec: str, name: str) -> Any:
    if path.stat().st_size > _MAX_WHOLE_BYTES:
        raise DataError(
            f"one JSON value of {path.stat().st_size >> 20:,} MB: of a table that is no list of rows, at most "
            f"{_MAX_WHOLE_BYTES >> 20} MB are read.",
            where=name,
            fix="Write one object a row: in pandas, to_json(path, orient='records', lines=True).",
        )
    return decoded(b"".join(utf8_blocks(path, codec, name)).decode("utf-8", "replace"))


def _start_of(path: Path, codec: str, name: str) -> str:
    return next(utf8_blocks(path, codec, name), b"").decode("utf-8", "replace").lstrip()


def _form_of(path: Path, codec: str, name: str) -> tuple[str, list[str]]:
    head = _start_of(path, codec, name)
    start = head[:1]
    first, *more = [line for line in re.split(r"\r\n?|\n", head) if line.strip()][:2] or [""]
    if start == "[":
        row = decoded(first)
        bare = bool(more) and isinstance(row, list) and not all(isinstance(cell, list | dict) for cell in row)
        return "lines" if bare else "list", []
    if start == "{" and isinstance(_python_dict(first), dict) and isinstance(decoded(first), Refused):
        return "python", ["the lines are Python dicts, not JSON; they were read as such"]
    window = Window(path, codec, name)
    try:
        window.skip_space()
        value = window.value()
        window.skip_space()
    except Broken:
        return "lines", []
    over_lines = isinstance(value, dict) and isinstance(decoded(first), Refused)
    return ("stream" if over_lines and window.ahead() in ("{", "") else "lines"), []


def _cells_of(path: Path, codec: str, name: str, form: str) -> tuple[tuple[str, ...], bool]:
    """(names of the cells, whether the first row gives them) where rows are bare lists; ((), False) elsewhere."""
    window = Window(path, codec, name)
    window.skip_space()
    if form == "list":
        window.position += 1
        window.skip_space()
    if form not in ("list", "lines") or window.ahead() != "[":
        return (), False
    try:
        row = window.value()
    except (Broken, Twice):
        return (), False
    if not 2 <= len(row) <= _MAX_COLUMNS:
        return (), False
    if all(isinstance(cell, str) for cell in row) and sum(map(is_role_name, row)) >= 2:
        return tuple(cell.strip() for cell in row), True
    return tuple(f"column_{number}" for number in range(1, len(row) + 1)), False


# ------------------------------------------------------------------------------------------------ elements


def _python_dict(line: str) -> Any:
    """A dict literal as older public files have them; nothing but literals, never code."""
    depth = deepest = 0
    for mark in re.findall(r"[\[\](){}]", line):
        depth += 1 if mark in "[({" else -1
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH or len(line) > MAX_LINE_BYTES // 4:
        return Refused("nested too deeply, or too long")
    try:
        value = _plain(ast.literal_eval(line.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        return Refused(f"not a Python dict ({str(error)[:80]})")
    return value if isinstance(value, dict) else Refused("not an object with fields")


def _plain(value: Any) -> Any:
    """Literals as JSON has them; numbers as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and abs(value) < float("inf")):
        return str(value)
    raise ValueError(f"{type(value).__name__} values")


def _elements(file: JsonFile) -> Elements:
    found = _values(file)
    if not file.cells:
        yield from found
        return
    for line, value in islice(found, int(file.header), None):
        if not isinstance(value, list):
            yield line, value if isinstance(value, Refused) else Refused("not a list of cells")
        elif len(value) != len(file.cells):
            yield line, Refused(f"{len(value)} cells instead of {len(file.cells)}")
        else:
            yield line, dict(zip(file.cells, value, strict=True))


def _values(file: JsonFile) -> Elements:
    row = list if file.cells else dict
    if file.form in ("lines", "python"):
        yield from _lines(file)
        return
    if file.shape is not None:
        yield from enumerate(rows_of(_whole(file.path, file.encoding, file.name), file.shape), start=1)
        return
    window = Window(file.path, file.encoding, file.name)
    if file.form == "inside":
        next(key for key in window.lists() if key == file.inside)
    window.skip_space()
    if file.form != "stream":
        window.position += 1
    while True:
        window.skip_space()
        line, ahead = window.line(), window.ahead()
        if ahead == "" and file.form != "stream":
            yield line, Refused("the list is not closed")
        if ahead == "" or (ahead == "]" and file.form != "stream"):
            return
        try:
            value = window.value()
        except Broken as error:
            yield line, Refused(f"not valid JSON from here on ({error})")
            return
        except Twice as error:
            yield line, Refused(f"not valid JSON ({error})")
            continue
        yield line, value if isinstance(value, row) else Refused("not an object with fields")


def _lines(file: JsonFile) -> Elements:
    number = 0
    parse = _python_dict if file.form == "python" else decoded
    row = list if file.cells else dict
    for chunk in utf8_chunks(file.path, file.encoding, file.name):
        for raw in chunk.splitlines():
            number += 1
            if not raw.strip():
                continue
            if len(raw) > MAX_LINE_BYTES:
                yield number, Refused(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
                continue
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                yield number, Refused(f"the line is not valid {file.encoding}")
                continue
            value = parse(line)
            if not isinstance(value, row):
                value = value if isinstance(value, Refused) else Refused("not an object with fields")
                value.text = line[:MAX_RAW_CHARS]
            yield number, value


# ------------------------------------------------------------------------------------------------ columns


@dataclass
class _Field:
    """What was seen of one field: names inside it, and whether it was ever anything but an object."""

    inner: dict[str, None] = field(default_factory=dict)
    other: bool = False


def _places(file: JsonFile) -> dict[str, tuple[str, str | None]]:
    """Column -> the field it comes from, and the field inside that one."""
    if file.cells:
        check_headers(file.cells, file.name)
        return {name: (name, None) for name in file.cells}
    if file.form == "lines" and file.encoding == "utf-8" and not _has_objects(file):
        keys = _all_keys(file.path)
        if len(keys) > _MAX_COLUMNS:
            raise DataError(f"more than {_MAX_COLUMNS} different fields.", where=file.name)
        if keys:
            return _unpadded({key: (key, None) for key in keys}, file.name)
    fields: dict[str, _Field] = {}
    refused: list[str] = []
    for line, value in _elements(file):
        if not isinstance(value, dict):
            if len(refused) < 3:
                refused.append(f"line {line}: {value}")
            continue
        for key, item in value.items():
            seen = fields.get(key)
            if seen is None:
                if len(fields) >= _MAX_COLUMNS:
                    raise DataError(f"more than {_MAX_COLUMNS} different fields.", where=f"{file.name}, line {line}")
                seen = fields[key] = _Field()
            if isinstance(item, dict) and item and len(seen.inner) <= _MAX_INNER:
                seen.inner.update(dict.fromkeys(item))
            elif item is not None and not isinstance(item, dict):
                seen.other = True
    if not fields:
        listed = "; ".join(refused)
        raise DataError(f"no row could be read. {listed}".strip(), where=file.name, fix="Write one JSON object a line.")
    places: dict[str, tuple[str, str | None]] = {}
    for key, seen in fields.items():
        inner: dict[str, tuple[str, str | None]] = {f"{key}.{name}": (key, name) for name in seen.inner}
        flat = inner and not seen.other and len(inner) <= _MAX_INNER and not (fields.keys() | places) & inner.keys()
        places.update(inner if flat else {key: (key, None)})
    return _unpadded(places, file.name)


def _unpadded(places: dict[str, tuple[str, str | None]], where: str) -> dict[str, tuple[str, str | None]]:
    check_headers([column.strip() for column in places], where)
    return {column.strip(): place for column, place in places.items()}


def _has_objects(file: JsonFile) -> bool:
    """Whether one of the first rows holds an object, so that inner names have to be collected."""
    for count, (_, value) in enumerate(_elements(file)):
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            return True
        if count >= 1000:
            break
    return False


# ------------------------------------------------------------------------------------------------ rows


def json_blocks(file: JsonFile, max_rows: int | None = None) -> Iterator[RawTable]:
    """The rows block by block; each block lists all refused lines of its own."""
    lines: list[int] = []
    rows: list[list[str]] = []
    rejects = Rejects(file.name, limit=None)
    left, size = max_rows, 0
    for number, value in _elements(file):
        if left == 0:
            break
        if not isinstance(value, dict):
            rejects.add(number, str(value), getattr(value, "text", ""))
        else:
            try:
                found = [value.get(outer) if inner is None else (value.get(outer) or {}).get(inner)
                         for outer, inner in file.places]  # fmt: skip
                rows.append([cell if type(cell) is str else cell_text(cell) for cell in found])
                lines.append(number)
                size += sum(map(len, rows[-1]))
                left = None if left is None else left - 1
            except RecursionError:
                rejects.add(number, "nested too deeply")
        if len(lines) + rejects.count >= _BLOCK_ROWS or size > _BLOCK_CHARS:
            yield _block(file, rows, lines, rejects)
            lines, rows, rejects, size = [], [], Rejects(file.name, limit=None), 0
    if lines or rejects.count:
        yield _block(file, rows, lines, rejects)


def _block(file: JsonFile, rows: list[list[str]], lines: list[int], rejects: Rejects) -> RawTable:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(file.columns)
    try:
        arrays = [pa.array(column, pa.large_string()) for column in columns]
    except UnicodeEncodeError:
        # Halves of characters (\\ud800) can be written in JSON, but are no text.
        good = []
        for row, line in zip(rows, lines, strict=True):
            try:
                "".join(row).encode("utf-8")
                good.append((row, line))
            except UnicodeEncodeError:
                rejects.add(line, "not valid text")
        rejects.listed.sort(key=lambda entry: entry[0])
        return _block(file, [row for row, _ in good], [line for _, line in good], rejects)
    return RawTable(pa.table(arrays, schema=text_schema(file.columns)), np.array(lines, np.int64), rejects)


def cell_text(value: Any) -> str:
    """A cell as text: lists and objects as JSON, null as ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


# ------------------------------------------------------------------------------------------------ DuckDB


def _duck(path: Path, query: str) -> Any:
    """Runs one query over a local file in a database of its own that may reach nothing else."""
    with duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": "2"}) as database:
        return database.sql(query, params={"path": str(path)}).to_arrow_table()


def _globbed(path: Path) -> bool:
    """Whether DuckDB would take the path for a pattern, or an address."""
    return bool(re.search(r"[*?\[\]{}]|://", str(path)))


def _all_keys(path: Path) -> list[str]:
    """Keys of all objects in order of first appearance; [] where DuckDB will not take the file."""
    if _globbed(path):
        return []
    query = (
        "SELECT key FROM (SELECT row, unnest(keys) AS key, unnest(range(len(keys))) AS place FROM (SELECT "
        "row_number() OVER () AS row, json_keys(json) AS keys FROM read_ndjson_objects($path))) "
        "GROUP BY key ORDER BY min(row * 100000 + place)"
    )
    try:
        return [str(key) for key in _duck(path, query).column("key").to_pylist()]
    except duckdb.Error:
        return []
