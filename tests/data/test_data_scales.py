"""Scales of ratings: what is seen of them, what they are, and what a zero says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, import_files
from llmrec_core.data._values import ValueOptions, ask_about_marker, detect_scale, refuse_unanswered
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

HALVES = [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
TEN = list(range(1, 11))


@pytest.mark.parametrize(
    ("values", "bounds", "step", "kind"),
    [
        ([1, 2, 3, 4, 5], (1, 5), 1, "scale"),
        ([2, 3, 4, 5], (1, 5), 1, "scale"),
        ([3, 4], (1, 5), 1, "scale"),
        (HALVES, (0.5, 5), 0.5, "scale"),
        (HALVES[:-1], (0.5, 5), 0.5, "scale"),
        (TEN, (1, 10), 1, "scale"),
        ([3, 9], (1, 10), 1, "scale"),
        ([1, 2, 3, 4], (1, 4), 1, "scale"),
        ([0, 1, 2], (0, 2), 1, "scale"),
        ([-9.95, -3.2, 0.0, 9.81], (-10, 10), 0, "scale"),
        ([-2, -1, 0, 1, 2], (-2, 2), 1, "scale"),
        ([0, 1], (0, 1), 1, "binary"),
        ([-1, 0, 1], (-1, 1), 1, "thumbs"),
        ([-1, 1], (-1, 1), 1, "thumbs"),
        ([20, 70, 95], (0, 100), 1, "scale"),
        ([1, 2, 3, 4000], None, 1, "counts"),
        ([3, 3, 3], None, 0, "constant"),
        ([np.nan], None, 0, "none"),
        ([], None, 0, "none"),
    ],
)
def test_scales(values: list[float], bounds: tuple[float, float] | None, step: float, kind: str) -> None:
    found = detect_scale(values)
    assert (found.bounds, found.step, found.kind) == (bounds, step, kind)
    if bounds is not None and found.seen != bounds:
        assert f"scale={found.seen[0]:g}..{found.seen[1]:g}" in found.note


def test_counts_show_by_their_tail_or_their_name() -> None:
    assert detect_scale([1, 2, 3, 40], [1000, 200, 50, 1]).kind == "counts"
    assert detect_scale([1, 2, 3], column="play_count").kind == "counts"
    assert detect_scale([1, 2, 3], column="播放次数").kind == "counts"
    assert detect_scale([1, 2, 3], column="timesPlayed").kind == "counts"
    for column in ("review_score", "display_rating", "weighted_rating", "discount", "account", "overview", "reviews"):
        assert detect_scale([1, 2, 3], column=column).kind == "scale"
    assert detect_scale([10, 20, 80, 90], [3, 5, 40, 9]).bounds == (0, 100)
    said = detect_scale([1, 2, 700], options=ValueOptions(scale=(0, 1000)))
    assert (said.kind, said.bounds) == ("scale", (0, 1000))


def test_what_somebody_says_holds() -> None:
    assert detect_scale([2, 3], options=ValueOptions(scale=(1, 4))).bounds == (1, 4)
    wider = detect_scale([2, 9], options=ValueOptions(scale=(1, 5)))
    assert wider.bounds == (1, 9)
    assert "outside" in wider.note
    assert detect_scale([3, 4], out_of=5).bounds == (1, 5)
    assert detect_scale([3, 4], out_of=7).bounds == (1, 7)
    assert detect_scale([80, 7], out_of=100).bounds == (0, 100)
    assert detect_scale([0, 4], [1, 1], out_of=5, options=ValueOptions(zero="rating")).bounds == (0, 5)


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0, 1, 2, 3, 4, 5], [10, 60, 70, 80, 90, 100]),
        ([0, 3, 5], [1, 5, 5]),
        ([0, *HALVES], [900, *[100] * 10]),
        ([0, *TEN], [7000, *[300] * 10]),
        ([0, *TEN], None),
        ([0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]),
        # A mark for "not rated" may be as rare as any step.
        ([0, 1, 2, 3, 4, 5], [50, 60, 70, 80, 90, 100]),
        ([0, *TEN], [50, *[100] * 10]),
        # A heap of zeros beside percentages, and beside ratings with decimals.
        ([0, *range(1, 100)], [900, *[10] * 99]),
        ([0, *np.linspace(1.03, 9.71, 50)], [30, *[1] * 50]),
    ],
)
def test_zero_beside_stars_is_asked_about(values: list[float], counts: list[float] | None) -> None:
    found = detect_scale(values, counts, column="stars")
    assert found.question is not None
    assert found.question.options == ("unrated", "rating")
    with pytest.raises(DataError, match=r"stars.*--map zero=unrated or --map zero=rating"):
        refuse_unanswered([found.question], "ratings.csv")
    unrated = detect_scale(values, counts, options=ValueOptions(zero="unrated"))
    assert unrated.question is None
    assert unrated.low > 0
    rating = detect_scale(values, counts, options=ValueOptions(zero="rating"))
    assert rating.question is None
    assert rating.low == 0


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0, 1, 2], [9, 5, 3]),
        ([0, 1], [90, 10]),
        ([-10, 0, 10], [5, 5, 5]),
        ([1, 2, 3, 4, 5], None),
        ([0.0, 0.31, 0.77], None),
        (list(range(101)), [10] * 101),
        ([0, *np.linspace(0.03, 9.71, 50)], None),
    ],
)
def test_a_zero_that_can_only_be_a_rating_is_not_asked_about(values: list[float], counts: list[float] | None) -> None:
    found = detect_scale(values, counts)
    assert found.question is None
    assert found.low == min(values)
    assert ("zero=unrated" in found.note) == (min(values) == 0 and max(values) > 2)


@pytest.mark.parametrize("column", ["score_0_10", "Rating (0-5)", "nps", "Net Promoter Score", "note 0 bis 10"])
def test_a_column_that_names_its_scale_is_not_asked_about(column: str) -> None:
    found = detect_scale([0, 3, 5, 9], column=column)
    assert found.question is None
    assert "zero=unrated" in found.note


@pytest.mark.parametrize("column", ["score", "rating10_5", "2020-10 rating", "caps"])
def test_numbers_in_a_name_are_no_scale(column: str) -> None:
    assert detect_scale([0, 3, 5, 9], column=column).question is not None


def test_a_scale_that_was_told_says_whether_it_holds_zero() -> None:
    assert detect_scale([0, 3, 5], options=ValueOptions(scale=(0, 5))).question is None
    assert detect_scale([0, 3, 5], options=ValueOptions(scale=(1, 5))).question is not None


@pytest.mark.parametrize(
    ("values", "counts", "marker"),
    [
        ([-1, *TEN], None, "-1"),
        ([-1, 0, 1, 2, 3], [1, 9, 9, 9, 9], "-1"),
        ([1, 2, 3, 4, 5, 99], [500, 400, 300, 200, 100, 1], "99"),
        ([-99, -9.5, 0, 9.5], None, "-99"),
        ([-9.5, 0, 9.5, 99], None, "99"),
        ([10, 50, 90, 999], None, "999"),
        ([1, 2, 3, 4, 5, 9], [20] * 6, "9"),
        ([1, 2, 3, 4, 5, 55], [10, 20, 30, 40, 50, 1], "55"),
    ],
)
def test_a_number_far_from_the_others_is_asked_about(
    values: list[float], counts: list[float] | None, marker: str
) -> None:
    question = ask_about_marker(values, counts, "stars", "a=b.csv")
    assert question is not None
    assert (question.id, question.options, question.default) == ("missing:a?b.csv", (marker, "none"), None)
    assert f"holds {marker} in" in question.text
    assert ask_about_marker(values, counts, "plays", "a=b.csv") is None


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([1, 2, 3, 4, 5], None),
        (TEN, None),
        ([-1, 0, 1], None),
        ([-1, 1], None),
        ([-1, 0, 1, 2], None),
        ([-10, -1, 0, 10], None),
        ([1, 2, 3, 4, 5, 9], None),
        ([1, 2, 3, 4, 5, 6, 7, 9], [20] * 8),
        ([70, 80, 90, 99], None),
        ([1, 2, 3, 40], [1000, 200, 50, 1]),
        ([3, 99], None),
        ([], None),
    ],
)
def test_ends_of_scales_and_counts_are_not_asked_about(values: list[float], counts: list[float] | None) -> None:
    assert ask_about_marker(values, counts, "stars", "r.csv") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-10, -1, 0, 0.5, 1, 2, 3, 4.5, 5, 7, 10, 55, 100, 3.3, float("nan")]), max_size=30))
def test_a_scale_holds_what_was_seen_however_it_is_told(values: list[float]) -> None:
    found = detect_scale(values)
    known = [v for v in values if v == v]
    distinct = sorted(set(known))
    assert detect_scale(distinct, [known.count(v) for v in distinct]) == found
    assert detect_scale(list(reversed(values))) == found
    if found.bounds is not None:
        assert found.low < found.high
        assert found.low <= min(known)
        assert found.high >= max(known)


@pytest.mark.parametrize(
    ("cells", "said", "scale", "threshold", "kind", "step"),
    [
        ("0 1 2", (), (0, 2), 1, "scale", 1),
        ("0.5 3 4.5 5", (), (0.5, 5), 2.75, "scale", 0.5),
        ("2 3 5", (), (1, 5), 3, "scale", 1),
        ("4/5 2/5", (), (1, 5), 3, "scale", 1),
        ("0 3 10", ("zero=rating",), (0, 10), 5, "scale", 1),
        ("0 3 10", ("zero=unrated",), (1, 10), 5.5, "scale", 1),
        ("-9.5 -1 9.75", (), (-10, 10), 0, "scale", 0.25),
        ("2 3 5", ("scale=1..7",), (1, 7), 4, "scale", 1),
        ("0 1", (), (0, 1), 0.5, "binary", 1),
        ("like dislike", (), (0, 1), 0.5, "binary", 1),
        ("-1 1", (), (-1, 1), 0, "thumbs", 1),
        ("80% 95%", (), (0, 100), 50, "scale", 1),
        ("1 7 2500", (), None, None, "counts", 1),
        ("5 5", (), None, None, "constant", 0),
    ],
)
def test_an_import_keeps_the_scale(
    tmp_path: Path,
    cells: str,
    said: tuple[str, ...],
    scale: tuple[float, float] | None,
    threshold: float | None,
    kind: str,
    step: float,
) -> None:
    workspace, path = Workspace.open(tmp_path / "ws"), tmp_path / "d.csv"
    path.write_text("user_id,item_id,rating\n" + "".join(f"u{i},i{i},{c}\n" for i, c in enumerate(cells.split())))
    import_files(workspace, [path], "d", said)
    dataset = DatasetStore(workspace).load("d")
    assert (dataset.rating_scale, dataset.like_threshold) == (scale, threshold)
    assert (dataset.meta.rating_kind, dataset.meta.rating_step) == (kind, step)
    if said == ("zero=unrated",):
        assert np.isnan(dataset.interactions["rating"][0])
