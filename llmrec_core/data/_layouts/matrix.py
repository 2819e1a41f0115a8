"""User x item matrices: a row a user, a column an item, a cell a rating or nothing -> one row per rating."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._layouts.adapters import TEXT, Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._role_names import ROLES, USERISH, plain, rank_of
from llmrec_core.data._sources import Source
from llmrec_core.errors import DataError

#: How a cell says that it holds nothing.
BLANKS = ("", "nan", "na", "n/a", "null", "none", "-", "?", ".", "nil")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")
#: Numbers outside of the scale that stand for "not rated" wherever they are frequent.
_OUTLIERS = (99, -99, 999, -999, 9999, -9999, -1)
_MAX_WORDS = 80
#: Cells that are looked at to know a matrix, and rows at the least.
_MAX_CELLS, _MIN_ROWS = 200_000, 50
_ATTRIBUTES = (*ROLES, "price", "image", "vector", "history", "instruction", "output", "candidates")


@dataclass(frozen=True)
class MatrixForm:
    """How a file is a matrix.

    Attributes:
        users: column of user ids; None: rows are users, called by their line.
        items: columns that are items.
        item_ids: their ids.
        missing: the number that says "not rated"; None: only blank cells do.
        transposed: rows are items and columns are users.
        header_row: the first data row holds the item ids, since the reader took the file as without a header.
        dropped: columns that are neither (counts of ratings).
        notes: what could be otherwise.
    """

    users: str | None
    items: tuple[str, ...]
    item_ids: tuple[str, ...]
    missing: float | None
    transposed: bool = False
    header_row: bool = False
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_matrix(source: Source, sample: pa.Table, told: bool, missing: str | None) -> MatrixForm | str | None:
    """How the first rows are a matrix; a note where they may be one; None where they are none.

    Args:
        told: somebody said that it is one: only how is left to find.
        missing: the marker that was told; "none" for blank cells alone.

    Raises:
        DataError: it was told to be a matrix and has no cells for one.
    """
    columns = list(source.columns)
    if len(columns) < (2 if told else 4):
        if told:
            raise DataError("a matrix has a column for every item.", where=source.name, fix="Say layout:FILE=rows.")
        return None
    if not told and len(sample) < 2:
        return None
    sample = sample.slice(0, max(_MIN_ROWS, _MAX_CELLS // len(columns)))
    texts = {c: [cell.strip() for cell in cells_of(sample, c).to_pylist()] for c in columns}
    first, rest = columns[0], columns[1:]
    header_row = not source.header and _is_header_row(texts, columns)
    if header_row:
        texts = {c: cells[1:] for c, cells in texts.items()}
    if not told and source.header and any(_is_attribute(c) for c in rest):
        return None
    numbers = {c: [float(cell.replace(",", ".")) for cell in texts[c] if _NUMBER.fullmatch(cell)] for c in columns}
    filled = sum(1 for c in rest for cell in texts[c] if cell.lower() not in BLANKS)
    numeric = sum(len(numbers[c]) for c in rest)
    if not filled or (not told and numeric < 0.98 * filled):
        if told:
            raise DataError("the cells of this matrix hold no ratings.", where=source.name, fix="Say layout:FILE=rows.")
        return None
    users: str | None = first
    items, dropped = rest, list[str]()
    notes: list[str] = []
    counts = Counter(value for c in rest for value in numbers[c])
    marker = marker_of(counts, filled, missing, source.name)
    if not source.header and not header_row:
        if _is_count(texts, numbers, columns, marker):
            users, dropped = None, [first]
            notes.append(f"{first!r} counts the ratings of each row and is left out")
        elif not _names_rows(texts[first], numbers[first], counts):
            users, items = None, columns
            counts.update(numbers[first])
        if users is None:
            notes.append("no column of users: each row is a user, called by the number of its line")
    repeated = source.header and len(set(texts[first])) < len(texts[first])
    if marker is not None:
        share = counts[marker] / max(1, sum(counts.values()))
        if marker == 0 and missing is None and share < 0.5:
            notes.append("0 is taken as a rating; if it means not rated, say missing:FILE=0")
            marker = None
        else:
            notes += _marker_notes(marker, share, missing)
    scale = [value for value in counts if value != marker]
    n_cells = len(items) * max(1, len(texts[first]))
    absent = 1 - (sum(counts.values()) - (counts[marker] if marker is not None else 0)) / n_cells
    if not told:
        verdict = _verdict(scale, absent, items, source.header and not header_row)
        if verdict is not True or repeated or rank_of("item_id", first) is not None:
            return _MAY_BE if verdict else None
    low, high = (min(scale), max(scale)) if scale else (0, 0)
    notes.append(f"{absent:.0%} of the cells of the first rows hold no rating; the others go from {low:g} to {high:g}")
    ids = [cells_of(sample, c)[0].as_py().strip() for c in items] if header_row else list(items)
    if not source.header and not header_row:
        ids = [str(number) for number in range(1, len(items) + 1)]
        notes.append("no header: items are called by the number of their column, from 1")
    # {"user": "u1", "ratings": {"i1": 4}}: what stood in one field of an object is called "ratings.i1".
    field = ids[0].partition(".")[0] + "." if ids else ""
    if len(field) > 1 and len(ids) > 1 and all(name.startswith(field) and name != field for name in ids):
        ids = [name.removeprefix(field) for name in ids]
        notes.append(f"items are the names inside of {field.removesuffix('.')!r}")
    transposed = source.header and rank_of("item_id", first) is not None
    if transposed:
        notes.append(f"{first!r} names items: rows are taken as items, columns as users")
    return MatrixForm(users, tuple(items), tuple(ids), marker, transposed, header_row, tuple(dropped), tuple(notes))


_MAY_BE = "the columns could also be those of a user x item matrix: layout:FILE=matrix"


def _is_attribute(column: str) -> bool:
    return plain(column) in USERISH or any(rank_of(role, column) is not None for role in _ATTRIBUTES)


def _is_header_row(texts: dict[str, list[str]], columns: Sequence[str]) -> bool:
    """The first row holds ids of items: nothing or a word in the corner, then numbers that do not come again."""
    row = [texts[c][0] for c in columns] if texts[columns[0]] else []
    if not row or _NUMBER.fullmatch(row[0]) or len(set(row)) < len(row) or len(texts[columns[0]]) < 2:
        return False
    return all(row[1:]) and row[0].lower() in ("", "user", "users", "id", "u")


def marker_of(counts: Counter[float], filled: int, told: str | None, where: str) -> float | None:
    """The number that stands for "not rated"."""
    if told is not None:
        if told.strip().lower() in (*BLANKS, "blank"):
            return None
        if not _NUMBER.fullmatch(told.strip()):
            raise DataError(
                f"missing:{where}={told[:40]} is no number.",
                where="map",
                fix="Say missing:FILE=99 or missing:FILE=none.",
            )
        return float(told.replace(",", "."))
    for value in _OUTLIERS:
        others = [other for other in counts if other != value]
        if counts[value] < 0.01 * filled or not others:
            continue
        beyond = value > 2 * max(max(others), 1) if value > 0 else value < min(others) and min(others) >= 0
        if beyond or (value <= -99 and value < 2 * min(others)):
            return float(value)
    return 0.0 if counts[0.0] and min(counts) == 0 else None


def _marker_notes(marker: float, share: float, told: str | None) -> list[str]:
    if told is not None:
        return []
    other = "if it is a rating, say that no number marks an empty cell (missing:FILE=none)"
    return [f"{marker:g} is taken to mean not rated ({share:.0%} of the numbers in the first rows); {other}"]


def _is_count(
    texts: dict[str, list[str]], numbers: dict[str, list[float]], columns: Sequence[str], marker: float | None
) -> bool:
    """The first column says how many of the others hold a rating, in every row that was looked at."""
    first = numbers[columns[0]]
    if len(first) < len(texts[columns[0]]) or not first:
        return False
    for row, count in enumerate(first):
        rated = 0
        for c in columns[1:]:
            cell = texts[c][row]
            rated += cell.lower() not in BLANKS and (
                not _NUMBER.fullmatch(cell) or float(cell.replace(",", ".")) != marker
            )
        if rated != count:
            return False
    return True


def _names_rows(cells: Sequence[str], numbers: Sequence[float], counts: Counter[float]) -> bool:
    """The first column of a file without a header names users: all different, and no ratings."""
    if len(set(cells)) < len(cells) or not all(cells):
        return False
    if len(numbers) < len(cells):
        return True
    return all(n == int(n) for n in numbers) and (len(cells) > 30 or not set(numbers) <= counts.keys())


def _verdict(scale: Sequence[float], absent: float, items: Sequence[str], header: bool) -> bool | str:
    """True: a matrix; a note: it may be one; "": it is none."""
    if not scale or (len(scale) < 2 and absent == 0):
        return ""
    low, high = min(scale), max(scale)
    fine = len(scale) <= _MAX_WORDS or (
        low >= -100 and high <= 100 and all(abs(v * 100 - round(v * 100)) < 1e-6 for v in scale)
    )
    if not fine or high > 1000 or low < -1000:
        return ""
    flags = set(scale) <= {0.0, 1.0}
    numbered = sum(any(c.isdigit() for c in name) for name in items) >= 0.8 * len(items)
    if absent >= 0.05 and (not header or numbered or len(items) >= 10 or high <= 10):
        return True
    if not flags and len(scale) <= 11 and len(items) >= 5 and (not header or numbered):
        return True
    if numbered or len(items) >= 10:
        return _MAY_BE
    return ""


def matrix_source(source: Source, form: MatrixForm, rating: str = "rating") -> Source:
    """One row per rating: user_id, item_id, rating; rows in file order, the items of a row in column order."""
    return adapted(source, ("user_id", "item_id", rating), lambda: _Melt(source, form, rating))


class _Melt(Converter):
    def __init__(self, source: Source, form: MatrixForm, rating: str) -> None:
        self._form, self._rating = form, rating
        self._ids = pa.array(form.item_ids, TEXT)
        self._skip_first = form.header_row

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        form, n_rows, n_items = self._form, len(table), len(self._form.items)
        offset = 0
        if self._skip_first and n_rows:
            table, lines, n_rows, offset, self._skip_first = table.slice(1), lines[1:], n_rows - 1, 1, False
        cells = pa.concat_arrays([cells_of(table, c) for c in form.items]) if n_rows else pa.array([], TEXT)
        given = _given(cells, form.missing)
        # Columns lie one after the other; rows are wanted one after the other.
        order = np.arange(n_items * n_rows, dtype=np.int64).reshape(n_items, n_rows).T.ravel()
        order = order[given[order]]
        rows, items = order % max(1, n_rows), order // max(1, n_rows)
        names = pa.array([str(line) for line in lines.tolist()], TEXT)
        if form.users is not None:
            names = pc.utf8_trim_whitespace(cells_of(table, form.users)) if n_rows else pa.array([], TEXT)
        row_ids, column_ids = pc.take(names, pa.array(rows)), pc.take(self._ids, pa.array(items))
        users, things = (column_ids, row_ids) if form.transposed else (row_ids, column_ids)
        ratings = pc.utf8_trim_whitespace(pc.take(cells, pa.array(order)))
        return Long(text_table({"user_id": users, "item_id": things, self._rating: ratings}), rows + offset)


def _given(cells: pa.Array, missing: float | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[n]: cells that hold a rating, or something that is to be refused as one."""
    encoded = cells.dictionary_encode()
    words = [word.strip() for word in encoded.dictionary.to_pylist()]
    kept = np.array([not _is_missing(word, missing) for word in words], bool)
    return kept[encoded.indices.to_numpy(zero_copy_only=False)] if len(words) else np.zeros(len(cells), bool)


def _is_missing(word: str, missing: float | None) -> bool:
    if word.lower() in BLANKS:
        return True
    return missing is not None and _NUMBER.fullmatch(word) is not None and float(word.replace(",", ".")) == missing
