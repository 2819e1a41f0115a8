"""Each protocol by hand, and the laws that hold for any data."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmrec_core.data import PROTOCOLS, Dataset, Split, make_split
from llmrec_core.data.splitting.protocols import row_groups, stable_order, window_bounds
from llmrec_core.errors import DataError, InputError
from llmrec_core.specs import SplitSpec

Row = tuple[str, str, float]


def data(rows: list[Row], **columns: list[str]) -> Dataset:
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).assign(rating=1.0, **columns)
    return Dataset.from_frames("d", table)


def users_of(split: Split, rows: np.ndarray) -> set[str]:
    return set(split.dataset.interactions["user_id"].astype(str).to_numpy()[rows])


def items_of(split: Split, rows: np.ndarray) -> set[str]:
    return set(split.dataset.interactions["item_id"].astype(str).to_numpy()[rows])


def ids(history: tuple) -> list[str]:
    return [entry.item_id for entry in history]


#: Ten users with ten rows each; times interleave the users.
GRID = data([(f"u{u}", f"i{(3 * u + n) % 15:02d}", float(10 * n + u)) for u in range(10) for n in range(10)])


# Given parts ---------------------------------------------------------------------------------------------------------

GIVEN = [("u", "a", 3.0), ("u", "b", 1.0), ("u", "c", 2.0), ("v", "a", 9.0), ("v", "d", 4.0), ("w", "a", 1.0)]


def test_given_parts_are_kept_and_are_the_automatic_choice() -> None:
    dataset = data(GIVEN, part=["test", "train", "valid", "train", "test", ""])
    for protocol in ("auto", "given"):
        split = make_split(dataset, SplitSpec(protocol=protocol))
        assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == ([1, 3, 5], [2], [0, 4])
        assert split.spec.protocol == "given"
    assert ids(split.history_before(0)) == ["b", "c"]
    # The test row of v is older than its training row, which is therefore no history.
    assert ids(split.history_before(4)) == []
    assert "Given" in split.describe()
    assert "1 rows without a part count as training" in split.describe()


def test_automatic_keeps_given_parts_whole_and_is_leave_one_out_without_them() -> None:
    parted = data(GIVEN, part=["test", "train", "valid", "train", "test", "train"])
    spec = SplitSpec(min_user_interactions=5, min_item_interactions=5)
    assert len(make_split(parted, spec).train) == 3
    with pytest.raises(DataError, match="no interaction is left"):
        make_split(parted, spec.model_copy(update={"protocol": "given"}))
    plain = make_split(data(GIVEN), SplitSpec())
    assert plain.spec.protocol == "leave-one-out"
    assert plain.test.tolist() == [0]


def test_without_validation_each_users_last_training_row_is_taken() -> None:
    dataset = data(GIVEN, part=["train", "train", "test", "test", "train", "train"])
    split = make_split(dataset, SplitSpec())
    assert (split.valid.tolist(), split.train.tolist(), split.test.tolist()) == ([0], [1, 4, 5], [2, 3])
    assert "No validation part came with the data" in split.describe()


def test_given_parts_decide_between_equal_times_and_where_there_are_none() -> None:
    rows = [("u", "late", 5.0), ("u", "early", 5.0), ("u", "between", 5.0)]
    parts = ["test", "train", "valid"]
    split = make_split(data(rows, part=parts), SplitSpec())
    assert ids(split.history_before(0)) == ["early", "between"]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).drop(columns="timestamp")
    timeless = Dataset.from_frames("d", table.assign(part=parts))
    assert ids(make_split(timeless, SplitSpec()).history_before(0)) == ["early", "between"]


@pytest.mark.parametrize(
    ("parts", "protocol", "words"),
    [
        (None, "given", "did not"),
        (["dev"] * 6, "auto", "has the value 'dev'"),
        (["train"] * 5 + ["valid"], "given", "no row is in the part test"),
    ],
)
def test_parts_that_cannot_be_used(parts: list[str] | None, protocol: str, words: str) -> None:
    dataset = data(GIVEN) if parts is None else data(GIVEN, part=parts)
    with pytest.raises(DataError, match=words):
        make_split(dataset, SplitSpec(protocol=protocol))


def test_parts_without_a_test_leave_the_automatic_choice_to_leave_one_out() -> None:
    split = make_split(data(GIVEN, part=["train"] * 6), SplitSpec())
    assert split.spec.protocol == "leave-one-out"


# Time ----------------------------------------------------------------------------------------------------------------


def test_rolling_windows_by_hand() -> None:
    line = data([("u", f"i{n}", float(n)) for n in range(10)])
    spec = SplitSpec(protocol="rolling-temporal", n_folds=3, test_fraction=0.2, valid_fraction=0.1)
    folds = [make_split(line, spec.model_copy(update={"fold": fold})) for fold in (1, 2, 3)]
    assert [split.test.tolist() for split in folds] == [[4, 5], [6, 7], [8, 9]]
    assert [split.valid.tolist() for split in folds] == [[3], [5], [7]]
    assert [split.train.tolist() for split in folds] == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]
    assert folds[0].window == (-np.inf, 6.0)
    assert folds[2].window == (-np.inf, np.inf)
    with pytest.raises(InputError, match="no part"):
        folds[0].history_before(6)
    assert "fold 1 of 3" in folds[0].describe()
    assert "4 rows are left out" in folds[0].describe()


def test_a_sliding_window_trains_on_as_many_rows_in_each_fold() -> None:
    line = data([("u", f"i{n}", float(n)) for n in range(10)])
    spec = SplitSpec(
        protocol="rolling-temporal", n_folds=3, test_fraction=0.2, valid_fraction=0.1, train_window="sliding"
    )
    folds = [make_split(line, spec.model_copy(update={"fold": fold})) for fold in (1, 2, 3)]
    assert [split.train.tolist() for split in folds] == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert ids(folds[2].history_before(8)) == ["i4", "i5", "i6", "i7"]


def test_one_rolling_window_is_the_temporal_protocol() -> None:
    one = make_split(GRID, SplitSpec(protocol="rolling-temporal", n_folds=1))
    plain = make_split(GRID, SplitSpec(protocol="temporal"))
    for part in ("train", "valid", "test"):
        assert one.rows(part).tolist() == plain.rows(part).tolist()  # type: ignore[arg-type]


def test_time_filter_by_hand() -> None:
    day = 86_400.0
    rows = [("u", f"i{n}", n * day) for n in range(8)]
    spec = SplitSpec(time_from="1970-01-02", time_to="1970-01-06")
    split = make_split(data(rows), spec)
    assert sorted([*split.train, *split.valid, *split.test]) == [1, 2, 3, 4, 5]
    noon = spec.model_copy(update={"time_to": "1970-01-06T12:00:00+12:00"})
    assert max(make_split(data(rows), noon).test) == 5
    assert max(make_split(data(rows), spec.model_copy(update={"time_to": "1970-01-05T23:59:59"})).test) == 4
    assert "Only interactions from 1970-01-02 up to 1970-01-06." in split.describe()
    with pytest.raises(DataError, match="no interaction is left"):
        make_split(data(rows), SplitSpec(time_from="2001-01-01"))
    timeless = Dataset.from_frames("d", pd.DataFrame(rows, columns=["user_id", "item_id", "x"])[["user_id", "item_id"]])
    with pytest.raises(DataError, match="time_from and time_to need timestamps"):
        make_split(timeless, spec)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time_from": "yesterday"}, "no ISO date"),
        ({"time_from": "2024-02-01", "time_to": "2024-01-01"}, "lies after"),
        ({"protocol": "rolling-temporal", "fold": 6}, "no fold 6"),
        ({"protocol": "rolling-temporal", "n_folds": 10, "test_fraction": 0.1}, "nothing to train on"),
        ({"protocol": "group-stratified", "n_folds": 1}, "use 3 or more"),
        ({"protocol": "group-stratified", "group_by": "colour"}, "user:FIELD"),
        ({"protocol": "by-colour"}, "protocol"),
        ({"known_interactions": -1}, "known_interactions"),
    ],
)
def test_specs_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SplitSpec.model_validate(fields)


def test_fields_of_other_protocols_are_ignored() -> None:
    plain = make_split(GRID, SplitSpec())
    odd = make_split(GRID, SplitSpec(fold=40, n_folds=50, group_by="nonsense", known_interactions=9, seed=3))
    assert odd.test.tolist() == plain.test.tolist()
    assert SplitSpec(time_to="").time_to is None


# Users and items -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_cold_users_have_exactly_k_known_interactions(k: int) -> None:
    split = make_split(GRID, SplitSpec(protocol="cold-user", known_interactions=k, test_fraction=0.2))
    asked = users_of(split, split.test)
    assert len(asked) == 2
    assert not asked & users_of(split, split.train)
    assert len(split.known) == 3 * k
    found = split.queries("test")
    assert {query.user_id for query in found.queries} == asked
    for query in found.queries:
        mine = np.flatnonzero(split.dataset.interactions["user_id"].astype(str) == query.user_id)
        assert ids(query.history) == split.dataset.interactions["item_id"].astype(str).to_numpy()[mine[:k]].tolist()
        # Also the last of their rows is asked with no more than that.
        assert split.history_before(int(mine[-1])) == query.history
        assert split.query(query.user_id) == query
    assert all(len(targets) == 10 - k for targets in found.targets)
    with pytest.raises(InputError):
        make_split(GRID, SplitSpec()).query("u1", "known")  # type: ignore[arg-type]


def test_another_k_holds_out_the_same_users() -> None:
    held = [
        users_of(split, split.test)
        for k in (0, 1, 3, 5)
        for split in [make_split(GRID, SplitSpec(protocol="cold-user", known_interactions=k, test_fraction=0.3))]
    ]
    assert all(users == held[0] for users in held)
    with pytest.raises(DataError, match=r"0 to test\. It needs several users"):
        make_split(GRID, SplitSpec(protocol="cold-user", known_interactions=10))


def test_users_with_too_few_interactions_stay_in_training() -> None:
    rows = [(f"long{u}", f"i{n}", float(n)) for u in range(4) for n in range(6)]
    rows += [(f"short{u}", f"i{n}", float(n)) for u in range(6) for n in range(3)]
    # Three interactions are as many as are known: nothing is left to ask.
    split = make_split(data(rows), SplitSpec(protocol="cold-user", known_interactions=3, test_fraction=0.2))
    assert {user[:4] for user in users_of(split, split.test)} == {"long"}
    assert {f"short{u}" for u in range(6)} <= users_of(split, split.train)
    assert "Only 4 users have enough" in make_split(split.dataset, SplitSpec(
        protocol="cold-user", known_interactions=3, test_fraction=0.3, valid_fraction=0.3
    )).describe()  # fmt: skip


def test_random_users_know_their_earliest_share() -> None:
    split = make_split(GRID, SplitSpec(protocol="random-users", fold_in=0.7, test_fraction=0.2, valid_fraction=0.1))
    assert len(split.known) == 3 * 7
    assert (len(split.test), len(split.valid), len(split.train)) == (6, 3, 70)
    assert not users_of(split, split.train) & (users_of(split, split.test) | users_of(split, split.valid))
    two = data([(f"u{u}", f"i{n}", float(n)) for u in range(10) for n in range(2)])
    split = make_split(two, SplitSpec(protocol="random-users", fold_in=0.9))
    # Of two interactions one is known and one is asked, whatever the share.
    assert (len(split.known), len(split.test), len(split.valid)) == (2, 1, 1)


def test_of_a_record_the_last_row_alone_is_learned_or_asked() -> None:
    records = data([(f"r{u}", f"i{n}", 0.0) for u in range(20) for n in range(1 + u % 4)])
    split = make_split(records, SplitSpec(protocol="records", test_fraction=0.2, valid_fraction=0.1))
    # 20 users with 1, 2, 3, 4, 1, 2 ... rows, 50 in all.
    assert (len(split.train), len(split.valid), len(split.test), len(split.known)) == (14, 2, 4, 30)
    users = records.interactions["user_id"].tolist()
    lasts = {max(row for row, user in enumerate(users) if user == f"r{u}") for u in range(20)}
    assert {*split.train, *split.valid, *split.test} == lasts
    for row in lasts:
        number = int(users[row][1:])
        assert ids(split.history_before(row)) == [f"i{n}" for n in range(number % 4)]
    assert "14 train, 30 known before the question, 2 validation, 4 test" in split.describe()
    other = make_split(records, SplitSpec(protocol="records", test_fraction=0.2, valid_fraction=0.1, seed=1))
    assert set(other.test) != set(split.test)


def test_withheld_items_leave_training_and_can_be_ranked_alone() -> None:
    spec = SplitSpec(protocol="cold-item", test_fraction=0.2, valid_fraction=0.2)
    split = make_split(GRID, spec)
    test, valid = split.withheld["test"], split.withheld["valid"]
    assert (len(test), len(valid)) == (3, 3)
    assert not set(test) & set(valid)
    assert split.train_item_counts[np.concatenate([test, valid])].sum() == 0
    names = split.dataset.item_ids
    assert items_of(split, split.test) == set(names[test])
    assert items_of(split, split.valid) == set(names[valid])
    assert set(split.catalogue) == set(range(15))
    assert split.offered("train").tolist() == sorted(set(range(15)) - set(test) - set(valid))
    assert split.offered("valid").tolist() == sorted(set(range(15)) - set(test))
    assert split.offered("test").tolist() == list(range(15))
    for targets, exclude in zip(split.queries("test").targets, split.queries("test").exclude, strict=True):
        assert set(targets) <= set(test)
        assert not set(exclude) & set(test)
    for row in split.train.tolist():
        assert not set(ids(split.history_before(row))) & set(names[np.concatenate([test, valid])])
    alone = make_split(GRID, spec.model_copy(update={"rank_among": "withheld"}))
    assert alone.test.tolist() == split.test.tolist()
    assert alone.offered("test").tolist() == test.tolist()
    assert all(set(range(15)) - set(test) <= set(exclude) for exclude in alone.queries("test").exclude)
    assert "over 3 withheld items" in alone.describe()


# Groups --------------------------------------------------------------------------------------------------------------


def grouped(field: bool = True) -> Dataset:
    """Users of 40, 25 and 3 rows in regions north (2 users), south and far."""
    sizes = {"a": 20, "b": 20, "c": 25, "d": 3}
    rows = [(user, f"i{n:02d}", float(n)) for user, size in sizes.items() for n in range(size)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    users = pd.DataFrame({"user_id": list("abcd"), "region": ["north", "north", "south", "far"]})
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(25)], "genre": ["x", "y", "", "x", "y"] * 5})
    return Dataset.from_frames("d", table, items, users)


def test_groups_keep_their_share_and_folds_take_turns() -> None:
    dataset = grouped()
    spec = SplitSpec(protocol="group-stratified", group_by="user:region", n_folds=5, valid_fraction=0.2)
    region = dataset.users["region"].to_numpy()[dataset.interactions["user_idx"].to_numpy()]
    seen: Counter[int] = Counter()
    for fold in range(1, 6):
        split = make_split(dataset, spec.model_copy(update={"fold": fold}))
        seen.update(split.test.tolist())
        sizes = Counter(region[split.test])
        assert (sizes["north"], sizes["south"]) == (8, 5)
        assert sizes["far"] in (0, 1)
        assert Counter(region[split.valid])["north"] == 8
    assert sorted(seen) == list(range(68))
    assert set(seen.values()) == {1}
    assert "user field region" in split.describe()
    assert "3 groups have rows" in split.describe()


def test_groups_by_activity_popularity_and_item_field() -> None:
    dataset = grouped()
    spec = SplitSpec(protocol="group-stratified", n_folds=4, n_groups=2)
    for by in ("activity", "popularity", "item:genre"):
        assert make_split(dataset, spec.model_copy(update={"group_by": by})).test.size in (17, 18)
    with pytest.raises(InputError, match="Fields of users are: region"):
        make_split(dataset, spec.model_copy(update={"group_by": "user:colour"}))


def test_activity_groups_hold_equally_many_users() -> None:
    rows = [(f"u{u}", f"i{n:02d}", float(n)) for u in range(8) for n in range(u + 1)]
    dataset = data(rows)
    split = make_split(dataset, SplitSpec(protocol="group-stratified", n_groups=4, n_folds=3))
    from llmrec_core.data.splitting.protocols import Rows

    rows_of = Rows(
        dataset,
        dataset.interactions["user_idx"].to_numpy(np.int64),
        dataset.interactions["item_idx"].to_numpy(np.int64),
        split._order,
        split._starts,
    )
    group = row_groups(rows_of, split.spec)
    by_user = {f"u{u}": int(group[np.flatnonzero(rows_of.user_idx == u)[0]]) for u in range(8)}
    assert list(by_user.values()) == [0, 0, 1, 1, 2, 2, 3, 3]


# Laws ----------------------------------------------------------------------------------------------------------------

NAMES = [name for name in PROTOCOLS if name != "given"]


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Few users and items with many repeats and equal times, so that every corner is met."""
    n_rows = draw(st.integers(12, 60))

    def column(high: int) -> list[int]:
        return draw(st.lists(st.integers(0, high), min_size=n_rows, max_size=n_rows))

    return pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in column(7)],
            "item_id": [f"i{n}" for n in column(9)],
            "timestamp": [float(n) for n in column(12)],
            "rating": 1.0,
        }
    )


