"""Heads compute what a linear layer computes, in float32; devices and precisions are chosen for stated reasons."""

from __future__ import annotations

import pytest
import torch

from llmrec_core.errors import SpecError
from llmrec_core.models import device as device_module
from llmrec_core.models.device import (
    device_facts,
    matmul_peaks,
    memory_in_use,
    resolve_device,
    resolve_precision,
    usable_cpus,
)
from llmrec_core.models.heads import TaskHeads


def test_heads_by_hand() -> None:
    heads = TaskHeads(2, ["click", "rating"], biases={"rating": 0.5})
    with torch.no_grad():
        heads.heads["click"].weight.copy_(torch.tensor([[1.0, -2.0]]))
        heads.heads["rating"].weight.copy_(torch.tensor([[0.5, 0.25]]))
    found = heads(torch.tensor([[1.0, 1.0], [3.0, 0.0]]))
    assert found["click"].tolist() == [-1.0, 3.0]
    assert found["rating"].tolist() == [1.25, 2.0]


def test_heads_are_seeded_per_task() -> None:
    both, one, other = TaskHeads(8, ["rank", "click"], seed=3), TaskHeads(8, ["click"], seed=3), TaskHeads(8, ["click"])
    assert both.tasks == ("click", "rank")
    assert torch.equal(both.heads["click"].weight, one.heads["click"].weight)
    assert not torch.equal(both.heads["click"].weight, both.heads["rank"].weight)
    assert not torch.equal(one.heads["click"].weight, other.heads["click"].weight)
    assert one.heads["click"].bias.item() == 0.0


def test_heads_stay_float32_under_autocast() -> None:
    heads = TaskHeads(64, ["click"])
    pooled = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    exact = heads(pooled)["click"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(heads(pooled)["click"], exact)
        assert heads(pooled.bfloat16())["click"].dtype == torch.float32


def test_head_dropout_only_while_training() -> None:
    heads = TaskHeads(64, ["click"], dropout=0.5)
    pooled = torch.ones(1, 64)
    heads.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert heads(pooled)["click"].item() != heads(pooled)["click"].item()
    heads.eval()
    assert heads(pooled)["click"].item() == heads(pooled)["click"].item()


@pytest.mark.parametrize("tasks", [[], ["click", "click"], ["evil"]])
def test_heads_refused(tasks: list[str]) -> None:
    with pytest.raises(SpecError):
        TaskHeads(4, tasks)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cpu:0", "cuda:-1", "cuda:99", "x; touch pwned"])
def test_devices_refused(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_device(name)
    assert caught.value.where == "device"


def test_cuda_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="0 CUDA devices"):
        resolve_device("cuda")
    assert resolve_device("auto").type in {"cpu", "mps"}
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_precision_by_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    choice = resolve_precision("auto", torch.device("cuda", 0))
    assert choice.dtype == dtype
    assert f"{capability[0]}.{capability[1]}" in choice.reason


@pytest.mark.parametrize(
    ("flags", "dtype", "said"),
    [
        ("flags : fpu amx_bf16 avx512_bf16 amx_tile", torch.bfloat16, "AMX"),
        ("flags : fpu avx512_bf16", torch.bfloat16, "AVX-512 BF16"),
        ("flags : fpu amx_tile avx512f", torch.float32, "no fast bf16"),
    ],
)
def test_precision_by_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype, said: str) -> None:
    monkeypatch.setattr(device_module, "_cpu_info", lambda: f"model name : Test CPU\n{flags}\n")
    choice = resolve_precision("auto", torch.device("cpu"))
    assert choice.dtype == dtype
    assert said in choice.reason
    facts = device_facts("cpu")
    assert (facts.name, facts.precision) == ("Test CPU", str(dtype).removeprefix("torch."))


def test_precision_as_asked() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu).dtype == torch.float32
    assert resolve_precision("bf16", cpu).dtype == torch.bfloat16
    assert resolve_precision("auto", torch.device("mps")).dtype == torch.float32
    with pytest.raises(SpecError):
        resolve_precision("fp8", cpu)


def test_facts_of_this_machine() -> None:
    facts = device_facts("cpu").as_json()
    assert facts["n_threads"] >= 1
    assert 1 <= facts["n_cpus"] == usable_cpus()
    assert 0 < facts["memory_free_bytes"] <= facts["memory_total_bytes"]
    assert facts["device_memory_total_bytes"] is None
    assert memory_in_use(torch.device("cpu")) > 10_000_000


def test_matmul_peaks_are_measured() -> None:
    peaks = matmul_peaks(0.02, torch.device("cpu"), size=64).as_json()
    assert 0.001 < peaks["fp32_gflops"] < 1e6
    assert 0.0001 < peaks["bf16_gflops"] < 1e6
