"""Children of a tiny tuned cross-encoder: what they weigh, how near their scores are, and that they load as saved."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from compression.compression_cases import saved, scores
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_bert, write_tiny_llama
from training.training_cases import Events

from llmrec_core.compression import prune, towers
from llmrec_core.compression.children import compress, every_kth
from llmrec_core.compression.measure import held_bytes, measure_pair, rank_correlation, saved_bytes
from llmrec_core.compression.prune import head_importance, heads_of, with_layers, without_heads
from llmrec_core.compression.quantise import whole_model
from llmrec_core.compression.teach import teach
from llmrec_core.errors import InputError, ModelError, RunCancelledError
from llmrec_core.models import compact, quantised
from llmrec_core.models.loading import load_backbone, save_backbone
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.reworked import network_of, practice, with_backbone
from llmrec_core.specs import TwoTowerSpec
from llmrec_core.specs.compression import (
    DistilSpec,
    DistilTwoTowerSpec,
    Int4Spec,
    Int8Spec,
    PruneHeadsSpec,
    PruneLayersSpec,
)

SPECS = [
    Int8Spec(),
    Int8Spec(activations="float", embeddings=False),
    Int4Spec(group_size=8),
    PruneHeadsSpec(share=0.25, epochs=0),
    PruneLayersSpec(n_layers=1, epochs=0),
    DistilSpec(n_layers=1, epochs=0.5),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.method}-{getattr(s, 'activations', '')}")
def test_a_child_loads_as_it_was_saved_and_leaves_its_parent_alone(tiny_parent, spec, tmp_path):
    recommender, split, ctx = tiny_parent
    before = scores(recommender, split)
    child = compress(recommender, spec, split, ctx)
    assert np.array_equal(scores(recommender, split), before)
    found = scores(child, split)
    again = saved(child, split, ctx, tmp_path / "child")
    assert np.array_equal(scores(again, split), found)
    assert again.capabilities == recommender.capabilities
    assert not np.array_equal(found, before), "a child that is its parent compresses nothing"
    twice = saved(again, split, ctx, tmp_path / "twice")
    assert np.array_equal(scores(twice, split), found)


def test_eight_bits_are_a_quarter_and_nearly_the_same_scores(tiny_parent, tmp_path):
    recommender, split, ctx = tiny_parent
    before = scores(recommender, split)
    spread = before.std()
    weights = {}
    for name, spec in (("int8", Int8Spec()), ("float", Int8Spec(activations="float")), ("int4", Int4Spec())):
        child = compress(recommender, spec, split, ctx)
        folder = tmp_path / name
        saved(child, split, ctx, folder)
        weights[name] = (folder / "model" / "model.safetensors").stat().st_size
        error = np.abs(scores(child, split) - before).max() / spread
        assert error < {"int8": 0.1, "float": 0.05, "int4": 0.6}[name], (name, error)
    network = network_of(recommender)
    linear = sum(m.weight.numel() for m in network.encoder.modules() if isinstance(m, torch.nn.Linear))
    words = network.encoder.get_input_embeddings().weight.numel()
    rest = sum(p.numel() for p in network.encoder.parameters()) - linear - words
    # A byte a weight, four for all others, and scales: one for every row.
    assert weights["int8"] < linear + words + 4 * rest + 16_000
    # Half a byte a weight and two float16 for each group of 32; the table of words stays at a byte.
    assert weights["int8"] - weights["int4"] > 0.3 * linear


def test_the_kernel_and_the_plain_way_round_alike(monkeypatch):
    # More rows than a block has.
    monkeypatch.setattr(quantised, "_BLOCK_CELLS", 1)
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(700, 48) * 3, torch.randn(40, 48), torch.randn(40)
    layer = quantised.QuantisedLinear(*quantised.quantise_rows(weight), None, bias, 48, "int8")
    with torch.inference_mode():
        fast = layer(rows)
        alone = torch.cat([layer(row[None]) for row in rows[:5]])
        monkeypatch.setattr(quantised, "whole_number_kernel", lambda: False)
        plain = layer(rows)
    exact = torch.nn.functional.linear(rows, weight, bias)
    assert torch.allclose(fast, plain, atol=1e-4)
    assert torch.allclose(alone, fast[:5], atol=1e-5), "a row's result does not depend on the others"
    # Half a step of each weight and each number, added up over 48 inputs, is the worst there can be.
    assert (fast - exact).abs().max() < 0.03 * exact.abs().max()


def test_four_bits_by_hand():
    weight = torch.tensor([[0.0, 1.0, 2.0, 15.0, 7.0, 7.0, 7.0, 7.0], [-3.0, 12.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]])
    packed, scale, low = quantised.quantise_groups(weight, 4)
    assert packed.shape == (2, 4)
    found = quantised.unpack_groups(packed, scale, low, 8)
    # Whole numbers over a range of 15 lie on the grid, as do equal numbers; the last group has steps of 3/15.
    assert torch.equal(found[:, :4], weight[:, :4])
    assert torch.equal(found[0, 4:], weight[0, 4:])
    assert (found[1, 4:] - weight[1, 4:]).abs().max() < 0.11


def test_pruned_heads_are_heads_that_say_nothing(tiny_parent):
    recommender, split, _ = tiny_parent
    whole = whole_model(network_of(recommender).backbone)
    model = whole.model
    masked = whole_model(whole)
    gone = {0: (1,), 1: (0, 2)}
    width = model.config.hidden_size // model.config.num_attention_heads
    for layer, heads in gone.items():
        output = masked.model.encoder.layer[layer].attention.output.dense.weight
        with torch.no_grad():
            for head in heads:
                output[:, head * width : (head + 1) * width] = 0
    kept = {layer: tuple(h for h in range(4) if h not in heads) for layer, heads in gone.items()}
    compact.prune_heads(model, kept)
    found, expected = (scores(with_backbone(recommender, b), split) for b in (whole, masked))
    assert np.allclose(found, expected, atol=1e-5)
    assert model.encoder.layer[1].attention.self.query.out_features == 2 * width


def test_the_head_that_matters_stays(tiny_parent):
    """Heads whose output is cut off from the model are the ones to go, by either measure."""
    recommender, split, ctx = tiny_parent
    whole = whole_model(network_of(recommender).backbone)
    with torch.no_grad():
        whole.model.encoder.layer[1].attention.output.dense.weight[:, 8:24] = 0
    judged = with_backbone(recommender, whole)
    plan, _, _ = practice(recommender, split, 1, ctx)
    weights = {o.task: o.weight for o in recommender.run.objectives}
    for how in ("gradient", "leave-one-out"):
        found = head_importance(network_of(judged), [plan[0]], weights, how, ctx)
        assert np.allclose(found[1][1:3], 0, atol=1e-6)
        assert np.abs(found[1][[0, 3]]).min() > 1e-6
    small = without_heads(whole_model(whole), head_importance(network_of(judged), [plan[0]], weights, "gradient", ctx),
                          PruneHeadsSpec(share=0.25))  # fmt: skip
    assert heads_of(small)[1] == (0, 3)
    assert heads_of(small)[0] == (0, 1, 2, 3)


@pytest.mark.parametrize("how", ["gradient", "leave-one-out"])
def test_what_judges_heads_lies_where_the_network_is(tiny_parent, monkeypatch, how):
    """Gates and labels; no device but the processor is there, so that nothing is computed on the other."""
    recommender, split, ctx = tiny_parent
    judged = network_of(with_backbone(recommender, whole_model(network_of(recommender).backbone)))
    plan, _, _ = practice(recommender, split, 1, ctx)
    weights = {o.task: o.weight for o in recommender.run.objectives}
    places = []

    @contextmanager
    def gated(backbone, gates, size):
        places.extend(gate.device.type for gate in gates)
        yield

    def loss(outputs, labels, weights):
        places.extend(tensor.device.type for tensor in (labels.list_of, *labels.values.values()))
        raise ZeroDivisionError

    monkeypatch.setattr(type(judged), "device", torch.device("meta"))
    monkeypatch.setattr(type(judged), "forward", lambda self, packed: {})
    monkeypatch.setattr(prune, "_gated", gated)
    monkeypatch.setattr(prune, "weighted_loss", loss)
    with pytest.raises(ZeroDivisionError):
        head_importance(judged, [plan[0]], weights, how, ctx)
    assert len(places) == 2 + 1 + 3
    assert set(places) == {"meta"}


def test_judging_heads_ends_when_it_is_asked_to(tiny_parent):
    recommender, split, ctx = tiny_parent
    judged = network_of(with_backbone(recommender, whole_model(network_of(recommender).backbone)))
    plan, _, _ = practice(recommender, split, 1, ctx)
    weights = {o.task: o.weight for o in recommender.run.objectives}
    batches = [plan[0], plan[1], plan[2]]

    def found(batches, asked):
        wish = iter(asked)
        return head_importance(judged, batches, weights, "gradient", replace(ctx, should_stop=lambda: next(wish)))

    for asked, n_heard in (([None, None, None], 3), ([None, "stop"], 2), (["stop"], 1)):
        np.testing.assert_allclose(found(batches, asked), found(batches[:n_heard], [None] * n_heard), rtol=1e-6)
    with pytest.raises(RunCancelledError):
        found(batches, [None, "cancel"])
    with pytest.raises(RunCancelledError):
        head_importance(judged, batches, weights, "leave-one-out", replace(ctx, should_stop=lambda: "cancel"))


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_the_layer_that_does_nothing_is_the_one_to_go(tiny_parent, tmp_path, monkeypatch, idle):
    """Of three layers one hands on what it was given; whichever it is, it is found, and nothing changes without it."""
    recommender, split, ctx = tiny_parent
    backbone = load_backbone(write_tiny_llama(tmp_path / "llama", n_layers=3), trainable=False)
    with torch.no_grad():
        for part in (backbone.model.layers[idle].self_attn.o_proj, backbone.model.layers[idle].mlp.down_proj):
            part.weight.zero_()
    reader = with_backbone(recommender, backbone)
    before = scores(reader, split)
    # A random model's labels may be met better without a layer; what it says itself is met best by leaving it alone.
    distance = lambda *_: float(np.abs(scores(reader, split) - before).max())  # noqa: E731
    monkeypatch.setattr(prune, "_mean_loss", distance)
    kept = prune.least_missed_layers(network_of(reader), 1, [], {}, ctx)
    assert kept == [layer for layer in range(3) if layer != idle]
    assert np.allclose(scores(with_backbone(recommender, with_layers(backbone, kept)), split), before, atol=1e-5)


def test_layers_go_one_by_one_and_the_last_to_go_is_judged_without_the_first(monkeypatch, tiny_parent, tmp_path):
    """Losses by hand: alone layer 0 is missed least, then without it layer 2 is; together 1 and 2 would be cheaper."""
    recommender, _, ctx = tiny_parent
    backbone = load_backbone(write_tiny_llama(tmp_path / "llama", n_layers=3), trainable=False)
    network = network_of(with_backbone(recommender, backbone))
    skipped: list[tuple[int, ...]] = []
    losses = {(0,): 1.0, (1,): 2.0, (2,): 3.0, (0, 1): 9.0, (0, 2): 5.0, (1, 2): 0.0}

    @contextmanager
    def noted(stack, layers):
        skipped.append(tuple(layers))
        yield

    monkeypatch.setattr(prune, "_skipped", noted)
    monkeypatch.setattr(prune, "_mean_loss", lambda *_: losses[skipped[-1]])
    assert prune.least_missed_layers(network, 2, [], {}, ctx) == [1]
    with pytest.raises(InputError, match="3 layers cannot be taken out of 3"):
        prune.least_missed_layers(network, 3, [], {}, ctx)


def test_a_student_learns_its_teacher(tiny_parent, tmp_path, monkeypatch):
    """A student that began as somebody else says what its teacher says, from the teacher's scores and states alone."""
    recommender, split, ctx = tiny_parent
    right = scores(recommender, split)
    stranger = load_backbone(write_tiny_bert(tmp_path / "stranger", seed=7), trainable=False)
    student = with_backbone(recommender, stranger)
    before = np.mean((scores(student, split) - right) ** 2) / right.var()
    plan, validation, _ = practice(recommender, split, 12, ctx)
    weights = {o.task: o.weight for o in recommender.run.objectives}
    spec = DistilSpec(n_layers=1, learning_rate=1e-3, label_weight=0)
    # The last weights, not the best on a validation of a few rows.
    monkeypatch.setattr("llmrec_core.compression.teach._Watched.keep_best", lambda self: None)
    teacher = network_of(recommender)
    teach(network_of(student), teacher, [(0, 0), (1, 1)], plan, validation, weights, spec, ctx)
    after = np.mean((scores(student, split) - right) ** 2) / right.var()
    assert after < 0.5 * before
    assert not any(p.requires_grad for p in network_of(student).parameters())
    assert every_kth(6, 3) == [1, 3, 5]
    with pytest.raises(InputError, match="not smaller"):
        compress(recommender, DistilSpec(n_layers=2), split, ctx)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("hidden_weight", [0.5, 0.0])
