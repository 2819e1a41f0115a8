"""Cells that hold several values: "a b c", "a|b", '["a", "b"]', "['a' 'b']", lists of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._layouts.pairs import JOINT, Pairs, find_pairs
from llmrec_core.data._role_names import rank_of

TEXT = pa.large_string()
_SEPARATORS = ("|", "#", ";", ",", "\t", " ")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|([^\s,'\"\[\]]+)")
_OBJECT_ROLES = ("item_id", "rating", "timestamp", "title")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


@dataclass(frozen=True)
class ListForm:
    """How the cells of a column hold several values.

    ``keys``: role -> key, for lists of objects; ``unused``: their further keys, which no role has a use for. ``pairs``:
    how each value is taken apart.
    """

    style: Literal["array", "objects", "split"]
    separator: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    pairs: Pairs | None = None

    @property
    def roles(self) -> set[str]:
        """What the values tell: item_id, rating, timestamp, title; empty where they are nothing but values."""
        return {role for role, _ in self.keys} | {role for role in (self.pairs.roles if self.pairs else ()) if role}

    @property
    def words(self) -> str:
        return self._list_words + (f"; {self.pairs.words}" if self.pairs else "")

    @property
    def _list_words(self) -> str:
        if self.style == "split":
            names = {" ": "spaces", "\t": "tabs", ",": "commas", ";": "semicolons"}
            return f"lists separated by {names.get(self.separator, self.separator)}"
        if self.style == "array":
            return "JSON lists"
        left = ", ".join(repr(key[:40]) for key in self.unused[:6]) + (" ..." if self.unused[6:] else "")
        return "JSON lists of objects" + (f"; of these, {left} are left out" if left else "")


@dataclass(frozen=True)
class Unfolded:
    """Values of a block of cells: ``counts`` [n cells] how many each holds, ``values`` all of them in order.

    ``faults``: cell position -> why it cannot be read; its count is 0. ``further``: role -> values beside ``values``,
    from lists of objects.
    """

    counts: npt.NDArray[np.int64]
    values: pa.Array
    faults: dict[int, str]
    further: dict[str, pa.Array]

    @property
    def parents(self) -> npt.NDArray[np.int64]:
        """[n values]: the cell that each value came from."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)


def find_form(cells: Sequence[str], *, named: bool) -> ListForm | None:
    """The form in which the first cells hold lists; None where they hold single values or text.

    Args:
        named: the column's name says that it holds ids; without that, only values that look like ids are believed.
    """
    filled = [cell.strip() for cell in cells if cell.strip()][:500]
    if not filled:
        return None
    bracketed = [cell for cell in filled if cell[0] == "[" and cell[-1] == "]"]
    if len(bracketed) >= 0.9 * len(filled):
        items = [value for cell in bracketed for value in _array(cell) or ()]
        objects = [value for value in items if isinstance(value, dict)]
        if objects and len(objects) >= 0.9 * len(items):
            keys = _object_keys(objects)
            unused = dict.fromkeys(key for value in objects for key in value if key not in dict(keys).values())
            known = "item_id" in dict(keys) or "title" in dict(keys)
            return ListForm("objects", keys=keys, unused=tuple(unused)) if known else None
        return ListForm("array") if not objects else None
    best: tuple[float, ListForm] | None = None
    for separator in _SEPARATORS:
        parts = [_split(cell, separator) for cell in filled]
        several = sum(len(p) > 1 for p in parts) / len(parts)
        if not several:
            continue
        if separator == "," and not named and all(_decimal(cell) for cell in filled):
            # "4,5" beside "3" is a number of a country that writes decimals so.
            continue
        tokens = [token for p in parts for token in p]
        if separator == " " or not named:
            alike = sum(_like_id(token) for token in tokens) / len(tokens)
            if alike < 0.95:
                continue
        if best is None or several > best[0] + 0.05:
            best = (several, ListForm("split", separator))
    if best is None:
        return None
    return best[1] if named or best[0] >= 0.5 else None


def find_paired(cells: Sequence[str], told: str | None = None) -> ListForm | None:
    """The form of cells whose values are pairs ("p1:4|p2:5"); None where there are none, or they hold single values.

    Args:
        told: as for :func:`find_pairs`.
    """
    filled = [cell.strip() for cell in cells if cell.strip()][:500]
    if not filled or told == "no":
        return None
    if sum(cell[0] + cell[-1] in ("[]", "{}") for cell in filled) >= 0.9 * len(filled):
        lists = [_entries(cell) or [] for cell in filled]
        pairs = find_pairs([[_text(value) for value in values] for values in lists], told)
        # Other objects than those of items and numbers are for :func:`find_form`.
        plain = not any(isinstance(value, dict) for values in lists for value in values)
        return ListForm("array", pairs=pairs) if pairs and plain else None
    for separator in _SEPARATORS:
        parts = [_split(cell, separator) for cell in filled]
        if max(map(len, parts)) < 2:
            continue
        pairs = find_pairs(parts, told)
        if pairs is not None and pairs.mark != separator:
            return ListForm("split", separator, pairs=pairs)
    return None


