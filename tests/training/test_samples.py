"""Samples: what is drawn, what it is labelled, and that no held-out row leaks in."""

from __future__ import annotations

import numpy as np
import pytest
from conformance.families import tiny_split

from llmrec_core.data import Dataset, make_split
from llmrec_core.errors import DataError
from llmrec_core.specs import RunSpec, SplitSpec
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.packing import Ragged, TokenisedPrompts
from llmrec_core.training.samples import scale_ratings, training_lists, unscale_ratings, validation_lists


def _run(*tasks: str, max_history: int = 50, **training) -> RunSpec:
    return RunSpec.model_validate(
        {
            "dataset": {"name": "tiny"},
            "recommender": {"family": "cross-encoder"},
            "prompt": {"max_history": max_history},
            "objectives": [{"task": task} for task in tasks],
            "training": {"max_samples": None, **training},
        }
    )


@pytest.fixture(scope="module")
def split():
    return tiny_split()


def _rows(split, part):
    table = split.dataset.interactions.iloc[split.rows(part)]
    return {(user, item) for user, item in zip(table["user_idx"], table["item_idx"], strict=True)}


def test_histories_stop_before_the_positive(split):
    lists = training_lists(split, _run("click"), 0)
    table = split.dataset.interactions
    for number, query in enumerate(lists.queries):
        item = int(lists.items[np.flatnonzero(lists.list_of == number)[0]])
        own = table[table["user_id"] == query.user_id]
        at = own[own["item_idx"] == item]["timestamp"].iloc[0]
        assert query.history, "first interactions have no history to learn from"
        assert all(past.timestamp < at for past in query.history)
        assert len(query.history) == (own["timestamp"] < at).sum()


def test_positives_are_training_rows_and_negatives_are_not(split):
    lists = training_lists(split, _run("click", negatives_per_positive=4), 0)
    train = _rows(split, "train")
    first = np.diff(lists.list_of, prepend=-1) == 1
    pairs = list(zip(lists.users[lists.list_of].tolist(), lists.items.tolist(), strict=True))
    assert all(pair in train for pair, positive in zip(pairs, first, strict=True) if positive)
    assert not any(pair in train for pair, positive in zip(pairs, first, strict=True) if not positive)
    assert len({(n, i) for n, i in zip(lists.list_of, lists.items, strict=True)}) == len(lists), "no repeats in a list"


def test_held_out_items_can_be_negatives(split):
    """Leaving them out would tell the model, by their absence, what the test asks for."""
    lists = training_lists(split, _run("click", negatives_per_positive=8), 0)
    drawn = set(zip(lists.users[lists.list_of].tolist(), lists.items.tolist(), strict=True))
    assert drawn & _rows(split, "test")


def test_click_labels_follow_the_threshold(split):
    table = split.dataset.interactions
    rating = {(u, i): r for u, i, r in zip(table["user_idx"], table["item_idx"], table["rating"], strict=True)}
    for threshold, expected in ((None, 3.0), (4.5, 4.5)):
        lists = training_lists(split, _run("click", like_threshold=threshold), 0)
        for number, item, label in zip(lists.list_of, lists.items, lists.labels["click"], strict=True):
            known = rating.get((int(lists.users[number]), int(item)), -1.0)
            in_train = (int(lists.users[number]), int(item)) in _rows(split, "train")
            assert label == float(in_train and known > expected)


def test_without_ratings_every_interaction_is_a_click():
    frame = tiny_split().dataset.interactions[["user_id", "item_id", "timestamp"]]
    split = make_split(Dataset.from_frames("clicks", frame), SplitSpec())
    lists = training_lists(split, _run("click", negatives_per_positive=1), 0)
    assert lists.labels["click"].reshape(-1, 2).tolist() == [[1.0, 0.0]] * len(lists.queries)
    with pytest.raises(DataError, match="no ratings"):
        training_lists(split, _run("rating"), 0)


def test_one_prompt_carries_the_labels_of_all_tasks(split):
    lists = training_lists(split, _run("click", "rating", "rank", negatives_per_positive=1, rank_candidates=4), 0)
    click, rating, rank = (lists.labels[task].reshape(-1, 4) for task in ("click", "rating", "rank"))
    assert rank.tolist() == [[1, 0, 0, 0]] * len(rank)
    assert np.isnan(click).tolist() == [[False, False, True, True]] * len(click)
    assert np.isnan(rating).tolist() == [[False, True, True, True]] * len(rating)
    assert set(rating[:, 0]) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_max_samples_counts_prompts(split):
    lists = training_lists(split, _run("click", negatives_per_positive=2, max_samples=10), 0)
    assert (len(lists), len(lists.queries)) == (9, 3)


def test_ratings_that_follow_each_other_share_a_history(split):
    table = split.dataset.interactions
    lists = training_lists(split, _run("rating", ratings_per_history=3), 0)
    asked = []
    for number, (query, user) in enumerate(zip(lists.queries, lists.users.tolist(), strict=True)):
        own = table.iloc[[row for row in split.train if table["user_idx"].iloc[row] == user]]
        known = len(query.history)
        members = lists.items[lists.list_of == number].tolist()
        assert [item.item_id for item in query.history] == own["item_id"].tolist()[:known]
        assert members == own["item_idx"].tolist()[known : known + 3], "the ratings after the history, in their order"
        given = own["rating"].to_numpy()[known : known + 3]
        low, high = split.dataset.rating_scale
        np.testing.assert_allclose(lists.labels["rating"][lists.list_of == number], (given - low) / (high - low))
        asked += [(user, known + at) for at in range(len(members))]
    counts = table.iloc[split.train].groupby("user_idx").size()
    assert sorted(asked) == [(user, at) for user, n in counts.items() for at in range(1, n)], "each rating once"
    single = training_lists(split, _run("rating", ratings_per_history=1), 0)
    assert len(single) == len(single.queries) == len(lists)


