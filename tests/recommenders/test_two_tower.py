"""Two towers: what they learn, logQ, fresh and remembered texts, prompts as users, cold items, resume, FAISS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import write_tiny_bert
from training.training_cases import Events

from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError, ModelError, RunCancelledError, RunFailedError
from llmrec_core.models.device import resolve_precision
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.text_vectors import Whitening, token_rows
from llmrec_core.recommenders import two_tower
from llmrec_core.recommenders._histories import training_histories
from llmrec_core.recommenders._remembered import Remembered
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.recommenders.vector_search import similar_items
from llmrec_core.specs import PromptSpec, SplitSpec, TuningSpec, TwoTowerSpec
from llmrec_core.training.contrastive import TextTable, _Loop
from llmrec_core.training.sequence_network import Sequences
from llmrec_core.training.two_tower_network import TwoTowerNetwork

WORDS = ["red", "blue", "green", "dark", "light", "war", "love", "law", "life", "death", "house", "city"]
N = len(WORDS)
#: The table of texts is read in bf16 where the processor has units for it, what is asked later in float32.
NEAR = 1e-5 if resolve_precision("auto", torch.device("cpu")).dtype == torch.float32 else 2e-3
SMALL = {"n_text": 12, "width": 16, "max_history": 8, "dropout": 0.0, "learning_rate": 1e-2, "n_negatives": 16,
         "tuning_steps": 0, "patience": 0, "epochs": 6, "n_layers": 1, "n_heads": 2,
         "id_bound": 0.0, "reverse": 0.0, "average": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bert(folder / "tiny")
    return folder


def chain(n_users: int = 40, shuffled: bool = False) -> Split:
    """Everyone walks i -> i + 1 around a ring of 12; "twin" has the title of the first item, and nobody met it."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(n_users):
        walk = [(user + step) % N for step in range(9)]
        if shuffled:
            walk = rng.permutation(walk).tolist()
        rows += [(f"u{user:02d}", f"i{item:02d}", 1.0 + item % 5, 3600.0 * step) for step, item in enumerate(walk)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": [*(f"i{n:02d}" for n in range(N)), "twin"], "title": [*WORDS, WORDS[0]]})
    return make_split(Dataset.from_frames("ring", frame, items), SplitSpec())


def fitted(split: Split, models: Path, ctx: FitContext | None = None, **fields: object) -> TwoTowerRecommender:
    model = TwoTowerRecommender(
        TwoTowerSpec(**{"model": str(models / "tiny"), **SMALL, **fields}), PromptSpec(max_tokens=64, max_history=3)
    )
    ctx = ctx or FitContext(device="cpu")
    ctx.workspace_models = models
    model.fit(split, ctx)
    return model


def hit_rate(model: TwoTowerRecommender, split: Split) -> float:
    asked = split.queries("test")
    cold = np.array([N])
    rankings = model.top_k(asked.queries, 1, [np.union1d(seen, cold) for seen in asked.exclude])
    return float(np.mean([r.items[0] in t for r, t in zip(rankings, asked.targets, strict=True)]))


def test_the_planted_order_is_learnt_and_a_shuffled_one_is_not(models):
    assert hit_rate(fitted(chain(), models, epochs=20), chain()) > 0.9
    # 9 of 12 items are seen: a guess among the 3 left hits a third.
    assert hit_rate(fitted(chain(shuffled=True), models, epochs=20), chain(shuffled=True)) < 0.65


@pytest.mark.parametrize("method", ["full", "top-layers", "lora"])
def test_the_language_model_learns_too_and_comes_back_from_disk(models, method, tmp_path, monkeypatch):
    # Without validation users it is the last state that is kept, not the best.
    monkeypatch.setattr("llmrec_core.recommenders.two_tower.watched", lambda *_: None)
    split = chain(n_users=10)
    tuning = TuningSpec(method=method, n_top_layers=1, lora_rank=2)
    before = fitted(split, models, epochs=2)
    # The table is read by the model as it is after tuning: the vectors of texts follow from it.
    model = fitted(split, models, epochs=2, tuning=tuning, tuning_steps=8, tuning_texts=5, tuning_rate=1e-2)
    texts = item_texts(split.dataset)
    trained = [n for n, p in before._fitted()[0].model.state_dict().items() if p.ndim > 1]
    states = [m._fitted()[0].model.state_dict() for m in (before, model)]
    if method != "lora":
        moved = [n for n in trained if not torch.equal(states[0][n], states[1][n])]
        assert any("layer.1" in n for n in moved)
        assert (method == "full") == any("layer.0" in n for n in moved)
        assert not any("embeddings" in n for n in moved)
    np.testing.assert_allclose(model.embed(texts), model._vectors(), atol=NEAR)
    model.save(tmp_path)
    loaded = TwoTowerRecommender.load(tmp_path, split.dataset, FitContext(workspace_models=models, device="cpu"))
    np.testing.assert_allclose(loaded.embed(texts), model.embed(texts), atol=1e-6)


def test_cold_items_are_their_texts(models):
    split = chain()
    model = fitted(split, models, epochs=30)
    twin, first = split.dataset.item_idx("twin"), split.dataset.item_idx("i00")
    np.testing.assert_allclose(model.item_vectors()[twin], model.item_vectors()[first], atol=1e-6)
    before = Query("new", tuple(HistoryItem(f"i{n:02d}", None, 3600.0 * n) for n in range(6, N)))
    assert set(model.top_k([before], 2)[0].items.tolist()) == {twin, first}
    assert similar_items(model, first, 1).items.tolist() == [twin]


def test_what_texts_do_not_say_is_learnt_by_ids_within_a_bound(models, tmp_path):
    split = chain()
    dataset = split.dataset
    alike = pd.DataFrame({"item_id": dataset.item_ids, "title": ["red"] * len(dataset.item_ids)})
    frame = dataset.interactions[["user_id", "item_id", "rating", "timestamp"]]
    mute = make_split(Dataset.from_frames("mute", frame, alike), SplitSpec())
    assert np.ptp(fitted(mute, models).item_vectors(), axis=0).max() < 1e-5, "texts cannot tell one from another"
    model = fitted(mute, models, epochs=20, id_bound=0.1)
    assert hit_rate(model, mute) > 0.9
    vectors = model.item_vectors()
    twin = mute.dataset.item_idx("twin")
    # Nobody met the twin, so it is the text that all of them share; the others lie around it.
    away = np.linalg.norm(vectors - vectors[twin], axis=1)
    assert away.max() == pytest.approx(0.1, abs=1e-5)
    np.testing.assert_allclose(model.embed(["red"])[0], vectors[twin], atol=1e-5)
    model.save(tmp_path)
    loaded = TwoTowerRecommender.load(tmp_path, mute.dataset, FitContext(workspace_models=models, device="cpu"))
    np.testing.assert_array_equal(loaded.item_vectors(), vectors)


def test_histories_read_backwards_teach_what_came_before(models):
    split = chain()
    asked, both = [Query("new", (HistoryItem("i05", 1.0, 0.0),))], np.array([4, 6])
    ((before, after),) = fitted(split, models, epochs=12, reverse=1.0).score(asked, both)
    assert before > after + 1.0
    ((before, after),) = fitted(split, models, epochs=12).score(asked, both)
    assert after > before + 1.0


def test_the_mean_of_the_weights_is_kept_until_the_model_is_trained(models, monkeypatch):
    monkeypatch.setattr("llmrec_core.recommenders.two_tower.watched", lambda *_: None)
    split = chain(n_users=10)
    last, mean = (fitted(split, models, epochs=2, average=average) for average in (0.0, 0.9))
    assert np.abs(last.item_vectors() - mean.item_vectors()).max() > 1e-3
    tuned = fitted(split, models, epochs=2, average=0.9, tuning_steps=4, tuning_texts=5, tuning_rate=1e-2)
    # What was kept is what the texts were last read with.
    np.testing.assert_allclose(tuned.embed(item_texts(split.dataset)), tuned._vectors(), atol=NEAR)


def test_only_what_the_history_says_counts(models):
    model = fitted(chain(), models)
    past = tuple(HistoryItem(f"i{n:02d}", 3.0, 3600.0 * n) for n in range(4))
    everything = np.arange(N + 1)
    same = model.score([Query("u01", past), Query("nobody", past)], everything)
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    strange = (HistoryItem("??", 3.0, 0.0), *past)
    np.testing.assert_allclose(model.score([Query("a", strange)], everything)[0], same[0], atol=1e-5)
    order = model.top_k([Query("new")], N)[0].items
    assert (np.diff(chain().train_item_counts[order]) <= 0).all(), "without history popularity orders"


def test_items_are_computed_once_for_many_queries_and_a_user_once_in_a_call(models, tmp_path, monkeypatch):
    split = chain()
    model = fitted(split, models, id_bound=0.5)
    whole = model.score(split.queries("test").queries, np.arange(N + 1))
    model.save(tmp_path)
    again = TwoTowerRecommender.load(tmp_path, split.dataset, FitContext(device="cpu", workspace_models=models))
    items, users, n_items, n_users = TwoTowerNetwork.items, TwoTowerNetwork.users_of, [], []

    def counted_items(self, whitened, which=None):
        n_items.append(len(whitened))
        return items(self, whitened, which)

    def counted_users(self, vectors, batch):
        n_users.append(len(batch.items))
        return users(self, vectors, batch)

    monkeypatch.setattr(TwoTowerNetwork, "items", counted_items)
    monkeypatch.setattr(TwoTowerNetwork, "users_of", counted_users)
    monkeypatch.setattr("llmrec_core.recommenders.two_tower._BLOCK_CELLS", 5 * (N + 1))
    queries = split.queries("test").queries
    scores = again.score(queries, np.arange(N + 1))
    again.top_k(queries, 3)
    again.item_vectors()
    assert n_items == [N + 1]
    # Blocks of another size round their sums another way; scores go up to 6.
    np.testing.assert_allclose(scores, whole, atol=1e-5)
    n_users.clear()
    past = tuple(HistoryItem(f"i{n:02d}", 3.0, 3600.0 * n) for n in range(4))
    asked = [Query("a", past), Query("b", past[:2]), Query("c", past), Query("d"), Query("a", past)]
    found = again.score(asked, np.arange(N + 1))
    assert n_users == [3]
    for row, query in enumerate(asked):
        np.testing.assert_allclose(found[row], again.score([query], np.arange(N + 1))[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_items_are_computed_again_when_weights_or_texts_change(models):
    model = fitted(chain(), models)
    before = model.item_vectors()
    other = chain(shuffled=True)
    model.top_k([Query("new")], 3)
    model.fit(other, FitContext(device="cpu", workspace_models=models))
    np.testing.assert_array_equal(model.item_vectors(), fitted(other, models).item_vectors())
    assert np.abs(model.item_vectors() - before).max() > 1e-3
    before = model.item_vectors()
    with torch.no_grad():
        model._pooled[0] += torch.arange(32)
    assert (np.abs(model.item_vectors() - before).max(axis=1) > 1e-3).tolist() == [True, *[False] * N]
    before[:] = 0.0
    assert np.abs(model.item_vectors()).max() > 0, "what is handed out is a copy"


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}])
def test_steps_of_optimizers_are_seen(how):
    """Fused ones write without counting: what is trained is not remembered at all."""
    weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    remembered: Remembered[list[float]] = Remembered()
    made = lambda: remembered.of([weight], weight.tolist)  # noqa: E731
    assert made() is made()
    weight.requires_grad_(True)
    assert made() is not made()
    optimizer = torch.optim.AdamW([weight], lr=0.5, **how)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert made() == weight.tolist() != [1.0] * 3
    weight.requires_grad_(False)
    assert made() == weight.tolist()
    weight.mul_(2.0)
    assert made() == weight.tolist()
    weight.data = torch.zeros(3)
    assert made() == [0.0] * 3
    remembered.forget()
    assert made() == [0.0] * 3


