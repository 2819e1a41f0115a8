"""Every way of tuning: what it trains, what it leaves alone, and that the fast way computes what the plain one does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bf16_products import needs_bf16_products
from models.tuning_cases import TEXTS, outputs
from peft.tuners.lora import Linear as PeftLinear
from tiny_models import WRITERS
from torch import Tensor

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.models.laid_out import LaidOut
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.models.tuning import (
    adapters_off,
    apply_tuning,
    load_trainable_state,
    merge_adapters,
    parameter_counts,
    trainable_state,
)
from llmrec_core.models.tuning_lora import FusedLoraLinear, frozen_laid_out
from llmrec_core.models.tuning_soft import soft_states
from llmrec_core.specs import TUNING_METHODS, TuningMethod, TuningSpec

ADDED: tuple[TuningMethod, ...] = ("lora", "adalora", "ia3", "prefix", "prompt", "bottleneck")
MERGED: tuple[TuningMethod, ...] = ("lora", "adalora", "ia3")
SIZES = {"lora_rank": 3, "n_virtual_tokens": 4, "bottleneck_width": 5}


def tuned(folder: Path, method: TuningMethod, *, seed: int = 0, moved: bool = True) -> Backbone:
    """A model to which a method was applied; ``moved``: with its weights somewhat away from where they begin."""
    backbone = load_backbone(folder)
    apply_tuning(backbone.model, TuningSpec(method=method, **SIZES), seed=seed)  # type: ignore[arg-type]
    backbone.model.eval()
    if moved:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in backbone.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return backbone


def test_every_method_says_when_to_take_it() -> None:
    assert set(TUNING_METHODS) == set(TuningSpec.model_fields["method"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("method", ADDED)
def test_only_what_was_added_is_trained_and_it_moves_the_outputs(
    folders: dict[str, Path], name: str, method: TuningMethod
) -> None:
    backbone = tuned(folders[name], method, moved=False)
    plain = load_backbone(folders[name], trainable=False)
    base = parameter_counts(plain.model).total
    counts = parameter_counts(backbone.model)
    assert 0 < counts.trainable < 0.5 * base
    if method in ("lora", "adalora", "ia3", "bottleneck"):
        # The product with an identity in the middle is rounded like without.
        torch.testing.assert_close(outputs(backbone), outputs(plain), atol=1e-6, rtol=0)
    outputs(backbone)[:, ::2].square().sum().backward()
    for title, parameter in backbone.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, title
            assert parameter.grad.isfinite().all(), title
        else:
            assert parameter.grad is None, title
    moved = tuned(folders[name], method)
    assert (outputs(moved) - outputs(plain)).abs().max() > 1e-2
    moved.model.requires_grad_(False)
    with adapters_off(moved.model):
        assert torch.equal(outputs(moved), outputs(plain))
    assert (outputs(moved) - outputs(plain)).abs().max() > 1e-2


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("method", MERGED)
def test_merged_and_unmerged_give_the_same_scores(folders: dict[str, Path], name: str, method: TuningMethod) -> None:
    backbone = tuned(folders[name], method)
    before = outputs(backbone).detach()
    names = {n for n, _ in load_backbone(folders[name]).model.named_parameters()}
    merge_adapters(backbone.model)
    torch.testing.assert_close(outputs(backbone), before, atol=2e-5, rtol=0)
    assert {n for n, _ in backbone.model.named_parameters()} == names


@pytest.mark.parametrize("method", ["prefix", "prompt", "bottleneck"])
def test_what_cannot_be_merged_says_so(folders: dict[str, Path], method: TuningMethod) -> None:
    backbone = tuned(folders["bert"], method)
    before = outputs(backbone)
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapters(backbone.model)
    assert torch.equal(outputs(backbone), before)


@pytest.mark.parametrize("method", ADDED)
def test_trained_state_restores_the_tuned_model(folders: dict[str, Path], method: TuningMethod) -> None:
    backbone = tuned(folders["llama"], method)
    again = tuned(folders["llama"], method, seed=5, moved=False)
    assert not torch.equal(outputs(again), outputs(backbone))
    load_trainable_state(again.model, trainable_state(backbone.model))
    assert torch.equal(outputs(again), outputs(backbone))


def test_sizes_by_hand(folders: dict[str, Path]) -> None:
    def trained(method: TuningMethod, **more: object) -> int:
        model = load_backbone(folders["bert"]).model
        return parameter_counts(apply_tuning(model, TuningSpec(method=method, **{**SIZES, **more}))).trainable  # type: ignore[arg-type]

    # Two layers; four linear layers 32 -> 32, one 32 -> 64, one 64 -> 32.
    rank = 5  # Half more than 3, rounded up.
    assert trained("adalora") == 2 * (rank * (4 * (32 + 32) + 2 * (32 + 64)) + 6 * rank)
    assert trained("lora", lora_targets="attention") == 2 * 3 * 4 * (32 + 32)
    assert trained("ia3") == 2 * (32 + 32 + 64)
    assert trained("prompt") == 4 * 32
    assert trained("prefix") == 2 * 2 * 4 * 32
    one = 5 * 32 + 5 + 32 * 5 + 32
    assert trained("bottleneck") == 2 * 2 * one
    assert trained("bottleneck", bottleneck_places="feed-forward") == 2 * one


def lora_step(folder: Path, dtype: torch.dtype, laid_out: int = 0) -> Tensor:
    """Pooled outputs and all gradients of one step, in one vector; with frozen matrices ``laid_out``, of the last of
    that many equal steps."""
    backbone = load_backbone(folder, dtype=dtype)
    apply_tuning(backbone.model, TuningSpec(method="lora", lora_rank=3))
    assert any(isinstance(module, FusedLoraLinear) for module in backbone.model.modules())
    generator = torch.Generator().manual_seed(7)
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    with frozen_laid_out(backbone.model) if laid_out else nullcontext():
        for _ in range(max(1, laid_out)):
            backbone.model.zero_grad()
            vectors = outputs(backbone).float()
            vectors[:, ::2].square().sum().backward()
    return torch.cat([vectors.detach().flatten(), *(p.grad.flatten() for p in trained if p.grad is not None)])


@pytest.mark.parametrize("name", WRITERS)
def test_fused_lora_computes_what_peft_does(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, rough = lora_step(folders[name], torch.float32), lora_step(folders[name], torch.bfloat16)
    monkeypatch.setattr(FusedLoraLinear, "forward", PeftLinear.forward)
    plain, rough_plain = lora_step(folders[name], torch.float32), lora_step(folders[name], torch.bfloat16)
    assert (fused - plain).norm() <= 1e-5 * plain.norm()
    # Small updates, as trained ones are: then the rounding of the base weights outweighs that of the adapters.
    assert (rough - plain).norm() <= 1.5 * (rough_plain - plain).norm()


@needs_bf16_products
@pytest.mark.parametrize("name", WRITERS)
def test_frozen_matrices_are_laid_out_once(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step; each matrix is laid out once for each direction, and let go afterwards."""
    monkeypatch.setattr("llmrec_core.models.tuning_lora.can_be_laid_out", lambda matrix: True)
    made: list[LaidOut] = []
    monkeypatch.setattr(
        "llmrec_core.models.tuning_lora.LaidOut", lambda *given: made.append(LaidOut(*given)) or made[-1]
    )
    exact, rough = lora_step(folders[name], torch.float32), lora_step(folders[name], torch.bfloat16)
    assert not made
    laid_out = lora_step(folders[name], torch.bfloat16, laid_out=2)
    n_layers = sum(isinstance(m, FusedLoraLinear) for m in tuned(folders[name], "lora").model.modules())
    assert 0 < len(made) <= n_layers, "when first multiplied, and once in two steps"
    assert (laid_out - exact).norm() <= 1.3 * (rough - exact).norm()


