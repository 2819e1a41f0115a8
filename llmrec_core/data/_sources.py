"""One door to every kind of place: the tables that lie there, and of each its columns, first rows, and all of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_core.data import _text_files as text_files
from llmrec_core.data._archives import archive_kind, unpack
from llmrec_core.data._folders import files_below, passed_note, table_names
from llmrec_core.data._json_files import JsonFile, json_blocks, sniff_json
from llmrec_core.data._raw import MAX_LISTED_REJECTS, RawTable, whole
from llmrec_core.data._roles import Corrections
from llmrec_core.data._text_files import Dialect
from llmrec_core.errors import DataError, InputError

_SAMPLE_ROWS = 1000
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
#: Layouts without a header that name themselves: file name and column count -> column names.
_LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"u\.item", ("item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES)),
    (r"u\.user", ("user_id", "age", "gender", "occupation", "zip_code")),
    (r"movies\.dat", ("item_id", "title", "genres")),
    (r"users\.dat", ("user_id", "gender", "age", "occupation", "zip_code")),
    (r"ratings\.dat|u\.data|u[a-e1-5]\.(base|test)", ("user_id", "item_id", "rating", "timestamp")),
    (r"behaviors.*\.tsv", ("impression_id", "user_id", "time", "history", "impressions")),
    (
        r"news.*\.tsv",
        ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
    ),
)


@dataclass(frozen=True)
class Source:
    """A table that was looked at, not yet read.

    ``fast``: the whole table, or None where only the careful reader may judge. ``careful(max_rows)``: with the line of
    every row; for Parquet the "line" is the row number, for a JSON array the line where the element begins.
    ``batches(max_rows)``: what ``careful`` gives, block by block in bounded memory; a block's ``rejects`` hold the
    refused lines of that block alone, all of them listed. None: there is no such reader; use ``careful``.

    ``name``: what a person reads: "ratings.csv", "export.zip/ratings.csv", "shop.xlsx/Sheet2", "shop.sqlite/orders".
    ``path``: the file on disk, which for a member of an archive lies in the scratch folder.
    """

    path: Path
    format: str
    columns: tuple[str, ...]
    fast: Callable[[], RawTable | None]
    careful: Callable[[int | None], RawTable]
    encoding: str | None = None
    separator: str | None = None
    header: bool = True
    notes: tuple[str, ...] = ()
    name: str = ""
    batches: Callable[[int | None], Iterator[RawTable]] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path.name)

    def sample(self) -> pa.Table:
        """The first rows as text."""
        return self.careful(_SAMPLE_ROWS).table


def open_sources(
    place: str | Path,
    corrections: Corrections,
    scratch: Path | None = None,
    *,
    name: str = "",
    allow_private: bool = False,
) -> list[Source]:
    """Looks at everything that lies in one place: one Source a table.

    A table of a folder or an archive that cannot be read is a Source too: reading it raises the reason. So the others
    can still be looked at, and an import that includes it is refused.

    Args:
        place: a file, a folder, an archive, ``FILE#table`` of a database, or a URL (http, https, postgresql).
        scratch: a folder for what has to be unpacked or fetched; the caller removes it when the sources are read.
        name: what a file or a folder is called, where its own name is not enough.
        allow_private: let URLs lead to addresses of this machine and of private networks.

    Raises:
        DataError: something there is unsafe or cannot be read, or nothing there holds a table.
        InputError: there is something to unpack or to fetch, and no scratch folder.
    """
    scheme = _URL.match(place) if isinstance(place, str) else None
    if scheme and scheme[0].lower().startswith("postgres"):
        from llmrec_core.data._databases import database_sources

        return database_sources(place, corrections)
    if scheme:
        from llmrec_core.data.download import download

        fetched = download(str(place), _needed(scratch, str(place)), allow_private=allow_private)
        return _local(fetched, corrections, scratch)
    return _local(Path(place), corrections, scratch, name)


def distinct_names(places: Sequence[str | Path]) -> list[str]:
    """What places of this machine are called: by their own name, with folders above it where two would be called so.

    "" for places whose name nothing has to tell apart, and for addresses.
    """
    paths = {place: Path(place).resolve() for place in places if not (isinstance(place, str) and _URL.match(place))}
    depth = dict.fromkeys(paths, 1)
    while True:
        names = {place: "/".join(path.parts[-depth[place] :]) for place, path in paths.items()}
        shared = [place for place, name in names.items() if list(names.values()).count(name) > 1]
        deeper = [place for place in shared if depth[place] < len(paths[place].parts) - 1]
        if not deeper:
            return [names[place] if depth.get(place, 1) > 1 else "" for place in places]
        for place in deeper:
            depth[place] += 1


#: Also "file:/x", which has no second slash, but not a drive letter.
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]+://|(file|ftp|data|postgres|postgresql|https?):")
_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods", ".xls")


def _needed(scratch: Path | None, where: str) -> Path:
    if scratch is None:
        raise InputError("a scratch folder is needed to unpack or fetch this.", where=where)
    return scratch


def _local(path: Path, corrections: Corrections, scratch: Path | None, name: str = "") -> list[Source]:
    """The tables of a file, a folder or an archive."""
    if path.is_dir():
        return _folder(path, corrections, scratch, name)
    name = name or path.name
    if path.exists() and not path.is_file():
        # Reading from a pipe or a device would wait, or never end.
        raise DataError("this is no plain file.", where=str(path), fix="Choose a file or a folder.")
    kind = archive_kind(path)
    if kind is None:
        return _file_sources(path, corrections, name)
    names: list[str] = []

    def wanted(member: str) -> bool:
        names.append(member)
        return bool(table_names([member])[0])

    members, several = unpack(path, kind, _needed(scratch, name), wanted, name=name)
    if not several:
        # ratings.csv.gz is one table, and is called as a person knows it.
        try:
            return _file_sources(members[0].path, corrections, name)
        except BaseException:
            shutil.rmtree(members[0].path.parent, ignore_errors=True)
            raise
    tables, passed = table_names(names)
    by_name = {member.name: member.path for member in members}
    opened = [(by_name[table], f"{name}/{table}") for table in tables]
    return _several(opened, passed, corrections, name)


def _folder(path: Path, corrections: Corrections, scratch: Path | None, name: str = "") -> list[Source]:
    where = name or path.resolve().name
    found = files_below(path, str(path))
    if _one_parquet(path, found):
        from llmrec_core.data._parquet import parquet_source

        return [parquet_source(path, corrections, where)]
    tables, passed = table_names(found)
    sources: list[Source] = []
    plain = [(path / table, f"{where}/{table}") for table in tables if archive_kind(path / table) is None]
    for table in tables:
        if archive_kind(path / table) is not None:
            sources += _local(path / table, corrections, scratch, f"{where}/{table}")
    return _several(plain, passed, corrections, str(path), sources)


def _one_parquet(path: Path, found: Sequence[str]) -> bool:
    """Whether a folder is one table in several Parquet files, as Spark and others write them."""
    parts = [name for name in found if not name.rpartition("/")[2].startswith((".", "_"))]
    if len(parts) < 2 or not all(name.lower().endswith((".parquet", ".pq", ".parq")) for name in parts):
        return False
    try:
        return len({tuple(pq.read_schema(path / name).names) for name in parts}) == 1
    except (OSError, pa.ArrowException):
        return False


def _several(
    files: Sequence[tuple[Path, str]],
    passed: Sequence[str],
    corrections: Corrections,
    where: str,
    sources: Sequence[Source] = (),
) -> list[Source]:
    """The tables of the files of a folder or an archive; the first one's notes tell what was passed over."""
    opened, left = list(sources), list(passed)
    for path, name in files:
        try:
            opened += _file_sources(path, corrections, name)
        except DataError as error:
            if path.suffix.lower() == ".txt" and "only one column" in error.what:
                left.append(name)
                continue
            opened.append(_broken(path, name, error))
    if not opened:
        raise DataError("there is no table in it.", where=where, fix="Choose a place with CSV, TSV, Parquet or JSONL.")
    if left:
        opened[0] = replace(opened[0], notes=(*opened[0].notes, passed_note(left)))
    return opened


