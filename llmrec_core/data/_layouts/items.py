"""Items with lists, structs and vectors in their cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._layouts.lists import read_array
from llmrec_core.data._role_names import plain, rank_of
from llmrec_core.data._sources import Source

_NUMBERED = re.compile(r"(?i)(.*?)[ _.-]?(\d+)")
_VECTOR_PREFIX = re.compile(r"(?i)(v|vec|vector|dim|d|emb|embed|embedding|f|feat|feature|x|e|h|column|latent)_?")
_MIN_VECTOR = 8
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_IMAGE_KEYS = ("large", "hi_res", "hires", "url", "src", "medium", "path", "thumb", "thumbnail")


# ------------------------------------------------------------------------------------------------ cells


def tidy_plan(
    columns: Sequence[str], sample: pa.Table, roles: Mapping[str, str], spaced: Sequence[str]
) -> dict[str, str]:
    """column -> how its cells become text: "category", "image", "text", "list" or "spaced"; only those that need it.

    Args:
        roles: role -> column.
        spaced: columns that a typed header calls lists of words (``class:token_seq``).
    """
    by_column = {column: role for role, column in roles.items()}
    plan: dict[str, str] = {}
    for column in columns:
        role = by_column.get(column)
        if column in spaced and role == "category":
            plan[column] = "spaced"
            continue
        cells = [cell.strip() for cell in cells_of(sample, column).to_pylist()]
        if not any(cell[:1] in "[{" for cell in cells if cell):
            continue
        if role in ("category", "image"):
            plan[column] = role
        elif role in ("title", "description"):
            plan[column] = "text"
        elif role is None:
            plan[column] = "list"
    return plan


def tidied(source: Source, sample: pa.Table, plan: Mapping[str, str]) -> Source:
    """Lists and structs in cells as text: "Drama, Crime", the first address of an image, paragraphs in one text."""
    separators = {
        column: "; " if any("," in value for value in _flat_values(sample, column)) else ", "
        for column, what in plan.items()
        if what == "category"
    }
    notes = [
        f"{column!r} holds values with commas: they are separated by semicolons"
        for column, separator in separators.items()
        if separator == "; "
    ]
    return adapted(source, source.columns, lambda: _Tidy(plan, separators), notes=notes)


def _flat_values(sample: pa.Table, column: str) -> list[str]:
    return [value for cell in cells_of(sample, column).to_pylist() for value in _flat(cell)]


class _Tidy(Converter):
    def __init__(self, plan: Mapping[str, str], separators: Mapping[str, str]) -> None:
        self._plan, self._separators = plan, separators

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        columns: dict[str, Any] = {}
        for name in table.column_names:
            cells = cells_of(table, name)
            what = self._plan.get(name)
            if what is not None:
                separator = self._separators.get(name, ", ")
                cells = [_tidy(cell, what, separator) for cell in cells.to_pylist()]
            columns[name] = cells
        return Long(text_table(columns), np.arange(len(table), dtype=np.int64))


def _tidy(cell: str, what: str, separator: str) -> str:
    if what == "spaced":
        return ", ".join(cell.split())
    if cell.lstrip()[:1] not in ("[", "{"):
        return cell
    if what == "image":
        return _image(cell)
    values = list(dict.fromkeys(_flat(cell)))
    if what == "list" and any("," in value for value in values):
        # Joined by commas it could not be taken apart again.
        return cell
    if not values:
        return "" if _loaded(cell) in ([], {}, [[]]) else cell
    return {"category": separator, "text": " "}.get(what, ", ").join(values)


def _loaded(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return read_array(cell)


def _flat(cell: str) -> list[str]:
    """The single values of a list of any depth; [] for one that holds objects."""
    if cell.lstrip()[:1] != "[":
        return []
    found: list[str] = []

    def walk(value: Any) -> bool:
        if isinstance(value, list):
            return all(walk(inner) for inner in value)
        if isinstance(value, dict):
            return False
        if value is not None and str(value).strip():
            found.append(str(value).strip())
        return True

    try:
        return found if walk(_loaded(cell)) else []
    except RecursionError:
        return []


def _image(cell: str) -> str:
    """The first address or path of an image in lists and structs of any depth."""

    def first(value: Any) -> str:
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, list):
            return next((found for inner in value if (found := first(inner))), "")
        if isinstance(value, dict):
            keys = {str(key).lower(): inner for key, inner in value.items()}
            return next((found for key in _IMAGE_KEYS if key in keys and (found := first(keys[key]))), "")
        return ""

    try:
        return first(_loaded(cell))
    except RecursionError:
        return ""


# ------------------------------------------------------------------------------------------------ vectors


@dataclass(frozen=True)
class VectorForm:
    """Where the numbers of an item stand: in one column of lists, or in columns of their own."""

    item: str
    columns: tuple[str, ...]
    listed: bool
    size: int


def find_vectors(source: Source, sample: pa.Table, item: str | None, told: bool) -> VectorForm | None:
    """Feature vectors of items; None where there are none."""
    columns = list(source.columns)
    if item is None and not told and "vec" not in source.name.lower() and "emb" not in source.name.lower():
        return None
    item = item or columns[0]
    rest = [c for c in columns if c != item]
    for column in rest:
        sizes = {size for cell in cells_of(sample, column).to_pylist() if cell.strip() for size in [_vector_size(cell)]}
        if len(sizes) == 1 and (size := sizes.pop()) and size >= (2 if told or _called_vector(column) else _MIN_VECTOR):
            return VectorForm(item, (column,), True, size)
    groups: dict[str, list[str]] = {}
    for column in rest:
        matched = _NUMBERED.fullmatch(column.strip())
        if matched and (told or not matched[1] or _VECTOR_PREFIX.fullmatch(matched[1])):
            groups.setdefault(plain(matched[1]), []).append(column)
    numbered = max(groups.values(), key=len, default=[])
    if len(numbered) < (2 if told else _MIN_VECTOR) or not all(_numeric(sample, c) for c in numbered):
        return None
    if not told and not any("." in cell for c in numbered for cell in cells_of(sample, c).to_pylist()):
        # Whole numbers in numbered columns may be anything, ratings of jokes for one.
        return None
    return VectorForm(item, tuple(numbered), False, len(numbered))


def _called_vector(column: str) -> bool:
    return rank_of("vector", column) is not None and plain(column) != "features"


def _vector_size(cell: str) -> int:
    numbers = _numbers(cell)
    return len(numbers) if all(_FLOAT.fullmatch(number) for number in numbers) else 0


def _numbers(cell: str) -> list[str]:
    """The words of "[0.5, 1]", "(0.5 1)", '["0.5", "1"]' and "0.5;1"."""
    return cell.translate(_AROUND_NUMBERS).split()


_AROUND_NUMBERS = str.maketrans(dict.fromkeys("[](),;\"'", " "))


def _numeric(sample: pa.Table, column: str) -> bool:
    filled = [cell.strip() for cell in cells_of(sample, column).to_pylist() if cell.strip()]
    return bool(filled) and all(_FLOAT.fullmatch(cell) for cell in filled)


def vectors_source(source: Source, form: VectorForm, *, tells_rejects: bool) -> Source:
    """One row per item: item_id, vector (numbers with single spaces)."""
    return adapted(source, ("item_id", "vector"), lambda: _Vectors(form), tells_rejects=tells_rejects)


def without(source: Source, columns: Sequence[str]) -> Source:
    """The source without some of its columns."""
    kept = [c for c in source.columns if c not in columns]
    return adapted(source, kept, lambda: _same)


def quiet(source: Source) -> Source:
    """The source once more, for a second table from the same rows: refused lines are told by the first one."""
    return adapted(source, source.columns, lambda: _same, tells_rejects=False)


def _same(table: pa.Table, lines: Rows) -> Long:
    return Long(table, np.arange(len(table), dtype=np.int64))


class _Vectors(Converter):
    def __init__(self, form: VectorForm) -> None:
        self._form = form

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        form = self._form
        items = [item.strip() for item in cells_of(table, form.item).to_pylist()]
        cells = [cells_of(table, column).to_pylist() for column in form.columns]
        rows, vectors, kept, faults = [], [], [], []
        for row, parts in enumerate(zip(*cells, strict=True)):
            numbers = _numbers(" ".join(parts))
            if not numbers and form.listed:
                continue
            if len(numbers) != form.size or not all(_FLOAT.fullmatch(number) for number in numbers):
                faults.append((row, f"the vector of {items[row][:60]!r} is not {form.size} numbers"))
                continue
            rows.append(row)
            kept.append(items[row])
            vectors.append(" ".join(numbers))
        return Long(text_table({"item_id": kept, "vector": vectors}), np.array(rows, np.int64), faults)
