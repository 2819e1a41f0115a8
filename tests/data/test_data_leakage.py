"""The leakage check passes every split of ours, and sees each rule broken on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llmrec_core.contracts import HistoryItem
from llmrec_core.data import PROTOCOLS, Dataset, Split, make_split
from llmrec_core.data._leakage_facts import Facts
from llmrec_core.data.leakage import Check, Probe, check_leakage, without_held_out
from llmrec_core.recommenders import leakage as full
from llmrec_core.recommenders.leakage import leakage_report
from llmrec_core.specs import ItemKNNSpec, PopularitySpec, SplitSpec


def world(seed: int = 0, **columns: object) -> Dataset:
    """30 users with 6-14 rows over 40 items, ratings 1-5, ids that say nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(30):
        for item in rng.permutation(40)[: rng.integers(6, 15)]:
            rows.append((f"u{user:02d}", f"i{item:02d}", float(rng.integers(1, 6)), float(rng.integers(0, 10_000))))
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).assign(**columns)
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(40)], "title": [f"film {n}" for n in range(40)]})
    return Dataset.from_frames("world", table, items)


def cut(protocol: str, dataset: Dataset | None = None, **fields: object) -> Split:
    return make_split(
        world() if dataset is None else dataset,
        SplitSpec.model_validate({"protocol": protocol, "known_interactions": 3, "valid_fraction": 0.15, **fields}),
    )


def found(split: Split, name: str) -> Check:
    (check,) = [check for check in check_leakage(split).checks if check.name == name]
    return check


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "given"])
@pytest.mark.parametrize("tie_order", ["file", "item_id"])
def test_our_splits_pass(protocol: str, tie_order: str) -> None:
    report = leakage_report(cut(protocol, tie_order=tie_order, min_user_interactions=2, min_item_interactions=2))
    assert report.ok, report.summary()
    names = [check.name for check in report.checks]
    assert len(set(names)) == len(names)
    rules = {"parts", "order", "history", "statistics", "popularity", "item-knn", "negatives", "targets", "numbers"}
    assert rules <= set(names)
    assert ("cut" in names) == (protocol in ("temporal", "rolling-temporal"))
    assert ("cold-users" in names) == (protocol in ("cold-user", "random-users", "records"))
    assert ("cold-items" in names) == (protocol == "cold-item")
    assert all(check.n_checked > 0 for check in report.checks if check.hard)
    document = report.as_json()
    assert document["ok"]
    assert {check["verdict"] for check in document["checks"]} <= {"passed", "note"}
    assert "violated" not in report.summary()


def test_given_parts_pass_and_so_does_data_without_times() -> None:
    rng = np.random.default_rng(3)
    dataset = world()
    parts = rng.choice(["train", "train", "train", "valid", "test"], len(dataset.interactions))
    assert leakage_report(cut("auto", world(part=parts))).ok
    timeless = Dataset.from_frames("t", dataset.interactions[["user_id", "item_id", "rating"]].assign(part=parts))
    assert leakage_report(cut("given", timeless)).ok
    assert leakage_report(cut("leave-one-out", timeless)).ok


# Rules broken on purpose ---------------------------------------------------------------------------------------------


def test_a_row_in_two_parts_is_seen() -> None:
    split = cut("random")
    check = found(replace(split, train=np.append(split.train, split.test[:2])), "parts")
    assert (check.verdict, check.n_violations) == ("violated", 2)
    assert check.examples[0] == f"row {split.test[:2].min()}: 2 times in a part"


def test_a_lost_row_is_seen() -> None:
    split = cut("leave-one-out")
    assert found(replace(split, train=split.train[1:]), "parts").n_violations == 1


def test_an_order_against_time_is_seen() -> None:
    split = cut("leave-one-out")
    order = split._order.copy()
    order[[0, 1]] = order[[1, 0]]
    check = found(replace(split, _order=order), "order")
    assert (check.verdict, check.n_violations) == ("violated", 2)


def test_another_tie_order_than_promised_is_seen() -> None:
    rows = [("u", item, 1.0, 5.0) for item in "dcba"] + [("v", item, 1.0, 5.0) for item in "abcd"]
    dataset = Dataset.from_frames("t", pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]))
    split = cut("leave-one-out", dataset, tie_order="file")
    lying = replace(split, spec=split.spec.model_copy(update={"tie_order": "item_id"}))
    assert found(split, "order").ok
    assert not found(lying, "order").ok
    assert not found(lying, "history").ok


