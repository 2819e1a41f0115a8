"""Numbers in text: one reading for a whole column, decided from its first filled cells and held to ever after.

A column is first taken to be plain: digits with one kind of decimal mark. Cells that do not fit can make it a richer
one (:meth:`NumberFormat.reconsider`): grouped thousands, "4.5 out of 5", stars, percent, currencies, words. What was
read before keeps its meaning, or the column is read again; so blocks of any size give the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._values.options import DEFAULT, Question, ValueOptions
from llmrec_core.data._values.words import (
    TEXT,
    Floats,
    Mask,
    distinct,
    first_filled,
    is_missing,
    mask,
    matches,
    missing_note,
    missing_words,
    plain_words,
    some,
    spread,
    trim,
)

_POWER = r"(?:[eE][+-]?[0-9]+)?"
_PLAIN = {
    "point": rf"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+){_POWER}",
    "comma": rf"[+-]?(?:[0-9]+,?[0-9]*|,[0-9]+){_POWER}",
}
#: The Arabic decimal mark can be read in one way only, so it stands beside either.
_ARABIC = r"[+-]?[0-9]+\x{066b}[0-9]*"
_LEAD, _GROUPS_BY = r"[+-]?[1-9][0-9]{0,2}", r"(?:{}[0-9]{{3}})"


def _grouped(by: str, decimal: str) -> str:
    return rf"{_LEAD}{_GROUPS_BY.format(by)}+(?:{decimal}[0-9]*)?"


_INDIAN = r"[+-]?[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]*)?"
_GROUPED = {
    "point": "|".join((_grouped(",", r"\."), _grouped("[ ']", r"\."), _INDIAN)),
    "comma": "|".join((_grouped(r"\.", ","), _grouped("[ ']", ","))),
}
#: What a core says about the decimal mark of its column. Sure signs first, then those that can be read in two ways.
_SIGNS = {
    "point": r"[+-]?[0-9]*\.(?:[0-9]{0,2}|[0-9]{4,})(?:e.*)?|[+-]?0[0-9]*\.[0-9]+|[+-]?[0-9]{4,}\.[0-9]*|"
    r"[+-]?\.[0-9]+|[+-]?[0-9]*\.[0-9]*e.*|.*,.*\.[0-9]*|[+-]?[0-9]{1,3}(?:,[0-9]{2,3})+,[0-9]{3}|.*[ '].*\.[0-9]*",
    "comma": r"[+-]?[0-9]*,(?:[0-9]{0,2}|[0-9]{4,})(?:e.*)?|[+-]?0[0-9]*,[0-9]+|[+-]?[0-9]{4,},[0-9]*|"
    r"[+-]?,[0-9]+|[+-]?[0-9]*,[0-9]*e.*|.*\..*,[0-9]*|[+-]?[0-9]{1,3}(?:\.[0-9]{3}){2,}|.*[ '].*,[0-9]*",
    "either_comma": rf"{_LEAD},[0-9]{{3}}",
    "either_point": rf"{_LEAD}\.[0-9]{{3}}",
}
_CURRENCY = r"(?:us|r|a|c|hk|nt|s)?\$|€|£|¥|₹|₽|₩|₺|zł|kr\.?|chf|usd|eur|gbp|cny|rmb|jpy|inr|元|円|원|rs\.?"
_SAME_CURRENCY = {
    "us$": "$", "usd": "$", "eur": "€", "gbp": "£", "rmb": "cny", "元": "cny", "円": "jpy", "inr": "₹", "rs": "₹",
    "rs.": "₹", "원": "₩", "kr.": "kr",
}  # fmt: skip
_UNIT = r"stars?|sterne?|étoiles?|estrellas?|颗星|星|分|点|點|점|points?|punkte?|pts?\.?|★|⭐"
_DRESSED = (
    rf"^(?P<currency>{_CURRENCY})?\s*(?P<core>[+-]?(?:[0-9][0-9.,' \x{{066b}}]*|[.,][0-9]+)(?:e[+-]?[0-9]+)?)\s*"
    rf"(?:(?P<percent>%)|(?P<after>{_CURRENCY})|(?P<first_unit>{_UNIT})?\s*"
    r"(?:(?:/|out of|of|von|sur|de|из|中)\s*(?P<out_of>[0-9]{1,6}))?"
    rf"\s*(?P<unit>{_UNIT})?)$"
)
_STARS = r"^(?P<full>[★⭐🌟\x{fe0f}]*)(?P<half>[½⯨]?)(?P<empty>[☆✩]*)$"
_GOOD = (
    "yes", "true", "like", "liked", "likes", "up", "thumbs up", "thumbs_up", "thumbsup", "👍", "是", "喜欢", "赞", "ja",
    "oui", "sí", "si", "positive", "good",
)  # fmt: skip
_BAD = (
    "no", "false", "dislike", "disliked", "dislikes", "down", "thumbs down", "thumbs_down", "thumbsdown", "👎", "否",
    "不喜欢", "踩", "nein", "non", "negative", "bad",
)  # fmt: skip
_WORDS = {**dict.fromkeys(_GOOD, 1.0), **dict.fromkeys(_BAD, 0.0)}
_MAX_ABS = 1e30
_NOT_A_NUMBER = pa.scalar("nan", TEXT)

Kind = Literal["number", "percent", "words"]


@dataclass(frozen=True)
class _Parts:
    """Words taken apart, all aligned with the words: core is "" where there is none."""

    core: pa.Array
    out_of: Floats
    percent: Mask
    currency: pa.Array
    dressed: Mask
    stars: Floats
    word: Floats


@dataclass(frozen=True)
class NumberFormat:
    """How one column of numbers is read.

    Attributes:
        rich: more than plain digits with one decimal mark is admitted.
        asks_decimal: some cells have a comma that can part thousands or decimals; as thousands they are read.
        out_of: what ratings such as "4/5" are out of; None: there are none such. With ``percent`` it is 100.
        currency: of prices; "" where none is named.
        questions: what the cells leave open; :func:`refuse_unanswered` turns them into an error.
        notes: what a person should know about the reading.
    """

    column: str
    options: ValueOptions
    decimal: Literal["point", "comma"] = "point"
    sure: bool = False
    kind: Kind = "number"
    rich: bool = False
    asks_decimal: bool = False
    money: bool = False
    out_of: float | None = None
    currency: str = ""
    _profile: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)
    _later: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    _example: str = field(default="", compare=False, repr=False)
    _missing: tuple[str, ...] = field(default=(), compare=False, repr=False)

    # ------------------------------------------------------------------------------------------------ reading

    def numbers(self, text: pa.Array) -> tuple[Floats, Mask]:
        """(values [n], NaN where blank or bad; bad [n])."""
        cells, positions = distinct(text)
        values, bad = self.read_words(cells)
        return spread(values, positions), spread(bad, positions)

    def read_words(self, words: pa.Array) -> tuple[Floats, Mask]:
        """:meth:`numbers` of words as they are, without looking for repeated ones."""
        blank = np.zeros(len(words), bool)
        if self.kind == "number":
            # Mostly digits and nothing else, and those need no pattern.
            digits = pc.ascii_is_decimal(words)
            rest = np.flatnonzero(~mask(digits))
            values = _floats(pc.if_else(digits, words, _NOT_A_NUMBER) if len(rest) else words)
        else:
            values, rest = np.full(len(words), np.nan), np.arange(len(words))
        if len(rest) and self.kind == "number":
            odd = trim(words.take(pa.array(rest)))
            values[rest] = _cast(odd, _PLAIN[self.decimal], self.decimal)
            rest = rest[np.isnan(values[rest])]
        if len(rest):
            odd = trim(words.take(pa.array(rest)))
            if self.rich:
                odd = plain_words(odd)
                values[rest] = self._read_rich(odd)
            blank[rest] = is_missing(odd)
        return self._checked(values, blank)

    @staticmethod
    def _checked(values: Floats, blank: Mask) -> tuple[Floats, Mask]:
        bad = ~blank & ~(np.abs(values) <= _MAX_ABS)
        values[bad | blank] = np.nan
        return values, bad

    def _read_rich(self, words: pa.Array) -> Floats:
        parts = _take_apart(words, self.money)
        if self.kind == "words":
            plain = _cast(words, "[01]", "point")
            return np.where(np.isnan(parts.word), plain, parts.word)
        values = _core_values(parts.core, self.decimal, grouped=self.sure or self.asks_decimal)
        values = np.where(np.isnan(parts.stars), values, parts.stars)
        wrong = parts.percent != (self.kind == "percent")
        given = ~np.isnan(parts.out_of)
        if self.out_of is not None and self.kind == "number":
            wrong |= given & ((parts.out_of != self.out_of) | (values > parts.out_of))
        else:
            wrong |= given
        named = ~mask(pc.equal(parts.currency, ""))
        wrong |= named & ~mask(pc.equal(parts.currency, self.currency))
        return np.where(wrong, np.nan, values)

    # ------------------------------------------------------------------------------------------------ deciding

    def reconsider(self, refused: pa.Array) -> NumberFormat:
        """The format once these cells, which it refused, are known; equal to this one where nothing changes.

        Only which cells there are matters: not their order, their number, or the blocks in which they are told.
        """
        tags = frozenset(_tags(first_filled(refused, len(refused)), self.money))
        return self._decided(self._later | tags)

    def _decided(self, later: frozenset[str]) -> NumberFormat:
        first = Counter(dict(self._profile))
        if self.options.decimal != "auto":
            decimal, sure = self.options.decimal, True
        elif first["point"] or first["comma"]:
            decimal, sure = ("comma" if first["comma"] > first["point"] else "point"), True
        else:
            # Signs that only came later decide what the first cells left open; a point beside a comma wins.
            decimal = "comma" if "comma" in later and "point" not in later else "point"
            sure = bool({"point", "comma"} & later)
        kind: Kind = "number"
        filled = sum(first[tag] for tag in ("numeric", "percent", "word", "stars"))
        kinds: tuple[tuple[Kind, str], ...] = (("percent", "percent"), ("words", "word"))
        for candidate, tag in kinds:
            if first[tag] * 2 > filled:
                kind = candidate
        rich = any(first[tag] or tag in later for tag in ("rich", "percent", "word", "stars", "either_comma"))
        rich |= decimal == "comma" and bool(first["either_point"] or "either_point" in later)
        return replace(
            self,
            decimal=decimal,
            sure=sure,
            kind=kind,
            rich=rich,
            asks_decimal=not sure and bool(first["either_comma"] or "either_comma" in later),
            out_of=100.0 if kind == "percent" else _float(_most(first, later, "out_of:")),
            currency=_most(first, later, "currency:"),
            _later=later,
        )

    # ------------------------------------------------------------------------------------------------ telling

    def _has(self, tag: str) -> bool:
        return tag in self._later or any(known == tag and count for known, count in self._profile)

    @property
    def questions(self) -> tuple[Question, ...]:
        if not self.asks_decimal:
            return ()
        text = f"numbers such as {self._example or '1,234'!r} of column {self.column!r} have a comma that can part "
        return (Question("decimal", text + "thousands or decimals.", ("comma", "point")),)

    @property
    def notes(self) -> tuple[str, ...]:
        said = []
        if self.decimal == "comma":
            said.append("a comma is the decimal mark" + ("; points part thousands" if self.rich else ""))
        elif self.options.decimal == "auto" and self._has("either_point") and not self.sure:
            said.append("numbers such as 1.234 read with a decimal point (decimal=comma makes it 1234)")
        if self.kind == "percent":
            said.append("percentages read as 0 to 100")
        elif self.kind == "words":
            said.append("words such as yes and like read as 1, no and dislike as 0")
        if self.out_of is not None and self.kind == "number":
            said.append(f"ratings out of {self.out_of:g}")
        if self.currency:
            said.append(f"prices in {self.currency}")
        if self._missing:
            said.append(missing_note(self._missing))
        return tuple(f"{self.column}: {text}" for text in said)

    def reason(self, cell: str) -> str:
        """Why this cell was refused."""
        shown = repr(cell.strip()[:60])
        words = plain_words(trim(pa.array([cell], TEXT)))
        parts = _take_apart(words, self.money)
        if self.kind == "number" and parts.percent[0]:
            return f"{shown} is a percentage in a column of numbers"
        if self.kind == "percent" and not np.isnan(_core_values(parts.core, self.decimal, grouped=True)[0]):
            return f"{shown} is no percentage, as the others are"
        if self.out_of is not None and not np.isnan(parts.out_of[0]):
            return f"{shown} does not fit ratings out of {self.out_of:g}"
        if parts.currency[0].as_py() and parts.currency[0].as_py() != self.currency:
            return f"{shown} is in another currency than {self.currency or 'the others'}"
        if "," in cell or "." in cell:
            return f"{shown} is not a number (the decimal mark of this column is a {self.decimal})"
        return f"{shown} is not a number"


def decide_numbers(
    cells: pa.Array, column: str, options: ValueOptions = DEFAULT, *, money: bool = False
) -> NumberFormat:
    """How a column is read, by its first :data:`PROFILE_CELLS` filled cells; blank ones and later ones do not count."""
    words = first_filled(cells)
    counts = words.value_counts()
    tags: Counter[str] = Counter()
    unique = counts.field("values")
    for tag, chosen in _tagged(unique, money):
        tags[tag] += int(counts.field("counts").to_numpy()[chosen].sum())
    example = some(unique, matches(plain_words(unique), _SIGNS["either_comma"]))
    fresh = NumberFormat(
        column,
        options,
        money=money,
        _profile=tuple(sorted(tags.items())),
        _example=example[0] if example else "",
        _missing=missing_words(cells),
    )
    return fresh._decided(frozenset())


def parse_numbers(
    text: pa.Array,
    column: str = "number",
    options: ValueOptions = DEFAULT,
    *,
    money: bool = False,
) -> tuple[Floats, Mask]:
    """Numbers of a whole column of text at once; blank cells are NaN and not bad.

    Returns:
        (values [n], NaN where blank or bad; bad [n]).
    """
    return settle_numbers(text, column, options, money=money)[1:]


def settle_numbers(
    text: pa.Array, column: str, options: ValueOptions = DEFAULT, *, money: bool = False
) -> tuple[NumberFormat, Floats, Mask]:
    """(format, values [n], bad [n]) of a column that lies in memory as a whole."""
    cells, positions = distinct(text)
    found = decide_numbers(text, column, options, money=money)
    while True:
        values, bad = found.read_words(cells)
        better = found.reconsider(pc.filter(cells, pa.array(bad)))
        if better == found:
            return better, spread(values, positions), spread(bad, positions)
        found = better


# ------------------------------------------------------------------------------------------------ words


def _cast(words: pa.Array, pattern: str, decimal: str) -> Floats:
    """Numbers of the words that fit the pattern, NaN elsewhere; too large ones are infinite."""
    good = matches(words, pattern)
    tidy = pc.if_else(pa.array(good), words, _NOT_A_NUMBER)
    if decimal == "comma":
        tidy = pc.replace_substring(tidy, ",", ".")
    return _floats(pc.utf8_ltrim(tidy, "+"))


def _floats(words: pa.Array) -> Floats:
    return np.array(pc.cast(words, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _core_values(core: pa.Array, decimal: str, *, grouped: bool) -> Floats:
    values = _cast(core, _PLAIN[decimal], decimal)
    patterns = (_GROUPED[decimal], _ARABIC) if grouped else (_grouped("[ ']", r"\."), _ARABIC)
    for pattern in patterns:
        open_ = np.isnan(values)
        if not open_.any():
            break
        fits = open_ & matches(core, pattern)
        if fits.any():
            separators = "[., ']" if decimal == "comma" else "[, ']"
            bare = pc.replace_substring_regex(core, r"\x{066b}", "!")
            if decimal == "comma":
                bare = pc.replace_substring(bare, ",", "!")
            bare = pc.replace_substring(pc.replace_substring_regex(bare, separators, ""), "!", ".")
            values = np.where(fits, _cast(pc.if_else(pa.array(fits), bare, ""), _PLAIN["point"], "point"), values)
    return values


def _take_apart(words: pa.Array, money: bool) -> _Parts:
    """``words``: as :func:`plain_words` gives them."""
    # A half is written in one character; left alone it would vanish or join the digits before it.
    words = pc.replace_substring_regex(words, r"^([+-]?[0-9]+)\s?½", r"\1.5")
    words = pc.replace_substring_regex(words, r"^½", "0.5")
    found = pc.extract_regex(words, _DRESSED)
    whole = pc.is_valid(found)

    def part(name: str) -> pa.Array:
        return pc.fill_null(found.field(name).cast(TEXT), "") if len(found) else pa.array([], TEXT)

    core = pc.if_else(whole, pc.utf8_rtrim(part("core"), " "), "")
    before, after = part("currency"), part("after")
    currency = pc.if_else(pc.equal(before, ""), after, before)
    for word, same in _SAME_CURRENCY.items():
        currency = pc.if_else(pc.equal(currency, word), same, currency)
    twice = pc.and_(pc.not_equal(before, ""), pc.not_equal(after, ""))
    refused = pc.or_(twice, pc.not_equal(currency, "")) if not money else twice
    core = pc.if_else(refused, "", core)
    dress = [part(name) for name in ("percent", "after", "first_unit", "out_of", "unit", "currency")]
    dressed = np.logical_or.reduce([~mask(pc.equal(piece, "")) for piece in dress])
    stars = pc.extract_regex(words, _STARS)
    is_stars = mask(pc.is_valid(stars)) & ~mask(pc.equal(words, "")) & matches(words, r".*[★⭐🌟½⯨☆✩].*")
    full = pc.utf8_length(pc.replace_substring_regex(_filled(stars, "full"), r"\x{fe0f}", ""))
    half, empty = pc.utf8_length(_filled(stars, "half")), pc.utf8_length(_filled(stars, "empty"))
    star_values, halves, blanks = (
        np.asarray(x.to_numpy(zero_copy_only=False), np.float64) for x in (full, half, empty)
    )
    out_of = _cast(part("out_of"), "[0-9]+", "point")
    out_of = np.where(is_stars & (blanks > 0), star_values + halves + blanks, out_of)
    vocabulary = pa.array(list(_WORDS), TEXT)
    known = pc.fill_null(pc.index_in(words, value_set=vocabulary), -1).to_numpy(zero_copy_only=False)
    meaning = np.array([*_WORDS.values(), np.nan])
    return _Parts(
        core,
        out_of,
        ~mask(pc.equal(part("percent"), "")) & ~mask(pc.equal(core, "")),
        pc.if_else(pc.equal(core, ""), "", currency),
        dressed,
        np.where(is_stars, star_values + 0.5 * halves, np.nan),
        meaning[known],
    )


def _filled(found: pa.StructArray, name: str) -> pa.Array:
    return pc.fill_null(found.field(name).cast(TEXT), "")


def _tags(words: pa.Array, money: bool) -> set[str]:
    return {tag for tag, chosen in _tagged(pc.unique(words), money) if chosen.any()}


def _tagged(words: pa.Array, money: bool) -> Iterable[tuple[str, Mask]]:
    """What the words tell about the column that they stand in."""
    if not len(words):
        return
    tidy = plain_words(words)
    parts = _take_apart(tidy, money)
    signs = {name: matches(parts.core, pattern) for name, pattern in _SIGNS.items()}
    plain = matches(tidy, _PLAIN["point"]) | matches(tidy, _PLAIN["comma"])
    grouped = [matches(parts.core, pattern) for pattern in (_GROUPED["point"], _GROUPED["comma"], _ARABIC)]
    numeric = np.logical_or.reduce([plain & mask(pc.string_is_ascii(words)), *grouped]) | (
        matches(parts.core, _PLAIN["point"]) | matches(parts.core, _PLAIN["comma"])
    )
    for name in ("point", "comma"):
        yield name, signs[name] & numeric
    yield "either_comma", signs["either_comma"] & ~signs["comma"] & ~signs["point"]
    yield "either_point", signs["either_point"] & ~signs["comma"] & ~signs["point"]
    unusual = grouped[0] & ~matches(parts.core, _SIGNS["either_comma"]) | grouped[1] & ~matches(
        parts.core, _SIGNS["either_point"]
    )
    foreign = ~mask(pc.string_is_ascii(words))
    yield "rich", numeric & (unusual | grouped[2] | foreign | parts.dressed)
    yield "numeric", numeric & ~parts.percent
    yield "percent", numeric & parts.percent
    yield "stars", parts.stars > 0
    yield "word", ~np.isnan(parts.word)
    # Hollow stars alone are none of five only where filled ones stand beside them.
    out_of = np.where(parts.stars == 0, np.nan, parts.out_of)
    for value in np.unique(out_of[~np.isnan(out_of)])[:50]:
        yield f"out_of:{value:g}", out_of == value
    for currency in pc.unique(parts.currency).to_pylist()[:50]:
        if currency:
            yield f"currency:{currency}", mask(pc.equal(parts.currency, currency))


def _most(first: Counter[str], later: frozenset[str], prefix: str) -> str:
    """The value that most of the first cells name; else the last by order of those named later; "" for none."""
    named = {tag.removeprefix(prefix): count for tag, count in first.items() if tag.startswith(prefix) and count}
    if not named:
        named = dict.fromkeys((tag.removeprefix(prefix) for tag in later if tag.startswith(prefix)), 1)
    return max(named, key=lambda value: (named[value], len(value), value), default="")


def _float(text: str) -> float | None:
    return float(text) if text else None
