"""Before an import: what every table in every place would be taken for, over its first rows; nothing is written.

:func:`plan` is the one reading of places and corrections; the preview and the import both start from it, so what a
person saw is what comes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa

from llmrec_core.contracts import RATING, TIME
from llmrec_core.data import _layouts as layouts
from llmrec_core.data._corrections import Corrections, parse_mapping
from llmrec_core.data._layouts import PlannedTable
from llmrec_core.data._layouts.rows import whole_rows
from llmrec_core.data._role_names import Kind
from llmrec_core.data._sources import Source, distinct_names, open_sources
from llmrec_core.data._values import Question, ValueOptions, detect_scale, settle_numbers, settle_times
from llmrec_core.errors import LLMRecError

_PREVIEW_ROWS = 20


@dataclass(frozen=True)
class ImportGuess:
    """What a table was taken for, over its first rows as text.

    Attributes:
        file: what a person reads: "ratings.csv", "export.zip/ratings.csv", "shop.xlsx/Sheet2".
        kind, layout, roles: how the rows are read; ``roles`` is role -> column.
        reasons: why; by role, or by "kind", "layout", "encoding", "separator", "header".
        preview: the first 20 rows, columns as in the file; ``sample``: up to 1,000.
        questions: what these rows do not say and somebody should, also where it was answered already.
        part: the part of a split that the table was said to be.
        left_out: somebody said so; nothing but the name is known then.
        origin, file_columns: role -> column of the file, for roles that a layout used up (a column of histories), and
            the columns that there are; ``columns`` are those of the rows that the layout gives.
        fault: why the table cannot be read as things stand; nothing but the name is known then.
    """

    file: str
    kind: Kind = "interactions"
    format: str = ""
    encoding: str | None = None
    separator: str | None = None
    header: bool = True
    columns: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    preview: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    layout: str = "rows"
    reasons: dict[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    part: str | None = None
    left_out: bool = False
    fault: LLMRecError | None = None
    sample: pa.Table | None = None
    origin: dict[str, str] = field(default_factory=dict)
    file_columns: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        plain = (
            *(
                "file",
                "kind",
                "layout",
                "format",
                "encoding",
                "separator",
                "header",
                "roles",
                "origin",
                "reasons",
                "part",
            ),
            "left_out",
        )
        return {
            **{name: getattr(self, name) for name in plain},
            "columns": list(self.columns),
            "notes": list(self.notes),
            "questions": [question.as_json() for question in self.questions],
            "fault": None if self.fault is None else str(self.fault),
            "preview": self.preview.to_dict(orient="records"),
        }


_PART = re.compile(r"(?i)(?<![a-z])(?:(train|training)|(valid|validation|val|dev)|(test|testing))(?![a-z])")


def part_hint(name: str) -> str | None:
    """The part of a given split that the name of a table speaks of: "ml.train.inter" is "train"."""
    found = [match.lastindex for match in _PART.finditer(name.rpartition("/")[2])]
    return ("train", "valid", "test")[found[-1] - 1] if found and found[-1] else None


def left_out(source: Source, corrections: Corrections) -> bool:
    return (corrections.option("leave_out", source.name) or "no").lower() == "yes"


def plan(
    places: Sequence[str | Path], corrections: Corrections, scratch: Path | None, parts: Sequence[str | None] = ()
) -> Iterator[tuple[PlannedTable, str | None]]:
    """(a long table, the part of a split that it is) of all places, without those that somebody left out.

    Args:
        parts: of each place, where it was given as one of a split; else the corrections tell it, if they do.

    Raises:
        DataError: a place cannot be read, or holds no table.
    """
    for place, name, part in zip(places, distinct_names(places), parts or [None] * len(places), strict=True):
        for source in open_sources(place, corrections, scratch, name=name):
            if not left_out(source, corrections):
                said = corrections if part is None else corrections.with_file("part", source.name, part)
                for planned in layouts.expand(source, said):
                    yield planned, part or corrections.option("part", planned.source.name)


def guess_files(
    places: Sequence[str | Path], mapping: Mapping[str, str] | Sequence[str] = (), scratch: Path | None = None
) -> list[ImportGuess]:
    """What every table in these files, folders, archives, workbooks and databases would be imported as.

    A table that cannot be read is told by its ``fault``; others beside it are still guessed.

    Args:
        mapping: corrections as in :func:`import_files`.
        scratch: a folder for what has to be unpacked, kept by the caller; None: one that is removed at the end.

    Raises:
        DataError: a whole place cannot be read.
        InputError: a correction that cannot be understood.
    """
    corrections = parse_mapping(mapping)
    guesses: list[ImportGuess] = []
    with _scratch(scratch) as folder:
        for place, name in zip(places, distinct_names(places), strict=True):
            for source in open_sources(place, corrections, folder, name=name):
                guesses += _guesses(source, corrections)
    return guesses


def guess_roles(path: str | Path, mapping: Mapping[str, str] | Sequence[str] = ()) -> ImportGuess:
    """:func:`guess_files` of a file that holds one table.

    Raises:
        LLMRecError: also where that table cannot be read.
    """
    found = guess_files([path], mapping)[0]
    if found.fault is not None:
        raise found.fault
    return found


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory(prefix="llmrec-") as made:
        yield Path(made)


def _guesses(source: Source, corrections: Corrections) -> list[ImportGuess]:
    if left_out(source, corrections):
        return [ImportGuess(source.name, format=source.format, columns=source.columns, left_out=True)]
    try:
        return [_guess(planned, source, corrections) for planned in layouts.expand(source, corrections)]
    except LLMRecError as fault:
        return [ImportGuess(source.name, format=source.format, columns=source.columns, fault=fault)]


def _guess(planned: PlannedTable, whole: Source, corrections: Corrections) -> ImportGuess:
    source = planned.source
    sample = source.sample()
    asked, value_notes = _values(planned, sample, ValueOptions.of(corrections.options))
    return ImportGuess(
        file=source.name,
        kind=planned.kind,
        format=source.format,
        encoding=source.encoding,
        separator=source.separator,
        header=source.header,
        columns=source.columns,
        roles=planned.roles,
        preview=sample.slice(0, _PREVIEW_ROWS).to_pandas(),
        notes=(*source.notes, *planned.notes, *value_notes),
        layout=planned.layout,
        reasons=_reading_reasons(source, corrections) | planned.reasons,
        questions=(*planned.questions, *asked),
        part=corrections.option("part", source.name),
        sample=sample,
        origin=planned.origin,
        file_columns=whole.columns,
    )


def _reading_reasons(source: Source, corrections: Corrections) -> dict[str, str]:
    """Why a text file is read with this encoding, separator and header."""
    if source.encoding is None:
        return {}
    found = {"encoding": "its bytes are valid in it" if source.encoding == "utf-8" else "its bytes look like it"}
    if source.separator is not None:
        found["separator"] = f"it parts the first rows into {len(source.columns):,} columns"
        names = "its cells are names, unlike those below" if source.header else "its cells are like those below"
        found["header"] = names
    said = {what for what in found if corrections.option(what, source.name) is not None}
    return found | dict.fromkeys(said, "you said so")


def _values(planned: PlannedTable, sample: pa.Table, options: ValueOptions) -> tuple[tuple[Question, ...], list[str]]:
    """(what the cells of ratings and times leave open as long as nobody answers, notes about how they are read)."""
    if planned.kind != "interactions":
        return (), []
    sample = whole_rows(sample, planned.roles)
    unsaid = options.model_copy(update={"zero": "ask", "decimal": "auto", "day_first": "auto"})
    questions: list[Question] = []
    notes: list[str] = []
    if RATING in planned.roles:
        column = planned.roles[RATING]
        cells = _cells(sample, column)
        questions += settle_numbers(cells, column, unsaid)[0].questions
        read, values, _ = settle_numbers(cells, column, options)
        asked = detect_scale(values, column=column, options=unsaid, out_of=read.out_of).question
        questions += [asked] if asked else []
        note = detect_scale(values, column=column, options=options, out_of=read.out_of).note
        notes += [*read.notes, *([note] if note else [])]
    if TIME in planned.roles:
        column = planned.roles[TIME]
        questions += settle_times(_cells(sample, column), column, unsaid)[0].questions
        notes += settle_times(_cells(sample, column), column, options)[0].notes
    return tuple(questions), notes


def _cells(sample: pa.Table, column: str) -> pa.Array:
    cells = sample.column(column)
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