@pytest.mark.parametrize("write", [write_tiny_bert, write_tiny_llama])
def test_a_student_is_taught_without_padding_as_with_it(
    tiny_parent, tmp_path, monkeypatch, write, hidden_weight, precision
):
    recommender, split, ctx = tiny_parent
    plan, validation, _ = practice(recommender, split, 2, ctx)
    weights = {o.task: o.weight for o in recommender.run.objectives}
    spec = DistilSpec(n_layers=1, learning_rate=1e-3, hidden_weight=hidden_weight)
    folders = [write(tmp_path / str(seed), seed=seed) for seed in (7, 8)]
    assert any((plan[at].packed.segment < 0).any() for at in range(len(plan))), "nothing to leave out"

    def taught():
        teacher, student = (
            network_of(with_backbone(recommender, load_backbone(folder, trainable=False))) for folder in folders
        )
        for network in (teacher, student):
            network.autocast = torch.bfloat16 if precision == "bf16" else None
        unpadded: list[bool] = []
        events = Events()
        looked = lambda: unpadded.extend((student.unpadded, teacher.unpadded))  # noqa: E731
        told = replace(ctx, emit=events.emit, should_stop=looked)
        teach(student, teacher, [(0, 0), (1, 1)], plan, validation, weights, spec, told)
        assert not student.unpadded
        assert not teacher.unpadded
        return set(unpadded), [event["loss"] for event in events.of("train")]

    without, losses = taught()
    assert without == {True}
    monkeypatch.setattr("llmrec_core.training.unpadded._possible", lambda _: False)
    rows, expected = taught()
    assert rows == {False}
    assert len(expected) > 3
    np.testing.assert_allclose(losses, expected, rtol=1e-4 if precision == "fp32" else 0.01)