def loop(split: Split, models: Path, **fields: object) -> _Loop:
    """An unstarted training of towers over the tiny model, whose texts have been read."""
    backbone = load_backbone(models / "tiny")
    table = TextTable(backbone, token_rows(backbone, item_texts(split.dataset)))
    table.refresh()
    spec = TwoTowerSpec(**{"model": str(models / "tiny"), **SMALL, **fields})
    torch.manual_seed(0)
    known = torch.from_numpy(np.asarray(split.train_item_counts) > 0)
    network = TwoTowerNetwork(spec, Whitening.fit(table.pooled[:N].numpy(), 12), known)
    offered = split.offered("train")
    made = _Loop(network, table, training_histories(split), offered, spec, FitContext(), None, "ndcg@10", "")
    made.rng = np.random.default_rng(0)
    return made


def loss_of(made: _Loop, inputs: Sequences, targets: torch.Tensor) -> float:
    """Of one batch, with negatives drawn for it."""
    return made._backward(made._drawn(inputs, targets, False), 1)


def test_few_candidates_estimate_the_sum_over_all_items(models):
    """A skewed catalogue of which a step sees a part: with logQ the losses average to that of all items."""
    rng = np.random.default_rng(0)
    n_items = 60
    share = 1.0 / np.arange(1, n_items + 1) ** 1.5
    rows = [
        (f"u{u}", f"i{i:02d}", float(s))
        for u in range(60)
        for s, i in enumerate(rng.choice(n_items, 5, replace=False, p=share / share.sum()))
    ]
    names = [f"{WORDS[n % N]} {WORDS[n // N]} {n % 10}" for n in range(n_items)]
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(n_items)], "title": names})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    split = make_split(Dataset.from_frames("skewed", frame, items), SplitSpec())
    whole = loop(split, models, n_negatives=5000, batch_size=8, temperature=0.5)
    # All items are candidates then, so nothing is lowered: the full softmax.
    batches = list(whole._batches(0))
    wanted = np.mean([loss_of(whole, *batch) for batch in batches])
    part = loop(split, models, n_negatives=12, batch_size=8, temperature=0.5)
    found = [loss_of(part, *batch) for _ in range(6) for batch in batches]
    assert np.mean(found) == pytest.approx(wanted, abs=0.2)
    part._log_inclusion = lambda candidates, n: torch.zeros(len(candidates), dtype=torch.float64)  # type: ignore[method-assign]
    uncorrected = [loss_of(part, *batch) for _ in range(6) for batch in batches]
    assert np.mean(uncorrected) < wanted - 0.5, "what was not drawn is missing from the sum"


