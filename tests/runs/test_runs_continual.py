"""Going on with newer data: a planted drift is learned; without old interactions in the mix the old is forgotten."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs.runs_lab import Lab
from tiny_models import write_lettered_llama, write_tiny_bert, write_tiny_llama
from training.training_cases import WORDS, Events

from llmrec_core.contracts import Query
from llmrec_core.data import Dataset, DatasetStore, continue_split, make_split
from llmrec_core.errors import DataError, InputError, NotFoundError, SpecError
from llmrec_core.evaluation.continual import CarriedRecommender
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.pipeline import ranker_of
from llmrec_core.runs import continual, jobs
from llmrec_core.specs import DatasetRef, RunSpec, SplitSpec, parse_run_spec
from llmrec_core.training import samples
from llmrec_core.workspace import Workspace

TEMPORAL = {"protocol": "temporal", "valid_fraction": 0.1, "test_fraction": 0.15}


def _world(*, newer: bool) -> Dataset:
    """Comedies are loved and horror is hated; what came since, on nights, is drama: loved, and comedies are not.

    A weight for each word can tell all four apart.
    """
    rng = np.random.default_rng(3)
    kinds = ("comedy", "horror")
    items = {f"m{kind}{word}": f"{word} {kind} story" for kind in kinds for word in WORDS}
    rows = []
    for step in range(14):
        for user in range(24):
            item = f"m{kinds[rng.integers(2)]}{WORDS[rng.integers(len(WORDS))]}"
            rows.append((f"u{user:02d}", item, 5.0 if "comedy" in item else 1.0, 1000.0 * step + user))
    if newer:
        # Ids that sort before all others: every number of an item and of a user is another one now.
        late = ("drama", "comedy")
        nights = {f"a{kind}{word}": f"{word} {kind} night" for kind in late for word in WORDS}
        items |= nights
        for step in range(20):
            for user in range(24):
                item = f"a{late[rng.integers(2)]}{WORDS[rng.integers(len(WORDS))]}"
                name = f"b{user:02d}" if user % 3 == 0 else f"u{user:02d}"
                rows.append((name, item, 5.0 if "drama" in item else 1.0, 100_000.0 + 1000.0 * step + user))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    titles = pd.DataFrame([{"item_id": item, "title": title} for item, title in items.items()])
    return Dataset.from_frames("films", frame, titles)


class _Run:
    """Stands in for a worker's handle."""

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace, self.run_id, self.resume_from = workspace, run_id, None
        self.folder = workspace.runs / run_id
        self.artifacts_dir, self.checkpoint_dir = self.folder / "artifacts", self.folder / "checkpoints"
        self.checkpoint_dir.mkdir(parents=True)
        self.events = Events()
        self.emit = self.events.emit

    def set_device(self, device: str) -> None: ...

    def should_stop(self) -> None: ...


