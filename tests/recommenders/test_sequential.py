"""The sequential family: windows, bins, what it learns, cold items, the sampled softmax, resume, and stopping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_tiny_bert
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError, ModelError, RunCancelledError, RunFailedError
from llmrec_core.models.text_vectors import Whitening, embed_texts
from llmrec_core.recommenders import sequential
from llmrec_core.recommenders._histories import training_histories
from llmrec_core.recommenders._watch import watched
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.specs import SequentialSpec, SplitSpec
from llmrec_core.training.sequence_network import Dropout, SequenceNetwork, Sequences, catalogue_loss
from llmrec_core.training.sequences import Histories, _Batch, _Loop, gap_bins, rating_bins

#: The rule of these rings goes one way, so histories are not read backwards.
IDS_ONLY = {
    "model": None,
    "width": 16,
    "n_heads": 2,
    "max_history": 8,
    "dropout": 0.0,
    "learning_rate": 5e-3,
    "reverse": 0,
}
N_ITEMS = 12


def chain(seed: int = 0, n_users: int = 40, shuffled: bool = False) -> Split:
    """Everyone walks i -> i + 1 around a ring of 12 from a place of their own; ``shuffled`` destroys the order."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        walk = [int((user + step) % N_ITEMS) for step in range(9)]
        if shuffled:
            walk = rng.permutation(walk).tolist()
        rows += [(f"u{user:02d}", f"i{item:02d}", 1.0 + item % 5, 3600.0 * step) for step, item in enumerate(walk)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(N_ITEMS + 1)]})
    return make_split(Dataset.from_frames("ring", frame, items), SplitSpec())


def fitted(split: Split, ctx: FitContext | None = None, **fields: object) -> SequentialRecommender:
    model = SequentialRecommender(SequentialSpec(**{**IDS_ONLY, **fields}))
    model.fit(split, ctx or FitContext(device="cpu"))
    return model


def hit_rate(model: SequentialRecommender, split: Split) -> float:
    asked = split.queries("test")
    rankings = model.top_k(asked.queries, 1, asked.exclude)
    return float(np.mean([r.items[0] in t for r, t in zip(rankings, asked.targets, strict=True)]))


def test_the_planted_order_is_learnt_and_a_shuffled_one_is_not():
    learnt = fitted(chain(), epochs=40, patience=0)
    assert hit_rate(learnt, chain()) > 0.9
    # 9 of 13 items are seen: a guess among the 4 left hits a quarter.
    assert hit_rate(fitted(chain(shuffled=True), epochs=40, patience=0), chain(shuffled=True)) < 0.6


def test_texts_are_read_by_a_model_that_another_run_tuned(tmp_path):
    split = planted_split(n_users=12)
    run = planted_run(tmp_path, max_samples=32)
    tuned = fit(run, split, tmp_path)
    (tmp_path / "run").mkdir()
    tuned.save(tmp_path / "run")
    ctx = FitContext(workspace_models=tmp_path, device="cpu")
    as_it_came, as_tuned = (
        fitted(split, ctx, model=str(folder), epochs=1, id_bound=0)
        for folder in (tmp_path / "tiny-bert", tmp_path / "run" / "model")
    )
    texts = [model._fitted().text for model in (as_it_came, as_tuned)]
    assert texts[0].shape == texts[1].shape
    assert float((texts[0] - texts[1]).abs().max()) > 1e-3


def test_the_sampled_softmax_learns_the_same_order():
    model = fitted(chain(), epochs=60, patience=0, full_softmax_items=0, n_negatives=8)
    assert hit_rate(model, chain()) > 0.9