def test_the_chance_of_being_a_candidate_is_that_of_drawing(models):
    made = loop(chain(), models, n_negatives=3)
    made.share, made.offered = np.array([0.5, 0.3, 0.2, 0.0]), np.arange(4)
    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [rng.choice(4, (20_000, 2), p=[0.5, 0.3, 0.2, 0.0]), rng.integers(4, size=(20_000, 3))], axis=1
    )
    often = [(drawn == item).any(axis=1).mean() for item in range(4)]
    np.testing.assert_allclose(np.exp(made._log_inclusion(np.arange(4), 2).numpy()), often, atol=0.012)


def test_a_tuned_step_reads_some_texts_anew_and_remembers_the_others(models):
    made = loop(chain(), models, tuning_steps=10, tuning_texts=4)
    made.network.train()
    inputs, targets = next(made._batches(0))
    stale = made.table.pooled.clone()
    made.table.pooled += 1.0
    made._backward(made._drawn(inputs, targets, True), 1)
    fresh = (made.table.pooled - stale).abs().amax(dim=1) < 1e-4
    assert int(fresh.sum()) == 4, "the vectors read anew stand in the table, the rest as it was"
    assert made.table.backbone.model.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("tuned", [False, True])
def test_a_step_in_parts_has_the_loss_and_the_gradients_of_the_whole(models, tuned):
    made = loop(chain(), models, tuning_steps=10, tuning_texts=7, batch_size=8, dropout=0.0)
    made.table._half = None
    made.table.backbone.model.train(tuned)
    inputs, targets = next(made._batches(0))
    # Rows of a part weigh by what is wanted in them.
    targets[0, 2:] = targets[5, 1:] = -1
    batch = made._drawn(inputs, targets, tuned)
    table = made.table.pooled.clone()
    found = {}
    for parts in (1, 3, 64):
        made.table.pooled = table.clone()
        made.parts.zero_grad()
        loss = made._backward(batch, parts)
        found[parts] = loss, {n: p.grad.clone() for n, p in made.parts.named_parameters() if p.grad is not None}
    assert any(name.startswith("encoder.") for name in found[1][1]) == tuned
    for parts in (3, 64):
        assert found[parts][0] == pytest.approx(found[1][0], rel=1e-5)
        assert found[parts][1].keys() == found[1][1].keys()
        for name, gradient in found[1][1].items():
            torch.testing.assert_close(found[parts][1][name], gradient, atol=1e-5, rtol=1e-3)


