"""One user a line and one item a cell: "u1 i1 i2 i3", lines as long as they are, or cells that are blank at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._encodings import detect_encoding, utf8_chunks
from llmrec_core.data._layouts.adapters import TEXT, Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._layouts.pairs import Pairs, find_pairs
from llmrec_core.data._raw import RawTable, Rejects, whole
from llmrec_core.data._role_names import ROLES, USERISH, plain, rank_of
from llmrec_core.data._sources import Source

_COLUMNS = ("user_id", "history")
_BLOCK_LINES = 50_000
_PROBE_LINES = 300
_ITEM_COLUMN = re.compile(
    r"(?i)(column|item|product|movie|film|track|book|i|p|pos|position|step|click|seq|event)[ _-]?\d+"
)


def _lines(path: Path, codec: str, name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    for chunk in utf8_chunks(path, codec, name):
        for line in chunk.splitlines():
            number += 1
            yield number, line


def open_lists(path: Path, told_encoding: str | None, name: str, *, sure: bool = False) -> Source | None:
    """A text that has no separator of columns, where its lines are ids with spaces between them; None for other texts.

    Args:
        sure: somebody said that these are histories; the lines may then be of one length.

    Raises:
        DataError: the bytes are no text.
    """
    codec, notes = detect_encoding(path, told_encoding, name)
    return lines_source(path, codec, name, " ", notes) if are_lists(path, codec, name, " ", sure=sure) else None


def are_lists(path: Path, codec: str, name: str, separator: str, *, sure: bool = False) -> bool:
    """Whether lines differ in length and hold nothing but ids: a user and what came after."""
    probe = [
        line.decode("utf-8", "replace") for _, line in zip(range(_PROBE_LINES), _texts(path, codec, name), strict=False)
    ]
    cut = None if separator == " " else separator
    filled = [[cell.strip() for cell in line.split(cut)] for line in probe if line.strip()]
    widths = Counter(map(len, filled))
    if len(filled) < 2 or (not sure and widths.most_common(1)[0][1] > 0.8 * len(filled)):
        return False
    words = [word for line in filled for word in line if word]
    alike = sum(len(word) <= 64 and any(c.isdigit() for c in word) and " " not in word for word in words)
    return bool(words) and alike >= 0.95 * len(words)


def _texts(path: Path, codec: str, name: str) -> Iterator[bytes]:
    return (line for _, line in _lines(path, codec, name))


def lines_source(path: Path, codec: str, name: str, separator: str = " ", notes: Sequence[str] = ()) -> Source:
    """Lines of any length as a table of two columns: the first cell, and the others as one list."""

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        users: list[str] = []
        lists: list[str] = []
        numbers: list[int] = []
        rejects = Rejects(name, limit=None)
        n_rows = 0

        def block() -> RawTable:
            table = text_table({"user_id": list(users), "history": list(lists)})
            return RawTable(table, np.array(numbers, np.int64), rejects)

        for number, raw in _lines(path, codec, name):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                rejects.add(number, f"the line is not valid {codec}")
                continue
            if not line:
                continue
            first, _, rest = line.partition(separator) if separator != " " else _cut(line)
            users.append(first.strip())
            lists.append(rest.strip())
            numbers.append(number)
            n_rows += 1
            full = max_rows is not None and n_rows >= max_rows
            if full or len(numbers) >= _BLOCK_LINES:
                yield block()
                users, lists, numbers, rejects = [], [], [], Rejects(name, limit=None)
            if full:
                return
        if numbers or rejects.count:
            yield block()

    word = {" ": "spaces", "\t": "tabs", ",": "commas"}.get(separator, separator)
    return Source(
        path,
        "text",
        _COLUMNS,
        lambda: None,
        lambda max_rows: whole(batches(max_rows), _COLUMNS, name),
        codec,
        separator,
        False,
        (
            *notes,
            f"lines of different lengths, cut at {word}: the first cell is taken as the user, the others as items",
        ),
        name,
        batches,
    )


def _cut(line: str) -> tuple[str, str, str]:
    parts = line.split(None, 1)
    return parts[0], " ", parts[1] if len(parts) > 1 else ""


def is_wide(source: Source, sample: pa.Table, told: bool) -> bool:
    """Whether the first column is a user and every further one an item that came next."""
    columns = list(source.columns)
    first, rest = columns[0], columns[1:]
    if len(rest) < 2:
        return False
    named = [_ITEM_COLUMN.fullmatch(c.strip()) is not None for c in rest]
    if not told and not all(named):
        return False
    if rank_of("item_id", first) is not None or any(plain(c) in USERISH for c in rest):
        return False
    if not told and any(rank_of(role, c) is not None for role in ROLES for c in rest):
        return False
    rows = list(zip(*([cell.strip() for cell in cells_of(sample, c).to_pylist()] for c in rest), strict=True))
    users = [cell.strip() for cell in cells_of(sample, first).to_pylist()]
    if told:
        return True
    if len(rows) < 2 or len(set(users)) < len(users):
        return False
    widths = [sum(map(bool, row)) for row in rows]
    # Blank cells stand at the end alone: a matrix has them anywhere.
    packed = all(all(row[:width]) for row, width in zip(rows, widths, strict=True))
    if packed and find_pairs([[cell for cell in row if cell] for row in rows]) is not None:
        return True
    words = [cell for row in rows for cell in row if cell]
    alike = bool(words) and sum(
        len(w) <= 64 and any(c.isdigit() for c in w) and not re.search(r"[\s.]", w) for w in words
    )
    if not packed or alike < 0.95 * len(words) or len(set(words)) < 3:
        return False
    vocabularies = [{row[place] for row in rows if row[place]} for place in range(len(rest))]
    shared = Counter(word for vocabulary in vocabularies for word in vocabulary)
    common = sum(count > 1 for count in shared.values()) / len(shared)
    letters = sum(not w.isdigit() for w in words) >= 0.9 * len(words)
    few = len(set(words)) <= 11 and not letters
    return not few and (min(widths) < max(widths) or (letters and common >= 0.2 and len(rest) >= 3))


def wide_pairs(source: Source, sample: pa.Table, told: str | None) -> Pairs | None:
    """How the cells behind the first are pairs of an item and a number; None where they are items."""
    cells = [[cell.strip() for cell in cells_of(sample, c).to_pylist()] for c in source.columns[1:]]
    return find_pairs([[cell for cell in row if cell] for row in zip(*cells, strict=True)], told)


def wide_source(source: Source, pairs: Pairs | None) -> Source:
    """One row per filled cell behind the first: user_id, item_id, what pairs tell, in the order of the columns."""
    columns = list(source.columns)
    roles = [role for role in pairs.roles if role] if pairs else []
    return adapted(source, ("user_id", "item_id", *roles), lambda: _Melt(columns[0], columns[1:], pairs))


class _Melt(Converter):
    def __init__(self, user: str, items: Sequence[str], pairs: Pairs | None) -> None:
        self._user, self._items, self._pairs = user, items, pairs

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        n_rows, n_items = len(table), len(self._items)
        roles = self._pairs.roles if self._pairs else ()
        if not n_rows:
            names = ["user_id", "item_id", *(role for role in roles if role)]
            return Long(text_table({name: [] for name in names}), np.empty(0, np.int64))
        cells = pc.utf8_trim_whitespace(pa.concat_arrays([cells_of(table, c) for c in self._items]))
        order = np.arange(n_items * n_rows, dtype=np.int64).reshape(n_items, n_rows).T.ravel()
        filled = np.asarray(pc.not_equal(cells, "").to_numpy(zero_copy_only=False), bool)
        order = order[filled[order]]
        rows = order % n_rows
        found = pc.take(cells, pa.array(order))
        further: dict[str, pa.Array] = {}
        faults: list[tuple[int, str]] = []
        if self._pairs is not None:
            parts = [self._pairs.part(value) for value in found.to_pylist()]
            told = np.array([part is not None for part in parts], bool)
            fault = f"a value has not what the others have ({self._pairs.words})"
            faults = [(row, fault) for row in dict.fromkeys(rows[~told].tolist())]
            rows, good = rows[told], [part for part in parts if part is not None]
            found = pa.array([part[0] for part in good], TEXT)
            further = {role: pa.array([p[n] for p in good], TEXT) for n, role in enumerate(roles, 1) if role}
        users = pc.take(pc.utf8_trim_whitespace(cells_of(table, self._user)).cast(TEXT), pa.array(rows))
        return Long(text_table({"user_id": users, "item_id": found, **further}), rows, faults)
