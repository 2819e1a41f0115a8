"""Laid-out weights against plain products, and what is left alone or put back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bf16_products import needs_bf16_products
from tiny_models import write_tiny_bert
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from llmrec_core.models import laid_out
from llmrec_core.models.laid_out import LaidOut
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.text_vectors import embed_texts

pytestmark = needs_bf16_products

#: A result is rounded once to eight bits of precision; sums are float32.
ROUNDING = {"rtol": 2**-8, "atol": 1e-4}


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """Any number of tokens, on any processor."""
    monkeypatch.setattr(laid_out, "cpu_bf16_unit", lambda: "AVX-512 BF16")
    monkeypatch.setattr(laid_out, "LEAST_TOKENS", 1)


@pytest.fixture
def made(monkeypatch):
    """Shapes of the matrices that were laid out."""
    shapes: list[tuple[int, ...]] = []
    plain = laid_out._in_order

    def watched(weight):
        shapes.append(tuple(weight.shape))
        return plain(weight)

    monkeypatch.setattr(laid_out, "_in_order", watched)
    return shapes


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def _encoder(model_type: str = "bert", **sizes: object):
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        model_type, vocab_size=50, hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, **sizes,
    )  # fmt: skip
    model = AutoModel.from_config(config).eval()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    return model


def _untouched(model: nn.Module) -> bool:
    return not any({"forward", "feed_forward_chunk"} & vars(part).keys() for part in model.modules())


IDS = torch.arange(4, 40).view(2, 18)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (70, 24), (2, 5, 24), (1100, 24)])
def test_a_product_is_the_plain_one_but_for_rounding(shape, bias):
    torch.manual_seed(0)
    weight, x = _normal(40, 24), _normal(*shape)
    given = torch.randn(40) if bias else None
    layer = LaidOut(weight, given)
    exact = functional.linear(x.double(), weight.double(), None if given is None else given.bfloat16().double())
    torch.testing.assert_close(layer(x).double(), exact, **ROUNDING)
    torch.testing.assert_close(layer(x, "gelu").double(), functional.gelu(exact), **ROUNDING)
    gradient = _normal(shape[0], 40)
    torch.testing.assert_close(layer.to_input(gradient).double(), gradient.double() @ weight.double(), **ROUNDING)
    assert layer(x).dtype == layer.to_input(gradient).dtype == torch.bfloat16


def test_what_lies_otherwise_in_memory_is_multiplied_as_it_is_seen():
    torch.manual_seed(0)
    weight, x = _normal(24, 40).T, _normal(48, 9).T[:, ::2]
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(LaidOut(weight, None)(x).double(), exact, **ROUNDING)


def test_the_way_back_is_laid_out_at_its_first_use(made):
    layer = LaidOut(nn.Parameter(_normal(40, 24)), None)
    assert made == [(40, 24)]
    for _ in range(2):
        found = layer.to_input(_normal(3, 40).requires_grad_())
    assert made == [(40, 24), (24, 40)]
    assert not found.requires_grad


def test_which_matrices_can_be_laid_out(monkeypatch):
    assert laid_out.can_be_laid_out(_normal(4, 3))
    for other in (torch.randn(4, 3), _normal(4), _normal(0, 3), _normal(4, 3).to("meta")):
        assert not laid_out.can_be_laid_out(other)
    monkeypatch.setattr(laid_out, "cpu_bf16_unit", lambda: None)
    assert not laid_out.can_be_laid_out(_normal(4, 3))


@pytest.mark.parametrize("model_type", ["bert", "electra", "llama"])
def test_a_model_reads_the_same_and_is_as_it_was_afterwards(model_type, made):
    model = _encoder(model_type).bfloat16()
    n_layers = sum(isinstance(part, nn.Linear) for part in model.modules())
    with torch.inference_mode():
        plain = model(input_ids=IDS).last_hidden_state
        with laid_out.laid_out(model, 10):
            assert not made, "nothing is laid out before it is needed"
            found = [model(input_ids=IDS).last_hidden_state for _ in range(2)]
    assert len(made) == n_layers, "each once"
    assert torch.equal(found[0], found[1])
    # Two layers of rounding to eight bits, in values of about 1.
    assert (found[0] - plain).abs().max() < 0.04 * plain.abs().max()
    assert _untouched(model)
    assert isinstance(copy.deepcopy(model), type(model))


@pytest.mark.parametrize(("activation", "n_fused"), [("gelu", 2), ("gelu_python", 2), ("gelu_new", 0), ("relu", 0)])
def test_gelu_is_part_of_the_product_where_it_is_the_exact_one(activation, n_fused, monkeypatch):
    model = _encoder(hidden_act=activation).bfloat16()
    seen: list[str] = []
    plain = laid_out._product

    def watched(x, weight, bias, how):
        seen.append(how)
        return plain(x, weight, bias, how)

    monkeypatch.setattr(laid_out, "_product", watched)
    with torch.inference_mode():
        before = model(input_ids=IDS).last_hidden_state
        with laid_out.laid_out(model, 10):
            found = model(input_ids=IDS).last_hidden_state
    assert (seen.count("gelu"), seen.count("none")) == (n_fused, 12 - n_fused)
    assert (found - before).abs().max() < 0.04 * before.abs().max()


def test_where_a_plain_product_is_wanted_it_is_plain(made):
    model = _encoder().bfloat16()
    layer = model.encoder.layer[0].intermediate
    x = _normal(5, 32)
    with laid_out.laid_out(model, 10):
        with_gradients = layer(x)
        assert with_gradients.requires_grad
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), with_gradients)
        with torch.no_grad():
            with pytest.raises(RuntimeError):
                layer(x.float())
            assert not made
            layer(x)
            assert made


def _of_another_kind(model):
    kind = type("Own", (nn.Linear,), {})
    for part in model.modules():
        if type(part) is nn.Linear:
            part.__class__ = kind


def _watched(model):
    for part in model.modules():
        if type(part) is nn.Linear:
            part.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("float32", lambda model, patch: model.float()),
        ("of another kind", lambda model, patch: _of_another_kind(model)),
        ("hooks", lambda model, patch: _watched(model)),
        ("few tokens", lambda model, patch: patch.setattr(laid_out, "LEAST_TOKENS", 11)),
        ("no unit", lambda model, patch: patch.setattr(laid_out, "cpu_bf16_unit", lambda: None)),
        ("no memory", lambda model, patch: patch.setattr(laid_out, "keepable_memory", lambda device: 1000)),
    ],
)
def test_what_is_left_alone(why, change, made, monkeypatch):
    model = _encoder().bfloat16()
    change(model, monkeypatch)
    with torch.inference_mode():
        plain = model(input_ids=IDS).last_hidden_state
        with laid_out.laid_out(model, 10):
            assert torch.equal(model(input_ids=IDS).last_hidden_state, plain), why
    assert not made


def test_a_second_time_inside_changes_nothing_and_a_fault_puts_everything_back(made):
    model = _encoder().bfloat16()
    with torch.inference_mode(), laid_out.laid_out(model, 10):
        model(input_ids=IDS)
        with laid_out.laid_out(model, 10):
            model(input_ids=IDS)
        model(input_ids=IDS)
        assert len(made) == 12
        assert not _untouched(model)
    with pytest.raises(MemoryError), laid_out.laid_out(model, 10):
        raise MemoryError
    assert _untouched(model)


def test_texts_get_the_same_vectors(tmp_path, made, monkeypatch):
    write_tiny_bert(tmp_path / "tiny")
    backbone = load_backbone(tmp_path / "tiny", trainable=False, dtype=torch.bfloat16)
    texts = ["a red film", "blue " * 300, "", "the good old war story"]
    found = embed_texts(backbone, texts, max_tokens=16)
    assert len(made) == 12
    monkeypatch.setattr(laid_out, "LEAST_TOKENS", 100)
    plain = embed_texts(backbone, texts, max_tokens=16)
    assert len(made) == 12
    # Two layers of rounding to eight bits.
    assert np.abs(found - plain).max() < 0.04 * np.abs(plain).max()
    assert _untouched(backbone.model)
