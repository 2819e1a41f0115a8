"""The measurement of cards, on the processor: it runs, counts the operations that happen, and falls back for memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from benchmarks import gpu
from llmrec_core.models.loading import load_backbone
from llmrec_core.presets import preset_spec
from llmrec_core.training.packing import HEAD, pack, plan_rows, tree_mask

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpu.write_random_model(tmp_path_factory.mktemp("gpu") / "model", gpu.SIZES["tiny"].config)


def test_runs_its_smallest_size_without_a_card(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--sizes", "smallest", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["device"] == "CPU"
    assert [row["work"] for row in document["rows"]] == ["full", "lora", "scoring"]
    for row in document["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["prompts_per_s"] > 0
        assert 0 < row["share_of_peak"] < 1
        assert len(row["seconds_of_each_window"]) == 5
    full, lora, scoring = document["rows"]
    assert lora["trained_parameters"] < full["trained_parameters"]
    assert scoring["spread_of_scores"] > 1
    near = 2e-2 if document["precision"].startswith("bf16") else 1e-4
    assert scoring["largest_difference_to_separate"] < near * scoring["spread_of_scores"]
    assert "| tiny Llama | random | scoring |" in done.stdout


@pytest.mark.parametrize("method", ["full", "lora"])
def test_counted_operations_are_those_that_happen(tiny: Path, method: str) -> None:
    network = gpu.make_network(tiny, preset_spec("bert-click", "none"), method, torch.device("cpu"))
    # 40 + 3 x 16 = 88 tokens in each row: nothing is padded.
    tokens = gpu.random_prompts(2, 3, (40, 40), (16, 16))
    every = np.arange(6)
    packed = pack(tokens, every, plan_rows(tokens, every, 10), 0)
    per_token = gpu.products_per_token(network, packed, training=True)
    counted = gpu.operations(network, per_token, packed, training=True)
    network.train()

    def into(_: object, left: tuple[int, int], right: tuple[int, int], **__: object) -> int:
        return 2 * left[0] * left[1] * right[1]

    # PyTorch's counter knows all products but those that are added in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: into}) as happened:
        network(packed)["click"].sum().backward()
    seen = happened.get_flop_counts()["PromptNetwork.encoder"]
    # Plain attention also multiplies the pairs that the mask hides.
    hidden = 2 * 88**2 - gpu.read_pairs(packed, causal=True)
    expected = counted + 3 * 2 * 2 * 64 * 2 * hidden
    # Angles of the rotary positions are a product too, and not counted.
    assert sum(seen.values()) == pytest.approx(expected, rel=2e-3)


def test_lora_counts_no_gradients_of_frozen_matrices(tiny: Path) -> None:
    tokens = gpu.random_prompts(1, 1, (8, 8), (8, 8))
    packed = pack(tokens, np.arange(1), [np.arange(1)], 0)
    run, cpu = preset_spec("bert-click", "none"), torch.device("cpu")
    reading, full, lora = (
        gpu.products_per_token(gpu.make_network(tiny, run, method, cpu), packed, training=training)
        for method, training in (("full", False), ("full", True), ("lora", True))
    )
    # Two layers: queries 64 x 64, keys and values 64 x 32, output 64 x 64, and three of 64 x 192.
    assert reading == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    assert full == 3 * reading
    adapters = 8 * (2 * (4 * 64 + 64 + 32 + 64 + 32) + 6 * (64 + 192))
    # Below the first layer's queries, keys and values nothing is trained: no gradient goes there.
    unread = 64 * 64 + 2 * 64 * 32
    assert lora == 2 * reading - unread + 3 * adapters - 3 * 8 * 64


@pytest.mark.parametrize("causal", [True, False])
def test_pairs_are_those_of_the_tree_mask(causal: bool) -> None:
    tokens = gpu.random_prompts(3, 4, (5, 11), (2, 7))
    every = np.arange(12)
    packed = pack(tokens, every, plan_rows(tokens, every, 10), 0)
    assert (packed.segment == HEAD).any()
    mask = tree_mask(packed.segment, packed.position_ids, torch.float32, causal=causal)
    assert gpu.read_pairs(packed, causal=causal) == int((mask == 0).sum())


@pytest.mark.parametrize(
    ("name", "millions"), [("minilm", 22.7), ("smollm2-135m", 134.5), ("qwen3-0.6b", 596.0), ("qwen2.5-1.5b", 1543.7)]
)
def test_random_models_have_the_shapes_of_the_real_ones(name: str, millions: float, tmp_path: Path) -> None:
    config = gpu.SIZES[name].config
    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        whole = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings))
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)
    width = 4 * config["num_attention_heads"]
    small = config | {"vocab_size": gpu.N_WORDS, "hidden_size": width, "num_hidden_layers": 1, "head_dim": 4}
    small |= {"intermediate_size": 64, "max_position_embeddings": 64}
    backbone = load_backbone(gpu.write_random_model(tmp_path / name, small), dtype=torch.float32)
    assert backbone.kind == ("encoder" if name == "minilm" else "decoder")
    assert backbone.model(torch.arange(10)[None]).last_hidden_state.isfinite().all()


def test_short_memory_turns_gradient_checkpointing_on() -> None:
    cpu = torch.device("cpu")

    def short(checkpointing: bool) -> dict:
        if not checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore words")
        return {"twice": checkpointing, "notes": []}

    assert gpu.in_memory(short, cpu)["twice"] is True
    in_parts = gpu.in_memory(lambda twice: {"twice": twice, "notes": [] if twice else ["Out of memory: in parts"]}, cpu)
    assert in_parts["twice"] is True
    enough = gpu.in_memory(lambda twice: {"twice": twice, "notes": []}, cpu)
    assert enough["twice"] is False

    def never(checkpointing: bool) -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore words")

    assert gpu.in_memory(never, cpu) == {"failed": "CUDA out of memory."}


def test_windows_are_whole_steps_after_the_first_ones() -> None:
    windows = gpu.Windows(torch.device("cpu"), warm=2, per_window=3)
    for _ in range(8):
        assert windows() is None
    assert len(windows.marks) == 3
    windows = replace(windows, marks=[1.0, 1.5, 3.0])
    assert windows.seconds() == [0.5, 1.5]