class _Workshop:
    """Runs jobs in this process; finished ones are found again as the store would find them."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.workspace = Workspace.open(root)
        self.done: dict[str, Any] = {}
        write_tiny_bert(root / "tiny-bert")
        self.model = str(root / "tiny-bert")
        for version in (False, True):
            DatasetStore(self.workspace).save(_world(newer=version))
        for module in (continual, jobs):
            patch.setattr(module, "RunStore", lambda workspace: SimpleNamespace(get=self.done.__getitem__))

    def spec(self, version: int, epochs: int = 1, **fields: Any) -> RunSpec:
        raw = {
            "dataset": {"name": "films", "version": version},
            "split": TEMPORAL,
            "recommender": {"family": "cross-encoder", "model": self.model, "tuning": {"freeze_embeddings": False}},
            "prompt": {"max_tokens": 48, "max_history": 1},
            "training": {
                "max_samples": 320, "batch_size": 16, "negatives_per_positive": 0, "learning_rate": 3e-3,
                "head_learning_rate": 1e-2, "validation_every": 50, "validation_samples": 16, "precision": "fp32",
                "epochs": epochs,
            },
            "evaluation": {"ks": [5], "primary_metric": "auc", "n_bootstrap": 100, "click_negatives": 0},
            "baselines": [{"family": "popularity"}],
            "device": "cpu",
        }  # fmt: skip
        return parse_run_spec({**raw, **fields})

    def run(self, run_id: str, spec: RunSpec) -> dict[str, Any]:
        run = _Run(self.workspace, run_id)
        result = jobs.run_job(spec, run)  # type: ignore[arg-type]
        status = SimpleNamespace(state="done")
        self.done[run_id] = SimpleNamespace(
            run_id=run_id, spec=spec, status=status, folder=run.folder, warning=None, events=run.events
        )
        return result


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = _Workshop(tmp_path_factory.mktemp("continual"), patch)
        made.run("first", made.spec(1))
        yield made


@pytest.fixture(scope="module")
def results(shop):
    return {
        replay: shop.run(f"replay{replay}", shop.spec(2, 4, continue_from="first", continual={"replay": replay}))
        for replay in (0.0, 0.5)
    }


def test_a_drift_is_learned_and_without_replay_the_old_is_forgotten(results):
    alone, mixed = (results[replay]["continual"] for replay in (0.0, 0.5))
    for found in (alone, mixed):
        new = found["parts"]["new"]["metrics"]["auc"]
        assert new["before"]["mean"] == 0.5, "the first model has never heard of these items"
        assert new["difference"]["ci_low"] > 0.2
        assert found["parts"]["old"]["metrics"]["auc"]["before"]["mean"] > 0.9
    forgotten = alone["parts"]["old"]["metrics"]["auc"]["difference"]
    assert forgotten["ci_high"] < -0.2
    kept = mixed["parts"]["old"]["metrics"]["auc"]["difference"]
    assert kept["mean"] > forgotten["mean"] + 0.2
    assert "some of it is forgotten" in alone["sentence"]


def test_the_report_says_what_was_asked(shop, results):
    found = results[0.5]["continual"]
    assert (found["first_run"], found["replay"], found["n_missing"]) == ("first", 0.5, 0)
    new, old = found["parts"]["new"], found["parts"]["old"]
    assert new["n_unknown_targets"] == new["n_targets"], "all that came since is of items that are new"
    assert old["n_unknown_targets"] == 0
    events = shop.done["replay0.5"].events
    assert found["sentence"] in events.messages
    assert "50% of what is learned from are of these" in events.messages
    assert "heads taken over: click" in events.messages


def test_the_old_questions_are_those_of_the_first_run(shop, results):
    """Also in numbers: the first run's own figure is the one before."""
    first = jobs.run_job(shop.spec(1, kind="evaluate", parent_run="first"), _Run(shop.workspace, "again"))
    before = results[0.5]["continual"]["parts"]["old"]["metrics"]["auc"]["before"]
    assert before["mean"] == pytest.approx(first["metrics"]["auc"]["mean"])
    assert before["n"] == first["metrics"]["auc"]["n"]


def test_nothing_that_was_learned_is_asked_and_old_questions_are_not_learned(shop):
    older, newer = (DatasetStore(shop.workspace).load("films", version) for version in (1, 2))
    for spec in (SplitSpec(**TEMPORAL), SplitSpec(protocol="leave-one-out"), SplitSpec(protocol="random")):
        first = make_split(older, spec)
        cut = continue_split(make_split(newer, spec), first, first.train)
        assert not np.intersect1d(cut.split.test, cut.trained).size
        assert not np.intersect1d(cut.split.valid, cut.trained).size
        assert not np.intersect1d(cut.old.test, cut.split.train).size
        assert not np.intersect1d(cut.old.test, cut.split.valid).size
        assert cut.new is not None
        assert not np.intersect1d(cut.new.test, cut.old.test).size
        table, ids = newer.interactions, older.interactions
        left = sorted(zip(table["user_id"].astype(str)[cut.trained], table["timestamp"][cut.trained], strict=True))
        right = sorted(zip(ids["user_id"].astype(str)[first.train], ids["timestamp"][first.train], strict=True))
        assert left == right
        assert [str(newer.item_ids[i]) for i in cut.old.catalogue] == [str(i) for i in older.item_ids]
        user = str(older.user_ids[first.queries("test").users[0]])
        assert cut.old.query(user) == first.query(user)


