"""What a recommender reads of an item: its title, some of its fields, and facts of the knowledge graph about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrec_core.data.companions import INVERSE, Companions

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

#: Longer values are cut: one item with a whole article in a field must not take the memory of all others.
_MAX_CHARS = 2000
_WORD = re.compile(r"[^\W\d_]+")


def item_texts(dataset: Dataset, fields: Sequence[str] = (), *, facts: int = 0, codes: bool = False) -> list[str]:
    """The text of every item, in order of ``item_idx``; "" for an item of which nothing is known.

    Args:
        fields: item columns read beside the title; empty means :func:`text_fields`.
        facts: at most so many facts of the knowledge graph behind them, as "relation: value"; an entity that is an
            item of the catalogue is called by its title.
        codes: also facts whose value is a bare code ("m.0abc"). It says nothing to a language model, but two items
            that share it have something in common, which counting words can use.
    """
    columns = ("title", *(f for f in (fields or text_fields(dataset)) if f != "title"))
    parts = [[dataset.item_text(item, f)[:_MAX_CHARS] for f in columns] for item in range(dataset.n_items)]
    for own, item_id in zip(parts, dataset.item_ids, strict=True):
        # Where there is no title the id stands for it. A name says something ("radiohead"), a number does not.
        if own[0] == item_id and not _says_something(own[0]):
            own[0] = ""
    if facts > 0 and dataset.extra("knowledge") is not None:
        told = _facts(dataset, facts, codes)
        parts = [own + more for own, more in zip(parts, told, strict=True)]
    return [". ".join(part for part in own if part) for own in parts]


def text_fields(dataset: Dataset) -> tuple[str, ...]:
    """Columns that are read where nobody chose: the year (as short as telling), then the category columns."""
    years = tuple(f for f in dataset.items.columns if "year" in f.lower() and f not in dataset.category_fields)
    return (*years, *dataset.category_fields)


def _facts(dataset: Dataset, limit: int, codes: bool) -> list[list[str]]:
    companions = Companions(dataset)
    titles = _titles(dataset)
    found = []
    for item in range(dataset.n_items):
        texts: list[str] = []
        for relation, value in dict.fromkeys(companions.facts(item)):
            name = titles.get(value, value)
            if len(texts) < limit and (codes or _says_something(name)):
                texts.append(f"{_words_of(relation)}: {name[:_MAX_CHARS]}")
        found.append(texts)
    return found


def _titles(dataset: Dataset) -> dict[str, str]:
    """Entity -> title of the item it stands for."""
    links = dataset.extra("links")
    if links is None:
        pairs = [(str(item), item_idx) for item_idx, item in enumerate(dataset.item_ids)]
    else:
        index = dataset.item_index
        pairs = [
            (str(entity), index[item])
            for item, entity in zip(links["item_id"], links["entity"], strict=True)
            if item in index
        ]
    titles = ((entity, dataset.item_text(item, "title")) for entity, item in pairs)
    return {entity: title for entity, title in titles if title}


def _words_of(relation: str) -> str:
    """ "film.film.directed_by" -> "directed by"; the inverse keeps its mark."""
    inverse, name = relation.startswith(INVERSE), relation.removeprefix(INVERSE)
    words = re.split(r"[./#]", name.rstrip("./#"))[-1].replace("_", " ").strip() or name
    return f"{INVERSE}{words}" if inverse else words


def _says_something(value: str) -> bool:
    """Whether a value has a word: three letters in a row that no digit touches, or any character of a script like
    Chinese, where one is a word."""
    for token in re.split(r"[\s.,;:/_-]+", value):
        if any(c.isdigit() for c in token):
            continue
        for word in _WORD.findall(token):
            if len(word) >= 3 or any(ord(c) >= 0x2E80 for c in word):
                return True
    return False
