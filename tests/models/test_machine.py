"""What a machine chooses and allows, against numbers computed by hand and the choices as they are made."""

from __future__ import annotations

import pytest
import torch
from tiny_models import write_tiny_bert

from llmrec_core.models import device as device_module
from llmrec_core.models import machine
from llmrec_core.models.device import MatmulPeaks, device_facts
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.machine import MINILM, EncoderSize, allowed, choices, measured_peaks


def test_operations_by_hand():
    # Two layers, width 4, inner 8, 3 tokens. Weights: 4*16 + 2*4*8 = 128 a token; attention: 2*3*4 = 24 a token.
    assert EncoderSize("tiny", 2, 4, 8).flops(3) == 2 * 2 * 3 * (128 + 24)
    # 21.2 M multiplications and additions a token in the matrices, and some 4 % of that in attention.
    assert MINILM.flops(96) == pytest.approx(96 * (21.2e6 + 0.88e6), rel=0.005)


def test_operations_are_those_that_torch_counts(tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    backbone = load_backbone(write_tiny_bert(tmp_path / "m"), trainable=False)
    ids = torch.ones((1, 12), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert EncoderSize("tiny", 2, 32, 64).flops(12) == counter.get_total_flops()


def test_what_peaks_allow():
    fp32, bf16 = allowed(MatmulPeaks(fp32_gflops=186.0, bf16_gflops=620.0))
    assert bf16.training_samples_per_s == pytest.approx(620e9 / (3 * MINILM.flops(96)), abs=0.1)
    assert fp32.scoring_prompts_per_s == pytest.approx(3 * fp32.training_samples_per_s, rel=0.01)
    assert 80 < bf16.training_samples_per_s < 110
    assert "620 GFLOP/s in bf16 allow at most 97 samples/s" in bf16.sentence


@pytest.mark.parametrize(("flags", "weights"), [("amx_bf16 amx_tile", "bf16"), ("avx2", "float32")])
def test_choices_are_those_that_are_made(tmp_path, monkeypatch, flags, weights):
    monkeypatch.setattr(device_module, "_cpu_info", lambda: f"flags : {flags}\n")
    found = choices("cpu").as_json()
    assert found["device"] == "cpu"
    assert found["attention"].startswith(load_backbone(write_tiny_bert(tmp_path / "m")).attention)
    assert found["weights"].startswith(weights)
    left = {"bf16": "rows filled up to multiples of 8 tokens in attention", "float32": "no padding"}[weights]
    assert found["padding"].startswith(
        f"training: {left} where the model takes a ready mask, else rows of like length;"
    )
    assert found["precision"] == device_facts("cpu").precision
    assert found["batch_tokens"] == 4096
    size = {"bf16": 48, "float32": 32}[weights]
    assert found["batch_size"].startswith(f"{size} prompts a step for clicks on an encoder, else 32, in parts")


@pytest.mark.parametrize(
    ("kind", "speeds", "asked", "found"),
    [
        # The best of each precision, whichever size it was measured at.
        ("cpu", {1024: (90.0, 300.0), 2048: (120.0, 280.0)}, [1024, 2048], (120.0, 300.0)),
        # Emulated bf16 at 2 GFLOP/s would take nine seconds a product.
        ("cpu", {1024: (90.0, 2.0)}, [1024], (90.0, 2.0)),
        ("cuda", {8192: (50_000.0, 700_000.0)}, [8192], (50_000.0, 700_000.0)),
    ],
)
def test_peaks_are_measured_at_sizes_that_fill_the_device(monkeypatch, kind, speeds, asked, found):
    sizes = []

    def peaks(seconds, device, size):
        sizes.append(size)
        return MatmulPeaks(*speeds[size])

    monkeypatch.setattr(machine, "resolve_device", lambda _: torch.device(kind))
    monkeypatch.setattr(machine, "matmul_peaks", peaks)
    assert measured_peaks() == MatmulPeaks(*found)
    assert sizes == asked
