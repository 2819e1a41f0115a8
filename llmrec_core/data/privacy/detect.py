"""Personal data in text: e-mail, phone, names, addresses, cards, identity numbers; found, and masked on request.

Finding is an offer, never an act: nothing is masked unless somebody asks. Every pattern has bounded repeats and starts
only at the edge of a word, so the time is linear in the text however hostile it is; candidates are then checked by
digit counts, checksums and parsers. Whole columns go through Arrow's RE2 first, and only cells with a candidate are
looked at one by one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data.privacy._names import GIVEN, HAN_SURNAMES, SURNAMES, is_han_name, is_name_header
from llmrec_core.errors import InputError

PersonalKind = Literal["email", "phone", "name", "ip", "card", "id_number"]
#: In the order of masking: an identity number holds digits that look like a phone number.
KINDS: tuple[PersonalKind, ...] = ("email", "id_number", "card", "ip", "phone", "name")
assert set(KINDS) == set(get_args(PersonalKind))
#: Masks every cell that is not empty, whatever it holds: for a column that is nothing but names.
WHOLE_CELL = "cell"
MASKS = {
    "email": "[e-mail]",
    "phone": "[phone]",
    "name": "[name]",
    "ip": "[ip]",
    "card": "[card]",
    "id_number": "[id]",
    WHOLE_CELL: "[hidden]",
}
TITLES = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "name": "names of persons",
    "ip": "network addresses",
    "card": "card numbers",
    "id_number": "identity numbers",
}
#: Names are guesses: fewer cells than this share say nothing about a column.
_NAME_SHARE = 0.05
#: A column is one of names if this share of its cells are names and nothing else.
_NAME_COLUMN_SHARE = 0.5
_N_EXAMPLES = 3

Span = tuple[int, int]


@dataclass(frozen=True)
class PersonalFinding:
    """Personal data of one kind in one column.

    Attributes:
        n_cells, share: cells that hold it, and their share among cells that are not empty.
        examples: up to three, with all but their edges covered.
        whole_cells: the cells are nothing else; masking them wholly (``WHOLE_CELL``) is what fits.
    """

    column: str
    kind: PersonalKind
    n_cells: int
    share: float
    examples: tuple[str, ...]
    whole_cells: bool = False

    @property
    def sentence(self) -> str:
        """``comment: e-mail addresses in 12 cells (3 %)``."""
        share = "under 1 %" if self.share < 0.01 else f"{100 * self.share:.0f} %"
        return f"{self.column}: {TITLES[self.kind]} in {self.n_cells:,} cell{'s' * (self.n_cells != 1)} ({share})"


Columns = Mapping[str, pa.Array | pa.ChunkedArray | Sequence[str | None]]


def find_personal(
    columns: Columns | pa.Table, *, about: Literal["users", "items", "interactions"] = "interactions"
) -> list[PersonalFinding]:
    """Personal data in text columns, by column and kind.

    Args:
        columns: column -> text, whole or a sample; columns of other types are passed over.
        about: what a row is. In a table of users a column "name" holds persons; in one of items it does not.
    """
    if isinstance(columns, pa.Table):
        columns = {name: columns.column(name) for name in columns.column_names}
    found: list[PersonalFinding] = []
    for column, values in columns.items():
        text = _as_text(values)
        if text is None:
            continue
        text = text.filter(pc.not_equal(text, ""))
        if len(text):
            found += _in_column(column, text, about)
    return found


def mask_text(values: pa.Array | pa.ChunkedArray, kinds: Sequence[str] = KINDS) -> pa.Array:
    """Text with personal data of these kinds replaced by ``[e-mail]``, ``[phone]`` ...; null stays null.

    Args:
        values: text [n].
        kinds: any of ``KINDS``, or ``WHOLE_CELL`` to replace every cell that is not empty.

    Returns:
        ``large_string`` [n].

    Raises:
        InputError: an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in MASKS]
    if unknown:
        raise InputError(f"{unknown[0][:40]!r} cannot be masked.", where="mask", fix=f"Known: {', '.join(MASKS)}.")
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    array = array.cast(pa.large_string())
    if WHOLE_CELL in kinds:
        hidden = pa.scalar(MASKS[WHOLE_CELL], pa.large_string())
        return pc.if_else(pc.not_equal(array, ""), hidden, array)
    for kind in KINDS:
        suspects = _suspects(array, kind) if kind in kinds else None
        if suspects is not None and pc.any(suspects).as_py():
            masked = [_replace(text, kind) for text in array.filter(suspects).to_pylist()]
            array = pc.replace_with_mask(array, suspects, pa.array(masked, pa.large_string()))
    return array