def test_layers_of_a_decoder_are_numbered_anew(tmp_path):
    backbone = load_backbone(write_tiny_llama(tmp_path / "llama", n_layers=3), trainable=False)
    small = with_layers(backbone, [0, 2])
    (tmp_path / "small").mkdir()
    save_backbone(small, tmp_path / "small")
    again = load_backbone(tmp_path / "small", trainable=False)
    ids = torch.arange(10, 22)[None]
    assert again.n_layers == 2
    one, two = (b.model(input_ids=ids).last_hidden_state for b in (small, again))
    assert torch.allclose(one, two, atol=1e-6)


def test_hostile_and_damaged_weights_are_refused(tiny_parent, tmp_path):
    recommender, split, ctx = tiny_parent
    backbone = network_of(compress(recommender, Int8Spec(), split, ctx)).backbone
    save_backbone(backbone, tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good, note = load_file(file), json.loads(config.read_text())
    with pytest.raises(ModelError, match="cannot be trained"):
        load_backbone(tmp_path, trainable=True)
    query = "encoder.layer.0.attention.self.query"
    broken = [
        ({**good, f"{query}.packed": good[f"{query}.packed"][:-1].clone()}, note, "is \\(31, 32\\)"),
        ({**good, f"{query}.packed": good[f"{query}.packed"].float()}, note, "torch.float32"),
        ({**good, f"{query}.scale": good[f"{query}.scale"] * torch.nan}, note, "no numbers"),
        ({name: t for name, t in good.items() if name != f"{query}.scale"}, note, "is missing"),
        ({**good, "more": torch.zeros(1)}, note, "belongs nowhere"),
        (good, {**note, compact.KEY: {"linear_bits": 3}}, "note on compression is damaged"),
        (good, {**note, compact.KEY: {"linear_bits": 8, "code": "x"}}, "note on compression is damaged"),
        (good, {**note, compact.KEY: {**note[compact.KEY], "kept_heads": {"0": [9]}}}, "heads kept in layer 0"),
        (good, {**note, compact.KEY: {**note[compact.KEY], "kept_heads": {"7": [0]}}}, "heads kept in layer 7"),
        (good, {k: v for k, v in note.items() if k != compact.KEY}, "asks for|missing"),
        (good, {**note, "num_hidden_layers": 400}, "is missing"),
    ]
    for tensors, settings, words in broken:
        save_file(tensors, file)
        config.write_text(json.dumps(settings))
        with pytest.raises(ModelError, match=words):
            load_backbone(tmp_path, trainable=False)


def test_whole_numbers_are_not_compressed_again(tiny_parent):
    recommender, split, ctx = tiny_parent
    child = compress(recommender, Int8Spec(), split, ctx)
    with pytest.raises(InputError, match="whole-number weights already"):
        compress(child, Int4Spec(), split, ctx)
    pruned = compress(recommender, PruneHeadsSpec(share=0.5, epochs=0), split, ctx)
    both = compress(pruned, Int8Spec(), split, ctx)
    assert np.abs(scores(both, split) - scores(pruned, split)).max() < 0.1 * scores(pruned, split).std()


def test_what_a_child_costs(tiny_parent, tmp_path):
    recommender, split, ctx = tiny_parent
    child = compress(recommender, Int8Spec(), split, ctx)
    folders = [tmp_path / "parent", tmp_path / "child"]
    pair = [saved(r, split, ctx, f) for r, f in zip((recommender, child), folders, strict=True)]
    found = measure_pair((pair[0], folders[0]), (pair[1], folders[1]), split, 0)
    assert found["child"]["size_bytes"] == saved_bytes(folders[1], pair[1]) < found["parent"]["size_bytes"]
    assert found["parent"]["memory_bytes"] == held_bytes(pair[0])
    network = network_of(pair[0])
    held = [*network.parameters(), *network.buffers()]
    assert found["parent"]["memory_bytes"] == sum(t.numel() * t.element_size() for t in held)
    assert found["speed_ratio"] > 0
    assert 0.9 < found["agreement"] <= 1
    assert found["alone"]["metric"] == recommender.run.training.validation_metric
    same = measure_pair((pair[0], folders[0]), (pair[0], folders[0]), split, 0)
    assert same["agreement"] == pytest.approx(1)
    assert same["alone"]["child"] == same["alone"]["parent"] == found["alone"]["parent"]


def test_rank_correlation_by_hand():
    one = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5]], np.float32)
    other = np.array([[1, 2, 4, 3], [9, 8, 7, 6], [1, 2, 3, 4]], np.float32)
    # 1 - 6 x 2 / (4 x 15) = .8 and -1; where one says the same of all there is no order.
    assert rank_correlation(one, other) == pytest.approx(-0.1)
    assert rank_correlation(one[2:], other[2:]) is None