class _Prophet(Split):
    """Histories that hold the row they are asked about."""

    def history_before(self, row: int, limit: int | None = None) -> tuple[HistoryItem, ...]:
        item = str(self.dataset.interactions["item_id"].iloc[row])
        time = float(self.dataset.interactions["timestamp"].iloc[row])
        return (*super().history_before(row, limit), HistoryItem(item, None, time))


def as_class(split: Split, kind: type[Split]) -> Split:
    return kind(**{name: getattr(split, name) for name in Split.__dataclass_fields__})


def test_a_history_that_holds_its_target_is_seen() -> None:
    check = found(as_class(cut("random"), _Prophet), "history")
    assert check.verdict == "violated"
    assert check.n_violations == check.n_checked > 0
    assert len(check.examples) == 5


def test_training_after_the_cut_is_seen() -> None:
    split = cut("temporal")
    late = split.test[-1:]
    swapped = replace(split, train=np.append(split.train, late), test=split.test[:-1])
    check = found(swapped, "cut")
    assert (check.verdict, check.n_violations) == ("violated", 1)
    assert check.examples[0].startswith(f"row {late[0]} at 1970-01-01T")


def test_training_rows_of_a_cold_user_are_seen() -> None:
    split = cut("cold-user")
    check = found(replace(split, train=np.append(split.train, split.test[:1]), test=split.test[1:]), "cold-users")
    assert (check.verdict, check.n_violations) == ("violated", 1)


@pytest.mark.parametrize("protocol", ["cold-user", "random-users"])
def test_more_known_interactions_than_promised_are_seen(protocol: str) -> None:
    split = cut(protocol, fold_in=0.3)
    users = split.dataset.interactions["user_idx"].to_numpy()
    mine = split.test[users[split.test] == users[split.test[0]]]
    known = np.append(split.known, mine[:2])
    check = found(replace(split, known=known, test=np.setdiff1d(split.test, mine[:2])), "cold-users")
    assert (check.verdict, check.n_violations) == ("violated", 1)


def test_a_second_question_of_a_record_is_seen() -> None:
    split = cut("records")
    users = split.dataset.interactions["user_idx"].to_numpy()
    mine = split.known[users[split.known] == users[split.test[0]]]
    known, test = np.setdiff1d(split.known, mine[-1:]), np.append(split.test, mine[-1:])
    check = found(replace(split, known=known, test=test), "cold-users")
    assert (check.verdict, check.n_violations) == ("violated", 1)


def test_training_rows_of_a_withheld_item_are_seen() -> None:
    split = cut("cold-item")
    item = split.dataset.interactions["item_id"].iloc[split.test[0]]
    check = found(replace(split, train=np.append(split.train, split.test[:1])), "cold-items")
    assert check.verdict == "violated"
    assert check.examples == (f"item {item}",)


def test_a_withheld_item_among_the_negatives_is_seen() -> None:
    class Careless(Split):
        def offered(self, part: str) -> np.ndarray:  # type: ignore[override]
            return self.catalogue

    split = cut("cold-item")
    assert found(as_class(split, Careless), "cold-items").n_violations == sum(map(len, split.withheld.values()))


def test_a_warm_item_among_the_questions_is_seen() -> None:
    split = cut("cold-item")
    moved = replace(split, train=split.train[1:], test=np.append(split.test, split.train[:1]))
    assert found(moved, "cold-items").n_violations == 1


def test_statistics_of_held_out_rows_are_seen() -> None:
    class Counting(Split):
        @property
        def train_item_counts(self) -> np.ndarray:  # type: ignore[override]
            items = self.dataset.interactions["item_idx"].to_numpy(np.int64)
            return np.bincount(items, minlength=self.dataset.n_items)

    check = found(as_class(cut("leave-one-out"), Counting), "statistics")
    assert (check.verdict, check.examples) == ("violated", ("train_item_counts",))


