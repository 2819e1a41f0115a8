"""Cells as words: the distinct ones, trimmed, in plain digits, and the words that say there is no value."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: How many filled cells of a column decide how all of it is read.
PROFILE_CELLS = 20_000
TEXT = pa.large_string()
_MAX_BYTES, _TOO_LONG = 1000, "too long"
_SPACE = " \t\n\v\f\r"
_MISSING = (
    "na", "n/a", "#n/a", "nan", "null", "none", "nil", "nul", "-", "--", "—", "–", "?", "\\n", "<na>", "nat", "missing",
    "unknown", "无", "無", "空", "暂无", "暫無", "未知", "缺失", "没有", "なし", "없음",
)  # fmt: skip
_MISSING_SET = pa.array(["", *_MISSING], TEXT)
#: Minus signs, and apostrophes that part thousands; spaces of every width become plain ones by NFKC.
_MINUS, _APOSTROPHE = r"[\x{2212}\x{2012}\x{2013}]", r"[\x{2019}\x{02bc}\x{066c}]"


def distinct(text: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64] | None]:
    """(words, position of each cell's word); None where the cells themselves serve as words.

    Times hardly repeat, and then hashing all of them costs more than it saves.
    """
    text = _cells(text)
    head = text.slice(0, 4_000)
    if len(text) > 20_000 and pc.count_distinct(head).as_py() > 2_000:
        return text, None
    encoded = text.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)


def _cells(text: pa.Array) -> pa.Array:
    """The cells as one array; what is far too long for a number or a time is not looked at, and so refused."""
    if isinstance(text, pa.ChunkedArray):
        text = text.combine_chunks()
    text = pc.fill_null(text if text.type == TEXT else text.cast(TEXT), "")
    lengths = pc.binary_length(text)
    if (pc.max(lengths).as_py() or 0) > _MAX_BYTES:
        text = pc.if_else(pc.greater(lengths, _MAX_BYTES), _TOO_LONG, text)
    return text


def spread(values: npt.NDArray[Any], positions: npt.NDArray[np.int64] | None) -> npt.NDArray[Any]:
    """Values of words, back at their cells."""
    return values if positions is None or not len(values) else values[positions]


def trim(words: pa.Array) -> pa.Array:
    return pc.utf8_trim(words, _SPACE)


def is_missing(words: pa.Array) -> Mask:
    """Trimmed words that are blank or say that there is no value."""
    return mask(pc.is_in(pc.utf8_lower(words), value_set=_MISSING_SET))


def missing_words(text: pa.Array) -> tuple[str, ...]:
    """Words of these cells, but blanks, that were taken for a missing value; a few of them, by order."""
    words = pc.unique(trim(distinct(text)[0]))
    found = pc.filter(words, pa.array(is_missing(words))).to_pylist()
    return tuple(sorted(word for word in found if word))[:5]


def missing_note(words: tuple[str, ...]) -> str:
    shown = ", ".join(repr(word) for word in words)
    return f"cells that say {shown} are taken as blank"


def mask(values: Any) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def matches(words: pa.Array, pattern: str) -> Mask:
    """Which words fit the pattern as a whole."""
    return mask(pc.fill_null(pc.match_substring_regex(words, f"^(?:{pattern})$"), False))


def plain_words(words: pa.Array) -> pa.Array:
    """Lower case, ASCII digits, signs and spaces; words that are ASCII already only change case.

    Superscripts, fractions and circled numbers stay as they are: compatibility would make 52 of 5².
    """
    foreign = ~mask(pc.string_is_ascii(words))
    lowered = pc.utf8_lower(words)
    if not foreign.any():
        return lowered
    odd = pc.filter(lowered, pa.array(foreign))
    tidy = pc.utf8_trim_whitespace(pc.utf8_lower(pc.utf8_normalize(odd, form="NFKC")))
    for pattern, plain in ((_MINUS, "-"), (_APOSTROPHE, "'")):
        tidy = pc.replace_substring_regex(tidy, pattern, plain)
    other = pc.match_substring_regex(tidy, _foreign_digits())
    if pc.any(other).as_py():
        texts = [_ascii_digits(text) for text in pc.filter(tidy, other).to_pylist()]
        tidy = pc.replace_with_mask(tidy, other, pa.array(texts, TEXT))
    tidy = pc.if_else(pc.match_substring_regex(odd, r"\p{No}"), odd, tidy)
    return pc.replace_with_mask(lowered, pa.array(foreign), tidy)


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


@lru_cache(maxsize=1)
def _foreign_digits() -> str:
    """A character class of the decimal digits of all scripts but ASCII; digits come in runs of ten from a zero."""
    zeros = [c for c in range(0x80, 0x20000) if unicodedata.decimal(chr(c), -1) == 0]
    return "[" + "".join(f"\\x{{{zero:x}}}-\\x{{{zero + 9:x}}}" for zero in zeros) + "]"


def first_filled(text: pa.Array, limit: int = PROFILE_CELLS) -> pa.Array:
    """The first cells that hold a value, trimmed: what a column is judged by."""
    words = trim(_cells(text))
    return pc.filter(words, pa.array(~is_missing(words))).slice(0, limit)


def some(words: pa.Array, chosen: Mask, limit: int = 1) -> list[str]:
    """A few of the chosen words, cut, as examples in messages."""
    found = pc.filter(words, pa.array(chosen)).slice(0, limit).to_pylist()
    return [str(word)[:60] for word in found]