def test_a_run_that_went_on_can_be_gone_on_from(shop, results):
    """What the first of them learned counts as learned, all the way back."""
    newer = DatasetStore(shop.workspace).load("films", 2)
    split, trained = continual._learned(shop.done["replay0.5"], shop.workspace, newer)
    found = continual.continuation_of(shop.done["replay0.5"].spec, shop.workspace, newer)
    assert found is not None
    assert set(found.cut.trained) <= set(trained)
    assert set(split.train) <= set(trained)
    spec = shop.done["replay0.5"].spec
    assert continual.split_of(spec, shop.workspace, newer).test.tolist() == split.test.tolist()


def test_it_is_served_also_when_the_first_run_is_gone(shop, results, monkeypatch):
    def gone(run_id: str) -> None:
        raise NotFoundError(f"there is no run {run_id}")

    newer = DatasetStore(shop.workspace).load("films", 2)
    monkeypatch.setattr(continual, "RunStore", lambda workspace: SimpleNamespace(get=gone))
    spec = shop.done["replay0.5"].spec
    left = continual.split_of(spec, shop.workspace, newer)
    assert left.query("u01").history
    with pytest.raises(NotFoundError):
        continual.continuation_of(spec, shop.workspace, newer)


def test_a_carried_model_ranks_what_it_knows_and_then_what_it_does_not(shop):
    older, newer = (DatasetStore(shop.workspace).load("films", version) for version in (1, 2))
    inner = registry.load(shop.done["first"].folder / "artifacts" / "recommender", older, _context(shop))
    carried = CarriedRecommender(inner, older, newer)
    query = make_split(newer, SplitSpec(**TEMPORAL)).query("u01")
    known = [newer.item_idx(str(item)) for item in older.item_ids[:5]]
    asked = np.array([*known, int(carried.unknown[0]), -1])
    scores = carried.score([query], asked)[0]
    plain = Query("u01", tuple(h for h in query.history if h.item_id in older.item_index))
    np.testing.assert_array_equal(scores[:5], inner.score([plain], np.arange(5))[0])
    assert scores[5] < scores[:5].min()
    assert np.isneginf(scores[6])
    ranking = carried.top_k([query], 3, [np.array(known[:1])])[0]
    expected = inner.top_k([plain], 3, [np.array([0])])[0]
    assert [newer.item_ids[i] for i in ranking.items] == [older.item_ids[i] for i in expected.items]


def _context(shop):
    from llmrec_core.contracts import FitContext

    return FitContext(workspace_models=shop.workspace.models, device="cpu")


def test_what_cannot_be_gone_on_with_is_refused(shop, lab: Lab):
    older, newer = (DatasetStore(shop.workspace).load("films", version) for version in (1, 2))
    cold = SplitSpec(protocol="cold-user")
    with pytest.raises(SpecError, match="cold-user holds out users"):
        continue_split(make_split(newer, cold), make_split(older, SplitSpec(**TEMPORAL)), np.arange(3))
    first = make_split(newer, SplitSpec(**TEMPORAL))
    with pytest.raises(DataError, match="interactions of the first run's data are not in it"):
        continue_split(make_split(older, SplitSpec(**TEMPORAL)), first, first.train)
    with pytest.raises(SpecError, match="continual: name the run"):
        parse_run_spec({"dataset": {"name": "d"}, "continual": {}})
    done = SimpleNamespace(state="done")
    raw = {**lab.spec("nothing").model_dump(mode="json"), "continue_from": "first", "continual": {}}
    spec = parse_run_spec({**raw, "dataset": {"name": "films", "version": 2}})
    first = SimpleNamespace(run_id="first", status=done, spec=parse_run_spec({**raw, "continual": None}))
    first.spec = first.spec.model_copy(update={"dataset": DatasetRef(name="films", version=2)})
    with pytest.raises(InputError, match="trained on version 2 of films already"):
        lab.store._check_second_stage(spec, first)
    first.spec = first.spec.model_copy(update={"dataset": DatasetRef(name="films", version=1)})
    lab.store._check_second_stage(spec, first)
    went_on = SimpleNamespace(run_id="second", status=done, spec=spec)
    with pytest.raises(InputError, match="went on from an older one"):
        lab.store._check_second_stage(spec.model_copy(update={"continual": None}), went_on)


