"""Which encoding a text file has, judged from its bytes in big blocks; and any text file as blocks of UTF-8 lines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import charset_normalizer

from llmrec_core.errors import DataError

#: Longer lines are refused: no table has them, and they would have to be held in memory.
MAX_LINE_BYTES = 4_000_000
_HEAD_BYTES = 1 << 18
_BLOCK_BYTES = 2 << 20
#: How much of a file that is not UTF-8 is looked at line by line.
_PROBE_BYTES = 32 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def detect_encoding(path: Path, told: str | None = None, where: str = "") -> tuple[str, list[str]]:
    """(codec, notes). UTF-8 wins wherever the whole file, or nearly all of its lines, are valid UTF-8.

    Raises:
        DataError: an unknown codec was asked for, the text is not valid in it, or the bytes are no text.
    """
    where = where or path.name
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if told:
        return _told(told, head, where), []
    for bom, codec in _BOMS:
        if head.startswith(bom):
            return codec, []
    wide = _without_mark(head)
    if wide:
        return wide, [f"no byte order mark: taken as {wide.upper()}"]
    broken = _first_invalid(path, where)
    if broken is None:
        return "utf-8", []
    good, bad, odd = _probe(path, broken)
    if good > 4 * bad:
        return "utf-8", ["some lines are not valid UTF-8; they are refused"]
    codec = _legacy_codec(odd)
    return codec, [f"encoding guessed as {codec}: look whether names and titles are readable"]


def _told(name: str, head: bytes, where: str) -> str:
    try:
        # Codecs such as rot13 exist, but are not encodings of text; this call knows the difference.
        b"a".decode(name, "replace")
        codec = codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise DataError(f"unknown encoding {name[:40]!r}.", where=where, fix="Try utf-8 or gb18030.") from None
    try:
        text = codecs.getincrementaldecoder(codec)("surrogateescape").decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeError as error:
        raise DataError(
            f"the text is not valid {codec} ({error}).", where=where, fix="Name another encoding, or none."
        ) from None
    wide = [line for line in text.split("\n") if not line.isascii()]
    broken = sum(re.search("[\ud800-\udfff]", line) is not None for line in wide)
    if broken > 0.2 * len(wide):
        # A few broken lines are refused one by one; more of them mean that the text is in another encoding.
        raise DataError(
            f"the text is not valid {codec} ({broken} of {len(wide)} lines beyond ASCII).",
            where=where,
            fix="Name another encoding, or none.",
        )
    return codec


def _without_mark(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: zero bytes stand in one place of every character only."""
    if b"\0" not in head:
        return None
    for codec, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        try:
            text = head[: len(head) // width * width].decode(codec, "strict")
        except UnicodeDecodeError as error:
            # The sample may end within a pair of surrogates.
            if error.start < len(head) - width:
                continue
            text = head[: error.start].decode(codec)
        plain = sum("\t" <= c <= "~" for c in text)
        odd = sum(c < "\t" or "\ue000" <= c <= "\uf8ff" for c in text)
        if text and plain >= 0.1 * len(text) and not odd and re.search(r"[\r\n]", text):
            return codec
    return None


def _first_invalid(path: Path, where: str) -> int | None:
    """Where the first byte stands that is not UTF-8; None: all of it is."""
    offset, tail = 0, b""
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            zero = block.find(b"\0")
            if zero >= 0:
                line = _line_at(path, stream.tell() - len(block) + zero)
                raise DataError(
                    "the file holds zero bytes: it is not text.", where=f"{where}, line {line}", fix="Save it as CSV."
                )
            data = tail + block
            tail = b""
            if not data.isascii():
                try:
                    data.decode("utf-8")
                except UnicodeDecodeError as error:
                    if error.start < len(data) - 3 or error.reason != "unexpected end of data":
                        return offset + error.start
                    tail = data[error.start :]
            offset += len(data) - len(tail)
    return offset if tail else None


def _line_at(path: Path, position: int) -> int:
    """The line on which a byte stands; lines are counted only where somebody has to be told."""
    line = 1
    with path.open("rb") as stream:
        while position > 0 and (block := stream.read(min(position, _BLOCK_BYTES))):
            line += block.count(b"\n")
            position -= len(block)
    return line


def _probe(path: Path, broken: int) -> tuple[int, int, bytes]:
    """(lines that are UTF-8 beyond ASCII, lines that are not, a sample of those) around the first broken byte."""
    good = bad = 0
    odd: list[bytes] = []
    size = 0
    with path.open("rb") as stream:
        stream.seek(max(0, broken - _PROBE_BYTES // 2))
        for line in re.split(rb"\r\n?|\n", stream.read(_PROBE_BYTES)):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                good += 1
            except UnicodeDecodeError:
                bad += 1
                if size < _HEAD_BYTES:
                    odd.append(line)
                    size += len(line)
    return good, bad, b"\n".join(odd)


def _legacy_codec(sample: bytes) -> str:
    """The likeliest codec of text that is not UTF-8."""
    # Runs of paired high bytes are Chinese; single ones between ASCII letters are Western. The general detector
    # confuses both on short samples, so it is asked last.
    high = re.findall(rb"[\x80-\xff]+", sample)
    # Korean syllables lie in a corner of what would be Chinese, where Chinese text does not stay for long.
    leads = b"".join(run[::2] for run in high if len(run) % 2 == 0)
    if len(leads) >= 8 and sum(0xB0 <= lead <= 0xC8 for lead in leads) >= 0.97 * sum(map(len, high)) / 2:
        return "cp949"
    paired = sum(len(run) % 2 == 0 for run in high)
    lines = sample.split(b"\n")
    chinese = [line for line in lines if _is_valid(line, "gb18030")]
    # A broken character costs its line, not the reading of all the others.
    if paired >= 0.9 * len(high) and len(chinese) >= 0.8 * len(lines):
        text = b"\n".join(chinese)
        han = sum("\u4e00" <= c <= "\u9fff" for c in text.decode("gb18030"))
        if han and han * 2 >= 0.8 * sum(map(len, re.findall(rb"[\x80-\xff]+", text))):
            return "gb18030"
    best = charset_normalizer.from_bytes(
        sample, cp_isolation=["cp1252", "cp1250", "cp1251", "gb18030", "big5", "shift_jis", "euc_kr", "euc_jp"]
    ).best()
    lone = sum(len(run) == 1 for run in high)
    if best is None or lone >= 0.6 * len(high) or best.encoding in ("cp1250", "cp1252"):
        return _latin_codec(sample)
    return best.encoding


#: Letters beyond ASCII of the languages of the Western code pages, and of those of the Central European ones.
_WESTERN = (
    "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíóúüñ", "àèéìòù", "áâãàçéêíóôõú", "æøåé", "åäöé", "éëïóöüè", "áéíóúýþæöð",
)  # fmt: skip
_CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ")
#: Letters beyond ASCII, and signs in the middle of a word: "Ma³y" is no word.
_ODD_SIGNS = re.compile(r"[^\W\d_a-z]|(?<=[a-z])[^\sa-z0-9\u2010-\u2027'.,:;/&+-](?=[a-z])")


def _latin_codec(sample: bytes) -> str:
    """Western or Central European: the code page in which one language has nearly all letters, and no other one has.

    General detectors take both for the same: French decoded as Polish is all letters. No language has them all, though.
    """
    central = {codec: _best_share(sample, codec, _CENTRAL) for codec in ("cp1250", "iso8859_2")}
    codec = max(central, key=lambda name: central[name])
    if central[codec] >= 0.97 and central[codec] > _best_share(sample, "cp1252", _WESTERN) + 0.1:
        return codec
    return "cp1252" if _is_valid(sample, "cp1252") else "latin-1"


def _best_share(sample: bytes, codec: str, alphabets: tuple[str, ...]) -> float:
    """The share of odd signs that the language has which has most of them."""
    signs = _ODD_SIGNS.findall(sample.decode(codec, "replace").lower())
    return max(sum(sign in alphabet for sign in signs) for alphabet in alphabets) / max(1, len(signs))


def _is_valid(line: bytes, codec: str) -> bool:
    try:
        line.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def utf8_chunks(path: Path, codec: str, where: str, first_bytes: int | None = None) -> Iterator[bytes]:
    """The file as blocks of whole lines in UTF-8, growing from ``first_bytes``; line ends stay as they are.

    What is not valid in ``codec`` stays bytes that are not valid UTF-8, so that a reader can refuse those lines.

    Raises:
        DataError: a line is longer than :data:`MAX_LINE_BYTES`, or text in UTF-16 or UTF-32 is broken.
    """
    rest = b""
    for block in utf8_blocks(path, codec, where, first_bytes):
        data = rest + block
        # A "\r" that ends the block may be the first half of "\r\n".
        end = data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, len(data) - 1) + 1
        if end:
            yield _unmarked(data[:end])
        rest = data[end:]
        if len(rest) > MAX_LINE_BYTES and not re.search(rb"[\r\n]", rest[:MAX_LINE_BYTES]):
            raise DataError("a line is longer than 4 million bytes.", where=where, fix="Check the line ends.")
    if rest:
        yield _unmarked(rest)


def _unmarked(lines: bytes) -> bytes:
    """Without byte order marks: files that were put one behind the other have them at the start of later lines too."""
    if lines.isascii() or codecs.BOM_UTF8 not in lines:
        return lines
    return re.sub(rb"(\A|[\r\n])\xef\xbb\xbf", rb"\1", lines)


def utf8_blocks(path: Path, codec: str, where: str, first_bytes: int | None = None) -> Iterator[bytes]:
    """The file in UTF-8, cut anywhere; blocks grow from ``first_bytes``. See :func:`utf8_chunks`."""
    size = first_bytes or _HEAD_BYTES
    decoder = None
    if codec not in ("utf-8", "utf-8-sig", "ascii"):
        decoder = codecs.getincrementaldecoder(codec)("surrogateescape")
    with path.open("rb") as stream:
        if decoder is None and stream.read(3) != codecs.BOM_UTF8:
            stream.seek(0)
        while True:
            block = stream.read(size)
            size = min(_BLOCK_BYTES, 2 * size)
            if decoder is not None:
                offset = stream.tell() - len(block)
                try:
                    yield decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")
                except UnicodeError as error:
                    raise DataError(
                        f"the text is not valid {codec} near byte {offset:,} ({error}).",
                        where=where,
                        fix="Save the file as UTF-8.",
                    ) from None
            elif block:
                yield block
            if not block:
                return
