"""Two towers gone on with on newer data: a new rule is learned, the old one kept by replay; items go by their ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from recommenders.continued_cases import all_but_first_rows
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_bert

from llmrec_core.contracts import Continued, FitContext, HistoryItem, Query
from llmrec_core.data import ContinuedSplit, Dataset, continue_split, make_split
from llmrec_core.errors import DataError, InputError, ModelError
from llmrec_core.models.device import resolve_precision
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.text_vectors import Whitening, token_rows
from llmrec_core.recommenders import blend
from llmrec_core.recommenders._histories import training_histories, training_rows
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders.blend import BlendRecommender
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.recommenders.pipeline import PipelineRecommender
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.specs import BlendSpec, PipelineSpec, PromptSpec, SplitSpec, TuningSpec, TwoTowerSpec, parse_run_spec
from llmrec_core.training.contrastive import TextTable, _Loop
from llmrec_core.training.sequences import Mix
from llmrec_core.training.two_tower_network import TwoTowerNetwork

WORDS = ["red", "blue", "green", "dark", "light", "war", "love", "law", "life", "death", "house", "city"]
N = len(WORDS)
SPEC = SplitSpec(protocol="temporal", valid_fraction=0.1, test_fraction=0.1)
TINY: dict[str, Any] = {
    "n_text": 12, "width": 16, "n_layers": 1, "n_heads": 2, "max_history": 8, "dropout": 0.0, "learning_rate": 1e-2,
    "n_negatives": 24, "tuning_steps": 0, "patience": 0, "id_bound": 0.5, "reverse": 0.0, "average": 0.0,
}  # fmt: skip
#: The table of texts is read in bf16 where the processor has units for it, what is asked later in float32.
NEAR = 1e-5 if resolve_precision("auto", torch.device("cpu")).dtype == torch.float32 else 5e-3
#: Steps too small to see: what it knows afterwards is what it started from.
STILL: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12, "tuning_rate": 1e-12, "weight_decay": 0.0}


def world(*, newer: bool) -> Dataset:
    """Everyone walks i -> i + 1 around a ring; what came since is another ring of new items, walked a -> a + 5.

    New items and users sort before all others, so every number is another one in the newer data; "a99" is met by nobody
    and has the words of an old item.
    """
    rows = []
    for user in range(30):
        rows += [(f"u{user:02d}", f"i{(user + step) % N:02d}", 3600.0 * step + user) for step in range(10)]
    titles = {f"i{n:02d}": WORDS[n] for n in range(N)} | {"i99": "red city"}
    if newer:
        for user in range(30):
            name = f"b{user:02d}" if user % 3 == 0 else f"u{user:02d}"
            rows += [(name, f"a{(user + 5 * step) % N:02d}", 1e6 + 3600.0 * step + user) for step in range(10)]
        titles |= {f"a{n:02d}": f"{WORDS[n]} {WORDS[(n + 5) % N]}" for n in range(N)} | {"a99": WORDS[4]}
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": list(titles), "title": list(titles.values())})
    return Dataset.from_frames("ring", frame, items)


class Shop:
    """The first recommender, saved; and what goes on from it."""

    def __init__(self, models: Path, folder: Path, **fields: object) -> None:
        self.models, self.folder = models, folder
        self.spec = TwoTowerSpec(**{"model": str(models / "tiny"), **TINY, "epochs": 20, **fields})
        self.prompt = PromptSpec(max_tokens=64, max_history=3)
        self.older, self.newer = world(newer=False), world(newer=True)
        self.split = make_split(self.older, SPEC)
        self.first = TwoTowerRecommender(self.spec, self.prompt)
        self.first.fit(self.split, self.cpu())
        folder.mkdir(parents=True, exist_ok=True)
        self.first.save(folder)

    def cpu(self, **more: Any) -> FitContext:
        return FitContext(**{"device": "cpu", "workspace_models": self.models, **more})

    def cut(self, newer: Dataset | None = None) -> ContinuedSplit:
        return continue_split(make_split(newer or self.newer, SPEC), self.split, self.split.train)

    def context(self, replay: float, cut: ContinuedSplit, **more: Any) -> FitContext:
        went_on = Continued(self.older, cut.trained, replay)
        return self.cpu(**{"start_from": self.folder, "continued": went_on, **more})

    def go_on(self, replay: float, newer: Dataset | None = None, seed: int = 0, **fields: Any) -> TwoTowerRecommender:
        cut = self.cut(newer)
        model = TwoTowerRecommender(self.spec.model_copy(update=fields), self.prompt)
        model.fit(cut.split, self.context(replay, cut, seed=seed))
        return model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bert(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def shop(models, tmp_path_factory) -> Shop:
    return Shop(models, tmp_path_factory.mktemp("first") / "recommender")


@pytest.fixture(scope="module")
def alone(shop):
    return shop.go_on(0.0)


@pytest.fixture(scope="module")
def mixed(shop):
    return shop.go_on(0.5)


def queries(steps: list[tuple[list[str], str]]) -> list[Query]:
    return [Query("?", tuple(HistoryItem(i, None, 3600.0 * n) for n, i in enumerate(past))) for past, _ in steps]


def hits(model: TwoTowerRecommender, dataset: Dataset, steps: list[tuple[list[str], str]]) -> float:
    """Share of (history, next item) whose item comes first among what is not in the history and was ever met."""
    unmet = [dataset.item_idx(i) for i in ("i99", "a99") if i in dataset.item_index]
    exclude = [np.array([*unmet, *(dataset.item_idx(i) for i in past)]) for past, _ in steps]
    found = model.top_k(queries(steps), 1, exclude)
    return float(np.mean([dataset.item_ids[r.items[0]] == item for r, (_, item) in zip(found, steps, strict=True)]))


def sureness(model: TwoTowerRecommender, dataset: Dataset, steps: list[tuple[list[str], str]]) -> float:
    """Mean probability of the next item in the softmax over the catalogue."""
    scores = model.score(queries(steps), np.arange(dataset.n_items)).astype(np.float64)
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
    assert forgotten < sureness(shop.first, shop.older, OLD) - 0.05, "other items stand above the old ones now"
    assert kept > forgotten + 0.2


def test_it_begins_where_the_first_one_ended_whatever_the_order_of_the_catalogue(shop):
    still = shop.go_on(0.3, **STILL)
    ids = [f"i{n:02d}" for n in range(N)]
    before = shop.first.score(queries(OLD), np.arange(N))
    now = still.score(queries(OLD), np.array([shop.newer.item_idx(i) for i in ids]))
    np.testing.assert_allclose(now, before, atol=NEAR)
    assert [shop.newer.item_idx(i) for i in ids] != list(range(N)), "numbers are others now"
    vectors = still.item_vectors()
    np.testing.assert_allclose(vectors[shop.newer.item_idx("a99")], still.embed(["light"])[0], atol=NEAR)
    away = vectors[shop.newer.item_idx("a00")] - still.embed(["red war"])[0]
    assert 1e-3 < np.linalg.norm(away) < 0.5, "new items that were met have a small id delta beside their text"


def test_what_nobody_met_before_begins_with_a_fresh_delta(shop):
    """An item of the first catalogue that had no training row there, and has some now, is like any new one."""
    table = shop.newer.interactions[["user_id", "item_id", "timestamp"]].astype({"user_id": str, "item_id": str})
    table["item_id"] = table["item_id"].replace("a03", "i99")
    met = Dataset.from_frames("ring", table, shop.newer.items[["item_id", "title"]])
    one, other = (shop.go_on(0.3, newer=met, seed=seed, **STILL) for seed in (0, 1))
    rows = [model._fitted()[1].delta[met.item_idx("i99")] for model in (one, other)]
    assert not torch.allclose(rows[0], rows[1]), "what it was seeded with in the first training is not taken over"
    rows = [model._fitted()[1].delta[met.item_idx("i02")] for model in (one, other)]
    assert torch.allclose(rows[0], rows[1])


def test_weights_move_from_those_of_the_first_one_and_not_from_anywhere_else(shop):
    """A short way: nearer to where it began than what is trained anew."""
    short = shop.go_on(0.3, epochs=1, learning_rate=1e-3)
    anew = TwoTowerRecommender(shop.spec.model_copy(update={"epochs": 1, "learning_rate": 1e-3}), shop.prompt)
    anew.fit(shop.cut().split, shop.cpu())
    old, now, fresh = (model._fitted()[1].state_dict() for model in (shop.first, short, anew))
    for name in ("wanted.weight", "distance", "rating", "project.weight"):
        assert not torch.equal(now[name], old[name])
        if name != "project.weight":
            assert (now[name] - old[name]).norm() < 0.5 * (fresh[name] - old[name]).norm()
    assert torch.equal(now["mean"], old["mean"])
    assert torch.equal(now["components"], old["components"])


def loop(shop: Shop, replay: float, **fields: object) -> tuple[_Loop, Mix, np.ndarray]:
    """An unstarted training that goes on, its mix, and what row of the histories each item is: every row is its own."""
    split = shop.cut().split
    rows = training_rows(split)
    mix = Mix(Continued(shop.older, shop.cut().trained, replay).new_among(rows), replay)
    found = training_histories(split)
    histories = replace(found, items=np.arange(len(found.items)))
    backbone = load_backbone(shop.models / "tiny")
    table = TextTable(backbone, token_rows(backbone, ["red"] * len(found.items)))
    table.pooled = torch.randn(len(found.items), backbone.hidden_size)
    spec = TwoTowerSpec(**{"model": "tiny", **TINY, **fields})
    network = TwoTowerNetwork(spec, Whitening.fit(table.pooled.numpy(), 12), torch.ones(len(found.items)) > 0)
    offered = np.arange(len(found.items))
    ctx = FitContext(device="cpu")
    return _Loop(network, table, histories, offered, spec, ctx, None, "ndcg@10", "", mix), mix, histories.starts


def predicted(made: _Loop, epochs: int = 1) -> np.ndarray:
    """Rows that are wanted in so many epochs."""
    batches = [targets for number in range(epochs) for _, targets in made._batches(number)]
    return np.concatenate([targets[targets >= 0].numpy() for targets in batches])


@pytest.mark.parametrize("replay", [0.0, 0.3, 0.5])
def test_the_share_of_old_rows_is_exact_and_new_ones_are_each_predicted_once(shop, replay):
    made, mix, starts = loop(shop, replay, batch_size=8)
    first = np.isin(np.arange(len(mix.is_new)), starts[:-1])
    for epoch in range(3):
        wanted = np.concatenate([t[t >= 0].numpy() for _, t in made._batches(epoch)])
        new, old = wanted[mix.is_new[wanted]], wanted[~mix.is_new[wanted]]
        assert sorted(new) == np.flatnonzero(mix.is_new & ~first).tolist()
        assert len(set(old.tolist())) == len(old) == round(replay / (1 - replay) * len(new))
        assert len(old) < (~mix.is_new & ~first).sum(), "there are more old rows than are asked for"
    if not replay:
        return
    both = [mix.is_new[targets[targets >= 0].numpy()].mean() for _, targets in made._batches(0)]
    assert 0 < np.mean(both) < 1
    assert sum(0 < share < 1 for share in both) > len(both) / 2, "batches hold both"


@pytest.mark.parametrize("reverse", [0.0, 0.5])
def test_the_probabilities_of_targets_are_those_of_the_mix(shop, reverse):
    """What the logits of other users' items are lowered by."""
    made, _, _ = loop(shop, 0.3, reverse=reverse)
    found = np.bincount(predicted(made, 400), minlength=len(made.share)) / len(predicted(made, 400))
    assert made.share.sum() == pytest.approx(1.0)
    assert np.abs(found - made.share).max() < 0.2 * made.share.max()
    assert ((made.share == 0) == (found == 0)).all()