def test_without_memory_or_gain_nothing_is_laid_out(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(folders["bert"], dtype=torch.bfloat16)
    apply_tuning(backbone.model, TuningSpec(method="lora"))
    layers = [module for module in backbone.model.modules() if isinstance(module, FusedLoraLinear)]
    n_bytes = sum(4 * layer.matrix().numel() for layer in layers)

    def laid_out(possible: bool, memory: int) -> bool:
        monkeypatch.setattr("llmrec_core.models.tuning_lora.can_be_laid_out", lambda matrix: possible)
        monkeypatch.setattr("llmrec_core.models.tuning_lora.keepable_memory", lambda device: memory)
        with frozen_laid_out(backbone.model):
            return all(layer._laid_out is not None for layer in layers)

    assert laid_out(True, n_bytes)
    assert all(layer._laid_out is None for layer in layers)
    assert not laid_out(True, n_bytes - 1)
    assert not laid_out(False, n_bytes)
    with frozen_laid_out(load_backbone(folders["bert"]).model):
        pass


def test_a_dropped_out_adapter_is_left_to_peft(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"])
    apply_tuning(backbone.model, TuningSpec(method="lora", lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    backbone.model.train()
    assert not torch.equal(outputs(backbone), outputs(backbone))
    backbone.model.eval()
    assert torch.equal(outputs(backbone), outputs(backbone))


def test_a_prompt_is_embeddings_before_the_text(folders: dict[str, Path]) -> None:
    """By the plain way: embeddings before those of the text, positions going on, one causal mask."""
    backbone = tuned(folders["llama"], "prompt")
    soft = soft_states(backbone.model)
    assert soft is not None
    ids = torch.tensor([backbone.encode(TEXTS[:1])[0]])
    found = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    words = backbone.model.get_input_embeddings()(ids)
    backbone.model.requires_grad_(False)
    with adapters_off(backbone.model):
        whole = backbone.model(inputs_embeds=torch.cat([soft.embeddings[None], words], dim=1)).last_hidden_state
    torch.testing.assert_close(found, whole[:, soft.n_states :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WRITERS)
def test_an_untrained_prefix_is_an_untrained_prompt(folders: dict[str, Path], name: str) -> None:
    prefix, prompt = (tuned(folders[name], method, moved=False) for method in ("prefix", "prompt"))
    torch.testing.assert_close(outputs(prefix), outputs(prompt), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_rows_with_learned_states_do_not_see_each_other_or_padding(
    folders: dict[str, Path], name: str, method: TuningMethod
) -> None:
    backbone = tuned(folders[name], method)
    alone = torch.cat([outputs(backbone, [text]) for text in TEXTS])
    torch.testing.assert_close(outputs(backbone), alone, atol=1e-5, rtol=0)


def test_models_without_a_ready_mask_take_no_states(folders: dict[str, Path]) -> None:
    model = load_backbone(folders["llama"]).model
    model.config.sliding_window = 4
    with pytest.raises(SpecError, match="takes no states") as caught:
        apply_tuning(model, TuningSpec(method="prefix"))
    assert caught.value.where == "tuning.method"


def test_frozen_layers_keep_no_graph(folders: dict[str, Path]) -> None:
    """What is not trained, and has nothing trained below it, is computed without anything being kept for a gradient."""
    backbone = load_backbone(folders["bert"])
    apply_tuning(backbone.model, TuningSpec(method="top-layers", n_top_layers=1))
    states = []
    for layer in backbone.model.encoder.layer:
        layer.register_forward_pre_hook(lambda _, given: states.append(given[0].requires_grad))
    assert outputs(backbone).requires_grad
    assert states == [False, False]
