"""Archives -> plain files in a scratch folder, after everything that can be checked beforehand has been checked.

Names inside an archive never become paths on disk. An archive is refused as a whole: nothing of it stays in scratch.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

from llmrec_core.errors import DataError

_BLOCK_BYTES = 1 << 20
#: An xz stream may ask for this much memory and no more.
_XZ_MEMORY = 256 << 20
_CENTRAL_BYTES = 16 << 20
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip", ".tar": "tar", ".tgz": "gzip"}
_OTHER_ARCHIVES = (".7z", ".rar", ".zst", ".lz4", ".z", ".lzma", ".jar", ".whl", ".iso", ".dmg", ".cab")
_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods")


@dataclass(frozen=True)
class Limits:
    """What an archive may unfold to.

    Attributes:
        members: most files in it.
        total_bytes: most bytes that may come out of it.
        ratio: most bytes that may come out for one byte that goes in, once ``free_bytes`` came out.
        spare_bytes: room that must be left on the disk.
    """

    members: int = 1000
    total_bytes: int = 64 << 30
    ratio: int = 200
    free_bytes: int = 64 << 20
    spare_bytes: int = 1 << 30


LIMITS = Limits()


@dataclass(frozen=True)
class Member:
    """One unpacked file: its path inside the archive, as a person reads it, and where it lies now."""

    name: str
    path: Path


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def archive_kind(path: Path) -> str | None:
    """ "zip", "tar", "gzip", "bzip2" or "xz" by the first bytes; None: no archive that is unpacked here."""
    try:
        with path.open("rb") as stream:
            head = stream.read(262)
    except OSError:
        return None
    for magic, kind in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz")):
        if head.startswith(magic):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None if path.suffix.lower() in _WORKBOOKS else "zip"
    return "tar" if head[257:262] == b"ustar" else None


def unpack(
    path: Path,
    kind: str,
    scratch: Path,
    wanted: Callable[[str], bool],
    *,
    name: str = "",
    limits: Limits = LIMITS,
) -> tuple[list[Member], bool]:
    """Checks an archive and unpacks the members that are wanted into a new folder below ``scratch``.

    Args:
        wanted: told the path of a member inside the archive.
        name: what a person calls the archive.

    Returns:
        (members in their order, whether the archive has room for several of them).

    Raises:
        DataError: anything in it is unsafe, damaged, encrypted, nested or too much; then nothing is left behind.
    """
    where = name or path.name
    folder = Path(tempfile.mkdtemp(prefix="unpacked-", dir=scratch))
    try:
        with _said(where, kind):
            if kind == "zip":
                return _unzip(path, folder, wanted, where, limits), True
            if kind == "tar":
                return _untar(path, folder, wanted, where, limits), True
            plain = folder / _safe_name(_bare(path.name))
            with _opened(path, kind) as (source, packed):
                budget = _Budget(where, limits, folder)
                _copy(source, plain, budget, packed)
            if archive_kind(plain) == "tar":
                members = _untar(plain, folder, wanted, where, limits)
                plain.unlink()
                return members, True
            _refuse_nested(plain, where)
            return [Member(_bare(path.name), plain)], False
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bare(name: str) -> str:
    """``ratings.csv.gz`` -> ``ratings.csv``."""
    stem, dot, suffix = name.rpartition(".")
    if dot and f".{suffix.lower()}" == ".tgz":
        return f"{stem}.tar"
    return stem if dot and stem and f".{suffix.lower()}" in _SUFFIXES else name


@contextmanager
def _said(where: str, kind: str) -> Iterator[None]:
    """What the standard library finds wrong with an archive, in our words."""
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
        NotImplementedError, RuntimeError, UnicodeError, ValueError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise DataError(
            f"the {kind} archive is damaged or cut short ({str(error)[:120] or type(error).__name__}).",
            where=where,
            fix="Get it again, or pack it again.",
        ) from error
    except OSError as error:
        # bzip2 tells of invalid data this way, without an error number.
        what = "the archive cannot be unpacked" if error.errno else "the archive is damaged"
        raise DataError(f"{what} ({error.strerror or error}).", where=where, fix="Get it again.") from error


class _Budget:
    """How much may still come out of an archive."""

    def __init__(self, where: str, limits: Limits, folder: Path) -> None:
        self._where, self._limits, self._folder = where, limits, folder
        self._written = 0
        self._checked = -1

    def expect(self, size: int) -> None:
        """Refuses what says beforehand that it is too much."""
        if self._written + size > self._limits.total_bytes:
            raise DataError(
                f"the archive unfolds to more than {self._limits.total_bytes:,} bytes.",
                where=self._where,
                fix="Pack only the tables.",
            )
        if size > shutil.disk_usage(self._folder).free - self._limits.spare_bytes:
            raise DataError(
                "there is not enough room on the disk to unpack the archive.", where=self._where, fix="Make room."
            )

    def spend(self, size: int, packed: int) -> None:
        """Counts ``size`` bytes that came out, after ``packed`` bytes of the archive were read for this member."""
        self._written += size
        if self._written > self._limits.free_bytes and self._written > self._limits.ratio * max(packed, 1):
            raise DataError(
                f"the archive unfolds to more than {self._limits.ratio} times its size.",
                where=self._where,
                fix="Unpack it yourself, if you trust it.",
            )
        if self._written // self._limits.free_bytes > self._checked:
            self._checked = self._written // self._limits.free_bytes
            self.expect(0)


def _copy(source: _Readable, target: Path, budget: _Budget, packed: Callable[[], int]) -> None:
    with target.open("xb") as sink:
        while block := source.read(_BLOCK_BYTES):
            budget.spend(len(block), packed())
            sink.write(block)


def _safe_name(name: str) -> str:
    """The last part of a name as a file name that no system objects to; readers go by its ending."""
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^\w.,=()+# -]", "_", last).lstrip(".")[-100:]
    return plain or "table"


def _check_name(name: str, where: str) -> str:
    """The path of a member with forward slashes.

    Raises:
        DataError: it leads out of the archive, is absolute, or holds characters that no honest name has.
    """
    plain = name.replace("\\", "/")
    parts = plain.split("/")
    if (
        not plain.strip("/")
        or plain.startswith("/")
        or re.match(r"[A-Za-z]:", plain)
        or ".." in parts
        or len(plain) > 1000
        or any(c < " " or c == "\x7f" for c in plain)
    ):
        raise DataError(
            f"the archive holds a member with an unsafe name ({name[:80]!r}).", where=where, fix="Pack it again."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _check_all(names: Sequence[str], where: str) -> None:
    """Raises: DataError for archives inside the archive and for two members of one name."""
    for name in names:
        if name.lower().endswith((*_SUFFIXES, *_OTHER_ARCHIVES)):
            raise DataError(
                f"the archive holds another archive ({name[:80]!r}).", where=where, fix="Unpack the outer one first."
            )
    if len(set(names)) < len(names):
        raise DataError("the archive holds two members of the same name.", where=where, fix="Pack it again.")


def _refuse_nested(path: Path, where: str) -> None:
    if archive_kind(path) is not None:
        raise DataError("the archive holds another archive.", where=where, fix="Unpack the outer one first.")


def _special(what: str, name: str, where: str) -> DataError:
    return DataError(f"the archive holds {what} ({name[:80]!r}).", where=where, fix="Pack plain files only.")


# ------------------------------------------------------------------------------------------------ zip


def _unzip(path: Path, folder: Path, wanted: Callable[[str], bool], where: str, limits: Limits) -> list[Member]:
    _check_directory(path, where, limits)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > limits.members:
            raise DataError(f"the archive holds {len(infos):,} members.", where=where, fix="Pack only the tables.")
        files: list[tuple[str, zipfile.ZipInfo]] = []
        for info in infos:
            _check_name(info.orig_filename, where)
            name = _check_name(_readable(info), where)
            mode = info.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise _special("a symbolic link", name, where)
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _special("something that is no plain file", name, where)
            if info.is_dir():
                continue
            if info.flag_bits & 0x41:
                raise DataError(
                    f"the archive is protected by a password ({name[:80]!r}).", where=where, fix="Unpack it first."
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                raise DataError(
                    f"{name[:80]!r} is compressed in an unusual way.", where=where, fix="Pack it as a usual zip."
                )
            files.append((name, info))
        _check_all([name for name, _ in files], where)
        _check_overlaps([info for _, info in files], archive.start_dir, where)
        chosen = [(name, info) for name, info in files if wanted(name)]
        budget = _Budget(where, limits, folder)
        for name, info in chosen:
            if info.file_size > limits.free_bytes and info.file_size > limits.ratio * max(1, info.compress_size):
                raise DataError(
                    f"{name[:80]!r} unfolds to more than {limits.ratio} times its size.",
                    where=where,
                    fix="Unpack it yourself, if you trust it.",
                )
        budget.expect(sum(info.file_size for _, info in chosen))
        members = []
        before = 0
        for number, (name, info) in enumerate(chosen):
            target = _place(folder, number, name)
            before += info.compress_size
            with archive.open(info) as source:
                _copy(source, target, budget, lambda read=before: read)  # type: ignore[misc]
            _refuse_nested(target, where)
            members.append(Member(name, target))
        return members


def _place(folder: Path, number: int, name: str) -> Path:
    """A folder of its own for every member, so that equal file names do not meet."""
    (folder / f"{number:04d}").mkdir()
    return folder / f"{number:04d}" / _safe_name(name)


def _readable(info: zipfile.ZipInfo) -> str:
    """The member's name; packers that write UTF-8 without saying so are understood."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _check_directory(path: Path, where: str, limits: Limits) -> None:
    """Refuses a table of contents that would fill the memory, before it is read."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        tail_at = max(0, size - 66_000)
        stream.seek(tail_at)
        tail = stream.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise DataError("the archive is damaged or cut short.", where=where, fix="Get it again.")
        count, length = struct.unpack("<HL", tail[at + 10 : at + 16])
        large = tail.rfind(b"PK\x06\x06", 0, at) if tail[max(0, at - 20) :].startswith(b"PK\x06\x07") else -1
        if large >= 0 and len(tail) >= large + 56:
            count, length = struct.unpack("<QQ", tail[large + 32 : large + 48])
    if count > limits.members or length > _CENTRAL_BYTES:
        raise DataError(f"the archive holds {count:,} members.", where=where, fix="Pack only the tables.")


def _check_overlaps(infos: Sequence[zipfile.ZipInfo], end: int, where: str) -> None:
    """Raises: DataError where two members share bytes, as only bombs do."""
    spans = sorted((info.header_offset, 30 + len(info.orig_filename) + info.compress_size) for info in infos)
    for (start, length), (following, _) in pairwise([*spans, (end, 0)]):
        if start < 0 or start + length > following:
            raise DataError("members of the archive overlap.", where=where, fix="Pack it again.")


# ------------------------------------------------------------------------------------------------ tar


def _untar(path: Path, folder: Path, wanted: Callable[[str], bool], where: str, limits: Limits) -> list[Member]:
    with tarfile.open(path, "r:") as archive:
        files: list[tuple[str, tarfile.TarInfo]] = []
        for count, info in enumerate(archive, start=1):
            if count > limits.members:
                raise DataError(
                    f"the archive holds more than {limits.members:,} members.", where=where, fix="Pack only the tables."
                )
            if info.isdir() and info.name in (".", "./"):
                continue
            name = _check_name(info.name, where)
            if info.issym() or info.islnk():
                raise _special("a link", name, where)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise _special("something that is no plain file", name, where)
            files.append((name, info))
        with path.open("rb") as stream:
            # tarfile takes a damaged header for the end; the true end is marked by zeros.
            stream.seek(archive.offset)
            end = stream.read(512)
        if len(end) < 512 or end.strip(b"\0"):
            raise DataError("the archive is damaged or cut short.", where=where, fix="Get it again.")
        _check_all([name for name, _ in files], where)
        chosen = [(name, info) for name, info in files if wanted(name)]
        budget = _Budget(where, limits, folder)
        budget.expect(sum(info.size for _, info in chosen))
        size = path.stat().st_size
        members = []
        for number, (name, info) in enumerate(chosen):
            source = archive.extractfile(info)
            if source is None:
                raise _special("something that is no plain file", name, where)
            target = _place(folder, number, name)
            with source:
                _copy(source, target, budget, lambda: size)
            if target.stat().st_size != info.size:
                raise DataError("the archive is cut short.", where=where, fix="Get it again.")
            _refuse_nested(target, where)
            members.append(Member(name, target))
        return members


# ------------------------------------------------------------------------------------------------ one file


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[_Readable, Callable[[], int]]]:
    """(what comes out, how many bytes of the archive were read so far)."""
    with path.open("rb") as stream:
        if kind == "gzip":
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped, stream.tell
        elif kind == "bzip2":
            with bz2.BZ2File(stream) as unpacked:
                yield unpacked, stream.tell
        else:
            yield _Xz(stream), stream.tell


class _Xz:
    """An xz stream with a limit on the memory that its packer may ask for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        self._fed = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._decoder.eof:
                rest = (self._decoder.unused_data or self._stream.read(_BLOCK_BYTES)).lstrip(b"\0")
                if not rest:
                    return b""
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
                self._fed = rest
            elif self._decoder.needs_input and not self._fed:
                self._fed = self._stream.read(_BLOCK_BYTES)
                if not self._fed:
                    raise EOFError("it ends early")
            data = self._decoder.decompress(self._fed, size)
            self._fed = b""
            if data:
                return data