def test_whatever_learns_from_held_out_rows_is_seen() -> None:
    mean = Probe("mean", "Mean rating", lambda s: {"mean": np.array([s.dataset.interactions["rating"].mean()])})
    fair = Probe(
        "fair", "Mean", lambda s: {"mean": s.dataset.interactions["rating"].to_numpy()[s.train].mean(keepdims=1)}
    )
    report = check_leakage(cut("random"), [mean, fair])
    assert [check.name for check in report.violated] == ["mean"]
    assert "Mean rating" in report.summary()
    assert not report.ok


@pytest.mark.parametrize("family", ["popularity", "item-knn"])
def test_a_baseline_that_reads_held_out_rows_is_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = full.BASELINES[family]

    class Greedy(honest):  # type: ignore[misc, valid-type]
        def fit(self, split: Split, ctx: object) -> None:
            every = np.arange(len(split.dataset.interactions))
            super().fit(replace(split, train=every), ctx)  # type: ignore[arg-type]

    monkeypatch.setitem(full.BASELINES, family, Greedy)
    report = leakage_report(cut("leave-one-out"), [PopularitySpec(), ItemKNNSpec()])
    assert [check.name for check in report.violated] == [family]


def test_negatives_that_avoid_held_out_items_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = full.training_lists

    def knowing(split: Split, *args: object) -> object:
        """As if the user's held-out items were left out of the negatives."""
        table = split.dataset.interactions
        seen = set(zip(table["user_idx"].tolist(), table["item_idx"].tolist(), strict=True))
        lists = honest(split, *args)  # type: ignore[arg-type]
        users = lists.users[lists.list_of]
        bad = [pair in seen for pair in zip(users.tolist(), lists.items.tolist(), strict=True)]
        return replace(lists, items=np.where(bad, -1, lists.items))

    monkeypatch.setattr(full, "training_lists", knowing)
    assert [check.name for check in leakage_report(cut("leave-one-out")).violated] == ["negatives"]


def test_numbers_by_first_appearance_are_seen() -> None:
    dataset = world()
    by_time = dataset.interactions.sort_values("timestamp")["item_idx"].drop_duplicates().to_numpy()
    items = dataset.items.iloc[np.append(by_time, np.setdiff1d(np.arange(40), by_time))].reset_index(drop=True)
    frames = {"interactions": dataset.interactions, "items": items, "users": dataset.users}
    check = found(replace(cut("leave-one-out"), dataset=replace(dataset, _frames=frames)), "numbers")
    assert check.verdict == "violated"


def test_a_target_that_is_excluded_is_seen() -> None:
    class Contradicting(Split):
        def queries(self, part: str, max_users: int | None = None, seed: int = 0):  # type: ignore[no-untyped-def, override]
            asked = super().queries(part, max_users, seed)  # type: ignore[arg-type]
            return replace(asked, exclude=asked.targets)

    check = found(as_class(cut("leave-one-out"), Contradicting), "targets")
    assert (check.verdict, check.n_violations) == ("violated", check.n_checked)


# Facts to know -------------------------------------------------------------------------------------------------------