def test_families_without_a_reader_are_refused(fitted_family):
    recommender, split, ctx = fitted_family("popularity")
    with pytest.raises(InputError, match="no cross-encoder"):
        compress(recommender, Int8Spec(), split, ctx)
    with pytest.raises(InputError, match="no cross-encoder"):
        compress(recommender, DistilTwoTowerSpec(), split, ctx)


@pytest.fixture(scope="module", params=["generative", "pipeline, generative"])
def writer(request, fitted_family):
    """A decoder of titles, tuned with LoRA, alone and as the second of two stages."""
    return fitted_family(request.param)


@pytest.mark.parametrize("spec", [Int8Spec(), Int8Spec(activations="float", embeddings=False), Int4Spec(group_size=8)])
def test_a_writer_of_titles_in_whole_numbers(writer, spec, tmp_path):
    recommender, split, ctx = writer
    before = scores(recommender, split)
    told: list[str] = []
    child = compress(recommender, spec, split, replace(ctx, emit=lambda event, **v: told.append(v.get("message", ""))))
    np.testing.assert_array_equal(scores(recommender, split), before)
    found = scores(child, split)
    assert 0 < np.abs(found - before).max() < (0.6 if spec.method == "int4" else 0.2) * before.std()
    assert any("become part of the weights" in message for message in told)
    again = saved(child, split, ctx, tmp_path / "child")
    np.testing.assert_allclose(scores(again, split), found, atol=1e-5)
    queries = split.queries("valid").queries
    one, other = child.top_k(queries, 3), again.top_k(queries, 3)
    assert [r.items.tolist() for r in one] == [r.items.tolist() for r in other]


