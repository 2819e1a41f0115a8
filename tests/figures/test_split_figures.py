"""The pictures of every protocol: what they show is what the split holds, and names are shown as text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless

from llmrec_core.data import PROTOCOLS, Dataset, make_split, split_picture
from llmrec_core.figures import split_figures
from llmrec_core.specs import SplitSpec


def dataset(timed: bool = True, parts: bool = False) -> Dataset:
    rows = [(f"u{u:02d}", f"i{(u + 3 * n) % 25:02d}", float(100 * n + u)) for u in range(20) for n in range(8)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    if parts:
        table["part"] = (["train"] * 6 + ["valid", "test"]) * 20
    users = pd.DataFrame({"user_id": table["user_id"].unique()}).assign(region=[HOSTILE, "south"] * 10)
    return Dataset.from_frames("d", table if timed else table.drop(columns="timestamp"), users=users)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_protocol_has_its_pictures(protocol):
    fields = {"protocol": protocol, "group_by": "user:region", "fold": 2, "known_interactions": 2}
    split = make_split(dataset(parts=protocol == "given"), SplitSpec.model_validate(fields))
    picture = split_picture(split)
    sizes = {"train": split.train, "known": split.known, "valid": split.valid, "test": split.test}
    for part, rows in sizes.items():
        assert picture.shares["rows"].get(part, 0) == len(rows)
        assert sum(picture.counts.get(part, [])) == len(rows)
    table = split.dataset.interactions
    for owner, column, n in (("users", "user_idx", 20), ("items", "item_idx", 25)):
        present = {part: set(table[column].to_numpy()[rows]) for part, rows in sizes.items() if len(rows)}
        out = n - len(set().union(*present.values()))
        assert picture.shares[owner] == {part: len(found) for part, found in present.items()} | {"out": out}
    figures = split_figures(picture)
    assert ("folds" in figures) == (protocol == "rolling-temporal")
    assert ("groups" in figures) == (protocol == "group-stratified")
    for figure in figures.values():
        assert figure.data
        assert_harmless(figure)
    assert picture.as_json()["lines"]


def test_lines_show_the_row_of_each_part():
    split = make_split(dataset(), SplitSpec(protocol="cold-user", known_interactions=2, test_fraction=0.2))
    lines = split_picture(split).lines
    assert {tuple(line.parts) for line in lines} == {
        ("train",) * 8,
        ("known", "known", *["valid"] * 6),
        ("known", "known", *["test"] * 6),
    }
    assert all(line.places == list(range(1, 9)) for line in lines)
    # Users are numbered, never named.
    assert all(line.name.startswith("user ") for line in lines)


def test_items_are_the_lines_of_cold_items():
    split = make_split(dataset(), SplitSpec(protocol="cold-item", test_fraction=0.2))
    picture = split_picture(split)
    assert picture.lines_of == "items"
    cold = set(split.dataset.item_ids[split.withheld["test"]])
    for line in picture.lines:
        assert (set(line.parts) == {"test"}) == (line.name in cold)
    assert picture.shares["items"] == {"train": 18, "valid": 2, "test": 5, "out": 0}


def test_folds_follow_each_other_and_name_the_tested_one():
    split = make_split(dataset(), SplitSpec(protocol="rolling-temporal", n_folds=3, fold=2, train_window="sliding"))
    folds = split_picture(split).folds
    assert [fold.number for fold in folds] == [1, 2, 3]
    assert [fold.chosen for fold in folds] == [False, True, False]
    for before, after in pairwise(folds):
        assert before.test[1] == after.test[0]
        assert before.train[0] < after.train[0]
    times = split.dataset.interactions["timestamp"].to_numpy()
    assert folds[1].valid == (times[split.valid].min(), times[split.test].min())
    bars = split_figures(split_picture(split))["folds"]
    assert list(bars.data[0].marker.opacity) == [0.4, 1.0, 0.4]


def test_groups_count_the_rows_of_each_part():
    split = make_split(dataset(), SplitSpec(protocol="group-stratified", n_folds=4, group_by="user:region"))
    groups = split_picture(split).groups
    assert set(groups) == {HOSTILE, "south"}
    assert {parts["test"] for parts in groups.values()} == {20}
    activity = make_split(dataset(), SplitSpec(protocol="group-stratified", n_groups=2))
    assert list(split_picture(activity).groups) == ["8 to 8 interactions"]


def test_without_times_rows_stand_in_file_order():
    picture = split_picture(make_split(dataset(timed=False), SplitSpec()))
    assert (picture.timed, picture.axis) == (False, "place")
    assert "no times" in split_figures(picture)["time"].layout.xaxis3.title.text


def test_cuts_are_marked_over_time():
    split = make_split(dataset(), SplitSpec(protocol="temporal"))
    picture = split_picture(split)
    assert [words for _, words in picture.marks] == ["validation starts", "test starts"]
    figure = split_figures(picture)["time"]
    assert len(figure.layout.shapes) == 2 * 3
    assert "dotted: validation starts 1970-01-01" in figure.layout.xaxis3.title.text


def test_long_lines_are_cut_to_their_end():
    rows = [("u", f"i{n:03d}", float(n)) for n in range(100)] + [("v", "i000", 1.0)]
    split = make_split(
        Dataset.from_frames("d", pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])), SplitSpec()
    )
    line = max(split_picture(split).lines, key=lambda one: len(one.places))
    assert (len(line.places), line.places[-1], line.parts[-1]) == (60, 100.0, "test")
    assert np.all(np.diff(line.places) == 1)