def test_prompts_are_new_ones_and_an_exact_share_of_old_ones(models, tmp_path):
    shop = Shop(models, tmp_path / "prompts", user="prompt", max_prompts=40, epochs=2)
    cut = shop.cut()
    for replay, n_old in ((0.0, 0), (0.25, 10)):
        model = TwoTowerRecommender(shop.spec, shop.prompt)
        model._know(shop.newer, np.asarray(cut.split.train_item_counts), None)
        asked, items = model._prompt_examples(cut.split, shop.context(replay, cut))
        ids = shop.newer.item_ids[items]
        assert len(asked) == len(ids) == 40
        rows = shop.newer.interactions.iloc[cut.trained]
        known = {(str(u), str(i)) for u, i in zip(rows["user_id"], rows["item_id"], strict=True)}
        assert sum((q.user_id, str(i)) in known for q, i in zip(asked, ids, strict=True)) == n_old
    still = shop.go_on(0.25, **STILL)
    ids = np.array([shop.newer.item_idx(f"i{n:02d}") for n in range(N)])
    asked = queries(OLD)
    np.testing.assert_allclose(still.score(asked, ids), shop.first.score(asked, np.arange(N)), atol=10 * NEAR)
    assert still.outcome is not None
    moved = shop.go_on(0.25, epochs=4)
    assert not np.allclose(moved.item_vectors(), still.item_vectors(), atol=1e-3)


