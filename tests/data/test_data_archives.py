"""Archives and folders: every table in them, nothing else, and hostile ones refused with nothing left behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_core.data import import_files
from llmrec_core.data._archives import LIMITS, Limits, unpack
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

ROWS = "user_id,item_id,rating\nu1,a,5\nu2,b,3\n"
ITEMS = "item_id\ttitle\na\tAlien\nb\tBrazil\n"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def opened(place: Path, scratch: Path, *mapping: str) -> list[Source]:
    return open_sources(place, parse_mapping(mapping), scratch)


def cells(source: Source) -> list[list[str]]:
    table = source.careful(None).table
    return [list(row) for row in zip(*(table.column(i).to_pylist() for i in range(table.num_columns)), strict=True)]


def zipped(path: Path, members: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, infos: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in infos:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


# ------------------------------------------------------------------------------------------------ what is right


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)], ids=["gz", "bz2", "xz"]
)
def test_one_packed_file_is_one_table(
    tmp_path: Path, scratch: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"ratings.csv.{suffix}"
    # Two streams one after the other are one file, as the tools of each format have it.
    path.write_bytes(pack(ROWS.encode()[:30]) + pack(ROWS.encode()[30:]))
    (source,) = opened(path, scratch)
    assert source.name == f"ratings.csv.{suffix}"
    assert cells(source) == [["u1", "a", "5"], ["u2", "b", "3"]]
    assert source.careful(None).rejects.file == source.name


def test_known_layouts_are_known_inside_archives(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "u.data.gz").write_bytes(gzip.compress(b"1\t7\t3\t881250949\n2\t7\t4\t881250950\n"))
    assert opened(tmp_path / "u.data.gz", scratch)[0].columns == ("user_id", "item_id", "rating", "timestamp")


def test_a_zip_gives_all_its_tables(tmp_path: Path, scratch: Path) -> None:
    members: dict[str, str | bytes] = {
        "shop/ratings.csv": ROWS,
        "shop/items.tsv": ITEMS,
        "other\\ratings.csv": ROWS.replace("u1", "u9"),
        "shop/README.txt": "words",
        "shop/logo.png": b"\x89PNG",
        "__MACOSX/shop/._ratings.csv": b"\0\5\x16\7",
        "shop/.hidden.csv": "x",
        "shop/Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
        "shop/用户.csv": "user_id,age\nu1,30\n",
        "shop/hello.txt": "hello\nhere are nothing but words\n",
    }
    sources = opened(zipped(tmp_path / "export.zip", members), scratch)
    names = ["shop/ratings.csv", "shop/items.tsv", "other/ratings.csv", "shop/用户.csv"]
    assert [source.name for source in sources] == [f"export.zip/{name}" for name in names]
    assert cells(sources[2])[0] == ["u9", "a", "5"]
    (note,) = [note for note in sources[0].notes if "passed over" in note]
    assert "6 files" in note
    assert "README.txt" in note
    assert all(source.path.is_relative_to(scratch) for source in sources)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_gives_all_its_tables(tmp_path: Path, scratch: Path, mode: str) -> None:
    path = tarred(
        tmp_path / "export.tar.any",
        [
            (info("./", tarfile.DIRTYPE), b""),
            (info("d/ratings.csv"), ROWS.encode()),
            (info("./items.tsv"), ITEMS.encode()),
        ],
        mode,
    )
    sources = opened(path, scratch)
    assert [source.name for source in sources] == ["export.tar.any/d/ratings.csv", "export.tar.any/items.tsv"]
    assert cells(sources[1]) == [["a", "Alien"], ["b", "Brazil"]]


def test_a_folder_gives_all_its_tables(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "shop"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "ratings.csv").write_text(ROWS)
    (folder / "deep" / "er" / "items.tsv").write_text(ITEMS)
    (folder / "more.csv.gz").write_bytes(gzip.compress(ROWS.encode()))
    zipped(folder / "old.zip", {"x.csv": ROWS})
    (folder / ".git").mkdir()
    (folder / ".git" / "x.csv").write_text("x")
    (folder / "script.py").write_text("x")
    names = [source.name for source in opened(folder, scratch)]
    assert names == ["shop/more.csv.gz", "shop/old.zip/x.csv", "shop/deep/er/items.tsv", "shop/ratings.csv"]


def test_ready_cuts_beside_the_whole_are_passed_over(tmp_path: Path, scratch: Path) -> None:
    for name in ("u.data", "u1.base", "u1.test", "ua.base"):
        (tmp_path / name).write_text("1\t7\t3\t881250949\n2\t7\t4\t881250950\n")
    (source,) = opened(tmp_path, scratch)
    assert source.name.endswith("/u.data")


def test_parquet_parts_are_one_table_and_other_parquet_files_are_several(tmp_path: Path, scratch: Path) -> None:
    for name in ("part-0.parquet", "part-1.parquet"):
        (tmp_path / "one").mkdir(exist_ok=True)
        pq.write_table(pa.table({"user_id": [name], "item_id": ["a"]}), tmp_path / "one" / name)
    (source,) = opened(tmp_path / "one", scratch)
    assert len(cells(source)) == 2
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"]}), tmp_path / "two" / "ratings.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "title": ["A"]}), tmp_path / "two" / "items.parquet")
    assert [source.name for source in opened(tmp_path / "two", scratch)] == ["two/items.parquet", "two/ratings.parquet"]


def test_options_name_a_member_by_its_whole_or_bare_name(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "e.zip", {"a/d.csv": "u1^a^5\nu2^b^3\n"})
    for name in ("d.csv", "e.zip/a/d.csv"):
        (source,) = opened(path, scratch, f"separator:{name}=^", f"header:{name}=no")
        assert source.separator == "^"


def test_a_broken_table_beside_good_ones_says_why_when_it_is_read(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "e.zip", {"good.csv": ROWS, "bad.csv": "a,a\n1,2\n", "cut.parquet": b"PAR1cut"})
    good, bad, cut = opened(path, scratch)
    assert len(cells(good)) == 2
    for source in (bad, cut):
        assert source.batches is not None
        for read in (source.fast, source.sample, lambda s=source: list(s.batches(None))):
            with pytest.raises(DataError, match=source.name):
                read()  # type: ignore[operator]


def test_an_archive_needs_a_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scratch"):
        open_sources(zipped(tmp_path / "e.zip", {"d.csv": ROWS}), parse_mapping(()))


def test_an_import_from_an_archive_leaves_no_scratch(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    path = zipped(tmp_path / "e.zip", {"ratings.csv": ROWS, "items.tsv": ITEMS})
    report = import_files(workspace, [path], "d")
    assert (report.rows_accepted, report.n_items) == (2, 2)
    assert {file.file for file in report.files} == {"e.zip/ratings.csv", "e.zip/items.tsv"}
    assert not [p for p in workspace.root.rglob("*") if "unpacked" in p.name]


# ------------------------------------------------------------------------------------------------ what is hostile


def with_flags(path: Path, flag: int) -> Path:
    """Sets a general-purpose flag of every member."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= flag
            at = data.find(mark, at + 4)
    path.write_bytes(bytes(data))
    return path