def test_the_sampled_loss_is_near_the_full_one():
    split = chain()
    model = SequentialRecommender(SequentialSpec(**IDS_ONLY))
    torch.manual_seed(0)
    network = SequenceNetwork(model.spec, torch.empty(N_ITEMS + 1, 0), torch.ones(N_ITEMS + 1, dtype=torch.bool))
    with torch.no_grad():
        network.delta.mul_(20)

    def loop(**fields: object) -> _Loop:
        spec = SequentialSpec(**{**IDS_ONLY, **fields})
        return _Loop(network, training_histories(split), spec, FitContext(), None, "ndcg@10", "")

    batch = next(loop()._batches(0))

    def loss(made: _Loop) -> float:
        return made._backward(_Batch(*batch, made._drawn()), 1)

    wanted = loss(loop())
    torch.manual_seed(1)
    assert loss(loop(full_softmax_items=0, n_negatives=100_000)) == pytest.approx(wanted, abs=0.02)
    few = [loss(loop(full_softmax_items=0, n_negatives=4)) for _ in range(20)]
    assert np.std(few) > 0.02, "with few drawn it is an estimate"


def test_items_are_computed_once_for_many_queries_and_a_user_once_in_a_call(tmp_path, monkeypatch):
    split = chain()
    model = fitted(split, epochs=2)
    before = model.item_vectors()
    model.save(tmp_path)
    again = SequentialRecommender.load(tmp_path, split.dataset, FitContext(device="cpu"))
    vectors, states, n_vectors, n_users = SequenceNetwork.item_vectors, SequenceNetwork.states, [], []

    def counted_vectors(self):
        n_vectors.append(1)
        return vectors(self)

    def counted_states(self, batch, vectors):
        n_users.append(len(batch.items))
        return states(self, batch, vectors)

    monkeypatch.setattr(SequenceNetwork, "item_vectors", counted_vectors)
    monkeypatch.setattr(SequenceNetwork, "states", counted_states)
    monkeypatch.setattr("llmrec_core.recommenders.sequential._BLOCK_CELLS", 5 * (N_ITEMS + 1))
    queries, everything = split.queries("test").queries, np.arange(N_ITEMS + 1)
    scores = again.score(queries, everything)
    again.top_k(queries, 3)
    np.testing.assert_array_equal(again.item_vectors(), before)
    assert n_vectors == [1]
    np.testing.assert_allclose(scores, model.score(queries, everything), atol=1e-5)
    n_users.clear()
    past = tuple(HistoryItem(f"i{n:02d}", 3.0, 3600.0 * n) for n in range(4))
    rated = (*past[:3], HistoryItem("i03", 1.0, 3 * 3600.0))
    asked = [Query("a", past), Query("b", past[:2]), Query("c", past), Query("d"), Query("e", rated)]
    found = again.score(asked, everything)
    assert n_users == [4]
    for row, query in enumerate(asked):
        np.testing.assert_allclose(found[row], again.score([query], everything)[0], atol=1e-5)
    # Another fit of the same recommender, whose first vectors were asked for.
    other = chain(shuffled=True)
    again.fit(other, FitContext(device="cpu"))
    np.testing.assert_array_equal(again.item_vectors(), vectors(again._network).numpy())
    assert np.abs(again.item_vectors() - before).max() > 1e-3


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"full_softmax_items": 0, "n_negatives": 5}])
def test_out_of_memory_leaves_the_training_as_it_is(settings, monkeypatch):
    """More than five histories at once do not fit: parts of a batch share what is drawn for it."""
    # Windows of few inputs cut histories into pieces of different length.
    split, events = chain(n_users=13), Events()
    fields = {"max_history": 5, "epochs": 3, "batch_size": 13, "id_bound": 1.0, **settings}
    whole = fitted(split, **fields)
    states = SequenceNetwork.states

    def few(limit: int):
        def checked(self, batch, vectors):
            if self.training and len(batch.items) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return states(self, batch, vectors)

        return checked

    monkeypatch.setattr(SequenceNetwork, "states", few(5))
    parted = fitted(split, FitContext(device="cpu", emit=events.emit), **fields)
    assert "in 4 parts" in events.messages
    np.testing.assert_allclose(parted.item_vectors(), whole.item_vectors(), atol=1e-4)
    assert np.abs(whole.item_vectors() - fitted(split, **{**fields, "epochs": 2}).item_vectors()).max() > 1e-3
    monkeypatch.setattr(SequenceNetwork, "states", few(0))
    with pytest.raises(RunFailedError, match=r"recommender\.batch_size: .*max_history"):
        fitted(split, **fields)