def _histories(shop: _Workshop, version: int, **fields: Any) -> RunSpec:
    """A run that learns from histories alone: no language model, and nothing that reads prompts."""
    tiny = {"model": None, "width": 16, "n_heads": 2, "max_history": 8, "epochs": 3}
    raw = {
        "recommender": {"family": "sequential", **tiny},
        "training": {},
        "evaluation": {"ks": [5], "primary_metric": "ndcg@5", "n_bootstrap": 100, "click_negatives": 0},
    }
    return shop.spec(version, **{**raw, **fields})


def test_a_run_over_histories_goes_on_and_tells_old_from_new(shop):
    first = shop.run("histories", _histories(shop, 1))
    spec = _histories(shop, 2, continue_from="histories", continual={"replay": 0.3})
    found = shop.run("histories-later", spec)["continual"]
    assert (found["first_run"], found["replay"]) == ("histories", 0.3)
    old, new = (found["parts"][name]["metrics"]["ndcg@5"] for name in ("old", "new"))
    assert old["before"]["mean"] == pytest.approx(first["metrics"]["ndcg@5"]["mean"])
    assert new["before"]["mean"] == 0, "the first model has never heard of these items"
    assert new["difference"]["ci_low"] > 0
    still = {"family": "sequential", **spec.recommender.model_dump(), "learning_rate": 1e-12}
    same = shop.run("histories-still", spec.model_copy(update={"recommender": type(spec.recommender)(**still)}))
    assert same["continual"]["sentence"].startswith("No epoch was better on validation than the weights as they came")
    assert not found["sentence"].startswith("No epoch")
    messages = shop.done["histories-later"].events.messages
    assert "30% of what is learned from are of these" in messages


def _decoder(shop: _Workshop, family: str, method: str) -> dict[str, Any]:
    """A run of a decoder: it chooses from a list that the most popular items are in, or writes the next title."""
    folder = shop.workspace.root / family
    if not folder.exists():
        (write_lettered_llama if family == "listwise" else write_tiny_llama)(folder)
    tuning = {"method": method, "lora_rank": 2}
    part: dict[str, Any] = {"family": family, "model": str(folder), "tuning": tuning}
    if family == "generative":
        return {"recommender": {**part, "prior": "popularity"}, "objectives": [{"task": "rank"}]}
    pipeline = {"family": "pipeline", "retriever": {"family": "popularity"}, "n_candidates": 3, "fusion_users": 10}
    return {
        "recommender": {**pipeline, "ranker": {**part, "window": 3}},
        "prompt": {"template": "choice", "max_tokens": 96, "max_history": 1},
        "objectives": [{"task": "rank"}],
    }


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["listwise", "generative"])
def test_decoders_go_on_from_their_weights_and_learn_new_rows_with_old_ones(shop, monkeypatch, family, method):
    evaluation = {"ks": [3], "primary_metric": "ndcg@3", "n_bootstrap": 100, "click_negatives": 0, "max_users": 8}
    raw = {**_decoder(shop, family, method), "evaluation": evaluation}
    training = {
        "max_samples": 60, "batch_size": 12, "rank_candidates": 3, "validation_every": 50, "validation_samples": 16,
        "precision": "fp32", "epochs": 1, "learning_rate": 3e-3,
    }  # fmt: skip
    name = f"{family}-{method}"
    first = shop.run(name, shop.spec(1, **raw, training=training))
    shares: list[float] = []
    drawn = samples.new_and_replayed

    def spied(rows: Any, continued: Any, *rest: Any) -> Any:
        found = drawn(rows, continued, *rest)
        shares.append(float(continued.new_among(found).mean()))
        return found

    monkeypatch.setattr(samples, "new_and_replayed", spied)
    # Steps too small to see: what it knows afterwards is what it started from.
    still = {**training, "learning_rate": 1e-12, "head_learning_rate": 1e-12}
    spec = shop.spec(2, **raw, training=still, continue_from=name, continual={"replay": 0.25})
    found = shop.run(f"{name}-later", spec)["continual"]
    assert (found["first_run"], found["replay"]) == (name, 0.25)
    old = found["parts"]["old"]["metrics"]["ndcg@3"]
    assert old["before"]["mean"] == pytest.approx(first["metrics"]["ndcg@3"]["mean"])
    assert found["parts"]["new"]["metrics"]["ndcg@3"]["before"]["mean"] == 0, "it has never heard of these items"
    assert shares == [0.75]
    assert "goes on from the weights of a finished run" in shop.done[f"{name}-later"].events.messages
    weights = []
    for run_id, version in ((name, 1), (f"{name}-later", 2)):
        dataset = DatasetStore(shop.workspace).load("films", version)
        loaded = registry.load(shop.done[run_id].folder / "artifacts" / "recommender", dataset, _context(shop))
        part: Any = ranker_of(loaded)
        backbone = part.backbone if family == "generative" else part._network.backbone
        weights.append(backbone.model.state_dict())
    anew = shop.run(f"{name}-anew", shop.spec(2, **raw, training=still))
    assert "continual" not in anew
    loaded = registry.load(shop.done[f"{name}-anew"].folder / "artifacts" / "recommender", dataset, _context(shop))
    part = ranker_of(loaded)
    fresh = (part.backbone if family == "generative" else part._network.backbone).model.state_dict()
    changed = [key for key in fresh if not np.allclose(fresh[key], weights[0][key], atol=1e-5)]
    assert changed, "the first training moved something"
    for key in fresh:
        np.testing.assert_allclose(weights[1][key], weights[0][key], atol=1e-6, err_msg=key)