def wrong_crc(path: Path) -> Path:
    zipped(path, {"d.csv": ROWS}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"u1,a,5", b"u1,a,1"))
    return path


def overlapping(path: Path) -> Path:
    """Two members that share one body, as bombs do."""
    zipped(path, {"a.csv": ROWS, "b.csv": ROWS})
    data = bytearray(path.read_bytes())
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    path.write_bytes(bytes(data))
    return path


def many(path: Path, count: int) -> Path:
    return zipped(path, {f"{n}.csv": "" for n in range(count)}, zipfile.ZIP_STORED)


def lying_count(path: Path) -> Path:
    """A zip whose table of contents claims more than the memory holds."""
    zipped(path, {"d.csv": ROWS})
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x05\x06")
    data[at + 12 : at + 16] = struct.pack("<L", 0x7FFFFFFF)
    path.write_bytes(bytes(data))
    return path


def linked(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("d.csv")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return path


def twice(path: Path) -> Path:
    zipped(path, {"d.csv": ROWS, "e.csv": ROWS})
    path.write_bytes(path.read_bytes().replace(b"e.csv", b"d.csv"))
    return path


def cut(path: Path, data: bytes) -> Path:
    path.write_bytes(data[: len(data) // 2])
    return path


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def damaged_tar(path: Path) -> Path:
    tarred(path, [(info("a.csv"), ROWS.encode()), (info("b.csv"), ROWS.encode())])
    data = bytearray(path.read_bytes())
    data[1024:1100] = b"\xff" * 76
    path.write_bytes(bytes(data))
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "slip": (lambda p: zipped(p, {"d.csv": ROWS, "../../evil.csv": ROWS}), "unsafe name"),
    "back slip": (lambda p: zipped(p, {"..\\evil.csv": ROWS}), "unsafe name"),
    "absolute": (lambda p: zipped(p, {"/etc/evil.csv": ROWS}), "unsafe name"),
    "drive": (lambda p: zipped(p, {"C:\\evil.csv": ROWS}), "unsafe name"),
    "share": (lambda p: zipped(p, {"\\\\host\\share\\evil.csv": ROWS}), "unsafe name"),
    "control": (lambda p: zipped(p, {"e\nvil.csv": ROWS}), "unsafe name"),
    "link": (linked, "symbolic link"),
    "nested": (lambda p: zipped(p, {"d.csv": ROWS, "inner.zip": "x"}), "another archive"),
    "hidden nested": (lambda p: zipped(p, {"inner.csv": gzip.compress(b"x")}), "another archive"),
    "bomb": (lambda p: zipped(p, {"d.csv": bytes(100 << 20)}), "200 times"),
    "overlap": (overlapping, "overlap"),
    "many": (lambda p: many(p, 1001), "1,001 members"),
    "lying count": (lying_count, "members"),
    "password": (lambda p: with_flags(zipped(p, {"d.csv": ROWS}), 1), "password"),
    "lzma": (lambda p: zipped(p, {"d.csv": ROWS}, zipfile.ZIP_LZMA), "unusual way"),
    "crc": (wrong_crc, "damaged"),
    "twice": (twice, "same name"),
    "cut zip": (lambda p: cut(p, zipped(p, {"d.csv": ROWS * 99}).read_bytes()), "damaged"),
    "empty zip": (lambda p: zipped(p, {}), "no table"),
    "cut gzip": (lambda p: cut(p, gzip.compress(os.urandom(5000))), "gzip archive is damaged or cut short"),
    "gzip crc": (lambda p: put(p, gzip.compress(ROWS.encode())[:-8] + bytes(8)), "gzip archive is damaged"),
    "gzip junk": (lambda p: put(p, gzip.compress(ROWS.encode()) + b"junk"), "gzip archive is damaged"),
    "gzip bomb": (lambda p: put(p, gzip.compress(bytes(100 << 20))), "200 times"),
    "program in gzip": (lambda p: put(p, gzip.compress(b"\x7fELF\2\1\1" + bytes(99))), "a program"),
    "gzip in gzip": (lambda p: put(p, gzip.compress(gzip.compress(ROWS.encode()))), "another archive"),
    "zip in gzip": (lambda p: put(p, gzip.compress(zipped(p, {"d.csv": ROWS}).read_bytes())), "another archive"),
    "cut bz2": (lambda p: cut(p, bz2.compress(os.urandom(5000))), "bzip2 archive is damaged"),
    "bad bz2": (lambda p: put(p, b"BZh91AY&SY" + bytes(99)), "archive is damaged"),
    "cut xz": (lambda p: cut(p, lzma.compress(os.urandom(5000))), "xz archive is damaged"),
    "xz memory": (
        lambda p: put(p, lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])),
        "xz archive is damaged",
    ),
    "tar slip": (lambda p: tarred(p, [(info("../evil.csv"), b"x")]), "unsafe name"),
    "tar absolute": (lambda p: tarred(p, [(info("/evil.csv"), b"x")]), "unsafe name"),
    "tar link": (lambda p: tarred(p, [(info("d.csv", tarfile.SYMTYPE, "/etc/passwd"), b"")]), "a link"),
    "tar hard link": (lambda p: tarred(p, [(info("d.csv", tarfile.LNKTYPE, "/etc/passwd"), b"")]), "a link"),
    "tar device": (lambda p: tarred(p, [(info("d.csv", tarfile.CHRTYPE), b"")]), "no plain file"),
    "tar nested": (lambda p: tarred(p, [(info("inner.tar.gz"), b"x")]), "another archive"),
    "tar many": (lambda p: tarred(p, [(info(f"{n}.csv"), b"") for n in range(1001)]), "1,000 members"),
    "tar damaged": (damaged_tar, "damaged or cut short"),
    "tar cut": (lambda p: put(p, tarred(p, [(info(n), ROWS.encode()) for n in "ab"]).read_bytes()[:1024]), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path: Path, case: str) -> None:
    build, words = HOSTILE[case]
    outside = tmp_path / "a" / "b"
    outside.mkdir(parents=True)
    path = build(outside / "evil.csv.any")
    scratch = outside / "scratch"
    scratch.mkdir()
    with pytest.raises(DataError, match=words) as caught:
        opened(path, scratch)
    assert "evil.csv.any" in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["evil.csv.any"]
    workspace = Workspace.open(tmp_path / "ws")
    with pytest.raises(DataError, match=words):
        import_files(workspace, [path], "d")
    assert not [p for p in workspace.datasets.rglob("*") if p.is_file()]


def test_a_declared_bomb_is_refused_before_it_is_opened(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "e.zip", {"d.csv": ROWS})
    small = replace(LIMITS, total_bytes=20)
    with pytest.raises(DataError, match="more than 20 bytes"):
        unpack(path, "zip", scratch, lambda name: True, limits=small)
    gz = put(tmp_path / "d.csv.gz", gzip.compress(ROWS.encode()))
    with pytest.raises(DataError, match="more than 20 bytes"):
        unpack(gz, "gzip", scratch, lambda name: True, limits=replace(small, free_bytes=10, ratio=10**6))
    with pytest.raises(DataError, match="not enough room"):
        unpack(path, "zip", scratch, lambda name: True, limits=Limits(spare_bytes=1 << 60))
    assert list(scratch.iterdir()) == []


def test_a_zip_that_says_less_than_it_holds_is_refused(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "e.zip", {"d.csv": "x,y\n" * 50_000})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(mark) + offset
        data[at : at + 4] = struct.pack("<L", 100)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        opened(path, scratch)
    assert list(scratch.iterdir()) == []


def test_a_folder_with_a_symbolic_link_is_refused(tmp_path: Path, scratch: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(ROWS)
    folder = tmp_path / "shop"
    (folder / "deep").mkdir(parents=True)
    (folder / "ratings.csv").write_text(ROWS)
    for link, target in ((folder / "deep" / "x.csv", secret), (folder / "loop", folder)):
        link.symlink_to(target)
        with pytest.raises(DataError, match="symbolic link"):
            opened(folder, scratch)
        link.unlink()
    assert len(opened(folder, scratch)) == 1


def test_a_folder_that_is_too_large_or_too_deep_is_refused(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    (folder / "/".join("abcdefghi")).mkdir(parents=True)
    with pytest.raises(DataError, match="deeper than 8 levels"):
        opened(folder, scratch)
    flat = tmp_path / "flat"
    flat.mkdir()
    for n in range(4):
        (flat / f"{n}.csv").write_text(ROWS)
    monkeypatch.setattr("llmrec_core.data._folders.MAX_FILES", 3)
    with pytest.raises(DataError, match="more than 3 files"):
        opened(flat, scratch)


def test_a_pipe_in_a_folder_is_not_opened(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    os.mkfifo(folder / "wait.csv")
    (folder / "ratings.csv").write_text(ROWS)
    assert [source.name for source in opened(folder, scratch)] == ["shop/ratings.csv"]


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, scratch: Path, place: str) -> None:
    if place == "pipe":
        os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no plain file"):
        opened(tmp_path / place, scratch)


def test_names_from_archives_never_become_paths(tmp_path: Path, scratch: Path) -> None:
    name = "d/" + "x" * 200 + "é:*?.csv"
    (source,) = opened(zipped(tmp_path / "e.zip", {name: ROWS}), scratch)
    assert source.name == f"e.zip/{name}"
    assert len(source.path.name) <= 100
    assert source.path.suffix == ".csv"
    assert zlib.crc32(source.path.read_bytes()) == zlib.crc32(ROWS.encode())
