"""Training rows without padding against the padded rows they stand for: scores, gradients and whole trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.test_scoring import DECODERS, ENCODERS, TOKENS, _network, _tokens
from training.training_cases import fit, planted_run, planted_split

from llmrec_core.models.compact import prune_heads
from llmrec_core.models.tuning import apply_tuning
from llmrec_core.models.tuning_soft import add_soft_states
from llmrec_core.specs import RunSpec, TuningSpec
from llmrec_core.training import row_attention, unpadded
from llmrec_core.training.batches import sized
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import pack, plan_rows
from llmrec_core.training.unpadded import without_padding


@pytest.mark.parametrize(("model_type", "size"), [("bert", 48), ("llama", 32)])
def test_a_decoder_takes_no_larger_batches_in_bf16(model_type, size):
    network = _network(model_type)
    run = RunSpec.model_validate({"dataset": {"name": "d"}, "objectives": [{"task": "click"}]})
    assert sized(run, network).batch_size == 32
    network.encoder.to(torch.bfloat16)
    assert sized(run, network).batch_size == size


def _packed(tokens, max_tails=3):
    prompts = np.arange(len(tokens))
    return pack(tokens, prompts, plan_rows(tokens, prompts, max_tails), 0)


def _computed(network: PromptNetwork, packed) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Vectors, and every trained weight's gradient for a mixture of them."""
    vectors = network.vectors(packed)
    mixture = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    (vectors * mixture).sum().backward()
    found = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad()
    return vectors.detach(), found