def find_spans(text: str, kind: PersonalKind) -> list[Span]:
    """[start, end) of everything of that kind in one text, in order."""
    return list(_FINDERS[kind](text))


def covered(text: str) -> str:
    """``text`` with only its first and last letters left of each run of letters and digits, for showing."""
    return re.sub(r"\w+", lambda run: run[0][0] + "\u2022" * min(8, len(run[0]) - 1), text[:80])


def _as_text(values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> pa.Array | None:
    """``large_string`` without nulls; None for a column that is not text."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(list(values), pa.large_string())
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    return pc.fill_null(values.cast(pa.large_string()), "")


def _in_column(column: str, text: pa.Array, about: str) -> Iterator[PersonalFinding]:
    n_cells = len(text)
    for kind in KINDS:
        suspects = text.filter(_suspects(text, kind)).to_pylist()
        hits = [(cell, spans) for cell in suspects if (spans := find_spans(cell, kind))]
        if kind == "name":
            whole = _name_cells(column, text, about)
            if whole is not None:
                shown = tuple(covered(cell) for cell in whole[:_N_EXAMPLES])
                yield PersonalFinding(column, kind, len(whole), len(whole) / n_cells, shown, whole_cells=True)
                continue
            if len(hits) < _NAME_SHARE * n_cells:
                continue
        if hits:
            shown = tuple(covered(cell[spans[0][0] : spans[0][1]]) for cell, spans in hits[:_N_EXAMPLES])
            alone = sum(spans[0] == (0, len(cell)) for cell, spans in hits) >= _NAME_COLUMN_SHARE * n_cells
            yield PersonalFinding(column, kind, len(hits), len(hits) / n_cells, shown, whole_cells=alone)


def _name_cells(column: str, text: pa.Array, about: str) -> list[str] | None:
    """The cells that are a name and nothing else, if they make the column one of persons' names."""
    called_so = is_name_header(column, about_users=about == "users")
    if not called_so and about != "users":
        return None
    cells = pc.utf8_trim_whitespace(text).to_pylist()
    # Where the header says it, anything that looks like a name is one; else only names that are known.
    test = _looks_like_name if called_so else _is_known_name
    names = [cell for cell in cells if test(cell)]
    return names if len(names) >= _NAME_COLUMN_SHARE * len(cells) else None


_NAME_SHAPE = re.compile(r"[^\W\d_][\w'\u2019.-]{0,30}(?:,?[ ][^\W\d_][\w'\u2019.-]{0,30}){0,4}")


def _looks_like_name(cell: str) -> bool:
    return len(cell) <= 80 and _NAME_SHAPE.fullmatch(cell) is not None


def _is_known_name(cell: str) -> bool:
    if len(cell) > 80:
        return False
    words = [word.casefold() for word in re.split(r"[ ,]+", cell) if word]
    if len(words) == 1:
        return is_han_name(cell)
    return 2 <= len(words) <= 4 and _looks_like_name(cell) and (words[0] in GIVEN or words[-1] in GIVEN)


# -- candidates: one RE2 pattern a kind over a whole column ---------------------------------------------------------

_SUSPECT = {
    "email": r"[^\s@]@[^\s@]",
    "id_number": r"[0-9]{17}[0-9Xx]|[0-9]{3}-[0-9]{2}-[0-9]{4}",
    "card": r"[0-9](?:[ -]?[0-9]){13}",
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:",
    "phone": r"[0-9][0-9() ./-]{4,}[0-9]",
    "name": r"(?i:mrs?\.? |ms\.? |dr\.? |prof\.? |herr |frau |name is |name\x27s |signed|regards|dear )"
    r"|\p{Lu}[\p{Ll}\x27\x{2019}-]+ \w"
    "|\\p{Han}(?:\u5148\u751f|\u5973\u58eb|\u5c0f\u59d0)",
}


def _suspects(text: pa.Array, kind: str) -> pa.BooleanArray:
    """Cells that may hold that kind, bool [n]; null for null."""
    return pc.fill_null(pc.match_substring_regex(text, _SUSPECT[kind]), False)


def _replace(text: str, kind: PersonalKind) -> str:
    parts, end = [], 0
    for start, stop in _FINDERS[kind](text):
        parts += [text[end:start], MASKS[kind]]
        end = stop
    return "".join([*parts, text[end:]])


# -- the finders: candidates by a bounded pattern, then a check --------------------------------------------------------

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}[^\W\d_]{2,24}(?![\w-]|\.\w)")


