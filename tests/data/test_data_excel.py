"""Workbooks: the table wherever it lies, exact cells, faulty ones refused by row of the sheet; hostile ones by name."""

from __future__ import annotations

import datetime as dt
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, _workbooks, import_files
from llmrec_core.data import _excel as excel
from llmrec_core.data._corrections import parse_mapping
from llmrec_core.data._excel import excel_sources, letters
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

NONE = parse_mapping([])
PLAYS = [["user_id", "item_id", "rating"], ["007", "a", 5], ["NA", "b", 3.5]]


def book(path: Path, sheets: dict[str, Sequence[Sequence[object]]], hidden: Sequence[str] = ()) -> Path:
    """A workbook of rows from cell A1; None leaves a cell empty."""
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.worksheets[0])
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for number, row in enumerate(rows, start=1):
            for column, value in enumerate(row, start=1):
                if value is not None:
                    sheet.cell(number, column, value)
        if name in hidden:
            sheet.sheet_state = "hidden"
    workbook.save(path)
    return path


def one(path: Path, *mapping: str) -> Source:
    (source,) = excel_sources(path, parse_mapping(mapping))
    return source


def rows(source: Source) -> list[list[str]]:
    return [list(row.values()) for row in source.careful(None).table.to_pylist()]


def lines(source: Source) -> list[int]:
    found = source.careful(None).lines
    assert found is not None
    return found.tolist()


def test_every_sheet_with_a_table_is_a_source(tmp_path: Path) -> None:
    films = [["item_id", "title"], ["a", "Alien"], ["b", "Solaris"]]
    notes = [["Read me"], ["This file was exported"], ["on a Monday"]]
    path = book(
        tmp_path / "shop.xlsx",
        {"Plays": PLAYS, "Empty": [], "Films": films, "About": notes, "Old": PLAYS}, hidden=["Old"],
    )  # fmt: skip
    sources = open_sources(path, NONE)
    assert [source.name for source in sources] == ["shop.xlsx/Plays", "shop.xlsx/Films"]
    assert rows(sources[0]) == [["007", "a", "5"], ["NA", "b", "3.5"]]
    assert lines(sources[0]) == [2, 3]
    assert any("About" in note for note in sources[0].notes)
    assert one(path, "table:shop.xlsx=Old").name == "shop.xlsx/Old"
    with pytest.raises(DataError, match=r"no sheet 'Nope'.*Plays, Empty, Films"):
        one(path, "table:shop.xlsx=Nope")


@pytest.mark.parametrize(
    ("above", "left", "header_row"),
    [
        ([], 0, 1),
        ([["Sales report 2024"], []], 0, 3),
        ([[], [], []], 2, 4),
        ([["Exported by", "Anna"], ["On", dt.date(2024, 1, 2)], []], 1, 4),
        ([[None, None, "Shop"], ["total", 3]], 0, 3),
    ],
)
def test_the_header_is_found_wherever_it_stands(
    tmp_path: Path, above: list[list[object]], left: int, header_row: int
) -> None:
    table = [[None] * left + row for row in [*PLAYS, ["u3", "c", 1]]]
    source = one(book(tmp_path / "t.xlsx", {"S": [*above, *table]}))
    assert source.columns == ("user_id", "item_id", "rating")
    assert rows(source) == [["007", "a", "5"], ["NA", "b", "3.5"], ["u3", "c", "1"]]
    assert lines(source) == [header_row + 1, header_row + 2, header_row + 3]
    assert bool(source.notes) == (header_row > 1 or left > 0)


