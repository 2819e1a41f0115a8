"""Delimited text: every dialect and encoding comes in right, or is refused where it is wrong."""

from __future__ import annotations

import random
import string
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data._raw import RawTable, whole
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.data._text_files import read_blocks, read_careful, read_fast, sniff
from llmrec_core.errors import DataError

HEADER = ["user_id", "item_id", "rating"]
ROWS = [["u1", "a", "5"], ["u1", "b", "3"], ["u2", "a", "1"]]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def opened(path: Path, *mapping: str) -> Source:
    (source,) = open_sources(path, parse_mapping(mapping))
    return source


def rows_of(raw: RawTable) -> list[list[str]]:
    columns = [raw.table.column(i).to_pylist() for i in range(raw.table.num_columns)]
    return [list(row) for row in zip(*columns, strict=True)]


def everything(source: Source) -> tuple[list[list[str]], list[int], list[tuple[int, str]]]:
    """(rows, their lines, refused lines), after all three readers agreed on them."""
    assert source.batches is not None
    blocks = whole(source.batches(None), source.columns, source.name)
    careful, fast = source.careful(None), source.fast()
    assert fast is not None
    found = [
        (rows_of(r), None if r.lines is None else r.lines.tolist(), r.rejects.listed) for r in (blocks, careful, fast)
    ]
    assert found[0] == found[1] == found[2]
    return found[0]  # type: ignore[return-value]


def lined(separator: str, rows: list[list[str]], end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in rows)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", "||", ";;", "~~", "^", "~", "\x01", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends_are_found(tmp_path: Path, separator: str, end: str) -> None:
    source = opened(put(tmp_path, "d.csv", lined(separator, [HEADER, *ROWS], end)))
    assert source.separator == separator
    assert list(source.columns) == HEADER
    assert everything(source) == (ROWS, [2, 3, 4], [])


