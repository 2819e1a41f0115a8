"""Inputs of whole-number layers: rounded once for all layers that read the same one, and never taken for another."""

import copy

import numpy as np
import pytest
import torch
from compression.compression_cases import scores
from torch.nn import functional

from llmrec_core.compression.children import compress
from llmrec_core.models import laid_out, quantised
from llmrec_core.recommenders.reworked import network_of
from llmrec_core.specs.compression import Int8Spec


def test_layers_that_read_the_same_round_it_once(tiny_parent, monkeypatch):
    recommender, split, ctx = tiny_parent
    child = compress(recommender, Int8Spec(), split, ctx)
    seen: list[tuple[int, ...]] = []
    plain = quantised._rounded

    def watched(rows):
        seen.append(tuple(rows.shape))
        return plain(rows)

    monkeypatch.setattr(quantised, "_rounded", watched)
    found = scores(child, split)
    n_shared = len(seen)
    # Layers apart: every one rounds for itself, and says the same.
    for module in network_of(child).modules():
        if isinstance(module, quantised.QuantisedLinear):
            module.rounded = quantised.Rounded()
    seen.clear()
    assert np.array_equal(scores(child, split), found)
    # Of six linear layers in a layer three read the same; in the last one, queries read other tokens than the two.
    assert n_shared < 0.75 * len(seen)


def test_what_was_rounded_is_not_taken_for_another_input():
    layers = [
        quantised.QuantisedLinear(torch.eye(4, dtype=torch.int8), torch.ones(4, 1), None, None, 4, "int8")
        for _ in range(2)
    ]
    quantised.share_rounding(layers)
    with torch.inference_mode():
        first, second = torch.full((3, 4), 2.0), torch.full((3, 4), 5.0)
        assert torch.allclose(layers[0](first), first)
        assert torch.allclose(layers[1](second), second)
        assert torch.allclose(layers[1](first), first)
        kept = layers[0].rounded
        assert kept._last is not None
        del first
        assert kept._last is None
    twin = copy.deepcopy([*layers])
    assert twin[0].rounded is twin[1].rounded is not kept


def _whole_numbers(n_out: int, n_in: int) -> quantised.QuantisedLinear:
    bias = torch.randn(n_out)
    return quantised.QuantisedLinear(*quantised.quantise_rows(torch.randn(n_out, n_in)), None, bias, n_in, "int8")


@pytest.mark.parametrize("kernel", [True, False])
def test_two_layers_block_by_block_are_the_two_layers(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(quantised, "whole_number_kernel", lambda: False)
    monkeypatch.setattr(quantised, "_BLOCK_CELLS", 1)
    torch.manual_seed(0)
    first, second, x = _whole_numbers(96, 24), _whole_numbers(40, 96), torch.randn(2, 600, 24)
    kept = x.clone()
    with torch.inference_mode():
        found = quantised.one_after_the_other(first, second, x, functional.gelu)
        torch.testing.assert_close(found, second(functional.gelu(first(x))), atol=1e-4, rtol=1e-5)
        alone = quantised.one_after_the_other(first, second, x[:1, 590:591], functional.gelu)
        torch.testing.assert_close(alone[0, 0], found[0, 590], atol=1e-4, rtol=1e-5)
        rounded = quantised.one_after_the_other(first, second, x.bfloat16(), functional.gelu)
    assert torch.equal(x, kept), "what is rounded in place is a copy"
    assert rounded.dtype == torch.bfloat16
    # The input's eight bits move some numbers by a step of 1/127.
    assert (rounded.float() - found).abs().max() < 0.03 * found.abs().max()


def test_layers_that_read_the_same_take_blocks_that_suit_the_widest():
    narrow, wide = _whole_numbers(384, 384), _whole_numbers(1024, 384)
    assert (narrow.rounded.rows, wide.rounded.rows) == (2048, 768)
    quantised.share_rounding([narrow, wide])
    assert narrow.rounded.rows == wide.rounded.rows == 768
    assert _whole_numbers(8, 4096).rounded.rows == 512, "fewer would cost more than they are worth"


def test_a_child_is_fed_forward_by_blocks_while_it_scores(tiny_parent, monkeypatch):
    recommender, split, ctx = tiny_parent
    child = compress(recommender, Int8Spec(), split, ctx)
    layers = network_of(child).encoder.encoder.layer
    calls: list[torch.Size] = []

    def watched(first, second, x, between):
        calls.append(x.shape)
        return quantised.one_after_the_other(first, second, x, between)

    monkeypatch.setattr(laid_out, "one_after_the_other", watched)
    # What looks at a whole layer, as transformers' recorder of attention does from its first use on, changes nothing.
    looked: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: looked.append(1))
    found = scores(child, split)
    assert looked
    assert len(calls) % len(layers) == 0 < len(calls)
    assert not any({"forward", "feed_forward_chunk"} & vars(part).keys() for part in layers.modules())
    with laid_out.laid_out(network_of(child).encoder, 0), torch.enable_grad():
        calls.clear()
        layers[0].feed_forward_chunk(torch.randn(1, 3, network_of(child).encoder.config.hidden_size))
    assert not calls, "gradients go the plain way"
    seen: list[int] = []
    # A part that is watched is called.
    hooks = [layer.output.register_forward_hook(lambda *_: seen.append(1)) for layer in layers]
    plain = scores(child, split)
    for hook in hooks:
        hook.remove()
    assert seen
    assert not calls
    np.testing.assert_allclose(found, plain, atol=1e-3 * plain.std())
