"""The portrait and the drift by hand, against plain counting, from files as from frames, and kept beside a version."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import Dataset, DatasetStore, Split, drift, import_sample, make_split, portrait, stored_portrait
from llmrec_core.data import _portrait_numbers as numbers
from llmrec_core.data.drift import divergence, stability
from llmrec_core.errors import DataError
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace

#: Monday, 1 January 2024, 00:00 UTC.
MONDAY = 1704067200.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def dataset(rows: list[tuple[str, str, float | None, float | None]], items: pd.DataFrame | None = None) -> Dataset:
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    for column in ("rating", "timestamp"):
        table[column] = pd.to_numeric(table[column])
    return Dataset.from_frames("d", table, items)


def test_sessions_gaps_and_hours_by_hand() -> None:
    found = portrait(
        dataset(
            [
                ("u", "a", 5, MONDAY), ("u", "b", 4, MONDAY + 30 * MINUTE), ("u", "c", 3, MONDAY + 61 * MINUTE),
                ("v", "a", 5, MONDAY + 10 * HOUR + 30), ("v", "a", 4, MONDAY + 9 * DAY + 0.25), ("w", "a", 1, MONDAY),
            ]
        )
    )  # fmt: skip
    assert found.clock == "moments"
    assert found.sessions is not None
    # u: two in the first half hour, then one a minute too late; v: one each; w: one.
    assert found.sessions.n_sessions == 5
    assert found.sessions.mean_events == pytest.approx(6 / 5)
    assert found.sessions.mean_minutes == pytest.approx(30 / 5)
    assert found.sessions.single_share == pytest.approx(4 / 5)
    assert (found.sessions.lengths.labels, found.sessions.lengths.counts) == (["1", "2"], [4, 1])
    assert dict(zip(found.gaps.labels, found.gaps.counts, strict=True)) == {
        "under 1 min": 0, "1-30 min": 0, "30 min-1 day": 2, "1-7 days": 0, "7-30 days": 1, "over 30 days": 0,
    }  # fmt: skip
    week = np.array(found.week_hours)
    assert week.shape == (7, 24)
    assert {(day, hour): week[day, hour] for day, hour in np.argwhere(week)} == {
        (0, 0): 3, (0, 1): 1, (0, 10): 1, (2, 0): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("times", "clock", "said"),
    [
        ([None, None], "none", ""),
        ([1.0, 2.0], "order", "an order without a calendar"),
        ([MONDAY, MONDAY + DAY], "days", "days without a time of day"),
    ],
)
def test_sessions_are_told_only_where_times_have_hours(times: list[float | None], clock: str, said: str) -> None:
    found = portrait(dataset([("u", "a", 1, times[0]), ("u", "b", 2, times[1])]))
    assert found.clock == clock
    assert found.sessions is None
    assert found.week_hours == []
    assert said in " ".join(found.readings)
    assert bool(found.gaps.counts) == (clock == "days")
    # A day without its hour says nothing of minutes.
    assert clock != "days" or dict(zip(found.gaps.labels, found.gaps.counts, strict=True)) == {
        "same day": 0, "1-7 days": 1, "7-30 days": 0, "over 30 days": 0,
    }  # fmt: skip
    assert bool(found.months.counts) == (clock != "none")


def test_cold_few_repeats_and_co_visits_by_hand() -> None:
    rows = [("u", item, 5.0, MONDAY) for item in "abc"] + [("v", "a", 4.0, MONDAY)] * 2
    rows += [("v", "d", 4.0, MONDAY), ("v", "a", 4.0, MONDAY + 1), ("w", "a", 1.0, MONDAY), ("w", "a", 2.0, MONDAY)]
    items = pd.DataFrame({"item_id": list("abcde"), "title": list("ABCDE")})
    found = portrait(dataset(rows, items))
    assert (found.n_cold_items, found.cold_items) == (1, [("e", "E")])
    assert found.n_few_items == 3
    assert (found.n_cold_users, found.n_few_users) == (0, 3)
    # v has a three times and w twice; one of v's repeats every cell.
    assert (found.n_repeats, found.n_exact_repeats) == (3, 1)
    assert found.co_visits is not None
    # Together: ab, ac, bc by u and ad by v, of the six pairs of a, b, c and d.
    assert found.co_visits.density == found.co_visits.low == found.co_visits.high == pytest.approx(4 / 6)
    assert (found.co_visits.n_items, found.co_visits.n_sampled) == (4, 0)
    assert found.n_half_items == 1
    assert "Half of all interactions go to 20 % of the items (1)." in found.readings
    assert (
        "1 item has no interaction and 3 items have fewer than 5: hardly anything but their text is known of them."
        in found.readings
    )
    assert "67 % of all pairs of items share at least one user." in found.readings


def test_text_lengths_by_hand() -> None:
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"], "title": ["Alien: Part 2", "电影 abc", "", "d"],
            "plot": ["It's dark.", "", "", "x_y"],
        }
    )  # fmt: skip
    plays = [("u", item, 1.0, MONDAY) for item in "abcd"]
    found = portrait(dataset(plays, items))
    # Alien : Part 2 | It ' s dark . ; 电 影 abc ; nothing ; an id for a title, then x _ y
    title, plot = found.item_coverage
    assert (title.share, title.mean_tokens, plot.share, plot.mean_tokens) == (0.5, 3.5, 0.5, 4.0)
    text = found.item_text
    assert text is not None
    assert not text.exact
    assert (text.n_without_text, text.mean) == (1, pytest.approx((9 + 3 + 3) / 3))
    assert text.quantiles["1"] == 9
    assert dict(zip(text.histogram.labels, text.histogram.counts, strict=True)) == {
        "1": 0, "2": 0, "3-4": 2, "5-8": 0, "9-16": 1,
    }  # fmt: skip
    asked: list[str] = []

    def count(texts: object) -> list[int]:
        asked.extend(texts)  # type: ignore[call-overload]
        return [7 for _ in texts]  # type: ignore[attr-defined]

    counted = portrait(dataset(plays, items), count).item_text
    assert counted is not None
    assert counted.exact
    assert (counted.mean, counted.n_without_text) == (7.0, 1)
    assert asked == ["Alien: Part 2 It's dark.", "电影 abc", "", "x_y"]


def test_without_text_the_portrait_says_so() -> None:
    found = portrait(Dataset.from_frames("d", pd.DataFrame({"user_id": ["u"], "item_id": ["a"]})))
    assert found.item_text is None
    assert found.co_visits is None
    assert any("No item has any text" in reading for reading in found.readings)


#: Few users, items, ratings and seconds, so that everything repeats.
ROWS = st.lists(
    st.tuples(
        st.sampled_from("uvwx"), st.sampled_from("abcdef"), st.sampled_from([None, 1.0, 2.5]),
        st.integers(0, 3 * 3600).map(lambda t: MONDAY + t / 2),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_the_portrait_is_what_plain_counting_gives(rows: list[tuple[str, str, float | None, float]]) -> None:
    found = portrait(dataset(rows))
    per_user: dict[str, list[float]] = defaultdict(list)
    having: dict[str, set[str]] = defaultdict(set)
    for user, item, _, time in rows:
        per_user[user].append(time)
        having[item].add(user)
    lengths, waits = [], []
    for times in per_user.values():
        times.sort()
        length = 1
        for before, after in itertools.pairwise(times):
            waits.append(after - before)
            if after - before > 1800:
                lengths.append(length)
                length = 0
            length += 1
        lengths.append(length)
    assert len({(u, i) for u, i, _, _ in rows}) == len(rows) - found.n_repeats
    assert len(set(rows)) == len(rows) - found.n_exact_repeats
    if found.sessions is not None:
        assert found.sessions.n_sessions == len(lengths)
        assert found.sessions.single_share == pytest.approx(lengths.count(1) / len(lengths))
        assert found.sessions.mean_minutes == pytest.approx(sum(w for w in waits if w <= 1800) / 60 / len(lengths))
    assert sum(found.gaps.counts) == len(waits)
    together = sum(bool(having[a] & having[b]) for a, b in itertools.combinations(having, 2))
    if len(having) > 1:
        assert found.co_visits is not None
        assert found.co_visits.density == pytest.approx(2 * together / (len(having) * (len(having) - 1)))
    assert found.n_few_items == sum(n < 5 for n in Counter(row[1] for row in rows).values())
    known = [row[2] for row in rows if row[2] is not None]
    assert found.mean_rating == (pytest.approx(np.mean(known)) if known else None)
    assert sum(found.ratings.counts) == len(known)
    assert sum(found.months.counts) == len(rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=20))
def test_bins_double_exactly(values: list[int]) -> None:
    small = [v % 5000 + 1 for v in values]
    found = numbers.doubling(np.array(small))
    assert sum(found.counts) == len(small)
    for label, count in zip(found.labels, found.counts, strict=True):
        low, _, high = label.replace(",", "").partition("-")
        assert count == sum(int(low) <= v <= int(high or low) for v in small)


def test_large_numbers_of_users_and_times_sort_the_slow_way_to_the_same() -> None:
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 50, 2000), MONDAY + rng.integers(0, 40_000, 2000).astype(float)
    fast = numbers.sessions_and_gaps(users, times)
    # User numbers beyond what fits beside the milliseconds.
    assert numbers.sessions_and_gaps(users + 2**40, times) == fast


def test_co_visits_are_estimated_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 300, 6000), (rng.random(6000) ** 2 * 400).astype(np.int64)
    pairs = numbers.Pairs.of(users, items, 300)
    per_user = np.bincount(users, minlength=300)
    exact = numbers.co_visits(pairs, per_user, 400)
    monkeypatch.setattr(numbers, "_EXACT_STEPS", 0)
    guessed = numbers.co_visits(pairs, per_user, 400)
    assert exact is not None
    assert guessed is not None
    assert exact.n_sampled == 0
    assert guessed.n_sampled > 3000
    assert guessed.low < exact.density < guessed.high
    assert guessed.high - guessed.low < 0.05
    assert guessed.low < guessed.density < guessed.high


def test_files_and_frames_give_the_same_portrait(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    import_sample(workspace)
    sample = DatasetStore(workspace).load("sample")
    frame = sample.interactions[["user_id", "item_id", "rating", "timestamp"]].copy()
    # Every third rating is missing, which statistics of Parquet files do not tell.
    frame.loc[::3, "rating"] = np.nan
    in_memory = Dataset.from_frames("gaps", frame, sample.items, sample.users)
    stored = DatasetStore(workspace).save(in_memory)
    assert stored.folder is not None
    found = portrait(stored)
    assert sum(found.ratings.counts) == 8000
    assert found.as_json() == portrait(in_memory).as_json()


def test_a_portrait_is_kept_beside_its_version_and_made_again_when_it_must(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    import_sample(workspace)
    stored = DatasetStore(workspace).load("sample")
    assert stored.folder is not None
    kept = stored.folder / "portrait.json"
    assert not kept.exists()
    found = stored_portrait(stored)
    assert found == portrait(stored)
    document = json.loads(kept.read_text())
    assert document["fingerprint"] == stored.fingerprint
    # What stands there is what is shown, as long as it belongs to this data and this format.
    document["portrait"]["gini"] = 0.123
    kept.write_text(json.dumps(document))
    assert stored_portrait(stored).gini == 0.123
    for change in ({"fingerprint": "other"}, {"format": 0}, {"portrait": {"gini": 1}}):
        kept.write_text(json.dumps({**document, **change}))
        assert stored_portrait(stored) == found
    kept.write_text("{")
    assert stored_portrait(stored) == found
    assert json.loads(kept.read_text())["portrait"]["gini"] == found.gini
    # With a model's tokenizer texts are counted again; afterwards the better portrait stays.
    counted = stored_portrait(stored, lambda texts: [7 for _ in texts])
    assert counted.item_text is not None
    assert (counted.item_text.exact, counted.item_text.mean) == (True, 7.0)
    assert any("7 tokens" in line for line in counted.readings)
    assert stored_portrait(stored) == counted


# ------------------------------------------------------------------------------------------------ drift


def test_divergence_and_stability_by_hand() -> None:
    assert divergence([1, 1], [2, 2]) == 0
    assert divergence([1, 0], [0, 1]) == pytest.approx(1)
    assert divergence([0, 0], [1, 0]) == 0
    # Half of 1 * log2(1 / .75) and half of .5 * log2(.5 / .75) + .5 * log2(.5 / .25).
    expected = (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5 * np.log2(2)) / 2
    assert divergence([1, 0], [1, 1]) == pytest.approx(expected)
    assert stability([0.5, 0.5], [0.5, 0.5]) == 0
    assert stability([0.5, 0.5], [0.8, 0.2]) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    assert np.isfinite(stability([1.0, 0.0], [0.0, 1.0]))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12).filter(
        lambda pairs: sum(a for a, _ in pairs) > 0 < sum(b for _, b in pairs)
    )
)
def test_divergence_lies_between_none_and_all_and_knows_no_direction(pairs: list[tuple[int, int]]) -> None:
    left, right = zip(*pairs, strict=True)
    found = divergence(left, right)
    assert 0 <= found <= 1
    assert found == pytest.approx(divergence(right, left))
    assert divergence(left, left) == pytest.approx(0, abs=1e-12)


def split_of(rows: list[tuple[str, str, float | None, float | None]], n_train: int) -> Split:
    data = dataset(rows)
    positions = np.arange(len(rows), dtype=np.int64)
    made = make_split(data, SplitSpec(protocol="temporal", valid_fraction=0.1, test_fraction=0.2))
    return replace(made, train=positions[:n_train], valid=positions[:0], test=positions[n_train:])


def test_drift_by_hand() -> None:
    train = [("u", "a", 4.0, MONDAY + i) for i in range(6)] + [("v", "b", 2.0, MONDAY + i) for i in range(4)]
    test = [("u", "b", 5.0, MONDAY + DAY), ("w", "a", 5.0, MONDAY + DAY), ("v", "c", 1.0, MONDAY + DAY)]
    test += [("w", "c", 1.0, MONDAY + DAY)]
    found = drift(split_of(train + test, 10))
    assert (found.n_train, found.n_test) == (10, 4)
    assert (found.new_user_share, found.new_item_share) == (0.5, 0.5)
    assert found.item_divergence == pytest.approx(divergence([6, 4, 0], [1, 1, 2]))
    assert found.groups == [(1, 0.6, 0.5), (1, 0.4, 0.5)]
    assert found.item_psi == pytest.approx(-0.1 * np.log(0.5 / 0.6) + 0.1 * np.log(0.5 / 0.4))
    assert found.rating_mean_train == pytest.approx(3.2)
    assert found.rating_mean_test == pytest.approx(3.0)
    # Ratings of the test part between those of training count where they fall: 1 with 2, 5 with 4.
    assert found.rating_psi == pytest.approx(stability([0.4, 0.6], [0.5, 0.5]))
    assert found.readings[2] == "Training never saw the users of 50.0 % of the test rows, nor the items of 50.0 %."
    json.dumps(found.as_json(), allow_nan=False)


def test_the_same_taste_drifts_no_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    popular = [f"i{n}" for n in np.minimum(rng.geometric(0.05, 5000), 80)]
    rows = [(f"u{n % 300}", item, None, MONDAY + n) for n, item in enumerate(popular)]
    same = drift(split_of(rows, 4000))
    assert same.item_divergence < 1.4 * same.item_divergence_chance
    assert same.item_psi < 0.1
    assert same.rating_psi is None
    moved = [(u, item if n < 4000 else f"i{80 - int(item[1:])}", r, t) for n, (u, item, r, t) in enumerate(rows)]
    other = drift(split_of(moved, 4000))
    assert other.item_divergence > 3 * other.item_divergence_chance
    assert other.item_psi > 0.25
    assert drift(split_of(rows, 4000)) == same, "seeded"
    with pytest.raises(DataError, match="needs rows"):
        drift(split_of(rows, 5000))