def test_repeated_pairs_are_a_note() -> None:
    rows = [
        ("u", "a", 1.0),
        ("u", "b", 2.0),
        ("u", "c", 3.0),
        ("u", "a", 4.0),
        ("v", "a", 1.0),
        ("v", "b", 2.0),
        ("v", "c", 3.0),
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    check = found(cut("leave-one-out", Dataset.from_frames("d", table)), "repeats")
    assert (check.verdict, check.n_violations, check.examples) == ("note", 1, ("row 3, item a",))


def test_ids_that_tell_the_time_are_a_note() -> None:
    rows = [(f"u{n % 4}", f"i{n:03d}", float(n)) for n in range(40)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    check = found(cut("leave-one-out", Dataset.from_frames("d", table)), "id-order")
    assert (check.verdict, check.examples) == ("note", ("rank correlation +1.00",))
    assert "keep ids out of prompts" in check.words
    assert found(cut("leave-one-out"), "id-order").ok


def test_later_training_rows_are_a_note_outside_the_temporal_protocols() -> None:
    split = cut("leave-one-out")
    times = split.dataset.interactions["timestamp"].to_numpy()
    check = found(split, "global-time")
    assert check.verdict == "note"
    assert check.n_violations == (times[split.train] > times[split.test].min()).sum()
    assert "global-time" not in [c.name for c in check_leakage(cut("temporal")).checks]


def test_filters_that_held_out_rows_help_through_are_a_note() -> None:
    rows = [(u, i, float(n)) for u in "pqr" for n, i in enumerate("abc")]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    split = cut("leave-one-out", Dataset.from_frames("d", table), min_user_interactions=3, min_item_interactions=3)
    check = found(split, "filters")
    # Each user has one row left in training, and of the items a alone is there, three times.
    assert (check.verdict, check.n_violations) == ("note", 3)
    assert "3 users and 0 items" in check.words


def test_a_scale_that_training_does_not_show_is_a_note() -> None:
    rows = [
        (u, i, r, float(t)) for u in "pq" for t, (i, r) in enumerate([("a", 2), ("b", 3), ("c", 4), ("d", 5), ("e", 1)])
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    check = found(cut("leave-one-out", Dataset.from_frames("d", table)), "scale")
    assert (check.verdict, check.examples) == ("note", ("training has 2 to 4, the data 1 to 5",))
    assert found(cut("leave-one-out"), "scale").ok


def test_items_with_the_same_words_are_a_note() -> None:
    rows = [(u, i, float(t)) for u in "pqr" for t, i in enumerate(["a", "b", "c", "d"])]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    titles = pd.DataFrame({"item_id": list("abcd"), "title": ["One", "Two", "Three", "One"]})
    check = found(cut("leave-one-out", Dataset.from_frames("d", table, titles)), "twins")
    assert (check.verdict, check.examples) == ("note", ("item d",))
    assert found(cut("leave-one-out", Dataset.from_frames("d", table)), "twins").ok


# The copy without held-out rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["leave-one-out", "random", "cold-user", "cold-item", "rolling-temporal"])
def test_the_copy_keeps_training_and_its_histories(protocol: str) -> None:
    split = cut(protocol)
    copy = without_held_out(split)
    before, after = split.dataset.interactions, copy.dataset.interactions
    assert len(after) == len(before) - len(split.valid) - len(split.test)
    assert copy.dataset.item_ids.tolist() == split.dataset.item_ids.tolist()
    for here, there in ((split.train, copy.train), (split.known, copy.known)):
        columns = ["user_idx", "item_idx", "rating", "timestamp"]
        pd.testing.assert_frame_equal(
            before.loc[here, columns].reset_index(drop=True), after.loc[there, columns].reset_index(drop=True)
        )
    for here, there in zip(split.train[::7].tolist(), copy.train[::7].tolist(), strict=True):
        assert copy.history_before(there) == split.history_before(here)


def test_much_data_is_learned_from_on_some_users(monkeypatch: pytest.MonkeyPatch) -> None:
    split = cut("leave-one-out")
    monkeypatch.setattr(full, "MAX_ROWS", 50)
    users = split.dataset.interactions["user_idx"].to_numpy()
    fewer = full._some_users(split, 0)
    assert 50 <= len(fewer.train) < 70
    chosen = set(users[fewer.train])
    assert len(fewer.train) == np.isin(users[split.train], list(chosen)).sum()
    assert leakage_report(split).ok


@pytest.mark.parametrize("tie_order", ["file", "item_id"])
def test_rows_are_in_order_only_where_sorting_gives_them_so(tie_order: str) -> None:
    # Two moments only, so that most rows tie.
    table = world().interactions.assign(timestamp=lambda rows: rows["timestamp"] // 5000)
    dataset = Dataset.from_frames("ties", table[["user_id", "item_id", "rating", "timestamp"]])
    facts = Facts(cut("leave-one-out", dataset, tie_order=tie_order))
    order = facts.time_order
    assert facts.in_order(order)
    assert facts.in_order(order[::3])
    assert np.array_equal(facts.sorted_rows(np.sort(order)), order)
    for at in range(len(order) - 1):
        swapped = order.copy()
        swapped[[at, at + 1]] = order[[at + 1, at]]
        assert not facts.in_order(swapped)
    assert not facts.in_order(np.repeat(order, 2))
    assert not facts.in_order(np.where(order == len(order) - 1, -1, order))
    assert not facts.in_order(order + 1)