@st.composite
def specs(draw: st.DrawFn) -> SplitSpec:
    return SplitSpec(
        protocol=draw(st.sampled_from(NAMES)),
        valid_fraction=draw(st.sampled_from([0.1, 0.2, 0.3])),
        test_fraction=draw(st.sampled_from([0.1, 0.15, 0.2])),
        n_folds=3,
        fold=draw(st.integers(1, 3)),
        train_window=draw(st.sampled_from(["expanding", "sliding"])),
        known_interactions=draw(st.sampled_from([0, 1, 3, 5])),
        fold_in=draw(st.sampled_from([0.2, 0.5, 0.8])),
        rank_among=draw(st.sampled_from(["all", "withheld"])),
        group_by=draw(st.sampled_from(["activity", "popularity"])),
        n_groups=draw(st.integers(2, 4)),
        min_user_interactions=draw(st.integers(0, 3)),
        min_item_interactions=draw(st.integers(0, 3)),
        time_from=draw(st.sampled_from([None, "1970-01-01T00:00:02"])),
        tie_order=draw(st.sampled_from(["file", "item_id"])),
        seed=draw(st.integers(0, 5)),
    )


def attempt(table: pd.DataFrame, spec: SplitSpec) -> Split:
    try:
        return make_split(Dataset.from_frames("d", table), spec)
    except DataError:
        # Too little of this table is left: no law is about it.
        assume(False)
        raise