def _broken(path: Path, name: str, error: DataError) -> Source:
    """A table that cannot be read: whoever reads it is told why."""

    def fail(max_rows: int | None = None) -> RawTable:
        raise DataError(error.what, where=error.where, fix=error.fix)

    return Source(path, "unreadable", (), fail, fail, name=name, batches=lambda n: iter([fail(n)]))


def _file_sources(path: Path, corrections: Corrections, name: str = "") -> list[Source]:
    """The tables of one file that is no archive, called ``name`` (the file's own name without it)."""
    name = name or path.name
    if path.is_dir():
        raise DataError("this is a folder.", where=str(path), fix="Choose files.")
    head = _head(path)
    suffix = path.suffix.lower()
    if head.startswith(b"SQLite format 3\0") or head[8:12] == b"DUCK" or (not head and "#" in path.name):
        from llmrec_core.data._databases import database_sources, split_table

        place, table = split_table(path)
        if head or (table and _head(place)):
            return database_sources(path, corrections, name if head else "")
    if head.startswith(b"\xd0\xcf\x11\xe0") or (head.startswith(b"PK\x03\x04") and suffix in _WORKBOOKS):
        from llmrec_core.data._excel import excel_sources

        return excel_sources(path, corrections, name)
    if head.startswith(b"PAR1"):
        from llmrec_core.data._parquet import parquet_source

        return [parquet_source(path, corrections, name)]
    text_files.refuse_binary(path, name)
    if suffix in (".parquet", ".pq", *_WORKBOOKS):
        what = "a Parquet file" if suffix in (".parquet", ".pq") else "an Excel workbook"
        raise DataError(f"this is not {what}.", where=name, fix="Export it again.")
    start = head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix not in (".csv", ".tsv") and start in (b"{", b"[")):
        return [_json(table) for table in sniff_json(path, corrections.option("encoding", name), name=name)]
    return [_delimited(path, corrections, name)]