def _finished(recommender: dict[str, Any], **fields: Any) -> Any:
    raw = {"dataset": {"name": "films", "version": 1}, "recommender": recommender, **fields}
    return SimpleNamespace(run_id="first", status=SimpleNamespace(state="done"), spec=parse_run_spec(raw))


def test_what_has_no_weights_to_go_on_from_is_refused_when_it_is_submitted(lab: Lab, shop):
    base = {"dataset": {"name": "films", "version": 2}, "continue_from": "first"}

    def spec(recommender: dict[str, Any], **fields: Any) -> RunSpec:
        return parse_run_spec({**base, "recommender": recommender, **fields})

    sequential = {"family": "sequential", "width": 16, "n_heads": 2}
    with pytest.raises(SpecError, match="no second stage, a cross-encoder has; it goes on with newer data"):
        spec(sequential)
    with pytest.raises(SpecError, match="a ease recommender has no weights to go on from"):
        spec({"family": "ease"}, continual={})
    with pytest.raises(SpecError, match="a blend recommender has no weights to go on from"):
        spec({"family": "blend"}, continual={})
    with pytest.raises(SpecError, match=r"a two-tower recommender has no second stage.*; it goes on with newer data"):
        spec({"family": "two-tower"})
    with pytest.raises(SpecError, match=r"ease recommender has no weights.*sequential ones, two towers, and blends"):
        spec({"family": "ease"}, continual={})
    still = {"family": "listwise", "model": "x", "tuning": {"method": "none"}}
    lists = {"family": "pipeline", "retriever": {"family": "ease"}, "ranker": still}
    with pytest.raises(SpecError, match=r"this listwise recommender trains no weights \(tuning\.method: none\)"):
        spec(lists, continual={}, objectives=[{"task": "rank"}])
    later = spec(sequential, continual={})
    first = _finished
    lab.store._check_second_stage(later, first({**sequential, "dropout": 0.1}))
    with pytest.raises(InputError, match="its recommender has another width, n_heads"):
        lab.store._check_second_stage(later, first({"family": "sequential", "width": 32, "n_heads": 4}))
    with pytest.raises(InputError, match="it is a ease recommender, this is a sequential one"):
        lab.store._check_second_stage(later, first({"family": "ease"}))
    blend = {"family": "blend", "members": [{"family": "ease"}, sequential]}
    turned = {"family": "blend", "members": [sequential, {"family": "ease"}]}
    lab.store._check_second_stage(spec(blend, continual={}), first(blend))
    with pytest.raises(InputError, match="no sequential or two-tower member stands in the same place"):
        lab.store._check_second_stage(spec(blend, continual={}), first(turned))


def _towers(shop: _Workshop, version: int, **fields: Any) -> RunSpec:
    tiny = {"model": shop.model, "width": 16, "n_layers": 1, "n_heads": 2, "max_history": 8, "epochs": 3, "n_text": 8}
    return _histories(shop, version, **{"recommender": {"family": "two-tower", **tiny}, **fields})