def test_a_block_of_scores_that_does_not_fit_is_computed_in_parts(monkeypatch):
    """Users by items: more than 5 rows fit nowhere; the parts are as small from then on, and each is computed once."""
    split = chain(n_users=13)
    model = fitted(split, epochs=1)
    queries, everything = [*split.queries("test").queries, Query("new")], np.arange(N_ITEMS + 1)
    whole = model.score(queries, everything)
    some = np.array([[3, 1, -1]] * len(queries))
    honest, rows = sequential.last_item_scores, []

    def small_memory(network, batch, vectors):
        rows.append(len(batch.items))
        if len(batch.items) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(network, batch, vectors)

    monkeypatch.setattr(sequential, "last_item_scores", small_memory)
    monkeypatch.setattr(sequential, "_BLOCK_CELLS", 8 * (N_ITEMS + 1))
    limit = 5
    np.testing.assert_allclose(model.score(queries, everything), whole, atol=1e-5)
    assert rows == [8, 4, 4, 4, 2], "what was scored is not scored again"
    np.testing.assert_allclose(model.score(queries, some)[:, :2], whole[:, [3, 1]], atol=1e-5)
    assert max(rows[5:]) == 4
    limit = 0
    with pytest.raises(RunFailedError, match=r"recommender\.max_history: memory is too small .* one history"):
        model.score(queries, everything)
    assert min(rows) == 1
    model._network.train()

    def fails(*_):
        raise RuntimeError("another fault")

    monkeypatch.setattr(sequential, "last_item_scores", fails)
    with pytest.raises(RuntimeError, match=r"^another fault$"):
        model.score(queries, everything)
    assert model._network.training, "left as it was"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_over_the_catalogue_is_cross_entropy(smoothing: float):
    torch.manual_seed(1)
    states = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.randint(0, 9, (7,))
    plain = torch.nn.functional.cross_entropy(states @ vectors.T, wanted, label_smoothing=smoothing)
    ours = catalogue_loss(states, vectors, wanted, smoothing)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(3.0 * ours, (states, vectors)), torch.autograd.grad(3.0 * plain, (states, vectors))
    )


def test_a_history_read_backwards_keeps_its_gaps_between_the_same_entries():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    rows = Sequences(
        torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]),
        torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]]),
        torch.tensor([[0, 11, 12, 0], [0, 13, 0, 0]]),
        mask,
    )
    turned = rows.reversed(torch.tensor([True, False]))
    assert turned.items.tolist() == [[7, 6, 5, 0], [8, 9, 0, 0]]
    assert turned.ratings.tolist() == [[3, 2, 1, 0], [4, 5, 0, 0]]
    assert turned.gaps.tolist() == [[0, 12, 11, 0], [0, 13, 0, 0]]
    assert turned.mask is mask