def test_a_writers_child_is_smaller_whole_and_writes_texts(fitted_family, tmp_path):
    recommender, split, ctx = fitted_family("generative")
    folders = [tmp_path / "parent", tmp_path / "child"]
    pair = [
        saved(one, split, ctx, folder)
        for one, folder in zip((recommender, compress(recommender, Int8Spec(), split, ctx)), folders, strict=True)
    ]
    found = measure_pair((pair[0], folders[0]), (pair[1], folders[1]), split, 0)
    assert found["child"]["memory_bytes"] < 0.5 * found["parent"]["memory_bytes"]
    assert found["agreement"] > 0.9
    assert found["alone"]["metric"] == recommender.run.training.validation_metric
    # Its model is its own: the one below is not asked for.
    away = replace(ctx, workspace_models=tmp_path / "nothing")
    alone = registry.load(folders[1], split.dataset, away)
    query = split.queries("valid").queries[0]
    assert alone.write(query, 0, 1).text == pair[1].write(query, 0, 1).text
    with pytest.raises(InputError, match="whole-number weights already"):
        compress(alone, Int4Spec(), split, ctx)
    with pytest.raises(InputError, match="no cross-encoder"):
        compress(recommender, DistilSpec(), split, ctx)


def test_a_writer_with_words_of_its_own_for_writing_is_refused(fitted_family, tmp_path):
    recommender, split, ctx = fitted_family("generative")
    loaded = saved(recommender, split, ctx, tmp_path / "again")
    loaded.backbone.facts.config["tie_word_embeddings"] = False
    with pytest.raises(InputError, match=r"a table of words of its own.*which compression leaves behind"):
        compress(loaded, Int8Spec(), split, ctx)