def _head(path: Path) -> bytes:
    """The first bytes of a file; b"" for what cannot be read (opening it says why)."""
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except OSError:
        return b""


def open_source(path: Path, corrections: Corrections) -> Source:
    """The one table of a file.

    Raises:
        DataError: it cannot be read, is empty, damaged, or holds no table or several.
    """
    sources = _file_sources(path, corrections)
    if len(sources) != 1:
        names = ", ".join(source.name for source in sources[:10])
        raise DataError(f"the file holds {len(sources)} tables: {names}.", where=path.name, fix="Export one of them.")
    return sources[0]


def _json(table: JsonFile) -> Source:
    def careful(max_rows: int | None) -> RawTable:
        return whole(json_blocks(table, max_rows), table.columns, table.name)

    return Source(
        table.path,
        "jsonl" if table.form in ("lines", "python") else "json",
        table.columns,
        lambda: careful(None),
        careful,
        table.encoding,
        header=table.header,
        notes=table.notes,
        name=table.name,
        batches=lambda max_rows: json_blocks(table, max_rows),
    )


def _delimited(path: Path, corrections: Corrections, name: str) -> Source:
    header, row = corrections.option("header", name), corrections.option("header_row", name)
    if row is not None and not re.fullmatch(r"[0-9]{1,6}", row):
        raise DataError(f"header_row is the number of a line, not {row[:40]!r}.", where=name)
    encoding, separator = corrections.option("encoding", name), corrections.option("separator", name)
    told = None if header is None else header.lower() == "yes"
    try:
        dialect = text_files.sniff(
            path, encoding, separator, told, header_row=None if row is None else int(row), name=name
        )
    except DataError:
        from llmrec_core.data._layouts.lines import open_lists

        sure = corrections.option("layout", name) == "histories"
        lists = None if separator or row or told else open_lists(path, encoding, name, sure=sure)
        if lists is None:
            raise
        return lists
    notes = dialect.notes
    merge: tuple[str, ...] = ()
    if not dialect.header_line:
        names = _known_layout(path, dialect)
        if names:
            notes = (*notes, f"no header: columns taken as {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
            dialect = text_files.with_columns(dialect, names)
            merge = _GENRES if len(names) == 24 else ()
        else:
            notes = (*notes, f"no header was found: the columns are called {', '.join(dialect.columns[:2])} ...")

    def finish(raw: RawTable) -> RawTable:
        return _merge_flags(raw, merge) if merge else raw

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        return map(finish, text_files.read_blocks(path, dialect, max_rows, name=name))

    columns = tuple(c for c in dialect.columns if c not in merge) + (("genres",) if merge else ())
    return Source(
        path, "text", columns, lambda: finish(text_files.read_fast(path, dialect, name=name)),
        lambda max_rows: finish(text_files.read_careful(path, dialect, max_rows, name=name)),
        dialect.encoding, dialect.separator, bool(dialect.header_line), notes, name, batches,
    )  # fmt: skip


def _known_layout(path: Path, dialect: Dialect) -> tuple[str, ...] | None:
    """Column names of a file without a header, where name or content leave no doubt."""
    width = len(dialect.columns)
    for pattern, names in _LAYOUTS:
        if re.fullmatch(pattern, path.name, re.IGNORECASE) and len(names) == width:
            return names
    if width != 4:
        return None
    table = text_files.read_careful(path, dialect, _SAMPLE_ROWS).table
    cells = [table.column(i).to_pylist() for i in range(4)]
    try:
        ratings, times = ([float(c) for c in cells[i]] for i in (2, 3))
    except ValueError:
        return None
    if ratings and min(ratings) >= 0 and max(ratings) <= 10 and min(times) >= 1e8:
        # Amazon's older lists of ratings begin with the user, the newer ones with the item: ids of items have ten
        # characters, those of users more.
        products, people = (
            [sum(shape.fullmatch(c) is not None for c in cells[i]) >= 0.9 * len(cells[i]) for i in (0, 1)]
            for shape in (_ASIN, _REVIEWER)
        )
        turned = products[0] and people[1] and not products[1]
        return (
            ("item_id", "user_id", "rating", "timestamp") if turned else ("user_id", "item_id", "rating", "timestamp")
        )
    return None


_ASIN, _REVIEWER = re.compile(r"B[0-9A-Z]{9}|\d{9}[\dX]"), re.compile(r"A[0-9A-Z]{10,40}")


def _merge_flags(raw: RawTable, flags: Sequence[str]) -> RawTable:
    """0/1 columns, one a genre, become one column of text: "Action, Comedy"."""
    matrix = np.column_stack([np.asarray(raw.table.column(f).to_pylist(), object) == "1" for f in flags])
    names = np.asarray(flags, object)
    genres = pa.array([", ".join(names[row]) for row in matrix], pa.large_string())
    table = raw.table.select([c for c in raw.table.column_names if c not in flags]).append_column("genres", genres)
    return RawTable(table, raw.lines, raw.rejects)


__all__ = ["MAX_LISTED_REJECTS", "Source", "open_source", "open_sources"]