def test_a_run_of_two_towers_goes_on_and_tells_old_from_new(shop):
    first = shop.run("towers", _towers(shop, 1))
    spec = _towers(shop, 2, continue_from="towers", continual={"replay": 0.3})
    found = shop.run("towers-later", spec)["continual"]
    assert (found["first_run"], found["replay"]) == ("towers", 0.3)
    old, new = (found["parts"][name]["metrics"]["ndcg@5"] for name in ("old", "new"))
    assert old["before"]["mean"] == pytest.approx(first["metrics"]["ndcg@5"]["mean"])
    assert new["before"]["mean"] == 0, "the first model has never heard of these items"
    assert new["difference"]["ci_low"] > 0
    messages = shop.done["towers-later"].events.messages
    assert "30% of what is learned from are of these" in messages
    assert "The training goes on from the weights of a finished run" in messages
    # What went on is gone on from, too: its id deltas and its whitening are there.
    again = _towers(shop, 2, kind="evaluate", parent_run="towers-later")
    assert shop.run("towers-again", again)["metrics"]


def test_in_a_pipeline_both_the_towers_and_the_ranker_go_on(shop):
    """Steps too small to see: the vectors of the retriever are those of the first run."""
    ranker = {"family": "cross-encoder", "model": shop.model, "tuning": {"freeze_embeddings": False}}

    def spec(version: int, **fields: Any) -> RunSpec:
        towers = _towers(shop, version).recommender.model_dump() | {"learning_rate": fields.pop("rate")}
        whole = {"family": "pipeline", "retriever": towers, "ranker": ranker, "n_candidates": 5, "fusion_users": 10}
        return shop.spec(version, recommender=whole, **fields)

    shop.run("towers-and-ranker", spec(1, rate=2e-3))
    went_on = {"continue_from": "towers-and-ranker", "continual": {"replay": 0.3}}
    found = shop.run("both-later", spec(2, rate=1e-12, **went_on))["continual"]
    assert set(found["parts"]) == {"old", "new"}
    messages = shop.done["both-later"].events.messages
    assert messages.count("The training goes on from the weights of a finished run") == 2
    vectors = {}
    for run_id, version in (("towers-and-ranker", 1), ("both-later", 2)):
        dataset = DatasetStore(shop.workspace).load("films", version)
        loaded = registry.load(shop.done[run_id].folder / "artifacts" / "recommender", dataset, _context(shop))
        known = loaded.item_vectors()
        assert known is not None
        vectors[run_id] = known[[dataset.item_idx(item) for item in ("mcomedyred", "mhorrorred")]]
    np.testing.assert_allclose(*vectors.values(), atol=5e-3)


@pytest.mark.parametrize(
    ("first", "later", "fault"),
    [
        ({}, {"epochs": 3, "batch_size": 8, "id_bound": 0.4}, None),
        ({}, {"width": 64, "user": "prompt"}, "its recommender has another user, width"),
        ({}, {"model": "x"}, "another model"),
        ({}, {"id_bound": 0}, r"another id_bound \(towers have id deltas or not\)"),
        ({}, {"family": "sequential"}, "it is a two-tower recommender, this is a sequential one"),
        ({}, {"tuning_steps": 9, "tuning": {"method": "lora"}}, None),
        ({}, {"tuning": {"method": "lora"}}, r"another tuning\.method"),
        ({"tuning_steps": 9, "tuning": {"method": "lora"}}, {"tuning": {"method": "lora"}}, None),
        ({"tuning_steps": 9, "tuning": {"method": "lora"}}, {}, r"another tuning\.method"),
        ({"tuning_steps": 9}, {"tuning_steps": 9, "tuning": {"method": "ia3"}}, r"another tuning\.method"),
    ],
)
def test_two_towers_of_another_shape_are_refused_before_anything_is_queued(lab: Lab, first, later, fault):
    """Alone, as what a zero-shot ranker asks, and in blends."""
    first, later = ({"family": "two-tower", **fields} for fields in (first, later))
    still = {"family": "listwise", "model": "x", "tuning": {"method": "none"}}
    lists = {"objectives": [{"task": "rank"}]}
    wholes: list[tuple[Any, str | None]] = [
        (lambda part: part, fault),
        (lambda part: {"family": "pipeline", "retriever": part, "ranker": still}, fault),
        (lambda part: {"family": "blend", "members": [{"family": "ease"}, part]}, fault and "no sequential or two-to"),
    ]
    for whole, wanted in wholes:
        base = {"dataset": {"name": "films", "version": 2}, "continue_from": "first", "continual": {}, **lists}
        spec, parent = parse_run_spec({**base, "recommender": whole(later)}), _finished(whole(first), **lists)
        if wanted is None:
            lab.store._check_second_stage(spec, parent)
            continue
        with pytest.raises(InputError, match=wanted):
            lab.store._check_second_stage(spec, parent)


