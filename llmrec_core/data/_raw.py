"""What every reader hands over: columns of text, the line of every row, and the lines that were refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAX_LISTED_REJECTS = 1000
#: Of a refused row, this much is kept to look at.
MAX_RAW_CHARS = 500


@dataclass
class Rejects:
    """Refused rows of one table: all counted, the first ones (``limit``; None: every one) listed."""

    file: str
    count: int = 0
    listed: list[tuple[int, str]] = field(default_factory=list)
    limit: int | None = MAX_LISTED_REJECTS
    #: line -> what stood there, clipped, where the reader had it in hand.
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, line: int, reason: str, text: str = "") -> None:
        self.count += 1
        if self.limit is None or len(self.listed) < self.limit:
            self.listed.append((line, reason))
            if text:
                self.texts[line] = text[:MAX_RAW_CHARS]

    def take(self, other: Rejects) -> None:
        """Adds the refused rows of another block."""
        self.count += other.count
        room = len(other.listed) if self.limit is None else max(0, self.limit - len(self.listed))
        taken = other.listed[:room]
        self.listed += taken
        self.texts |= {line: other.texts[line] for line, _ in taken if line in other.texts}

    def add_many(self, lines: npt.NDArray[np.int64], reasons: Iterable[str]) -> None:
        """``reasons`` may be lazy: only those that are listed are made."""
        room = len(lines) if self.limit is None else self.limit - len(self.listed)
        self.count += len(lines)
        self.listed += [(int(line), reason) for line, reason in zip(lines[:room].tolist(), reasons, strict=False)]


@dataclass(frozen=True)
class RawTable:
    """Columns of text (large_string, no nulls). ``lines`` [n]: where each row began; None: not tracked."""

    table: pa.Table
    lines: npt.NDArray[np.int64] | None
    rejects: Rejects


def text_schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.large_string()) for name in columns])


def whole(blocks: Iterable[RawTable], columns: Sequence[str], file: str) -> RawTable:
    """The blocks of a table as one, with the first :data:`MAX_LISTED_REJECTS` refused lines listed."""
    rejects = Rejects(file)
    tables = [text_schema(columns).empty_table()]
    lines = [np.empty(0, np.int64)]
    for block in blocks:
        tables.append(block.table)
        if block.lines is not None:
            lines.append(block.lines)
        rejects.take(block.rejects)
    return RawTable(pa.concat_tables(tables).combine_chunks(), np.concatenate(lines), rejects)