@pytest.mark.parametrize("spec", [Int8Spec(), Int8Spec(activations="float", embeddings=False), Int4Spec(group_size=8)])
def test_a_reader_of_lists_in_whole_numbers(fitted_family, spec, tmp_path):
    """It answers in letters, in memory as from disk."""
    recommender, split, ctx = fitted_family("pipeline, listwise")
    before = scores(recommender, split)
    child = compress(recommender, spec, split, ctx)
    found = scores(child, split)
    assert 0 < np.abs(found - before).max() < (1.0 if spec.method == "int4" else 0.3) * before.std()
    np.testing.assert_array_equal(scores(recommender, split), before)
    again = saved(child, split, ctx, tmp_path / "child")
    np.testing.assert_array_equal(scores(again, split), found)
    assert again.capabilities == child.capabilities == recommender.capabilities


def test_towers_learn_a_teachers_order(tiny_parent):
    """The towers' scores go nearer to the teacher's; what validation users chose still decides which epoch is kept."""
    recommender, split, ctx = tiny_parent
    tower = TwoTowerSpec(model=recommender.spec.model, n_text=6, width=16, epochs=1, tuning_steps=0, max_history=4)
    spec = DistilTwoTowerSpec(student=tower, n_histories=40, n_candidates=8, epochs=3)
    child = compress(recommender, spec, split, ctx)
    assert child.family == "two-tower"
    assert scores(child, split).shape == scores(recommender, split).shape
    rng = np.random.default_rng(0)
    queries, chosen = towers._histories(split, 40, rng)
    items = towers._lists(child, queries, chosen, split, 8, rng)
    assert np.array_equal(items[:, 0], chosen)
    assert all(len(set(row)) == len(row) for row in items.tolist())
    targets = towers._soft_targets(recommender, queries, items, 1.0, ctx)
    assert np.allclose(targets.sum(1), 1)
    assert np.array_equal(targets.argmax(1), recommender.score(queries, items).argmax(1))
    # Without validation nothing but the teacher speaks, and the last epoch is kept.
    far = _cross_entropy(child, queries, items, targets)
    spec = spec.model_copy(update={"epochs": 60, "learning_rate": 5e-3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "watched", lambda *_: None)
        towers._learn(child, queries, items, targets, split, spec, ctx)
    assert _cross_entropy(child, queries, items, targets) < far - 0.05
    # A teacher that makes them worse leaves them as they were, and that is said.
    before, said = scores(child, split), []
    told = replace(ctx, emit=lambda kind, **what: said.append(what.get("message", "")))
    with pytest.MonkeyPatch.context() as patch:
        worse = iter(range(10, -10, -1))
        patch.setattr(towers, "watched", lambda *_: lambda _student: float(next(worse)))
        towers._learn(child, queries, items, targets, split, spec.model_copy(update={"epochs": 2}), told)
    assert np.array_equal(scores(child, split), before)
    assert any("taught these towers nothing" in message for message in said)


def test_towers_keep_what_they_learned_when_they_are_asked_to_stop(tiny_parent, monkeypatch):
    """A teacher that is interrupted has judged some histories; the towers go over those once."""
    recommender, split, ctx = tiny_parent
    tower = TwoTowerSpec(model=recommender.spec.model, n_text=6, width=16, epochs=1, tuning_steps=0, max_history=4)
    spec = DistilTwoTowerSpec(student=tower, n_histories=12, n_candidates=4, epochs=9)
    events, wish, learned = Events(), [], []
    monkeypatch.setattr(towers, "_BLOCK", 4)
    learn = towers._learn

    def noted(student, queries, items, targets, *rest):
        assert len(queries) == len(items) == len(targets)
        learned.append((len(queries), scores(student, split)))
        learn(student, queries, items, targets, *rest)

    def should_stop():
        judged = [e["step"] for e in events.of("progress") if e["stage"] == "fusion"]
        return wish[0] if judged and judged[-1] >= 8 else None

    monkeypatch.setattr(towers, "_learn", noted)
    monkeypatch.setattr(towers, "watched", lambda *_: None)
    told = replace(ctx, emit=events.emit, should_stop=should_stop)
    wish.append("stop")
    child = compress(recommender, spec, split, told)
    assert learned[0][0] == 8
    assert [e["step"] for e in events.of("train") if e["total"] == 9] == [1]
    assert not np.array_equal(scores(child, split), learned[0][1])
    wish[0] = "cancel"
    events.clear()
    with pytest.raises(RunCancelledError):
        compress(recommender, spec, split, told)


def _cross_entropy(recommender, queries, items, targets):
    logits = recommender.score(queries, items) / 0.1
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return -(targets * logits).sum(1).mean()
