"""What a workbook holds, told before the library that reads it is let near: sizes, extents, faulty cells.

A workbook is a zip archive of XML. It may unfold to anything, name a cell in the last corner of a sheet so that all
cells before it are held in memory, or repeat one long text in a million cells. And the reader gives errors such as
#N/A and formulas that were never computed as empty cells, so their places are noted here.
"""

from __future__ import annotations

import copy
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO
from xml.parsers import expat

from llmrec_core.errors import DataError

_MAX_MEMBERS = 10_000
_MAX_BYTES = 2 << 30
#: Spreadsheets pack well, but not like this.
_MAX_RATIO, _RATIO_FREE_BYTES = 300, 64 << 20
#: Cells between the first and the last, empty ones too: the reader holds all of them.
_MAX_CELLS = 30_000_000
_MAX_TEXT_BYTES = 1 << 30
_MAX_ROWS, _MAX_COLUMNS = 1_048_576, 16_384
_CHUNK = 1 << 20
_TOLD_CHARS = 32
#: What a cell shows where its formula has no answer.
ERRORS = frozenset(
    ("#N/A", "#DIV/0!", "#REF!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!", "#CALC!", "#GETTING_DATA")
)

Start = Callable[[str, dict[str, str]], None]


@dataclass
class SheetFacts:
    """``faults``: (row, column), both from 0 -> what is wrong with the cell. ``n_text_bytes``: text of all cells."""

    faults: dict[tuple[int, int], str] = field(default_factory=dict)
    first_row: int = _MAX_ROWS
    last_row: int = -1
    first_column: int = _MAX_COLUMNS
    last_column: int = -1
    n_text_bytes: int = 0

    def meet(self, row: int, column: int) -> None:
        self.first_row, self.last_row = min(self.first_row, row), max(self.last_row, row)
        self.first_column, self.last_column = min(self.first_column, column), max(self.last_column, column)

    @property
    def n_cells(self) -> int:
        return max(0, self.last_row - self.first_row + 1) * max(0, self.last_column - self.first_column + 1)