def test_equal_seeds_give_equal_weights_and_it_is_saved_whole(shop, mixed, tmp_path):
    once, again, other = (shop.go_on(0.5, epochs=2, seed=seed).item_vectors() for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    mixed.save(tmp_path)
    loaded = TwoTowerRecommender.load(tmp_path, shop.newer, shop.cpu())
    everything = np.arange(shop.newer.n_items)
    np.testing.assert_array_equal(loaded.score(queries(NEW), everything), mixed.score(queries(NEW), everything))


def test_what_the_first_one_knew_stays_known_without_a_training_row_of_its_own(shop, tmp_path):
    """Its id delta is used, kept on disk, and handed on; recommenders saved before this was kept can be read."""
    cut = shop.cut()
    items = shop.newer.interactions["item_idx"].to_numpy()
    gone = shop.newer.item_idx("i05")
    fewer = replace(cut.split, train=cut.split.train[items[cut.split.train] != gone])
    assert fewer.train_item_counts[gone] == 0
    still = TwoTowerRecommender(shop.spec.model_copy(update=STILL), shop.prompt)
    still.fit(fewer, shop.context(0.3, cut))
    before = shop.first.item_vectors()[shop.older.item_idx("i05")]
    np.testing.assert_allclose(still.item_vectors()[gone], before, atol=NEAR)
    assert np.abs(before - shop.first.embed([WORDS[5]])[0]).max() > 1e-3
    still.save(tmp_path)
    loaded = TwoTowerRecommender.load(tmp_path, shop.newer, shop.cpu())
    np.testing.assert_array_equal(loaded.item_vectors(), still.item_vectors())
    loaded._has_text[gone] = False
    assert np.abs(loaded.item_vectors()[gone]).max() > 0, "it was met, so something is known of it"
    head = check_head(tmp_path, "two-tower", shop.newer.item_ids)
    tensors = load_file(tmp_path / "weights.safetensors")
    del tensors["trained"]
    save_file(tensors, tmp_path / "weights.safetensors")
    write_head(tmp_path, "two-tower", {k: v for k, v in head.items() if k not in ("format", "family", "files")})
    older = TwoTowerRecommender.load(tmp_path, shop.newer, shop.cpu())
    np.testing.assert_allclose(older.item_vectors()[gone], older.embed([WORDS[5]])[0], atol=NEAR)


def test_an_item_that_has_gone_is_left_out(shop):
    table = shop.newer.interactions[["user_id", "item_id", "timestamp"]].astype({"user_id": str, "item_id": str})
    kept = table[table["item_id"] != "i03"].reset_index(drop=True)
    items = shop.newer.items[["item_id", "title"]]
    fewer = Dataset.from_frames("ring", kept, items[items["item_id"].astype(str) != "i03"].reset_index(drop=True))
    assert "i03" not in fewer.item_index
    still = shop.go_on(0.3, newer=fewer, **STILL)
    before, now = shop.first.item_vectors(), still.item_vectors()
    for item in ("i02", "i04", "i11"):
        np.testing.assert_allclose(now[fewer.item_idx(item)], before[shop.older.item_idx(item)], atol=NEAR)


TUNED = {
    "full": TuningSpec(freeze_embeddings=False),
    "frozen-words": TuningSpec(),
    "top-layers": TuningSpec(method="top-layers", n_top_layers=1),
    "lora": TuningSpec(method="lora", lora_rank=2),
    "ia3": TuningSpec(method="ia3"),
    "prefix": TuningSpec(method="prefix", n_virtual_tokens=2),
    "bottleneck": TuningSpec(method="bottleneck", bottleneck_width=4),
}


@pytest.mark.parametrize("tuning", TUNED.values(), ids=TUNED)
def test_what_was_tuned_of_the_language_model_goes_on_too(models, tmp_path, monkeypatch, tuning):
    # Without validation users it is the last state that is kept, not the best.
    monkeypatch.setattr("llmrec_core.recommenders.two_tower.watched", lambda *_: None)
    steps = {"tuning_steps": 4, "tuning_texts": 8, "tuning_rate": 3e-2}
    shop = Shop(models, tmp_path / "first", epochs=1, tuning=tuning, **steps)
    still = shop.go_on(0.3, **{**STILL, "tuning_steps": 1})
    moved = shop.go_on(0.3, epochs=1, tuning_steps=4)
    # Kept as it was tuned, and not tuned further.
    kept = shop.go_on(0.3, epochs=1, tuning_steps=0)
    anew = TwoTowerRecommender(still.spec, shop.prompt)
    anew.fit(shop.cut().split, shop.cpu())
    first, same, other, untouched, fresh = (
        model._fitted()[0].model.state_dict() for model in (shop.first, still, moved, kept, anew)
    )
    assert [n for n in first if not torch.allclose(first[n], fresh[n], atol=1e-4)], "the first one tuned something"
    assert [n for n in first if not torch.allclose(first[n], other[n], atol=1e-4)]
    for name in first:
        torch.testing.assert_close(same[name], first[name], atol=1e-6, rtol=0)
        assert torch.equal(untouched[name], first[name])
    texts = item_texts(shop.newer)
    for model, where in ((moved, "moved"), (kept, "kept")):
        (tmp_path / where).mkdir()
        model.save(tmp_path / where)
        loaded = TwoTowerRecommender.load(tmp_path / where, shop.newer, shop.cpu())
        np.testing.assert_allclose(loaded.embed(texts), model.embed(texts), atol=1e-6)


def test_a_language_model_that_is_as_it_came_can_be_tuned_in_any_way_from_here(shop, monkeypatch):
    monkeypatch.setattr("llmrec_core.recommenders.two_tower.watched", lambda *_: None)
    tuned = shop.go_on(
        0.3, epochs=1, tuning=TUNED["lora"], tuning_steps=3, tuning_texts=8, tuning_rate=1e-2
    )  # fmt: skip
    assert tuned._trained
    assert all("lora" in name for name in tuned._trained)


class Stops(Exception):
    pass


@pytest.mark.parametrize("rounds", [2, 4])
def test_a_training_that_was_cut_short_ends_with_the_same_weights(shop, tmp_path, rounds, monkeypatch):
    """In the first phase, and in the tuning of the language model."""
    monkeypatch.setattr("llmrec_core.training.contrastive._TUNED_ROUND", 3)
    cut = shop.cut()
    fields = {"epochs": 3, "tuning_steps": 7, "tuning_texts": 3, "dropout": 0.2, "reverse": 0.5, "average": 0.9}
    whole = shop.go_on(0.5, **fields)
    seen = 0

    def stop_later(event: str, **values: object) -> None:
        nonlocal seen
        seen += event == "validation"
        # The first one measures the weights as they came.
        if seen == rounds + 2:
            raise Stops

    spec = shop.spec.model_copy(update=fields)
    with pytest.raises(Stops):
        TwoTowerRecommender(spec).fit(
            cut.split, shop.context(0.5, cut, checkpoint_dir=tmp_path / "c", emit=stop_later)
        )  # fmt: skip
    told: list[str] = []
    ctx = shop.context(0.5, cut, resume_from=tmp_path / "c", emit=lambda event, **v: told.append(str(v.get("message"))))
    resumed = TwoTowerRecommender(spec)
    resumed.fit(cut.split, ctx)
    assert any(f"Going on after round {rounds}" in message for message in told)
    np.testing.assert_array_equal(resumed.item_vectors(), whole.item_vectors())
    assert resumed.outcome == whole.outcome
    with pytest.raises(ModelError, match="other data or training settings"):
        TwoTowerRecommender(spec).fit(cut.split, shop.context(0.2, cut, resume_from=tmp_path / "c"))


def test_weights_that_no_epoch_makes_better_stay_as_they_came(shop):
    measured = shop.go_on(0.0, epochs=2, learning_rate=1e-12)
    assert measured.outcome is not None
    assert measured.outcome.best_round == 0, "an epoch that changes nothing is no gain"


def test_what_does_not_fit_is_refused_in_words(shop):
    cut = shop.cut()
    with pytest.raises(ModelError, match=r"continue_from: .*another width, n_heads.*Use its fields here too"):
        shop.go_on(0.3, width=32, n_heads=4)
    with pytest.raises(ModelError, match="another id_bound"):
        shop.go_on(0.3, id_bound=0.0)
    shop.go_on(0.3, id_bound=0.4, **STILL)
    with pytest.raises(InputError, match=r"continue_from: two towers have no second stage on the same data"):
        TwoTowerRecommender(shop.spec).fit(shop.split, shop.cpu(start_from=shop.folder))
    nothing = shop.context(0.3, cut)
    assert nothing.continued is not None
    nothing.continued = replace(nothing.continued, trained=cut.split.train)
    with pytest.raises(DataError, match="nothing new to learn from: the first run was trained on every row"):
        TwoTowerRecommender(shop.spec).fit(cut.split, nothing)
    nothing.continued = replace(nothing.continued, trained=all_but_first_rows(cut.split))
    with pytest.raises(DataError, match=r"continue_from: .*each newer interaction is its user's first"):
        TwoTowerRecommender(shop.spec).fit(cut.split, nothing)


def test_what_was_tuned_two_runs_ago_and_kept_since_is_not_tuned_in_another_way(models, tmp_path):
    """The spec of the run in between does not tell."""
    shop = Shop(models, tmp_path / "first", epochs=1, tuning_steps=2, tuning_texts=8)
    kept = shop.go_on(0.3, epochs=1, tuning_steps=0)
    (tmp_path / "kept").mkdir()
    kept.save(tmp_path / "kept")
    split = shop.cut().split
    went_on = Continued(shop.newer, split.train[:5], 0.3)
    ctx = shop.cpu(start_from=tmp_path / "kept", continued=went_on)
    other = shop.spec.model_copy(update={"tuning": TUNED["lora"]})
    with pytest.raises(ModelError, match="its language model was tuned in another way"):
        TwoTowerRecommender(other, shop.prompt).fit(split, ctx)
    TwoTowerRecommender(shop.spec, shop.prompt).fit(split, ctx)


def test_another_base_model_is_refused(models, tmp_path):
    write_tiny_bert(tmp_path / "tiny")
    shop = Shop(tmp_path, tmp_path / "first", epochs=1, tuning=TUNED["full"], tuning_steps=1, tuning_texts=4)
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, tmp_path / "tiny" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"continue_from: the base model .* is not the one.*Put the base model back"):
        shop.go_on(0.3)


