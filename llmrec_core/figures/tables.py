"""Rankings as tables: plain DataFrames that a page shows, sorts and downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from llmrec_core.figures.theme import plain


def ranking_table(items: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One model's list: rank, title, score, popularity, notes, item_id.

    Args:
        items: as ``recommend`` gives them: ``rank, item_id, title, score`` and, where known, ``popularity``
            (training interactions), ``cold`` (none of them) and ``hit`` (held out for the test).

    Titles are cleaned of control characters, not escaped: tables show text as text.
    """
    rows = [
        {
            "rank": int(item["rank"]),
            "title": plain(item.get("title") or item["item_id"]),
            "score": float(item["score"]),
            "popularity": item.get("popularity"),
            "notes": _notes(item),
            "item_id": str(item["item_id"]),
        }
        for item in items
    ]
    table = pd.DataFrame(rows, columns=["rank", "title", "score", "popularity", "notes", "item_id"])
    return table.astype({"rank": "int64", "score": "float64", "popularity": "Int64"})


def side_by_side(rankings: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Several models' lists beside each other: one row a rank, one column of titles a model; shorter lists end early.

    A held-out item is marked with a star in front.
    """
    columns = {
        plain(name): {
            int(item["rank"]): ("★ " if item.get("hit") else "") + plain(item.get("title") or item["item_id"])
            for item in items
        }
        for name, items in rankings.items()
    }
    ranks = sorted({rank for column in columns.values() for rank in column})
    table = pd.DataFrame({"rank": pd.Series(ranks, dtype="int64")})
    for name, column in columns.items():
        table[name] = [column.get(rank, "") for rank in ranks]
    return table


def _notes(item: Mapping[str, Any]) -> str:
    notes = []
    if item.get("hit"):
        notes.append("★ held out")
    if item.get("cold"):
        notes.append("no training data")
    return ", ".join(notes)