def test_shared_ratings_keep_to_max_samples(split):
    lists = training_lists(split, _run("rating", max_samples=10, ratings_per_history=4), 0)
    assert 7 <= len(lists) <= 10


def test_draws_are_seeded(split):
    first, same, other = (training_lists(split, _run("click"), seed) for seed in (0, 0, 1))
    assert first.items.tolist() == same.items.tolist()
    assert first.items.tolist() != other.items.tolist()


def test_hard_negatives_come_from_the_pool(split):
    asked = []

    def pool(queries, k):
        asked.append(k)
        return [np.array([11, 12, 13]) for _ in queries]

    lists = training_lists(split, _run("rank", rank_candidates=5, hard_negatives=0.5), 0, pool)
    positives = lists.items.reshape(-1, 5)[:, :1]
    negatives = lists.items.reshape(-1, 5)[:, 1:]
    assert asked
    assert (np.isin(negatives, [11, 12, 13]).sum(axis=1) >= 2 - (positives[:, 0] >= 11)).all()
    assert not (negatives == positives).any()


def test_a_nearly_used_up_catalogue_gives_shorter_lists(split):
    lists = training_lists(split, _run("rank", rank_candidates=14), 0)
    sizes = np.bincount(lists.list_of)
    # 14 items, 5 of them in the user's training
    assert sizes.max() == 10
    assert sizes.min() >= 2


def test_validation_lists_hold_validation_rows(split):
    lists = validation_lists(split, _run("click", validation_samples=1000), 0)
    first = np.diff(lists.list_of, prepend=-1) == 1
    pairs = set(zip(lists.users.tolist(), lists.items[first].tolist(), strict=True))
    assert pairs == _rows(split, "valid")


def test_ratings_scale_there_and_back():
    ratings = np.array([1.0, 2.0, 5.0, np.nan])
    scaled = scale_ratings(ratings, (1.0, 5.0))
    assert scaled[:3].tolist() == [0.0, 0.25, 1.0]
    back = unscale_ratings(np.array([-0.5, 0.25, 7.0, -np.inf], np.float32), (1.0, 5.0))
    assert back.tolist() == [1.0, 2.0, 5.0, -np.inf]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("epochs", [1, 2.5, 0.4])
def test_a_plan_covers_each_epoch_once(split, bucket, epochs):
    run = _run("click", negatives_per_positive=2, batch_size=6, epochs=epochs, bucket_by_length=bucket)
    lists = training_lists(split, run, 0)
    n = len(lists)
    tails = Ragged.of([[1] * (1 + i % 7) for i in range(n)])
    tokens = TokenisedPrompts(Ragged.of([[]]), tails, np.zeros(n, np.int64), np.arange(n))
    plan = BatchPlan(lists, tokens, run.training, 0, 0)
    n_lists = len(lists.queries)
    assert len(plan) == max(1, round(epochs * n_lists / 2))
    seen = np.bincount(np.concatenate(plan.schedule), minlength=n_lists)
    assert seen.max() - seen.min() <= 1
    again = BatchPlan(lists, tokens, run.training, 0, 0)
    assert plan.fingerprint() == again.fingerprint()
    assert plan.fingerprint() != BatchPlan(lists, tokens, run.training, 1, 0).fingerprint()
    batch = plan[0]
    lengths = (batch.packed.segment >= 0).sum(1).tolist()
    assert lengths == sorted(lengths), "rows of one length go through attention together"
    assert batch.n_prompts == 3 * len(batch.lists)
    assert batch.labels.list_of.tolist() == np.repeat(np.arange(len(batch.lists)), 3).tolist()


def test_lists_are_as_long_as_the_rows_that_they_become(split):
    """What the prompts of a list share is read once: three of 40 + 3 tokens are a row of 49, of 31 + 12 one of 67."""
    run = _run("click", negatives_per_positive=2, batch_size=6)
    lists = training_lists(split, run, 0)
    short = np.arange(len(lists.queries)) % 2 == 0
    heads = Ragged.of([[1] * (40 if one else 31) for one in short])
    tails = Ragged.of([[2] * (3 if short[of] else 12) for of in lists.list_of])
    tokens = TokenisedPrompts(heads, tails, lists.list_of, np.arange(len(lists)))
    assert set(tokens.n_tokens.tolist()) == {43}
    plan = BatchPlan(lists, tokens, run.training, 0, 0)
    kinds = [set((plan[number].packed.segment >= 0).sum(1).tolist()) for number in range(len(plan))]
    assert set().union(*kinds) == {49, 67}
    # Where the lengths change in a block of sorted lists, and at its end, are both.
    assert sum(len(kind) > 1 for kind in kinds) <= 2 * -(-len(plan) // 16)
