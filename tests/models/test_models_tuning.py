"""Exactly the chosen weights are trained, and merging adapters changes no output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.tuning_cases import outputs
from tiny_models import VOCABULARY, WRITERS

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.models.tuning import (
    apply_tuning,
    load_trainable_state,
    merge_adapters,
    parameter_counts,
    trainable_state,
)
from llmrec_core.specs import TuningSpec

LAYER = 4 * (32 * 32 + 32) + 2 * (2 * 32) + (32 * 64 + 64) + (64 * 32 + 32)  # BERT: attention, norms, feed-forward
TABLES = (len(VOCABULARY) + 512 + 2) * 32


def train_a_little(backbone: Backbone) -> None:
    """Two steps of plain descent with a loss that reaches every weight."""
    backbone.model.train()
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        outputs(backbone)[:, ::2].square().sum().backward()
        optimizer.step()
    backbone.model.eval()


def test_full(folders: dict[str, Path]) -> None:
    model = load_backbone(folders["bert"]).model
    counts = parameter_counts(apply_tuning(model, TuningSpec(method="full", freeze_embeddings=True)))
    assert counts.total == TABLES + 2 * 32 + 2 * LAYER
    assert counts.trainable == 2 * 32 + 2 * LAYER  # the norm behind the tables is tuned along
    counts = parameter_counts(apply_tuning(model, TuningSpec(method="full", freeze_embeddings=False)))
    assert counts.trainable == counts.total


def test_top_layers_train_and_nothing_below_moves(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"])
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    apply_tuning(backbone.model, TuningSpec(method="top-layers", n_top_layers=1, freeze_embeddings=False))
    assert parameter_counts(backbone.model).trainable == LAYER
    train_a_little(backbone)
    moved = {name for name, p in backbone.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith("encoder.layer.1.") for name in moved)


@pytest.mark.parametrize(("name", "norm"), [("llama", "norm."), ("gpt2", "ln_f.")])
def test_top_layers_of_decoders_tune_the_last_norm(folders: dict[str, Path], name: str, norm: str) -> None:
    model = apply_tuning(load_backbone(folders[name]).model, TuningSpec(method="top-layers", n_top_layers=1))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith((norm, "layers.1.", "h.1.")) for n in trained)
    assert any(n.startswith(norm) for n in trained)


def test_more_layers_than_there_are(folders: dict[str, Path]) -> None:
    model = load_backbone(folders["bert"]).model
    with pytest.raises(SpecError, match="the model has 2") as caught:
        apply_tuning(model, TuningSpec(method="top-layers", n_top_layers=3))
    assert caught.value.where == "tuning.n_top_layers"
    assert parameter_counts(apply_tuning(model, TuningSpec(method="top-layers", n_top_layers=2))).trainable == 2 * LAYER


@pytest.mark.parametrize("name", WRITERS)
def test_lora_trains_only_adapters_and_merges(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(folders[name])
    plain = outputs(backbone).detach()
    before = {n: p.detach().clone() for n, p in backbone.model.named_parameters()}
    n_base = parameter_counts(backbone.model).total
    apply_tuning(backbone.model, TuningSpec(method="lora", lora_rank=4, lora_alpha=8.0))
    counts = parameter_counts(backbone.model)
    assert counts.total == n_base + counts.trainable
    assert torch.equal(outputs(backbone), plain)  # the second matrix starts at zero
    train_a_little(backbone)
    tuned = outputs(backbone).detach()
    assert (tuned - plain).abs().max() > 1e-3
    for n, p in backbone.model.named_parameters():
        if "lora_" not in n:
            assert torch.equal(p, before[n.replace(".base_layer", "")]), n
    merge_adapters(backbone.model)
    torch.testing.assert_close(outputs(backbone), tuned, atol=1e-5, rtol=0)
    assert {n for n, _ in backbone.model.named_parameters()} == set(before)


def test_lora_sizes_by_hand(folders: dict[str, Path]) -> None:
    model = apply_tuning(load_backbone(folders["bert"]).model, TuningSpec(method="lora", lora_rank=3))
    # Six linear layers: four 32 -> 32, one 32 -> 64, one 64 -> 32; rank times (in + out) weights each.
    assert parameter_counts(model).trainable == 2 * 3 * (4 * (32 + 32) + 2 * (32 + 64))


def test_lora_with_tuned_embeddings(folders: dict[str, Path]) -> None:
    spec = TuningSpec(method="lora", lora_rank=3, freeze_embeddings=False)
    model = apply_tuning(load_backbone(folders["bert"]).model, spec)
    assert parameter_counts(model).trainable == 2 * 3 * (4 * (32 + 32) + 2 * (32 + 64)) + TABLES


def test_lora_adapters_stay_float32_on_a_bf16_base(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"], dtype=torch.bfloat16)
    apply_tuning(backbone.model, TuningSpec(method="lora"))
    assert {p.dtype for p in backbone.model.parameters() if p.requires_grad} == {torch.float32}
    train_a_little(backbone)
    assert outputs(backbone).isfinite().all()


def test_lora_is_seeded_and_leaves_the_global_generator(folders: dict[str, Path]) -> None:
    states = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for seed in (1, 1, 2):
        model = apply_tuning(load_backbone(folders["bert"]).model, TuningSpec(method="lora"), seed=seed)
        states.append(trainable_state(model))
    assert torch.equal(torch.rand(1), expected)
    name = next(n for n in states[0] if "lora_A" in n)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize("method", ["full", "top-layers", "lora"])
def test_trained_state_restores_the_tuned_model(folders: dict[str, Path], method: str) -> None:
    spec = TuningSpec(method=method, n_top_layers=1)  # type: ignore[arg-type]
    backbone = load_backbone(folders["bert"])
    apply_tuning(backbone.model, spec)
    train_a_little(backbone)
    state = trainable_state(backbone.model)
    again = load_backbone(folders["bert"])
    apply_tuning(again.model, spec, seed=9)
    assert not torch.equal(outputs(again), outputs(backbone))
    load_trainable_state(again.model, state)
    assert torch.equal(outputs(again), outputs(backbone))


def test_state_of_another_tuning_changes_nothing(folders: dict[str, Path]) -> None:
    lora = apply_tuning(load_backbone(folders["bert"]).model, TuningSpec(method="lora"))
    wider = apply_tuning(load_backbone(folders["bert"]).model, TuningSpec(method="lora", lora_rank=16))
    full = load_backbone(folders["bert"]).model
    before = trainable_state(full)
    for state in (trainable_state(lora), {}, {**before, "extra": torch.zeros(1)}):
        with pytest.raises(ModelError, match="do not fit"):
            load_trainable_state(full, state)
    with pytest.raises(ModelError, match="do not fit"):
        load_trainable_state(lora, trainable_state(wider))
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(full).items())


def test_merging_without_adapters_is_nothing(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"])
    before = outputs(backbone)
    merge_adapters(backbone.model)
    assert torch.equal(outputs(backbone), before)