def survey(path: Path, name: str) -> dict[str, SheetFacts]:
    """Facts about each sheet that is there, by its name, of a zipped workbook (.xlsx, .xlsm, .ods).

    Raises:
        DataError: no workbook, damaged, or larger than any workbook is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, name)
            if "xl/workbook.xml" in members:
                facts = _survey_xlsx(archive, members, name)
            elif "xl/workbook.bin" in members:
                raise DataError("this is a binary workbook (.xlsb).", where=name, fix="Save it as .xlsx.")
            elif "content.xml" in members:
                facts = _survey_ods(archive, members, name)
            else:
                raise DataError("this archive is not a workbook.", where=name, fix="Save the data as .xlsx or CSV.")
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"the workbook is damaged ({str(error)[:120]}).", where=name, fix="Save it again, or as CSV."
        ) from None
    for sheet, found in facts.items():
        if found.n_cells > _MAX_CELLS:
            raise DataError(
                f"the sheet spans {found.n_cells:,} cells, most of them empty.",
                where=f"{name}/{sheet}",
                fix="Delete the cell far off, or save the sheet as CSV.",
            )
        if found.n_text_bytes > _MAX_TEXT_BYTES:
            raise _too_large(f"{name}/{sheet}", found.n_text_bytes)
    return facts


def _too_large(where: str, size: int) -> DataError:
    return DataError(f"it unfolds to more than {size:,} bytes: this is refused.", where=where, fix="Save it as CSV.")


def _members(archive: zipfile.ZipFile, path: Path, name: str) -> dict[str, zipfile.ZipInfo]:
    """Members by their names in lower case, none of them larger than it says, all of them within limits."""
    entries = archive.infolist()
    members = {entry.filename.replace("\\", "/").lower().lstrip("/"): entry for entry in entries}
    if len(entries) > _MAX_MEMBERS or len(members) != len(entries):
        raise DataError("too many members, or one of them twice.", where=name, fix="Save the workbook again.")
    size = path.stat().st_size
    limit = min(_MAX_BYTES, max(_RATIO_FREE_BYTES, _MAX_RATIO * size))
    declared = sum(entry.file_size for entry in entries)
    if declared > limit:
        raise _too_large(name, limit)
    if sum(entry.compress_size for entry in entries) > size:
        raise DataError("members of the archive overlap.", where=name, fix="Save the workbook again.")
    for entry in entries:
        if entry.flag_bits & 1:
            raise DataError("the workbook is encrypted.", where=name, fix="Save it without a password.")
        # What the directory says about sizes is only said; the reader would unfold all there is.
        honest = copy.copy(entry)
        honest.file_size = limit + 1
        unfolded = 0
        with archive.open(honest) as stream:
            while chunk := stream.read(_CHUNK):
                unfolded += len(chunk)
                if unfolded > entry.file_size or unfolded > limit:
                    raise DataError(
                        f"a member says that it has {entry.file_size:,} bytes and unfolds to more: this is refused.",
                        where=name,
                        fix="Save the workbook again.",
                    )
    return members


def _parse(stream: IO[bytes], name: str, handlers: Callable[[expat.XMLParserType], None]) -> None:
    """Feeds XML to handlers; a document type, with which entities could be defined, is refused."""
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def doctype(*_: object) -> None:
        raise DataError("the workbook holds a document type.", where=name, fix="Save it again.")

    parser.StartDoctypeDeclHandler = doctype
    handlers(parser)
    try:
        while chunk := stream.read(_CHUNK):
            parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise DataError(f"the workbook is damaged ({error}).", where=name, fix="Save it again, or as CSV.") from None


def _local(name: str) -> str:
    return name.rpartition(":")[2]


# ------------------------------------------------------------------------------------------------ Excel


def _survey_xlsx(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> dict[str, SheetFacts]:
    lengths = _shared_lengths(archive, members, name)
    sheets: list[tuple[str, str]] = []
    targets: dict[str, str] = {}

    def note_sheet(tag: str, attributes: dict[str, str]) -> None:
        if _local(tag) == "sheet":
            relation = next((v for k, v in attributes.items() if _local(k) == "id" and ":" in k), "")
            sheets.append((attributes.get("name", ""), relation))

    def note_target(tag: str, attributes: dict[str, str]) -> None:
        if _local(tag) == "Relationship":
            targets[attributes.get("Id", "")] = attributes.get("Target", "")

    for part, handler in (("xl/workbook.xml", note_sheet), ("xl/_rels/workbook.xml.rels", note_target)):
        if part in members:
            with archive.open(members[part]) as stream:
                _parse(stream, name, partial(_on_start, handler))
    facts = {}
    for sheet, relation in sheets:
        target = targets.get(relation, "").replace("\\", "/").lower()
        part = target.lstrip("/") if target.startswith("/") else f"xl/{target}"
        if part in members:
            facts[sheet] = _sheet_facts(archive, members[part], lengths, name)
    return facts


def _on_start(handler: Start, parser: expat.XMLParserType) -> None:
    parser.StartElementHandler = handler


def _shared_lengths(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> list[int]:
    """Bytes of each shared text, by its number."""
    lengths: list[int] = []
    if "xl/sharedstrings.xml" not in members:
        return lengths

    def start(tag: str, attributes: dict[str, str]) -> None:
        if _local(tag) == "si":
            lengths.append(0)

    def text(data: str) -> None:
        if lengths:
            lengths[-1] += len(data)

    def handlers(parser: expat.XMLParserType) -> None:
        parser.StartElementHandler, parser.CharacterDataHandler = start, text

    with archive.open(members["xl/sharedstrings.xml"]) as stream:
        _parse(stream, name, handlers)
    return lengths


def _sheet_facts(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, lengths: list[int], name: str) -> SheetFacts:
    """Walks over the cells of one part; a second time, reading them, where shared texts could add up to too much."""
    facts = _Walk(name, None).over(archive, entry)
    if facts.n_text_bytes * max(lengths, default=0) > _MAX_TEXT_BYTES:
        return _Walk(name, lengths).over(archive, entry)
    facts.n_text_bytes = 0
    return facts


class _Walk:
    """One way over the XML of a sheet. Without ``lengths`` it counts the cells with shared text, else their bytes."""

    def __init__(self, name: str, lengths: list[int] | None) -> None:
        self._name, self._lengths = name, lengths
        self._facts = SheetFacts()
        self._row = self._column = -1
        self._row_text = ""
        self._letters: dict[str, int] = {}
        self._kind, self._has_formula, self._filled, self._text, self._length = "", False, False, "", 0
        self._in_cell = False

    def over(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> SheetFacts:
        with archive.open(entry) as stream:
            _parse(stream, self._name, self._handlers)
        self._close()
        return self._facts

    def _handlers(self, parser: expat.XMLParserType) -> None:
        self._parser = parser
        parser.StartElementHandler = self._start

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if ":" in tag:
            tag = _local(tag)
        if tag == "v" or tag == "is":
            self._filled = True
            if self._has_formula or self._kind == "e" or (self._lengths is not None and self._kind == "s"):
                self._parser.CharacterDataHandler = self._data
        elif tag == "c":
            self._close()
            self._in_cell = True
            self._kind = attributes.get("t", "")
            self._place(attributes.get("r", ""))
        elif tag == "row":
            self._close()
            number = attributes.get("r", "")
            self._row, self._column = (int(number) - 1 if number.isdigit() else self._row + 1), -1
            self._row_text = str(self._row + 1)
        elif tag == "f":
            self._has_formula = True

    def _place(self, reference: str) -> None:
        letters = reference.rstrip("0123456789")
        if not letters:
            self._column += 1
        else:
            if letters not in self._letters:
                if not re.fullmatch("[A-Za-z]{1,3}", letters):
                    raise DataError("a cell has no place.", where=self._name, fix="Save the workbook again.")
                self._letters[letters] = _column(letters)
            self._column = self._letters[letters]
            number = reference[len(letters) :]
            if number != self._row_text and number:
                self._row, self._row_text = int(number[:9]) - 1, number
        if not (0 <= self._row < _MAX_ROWS and self._column < _MAX_COLUMNS):
            raise DataError("a cell lies outside of every sheet.", where=self._name, fix="Save the workbook again.")

    def _data(self, found: str) -> None:
        self._length += len(found)
        if len(self._text) < _TOLD_CHARS:
            self._text += found[:_TOLD_CHARS]

    def _close(self) -> None:
        if not self._in_cell:
            return
        self._in_cell = False
        facts, row, column, kind = self._facts, self._row, self._column, self._kind
        if self._filled or self._has_formula:
            if row > facts.last_row or row < facts.first_row or not facts.first_column <= column <= facts.last_column:
                facts.meet(row, column)
            if kind == "s":
                if self._lengths is None:
                    facts.n_text_bytes += 1
                elif self._text.isdigit() and int(self._text) < len(self._lengths):
                    facts.n_text_bytes += self._lengths[int(self._text)]
            elif kind == "e":
                facts.faults[row, column] = f"holds the error {self._text[:20]}"
            elif self._has_formula and not self._length and kind != "str":
                facts.faults[row, column] = "holds a formula whose result is not stored"
        if self._text or self._has_formula:
            self._parser.CharacterDataHandler = None
            self._text, self._length, self._has_formula = "", 0, False
        self._filled = False


def _column(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number - 1


# ------------------------------------------------------------------------------------------------ OpenDocument


def _survey_ods(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> dict[str, SheetFacts]:
    if "meta-inf/manifest.xml" in members:
        with archive.open(members["meta-inf/manifest.xml"]) as stream:
            if b"encryption-data" in stream.read(_CHUNK):
                raise DataError("the workbook is encrypted.", where=name, fix="Save it without a password.")
    facts: dict[str, SheetFacts] = {}
    sheet = SheetFacts()
    row = column = 0
    row_repeats = repeats = 1
    in_cell, filled, length = False, False, 0
    error = False
    text = ""

    def repeated(attributes: dict[str, str], which: str) -> int:
        value = next((v for k, v in attributes.items() if _local(k) == which), "1")
        return max(1, int(value)) if value.isdigit() else 1

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal sheet, row, column, row_repeats, repeats, in_cell, filled, length, error, text
        tag = _local(tag)
        if tag == "table":
            title = next((v for k, v in attributes.items() if _local(k) == "name"), "")
            sheet = facts.setdefault(title, SheetFacts())
            row = 0
        elif tag == "table-row":
            row_repeats, column = repeated(attributes, "number-rows-repeated"), 0
        elif tag in ("table-cell", "covered-table-cell"):
            repeats = repeated(attributes, "number-columns-repeated")
            kinds = [v for k, v in attributes.items() if _local(k) == "value-type"]
            in_cell, filled, length, error, text = True, bool(kinds), 0, "error" in kinds, ""
            length = sum(len(v) for v in attributes.values())
        elif tag == "p" and in_cell:
            filled = True

    def end(tag: str) -> None:
        nonlocal row, column, in_cell
        tag = _local(tag)
        if tag in ("table-cell", "covered-table-cell"):
            in_cell = False
            if filled:
                sheet.meet(row, column)
                sheet.meet(row + row_repeats - 1, column + repeats - 1)
                sheet.n_text_bytes += length * repeats * row_repeats
                if error and repeats * row_repeats <= 1000:
                    for r in range(row, row + row_repeats):
                        for c in range(column, column + repeats):
                            sheet.faults[r, c] = f"holds the error {text[:20]}"
            column += repeats
        elif tag == "table-row":
            row += row_repeats

    def data(found: str) -> None:
        nonlocal length, text
        if in_cell:
            length += len(found)
            if len(text) < _TOLD_CHARS:
                text += found[:_TOLD_CHARS]

    def handlers(parser: expat.XMLParserType) -> None:
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler = data

    with archive.open(members["content.xml"]) as stream:
        _parse(stream, name, handlers)
    return facts