LAWS = settings(
    max_examples=70, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


@LAWS
@given(table=tables(), spec=specs())
def test_parts_are_disjoint_complete_and_of_each_protocols_kind(table: pd.DataFrame, spec: SplitSpec) -> None:
    split = attempt(table, spec)
    together = np.concatenate([split.train, split.known, split.valid, split.test])
    assert len(np.unique(together)) == len(together)
    times = table["timestamp"].to_numpy()
    kept = np.ones(len(table), bool) if spec.time_from is None else times >= 2
    while True:
        users, items = table["user_id"][kept].value_counts(), table["item_id"][kept].value_counts()
        enough = table["user_id"].map(users).fillna(0) >= spec.min_user_interactions
        enough &= table["item_id"].map(items).fillna(0) >= spec.min_item_interactions
        if not (kept & ~enough).any():
            break
        kept = kept & enough.to_numpy()
    if split.window is not None:
        kept = kept & (times >= split.window[0]) & (times < split.window[1])
    assert sorted(together.tolist()) == np.flatnonzero(kept).tolist()
    user, item = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    if spec.protocol in ("temporal", "rolling-temporal"):
        assert times[split.train].max() < times[split.valid].min()
        assert times[split.valid].max() < times[split.test].min()
    if spec.protocol in ("cold-user", "random-users", "records"):
        for part in (split.valid, split.test):
            assert not set(user[part]) & set(user[split.train])
        assert not set(user[split.valid]) & set(user[split.test])
        n_known = Counter(user[split.known])
        for one in {*user[split.valid], *user[split.test]}:
            n_mine = int((user[together] == one).sum())
            if spec.protocol == "cold-user":
                assert n_known[one] == spec.known_interactions
            elif spec.protocol == "records":
                assert n_known[one] == n_mine - 1
            else:
                assert n_known[one] == min(max(1, round(n_mine * spec.fold_in)), n_mine - 1)
    else:
        assert not len(split.known)
    if spec.protocol == "cold-item":
        assert not set(item[split.train]) & ({*item[split.valid]} | {*item[split.test]})
        assert not set(item[split.valid]) & set(item[split.test])
    if spec.protocol == "group-stratified":
        column = "user_id" if spec.group_by == "activity" else "item_id"
        keys = table[column].to_numpy()
        counts = Counter(keys[together])
        # Groups hold whole users (items) with neighbouring counts; the share is kept over all rows at once too.
        assert abs(len(split.test) - len(together) / spec.n_folds) < 1
        assert abs(len(split.valid) - len(together) * spec.valid_fraction) <= 0.5
        assert sum(counts.values()) == len(together)


@LAWS
@given(table=tables(), spec=specs(), limit=st.integers(0, 4))
def test_no_history_holds_the_future(table: pd.DataFrame, spec: SplitSpec, limit: int) -> None:
    split = attempt(table, spec)
    code = dict.fromkeys(split.train.tolist(), 0) | dict.fromkeys(split.known.tolist(), 1)
    code |= dict.fromkeys(split.valid.tolist(), 2) | dict.fromkeys(split.test.tolist(), 3)
    tie = table["item_id"] if spec.tie_order == "item_id" else pd.Series("", index=table.index)
    key = list(zip(table["timestamp"], tie, range(len(table)), strict=True))
    user, item = table["user_id"].tolist(), table["item_id"].tolist()
    for row, mine in code.items():
        before = [r for r in code if user[r] == user[row] and code[r] < max(mine, 2) and key[r] < key[row]]
        expected = [item[r] for r in sorted(before, key=lambda r: key[r])]
        assert ids(split.history_before(row)) == expected
        assert ids(split.history_before(row, limit)) == (expected[-limit:] if limit else [])
    for part, rows in (("valid", split.valid), ("test", split.test)):
        found = split.queries(part)  # type: ignore[arg-type]
        for query, targets, exclude in zip(found.queries, found.targets, found.exclude, strict=True):
            mine = [r for r in rows.tolist() if user[r] == query.user_id]
            assert query.history == split.history_before(min(mine, key=lambda r: key[r]))
            assert query == split.query(query.user_id, part)  # type: ignore[arg-type]
            assert len(targets)
            assert not set(targets) & set(exclude)
            assert set(targets) | set(exclude) <= set(range(split.dataset.n_items))
            assert set(targets) <= set(split.offered(part))  # type: ignore[arg-type]
            assert set(split.dataset.item_ids[targets]) <= {item[r] for r in mine}
            assert set(range(split.dataset.n_items)) - set(split.offered(part)) <= set(exclude)  # type: ignore[arg-type]


@LAWS
@given(table=tables(), spec=specs())
def test_the_same_seed_draws_the_same(table: pd.DataFrame, spec: SplitSpec) -> None:
    split = attempt(table, spec)
    again = make_split(Dataset.from_frames("other name", table), SplitSpec.model_validate(spec.model_dump()))
    for part in ("train", "valid", "test"):
        assert split.rows(part).tolist() == again.rows(part).tolist()  # type: ignore[arg-type]
    assert split.describe() == again.describe()


@LAWS
@given(table=tables(), spec=specs(), seed=st.integers(0, 5))
def test_the_order_of_the_file_does_not_matter_where_times_differ(
    table: pd.DataFrame, spec: SplitSpec, seed: int
) -> None:
    """Promised but for draws of rows, which run over the file."""
    assume(spec.protocol not in ("random", "group-stratified"))
    table["timestamp"] = np.arange(len(table), dtype=float)
    split = attempt(table, spec)
    shuffled = table.sample(frac=1.0, random_state=seed)
    other = make_split(Dataset.from_frames("d", shuffled.reset_index(drop=True)), spec)
    for part in ("train", "valid", "test"):
        assert split.rows(part).tolist() == shuffled.index.to_numpy()[other.rows(part)].tolist()  # type: ignore[arg-type]


@LAWS
@given(table=tables(), spec=specs(), n_groups=st.integers(2, 4))
def test_every_group_keeps_its_share(table: pd.DataFrame, spec: SplitSpec, n_groups: int) -> None:
    groups = table["user_id"].str[1:].astype(int) % n_groups
    users = pd.DataFrame({"user_id": table["user_id"].unique()})
    users["team"] = (users["user_id"].str[1:].astype(int) % n_groups).astype(str)
    stratified = spec.model_copy(
        update={"protocol": "group-stratified", "group_by": "user:team", "min_item_interactions": 0, "time_from": None,
                "min_user_interactions": 0}
    )  # fmt: skip
    try:
        split = make_split(Dataset.from_frames("d", table, None, users), stratified)
    except DataError:
        assume(False)
    for group in range(n_groups):
        rows = np.flatnonzero(groups == group)
        assert abs(np.isin(rows, split.test).sum() - len(rows) / spec.n_folds) < 1
        assert abs(np.isin(rows, split.valid).sum() - len(rows) * spec.valid_fraction) <= 1


@given(values=st.lists(st.integers(0, 2**33)), high=st.sampled_from([2**10, 2**20, 2**34]))
@settings(max_examples=80, deadline=None)
def test_the_fast_sort_is_stable(values: list[int], high: int) -> None:
    key = np.array([value % high for value in values], np.int64)
    assert stable_order(key).tolist() == np.argsort(key, kind="stable").tolist()


@given(
    times=st.lists(st.integers(0, 20), min_size=10, max_size=60), n_folds=st.integers(1, 4)
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_windows_follow_each_other(times: list[int], n_folds: int) -> None:
    bounds = window_bounds(np.sort(np.array(times, float)), SplitSpec(n_folds=n_folds, test_fraction=0.15))
    assert len(bounds) == n_folds + 1
    assert bounds == sorted(bounds)
    assert bounds[-1] == np.inf
