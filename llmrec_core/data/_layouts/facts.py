"""Tables beside the items: facts of a knowledge graph, links to its entities, tags that people gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, cells_of, text_table
from llmrec_core.data._role_names import ROLES, plain, rank_of
from llmrec_core.data._sources import Source

_MOST_TAGS = 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
#: A relation of a knowledge graph as it is written nowhere else: dotted paths and addresses.
_RELATION = re.compile(r"https?://\S+|\w+([.:/]\w+)+")


def find_facts(source: Source, sample: pa.Table, said: Mapping[str, str], told: bool) -> dict[str, str] | None:
    """head, relation and tail of a table of triples; None where it is none."""
    columns = list(source.columns)
    roles = {
        role: column for role, column in said.items() if role in ("head", "relation", "tail") and column in columns
    }
    for role in ("head", "relation", "tail"):
        named = [c for c in columns if rank_of(role, c) is not None and c not in roles.values()]
        if role not in roles and named:
            roles[role] = min(named, key=lambda c: rank_of(role, c) or 0)
    if len(roles) == 3 and (told or len(columns) <= 4) and not any(rank_of("user_id", c) is not None for c in columns):
        return {role: roles[role] for role in ("head", "relation", "tail")}
    if len(columns) < 3 or (not told and len(columns) != 3):
        return None
    name = source.name.rpartition("/")[2].lower()
    named_so = re.search(r"(^|[^a-z])kg([^a-z]|$)|triple|knowledge|\.nt$", name) is not None
    relations = [cell.strip() for cell in cells_of(sample, columns[1]).to_pylist() if cell.strip()]
    dotted = sum(_RELATION.fullmatch(cell) is not None and not _NUMBER.fullmatch(cell) for cell in relations)
    clear = len(relations) >= 3 and dotted >= 0.9 * len(relations) and len(set(relations)) < len(relations)
    unnamed = not source.header or not any(rank_of(role, c) is not None for role in ROLES for c in columns)
    if told or (unnamed and (named_so or clear)):
        return dict(zip(("head", "relation", "tail"), columns, strict=False))
    return None


def find_links(source: Source, sample: pa.Table, said: Mapping[str, str], told: bool) -> dict[str, str] | None:
    """item_id and entity of a table that links items to a knowledge graph or a catalogue; None where it is none."""
    columns = list(source.columns)
    names = {plain(c) for c in columns}
    item = said.get("item_id") or next(iter(sorted(_ranked("item_id", columns))), (0, ""))[1]
    entity = said.get("entity") or next(iter(sorted(_ranked("entity", columns))), (0, ""))[1]
    file_name = source.name.rpartition("/")[2].lower()
    if not entity and {"imdbid", "tmdbid"} & names and len(columns) <= 3:
        entity = next(c for c in columns if plain(c) in ("imdbid", "tmdbid"))
    if (told or "link" in file_name) and len(columns) in (2, 3):
        item = item or columns[0]
        entity = entity or next(c for c in columns if c != item)
    if not item or not entity or item == entity or (len(columns) > 3 and not told):
        return None
    return {"item_id": item, "entity": entity}


def _ranked(role: str, columns: Sequence[str]) -> list[tuple[int, str]]:
    return [(rank, c) for c in columns if (rank := rank_of(role, c)) is not None]


def is_tags(columns: Sequence[str]) -> bool:
    """userId, movieId, tag, timestamp: words that people gave to items, not ratings of them."""
    names = {plain(c) for c in columns}
    return (
        bool({"tag", "tags"} & names) and len(columns) <= 4 and "rating" not in names and len(names & {"userid"}) == 1
    )


def tags_source(source: Source, item: str, tag: str) -> Source:
    """One row per item: item_id, tags (the most frequent ones, "dark, slow")."""
    note = f"tags of people become the field 'tags' of the items: up to {_MOST_TAGS} an item, most frequent first"
    return adapted(source, ("item_id", "tags"), lambda: _Tags(item, tag), notes=(note,))


class _Tags(Converter):
    """Counts tags of each item; gives its rows when the file has ended, on the line where an item came first."""

    def __init__(self, item: str, tag: str) -> None:
        self._item, self._tag = item, tag
        self._tags: dict[str, Counter[str]] = {}
        self._lines: dict[str, int] = {}

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        items, tags = (cells_of(table, column).to_pylist() for column in (self._item, self._tag))
        faults = []
        for row, (item, tag) in enumerate(zip(items, tags, strict=True)):
            item, tag = item.strip(), " ".join(tag.replace(",", " ").split())
            if not item:
                faults.append((row, "item_id is empty"))
            elif tag:
                self._tags.setdefault(item, Counter())[tag] += 1
                self._lines.setdefault(item, int(lines[row]))
        return Long(text_table({"item_id": [], "tags": []}), np.empty(0, np.int64), faults)

    def finish(self) -> tuple[pa.Table, Rows]:
        texts = [", ".join(tag for tag, _ in counts.most_common(_MOST_TAGS)) for counts in self._tags.values()]
        return text_table({"item_id": list(self._tags), "tags": texts}), np.array(list(self._lines.values()), np.int64)
