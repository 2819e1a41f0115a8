"""Refused rows: which rules they break, and how that is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._raw import MAX_RAW_CHARS, RawTable

Mask = npt.NDArray[np.bool_]

#: Distinct cells of a block for which the reason is asked in full; beyond them a plain sentence does.
_MAX_REASONED = 200
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True)
class RefusedRows:
    """Refused rows of one block, in the order of their lines; columns, reasons and raw texts beside them."""

    lines: npt.NDArray[np.int64]
    columns: list[str]
    reasons: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass
class Fault:
    """Positions of a block that break one rule. ``words`` may hold ``{cell}``; ``reason`` says it with more care."""

    positions: npt.NDArray[np.int64]
    column: str
    words: str
    cells: pa.Array
    reason: Callable[[str], str] | None = None

    def reasons(self) -> Iterator[str]:
        if "{cell}" not in self.words:
            for _ in range(len(self.positions)):
                yield self.words
            return
        said: dict[str, str] = {}
        for cell in self.cells.take(pa.array(self.positions)).to_pylist():
            if cell not in said:
                asked = self.reason is not None and len(said) < _MAX_REASONED
                said[cell] = self.reason(cell) if asked and self.reason else self._plainly(cell)
            yield said[cell]

    def _plainly(self, cell: str) -> str:
        return self.words.replace("{cell}", repr(cell[:_MAX_SHOWN_CHARS]))


def marked(n_rows: int, faults: Sequence[Fault]) -> Mask:
    bad = np.zeros(n_rows, bool)
    for fault in faults:
        bad[fault.positions] = True
    return bad


def refused_rows(raw: RawTable, faults: Sequence[Fault], bad: Mask, separator: str | None, hide: bool) -> RefusedRows:
    """What the reader refused, and what the rules refused, in the order of the lines.

    Args:
        separator: of the file, to show rows as they stood.
        hide: leave the raw text out.
    """
    listed = sorted(raw.rejects.listed)
    lines = np.array([line for line, _ in listed], np.int64)
    columns, reasons = [""] * len(listed), [reason for _, reason in listed]
    texts = [raw.rejects.texts.get(line, "") for line, _ in listed]
    positions = np.flatnonzero(bad)
    if len(positions) and raw.lines is not None:
        column_of: dict[int, str] = {}
        said: dict[int, str] = {}
        for fault in faults:
            for position, reason in zip(fault.positions.tolist(), fault.reasons(), strict=True):
                column_of.setdefault(position, fault.column)
                said[position] = f"{said[position]}; {reason}" if position in said else reason
        columns += [column_of[position] for position in positions.tolist()]
        reasons += [said[position] for position in positions.tolist()]
        texts += _raw_texts(raw.table, bad, separator)
        lines = np.concatenate([lines, raw.lines[positions]])
        order = np.argsort(lines, kind="stable").tolist()
        lines = lines[order]
        columns, reasons, texts = ([cells[i] for i in order] for cells in (columns, reasons, texts))
    return RefusedRows(lines, columns, reasons, [""] * len(texts) if hide else texts)


def _raw_texts(table: pa.Table, bad: Mask, separator: str | None) -> list[str]:
    """Rows as they stood in the file but for quotes, clipped."""
    rows = table.filter(pa.array(bad)).combine_chunks()
    cells = [pc.utf8_slice_codeunits(column, 0, MAX_RAW_CHARS) for column in rows.columns]
    joined = pc.binary_join_element_wise(*cells, pa.scalar(separator or ", ", pa.large_string()))
    return pc.utf8_slice_codeunits(joined, 0, MAX_RAW_CHARS).to_pylist()
