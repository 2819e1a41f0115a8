"""A small dataset and queries for the tests of prompts."""

from __future__ import annotations

import pandas as pd

from llmrec_core.contracts import HistoryItem, Query
from llmrec_core.data import Dataset

DAY = 86_400.0

ITEMS = [
    # id, title, category, maker, blurb
    ("a", "Lantern Bay", "Drama, Sea", "Ode Films", "A keeper counts ships that never land."),
    ("b", "Tin Parade", "Comedy", "", "Toys strike for longer nights."),
    ("c", "The Ninth Orchard", "Mystery", "Ode Films", "Nine trees, eight owners."),
    ("d", "", "Drama", "", ""),
    ("e", "雨夜列车", "悬疑, 剧情", "北辰", "一列没有终点的火车。"),
    ("f", "纸月亮", "爱情", "", ""),
    ("g", "Brass & Thunder", "Action", "Kite", "Two bands, one stage."),
    ("h", "Slow Comet", "", "", ""),
]


def small_dataset() -> Dataset:
    """Eight items, four users, ratings 1 to 5 (liked above 3), one interaction a day."""
    rows = [
        ("u1", "a", 5.0, 1 * DAY),
        ("u1", "b", 2.0, 2 * DAY),
        ("u1", "g", 4.0, 3 * DAY),
        ("u2", "e", 4.5, 4 * DAY),
        ("u2", "f", 1.0, 5 * DAY),
        ("u3", "c", 3.0, 6 * DAY),
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame(ITEMS, columns=["item_id", "title", "category", "maker", "blurb"])
    users = pd.DataFrame(
        [("u1", "34", "keeper"), ("u2", "27", "教师"), ("u3", "", ""), ("u4", "61", "")],
        columns=["user_id", "age", "job"],
    )
    return Dataset.from_frames("small", interactions, items, users)


def query_of(dataset: Dataset, user_id: str, **changes: object) -> Query:
    """The query of a user with all of their interactions as history."""
    rows = dataset.interactions[dataset.interactions["user_id"] == user_id]
    history = tuple(
        HistoryItem(item, rating, time)
        for item, rating, time in zip(rows["item_id"], rows["rating"], rows["timestamp"], strict=True)
    )
    values = {"history": history, "profile": dataset.profile(user_id), **changes}
    return Query(user_id, **values)  # type: ignore[arg-type]