def _assert_the_same(network: PromptNetwork, packed, atol=1e-4) -> None:
    vectors, gradients = _computed(network, packed)
    with without_padding(network, whole_rows=False):
        assert network.unpadded
        fast, fast_gradients = _computed(network, packed)
    assert not network.unpadded
    assert network.encoder.config._attn_implementation == "eager"
    torch.testing.assert_close(fast, vectors, atol=atol, rtol=1e-4)
    assert vectors.std(0).mean() > 0.01, "prompts differ, or nothing is proven"
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        told = fast_gradients.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(told, gradient, atol=atol, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
    assert fast_gradients.keys() <= gradients.keys()


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_vectors_and_gradients_are_those_of_padded_rows(model_type):
    _assert_the_same(_network(model_type), _packed(TOKENS))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_prompts_that_stand_alone(model_type, pooling):
    tokens = _tokens([(0, [7, 3, 12, 7, 1])])
    _assert_the_same(_network(model_type, shared=False, pooling=pooling), _packed(tokens))


@pytest.mark.parametrize("pooling", ["last", "mask"])
def test_one_token_of_each_tail_is_pooled(pooling):
    network = _network("bert", pooling=pooling)
    # A word that some tails have twice and most have not at all: those give zeros.
    network.mask_id = int(TOKENS.tails[0][1])
    vectors = network.vectors(_packed(TOKENS))
    if pooling == "mask":
        assert 0 < int((vectors.abs().sum(1) > 0).sum()) < len(vectors)
    _assert_the_same(network, _packed(TOKENS))


def test_a_batch_of_which_nothing_is_pooled():
    network = _network("bert", pooling="mask")
    network.mask_id = 999
    with without_padding(network, whole_rows=False):
        assert torch.equal(network.vectors(_packed(TOKENS)), torch.zeros(len(TOKENS), 32))


def test_layers_that_lost_heads():
    network = _network("bert")
    prune_heads(network.encoder, {0: (1, 3), 1: (2,)})
    _assert_the_same(network, _packed(TOKENS))


@pytest.mark.parametrize("method", ["full", "top-layers", "lora", "adalora", "ia3", "bottleneck"])
def test_ways_of_tuning(method):
    network = _network("bert")
    apply_tuning(network.encoder, TuningSpec(method=method, n_top_layers=1))
    with torch.no_grad():
        for weight in network.encoder.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    network.eval()
    _assert_the_same(network, _packed(TOKENS))


def _counted(monkeypatch, name):
    """Calls of a function of the module from here on."""
    calls, before = [], getattr(unpadded, name)
    monkeypatch.setattr(unpadded, name, lambda *given: calls.append(given) or before(*given))
    return calls


@pytest.mark.parametrize("method", ["full", "lora"])
def test_queries_keys_and_values_are_one_product(method, monkeypatch):
    network = _network("bert")
    apply_tuning(network.encoder, TuningSpec(method=method))
    for name, weight in network.named_parameters():
        if method == "lora" and "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    network.eval()
    joint = _counted(monkeypatch, "_side_by_side")
    whole = []
    for layer in network.encoder.encoder.layer[:-1]:
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            monkeypatch.setattr(part, "forward", lambda *given, f=part.forward: whole.append(1) or f(*given))
    _, padded = _computed(network, _packed(TOKENS))
    assert whole
    whole.clear()
    with without_padding(network, whole_rows=False):
        _, fast = _computed(network, _packed(TOKENS))
    assert joint
    assert not whole, "no layer of its own was asked"
    queries = [name for name in padded if "layer.0.attention.self.query" in name]
    assert queries
    for name in queries:
        torch.testing.assert_close(fast[name], padded[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("trained", ["query.weight", "key.bias", "value.weight"])
def test_one_of_the_three_is_trained(trained):
    network = _network("bert")
    for name, weight in network.encoder.named_parameters():
        weight.requires_grad_(name.endswith(f"attention.self.{trained}") or "output.dense.weight" in name)
    _assert_the_same(network, _packed(TOKENS))


def test_layers_of_other_kinds_are_asked_one_by_one():
    """A hook, another class or size, or a missing bias: what is in its place here would not do what they do."""

    def asked(change):
        network = _network("bert")
        attention = network.encoder.encoder.layer[0].attention.self
        change(attention)
        parts = attention.query, attention.key, attention.value
        return unpadded._side_by_side(parts, torch.ones(3, 32)) is not None

    class Louder(torch.nn.Linear):
        pass

    assert asked(lambda attention: None)
    assert not asked(lambda attention: attention.key.register_forward_hook(lambda *given: None))
    assert not asked(lambda attention: setattr(attention, "value", Louder(32, 32)))
    assert not asked(lambda attention: setattr(attention, "value", torch.nn.Linear(32, 16)))
    assert not asked(lambda attention: setattr(attention, "query", torch.nn.Linear(32, 32, bias=False)))
    assert not asked(lambda attention: attention.query.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not asked(lambda attention: None)


def test_adapters_with_dropout_or_other_scales_are_asked_one_by_one():
    network = _network("bert")
    apply_tuning(network.encoder, TuningSpec(method="lora"))
    attention = network.encoder.base_model.encoder.layer[0].attention.self
    parts = attention.query, attention.key, attention.value
    assert unpadded._side_by_side(parts, torch.ones(3, 32)) is not None
    attention.key.scaling["default"] *= 2
    assert unpadded._side_by_side(parts, torch.ones(3, 32)) is None
    attention.key.scaling["default"] /= 2
    attention.value.lora_dropout["default"] = torch.nn.Dropout(0.5)
    assert unpadded._side_by_side(parts, torch.ones(3, 32)) is None or not attention.value.training
    attention.value.train()
    assert unpadded._side_by_side(parts, torch.ones(3, 32)) is None


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_bf16_stays_within_a_bound(model_type):
    """Under autocast both ways round to three digits, in other places."""
    network = _network(model_type, autocast=torch.bfloat16)
    plain = _network(model_type).vectors(_packed(TOKENS)).detach()
    rounded = network.vectors(_packed(TOKENS)).detach()
    with without_padding(network, whole_rows=False):
        fast, gradients = _computed(network, _packed(TOKENS))
    assert (fast - plain).abs().max() <= 2 * (rounded - plain).abs().max() + 0.02
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_rows_are_filled_up_in_bf16_alone():
    packed = _packed(_tokens([(9, [3, 5, 5]), (2, [6]), (17, [2, 2, 2])]))
    weights = _network("bert").pooling_weights(packed)
    plain = unpadded.Rows.of(packed, weights, torch.float32, causal=False)
    assert [group.n_read for group in plain.questions.groups] == [8, 22, 23]
    assert [group.n_asked for group in plain.of_pooled.groups] == [6, 13, 6]
    assert plain.input_ids.shape == (1, 53)
    filled = unpadded.Rows.of(packed, weights, torch.bfloat16, causal=False)
    # For attention each row, elsewhere all together.
    assert [(len(group.mask), group.n_read) for group in filled.questions.groups] == [(1, 8), (2, 24)]
    assert [(group.n_asked, group.n_read) for group in filled.of_pooled.groups] == [(8, 8), (8, 24), (16, 24)]
    assert filled.input_ids.shape == filled.position_ids.shape == (1, 64)
    assert len(filled.pooled) == filled.weights.shape[1] == 32
    # What fills is read by nobody and makes no vector.
    for rows in (plain, filled):
        assert torch.equal(rows.weights.sum(1), torch.ones(len(weights[weights.sum(-1) > 0])))
        used = rows.weights @ torch.nn.functional.one_hot(rows.input_ids[0][rows.pooled], 50).float()
        rows_of_words = plain.weights @ torch.nn.functional.one_hot(plain.input_ids[0][plain.pooled], 50).float()
        assert torch.equal(used, rows_of_words)
    assert (filled.questions.groups[1].mask[0, 0, :22, 22:] < -1e30).all()


def test_tokens_find_their_way_to_their_places_and_back():
    lengths, filled = torch.tensor([5, 8, 2]), torch.tensor([8, 8, 8])
    states = torch.arange(1.0, 17.0)
    places = row_attention.Places.of(lengths, filled, [2, 0, 1], 1)
    there = places.there(states)
    assert there.tolist() == [14, 15, *[16] * 6, 1, 2, 3, 4, 5, 16, 16, 16, 6, 7, 8, 9, 10, 11, 12, 13]
    assert places.back(there).tolist() == [*range(1, 16), 0]
    # Rows that stand in that order and need nothing more are left where they are.
    assert row_attention.Places.of(lengths, lengths, [0, 1, 2], 0).tokens is None
    assert row_attention.Places.of(lengths, lengths, [1, 0, 2], 0).there(states).tolist()[:9] == [
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        1,
    ]


@pytest.mark.parametrize("model_type", ["bert", "electra", "llama"])
def test_what_fills_rows_changes_nothing(model_type, monkeypatch):
    """As in bf16, but in float32, where the two are equal and not only near."""
    network = _network(model_type)
    packed = _packed(TOKENS)
    vectors, gradients = _computed(network, packed)
    monkeypatch.setattr(row_attention, "steps", lambda dtype: (8, 32))
    with without_padding(network, whole_rows=False):
        fast, fast_gradients = _computed(network, packed)
    torch.testing.assert_close(fast, vectors, atol=1e-4, rtol=1e-4)
    assert fast_gradients.keys() <= gradients.keys()
    for name, gradient in fast_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-4, rtol=1e-3)


def test_rows_of_one_length_go_through_attention_together(monkeypatch):
    network = _network("bert")
    alike = _packed(_tokens([(4, [3, 2]), (5, [4]), (2, [7]), (3, [1, 2, 3])]))
    rows = unpadded.Rows.of(alike, network.pooling_weights(alike), torch.float32, causal=False)
    assert [tuple(group.mask.shape) for group in rows.questions.groups] == [(4, 1, 9, 9)]
    assert [tuple(group.mask.shape) for group in rows.of_pooled.groups] == [(1, 1, n, 9) for n in (4, 5, 6, 7)]
    _assert_the_same(network, alike)
    monkeypatch.setattr(row_attention, "_GROUPED_PAIRS", 200)
    rows = unpadded.Rows.of(alike, network.pooling_weights(alike), torch.float32, causal=False)
    assert [len(group.mask) for group in rows.questions.groups] == [2, 2]
    _assert_the_same(network, alike)


def _questions(masks, **more):
    """Of rows one after the other, by what attention adds in each."""
    numbers = [torch.tensor([mask.shape[side] for mask in masks]) for side in (0, 1)]
    step = more.get("step", 1)
    n_asked, n_read = (-(-int(each.max()) // step) * step for each in numbers)
    whole = torch.full((len(masks), n_asked, n_read), torch.finfo(masks[0].dtype).min / 4, dtype=masks[0].dtype)
    for row, mask in zip(whole, masks, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = mask
        row[mask.shape[0] :, 0] = 0
    return row_attention.Questions.of(whole, *numbers, **more)


@pytest.mark.parametrize("filled", [{}, {"step": 4, "behind": (1, 2)}])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n_heads", [2, 4])
def test_gradients_of_attention_against_differences(dropout, n_heads, filled):
    """In float64, with several heads to a key, rows of other sizes, fewer tokens that ask, and what may not be read."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    seen = torch.zeros(2, 3, dtype=torch.float64)
    seen[0, 2] = torch.finfo(torch.float64).min / 4
    alone = torch.zeros(1, 5, dtype=torch.float64)
    questions = _questions([seen, alone, seen.flip(1)], **filled)
    assert [len(group.mask) for group in questions.groups] == [2, 1]
    # Tokens of no row stand behind where rows are filled up.
    n_behind = filled.get("behind", (0, 0))
    query, key, value = drawn(5 + n_behind[0], n_heads, 3), drawn(11 + n_behind[1], 2, 3), drawn(11 + n_behind[1], 2, 4)

    def attend(*given):
        torch.manual_seed(0)
        found = row_attention.attend(*given, questions, 0.7, dropout)
        assert found.shape == (len(query), n_heads, 4)
        assert found[5:].abs().sum() == 0
        return found[:5]

    assert torch.autograd.gradcheck(attend, (query, key, value))
    hidden = value.detach().clone()
    hidden[2] += 100.0
    moved = attend(query, key, hidden) - attend(query, key, value)
    assert moved[0].abs().max() == 0, "the first query may not read the third token"
    assert moved[1].abs().max() > 1 or dropout


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 70.0, 400.0, -400.0])
def test_shares_of_scores_of_every_size(kind, shift):
    """Powers of two of scores around ``shift`` leave float32 beyond 88; shares and gradients stay those of softmax."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(12, 2, 8, generator=generator) for _ in range(3))
    # One column of its own for the shift: every query meets every key in it.
    query[..., 0], key[..., 0] = 20.0, shift / 20.0
    states = [one.to(kind).requires_grad_() for one in (query, key, value)]
    wanted_of = [one.detach().double().requires_grad_() for one in states]
    questions = _questions([torch.zeros(6, 6, dtype=kind)] * 2)
    found = row_attention.attend(*states, questions, 1.0, 0.0)
    asked, read, values = (one.view(2, 6, 2, 8).transpose(1, 2) for one in wanted_of)
    wanted = ((asked @ read.mT).softmax(-1) @ values).transpose(1, 2).reshape(12, 2, 8)
    weights = torch.randn(12, 2, 8, generator=generator)
    (found.float() * weights).sum().backward()
    (wanted * weights).sum().backward()
    # In bf16 scores around 400 are multiples of 2: what they tell apart is lost before softmax.
    if kind == torch.bfloat16 and abs(shift) > 100:
        assert all(bool(one.grad.isfinite().all()) for one in states)
        return
    near = {torch.float32: 1e-3, torch.bfloat16: 0.3 if shift else 0.05}[kind]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=near)
    for one, other in zip(states, wanted_of, strict=True):
        torch.testing.assert_close(one.grad.double()[..., 1:], other.grad[..., 1:], rtol=0, atol=4 * near)


def test_dropout_is_drawn_and_keeps_the_mean():
    states = torch.ones(4, 1, 2)
    questions = _questions([torch.zeros(4, 4)])
    torch.manual_seed(0)
    found = torch.stack([row_attention.attend(states, states, states, questions, 1.0, 0.5) for _ in range(400)])
    assert found.mean() == pytest.approx(1.0, abs=0.05)
    assert found.std() > 0.3


def _left_alone(network, **given) -> bool:
    before = network.encoder.config._attn_implementation
    with without_padding(network, **{"whole_rows": False, **given}):
        left = not network.unpadded and network.encoder.config._attn_implementation == before
    return left


def test_rows_stay_where_something_needs_them():
    assert not _left_alone(_network("bert"))
    assert _left_alone(_network("bert"), whole_rows=True)
    fused = _network("bert")
    fused.encoder.set_attn_implementation("sdpa")
    assert _left_alone(fused)
    soft = _network("bert")
    add_soft_states(soft.encoder, 2, seed=0, deep=True)
    assert _left_alone(soft)
    sliding = _network("mistral")
    sliding.backbone.facts.config["sliding_window"] = 4
    assert _left_alone(sliding)
    with without_padding(torch.nn.Linear(2, 2), whole_rows=False):
        """Networks of other families have no rows."""


def test_the_attention_comes_back_after_an_error():
    network = _network("bert")
    with pytest.raises(ZeroDivisionError), without_padding(network, whole_rows=False):
        1 / 0  # noqa: B018
    assert network.encoder.config._attn_implementation == "eager"
    assert not network.unpadded


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({}, True),
        ({"dropout": 0.1, "r_drop": 1.0}, True),
        ({"tuning": {"method": "top-layers", "n_top_layers": 1}, "epochs": 2.0}, True),
        ({"tuning": {"method": "top-layers", "n_top_layers": 1}, "epochs": 2.0, "precision": "bf16"}, True),
        ({"tuning": {"method": "top-layers", "n_top_layers": 2}, "epochs": 2.0}, True),
        ({"gradient_checkpointing": True}, False),
        ({"adversarial_epsilon": 0.5}, False),
        ({"tuning": {"method": "prefix", "n_virtual_tokens": 2}}, False),
    ],
    ids=[
        "plain",
        "dropout",
        "one layer, kept states",
        "the same in bf16",
        "all layers",
        "recomputed",
        "adversarial",
        "prefix",
    ],
)
def test_a_training_has_the_losses_of_padded_rows(changes, used, tmp_path, monkeypatch):
    split, run = planted_split(), planted_run(tmp_path, **changes)
    seen: list[bool] = []
    plain = unpadded.vectors

    def watched(network, packed):
        seen.append(True)
        return plain(network, packed)

    monkeypatch.setattr(unpadded, "vectors", watched)
    losses = _losses(split, run, tmp_path)
    assert bool(seen) == used
    if "dropout" in changes:
        # Other numbers are drawn for rows of other shapes; what is learnt is the same.
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
        return
    monkeypatch.setattr(unpadded, "_possible", lambda network: False)
    near = 5e-3 if changes.get("precision") == "bf16" else 2e-4
    np.testing.assert_allclose(losses, _losses(split, run, tmp_path), atol=near)


def _losses(split, run, models) -> list[float]:
    outcome = fit(run, split, models).outcome
    assert outcome is not None
    return outcome.losses