def test_a_separator_that_cannot_be_typed_can_be_told(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.txt", lined("\x01", [HEADER, *ROWS])), r"separator:d.txt=\x01")
    assert everything(source)[0] == ROWS


@pytest.mark.parametrize("separator", ["#", "<>", "|#|", "§", "::::", "%%"])
def test_any_separator_of_up_to_four_characters_can_be_told(tmp_path: Path, separator: str) -> None:
    source = opened(put(tmp_path, "d.txt", lined(separator, [HEADER, *ROWS])), f"separator:d.txt={separator}")
    assert everything(source)[0] == ROWS


@pytest.mark.parametrize(
    ("separator", "words"), [('"', "cannot separate"), ("\n", "cannot separate"), ("-----", "four")]
)
def test_impossible_separators_are_refused(tmp_path: Path, separator: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        sniff(put(tmp_path, "d.csv", lined(",", [HEADER, *ROWS])), separator=separator)


def test_hashes_inside_lists_and_commas_inside_titles_do_not_separate(tmp_path: Path) -> None:
    text = "user_id;history\nu1;1#2#3\nu2;4#5#6\nu3;7#8#9\n"
    assert everything(opened(put(tmp_path, "d.csv", text)))[0][0] == ["u1", "1#2#3"]
    text = "item_id|title\n1|Good, Bad, Ugly\n2|Alien\n3|One, Two\n"
    assert everything(opened(put(tmp_path, "items.csv", text)))[0][0] == ["1", "Good, Bad, Ugly"]


def test_an_empty_column_is_not_a_double_separator(tmp_path: Path) -> None:
    text = "user_id|note|item_id|rating\nu1||a|5\nu2||b|4\n"
    source = opened(put(tmp_path, "d.csv", text))
    assert source.separator == "|"
    assert everything(source)[0] == [["u1", "", "a", "5"], ["u2", "", "b", "4"]]


def test_line_ends_may_be_mixed(tmp_path: Path) -> None:
    text = "user_id,item_id\nu1,a\r\nu2,b\ru3,c\n\r\nu4,d\r\rbad\nu5,e"
    rows, lines, refused = everything(opened(put(tmp_path, "d.csv", text)))
    assert rows == [["u1", "a"], ["u2", "b"], ["u3", "c"], ["u4", "d"], ["u5", "e"]]
    assert lines == [2, 3, 4, 6, 9]
    assert refused == [(8, "1 cells instead of 2")]


def test_quotes_hold_separators_line_ends_and_quotes(tmp_path: Path) -> None:
    text = 'user_id,item_id,note\nu1,a,"one, two"\r\nu2,b,"first\r\nsecond ""said"" so"\nu3,c,""\nu4,d,plain\n'
    rows, lines, refused = everything(opened(put(tmp_path, "d.csv", text)))
    assert [row[2] for row in rows] == ["one, two", 'first\nsecond "said" so', "", "plain"]
    assert (lines, refused) == ([2, 3, 5, 6], [])


def test_quoted_cells_work_with_a_double_separator(tmp_path: Path) -> None:
    text = 'user_id::item_id::note\nu1::a::"x::y"\nu2::b::"Weird" Al\nu3::c::z\n'
    assert [row[2] for row in everything(opened(put(tmp_path, "d.csv", text)))[0]] == ["x::y", '"Weird" Al', "z"]


def test_backslashes_before_quotes_are_found_and_said(tmp_path: Path) -> None:
    text = 'user_id,item_id,note\nu1,a,"she said \\"no, never\\" twice"\nu2,b,"C:\\\\temp"\n'
    text += 'u3,c,"tab\\t"\nu4,d,"two\n\\"lines\\""\n'
    source = opened(put(tmp_path, "d.csv", text))
    rows, lines, _ = everything(source)
    assert [row[2] for row in rows] == ['she said "no, never" twice', "C:\\temp", "tab\\t", 'two\n"lines"']
    assert lines == [2, 3, 4, 5]
    assert any("backslash" in note for note in source.notes)


def test_a_backslash_at_the_end_of_a_cell_is_only_a_backslash(tmp_path: Path) -> None:
    text = 'user_id,item_id,note\nu1,a,"C:\\dir\\"\nu2,b,"x, y"\n'
    assert [row[2] for row in everything(opened(put(tmp_path, "d.csv", text)))[0]] == ["C:\\dir\\", "x, y"]


def test_a_stray_quote_at_a_block_border_eats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._HEAD_BYTES", 64)
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 64)
    lines = [f'u{i},i{i},"note {i}\nmore"' if i % 3 else f'u{i},i{i},"open {i}' for i in range(1, 60)]
    path = put(tmp_path, "d.csv", "user_id,item_id,note\n" + "\n".join(lines) + "\n")
    rows, numbers, refused = everything(opened(path))
    assert [row[0] for row in rows] == [f"u{i}" for i in range(1, 60) if i % 3]
    assert all(row[2] == f"note {row[0][1:]}\nmore" for row in rows)
    assert [line for line, _ in refused] == [2 + sum(2 if j % 3 else 1 for j in range(1, i)) for i in range(3, 60, 3)]
    assert numbers == sorted(numbers)


# ------------------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ("Export of March 2024\n\n", "Export of March"),
        ("Ratings;;\nmade by shop;;\n", "Ratings"),
        ("# made by hand\n# second line\n", "made by hand"),
        ("% one comment\n", "one comment"),
    ],
)
def test_lines_above_the_header_are_left_out_and_said(tmp_path: Path, above: str, said: str) -> None:
    source = opened(put(tmp_path, "d.csv", above + lined(";", [HEADER, *ROWS])))
    assert list(source.columns) == HEADER
    rows, lines, refused = everything(source)
    start = above.count("\n") + 2
    assert (rows, lines, refused) == (ROWS, [start, start + 1, start + 2], [])
    assert any(said in note and "left out" in note for note in source.notes)


@pytest.mark.parametrize("hint", ["sep=;\n", '"sep=;"\r\n', "SEP=;\r"])
def test_the_hint_of_spreadsheets_is_taken(tmp_path: Path, hint: str) -> None:
    source = opened(put(tmp_path, "d.csv", hint + "a,b;c,d\n1,5;2,5\n3,5;4,5\n"))
    assert source.columns == ("a,b", "c,d")
    assert everything(source)[:2] == ([["1,5", "2,5"], ["3,5", "4,5"]], [3, 4])


