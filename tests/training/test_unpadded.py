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
from llmrec_core.specs import TuningSpec
from llmrec_core.training import unpadded
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import pack, plan_rows
from llmrec_core.training.unpadded import without_padding


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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n_heads", [2, 4])
def test_gradients_of_attention_against_differences(dropout, n_heads):
    """In float64, with several heads to a key, rows of other sizes, fewer tokens that ask, and what may not be read."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    seen = torch.zeros(2, 3, dtype=torch.float64)
    seen[0, 2] = torch.finfo(torch.float64).min / 4
    questions = unpadded.Questions([2, 1], [3, 5], [seen, torch.zeros(1, 5, dtype=torch.float64)])
    query, key, value = drawn(3, n_heads, 3), drawn(8, 2, 3), drawn(8, 2, 4)

    def attend(*given):
        torch.manual_seed(0)
        return unpadded._attend(*given, questions, 0.7, dropout)

    assert torch.autograd.gradcheck(attend, (query, key, value))
    hidden = value.detach().clone()
    hidden[2] += 100.0
    moved = attend(query, key, hidden) - attend(query, key, value)
    assert moved[0].abs().max() == 0, "the first query may not read the third token"
    assert moved[1].abs().max() > 1 or dropout


def test_dropout_is_drawn_and_keeps_the_mean():
    states = torch.ones(4, 1, 2)
    questions = unpadded.Questions([4], [4], [torch.zeros(4, 4)])
    torch.manual_seed(0)
    found = torch.stack([unpadded._attend(states, states, states, questions, 1.0, 0.5) for _ in range(400)])
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
        ({"tuning": {"method": "top-layers", "n_top_layers": 2}, "epochs": 2.0}, True),
        ({"gradient_checkpointing": True}, False),
        ({"adversarial_epsilon": 0.5}, False),
        ({"tuning": {"method": "prefix", "n_virtual_tokens": 2}}, False),
    ],
    ids=["plain", "dropout", "one layer, kept states", "all layers", "recomputed", "adversarial", "prefix"],
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
    np.testing.assert_allclose(losses, _losses(split, run, tmp_path), atol=2e-4)


def _losses(split, run, models) -> list[float]:
    outcome = fit(run, split, models).outcome
    assert outcome is not None
    return outcome.losses
