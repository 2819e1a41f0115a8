"""The sample data is what its generator makes; the portrait's numbers are right; exports are no formulas."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.data import (
    Dataset,
    DatasetStore,
    import_sample,
    portrait,
    safe_csv,
    sample_folder,
)  # fmt: skip
from llmrec_core.data.portrait import gini
from llmrec_core.errors import NotFoundError
from llmrec_core.workspace import Workspace


def test_the_committed_sample_is_what_its_generator_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("sample_generator", sample_folder() / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    for name in ("items.csv", "users.csv", "interactions.csv"):
        assert (tmp_path / name).read_bytes() == (sample_folder() / name).read_bytes(), name


def test_the_sample_has_what_it_promises(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    report = import_sample(workspace)
    assert (report.rows_accepted, report.rows_rejected, report.n_users, report.n_items) == (12_000, 0, 300, 400)
    assert report.warnings == []
    dataset = DatasetStore(workspace).load("sample")
    assert dataset.rating_scale == (1.0, 5.0)
    assert dataset.category_fields == ("category",)
    assert len(np.setdiff1d(np.arange(400), dataset.interactions["item_idx"])) == 25
    assert dataset.items["title"].is_unique
    assert dataset.profile("u001").keys() == {"age_group", "city", "occupation", "favourite_mood"}
    # Taste shows in the text: films of the profile's favourite mood and loved genres are liked more.
    table = dataset.interactions.merge(dataset.users, on="user_id").merge(dataset.items, on="item_id")
    genre = table["category"].str.split(",").str[0]
    liked = table.assign(genre=genre, liked=table["rating"] > 3).groupby(["user_id", "genre"])["liked"].mean()
    assert liked.groupby("user_id").agg(lambda v: v.max() - v.min()).mean() > 0.5


def test_without_its_checkout_the_sample_is_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data.public.__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(NotFoundError, match="sample data is not here"):
        import_sample(Workspace.open(tmp_path / "ws"))


@pytest.fixture
def small() -> Dataset:
    day = 86_400.0
    rows = [
        ("u", "a", 5.0, 0.0),
        ("u", "b", 3.0, 40 * day),
        ("u", "a", 4.0, 40 * day),
        ("v", "a", 5.0, 100 * day),
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A!", "", "C!"], "year": ["1", "", ""]})
    return Dataset.from_frames("d", table, items)


def test_portrait_by_hand(small: Dataset) -> None:
    found = portrait(small)
    assert (found.n_interactions, found.n_users, found.n_items, found.n_repeats) == (4, 2, 3, 1)
    assert found.density == pytest.approx(3 / 6)
    assert found.gini == pytest.approx(2 * (2 * 1 + 3 * 3) / (3 * 4) - 4 / 3)
    assert found.tail == [(0.0, 0.0), (pytest.approx(1 / 3), 0.75), (pytest.approx(2 / 3), 1.0), (1.0, 1.0)]
    assert found.top_items[0] == ("a", "A!", 3)
    assert (found.months.labels, found.months.counts) == (["1970-01", "1970-02", "1970-03", "1970-04"], [1, 2, 0, 1])
    assert (found.ratings.labels, found.ratings.counts) == (["3", "4", "5"], [1, 1, 2])
    assert found.mean_rating == 4.25
    assert (found.history_lengths.labels, found.history_lengths.counts) == (["1", "2", "3-4"], [1, 0, 1])
    assert found.history_quantiles["0.5"] == 2.0
    title, year = found.item_coverage
    assert (title.field, title.share, title.n_distinct, title.mean_chars) == ("title", pytest.approx(2 / 3), 2, 2.0)
    assert (year.field, year.share) == ("year", pytest.approx(1 / 3))
    assert (found.n_cold_items, found.cold_items) == (1, [("c", "C!")])
    json.dumps(found.as_json(), allow_nan=False)


def test_portrait_without_ratings_and_times() -> None:
    found = portrait(Dataset.from_frames("d", pd.DataFrame({"user_id": ["u"], "item_id": ["a"]})))
    assert found.ratings.counts == found.months.counts == []
    assert found.mean_rating is None
    assert found.first_time is None
    json.dumps(found.as_json(), allow_nan=False)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_equals_its_definition(counts: list[int]) -> None:
    """Mean absolute difference over twice the mean."""
    values = np.array(counts, float)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean()) if values.sum() else 0.0
    assert gini(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "@x", "-2+3", "\t=1", "\r=1", " =1", "-cmd|' /C calc'!A0", "＝1+1"])
def test_formulas_are_neutralised(cell: str) -> None:
    rows = list(csv.reader(io.StringIO(safe_csv(pd.DataFrame({cell: [cell]})), newline="")))
    assert rows == [["'" + cell.replace("\r", "\n")]] * 2


def test_numbers_and_words_stay_as_they_are() -> None:
    frame = pd.DataFrame({"a": ["-3.5", "+7", "-1e-5", "plain", "007", "a=b"], "b": [-1.5, 2.0, 0.0, -7.0, 1.0, 3.0]})
    read = pd.read_csv(io.StringIO(safe_csv(frame)), dtype={"a": str})
    assert read["a"].tolist() == frame["a"].tolist()
    assert read["b"].tolist() == frame["b"].tolist()