def test_a_missing_header_is_said(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.csv", "7,9,1\n8,9,2\n"))
    assert source.notes == ("no header was found: the columns are called column_1, column_2 ...",)


def test_a_header_may_be_a_comment(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.csv", "# user_id,item_id,rating\n" + lined(",", ROWS)))
    assert list(source.columns) == HEADER
    assert everything(source)[0] == ROWS


def test_the_line_of_the_header_can_be_told(tmp_path: Path) -> None:
    text = "x,y,z\n1,2,3\nwho,what,mark\n" + lined(",", ROWS)
    source = opened(put(tmp_path, "d.csv", text), "header_row:d.csv=3")
    assert source.columns == ("who", "what", "mark")
    assert everything(source)[1] == [4, 5, 6]
    with pytest.raises(DataError, match="no line 99"):
        opened(tmp_path / "d.csv", "header_row:d.csv=99")


def test_without_header_a_ragged_first_row_is_refused_and_no_row_becomes_the_header(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.csv", "1,2\n" + lined(",", [["1", "2", "4"], ["3", "4", "5"]] * 5)))
    assert not source.header
    rows, _, refused = everything(source)
    assert len(rows) == 10
    assert refused == [(1, "2 cells instead of 3")]


@pytest.mark.parametrize("first", ["7,book,5", "12,game,3", "u1,movie,2"])
def test_a_value_that_is_also_a_column_name_does_not_make_a_header(tmp_path: Path, first: str) -> None:
    source = opened(put(tmp_path, "d.csv", f"{first}\n8,pear,4\n9,apple,1\n"))
    assert not source.header
    assert len(everything(source)[0]) == 3


def test_typed_headers_leave_quotes_alone(tmp_path: Path) -> None:
    text = 'item_id:token\tmovie_title:token_seq\n1\t"Weird" Al\n2\t"open\n'
    source = opened(put(tmp_path, "x.item", text))
    assert source.columns == ("item_id", "movie_title")
    assert everything(source)[0] == [["1", '"Weird" Al'], ["2", '"open']]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user_id,item_id,item_id\nu1,a,b\n", "line 1: the column name 'item_id' stands there twice"),
        ("user_id,,item_id\nu1,x,a\n", "line 1: column 2 has no name"),
        ("", "the file is empty"),
        ("\n\n  \n", "no rows"),
        ("just words\nand more of them here\nnothing\n", "only one column"),
        ("user_id,item_id\nu1,a\n" + "x" * 9_000_000, "longer than 4 million"),
        ("\n".join("user_id item") + "\x00\n", "zero bytes"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        everything(opened(put(tmp_path, "d.csv", text)))
    assert "d.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(50), "a program"),
        (b"MZ\x90\x00\x03" + bytes(50), "a program"),
        (b"\x80\x04\x95\x00\x00", "pickle"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "a picture"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(9), "7z archive"),
        (b"Rar!\x1a\x07\x00" + bytes(9), "RAR archive"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_other_files_with_the_wrong_name_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"d\.csv.*{words}"):
        opened(put(tmp_path, "d.csv", content))


def test_a_header_that_begins_like_a_program_is_text(tmp_path: Path) -> None:
    assert opened(put(tmp_path, "d.csv", "MZ_user,PK_item,rating\n1,2,3\n")).columns[0] == "MZ_user"


# ------------------------------------------------------------------------------------------------ encodings

TITLES = {
    "gbk": ["霸王别姬", "阿飞正传", "花样年华", "卧虎藏龙", "让子弹飞"],
    "gb18030": ["霸王别姬", "阿飞正传", "花样年华", "𠮷野家", "让子弹飞"],
    "big5": ["霸王別姬", "悲情城市", "海角七號", "飲食男女", "臥虎藏龍"],
    "shift_jis": ["千と千尋の神隠し", "もののけ姫", "となりのトトロ", "七人の侍", "東京物語"],
    "cp949": ["기생충", "올드보이", "살인의 추억", "부산행", "괴물"],
    "latin-1": ["Amélie à la crème", "Das weiße Band", "Señora Müller", "Être et avoir", "Ça va"],
    "cp1252": ["Amélie – crème", "L’été “brûlé”", "Señora Müller", "Être et avoir", "Ça va"],
    "cp1250": ["Mały Książę", "Dziewczyna z łąki", "Źródło", "Krzyżacy", "Zażółć gęślą jaźń"],
    "iso8859_2": ["Mały Książę", "Dziewczyna z łąki", "Źródło", "Krzyżacy", "Zażółć gęślą jaźń"],
    "cp1251": ["Ирония судьбы", "Сталкер", "Солярис", "Москва слезам не верит", "Брат"],
}


@pytest.mark.parametrize(
    "encoding", [*TITLES, "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
def test_encodings_are_guessed_and_can_be_told(tmp_path: Path, encoding: str) -> None:
    titles = TITLES.get(encoding, TITLES["gbk"])
    rows = [[f"i{n}", title] for n, title in enumerate(titles * 3)]
    path = put(tmp_path, "items.csv", lined(",", [["item_id", "title"], *rows]).encode(encoding))
    source = opened(path)
    assert everything(source)[0] == rows
    if encoding in TITLES or encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        assert any("guessed" in note or "taken as" in note for note in source.notes)
    assert everything(opened(path, f"encoding:items.csv={encoding}"))[0] == rows


@pytest.mark.parametrize(
    ("encoding", "titles"),
    [
        ("cp1250", ["Osudy dobrého vojáka Švejka", "Příliš žluťoučký kůň", "Válka s mloky", "Žert"]),
        ("cp1250", ["Árvíztűrő tükörfúrógép", "A Pál utcai fiúk", "Hős utca", "Édes Anna"]),
        ("cp1250", ["Na Drini ćuprija", "Šuma čempresa", "Đavolja varoš", "Kuća na međi"]),
        ("cp1252", ["À la recherche du temps perdu", "Où est la maison", "L'Étranger", "Être et le néant"]),
        ("cp1252", ["Caffè", "Perché è così", "La città", "Più in là"]),
        ("cp1252", ["Kærlighed", "Sørøver", "Den grå kat", "Rødgrød med fløde"]),
        ("cp1252", ["Memórias póstumas", "São Paulo", "Coração", "Lições"]),
        ("cp1252", ["Pumpe 5 m³/h", "Größe 3", "Kärcher 90°", "Café", "El niño", "Être"]),
        ("cp1252", ["Café", "Citroën", "Übermut", "Señor", "Smörgås", "Ça va"]),
    ],
)
def test_code_pages_of_latin_letters_are_told_apart_by_the_language(
    tmp_path: Path, encoding: str, titles: list[str]
) -> None:
    path = put(tmp_path, "items.csv", lined(",", [["item_id", "title"], *([f"i{n}", t] for n, t in enumerate(titles))]))
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert [row[1] for row in everything(opened(path))[0]] == titles


@pytest.mark.parametrize("told", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_byte_order_marks_are_never_part_of_a_name_or_an_id(tmp_path: Path, told: str) -> None:
    one = "\ufeff" + lined(",", [HEADER, *ROWS])
    path = put(tmp_path, "d.csv", (one + one).encode("utf-8" if told.startswith("utf-8") else "utf-16-le"))
    rows, lines, refused = everything(opened(path, f"encoding:d.csv={told}"))
    assert rows == [*ROWS, *ROWS]
    assert lines == [2, 3, 4, 6, 7, 8]
    assert refused == [(5, "the header stands here again")]


def test_a_typed_header_that_comes_again_is_refused(tmp_path: Path) -> None:
    one = "user_id:token\titem_id:token\nu1\ta\n"
    rows, _, refused = everything(opened(put(tmp_path, "d.inter", one + one)))
    assert rows == [["u1", "a"], ["u1", "a"]]
    assert refused == [(3, "the header stands here again")]


def test_broken_characters_cost_their_line_in_any_encoding(tmp_path: Path) -> None:
    lines = [f"i{n},{TITLES['gbk'][n % 5]}".encode("gbk") for n in range(12)]
    lines[4] = b"i4,\xff\xff"
    path = put(tmp_path, "items.csv", b"item_id,title\n" + b"\n".join(lines) + b"\n")
    rows, _, refused = everything(opened(path, "encoding:items.csv=gbk"))
    assert len(rows) == 11
    assert refused == [(6, "the line is not valid gbk")]


def test_a_wrong_wide_encoding_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "user_id,item_id\nu1,a\n")
    with pytest.raises(DataError, match="not valid utf-16"):
        opened(path, "encoding:d.csv=utf-16")
    cut = put(tmp_path, "cut.csv", lined(",", [HEADER, *ROWS]).encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"cut\.csv: the text is not valid utf-16"):
        everything(opened(cut))


def test_one_broken_byte_far_behind_is_found_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 1000)
    lines = [f"u{n},é{n}".encode() for n in range(2000)]
    assert opened(put(tmp_path, "good.csv", b"user_id,item_id\n" + b"\n".join(lines))).notes == ()
    lines[1500] = b"u1500,\xe91500"
    source = opened(put(tmp_path, "d.csv", b"user_id,item_id\n" + b"\n".join(lines)))
    rows, _, refused = everything(source)
    assert len(rows) == 1999
    assert refused == [(1502, "the line is not valid utf-8")]


# ------------------------------------------------------------------------------------------------ blocks


def test_blocks_list_every_refused_row_and_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._HEAD_BYTES", 1 << 12)
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 1 << 14)
    lines = ["bad" if n % 20 == 7 else f"u{n},i{n},{n % 5}" for n in range(40_000)]
    path = put(tmp_path, "d.csv", "user_id,item_id,rating\n" + "\n".join(lines))
    source = opened(path)
    assert source.batches is not None
    blocks = list(source.batches(None))
    assert max(len(block.table) for block in blocks) < 2000
    refused = [line for block in blocks for line, _ in block.rejects.listed]
    assert refused == [n + 2 for n in range(40_000) if n % 20 == 7]
    assert all(block.rejects.texts[line] == "bad" for block in blocks for line, _ in block.rejects.listed)
    assert [int(line) for block in blocks for line in block.lines] == [n + 2 for n in range(40_000) if n % 20 != 7]  # type: ignore[union-attr]
    careful = source.careful(None)
    assert (careful.rejects.count, len(careful.rejects.listed)) == (2000, 1000)


def test_a_few_rows_need_a_few_bytes(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "user_id,item_id\n" + "u1,a\n" * 300_000)
    dialect = sniff(path)
    blocks = list(read_blocks(path, dialect, 5))
    assert sum(len(block.table) for block in blocks) == 5
    assert len(read_careful(path, dialect, 7).table) == 7


@pytest.mark.parametrize("text", ["0,a\n\n\n1,b\nx\n", "x\n\n0,a\ny\n1,b\n", "0,a\n1,b\n\n \n\t\n"])
def test_blank_lines_are_no_rows_and_count_as_lines(tmp_path: Path, text: str) -> None:
    rows, lines, refused = everything(opened(put(tmp_path, "d.csv", "user_id,item_id\n" + text)))
    assert rows == [["0", "a"], ["1", "b"]]
    numbered = text.split("\n")
    assert lines == [numbered.index("0,a") + 2, numbered.index("1,b") + 2]
    assert len(refused) == text.count("x") + text.count("y")


# ------------------------------------------------------------------------------------------------ random tables

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\x1f", exclude_categories=("Cs",)), max_size=12)
TAME = st.text(string.ascii_letters + "äéß", min_size=1, max_size=8)


def written(rows: list[list[str]], separator: str, end: str, *, always: bool, escape: bool = False) -> str:
    """A table as a careful program writes it: quotes where they are needed, doubled (or escaped) inside."""

    def cell(text: str) -> str:
        if escape:
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        wild = any(mark in text for mark in ('"', "\r", "\n")) or any(mark in text for mark in separator)
        return '"' + text.replace('"', '""') + '"' if always or wild or text != text.strip() or not text else text

    return "".join(separator.join(cell(text) for text in row) + end for row in rows)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=12),
    separator=st.sampled_from([",", ";", "\t", "|", "::", "||", "^", "~"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030"]),
    always=st.booleans(),
)
def test_a_told_dialect_comes_back_equal(
    tmp_path: Path, cells: list[list[str]], separator: str, end: str, encoding: str, always: bool
) -> None:
    table = [[f"u{n}", *row] for n, row in enumerate(cells)]
    text = written([["user_id", "a", "b", "c"], *table], separator, end, always=always)
    path = put(tmp_path, "d.csv", text.encode(encoding))
    told = [f"encoding:d.csv={encoding}", "header:d.csv=yes"]
    source = opened(path, *told, f"separator:d.csv={separator}")
    rows, _, refused = everything(source)
    # Line ends inside quotes are kept as one kind of line end.
    expected = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in table]
    assert refused == []
    assert rows == expected


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.lists(TAME, min_size=2, max_size=2), min_size=3, max_size=12),
    separator=st.sampled_from([",", ";", "\t", "|", "::", "||", "^", "~"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"]),
    header=st.booleans(),
)
def test_a_guessed_dialect_comes_back_equal(
    tmp_path: Path, cells: list[list[str]], separator: str, end: str, encoding: str, header: bool
) -> None:
    table = [[f"{n}", *row, f"{n % 5}"] for n, row in enumerate(cells)]
    text = written([["user_id", "item_id", "title", "rating"]] * header + table, separator, end, always=False)
    source = opened(put(tmp_path, "d.csv", text.encode(encoding)))
    rows, lines, refused = everything(source)
    if encoding == "cp1252" and source.encoding not in ("cp1252", "utf-8"):
        # Two letters in a row can be one Chinese character: nobody can know, so it is said.
        assert any("encoding guessed as" in note for note in source.notes)
        return
    assert refused == []
    assert rows == table
    assert lines == [n + 1 + header for n in range(len(table))]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from([*'ab,"\n\r \\\t', '",', ',"', '"\n', "u1,a", '""']), min_size=1, max_size=40),
    separator=st.sampled_from([",", "\t", "a", "::"]),
)
def test_fast_and_careful_agree_on_any_mess(tmp_path: Path, pieces: list[str], separator: str) -> None:
    path = put(tmp_path, "d.csv", "x,y\n".replace(",", separator) + "".join(pieces))
    dialect = sniff(path, "utf-8", separator, header=True)
    fast, careful = read_fast(path, dialect), read_careful(path, dialect)
    assert rows_of(fast) == rows_of(careful)
    assert fast.lines is not None
    assert careful.lines is not None
    assert fast.lines.tolist() == careful.lines.tolist()
    assert fast.rejects.listed == careful.rejects.listed
    lines = sorted([*careful.lines.tolist(), *(line for line, _ in careful.rejects.listed)])
    assert all(a < b for a, b in pairwise(lines))


def test_agreement_over_many_blocks_of_mess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._HEAD_BYTES", 256)
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 300)
    chance = random.Random(7)
    shapes = [
        "u{n},a,5\n",
        'u{n},"x, {n}",4\n',
        'u{n},"two\nlines",3\r\n',
        "u{n},a\n",
        'u{n},"open,2\n',
        "\n",
        "u{n},é,1\r",
    ]
    text = "".join(chance.choice(shapes).format(n=n) for n in range(3000))
    path = put(tmp_path, "d.csv", "user_id,note,rating\n" + text)
    source = opened(path)
    rows, lines, _ = everything(source)
    assert len(rows) > 1200
    number = {row[0]: line for row, line in zip(rows, lines, strict=True)}
    split = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert all(split[line - 2].startswith(f"{user},") for user, line in number.items())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=8),
    separator=st.sampled_from([",", ";", "\t", "|", "::", "||", "^", "~"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "gb18030", "utf-32-be"]),
    style=st.sampled_from(["needed", "always", "backslash"]),
    above=st.sampled_from(["", "Export of today\n", "# made by shop\n"]),
)
def test_a_guess_is_right_or_seen_or_refused(
    tmp_path: Path, cells: list[list[str]], separator: str, encoding: str, style: str, above: str
) -> None:
    header = ["user_id", "item_id", "note", "title"]
    table = [[f"u{n}", f"i{n}", *row] for n, row in enumerate(cells)]
    text = above + written([header, *table], separator, "\n", always=style == "always", escape=style == "backslash")
    path = put(tmp_path, "d.csv", text.encode(encoding))
    try:
        source = opened(path)
    except DataError:
        return
    rows, _, refused = everything(source)
    if list(source.columns) != header or source.encoding not in (encoding, "utf-8", "utf-16"):
        # Another reading of the file, and one that a person sees over the preview.
        assert source.notes or list(source.columns) != header
        return
    expected = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in table]
    if style == "backslash" and not any('"' in cell for row in cells for cell in row):
        # Without a quote to protect nothing tells that backslashes are doubled.
        expected = [[cell.replace("\\", "\\\\") for cell in row] for row in expected]
    assert all(row in expected for row in rows)
    assert len(rows) + len(refused) >= len(expected) or source.notes