def test_a_merged_title_and_empty_rows_within_are_passed_over(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": [["Plays of 2024"], *PLAYS[:2], [], PLAYS[2], [], ["total", None, 8.5]]})
    workbook = openpyxl.load_workbook(path)
    workbook["S"].merge_cells("A1:C1")
    workbook.save(path)
    source = one(path)
    assert rows(source) == [["007", "a", "5"], ["NA", "b", "3.5"], ["total", "", "8.5"]]
    assert lines(source) == [3, 5, 7]
    assert "row 2 names the columns; above it: 'Plays of 2024'" in source.notes


def test_the_header_row_can_be_told(tmp_path: Path) -> None:
    table = [["a", "b"], ["c", "d"], ["e", "f"]]
    path = book(tmp_path / "t.xlsx", {"S": table})
    assert one(path, "header_row:t.xlsx=2").columns == ("c", "d")
    assert rows(one(path, "header_row:t.xlsx/S=2")) == [["e", "f"]]
    plain = one(path, "header:t.xlsx=no")
    assert plain.columns == ("column_1", "column_2")
    assert not plain.header
    assert rows(plain) == table
    for told, message in (("9", "row 9 is empty"), ("x", "a number from 1"), ("0", "a number from 1")):
        with pytest.raises(DataError, match=message):
            one(path, f"header_row:t.xlsx={told}")


def test_what_is_said_about_a_sheet_in_an_archive_is_heard(tmp_path: Path) -> None:
    inner = book(tmp_path / "t.xlsx", {"S": [["a", "b"], ["c", "d"], ["e", "f"]]})
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(inner, "t.xlsx")
        archive.writestr("films.csv", "item_id,title\na,A\n")
    told = parse_mapping(["header_row:export.zip/t.xlsx/S=2"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sources = {source.name: source for source in open_sources(tmp_path / "export.zip", told, scratch)}
    assert sources["export.zip/t.xlsx/S"].columns == ("c", "d")


def test_a_sheet_without_names_says_so(tmp_path: Path) -> None:
    source = one(book(tmp_path / "t.xlsx", {"S": [["u1", 7, 5], ["u2", 8, 4], ["u1", 8, 3]]}))
    assert source.columns == ("column_1", "column_2", "column_3")
    assert source.notes == ("no row names the columns",)
    assert len(rows(source)) == 3


def test_a_matrix_is_headed_by_item_ids(tmp_path: Path) -> None:
    source = one(book(tmp_path / "t.xlsx", {"S": [["user", 101, 102, 103], ["u1", 5, None, 3], ["u2", None, 1, 2]]}))
    assert source.columns == ("user", "101", "102", "103")
    assert rows(source) == [["u1", "5", "", "3"], ["u2", "", "1", "2"]]


def test_a_matrix_with_an_empty_corner_keeps_its_users(tmp_path: Path) -> None:
    """As pandas writes a matrix with its index."""
    films = [[None, *(f"Film {n}" for n in range(6))]]
    users = [[f"u{n}", *(99 if (n + k) % 3 else (n + k) % 5 + 1 for k in range(6))] for n in range(12)]
    path = book(tmp_path / "m.xlsx", {"S": films + users})
    report = import_files(Workspace(tmp_path / "w"), [path], "m")
    frame = DatasetStore(Workspace(tmp_path / "w")).load("m").interactions
    expected = {(u[0], films[0][k], float(u[k])) for u in users for k in range(1, 7) if u[k] != 99}
    assert set(zip(frame["user_id"], frame["item_id"], frame["rating"], strict=True)) == expected
    assert report.n_users == 12


def test_columns_without_a_name(tmp_path: Path) -> None:
    indexed = [[None, "user_id", "item_id", None, None], [0, "u", "a", None, "see mail"], [1, "v", "b", None, None]]
    source = one(book(tmp_path / "t.xlsx", {"S": indexed}))
    assert source.columns == ("column_1", "user_id", "item_id")
    assert rows(source) == [["0", "u", "a"], ["1", "v", "b"]]
    assert "columns without a name are left out: E" in source.notes
    remark = [[None, "user_id", "item_id"], ["old", "u", "a"], [None, "v", "b"], [None, "w", "b"]]
    assert rows(one(book(tmp_path / "t.xlsx", {"S": remark}))) == [["u", "a"], ["v", "b"], ["w", "b"]]
    within = [["user_id", None, "item_id"], ["u", 1, "a"], ["v", 2, "b"]]
    with pytest.raises(DataError, match=r"t\.xlsx/S, row 1: column B has no name"):
        one(book(tmp_path / "t.xlsx", {"S": within}))
    twice = [["user_id", "item_id", "user_id"], ["u", 1, "a"], ["v", 2, "b"]]
    with pytest.raises(DataError, match=r"t\.xlsx/S, row 1: .*'user_id' stands there twice"):
        one(book(tmp_path / "t.xlsx", {"S": twice}))


def test_cells_of_every_type_are_text(tmp_path: Path) -> None:
    values: list[object] = [
        5.0, 4.5, 0.1, -3, 2**53 - 1, True, "007", " é\n中 ", dt.datetime(2024, 1, 2, 3, 4, 5), dt.date(2024, 2, 29),
        dt.time(13, 30), dt.timedelta(hours=30),
    ]  # fmt: skip
    names = [f"c{i}" for i in range(len(values))]
    source = one(book(tmp_path / "t.xlsx", {"S": [names, values]}))
    assert rows(source) == [
        ["5", "4.5", "0.1", "-3", "9007199254740991", "true", "007", " é\n中 ", "2024-01-02T03:04:05", "2024-02-29",
         "13:30:00", "108000"]
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(number=st.integers(-(2**53) + 1, 2**53 - 1) | st.decimals(-(10**8), 10**8, places=3).map(float))
def test_numbers_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    path = book(tmp_path_factory.mktemp("n") / "t.xlsx", {"S": [["name", "value"], ["x", number], ["y", number]]})
    text = rows(one(path))[0][1]
    assert float(text) == number
    assert "." not in text or number != int(number)


def test_numbers_too_long_for_a_spreadsheet_are_refused_by_row(tmp_path: Path) -> None:
    table = [["user_id", "item_id", "timestamp"], [2**53, "a", 1.7e18], [7, "b", 1.7e18], [1e17, "c", 1.7e18]]
    raw = one(book(tmp_path / "t.xlsx", {"S": table})).careful(None)
    assert raw.table.to_pylist() == [{"user_id": "7", "item_id": "b", "timestamp": "1700000000000000000"}]
    assert [line for line, _ in raw.rejects.listed] == [2, 4]
    assert "9007199254740992, and a spreadsheet keeps no number this long exactly" in raw.rejects.listed[0][1]


def test_errors_and_formulas_without_results_are_refused_by_row(tmp_path: Path) -> None:
    path = book(
        tmp_path / "t.xlsx",
        {
            "S": [
                ["user_id", "item_id", "x"],
                ["u", "#N/A", 1],
                ["v", "b", "=1+1"],
                ["w", "#DIV/0!", None],
                ["x", "y", 2],
            ]
        },
    )
    raw = one(path).careful(None)
    assert [list(row.values()) for row in raw.table.to_pylist()] == [["x", "y", "2"]]
    assert raw.rejects.listed == [
        (2, "column 'item_id' holds the error #N/A"),
        (3, "column 'x' holds a formula whose result is not stored"),
        (4, "column 'item_id' holds the error #DIV/0!"),
    ]


def edit(path: Path, member: str, change: object) -> Path:
    """Rewrites one member of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    parts[member] = change(parts[member])  # type: ignore[operator]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


SHEET = "xl/worksheets/sheet1.xml"


def test_stored_results_of_formulas_are_read(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": [["user_id", "item_id", "x"], ["u", "a", "=1+1"]]})
    edit(path, SHEET, lambda data: data.replace(b"<v></v>", b"<v>2</v>").replace(b"<v />", b"<v>2</v>"))
    assert rows(one(path)) == [["u", "a", "2"]]


def test_cells_without_places_count_on(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": [["user_id", "item_id"], ["u", "#N/A"], ["v", "b"]]})
    for place in (b"A1", b"B1", b"A2", b"B2", b"A3", b"B3"):
        edit(path, SHEET, lambda data, p=place: data.replace(b' r="%s"' % p, b""))
    raw = one(path).careful(None)
    assert raw.table.to_pylist() == [{"user_id": "v", "item_id": "b"}]
    assert raw.rejects.listed == [(2, "column 'item_id' holds the error #N/A")]


def test_blocks_are_bounded_and_give_the_rows_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excel, "_BLOCK_ROWS", 64)
    table = [["user_id", "item_id"], *([i, f"i{i}"] for i in range(300))]
    source = one(book(tmp_path / "t.xlsx", {"S": table}))
    assert source.batches is not None
    assert [len(block.table) for block in source.batches(None)] == [64] * 4 + [44]
    assert [row[0] for row in rows(source)] == [str(i) for i in range(300)]
    assert lines(source) == list(range(2, 302))
    assert sum(len(block.table) for block in source.batches(100)) == 100


# ------------------------------------------------------------------------------------------------ hostile


def bomb(path: Path, member: str, size: int, declared: int | None = None) -> Path:
    """Adds a member of ``size`` zero bytes, which may say that it is smaller."""
    book(path, {"S": PLAYS})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, b"\0" * size)
    if declared is not None:
        data = path.read_bytes()
        path.write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", declared)))
    return path


def test_a_zip_bomb_in_a_workbook_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.xlsx: it unfolds to more than"):
        excel_sources(bomb(tmp_path / "t.xlsx", "xl/media/x.bin", 100_000_000), NONE)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"says that it has 1,000 bytes and unfolds to more"):
        excel_sources(bomb(tmp_path / "t.xlsx", "xl/media/x.bin", 5_000_000, declared=1000), NONE)


def test_a_cell_in_the_last_corner_is_refused(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": PLAYS})
    far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    edit(path, SHEET, lambda data: data.replace(b"</sheetData>", far))
    with pytest.raises(DataError, match=r"t\.xlsx/S: the sheet spans 17,179,869,184 cells"):
        excel_sources(path, NONE)
    outside = b'<row r="9999999"><c r="A9999999"><v>1</v></c></row></sheetData>'
    edit(path, SHEET, lambda data: data.replace(far, outside))
    with pytest.raises(DataError, match="lies outside of every sheet"):
        excel_sources(path, NONE)


def share_texts(path: Path) -> Path:
    """Moves the texts of a workbook to where Excel keeps them: once each, in a part of their own."""
    texts: dict[bytes, int] = {}

    def move(sheet: bytes) -> bytes:
        return re.sub(
            rb't="inlineStr"><is><t>([^<]*)</t></is>',
            lambda found: b't="s"><v>%d</v>' % texts.setdefault(found[1], len(texts)),
            sheet,
        )

    edit(path, SHEET, move)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        parts = b"".join(b"<si><t>%s</t></si>" % text for text in texts)
        archive.writestr("xl/sharedStrings.xml", b"<sst>%s</sst>" % parts)
    return path


def test_a_long_text_shared_by_many_cells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workbooks, "_MAX_TEXT_BYTES", 100_000)
    head = ["user_id", "item_id"]
    long = share_texts(book(tmp_path / "t.xlsx", {"S": [head, *(["x" * 1000, i] for i in range(200))]}))
    with pytest.raises(DataError, match=r"t\.xlsx/S: it unfolds to more than"):
        excel_sources(long, NONE)
    few = share_texts(book(tmp_path / "f.xlsx", {"S": [head, ["x" * 1000, 0], *(["y", i] for i in range(200))]}))
    assert [row[0] for row in rows(one(few))] == ["x" * 1000] + ["y"] * 200


def test_entities_are_refused(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": PLAYS})
    bombing = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    edit(path, SHEET, lambda data: data.replace(b"<worksheet", bombing + b"<worksheet", 1))
    with pytest.raises(DataError, match="holds a document type"):
        excel_sources(path, NONE)


@pytest.mark.parametrize("cut", [30, 200, 2000, -30])
def test_truncated_workbooks_are_refused(tmp_path: Path, cut: int) -> None:
    path = book(tmp_path / "t.xlsx", {"S": PLAYS})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"t\.xlsx: .*damaged"):
        excel_sources(path, NONE)


def test_broken_xml_is_refused(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsx", {"S": PLAYS})
    edit(path, SHEET, lambda data: data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged"):
        excel_sources(path, NONE)


def test_other_archives_and_locked_workbooks_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ratings.csv", "user_id,item_id\n")
    with pytest.raises(DataError, match=r"t\.xlsx: this archive is not a workbook"):
        excel_sources(path, NONE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.bin", "x")
    with pytest.raises(DataError, match=r"binary workbook \(\.xlsb\)\. Save it as \.xlsx"):
        excel_sources(path, NONE)
    locked = tmp_path / "locked.xlsx"
    locked.write_bytes(compound_file("EncryptedPackage", b"x" * 5000))
    with pytest.raises(DataError, match=r"locked\.xlsx: the workbook is locked by a password"):
        excel_sources(locked, NONE)


def test_macros_and_links_to_other_files_are_left_alone(tmp_path: Path) -> None:
    path = book(tmp_path / "t.xlsm", {"S": PLAYS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/vbaProject.bin", b"\xd0\xcf\x11\xe0 not opened")
        archive.writestr("xl/externalLinks/externalLink1.xml", "<externalLink><externalBook/></externalLink>")
    assert rows(one(path)) == [["007", "a", "5"], ["NA", "b", "3.5"]]


# ------------------------------------------------------------------------------------------------ .ods and .xls

_NAMES = ["office", "table", "text"]
_SPACES = " ".join(f'xmlns:{n}="urn:oasis:names:tc:opendocument:xmlns:{n}:1.0"' for n in _NAMES)
_CALC = 'xmlns:calcext="urn:org:documentfoundation:names:experimental:calc:xmlns:calcext:1.0"'


def ods(path: Path, table: str, manifest: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr(
            "META-INF/manifest.xml",
            '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
            f'<manifest:file-entry manifest:full-path="/">{manifest}</manifest:file-entry></manifest:manifest>',
        )
        archive.writestr(
            "content.xml",
            f'<?xml version="1.0"?><office:document-content {_SPACES} {_CALC} office:version="1.2"><office:body>'
            f'<office:spreadsheet><table:table table:name="T">{table}</table:table></office:spreadsheet></office:body>'
            "</office:document-content>",
        )
    return path


def ods_row(*cells: str, repeat: int = 1) -> str:
    return f'<table:table-row table:number-rows-repeated="{repeat}">{"".join(cells)}</table:table-row>'


def ods_text(value: str) -> str:
    return f'<table:table-cell office:value-type="string"><text:p>{value}</text:p></table:table-cell>'


def ods_number(value: str, repeat: int = 1) -> str:
    return (
        f'<table:table-cell office:value-type="float" office:value="{value}" table:number-columns-repeated="{repeat}">'
        f"<text:p>{value}</text:p></table:table-cell>"
    )


ODS_ERROR = (
    '<table:table-cell office:value-type="string" office:string-value="" calcext:value-type="error"><text:p>#N/A'
    "</text:p></table:table-cell>"
)


def test_opendocument_sheets_are_read(tmp_path: Path) -> None:
    path = ods(
        tmp_path / "t.ods",
        ods_row("<table:table-cell/>", repeat=2)
        + ods_row("<table:table-cell/>", ods_text("user_id"), ods_text("item_id"))
        + ods_row("<table:table-cell/>", ods_text("007"), ods_number("5"), repeat=2)
        + ods_row("<table:table-cell/>", ods_text("u"), ODS_ERROR)
        + ods_row('<table:table-cell table:number-columns-repeated="16384"/>', repeat=1_000_000),
    )
    raw = one(path).careful(None)
    assert [list(row.values()) for row in raw.table.to_pylist()] == [["007", "5"], ["007", "5"]]
    assert raw.lines is not None
    assert raw.lines.tolist() == [4, 5]
    assert raw.rejects.listed == [(6, "column 'item_id' holds the error #N/A")]


def test_opendocument_bombs_and_locks_are_refused(tmp_path: Path) -> None:
    repeated = ods(tmp_path / "t.ods", ods_row(ods_number("1", repeat=16_000), repeat=1_000_000))
    with pytest.raises(DataError, match=r"t\.ods/T: the sheet spans 16,000,000,000 cells"):
        excel_sources(repeated, NONE)
    long = ods(tmp_path / "t.ods", ods_row(ods_text("x" * 1_000_000), repeat=100_000))
    with pytest.raises(DataError, match=r"t\.ods/T: it unfolds to more than"):
        excel_sources(long, NONE)
    locked = ods(tmp_path / "t.ods", ods_row(ods_text("x")), "<manifest:encryption-data/>")
    with pytest.raises(DataError, match="the workbook is encrypted"):
        excel_sources(locked, NONE)


def compound_file(stream_name: str, content: bytes) -> bytes:
    """An old-style container with one stream of at least 4,096 bytes: header, table of sectors, directory, stream."""
    content = content.ljust(-(-max(len(content), 4096) // 512) * 512, b"\0")
    n_sectors = len(content) // 512
    chain = [0xFFFFFFFD, 0xFFFFFFFE, *range(3, n_sectors + 2), 0xFFFFFFFE]
    assert len(chain) <= 128
    fat = struct.pack("<128I", *chain, *[0xFFFFFFFF] * (128 - len(chain)))
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    header += struct.pack("<IIIIIIIII", 0, 1, 1, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0)
    header += struct.pack("<109I", 0, *[0xFFFFFFFF] * 108)

    def entry(name: str, kind: int, child: int, start: int, size: int) -> bytes:
        raw = name.encode("utf-16-le") + b"\0\0"
        return (
            raw.ljust(64, b"\0") + struct.pack("<HBBIII", len(raw), kind, 1, 0xFFFFFFFF, 0xFFFFFFFF, child) + bytes(36)
            + struct.pack("<IQ", start, size)
        )  # fmt: skip

    directory = entry("Root Entry", 5, 1, 0xFFFFFFFE, 0) + entry(stream_name, 2, 0xFFFFFFFF, 2, len(content))
    return header + fat + directory.ljust(512, b"\0") + content


def xls(path: Path, cells: Sequence[Sequence[object]]) -> Path:
    """The smallest workbook in the format of 1997 that holds texts, numbers and an error."""

    def record(kind: int, data: bytes) -> bytes:
        return struct.pack("<HH", kind, len(data)) + data

    sheet = record(0x809, struct.pack("<HHHHII", 0x600, 0x10, 0, 0, 0, 0))
    sheet += record(0x200, struct.pack("<IIHHH", 0, len(cells), 0, max(map(len, cells)), 0))
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            place = struct.pack("<HHH", row, column, 0)
            if value == "#N/A":
                sheet += record(0x205, place + b"\x2a\x01")
            elif isinstance(value, str):
                sheet += record(0x204, place + struct.pack("<HB", len(value), 1) + value.encode("utf-16-le"))
            elif isinstance(value, int | float):
                sheet += record(0x203, place + struct.pack("<d", value))
    sheet += record(0x0A, b"")
    start = record(0x809, struct.pack("<HHHHII", 0x600, 0x05, 0, 0, 0, 0))
    name = struct.pack("<BB", 2, 0) + b"S1"
    at = len(start) + 4 + 6 + len(name) + 4
    path.write_bytes(
        compound_file(
            "Workbook", start + record(0x85, struct.pack("<IBB", at, 0, 0) + name) + record(0x0A, b"") + sheet
        )
    )
    return path


def test_old_workbooks_are_read_and_say_what_they_hide(tmp_path: Path) -> None:
    path = xls(tmp_path / "t.xls", [["user_id", "item_id", "x"], ["007", "中", 5], ["u", "#N/A", 2.5]])
    source = one(path)
    assert source.name == "t.xls/S1"
    assert rows(source) == [["007", "中", "5"], ["u", "", "2.5"]]
    assert any("errors such as #N/A read as empty" in note for note in source.notes)
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(DataError, match=r"t\.xls"):
        open_sources(path, NONE)


def test_a_workbook_is_imported(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    plays = [["Plays"], [], ["user_id", "item_id", "rating", "timestamp"]]
    plays += [[u, i, r, dt.datetime(2024, 1, d)] for u, i, r, d in [("007", "a", 5, 1), ("u", "b", 1, 2)]]  # type: ignore[list-item]
    path = book(tmp_path / "shop.xlsx", {"Plays": plays, "Films": [["item_id", "title"], ["a", "Alien"], ["b", "Up"]]})
    report = import_files(workspace, [path], "shop", ["scale=1..5"])
    dataset = DatasetStore(workspace).load("shop")
    assert dataset.interactions["user_id"].tolist() == ["007", "u"]
    assert dataset.interactions["rating"].tolist() == [5.0, 1.0]
    assert dataset.interactions["timestamp"].tolist() == [1704067200.0, 1704153600.0]
    assert dataset.item_text(dataset.item_idx("a"), "title") == "Alien"
    assert [file.file for file in report.files] == ["shop.xlsx/Plays", "shop.xlsx/Films"]


@pytest.mark.parametrize(("column", "name"), [(0, "A"), (25, "Z"), (26, "AA"), (701, "ZZ"), (702, "AAA")])
def test_letters_of_columns(column: int, name: str) -> None:
    assert letters(column) == name