LISTWISE = {"family": "pipeline", "ranker": {"family": "listwise", "model": "x"}}
WORDS_HEAD = {"family": "cross-encoder", "head": "label-words"}


@pytest.mark.parametrize(
    ("first", "later", "fault"),
    [
        ({"family": "ease"}, {"family": "cross-encoder"}, "it trained is a ease recommender, this is a cross-encoder"),
        ({"family": "pipeline"}, LISTWISE, "it trained is a cross-encoder recommender, this is a listwise one"),
        (LISTWISE, {"family": "generative", "model": "x"}, "a listwise recommender, this is a generative one"),
        ({"family": "cross-encoder"}, {"family": "pipeline"}, None),
        ({"family": "cross-encoder"}, {"family": "cross-encoder", "model": "x"}, "another model"),
        (
            {"family": "cross-encoder"},
            {"family": "cross-encoder", "tuning": {"method": "lora", "lora_rank": 3}},
            r"another tuning\.method, tuning\.lora_rank",
        ),
        ({"family": "generative"}, {"family": "generative", "tuning": {"method": "ia3"}}, r"another tuning\.method"),
        ({"family": "cross-encoder"}, WORDS_HEAD, "another head"),
        (WORDS_HEAD, {**WORDS_HEAD, "label_words": ["Good", "Bad"]}, "another label_words"),
        (WORDS_HEAD, {**WORDS_HEAD, "share_history": False}, None),
    ],
)
def test_another_model_family_or_tuning_is_refused_before_anything_is_queued(lab: Lab, first, later, fault):
    """Also for a second stage on the same data: nothing of it waits for a worker."""
    lists = {"objectives": [{"task": "rank"}]}
    parent = _finished(first, **lists)
    base = {"dataset": {"name": "films", "version": 2}, "continue_from": "first", "recommender": later, **lists}
    asked = [parse_run_spec({**base, "continual": {}})]
    if later["family"] in ("cross-encoder",):
        asked.append(parse_run_spec({**base, "dataset": {"name": "films", "version": 1}}))
    for spec in asked:
        if fault is None:
            lab.store._check_second_stage(spec, parent)
            continue
        with pytest.raises(InputError, match=fault):
            lab.store._check_second_stage(spec, parent)


def test_beside_a_zero_shot_ranker_the_retriever_goes_on(lab: Lab):
    sequential = {"family": "sequential", "width": 16, "n_heads": 2}
    still = {"family": "listwise", "model": "x", "tuning": {"method": "none"}}
    lists = {"objectives": [{"task": "rank"}]}

    def pipeline(**retriever: Any) -> dict[str, Any]:
        return {"family": "pipeline", "retriever": {**sequential, **retriever}, "ranker": still}

    raw = {"dataset": {"name": "films", "version": 2}, "continue_from": "first", "continual": {}, **lists}
    later = parse_run_spec({**raw, "recommender": pipeline()})
    lab.store._check_second_stage(later, _finished(pipeline(epochs=3), **lists))
    with pytest.raises(InputError, match="of its retriever, its recommender has another width"):
        lab.store._check_second_stage(later, _finished(pipeline(width=32), **lists))


def test_a_run_that_only_measured_has_no_weights_to_go_on_from(lab: Lab):
    raw = {"dataset": {"name": "films", "version": 2}, "continue_from": "first", "continual": {}}
    measured = _finished({"family": "pipeline"}, kind="evaluate", parent_run="trained")
    with pytest.raises(InputError, match=r"only measured another run again.*that it measured, trained"):
        lab.store._check_second_stage(parse_run_spec(raw), measured)
