"""A whole evaluation: known scores on a small dataset, numbers by hand, fairness between models, honest verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmrec_core.baselines import ItemKNNRecommender, PopularityRecommender
from llmrec_core.contracts import Capabilities, FitContext, Query, Ranking, Recommender, check_candidates
from llmrec_core.data import Dataset, make_split
from llmrec_core.errors import InputError, RunFailedError
from llmrec_core.evaluation import evaluate
from llmrec_core.evaluation.evaluate import _draw_unseen
from llmrec_core.specs import EvaluationSpec, PopularitySpec, SplitSpec

N_USERS, N_ITEMS = 24, 10


class Scripted(Recommender):
    """Scores from a function of (user number, item_idx); keeps what it was asked."""

    family = "popularity"

    def __init__(self, rule, *, ratings=None, tasks=(), n_items=N_ITEMS, longest=None, text=False) -> None:
        self.spec = PopularitySpec()
        self.rule, self.ratings, self.tasks, self.text = rule, ratings, frozenset(tasks), text
        self._n_items, self.longest = n_items, longest
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.seen_tasks: set[str | None] = set()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=self.tasks, text=self.text, full_catalogue=not self.text)

    @property
    def n_items(self) -> int:
        return self._n_items

    def fit(self, split, ctx) -> None: ...

    def _apply(self, rule, queries: Sequence[Query], candidates):
        items = check_candidates(candidates, len(queries), self.n_items)
        users = np.array([int(query.user_id[1:]) for query in queries]).reshape(-1, 1)
        return np.where(items < 0, -np.inf, rule(users, items)).astype(np.float32)

    def score(self, queries, candidates, *, task=None):
        self.seen_tasks.add(task)
        rows = check_candidates(candidates, len(queries), self.n_items)
        if rows.shape[1] != self.n_items:
            self.asked += [(q.user_id, tuple(row.tolist())) for q, row in zip(queries, rows, strict=True)]
        return self._apply(self.rule, queries, candidates)

    def top_k(self, queries, k, exclude=None) -> list[Ranking]:
        found = super().top_k(queries, k, exclude)
        return [Ranking(r.items[: self.longest], r.scores[: self.longest]) for r in found]

    def predict_ratings(self, queries, candidates):
        return None if self.ratings is None else self._apply(self.ratings, queries, candidates)

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder, dataset, ctx):
        raise NotImplementedError


def small_split(*, rated: bool = True, n_users: int = N_USERS):
    """User u had items u, u+1 (training), u+2 (validation), u+3 (test), all modulo 10; the test rating is 5 for even
    users and 2 for odd ones, the scale 1 to 5."""
    rows = []
    for user in range(n_users):
        for step in range(4):
            rating = (1.0, 4.0, 3.0, 5.0 if user % 2 == 0 else 2.0)[step]
            rows.append((f"u{user:02d}", f"i{(user + step) % N_ITEMS}", rating, float(step)))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    if not rated:
        frame = frame.drop(columns="rating")
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(N_ITEMS)]})
    return make_split(Dataset.from_frames("small", frame, items), SplitSpec())


def perfect(users, items):
    return (items == (users + 3) % N_ITEMS).astype(float)


def second(users, items):
    """The target at place 2, behind the item after it."""
    return 2.0 * (items == (users + 4) % N_ITEMS) + perfect(users, items)


def flat(users, items):
    return np.zeros(np.broadcast(users, items).shape)


SPEC = EvaluationSpec(ks=(1, 3), primary_metric="ndcg@3", click_negatives=2, n_bootstrap=200)


def test_numbers_by_hand():
    result = evaluate({"model": Scripted(second), "best": Scripted(perfect)}, small_split(), SPEC)
    ours = result.models["model"].metrics
    expected = {"hit_rate@1": 0, "ndcg@1": 0, "hit_rate@3": 1, "precision@3": 1 / 3, "recall@3": 1, "mrr@3": 1 / 2}
    expected |= {"map@3": 1 / 2, "ndcg@3": 1 / math.log2(3)}
    for name, value in expected.items():
        assert ours[name].mean == pytest.approx(value), name
        assert (ours[name].n, ours[name].n_excluded) == (N_USERS, 0)
        # All users alike: the interval has no width.
        assert ours[name].ci_low == pytest.approx(ours[name].ci_high)
    best = result.models["best"].metrics
    assert best["ndcg@1"].mean == best["gauc"].mean == 1.0
    # The twelve odd users rated their test item 2 of 5: it counts as not clicked, and they have no liked item.
    assert (best["gauc"].n, best["gauc"].n_excluded) == (12, 12)
    # 12 positives score 1; of the 12 * 1 + 24 * 2 negatives the 12 disliked ones score 1 too.
    assert best["auc"].mean == pytest.approx((48 + 12 / 2) / 60)
    assert best["coverage@1"].mean == 1.0
    assert "rmse" not in best


def test_novelty_counts_training_users_only():
    result = evaluate({"model": Scripted(perfect)}, small_split(), SPEC)
    # Item i is in the training rows of users with u = i or u + 1 = i modulo 10.
    counts = [sum(user % 10 in (item, (item - 1) % 10) for user in range(N_USERS)) for item in range(N_ITEMS)]
    expected = np.mean([-math.log2(counts[(user + 3) % 10] / N_USERS) for user in range(N_USERS)])
    assert result.models["model"].metrics["novelty@1"].mean == pytest.approx(expected)


def test_every_model_is_asked_the_same_and_negatives_are_unseen():
    split, models = small_split(), {"a": Scripted(second), "b": Scripted(perfect)}
    evaluate(models, split, SPEC, seed=5)
    assert models["a"].asked == models["b"].asked
    assert len(models["a"].asked) == N_USERS
    for user_id, items in models["a"].asked:
        user = int(user_id[1:])
        had = {(user + step) % N_ITEMS for step in range(4)}
        assert len(items) == len(set(items)) == 3
        assert set(items) & had == {(user + 3) % N_ITEMS}, "the held-out item, and nothing else the user had"
    other = {"a": Scripted(second)}
    evaluate(other, split, SPEC, seed=6)
    assert other["a"].asked != models["a"].asked, "the seed draws the negatives"


def test_the_draw_for_a_user_does_not_depend_on_who_else_is_asked():
    split, everyone, few = small_split(), Scripted(perfect), Scripted(perfect)
    evaluate({"model": everyone}, split, SPEC, seed=5)
    evaluate({"model": few}, split, SPEC.model_copy(update={"max_users": 5}), seed=5)
    assert len(few.asked) == 5
    assert set(few.asked) < set(everyone.asked)


def test_the_draw_is_one_of_a_list_of_all_unseen_items():
    """Drawn by number and looked up among the few met items: the same items as from the list itself, seed by seed."""
    split = small_split()
    users = split.queries("test")
    line, drawn = _draw_unseen(split, users, np.arange(len(users.users)), 3, seed=9)
    table, offered = split.dataset.interactions, split.offered("test")
    for position, user in enumerate(users.users.tolist()):
        unseen = np.setdiff1d(offered, table["item_idx"].to_numpy()[table["user_idx"].to_numpy() == user])
        wanted = np.random.default_rng([9, user]).choice(unseen, min(3, len(unseen)), replace=False)
        assert drawn[line == position].tolist() == wanted.tolist()


def test_without_ratings_every_held_out_row_is_a_click():
    result = evaluate({"model": Scripted(perfect)}, small_split(rated=False), SPEC)
    assert result.models["model"].metrics["auc"].mean == 1.0
    assert result.models["model"].metrics["gauc"].n == N_USERS
    assert "all held-out interactions count as clicked" in result.protocol


def test_fewer_unseen_items_than_wanted_gives_all_of_them():
    greedy = Scripted(perfect)
    evaluate({"model": greedy}, small_split(), SPEC.model_copy(update={"click_negatives": 50}))
    assert {len(items) for _, items in greedy.asked} == {1 + N_ITEMS - 4}


def test_no_negatives_leaves_users_without_a_pair():
    result = evaluate({"model": Scripted(perfect)}, small_split(), SPEC.model_copy(update={"click_negatives": 0}))
    assert result.models["model"].metrics["auc"].mean == 0.5
    assert "gauc" not in result.models["model"].metrics


def test_ratings_are_measured_where_they_are_offered():
    models = {"model": Scripted(flat, ratings=lambda users, items: flat(users, items) + 4), "b": Scripted(flat)}
    result = evaluate(models, small_split(), SPEC.model_copy(update={"primary_metric": "rmse"}))
    # Half the users are off by 1, half by 2.
    metrics = result.models["model"].metrics
    assert metrics["rmse"].mean == pytest.approx(math.sqrt((1 + 4) / 2))
    assert metrics["mae"].mean == pytest.approx(1.5)
    assert metrics["mae"].ci_low < 1.5 < metrics["mae"].ci_high
    values = result.per_user.query("metric == 'rmse'")
    assert sorted(values["value"].unique()) == [1.0, 2.0]
    assert result.verdict.floor is None
    assert not result.verdict.beats_floor
    assert "no baseline" in result.verdict.sentence
    assert "held-out ratings of these users" in result.protocol


def test_smaller_errors_beat_larger_ones():
    good = Scripted(flat, ratings=lambda users, items: np.where(users % 2 == 0, 5.0, 2.0) + flat(users, items))
    bad = Scripted(flat, ratings=lambda users, items: flat(users, items) + 1)
    spec = SPEC.model_copy(update={"primary_metric": "mae"})
    assert evaluate({"model": good, "floor": bad}, small_split(), spec).verdict.beats_floor
    worse = evaluate({"model": bad, "floor": good}, small_split(), spec).verdict
    assert not worse.beats_floor
    assert worse.difference.mean > 0
    assert "does worse" in worse.sentence


def test_a_click_head_is_used_where_there_is_one():
    with_head, without = Scripted(perfect, tasks=("rating", "click")), Scripted(perfect, tasks=("rank",))
    evaluate({"a": with_head, "b": without}, small_split(), SPEC)
    assert "click" in with_head.seen_tasks
    assert without.seen_tasks == {None}


def test_verdicts_are_honest():
    split = small_split()
    models = {"model": Scripted(perfect), "weak": Scripted(flat), "strong": Scripted(second)}
    won = evaluate(models, split, SPEC).verdict
    assert (won.beats_floor, won.floor) == (True, "strong")
    assert won.difference.mean == pytest.approx(1 - 1 / math.log2(3))
    assert won.sentence.startswith("The model beats strong")

    lost = evaluate(models, split, SPEC, model_name="weak").verdict
    assert (lost.beats_floor, lost.floor) == (False, "model")
    assert "does worse" in lost.sentence

    tied = evaluate({"model": Scripted(second), "same": Scripted(second)}, split, SPEC).verdict
    assert not tied.beats_floor
    assert "within noise" in tied.sentence

    alone = evaluate({"model": Scripted(perfect)}, split, SPEC).verdict
    assert (alone.beats_floor, alone.floor, alone.difference) == (False, None, None)


def test_a_handful_of_users_is_no_proof():
    verdict = evaluate({"model": Scripted(perfect), "floor": Scripted(second)}, small_split(n_users=6), SPEC).verdict
    assert verdict.difference.ci_low > 0
    assert not verdict.beats_floor
    assert "Too few users" in verdict.sentence


def test_a_gain_on_a_few_users_is_noise():
    """Better for 2 of 24 users and worse for 1: the interval of the difference holds zero."""

    def mixed(users, items):
        rule = np.where((users < 2), perfect(users, items), second(users, items))
        return np.where(users == 5, flat(users, items), rule)

    verdict = evaluate({"model": Scripted(mixed), "floor": Scripted(second)}, small_split(), SPEC).verdict
    assert verdict.difference.ci_low < 0 < verdict.difference.ci_high
    assert not verdict.beats_floor
    assert "within noise" in verdict.sentence


def test_short_lists_count_as_misses():
    result = evaluate({"model": Scripted(second, longest=1)}, small_split(), SPEC)
    metrics = result.models["model"].metrics
    assert metrics["hit_rate@3"].mean == 0
    assert metrics["coverage@3"].mean == metrics["coverage@1"].mean
    nothing = evaluate({"model": Scripted(second, longest=0)}, small_split(), SPEC).models["model"]
    assert nothing.metrics["ndcg@3"].mean == 0
    assert "novelty@3" not in nothing.metrics
    assert len(nothing.rankings) == 0


def test_a_cut_off_beyond_the_catalogue():
    spec = SPEC.model_copy(update={"ks": (1000,), "primary_metric": "recall@1000"})
    metrics = evaluate({"model": Scripted(flat)}, small_split(), spec).models["model"].metrics
    assert metrics["recall@1000"].mean == 1.0
    assert metrics["precision@1000"].mean == pytest.approx(1 / 1000)


def test_tables():
    result = evaluate({"model": Scripted(second), "floor": Scripted(perfect)}, small_split(), SPEC)
    rankings = result.rankings
    assert list(rankings.columns) == ["model", "user_id", "rank", "item_id", "score", "hit"]
    assert len(rankings) == 2 * N_USERS * 3
    row = rankings.query("model == 'model' and user_id == 'u09' and rank == 2").iloc[0]
    assert (row["item_id"], row["score"], bool(row["hit"])) == ("i2", 1.0, True)
    assert rankings.query("model == 'model' and hit")["rank"].unique().tolist() == [2]
    had = {(f"u{user:02d}", f"i{(user + step) % N_ITEMS}") for user in range(N_USERS) for step in range(3)}
    assert not had & set(zip(rankings["user_id"], rankings["item_id"], strict=True)), "seen items are never shown"

    per_user = result.per_user
    assert list(per_user.columns) == ["model", "user_id", "metric", "value"]
    assert not per_user["value"].isna().any()
    for name, report in result.models.items():
        means = per_user[per_user["model"] == name].groupby("metric")["value"].mean()
        for metric in ("ndcg@3", "recall@1", "gauc", "novelty@3"):
            assert report.metrics[metric].mean == pytest.approx(means[metric])


def test_json_has_the_promised_keys_and_no_nan():
    split = small_split(n_users=3)
    result = evaluate({"model": Scripted(second), "floor": Scripted(perfect)}, split, SPEC)
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert set(document) >= {"protocol", "metrics", "baselines", "beats_floor", "verdict"}
    assert set(document["baselines"]) == {"floor"}
    for value in document["metrics"].values():
        assert set(value) >= {"mean", "ci_low", "ci_high", "n"}
        assert value["ci_low"] <= value["mean"] + 1e-9
    assert document["beats_floor"] is False


def test_protocol_says_what_was_done():
    spec = SPEC.model_copy(update={"max_users": 7})
    protocol = evaluate({"model": Scripted(perfect)}, small_split(), spec, seed=3).protocol
    for words in (
        "Leave-one-out",
        "Full ranking",
        "7 test users",
        "seed 3",
        "above 3",
        "2 items a held-out row",
        "95 %",
    ):
        assert words in protocol


def test_the_same_seed_gives_the_same_result():
    models = {"model": Scripted(second), "floor": Scripted(flat)}
    first, again = (evaluate(models, small_split(), SPEC, seed=2).as_json() for _ in range(2))
    assert first == again


def test_progress_reaches_its_total_and_counts_what_is_slow():
    events = []
    models = {"model": Scripted(perfect, text=True), "floor": Scripted(flat)}
    evaluate(models, small_split(), SPEC, emit=lambda kind, **values: events.append((kind, values)))
    assert {kind for kind, _ in events} == {"progress"}
    steps = [values["step"] for _, values in events]
    assert steps == sorted(steps)
    # Ranking, clicks and ratings for the text model alone.
    assert {values["total"] for _, values in events} == {3 * N_USERS}
    assert steps[-1] == 3 * N_USERS
    assert {values["stage"] for _, values in events} == {"evaluating"}


def test_what_progress_raises_ends_it():
    def stop(kind, **values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate({"model": Scripted(perfect)}, small_split(), SPEC, emit=stop)


def test_scores_that_are_not_numbers_are_reported():
    broken = Scripted(lambda users, items: flat(users, items) + np.nan)
    with pytest.raises(RunFailedError, match="not numbers"):
        evaluate({"model": broken}, small_split(), SPEC)


def test_wrong_calls_are_refused():
    split = small_split()
    with pytest.raises(InputError):
        evaluate({}, split, SPEC)
    with pytest.raises(InputError, match="nobody"):
        evaluate({"model": Scripted(perfect)}, split, SPEC, model_name="nobody")
    with pytest.raises(InputError, match="9 items"):
        evaluate({"model": Scripted(perfect, n_items=9)}, split, SPEC)
    result = evaluate({"model": Scripted(perfect), "floor": Scripted(flat)}, split, SPEC)
    with pytest.raises(InputError, match="nobody"):
        result.compare("model", "nobody", "auc")
    with pytest.raises(InputError, match="rmse"):
        result.compare("model", "floor", "rmse")


@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_many_held_out_rows_of_one_user(protocol):
    """Real baselines under the other protocols: every held-out row of an asked user gives click rows."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item:02d}", float(rng.integers(1, 6)), float(rng.integers(0, 10_000)))
        for user in range(30)
        for item in rng.choice(40, 12, replace=False)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    split = make_split(Dataset.from_frames("mixed", frame), SplitSpec(protocol=protocol, test_fraction=0.2))
    models = {"item-knn": ItemKNNRecommender(), "popularity": PopularityRecommender()}
    for model in models.values():
        model.fit(split, FitContext())
    result = evaluate(models, split, EvaluationSpec(max_users=None, n_bootstrap=200))
    for report in result.models.values():
        assert 0 <= report.metrics["auc"].ci_low <= report.metrics["auc"].mean <= report.metrics["auc"].ci_high <= 1
        assert report.metrics["ndcg@10"].n == result.n_users
    lists = result.rankings.groupby(["model", "user_id"]).size()
    assert (lists == 10).all()