def test_dropout_keeps_the_mean_and_is_drawn_by_seed_alone():
    drop = Dropout(0.3)
    ones = torch.ones(200, 500)
    drop.seed([1, 2])
    first = drop(ones, training=True)
    assert float(first.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((first == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(drop(ones, training=True), first)
    drop.seed([1, 2])
    assert torch.equal(drop(ones, training=True), first)
    assert drop(ones, training=False) is ones


def test_what_is_kept_without_validation_is_the_mean_of_the_weights():
    split = chain()
    last = fitted(split, epochs=3, patience=0, average=0.0)
    mean = fitted(split, epochs=3, patience=0, average=0.99)
    # The training is the same; what is measured after each epoch and kept is not.
    assert last.outcome is not None
    assert mean.outcome is not None
    assert not np.allclose(last.item_vectors(), mean.item_vectors())


def test_cold_items_are_ranked_by_their_text(tmp_path: Path):
    write_tiny_bert(tmp_path / "tiny")
    rows = [(f"u{u}", f"i{(u % 2) * 5 + s}", float(s)) for u in range(20) for s in range(5)]
    titles = [f"red apple {n}" for n in range(5)] + [f"blue engine {n}" for n in range(5)]
    items = pd.DataFrame(
        {"item_id": [f"i{n}" for n in range(10)] + ["x", "y"], "title": [*titles, titles[4], titles[9]]}
    )
    split = make_split(
        Dataset.from_frames("two", pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]), items), SplitSpec()
    )
    ctx = FitContext(workspace_models=tmp_path, device="cpu")
    model = fitted(split, ctx, model=str(tmp_path / "tiny"), id_bound=0.0, epochs=30, patience=0, n_text=8)
    vectors = model.item_vectors()
    # The twin of i4 by title is i4 by vector, though nobody has met it.
    np.testing.assert_allclose(vectors[split.dataset.item_idx("x")], vectors[split.dataset.item_idx("i4")], atol=1e-5)
    reds = Query("n", tuple(HistoryItem(f"i{s}", None, float(s)) for s in range(4)))
    scores = model.score([reds], np.array([split.dataset.item_idx("x"), split.dataset.item_idx("y")]))[0]
    assert scores[0] > scores[1]
    ids_only = fitted(split, epochs=5)
    assert (ids_only.item_vectors()[[split.dataset.item_idx("x")]] == 0).all(), "without text nothing is known of it"


def with_vectors() -> Split:
    """Users stay among four items whose vector points one way, or four that point the other; x and y nobody met."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{4 * (user % 2) + item}", float(step))
        for user in range(40)
        for step, item in enumerate(rng.permutation(4).tolist())
    ]
    ids = [f"i{n}" for n in range(8)] + ["x", "y", "z"]
    ways = [[1.0, 0.0, 0.3]] * 4 + [[0.0, 1.0, 0.3]] * 4 + [[1.0, 0.0, 0.3], [0.0, 1.0, 0.3]]
    told = np.array(ways) + rng.normal(scale=0.05, size=(10, 3))
    vectors = pd.DataFrame({"item_id": ids[:-1], "vector": [" ".join(map(str, row)) for row in told.tolist()]})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    dataset = Dataset.from_frames("w", frame, pd.DataFrame({"item_id": ids}), extras={"vectors": vectors})
    return make_split(dataset, SplitSpec())


def test_feature_vectors_rank_items_that_nobody_met(tmp_path: Path):
    split = with_vectors()
    model = fitted(split, epochs=20, patience=0)
    x, y, z = (split.dataset.item_idx(name) for name in "xyz")
    first = Query("n", tuple(HistoryItem(f"i{n}", None, float(n)) for n in range(3)))
    scores = model.score([first], np.array([x, y, z]))[0]
    assert scores[0] > scores[2] > scores[1]
    assert (model.item_vectors()[z] == 0).all(), "nothing is known of an item without text, vector and rows"
    assert (fitted(split, epochs=2, use_vectors=False).item_vectors()[x] == 0).all()
    model.save(tmp_path)
    again = SequentialRecommender.load(tmp_path, split.dataset, FitContext(device="cpu"))
    np.testing.assert_array_equal(again.score([first], np.array([x, y, z]))[0], scores)


def test_the_gate_mixes_text_and_vector_and_leaves_items_without_a_vector_their_text():
    torch.manual_seed(0)
    text, given = torch.randn(3, 5), torch.randn(3, 2)
    given[2] = torch.nan
    spec = SequentialSpec(**{**IDS_ONLY, "model": "any"})
    network = SequenceNetwork(spec, text, torch.zeros(3) > 0, given)
    assert network.project is not None
    told, shown = network.project(text), network.project_given(given)
    # An untrained gate is half open; no item has rows, so none has an id delta.
    torch.testing.assert_close(network.item_vectors()[:2], (told + shown)[:2] / 2)
    torch.testing.assert_close(network.item_vectors()[2], told[2])
    network.gate.bias.data.fill_(30.0)
    torch.testing.assert_close(network.item_vectors()[:2], shown[:2])
    network.item_vectors().sum().backward()
    assert network.project_given.weight.grad is not None
    assert network.project_given.weight.grad.isfinite().all(), "a missing vector must not spoil the gradient"


def test_the_id_delta_is_bounded():
    model = fitted(chain(), epochs=10, id_bound=0.25)
    lengths = np.linalg.norm(model.item_vectors(), axis=1)
    assert lengths.max() <= 0.25 + 1e-5
    assert lengths[:N_ITEMS].min() > 0


def test_only_what_the_history_says_counts():
    model = fitted(chain(), epochs=5)
    past = tuple(HistoryItem(f"i{n:02d}", 3.0, 3600.0 * n) for n in range(4))
    everything = np.arange(N_ITEMS + 1)
    same = model.score([Query("a", past), Query("nobody", past)], everything)
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    unknown = (HistoryItem("??", 3.0, 0.0), *past)
    np.testing.assert_allclose(model.score([Query("a", unknown)], everything)[0], same[0], atol=1e-6)
    liked = tuple(HistoryItem(entry.item_id, 1.0, entry.timestamp) for entry in past)
    assert np.abs(model.score([Query("a", liked)], everything)[0] - same[0]).max() > 1e-4, "ratings are read"
    long = tuple(HistoryItem(f"i{n % N_ITEMS:02d}", 3.0, 3600.0 * n) for n in range(30))
    np.testing.assert_allclose(
        model.score([Query("a", long)], everything), model.score([Query("a", long[-8:])], everything), atol=1e-6
    )


def test_without_history_popularity_orders():
    split = chain(n_users=7)
    order = fitted(split, epochs=2).top_k([Query("new")], N_ITEMS)[0].items
    assert (np.diff(split.train_item_counts[order]) <= 0).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 5))
def test_windows_predict_every_row_but_the_first_once(lengths: list[int], size: int, epoch: int):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(starts[-1])
    histories = Histories(np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64), starts)
    network = SequenceNetwork(SequentialSpec(**{**IDS_ONLY, "max_history": size}), torch.empty(n, 0), torch.ones(n) > 0)
    spec = SequentialSpec(**{**IDS_ONLY, "max_history": size, "batch_size": 3})
    loop = _Loop(network, histories, spec, FitContext(), None, "ndcg@10", "")
    predicted: list[int] = []
    for inputs, targets in loop._batches(epoch):
        assert inputs.items.shape[1] <= size
        for row, mask, wanted in zip(inputs.items, inputs.mask, targets, strict=True):
            kept = wanted >= 0
            assert (mask == kept).all() or kept.sum() <= mask.sum()
            # Items are their own row numbers here: the target is always the next row of the same history.
            assert (wanted[kept] == row[kept] + 1).all()
            predicted += wanted[kept].tolist()
    first = set(starts[:-1].tolist())
    # Every row that has one before it in its history is predicted exactly once an epoch.
    assert sorted(predicted) == [row for row in range(n) if row not in first]


def test_bins_by_hand():
    assert rating_bins([1.0, 5.0, 3.0, float("nan")], (1.0, 5.0)).tolist() == [1, 10, 6, 0]
    assert rating_bins([1.0], None).tolist() == [0]
    times = [0.0, 60.0, 60.0 + 180.0, 5e9, float("nan"), 0.0]
    assert gap_bins(times, np.array([0, 3, 6])).tolist() == [0, 2, 3, 0, 0, 0]


def test_whitened_vectors_have_unit_covariance():
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3.0).astype(np.float32)
    white = Whitening.fit(raw, 4).apply(raw)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-3)
    flat = Whitening.fit(np.ones((5, 3), np.float32), 2)
    assert np.isfinite(flat.apply(np.ones((2, 3), np.float32))).all()


def test_equal_texts_get_equal_vectors_in_any_company(tmp_path: Path):
    from llmrec_core.models.loading import load_backbone

    write_tiny_bert(tmp_path / "tiny")
    backbone = load_backbone(tmp_path / "tiny", trainable=False)
    texts = ["a red film", "", "a red film", "blue " * 300]
    together = embed_texts(backbone, texts, max_tokens=16)
    assert together.shape == (4, backbone.hidden_size)
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_allclose(embed_texts(backbone, texts[:1], max_tokens=16)[0], together[0], atol=1e-5)


def test_texts_are_read_in_smaller_batches_where_memory_runs_out(tmp_path: Path, monkeypatch):
    from llmrec_core.models.loading import Backbone, load_backbone

    write_tiny_bert(tmp_path / "tiny")
    backbone = load_backbone(tmp_path / "tiny", trainable=False)
    texts = [f"{'a red film ' * (n % 5)}{n}" for n in range(40)]
    whole, read, plain = embed_texts(backbone, texts), [], Backbone.pooled

    def pooled(self, ids, *more):
        read.append(len(ids))
        if len(ids) > most:
            raise MemoryError
        return plain(self, ids, *more)

    monkeypatch.setattr(Backbone, "pooled", pooled)
    most = 10
    np.testing.assert_allclose(embed_texts(backbone, texts), whole, atol=1e-5)
    # Forty texts are one batch; halves of 64 are tried until ten fit, and go on as small.
    assert read == [40, 32, 16, 8, 8, 8, 8, 8]
    most = 0
    with pytest.raises(RunFailedError, match="even a few texts"):
        embed_texts(backbone, texts)


class Stops(Exception):
    pass


def test_resume_equals_uninterrupted_training(tmp_path: Path):
    split = chain()
    whole = fitted(split, epochs=6, patience=0, dropout=0.2)

    def stop_after_three(event: str, **values: object) -> None:
        if event == "validation" and values["step"] == 3 * steps:
            raise Stops

    loop = _Loop(whole._network, training_histories(split), whole.spec, FitContext(), None, "ndcg@10", "")
    steps = loop.total_steps // 6
    ctx = FitContext(device="cpu", checkpoint_dir=tmp_path / "c", emit=stop_after_three)
    with pytest.raises(Stops):
        fitted(split, ctx, epochs=6, patience=0, dropout=0.2)
    told: list[str] = []
    again = FitContext(
        device="cpu", resume_from=tmp_path / "c", emit=lambda event, **v: told.append(str(v.get("message")))
    )
    resumed = fitted(split, again, epochs=6, patience=0, dropout=0.2)
    assert any("Going on after round 2" in message for message in told)
    np.testing.assert_array_equal(resumed.item_vectors(), whole.item_vectors())
    with pytest.raises(ModelError, match="other data or training settings"):
        fitted(chain(seed=1, shuffled=True), again, epochs=6, patience=0, dropout=0.2)


def test_stopping_and_cancelling():
    split = chain()
    assert fitted(split, epochs=50, patience=2, learning_rate=1e-5).outcome.stopped == "early"  # type: ignore[union-attr]
    person = fitted(split, FitContext(device="cpu", should_stop=lambda: "stop"), epochs=50)
    assert person.outcome.stopped == "person"  # type: ignore[union-attr]
    assert np.isfinite(person.score([Query("a")], np.arange(3))).all()
    with pytest.raises(RunCancelledError):
        fitted(split, FitContext(device="cpu", should_stop=lambda: "cancel"))


def test_the_best_round_is_kept_and_floors_are_told():
    from llmrec_core.baselines import PopularityRecommender

    split = chain()
    floor = PopularityRecommender()
    floor.fit(split, FitContext())
    events: list[tuple[str, dict[str, object]]] = []
    ctx = FitContext(device="cpu", floors={"popularity": floor}, emit=lambda e, **v: events.append((e, v)))
    model = fitted(split, ctx, epochs=12, patience=3)
    values = [v["metrics"]["ndcg@10"] for e, v in events if e == "validation"]  # type: ignore[index]
    assert model.outcome is not None
    assert model.outcome.best_value == max(values)
    value = watched(split, model.spec.validation_users, FitContext())
    assert value is not None
    assert value(model) == pytest.approx(max(values), abs=1e-6)
    assert [v["name"] for e, v in events if e == "baseline"] == ["popularity"]


def test_an_unfitted_one_and_odd_specs_are_refused():
    with pytest.raises(InputError, match="not fitted"):
        SequentialRecommender().score([Query("a")], np.array([0]))
    with pytest.raises(ValueError, match="do not divide"):
        SequentialSpec(width=16, n_heads=3)
    with pytest.raises(ValueError, match="all items would be the same"):
        SequentialSpec(model=None, id_bound=0.0)