def _decimal(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(,\d+)?", cell) is not None


def _like_id(token: str) -> bool:
    """Digits, or a short code with a digit: what a word of a title hardly ever is."""
    return len(token) <= 64 and not any(c.isspace() for c in token) and any(c.isdigit() for c in token)


def _object_keys(objects: Sequence[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    names = list(dict.fromkeys(key for value in objects[:200] for key in value))
    found: dict[str, str] = {}
    for role in _OBJECT_ROLES:
        ranked = sorted((rank, key) for key in names if (rank := rank_of(role, key)) is not None)
        if role == "item_id" and not ranked:
            ranked = [(0, key) for key in names if key.strip().lower() == "id"]
        if ranked and ranked[0][1] not in found.values():
            found[role] = ranked[0][1]
    return tuple(found.items())


def unfold(cells: pa.Array, form: ListForm | None) -> Unfolded:
    """The values of every cell in order. Without a form a filled cell is one value."""
    if form is None:
        return _unfold_split(pc.utf8_trim_whitespace(cells), "")
    if form.style == "split":
        found = _unfold_split(pc.utf8_trim_whitespace(cells), form.separator)
    else:
        found = _unfold_json(cells, form)
    return found if form.pairs is None else _parted(found, form.pairs)


def _unfold_json(cells: pa.Array, form: ListForm) -> Unfolded:
    read = _array if form.pairs is None else _entries
    counts = np.zeros(len(cells), np.int64)
    values: list[str] = []
    faults: dict[int, str] = {}
    keys = dict(form.keys)
    main = "item_id" if "item_id" in keys else "title"
    further: dict[str, list[str]] = {role: [] for role in keys if role != main}
    for position, cell in enumerate(cells.to_pylist()):
        cell = cell.strip()
        if not cell:
            continue
        found = read(cell)
        if found is None:
            faults[position] = f"{cell[:60]!r} is not a list"
            continue
        if form.style == "objects":
            if not all(isinstance(value, dict) for value in found):
                faults[position] = "the list holds something else than objects"
                continue
            values += [_text(value.get(keys[main])) for value in found]
            for role in further:
                further[role] += [_text(value.get(keys[role])) for value in found]
        elif any(isinstance(value, dict | list) for value in found):
            faults[position] = "the list holds lists or objects"
            continue
        else:
            values += [_text(value) for value in found]
        counts[position] = len(found)
    return Unfolded(
        counts, pa.array(values, TEXT), faults, {role: pa.array(cells, TEXT) for role, cells in further.items()}
    )


def _parted(block: Unfolded, pairs: Pairs) -> Unfolded:
    """The values taken apart; a cell with one that is no pair is a fault as a whole."""
    found = [pairs.part(value) for value in block.values.to_pylist()]
    faults = dict(block.faults)
    parents = block.parents
    for place in [place for place, parts in enumerate(found) if parts is None]:
        value = str(block.values[place]).replace(JOINT, ", ")
        faults.setdefault(int(parents[place]), f"{value[:60]!r} has not what the other values have ({pairs.words})")
    counts = block.counts.copy()
    counts[list(faults)] = 0
    good = [parts for parts, parent in zip(found, parents.tolist(), strict=True) if parts and parent not in faults]
    further = {
        role: pa.array([parts[place] for parts in good], TEXT) for place, role in enumerate(pairs.roles, 1) if role
    }
    return Unfolded(counts, pa.array([parts[0] for parts in good], TEXT), faults, further)


def _unfold_split(cells: pa.Array, separator: str) -> Unfolded:
    if not separator:
        filled = np.asarray(pc.not_equal(cells, "").to_numpy(zero_copy_only=False), bool)
        return Unfolded(filled.astype(np.int64), cells.filter(pa.array(filled)), {}, {})
    lists = pc.utf8_split_whitespace(cells) if separator == " " else pc.split_pattern(cells, separator)
    values = pc.utf8_trim_whitespace(pc.list_flatten(lists).cast(TEXT))
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    # "a|b|" ends with a separator and holds two values; an empty one in the middle is none either.
    filled = np.asarray(pc.not_equal(values, "").to_numpy(zero_copy_only=False), bool)
    counts = np.bincount(parents[filled], minlength=len(cells)).astype(np.int64)
    return Unfolded(counts, values.filter(pa.array(filled)), {}, {})


def _split(cell: str, separator: str) -> list[str]:
    parts = cell.split() if separator == " " else cell.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _array(cell: str) -> list[Any] | None:
    """A list written as JSON, as Python does, or as NumPy prints it; None where it is none."""
    try:
        value = _DECODER.decode(cell)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        pass
    if not (cell.startswith("[") and cell.endswith("]")) or "{" in cell or "[" in cell[1:]:
        return None
    return [a or b or c for a, b, c in _QUOTED.findall(cell[1:-1])]


def _entries(cell: str) -> list[Any] | None:
    """The values of a list; those that are lists, and the fields of one object, as text with a joint between parts."""
    found = _array(cell)
    if found is None:
        return None
    if cell.startswith("{") and len(found) == 1 and isinstance(found[0], dict):
        found = list(found[0].items())
        return [_joined(pair) for pair in found] if all(_is_plain(value) for _, value in found) else None
    return [_joined(v) if isinstance(v, list) and v and all(map(_is_plain, v)) else v for v in found]


def _is_plain(value: object) -> bool:
    return not isinstance(value, dict | list)


def _joined(values: Sequence[object]) -> str:
    return JOINT.join(map(_text, values))


def read_array(cell: str) -> list[Any] | None:
    """The list that a cell holds, numbers as the text they are; None where it holds none."""
    cell = cell.strip()
    return _array(cell) if cell.startswith("[") else None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value).strip()
