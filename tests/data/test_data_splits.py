"""Splits: tables worked out by hand, and the laws that hold for any data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.contracts import HistoryItem
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import DataError, InputError
from llmrec_core.specs import SplitSpec


def frame(rows: list[tuple[str, str, float, float]]) -> Dataset:
    return Dataset.from_frames("d", pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]))


# fmt: off
HAND = frame([
    ("u", "a", 1, 30),   # 0
    ("u", "b", 2, 10),   # 1
    ("v", "a", 3, 5),    # 2
    ("u", "z", 4, 40),   # 3
    ("u", "c", 5, 40),   # 4  the same time as row 3
    ("v", "b", 1, 6),    # 5
    ("w", "a", 2, 1),    # 6
    ("w", "b", 3, 2),    # 7
    ("w", "c", 4, 3),    # 8
])
# fmt: on


def ids(history: tuple[HistoryItem, ...]) -> list[str]:
    return [item.item_id for item in history]


def test_leave_one_out_by_hand() -> None:
    split = make_split(HAND, SplitSpec())
    assert split.train.tolist() == [1, 0, 2, 5, 6]
    assert split.valid.tolist() == [3, 7]
    assert split.test.tolist() == [4, 8]
    assert ids(split.history_before(4)) == ["b", "a", "z"]
    assert ids(split.history_before(3)) == ["b", "a"]
    assert ids(split.history_before(0)) == ["b"]
    assert ids(split.history_before(1)) == []
    assert ids(split.history_before(4, limit=2)) == ["a", "z"]
    assert ids(split.history_before(4, limit=0)) == []
    assert split.history_before(0)[0] == HistoryItem("b", 2.0, 10.0)
    assert split.train_item_counts.tolist() == [3, 2, 0, 0]


def test_ties_by_item_id() -> None:
    split = make_split(HAND, SplitSpec(tie_order="item_id"))
    assert split.valid.tolist() == [4, 7]
    assert split.test.tolist() == [3, 8]
    assert "by item id" in split.describe()
    assert "in file order" in make_split(HAND, SplitSpec()).describe()


def test_queries_by_hand() -> None:
    split = make_split(HAND, SplitSpec())
    found = split.queries("test")
    assert found.users.tolist() == [0, 2]
    assert [query.user_id for query in found.queries] == ["u", "w"]
    assert [ids(query.history) for query in found.queries] == [["b", "a", "z"], ["a", "b"]]
    assert [items.tolist() for items in found.targets] == [[2], [2]]
    assert [items.tolist() for items in found.exclude] == [[0, 1, 3], [0, 1]]
    assert [ids(query.history) for query in split.queries("valid").queries] == [["b", "a"], ["a"]]
    assert [items.tolist() for items in split.queries("valid").exclude] == [[0, 1], [0]]


def test_query_for_any_user() -> None:
    split = make_split(HAND, SplitSpec())
    assert ids(split.query("u").history) == ["b", "a", "z"]
    assert ids(split.query("u", "valid").history) == ["b", "a"]
    assert ids(split.query("u", "train").history) == []
    assert ids(split.query("v").history) == ["a", "b"]
    stranger = split.query("nobody")
    assert (stranger.user_id, stranger.history, dict(stranger.profile)) == ("nobody", (), {})


def test_a_held_out_repeat_is_no_target() -> None:
    rows = [("u", "a", 1, 1), ("u", "b", 1, 2), ("u", "a", 1, 3), ("w", "a", 1, 1), ("w", "b", 1, 2), ("w", "c", 1, 3)]
    found = make_split(frame([(u, i, float(r), float(t)) for u, i, r, t in rows]), SplitSpec()).queries("test")
    assert [query.user_id for query in found.queries] == ["w"]
    assert found.n_repeats == 1


def test_labelled_rows() -> None:
    held = make_split(HAND, SplitSpec()).labelled("test")
    assert held.row.tolist() == [4, 8]
    assert held.item_idx.tolist() == [2, 2]
    assert held.user_idx.tolist() == [0, 2]
    assert held.rating.tolist() == [5.0, 4.0]
    assert held.rating.dtype == np.float32
    assert len(held) == 2


def test_temporal_never_parts_equal_times() -> None:
    rows = [("u", f"i{n}", 1.0, float(t)) for n, t in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 8, 8])]
    split = make_split(frame(rows), SplitSpec(protocol="temporal", test_fraction=0.1, valid_fraction=0.2))
    assert split.test.tolist() == [7, 8, 9]
    # Three rows share the last time, so all three are held out; validation takes its two from before them.
    assert split.valid.tolist() == [5, 6]
    with pytest.raises(DataError, match="0 rows to train on"):
        make_split(frame([("u", f"i{n}", 1.0, 5.0) for n in range(9)]), split.spec)


def test_temporal_by_hand() -> None:
    rows = [("u", f"i{n}", 1.0, float(n)) for n in range(5)] + [("v", f"i{n}", 1.0, float(n)) for n in range(5, 10)]
    split = make_split(frame(rows), SplitSpec(protocol="temporal", test_fraction=0.2, valid_fraction=0.3))
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.valid.tolist() == [5, 6, 7]
    assert split.test.tolist() == [8, 9]
    assert split.cut_times == (5.0, 8.0)
    assert ids(split.history_before(9)) == ["i5", "i6", "i7"]
    assert ids(split.history_before(6)) == []
    assert "1970-01-01 00:00:08 UTC" in split.describe()
    found = split.queries("test")
    assert [items.tolist() for items in found.targets] == [[8, 9]]


def test_random_history_is_earlier_in_time_and_in_earlier_parts() -> None:
    rows = [("u", f"i{n:02d}", 1.0, float(n)) for n in range(40)]
    split = make_split(frame(rows), SplitSpec(protocol="random", test_fraction=0.2, valid_fraction=0.2, seed=3))
    assert (len(split.train), len(split.valid), len(split.test)) == (24, 8, 8)
    for row in split.test.tolist():
        known = [r for r in sorted([*split.train.tolist(), *split.valid.tolist()]) if r < row]
        assert ids(split.history_before(row)) == [f"i{r:02d}" for r in known]
    assert make_split(split.dataset, split.spec).test.tolist() == split.test.tolist()
    other = make_split(split.dataset, split.spec.model_copy(update={"seed": 4}))
    assert other.test.tolist() != split.test.tolist()


def test_k_core_is_iterated_and_bounds_the_catalogue() -> None:
    rows = [(u, i, 1.0, float(n)) for n, (u, i) in enumerate((u, i) for u in "pqr" for i in "abc")]
    # Item d has two users, but s falls with it: s has one other item, so d is left with one.
    rows += [("s", "d", 1.0, 20.0), ("s", "a", 1.0, 21.0), ("p", "d", 1.0, 22.0)]
    dataset = frame(rows)
    split = make_split(dataset, SplitSpec(min_user_interactions=3, min_item_interactions=2))
    assert split.catalogue.tolist() == [0, 1, 2]
    assert len(split.train) + len(split.valid) + len(split.test) == 9
    assert all(3 in items for items in split.queries("test").exclude)
    with pytest.raises(InputError, match="no part"):
        split.history_before(9)
    assert ids(split.query("s").history) == []
    assert "at least 3" in split.describe()


def test_without_filters_items_without_history_are_ranked() -> None:
    dataset = Dataset.from_frames("d", HAND.interactions, pd.DataFrame({"item_id": ["new"]}))
    assert dataset.item_idx("new") in make_split(dataset, SplitSpec()).catalogue


def test_max_users_is_drawn_by_seed() -> None:
    rows = [(f"u{n:02d}", i, 1.0, float(t)) for n in range(30) for t, i in enumerate("abc")]
    split = make_split(frame(rows), SplitSpec())
    first = split.queries("test", max_users=5, seed=1)
    assert len(first) == 5
    assert first.users.tolist() == sorted(first.users.tolist())
    assert split.queries("test", max_users=5, seed=1).users.tolist() == first.users.tolist()
    assert split.queries("test", max_users=5, seed=2).users.tolist() != first.users.tolist()
    assert len(split.queries("test", max_users=99)) == 30


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SplitSpec(min_user_interactions=50), "no interaction is left"),
        (SplitSpec(min_user_interactions=4, min_item_interactions=1, protocol="leave-one-out"), None),
        (SplitSpec(protocol="temporal"), "needs timestamps"),
    ],
)
def test_impossible_splits_say_so(spec: SplitSpec, words: str | None) -> None:
    dataset = (
        HAND if spec.protocol != "temporal" else Dataset.from_frames("d", HAND.interactions[["user_id", "item_id"]])
    )
    if words is None:
        assert len(make_split(dataset, spec).test) == 1
        return
    with pytest.raises(DataError, match=words):
        make_split(dataset, spec)
    with pytest.raises(DataError, match="0 to test"):
        make_split(frame([("u", "a", 1.0, 1.0), ("v", "a", 1.0, 2.0)]), SplitSpec())


def test_without_times_the_file_order_counts() -> None:
    split = make_split(
        Dataset.from_frames("d", HAND.interactions[["user_id", "item_id"]]), SplitSpec(tie_order="item_id")
    )
    assert ids(split.query("u").history) == ["a", "b", "z"]
    assert split.history_before(1)[0] == HistoryItem("a", None, None)
    assert "file order stands for time" in split.describe()


def test_training_rows_have_no_queries_and_parts_have_names() -> None:
    split = make_split(HAND, SplitSpec())
    with pytest.raises(InputError):
        split.queries("train")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        split.rows("dev")  # type: ignore[arg-type]


@st.composite
def splits(draw: st.DrawFn) -> Split:
    n_rows = draw(st.integers(6, 40))
    column = st.lists(st.integers(0, 5), min_size=n_rows, max_size=n_rows)
    users, items, times = draw(column), draw(column), draw(column)
    rows = [(f"u{u}", f"i{i}", 1.0, float(t)) for u, i, t in zip(users, items, times, strict=True)]
    spec = SplitSpec(
        protocol=draw(st.sampled_from(["leave-one-out", "temporal", "random"])),
        tie_order=draw(st.sampled_from(["file", "item_id"])),
        min_user_interactions=draw(st.integers(0, 3)),
        min_item_interactions=draw(st.integers(0, 3)),
        valid_fraction=0.2,
        test_fraction=0.2,
        seed=draw(st.integers(0, 5)),
    )
    try:
        return make_split(frame(rows), spec)
    except DataError:
        return make_split(HAND, SplitSpec())


@settings(max_examples=120, deadline=None)
@given(split=splits())
def test_laws_of_every_split(split: Split) -> None:
    """Parts are disjoint; no history holds its own row, a later one, or one of the same or a later part."""
    table = split.dataset.interactions
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    every = np.concatenate(list(parts.values()))
    assert len(np.unique(every)) == len(every)
    tie = table["item_idx"] if split.spec.tie_order == "item_id" else pd.Series(0, index=table.index)
    key = list(zip(table["timestamp"], tie, range(len(table)), strict=True))
    earlier = {"train": ["train"], "valid": ["train"], "test": ["train", "valid"]}
    for part, rows in parts.items():
        for row in rows.tolist():
            allowed = [
                r
                for p in earlier[part]
                for r in parts[p].tolist()
                if table["user_id"].iloc[r] == table["user_id"].iloc[row] and key[r] < key[row]
            ]
            expected = [table["item_id"].iloc[r] for r in sorted(allowed, key=lambda r: key[r])]
            assert ids(split.history_before(row)) == expected
    for part in ("valid", "test"):
        found = split.queries(part)  # type: ignore[arg-type]
        held = table.iloc[parts[part]]
        known = table.iloc[np.concatenate([parts[p] for p in earlier[part]])]
        for user, query, targets, exclude in zip(found.users, found.queries, found.targets, found.exclude, strict=True):
            mine, before = held[held["user_idx"] == user], known[known["user_idx"] == user]
            assert len(targets) > 0
            assert set(targets.tolist()) == set(mine["item_idx"]) - set(before["item_idx"])
            assert set(before["item_idx"]) <= set(exclude.tolist())
            assert not set(exclude.tolist()) & set(targets.tolist())
            assert set(targets.tolist()) <= set(split.catalogue.tolist())
            first = min(mine.index, key=lambda r: key[r])
            assert query.history == split.history_before(int(first))
            assert query == split.query(query.user_id, part)  # type: ignore[arg-type]
        if split.spec.protocol == "leave-one-out":
            assert all(len(targets) == 1 for targets in found.targets)
    if split.spec.protocol == "temporal":
        times = table["timestamp"].to_numpy()
        assert times[split.train].max() < times[split.valid].min()
        assert times[split.valid].max() < times[split.test].min()