def test_in_a_blend_towers_go_on_and_the_others_are_fitted_anew(shop, tmp_path):
    members = ({"family": "item-knn"}, shop.spec.model_copy(update=STILL))
    first = BlendRecommender(BlendSpec(members=members, weights=(0.5, 0.5)))  # type: ignore[arg-type]
    first.fit(shop.split, shop.cpu())
    first.save(tmp_path)
    cut = shop.cut()
    ctx = shop.context(0.3, cut, start_from=tmp_path)
    later = BlendRecommender(first.spec)
    later.fit(cut.split, ctx)
    before, now = (model.members[1].item_vectors() for model in (first, later))
    assert before is not None
    assert now is not None
    np.testing.assert_allclose(now[shop.newer.item_idx("i02")], before[shop.older.item_idx("i02")], atol=NEAR)
    # A member of another shape has nothing to go on from, and says so.
    told: list[str] = []
    ctx.emit = lambda event, **v: told.append(str(v.get("message")))
    wide = TwoTowerRecommender(shop.spec.model_copy(update={"width": 32}))
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

    def fit(self: TwoTowerRecommender, split: object, ctx: FitContext) -> None:
        seen.append(ctx)
        raise Stops

    monkeypatch.setattr(TwoTowerRecommender, "fit", fit)
    cut = shop.cut()
    with pytest.raises(Stops):
        PipelineRecommender(run, run.recommender).fit(cut.split, shop.context(0.3, cut, start_from=tmp_path))
    assert seen[0].start_from == tmp_path / "retriever"
    assert seen[0].continued is not None
    # A second stage on the same data fits the retriever anew.
    with pytest.raises(Stops):
        PipelineRecommender(run, run.recommender).fit(shop.split, shop.cpu(start_from=tmp_path))
    assert seen[1].start_from is None
