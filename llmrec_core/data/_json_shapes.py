"""JSON that is one object around a whole table: by columns, by keys, or a map of maps; told from a single row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmrec_core.data._role_names import is_role_name, rank_of
from llmrec_core.errors import DataError

_AS_ROWS = "Write one object a row: in pandas, to_json(path, orient='records', lines=True)."
#: Fields of one record that hold lists of the same length, too.
_OF_RECORDS = ("history", "history_labels", "history_times", "candidates", "labels")


@dataclass(frozen=True)
class Shape:
    """How one object holds a table.

    Attributes:
        form: "lists" ({"user": ["u1", "u2"], ...}), "fields" ({"user": {"0": "u1", ...}, ...}), "keys" ({"0": {"user":
            "u1", ...}, ...}), "map" ({"u1": {"i1": 4}, ...}), "histories" ({"u1": ["i1", "i2"], ...}) or "split"
            ({"columns": [...], "data": [[...], ...]}).
        note: what was found, and what could be otherwise.
    """

    form: Literal["lists", "fields", "keys", "map", "histories", "split"]
    note: str


def shape_of(table: Mapping[str, Any], where: str) -> Shape | None:
    """How the only object of a file is a table; None where it may be a row.

    Raises:
        DataError: it is neither.
    """
    columns, data = table.get("columns"), table.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data) and data:
        return Shape("split", "one object with names of columns and lists of cells")
    values = list(table.values())
    if len(values) < 2:
        return None
    names = ", ".join(repr(key[:40]) for key in list(table)[:4])
    if all(isinstance(value, dict) for value in values):
        shape = _of_objects(table)
        if shape is None:
            raise DataError(f"one object whose fields ({names} ...) are objects: no rows.", where=where, fix=_AS_ROWS)
        return shape
    lists = all(isinstance(value, list) and not any(isinstance(v, dict | list) for v in value) for value in values)
    if lists and len({len(v) for v in values}) > 1 and not any(is_role_name(key) for key in table):
        return Shape(
            "histories", "one object of lists: the names of its fields are taken as users, the lists as histories"
        )
    if not all(isinstance(value, list) for value in values) or len({len(v) for v in values}) > 1 or len(values[0]) < 2:
        return None
    if any(rank_of("user_id", key) is not None for key in table):
        return Shape("lists", "one object whose fields are columns")
    if not any(rank_of(part, key) is not None for part in _OF_RECORDS for key in table):
        return Shape("lists", "one object whose fields are columns")
    raise DataError(
        f"one object whose fields ({names} ...) are lists of {len(values[0]):,} values: it can be a single record or a "
        "table by columns.",
        where=where,
        fix=_AS_ROWS,
    )


def _of_objects(table: Mapping[str, dict[str, Any]]) -> Shape | None:
    inner = {key: None for value in table.values() for key in value}
    outside, inside = (any(is_role_name(key) for key in keys) for keys in (table, inner))
    if len(inner) < 2 or (outside and inside):
        return None
    numbers = [str(number) for number in range(len(inner))]
    indexed = not all(key.isdigit() for key in table) and all(list(value) == numbers for value in table.values())
    if (outside or indexed) and not inside:
        return Shape("fields", "one object whose fields are columns")
    if inside:
        return Shape("keys", "one object whose fields are rows; their names are kept as 'key'")
    if all(_is_number(cell) for value in table.values() for cell in value.values()):
        note = "one object of objects: the outer names are taken as users, the inner ones as items, numbers as ratings"
        return Shape("map", f"{note} (user_id=item_id and item_id=user_id turn that)")
    return None


def _is_number(cell: Any) -> bool:
    """Numbers were kept as text."""
    try:
        return isinstance(cell, str) and float(cell) == float(cell)
    except ValueError:
        return False


def rows_of(table: Mapping[str, Any], shape: Shape) -> Iterator[dict[str, Any] | str]:
    """The rows; a reason instead of one that cannot be."""
    if shape.form == "lists":
        names = list(table)
        yield from (dict(zip(names, cells, strict=True)) for cells in zip(*table.values(), strict=True))
    elif shape.form == "fields":
        keys = dict.fromkeys(key for value in table.values() for key in value)
        yield from ({name: value.get(key) for name, value in table.items()} for key in keys)
    elif shape.form == "keys":
        yield from ({"key": key, **row} for key, row in table.items())
    elif shape.form == "histories":
        yield from ({"user_id": user, "history": items} for user, items in table.items())
    elif shape.form == "map":
        for user, items in table.items():
            yield from ({"user_id": user, "item_id": item, "rating": rating} for item, rating in items.items())
    else:
        names = [str(name) for name in table["columns"]]
        for cells in table["data"]:
            fits = len(cells) == len(names)
            yield dict(zip(names, cells, strict=True)) if fits else f"{len(cells)} cells for {len(names)} columns"
