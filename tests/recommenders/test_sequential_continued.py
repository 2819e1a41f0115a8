"""Histories gone on with on newer data: a new rule is learned, the old one kept by replay; items go by their ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recommenders.continued_cases import all_but_first_rows
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_bert

from llmrec_core.contracts import Continued, FitContext, HistoryItem, Query
from llmrec_core.data import ContinuedSplit, Dataset, continue_split, make_split
from llmrec_core.errors import DataError, InputError, ModelError
from llmrec_core.recommenders import blend
from llmrec_core.recommenders._histories import training_histories, training_rows
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders.blend import BlendRecommender
from llmrec_core.recommenders.pipeline import PipelineRecommender
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.specs import BlendSpec, PipelineSpec, SequentialSpec, SplitSpec, parse_run_spec
from llmrec_core.training.sequence_network import SequenceNetwork
from llmrec_core.training.sequences import Histories, Mix, _Loop

N = 12
SPEC = SplitSpec(protocol="temporal", valid_fraction=0.1, test_fraction=0.1)
TINY = {
    "model": None, "width": 16, "n_heads": 2, "max_history": 8, "dropout": 0.0, "learning_rate": 5e-3, "reverse": 0,
    "patience": 0, "average": 0.0,
}  # fmt: skip


def world(*, newer: bool, titles: bool = False) -> Dataset:
    """Everyone walks i -> i + 1 around a ring; what came since is another ring of new items, walked a -> a + 5.

    New items and users sort before all others, so every number is another one in the newer data.
    """
    rows = []
    for user in range(30):
        rows += [(f"u{user:02d}", f"i{(user + step) % N:02d}", 3600.0 * step + user) for step in range(10)]
    if newer:
        for user in range(30):
            name = f"b{user:02d}" if user % 3 == 0 else f"u{user:02d}"
            rows += [(name, f"a{(user + 5 * step) % N:02d}", 1e6 + 3600.0 * step + user) for step in range(10)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    ids = sorted(set(frame["item_id"]))
    items = pd.DataFrame({"item_id": ids})
    if titles:
        words = ["green cloud" if i > "a05" and i < "i" else ("blue engine", "red apple")[int(i[1:]) % 2] for i in ids]
        items["title"] = [f"{told} {item[1:]}" for told, item in zip(words, ids, strict=True)]
    return Dataset.from_frames("ring", frame, items)


def cpu(**more: object) -> FitContext:
    return FitContext(device="cpu", workspace_models=Path("models"), **more)  # type: ignore[arg-type]


class Shop:
    """The first recommender, saved; and what goes on from it."""

    def __init__(self, folder: Path, **fields: object) -> None:
        self.spec = SequentialSpec(**{**TINY, "epochs": 30, **fields})
        titles = self.spec.model is not None
        self.older, self.newer = world(newer=False, titles=titles), world(newer=True, titles=titles)
        self.folder = folder
        self.split = make_split(self.older, SPEC)
        self.first = SequentialRecommender(self.spec)
        self.first.fit(self.split, cpu())
        folder.mkdir(parents=True, exist_ok=True)
        self.first.save(folder)

    def cut(self, newer: Dataset | None = None) -> ContinuedSplit:
        return continue_split(make_split(newer or self.newer, SPEC), self.split, self.split.train)

    def context(self, replay: float, cut: ContinuedSplit, **more: object) -> FitContext:
        went_on = Continued(self.older, cut.trained, replay)
        return cpu(**{"start_from": self.folder, "continued": went_on, **more})

    def go_on(self, replay: float, newer: Dataset | None = None, seed: int = 0, **fields: object):
        cut = self.cut(newer)
        model = SequentialRecommender(self.spec.model_copy(update=fields))
        model.fit(cut.split, self.context(replay, cut, seed=seed))
        return model


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(tmp_path_factory.mktemp("first") / "recommender")


@pytest.fixture(scope="module")
def alone(shop):
    return shop.go_on(0.0, epochs=20)


@pytest.fixture(scope="module")
def mixed(shop):
    return shop.go_on(0.5, epochs=20)


def hits(model: SequentialRecommender, dataset: Dataset, steps: list[tuple[list[str], str]]) -> float:
    """Share of (history, next item) whose item comes first among what is not in the history."""
    queries = [Query("?", tuple(HistoryItem(i, None, 3600.0 * n) for n, i in enumerate(past))) for past, _ in steps]
    exclude = [np.array([dataset.item_idx(i) for i in past]) for past, _ in steps]
    found = model.top_k(queries, 1, exclude)
    return float(np.mean([dataset.item_ids[r.items[0]] == item for r, (_, item) in zip(found, steps, strict=True)]))


def sureness(model: SequentialRecommender, dataset: Dataset, steps: list[tuple[list[str], str]]) -> float:
    """Mean probability of the next item in the softmax over the catalogue."""
    queries = [Query("?", tuple(HistoryItem(i, None, 3600.0 * n) for n, i in enumerate(past))) for past, _ in steps]
    scores = model.score(queries, np.arange(dataset.n_items)).astype(np.float64)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(np.mean([shares[row, dataset.item_idx(item)] for row, (_, item) in enumerate(steps)]))


#: Around the first ring, and around the second.
OLD = [([f"i{(at + n) % N:02d}" for n in range(4)], f"i{(at + 4) % N:02d}") for at in range(N)]
NEW = [([f"a{(at + 5 * n) % N:02d}" for n in range(4)], f"a{(at + 20) % N:02d}") for at in range(N)]


def test_the_new_rule_is_learned_and_replay_keeps_the_old_one(shop, alone, mixed):
    assert hits(shop.first, shop.older, OLD) > 0.9
    assert hits(alone, shop.newer, NEW) > 0.8
    assert hits(mixed, shop.newer, NEW) > 0.8
    assert hits(mixed, shop.newer, OLD) > 0.9
    forgotten, kept = (sureness(model, shop.newer, OLD) for model in (alone, mixed))
    assert forgotten < sureness(shop.first, shop.older, OLD), "other items stand above the old ones now"
    assert kept > 1.5 * forgotten


def test_it_begins_where_the_first_one_ended_whatever_the_order_of_the_catalogue(shop):
    still = shop.go_on(0.3, epochs=1, learning_rate=1e-12)
    past = [Query("?", tuple(HistoryItem(i, None, 3600.0 * n) for n, i in enumerate(items))) for items, _ in OLD]
    before = shop.first.score(past, np.arange(N))
    ids = [f"i{n:02d}" for n in range(N)]
    now = still.score(past, np.array([shop.newer.item_idx(i) for i in ids]))
    np.testing.assert_allclose(now, before, atol=1e-5)
    assert [shop.newer.item_idx(i) for i in ids] != list(range(N)), "numbers are others now"
    lengths = np.linalg.norm(still.item_vectors(), axis=1)
    assert (lengths > 0).all(), "new items that were met have an id delta of their own"


def test_an_item_that_has_gone_is_left_out(shop):
    table = shop.newer.interactions[["user_id", "item_id", "timestamp"]]
    table = table.assign(user_id=table["user_id"].astype(str), item_id=table["item_id"].astype(str))
    kept = table[(table["item_id"] != "i03") | (table["timestamp"] > 1e5)].reset_index(drop=True)
    kept = kept[kept["item_id"] != "i03"].reset_index(drop=True)
    fewer = Dataset.from_frames("ring", kept, pd.DataFrame({"item_id": sorted(set(kept["item_id"]))}))
    assert "i03" not in fewer.item_index
    still = shop.go_on(0.3, newer=fewer, epochs=1, learning_rate=1e-12)
    before, now = shop.first.item_vectors(), still.item_vectors()
    for item in ("i02", "i04", "i11"):
        np.testing.assert_allclose(now[fewer.item_idx(item)], before[shop.older.item_idx(item)], atol=1e-6)


def test_equal_seeds_give_equal_weights_and_it_is_saved_whole(shop, mixed, tmp_path):
    once, again, other = (shop.go_on(0.5, epochs=2, seed=seed).item_vectors() for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    mixed.save(tmp_path)
    loaded = SequentialRecommender.load(tmp_path, shop.newer, cpu())
    everything = np.arange(shop.newer.n_items)
    past = [Query("?", tuple(HistoryItem(i) for i in items)) for items, _ in NEW]
    np.testing.assert_array_equal(loaded.score(past, everything), mixed.score(past, everything))


def test_what_is_held_out_is_in_no_window_and_old_windows_hold_old_rows(shop):
    """Neither old test rows nor new held-out ones are read or predicted while training."""
    cut = shop.cut()
    split = cut.split
    rows = training_rows(split)
    for held_out in (split.test, split.valid, cut.old.test):
        assert len(held_out)
        assert not np.intersect1d(rows, held_out).size
    is_new = Continued(shop.older, cut.trained, 0.5).new_among(rows)
    assert 0 < is_new.sum() < len(rows)
    histories = training_histories(split)
    np.testing.assert_array_equal(histories.items, split.dataset.interactions["item_idx"].to_numpy()[rows])
    assert (split.dataset.interactions["timestamp"].to_numpy()[rows][~is_new] < 1e6).all()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(2, 9),
    st.integers(0, 3),
    st.floats(0, 0.7),
    st.sampled_from([0.0, 1.0]),
)
def test_every_new_row_is_predicted_once_after_what_came_before_it(lengths, size, epoch, replay, reverse):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(starts[-1])
    is_new = np.random.default_rng(n).random(n) < 0.4
    assume(np.delete(is_new, starts[:-1]).any())
    histories = Histories(np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64), starts)
    fields = {**TINY, "max_history": size, "batch_size": 3, "reverse": reverse}
    network = SequenceNetwork(SequentialSpec(**fields), torch.empty(n, 0), torch.ones(n) > 0)
    mix = Mix(is_new, replay)
    loop = _Loop(network, histories, SequentialSpec(**fields), FitContext(), None, "ndcg@10", "", mix)
    steps: list[int] = []
    for inputs, targets in loop._batches(epoch):
        assert inputs.items.shape[1] <= size
        for row, mask, wanted in zip(inputs.items, inputs.mask, targets, strict=True):
            places = torch.nonzero(wanted >= 0).flatten().tolist()
            assert places, "every window has something to predict"
            for place in places:
                assert mask[place]
                # Items are their own row numbers here; what is told apart is the later row of each step.
                later = int(wanted[place]) if reverse == 0 else int(row[place])
                assert int(wanted[place]) == int(row[place]) + (1 if reverse == 0 else -1)
                steps.append(later)
                if reverse == 0 and is_new[later]:
                    begin = int(starts[np.searchsorted(starts, later, side="right") - 1])
                    assert place + 1 >= min(later - begin, size - size // 2)
    first = set(starts[:-1].tolist())
    new = [row for row in range(n) if is_new[row] and row not in first]
    old = [row for row in range(n) if not is_new[row] and row not in first]
    assert sorted(row for row in steps if is_new[row]) == new
    replayed = [row for row in steps if not is_new[row]]
    assert len(set(replayed)) == len(replayed)
    assert len(replayed) == min(len(old), round(replay / (1 - replay) * len(new))), "the share is exact"


def test_what_is_new_has_the_text_of_today_and_the_whitening_of_then(tmp_path):
    write_tiny_bert(tmp_path / "tiny")
    fields = {"model": str(tmp_path / "tiny"), "n_text": 4, "id_bound": 0.0, "epochs": 2}
    shop = Shop(tmp_path / "first", **fields)
    still = {"epochs": 1, "learning_rate": 1e-12}
    went_on = shop.go_on(0.0, **still)
    assert went_on._network is not None
    assert shop.first._network is not None
    now, before = went_on._network.text, shop.first._network.text
    for item in ("i02", "i11"):
        torch.testing.assert_close(now[shop.newer.item_idx(item)], before[shop.older.item_idx(item)])
    # A new item with the words of an old one has its vector.
    torch.testing.assert_close(now[shop.newer.item_idx("a04")], before[shop.older.item_idx("i04")])
    anew = SequentialRecommender(shop.spec)
    anew.fit(shop.cut().split, cpu())
    assert anew._network is not None
    assert not torch.allclose(
        anew._network.text[shop.newer.item_idx("i02")], now[shop.newer.item_idx("i02")], atol=1e-3
    )
    # A recommender saved before whitenings were kept: it is found again in what it was fitted on.
    head = check_head(shop.folder, "sequential", shop.older.item_ids)
    tensors = load_file(shop.folder / "weights.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("text_")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, shop.folder / "weights.safetensors")
    write_head(shop.folder, "sequential", {k: v for k, v in head.items() if k not in ("format", "family", "files")})
    longer = [f"{title} with a tail" for title in shop.newer.items["title"]]
    items = shop.newer.items[["item_id"]].assign(title=longer)
    table = shop.newer.interactions[["user_id", "item_id", "timestamp"]].astype({"user_id": str, "item_id": str})
    renamed = Dataset.from_frames("ring", table, items)
    from_old = shop.go_on(0.0, newer=renamed, **still)
    whitenings = [model._whitening["text"] for model in (from_old, shop.first)]
    np.testing.assert_allclose(whitenings[0].mean, whitenings[1].mean, atol=1e-5)
    np.testing.assert_allclose(whitenings[0].components, whitenings[1].components, rtol=1e-3, atol=1e-4)
    assert from_old._network is not None
    assert not torch.allclose(from_old._network.text, now), "texts that were changed are read again"


def test_feature_vectors_are_whitened_as_they_were(tmp_path):
    def told(dataset: Dataset, ids: list[str]) -> Dataset:
        ways = [[float(n % 3), float(n % 2), 1.0 + n] for n in range(len(ids))]
        vectors = pd.DataFrame({"item_id": ids, "vector": [" ".join(map(str, way)) for way in ways]})
        table = dataset.interactions[["user_id", "item_id", "timestamp"]].astype({"user_id": str, "item_id": str})
        return Dataset.from_frames("ring", table, dataset.items[["item_id"]], extras={"vectors": vectors})

    shop = Shop(tmp_path / "plain", epochs=1)
    ids = [f"i{n:02d}" for n in range(N)]
    shop.older, shop.newer = told(shop.older, ids), told(shop.newer, [*ids[:6], "a00"])
    shop.split = make_split(shop.older, SPEC)
    shop.first = SequentialRecommender(shop.spec)
    shop.first.fit(shop.split, cpu())
    shop.folder = tmp_path / "with"
    shop.folder.mkdir()
    shop.first.save(shop.folder)
    went_on = shop.go_on(0.0, epochs=1, learning_rate=1e-12)
    assert went_on._network is not None
    assert shop.first._network is not None
    now, before = went_on._network.given, shop.first._network.given
    assert now is not None
    assert before is not None
    for item in ("i00", "i05", "i09"):
        torch.testing.assert_close(now[shop.newer.item_idx(item)], before[shop.older.item_idx(item)])
    # The seventh row says what i06 says: as it was told there, though today's vectors vary less.
    torch.testing.assert_close(now[shop.newer.item_idx("a00")], before[shop.older.item_idx("i06")])
    assert now[shop.newer.item_idx("a01")].isnan().all()


class Stops(Exception):
    pass


def test_a_training_that_was_cut_short_ends_with_the_same_weights(shop, tmp_path):
    cut = shop.cut()
    fields = {"epochs": 5, "dropout": 0.2, "reverse": 0.5, "average": 0.9}
    whole = shop.go_on(0.5, **fields)
    rounds = 0

    def stop_after_three(event: str, **values: object) -> None:
        nonlocal rounds
        rounds += event == "validation"
        # The first one measures the weights as they came.
        if rounds == 4:
            raise Stops

    spec = shop.spec.model_copy(update=fields)
    with pytest.raises(Stops):
        SequentialRecommender(spec).fit(
            cut.split, shop.context(0.5, cut, checkpoint_dir=tmp_path / "c", emit=stop_after_three)
        )
    told: list[str] = []
    ctx = shop.context(0.5, cut, resume_from=tmp_path / "c", emit=lambda event, **v: told.append(str(v.get("message"))))
    resumed = SequentialRecommender(spec)
    resumed.fit(cut.split, ctx)
    assert any("Going on after round 2" in message for message in told)
    np.testing.assert_array_equal(resumed.item_vectors(), whole.item_vectors())
    with pytest.raises(ModelError, match="other data or training settings"):
        SequentialRecommender(spec).fit(cut.split, shop.context(0.2, cut, resume_from=tmp_path / "c"))


def test_weights_that_no_epoch_makes_better_stay_as_they_came(shop):
    measured = shop.go_on(0.0, epochs=2, learning_rate=1e-12)
    assert measured.outcome is not None
    assert measured.outcome.best_round == 0, "an epoch that changes nothing is no gain"


def test_what_does_not_fit_is_refused_in_words(shop):
    cut = shop.cut()
    with pytest.raises(ModelError, match="another width, n_heads"):
        shop.go_on(0.3, width=32, n_heads=4)
    with pytest.raises(InputError, match="no second stage on the same data"):
        SequentialRecommender(shop.spec).fit(shop.split, cpu(start_from=shop.folder))
    nothing = shop.context(0.3, cut)
    assert nothing.continued is not None
    nothing.continued = replace(nothing.continued, trained=cut.split.train)
    with pytest.raises(DataError, match="nothing new to learn from: the first run was trained on every row"):
        SequentialRecommender(shop.spec).fit(cut.split, nothing)
    nothing.continued = replace(nothing.continued, trained=all_but_first_rows(cut.split))
    with pytest.raises(DataError, match=r"continue_from: .*each newer interaction is its user's first"):
        SequentialRecommender(shop.spec).fit(cut.split, nothing)


def test_in_a_blend_histories_go_on_and_the_others_are_fitted_anew(shop, tmp_path):
    members = ({"family": "item-knn"}, shop.spec.model_copy(update={"epochs": 1, "learning_rate": 1e-12}))
    first = BlendRecommender(BlendSpec(members=members, weights=(0.5, 0.5)))  # type: ignore[arg-type]
    first.fit(shop.split, cpu())
    first.save(tmp_path)
    cut = shop.cut()
    ctx = replace(shop.context(0.3, cut), start_from=tmp_path)
    later = BlendRecommender(first.spec)
    later.fit(cut.split, ctx)
    before, now = (model.members[1].item_vectors() for model in (first, later))
    assert before is not None
    assert now is not None
    np.testing.assert_allclose(now[shop.newer.item_idx("i02")], before[shop.older.item_idx("i02")], atol=1e-6)
    anew = BlendRecommender(first.spec)
    anew.fit(cut.split, cpu())
    past, everything = [Query("?", (HistoryItem("i01"),))], np.arange(shop.newer.n_items)
    knn = [model.members[0].score(past, everything) for model in (anew, later)]
    np.testing.assert_array_equal(*knn)
    # A member of another shape has nothing to go on from, and says so.
    told: list[str] = []
    ctx.emit = lambda event, **v: told.append(str(v.get("message")))
    wide = SequentialRecommender(shop.spec.model_copy(update={"width": 32}))
    assert blend.part_context(ctx, wide, "1").start_from is None
    assert "it is fitted anew" in told[0]
    assert blend.part_context(ctx, later.members[0], "0").start_from is None
    assert blend.part_context(ctx, later.members[1], "1").start_from == tmp_path / "1"


def test_a_retriever_goes_on_from_its_own_folder(shop, tmp_path, monkeypatch):
    """The pipeline's folder holds the retriever's beside the ranker's."""
    (tmp_path / "retriever").mkdir()
    shop.first.save(tmp_path / "retriever")
    raw = {"dataset": {"name": "ring"}, "recommender": {"family": "pipeline", "retriever": shop.spec.model_dump()}}
    run = parse_run_spec(raw)
    assert isinstance(run.recommender, PipelineSpec)
    seen: list[FitContext] = []

    def fit(self: SequentialRecommender, split: object, ctx: FitContext) -> None:
        seen.append(ctx)
        raise Stops

    monkeypatch.setattr(SequentialRecommender, "fit", fit)
    cut = shop.cut()
    with pytest.raises(Stops):
        PipelineRecommender(run, run.recommender).fit(cut.split, shop.context(0.3, cut, start_from=tmp_path))
    assert seen[0].start_from == tmp_path / "retriever"
    assert seen[0].continued is not None
    # A second stage on the same data fits the retriever anew.
    with pytest.raises(Stops):
        PipelineRecommender(run, run.recommender).fit(shop.split, cpu(start_from=tmp_path))
    assert seen[1].start_from is None
