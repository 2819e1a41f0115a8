"""Inputs of whole-number layers: rounded once for all layers that read the same one, and never taken for another."""

import copy

import numpy as np
import torch
from compression.compression_cases import scores

from llmrec_core.compression.children import compress
from llmrec_core.models import quantised
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
