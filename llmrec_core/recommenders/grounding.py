"""Whether a text about an item says only what is known of it. Light: words and indexes, no model.

What can be checked is checked: titles of the catalogue, category values, numbers, and names (words with a capital
letter inside a sentence). Each such claim is backed by the item's title, fields or facts, by the titles of the history
that it was written for, or by nothing. What is no such claim ("gripping", "for the whole family") is opinion, and a
relation between backed words is not checked: "made by" between a backed title and a backed name may still be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmrec_core.contracts import TITLE
from llmrec_core.data.companions import Companions

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

ClaimKind = Literal["title", "category", "number", "name"]
#: Key of the history's titles among the sources.
HISTORY = "history"

#: Scripts without spaces: each character is a word.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_YEAR_BEHIND = re.compile(r"\s*\((?:18|19|20)\d\d\)\s*$")
_ARTICLE_BEHIND = re.compile(r"^(.*), (The|A|An|Die|Der|Das|Le|La|Les|El|Los|Il)$", re.IGNORECASE)
_SENTENCE_END = ".!?:\n。！？：…"


@dataclass(frozen=True)
class Claim:
    """``text[start:end]`` of what was written, and the sources that back it: "title", columns, facts, "history"."""

    kind: ClaimKind
    start: int
    end: int
    text: str
    backed_by: tuple[str, ...]


@dataclass(frozen=True)
class _Word:
    folded: str
    start: int
    end: int
    #: Begins with a capital letter, and not because a sentence begins there.
    named: bool


Words = tuple[str, ...]


class Grounding:
    """Finds claims in texts about the items of one dataset.

    Args:
        dataset: its titles and its category fields are what a text may wrongly name.
    """

    def __init__(self, dataset: Dataset) -> None:
        companions = Companions(dataset)
        #: Words -> kind, and whether it is written with capitals.
        self._known: dict[Words, tuple[ClaimKind, bool]] = {}
        self._longest = 1
        if TITLE in dataset.items.columns:
            for item in range(dataset.n_items):
                for title in _spellings(dataset.item_text(item, TITLE)):
                    self._learn(title, "title")
        for field in dataset.category_fields:
            for value in {v for item in range(dataset.n_items) for v in companions.categories(item, field)}:
                self._learn(value, "category")

    def _learn(self, text: str, kind: ClaimKind) -> None:
        words = tuple(word.folded for word in _words(text))
        # A single letter or ideograph is in every other sentence; numbers are claims of their own.
        if not words or len("".join(words)) < 2 or all(word.isdigit() for word in words):
            return
        self._known[words] = (kind, kind == "title" and text != text.lower())
        self._longest = max(self._longest, len(words))

    def claims(self, text: str, sources: Mapping[str, Sequence[str]]) -> list[Claim]:
        """All claims of ``text`` in order.

        Args:
            sources: name of a source -> its values; see :data:`HISTORY`.
        """
        words = _words(text)
        backing = {
            name: [_folded(v) for value in values for v in _spellings(value)] for name, values in sources.items()
        }
        numbers = {name: {n for value in values for n in _numbers(value)} for name, values in sources.items()}

        def backed(wanted: Words) -> tuple[str, ...]:
            return tuple(n for n, values in backing.items() if any(_contains(value, wanted) for value in values))

        found: list[Claim] = []
        at = 0
        while at < len(words):
            kind, length = self._known_at(words, at)
            if kind is None:
                kind, length = "name", self._name_at(text, words, at)
            if not length:
                at += 1
                continue
            part = tuple(word.folded for word in words[at : at + length])
            by = backed(part)
            if kind == "name" and not by and all(each := [backed((word,)) for word in part]):
                # "the Drama Ann Lee made": a run of names from several sources.
                by = tuple(dict.fromkeys(name for names in each for name in names))
            start, end = words[at].start, _closed(text, words[at].start, words[at + length - 1].end)
            found.append(Claim(kind, start, end, text[start:end], by))
            at += length
        covered = [(claim.start, claim.end) for claim in found]
        for match in _NUMBER.finditer(text):
            start, end = match.span()
            if not any(a <= start and end <= b for a, b in covered):
                by = tuple(name for name, known in numbers.items() if _number(match.group()) in known)
                found.append(Claim("number", start, end, match.group(), by))
        return sorted(found, key=lambda claim: (claim.start, claim.end))

    def _known_at(self, words: Sequence[_Word], at: int) -> tuple[ClaimKind | None, int]:
        """The longest title or category that begins at a word: (kind or None, number of words)."""
        for length in range(min(self._longest, len(words) - at), 0, -1):
            part = words[at : at + length]
            known = self._known.get(tuple(word.folded for word in part))
            # "the game" is two common words, "The Game" a title; where a sentence begins, one capital says nothing.
            if known is not None and (not known[1] or any(word.named for word in part)):
                return known[0], length
        return None, 0

    def _name_at(self, text: str, words: Sequence[_Word], at: int) -> int:
        """Words of the name that begins at a word, 0 for none: capitals side by side, up to what is known by itself."""
        end = at
        while end < len(words) and words[end].named:
            if end > at and (text[words[end - 1].end : words[end].start].strip() or self._known_at(words, end)[1]):
                break
            end += 1
        return end - at


def _closed(text: str, start: int, end: int) -> int:
    """The end of a part of a text with the bracket that it opened: "Toy Story (1995)", not "Toy Story (1995"."""
    part = text[start:end]
    return end + 1 if text[end : end + 1] == ")" and part.count("(") > part.count(")") else end


def _words(text: str) -> list[_Word]:
    found = []
    for match in _WORD.finditer(text):
        before = text[: match.start()].rstrip(" \t\"'“”‘’«»()[]*_-–—")
        inside = bool(before) and before[-1] not in _SENTENCE_END
        word = match.group()
        named = inside and word[0].isupper() and word != "I"
        found.append(_Word(word.casefold(), match.start(), match.end(), named))
    return found


def names(text: str, title: str) -> bool:
    """Whether ``text`` calls an item by its title, in any of the ways people write it."""
    words = _folded(text)
    return any(bool(spelling) and _contains(words, spelling) for spelling in map(_folded, _spellings(title)))


def _folded(text: str) -> Words:
    return tuple(match.group().casefold() for match in _WORD.finditer(text))


def _contains(whole: Words, part: Words) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _spellings(title: str) -> list[str]:
    """A title as people write it: also without its year, and with its article in front."""
    found = [title]
    short = _YEAR_BEHIND.sub("", title)
    for text in (title, short):
        turned = _ARTICLE_BEHIND.match(text)
        found += [text, f"{turned[2]} {turned[1]}"] if turned else [text]
    return list(dict.fromkeys(filter(None, found)))


def _numbers(text: str) -> list[str]:
    return [_number(match.group()) for match in _NUMBER.finditer(text)]


def _number(text: str) -> str:
    """1,000 and 1000 are the same; 4.0 and 4 too."""
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text) else text.replace(",", ".")
    return plain.rstrip("0").rstrip(".") if plain.count(".") == 1 else plain