def test_texts_that_are_read_twice_drop_the_same(models):
    """With dropout the gradient belongs to the very outputs that the loss has seen."""
    made = loop(chain(), models, tuning_steps=10, tuning_texts=7, dropout=0.0)
    made.table.backbone = load_backbone(models / "tiny", dropout=0.3)
    texts = torch.arange(5)
    first, again, other = (made._read(texts, number, 2) for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_out_of_memory_leaves_the_training_as_it_is(models, monkeypatch):
    """More than three users at once do not fit, nor more than four texts with a graph."""
    fields = {"epochs": 2, "tuning_steps": 3, "tuning_texts": 6, "dropout": 0.0, "batch_size": 8, "average": 0.0}
    split, events = chain(n_users=12), Events()
    whole = fitted(split, models, **fields)
    users, read = TwoTowerNetwork.users, TextTable.read

    def few_users(self, whitened, batch, which=None):
        if self.training and len(batch.items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return users(self, whitened, batch, which)

    def few_texts(self, which=None):
        if torch.is_grad_enabled() and which is not None and len(which) > 4:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return read(self, which)

    monkeypatch.setattr(TwoTowerNetwork, "users", few_users)
    monkeypatch.setattr(TextTable, "read", few_texts)
    parted = fitted(split, models, FitContext(device="cpu", emit=events.emit), **fields)
    assert "in 4 parts" in events.messages
    np.testing.assert_allclose(parted.item_vectors(), whole.item_vectors(), atol=1e-4)

    def no_texts(self, which=None):
        if torch.is_grad_enabled() and which is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, which)

    monkeypatch.setattr(TextTable, "read", no_texts)
    with pytest.raises(RunFailedError, match=r"recommender\.batch_size: .*tuning_texts"):
        fitted(split, models, **fields)


def test_a_block_of_scores_that_does_not_fit_is_computed_in_parts(models, monkeypatch):
    """Users by items: more than five users fit nowhere; the parts are as small from then on, each computed once."""
    split = chain(n_users=13)
    model = fitted(split, models, epochs=1)
    queries, everything = [*split.queries("test").queries, Query("new")], np.arange(N + 1)
    whole, honest, n_users = model.score(queries, everything), model._users, []

    def small_memory(asked, items=None):
        n_users.append(len(asked))
        if len(asked) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(asked, items)

    monkeypatch.setattr(model, "_users", small_memory)
    monkeypatch.setattr(two_tower, "_BLOCK_CELLS", 8 * (N + 1))
    limit = 5
    np.testing.assert_allclose(model.score(queries, everything), whole, atol=1e-5)
    assert n_users == [8, 4, 4, 4, 2], "what was scored is not scored again"
    limit = 0
    with pytest.raises(RunFailedError, match=r"recommender\.max_history: memory is too small .* one user"):
        model.score(queries, everything)
    assert min(n_users) == 1


def test_prompts_can_stand_for_users(models):
    split = chain()
    model = fitted(split, models, user="prompt", max_prompts=200, epochs=12, tuning_steps=4, batch_size=16)
    assert hit_rate(model, split) > 0.5
    prompts = model._prompts([Query("n", (HistoryItem("i01", 5.0, 1.0),)), Query("n")])
    assert "blue" in prompts[0]
    assert prompts[1] == "Would this user like"
    everything = np.arange(N + 1)
    scores = model.score([Query("a", (HistoryItem("i01"),)), Query("b", (HistoryItem("i05"),)), Query("c")], everything)
    assert np.isfinite(scores).all()
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert np.ptp(scores[2]) > 1e-3, "no history is a prompt too"


class Stops(Exception):
    pass


@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_resume_equals_uninterrupted_training(models, tmp_path, rounds, monkeypatch):
    """Cut short in the first phase, and in the tuning of the language model."""
    monkeypatch.setattr("llmrec_core.training.contrastive._TUNED_ROUND", 3)
    fields = {"epochs": 3, "tuning_steps": 7, "tuning_texts": 3, "dropout": 0.2, "batch_size": 32}
    fields |= {"id_bound": 1.0, "reverse": 0.5, "average": 0.9}
    split = chain(n_users=12)
    whole = fitted(split, models, **fields)
    seen = []

    def stop_later(event: str, **values: object) -> None:
        if event == "validation":
            seen.append(values)
            if len(seen) == rounds + 1:
                raise Stops

    with pytest.raises(Stops):
        fitted(split, models, FitContext(device="cpu", checkpoint_dir=tmp_path / "c", emit=stop_later), **fields)
    told: list[str] = []
    again = FitContext(
        device="cpu", resume_from=tmp_path / "c", emit=lambda event, **v: told.append(str(v.get("message")))
    )
    resumed = fitted(split, models, again, **fields)
    assert any(f"Going on after round {rounds}" in message for message in told)
    np.testing.assert_array_equal(resumed.item_vectors(), whole.item_vectors())
    assert resumed.outcome == whole.outcome
    with pytest.raises(ModelError, match="other data or training settings"):
        fitted(chain(n_users=13), models, again, **fields)


def test_stopping_and_cancelling(models):
    split = chain(n_users=10)
    early = fitted(split, models, epochs=40, patience=2, learning_rate=1e-6, tuning_steps=5, tuning_rate=1e-9)
    assert early.outcome.rounds == 41, "patience ends the first phase, not the second"  # type: ignore[union-attr]
    alone = fitted(split, models, epochs=40, patience=2, learning_rate=1e-6)
    assert alone.outcome.stopped == "early"  # type: ignore[union-attr]
    person = fitted(split, models, FitContext(device="cpu", should_stop=lambda: "stop"), epochs=40)
    assert person.outcome.stopped == "person"  # type: ignore[union-attr]
    assert np.isfinite(person.score([Query("a")], np.arange(3))).all()
    with pytest.raises(RunCancelledError):
        fitted(split, models, FitContext(device="cpu", should_stop=lambda: "cancel"))


def test_the_best_round_is_kept(models, monkeypatch):
    values = []
    ctx = FitContext(
        device="cpu", emit=lambda e, **v: values.append(v["metrics"]["ndcg@10"]) if e == "validation" else None
    )
    monkeypatch.setattr("llmrec_core.training.contrastive._TUNED_ROUND", 4)
    split = chain(n_users=15)
    model = fitted(split, models, ctx, epochs=4, tuning_steps=6, tuning_rate=0.05)
    assert len(values) == 6
    assert model.outcome is not None
    assert model.outcome.best_value == max(values)
    from llmrec_core.recommenders._watch import watched

    value = watched(split, 1000, FitContext())
    assert value is not None
    assert value(model) == pytest.approx(max(values), abs=1e-6)


def test_above_the_stated_size_faiss_ranks(models):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    n_items = 700
    rows = [(f"u{u}", f"i{i:03d}", float(s)) for u in range(8) for s, i in enumerate(rng.choice(n_items, 4, False))]
    names = [" ".join(rng.choice(WORDS, 5)) for _ in range(n_items)]
    items = pd.DataFrame({"item_id": [f"i{n:03d}" for n in range(n_items)], "title": names})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    split = make_split(Dataset.from_frames("many", frame, items), SplitSpec())
    model = fitted(split, models, epochs=1, approximate_above=500, recall=0.9)
    asked = split.queries("test")
    queries = [*asked.queries, Query("nobody")]
    exclude = [*asked.exclude, np.arange(5)]
    found = model.top_k(queries, 10, exclude)
    assert model._index is not None
    assert model._index.approximate
    exact = super(TwoTowerRecommender, model).top_k(queries, 10, exclude)
    shares = [np.isin(one.items, other.items).mean() for one, other in zip(found, exact, strict=True)]
    assert np.mean(shares) >= 0.9
    assert found[-1].items.tolist() == exact[-1].items.tolist(), "nobody is ranked by popularity, exactly"
    for one, other in zip(found, exact, strict=True):
        both, at, there = np.intersect1d(one.items, other.items, return_indices=True)
        assert len(both)
        np.testing.assert_allclose(one.scores[at], other.scores[there], atol=1e-4)


def test_an_unfitted_one_and_odd_specs_are_refused():
    with pytest.raises(InputError, match="not fitted"):
        TwoTowerRecommender().score([Query("a")], np.array([0]))
    with pytest.raises(ValueError, match="do not divide"):
        TwoTowerSpec(width=16, n_heads=3)