def _emails(text: str) -> Iterator[Span]:
    return (match.span() for match in _EMAIL.finditer(text))


_RESIDENT = re.compile(
    r"(?<![0-9A-Za-z])[1-9][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx](?![0-9A-Za-z])"
)
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_SOCIAL = re.compile(r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])")


def _id_numbers(text: str) -> Iterator[Span]:
    """Chinese resident numbers (GB 11643: weighted sum modulo 11) and US social security numbers."""
    found = [match.span() for match in _SOCIAL.finditer(text)]
    for match in _RESIDENT.finditer(text):
        digits = match[0]
        total = sum(int(digit) * weight for digit, weight in zip(digits, _RESIDENT_WEIGHTS, strict=False))
        if "10X98765432"[total % 11] == digits[-1].upper():
            found.append(match.span())
    return iter(sorted(found))


_CARD = re.compile(r"(?<![0-9A-Za-z.-])[2-6][0-9]{3}(?:[ -]?[0-9]){10,15}(?![0-9A-Za-z])")
_CARD_KINDS = re.compile(
    r"4[0-9]{15}(?:[0-9]{3})?|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|35[0-9]{14}|6(?:011|5[0-9]{2})[0-9]{12}|62[0-9]{14,17}"
)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if _CARD_KINDS.fullmatch(digits) and _luhn(digits):
            yield match.span()


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812)."""
    doubled = [int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


_IP4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.]*[\w])")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{6,39}(?![\w:.])")
_VERSION = re.compile(r"(?i)(?:version|release|build|firmware|ver|rev)[.:]?\s*$")


def _addresses(text: str) -> Iterator[Span]:
    found = []
    for match in _IP4.finditer(text):
        # "version 1.2.3.4" is none, and neither is an octet such as 300 or 01.
        if not _VERSION.search(text[max(0, match.start() - 12) : match.start()]) and _is_address(match[0]):
            found.append(match.span())
    for match in _IP6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        if len(groups) >= 3 and any(c.isdigit() for c in match[0]) and _is_address(match[0]):
            found.append(match.span())
    return iter(sorted(found))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_PHONE = re.compile(r"(?<![\w.,/-])(?:\+|\()?[0-9](?:[0-9]|[ ()./-]{1,3}(?=[0-9(])){5,24}(?![\w])(?![.,/-][0-9])")
_SAID = re.compile(
    r"(?i)(?:tel|phone|call|mobile|cell|fax|handy|telefon|whatsapp|\u7535\u8bdd|\u624b\u673a)[^0-9]{0,12}$"
)
_DATE = re.compile(
    r"(?<![0-9])(?:[0-9]{1,2}[-/. ][0-9]{1,2}[-/. ](?:19|20)[0-9]{2}|(?:19|20)[0-9]{2}[-/. ][0-9]{1,2}[-/. ][0-9]{1,2})"
)
_MOBILE_CN = re.compile(r"(?:(?:\+|00)?86[ -]?)?1[3-9][0-9]([ -]?)[0-9]{4}\1[0-9]{4}")
_LANDLINE_CN = re.compile(r"0[1-9][0-9]{1,2}[ -][2-9][0-9]{6,7}")
_AMERICAN = re.compile(r"(?:\+?1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}")
_NATIONAL = re.compile(r"\(?0[1-9][0-9]{0,4}\)?[ ./-]{1,3}[0-9][0-9 ./-]{4,14}[0-9]")


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        if _is_phone(match[0], text[max(0, match.start() - 24) : match.start()]):
            yield match.span()


def _is_phone(number: str, before: str) -> bool:
    """Known formats only; a bare run of digits is one where the words before say so, or as a Chinese mobile."""
    n_digits = sum(c.isdigit() for c in number)
    if _DATE.search(number):
        return False
    if number[0] == "+":
        return 8 <= n_digits <= 15 and number[1] != "0"
    if any(pattern.fullmatch(number) for pattern in (_MOBILE_CN, _LANDLINE_CN, _AMERICAN)):
        return True
    if _NATIONAL.fullmatch(number):
        return 9 <= n_digits <= 13
    return 7 <= n_digits <= 15 and _SAID.search(before) is not None


_WORD = r"[^\W\d_][\w\u2019'-]{1,30}"
_PAIR = re.compile(rf"(?<![\w\u2019'-])({_WORD})((?: [A-Z]\.)? (?:(?:van|von|de|da|del|di|bin|al) )?)({_WORD})")
_TITLED = re.compile(rf"(?<!\w)(?:[Mm]rs?|[Mm]s|[Dd]r|[Pp]rof|[Hh]err|[Ff]rau)\.? ({_WORD}(?: {_WORD})?)")
_INTRODUCED = re.compile(rf"(?:[Mm]y name is|[Mm]y name's|[Ss]igned,?|[Rr]egards,|[Dd]ear) ({_WORD}(?: {_WORD})?)")
_HAN_TITLED = re.compile(rf"[{HAN_SURNAMES}][\u4e00-\u9fff]{{0,2}}?(?=\u5148\u751f|\u5973\u58eb|\u5c0f\u59d0)")


def _names(text: str) -> Iterator[Span]:
    """A known given name before another capitalised word, a name after a title or an introduction, Chinese titles."""
    found: list[Span] = []
    position = 0
    while match := _PAIR.search(text, position):
        first, last = match[1], match[3]
        given = first.casefold() in GIVEN and first[0].isupper()
        if given and last[0].isupper() and (match[2].strip() or last.casefold() in SURNAMES or _is_plain(last)):
            found.append(match.span())
            position = match.end()
        else:
            # The second word of a pair that is no name may be the first of one that is.
            position = match.end(1)
    for pattern in (_TITLED, _INTRODUCED):
        for match in pattern.finditer(text):
            start, end = match.span(1)
            words = match[1].split(" ")
            if not words[0][0].isupper():
                continue
            if len(words) > 1 and not words[1][0].isupper():
                end = start + len(words[0])
            found.append((start, end))
    found += [match.span() for match in _HAN_TITLED.finditer(text)]
    return _merged(sorted(found))


def _is_plain(word: str) -> bool:
    """Capital first, small after: "Kowalska", not "USA"."""
    return word[1:].islower()


def _merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Overlapping spans as one, in order."""
    start, end = -1, -1
    for low, high in spans:
        if low >= end:
            if start >= 0:
                yield start, end
            start, end = low, high
        else:
            end = max(end, high)
    if start >= 0:
        yield start, end


_FINDERS: Mapping[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "id_number": _id_numbers,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
    "name": _names,
}
