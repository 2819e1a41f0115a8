"""Where and in which precision to compute, and how fast this machine is when asked to prove it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from llmrec_core.errors import SpecError

#: Tokens in one scoring batch (or one head with one tail, if that is longer), by kind of device.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536, "mps": 8192}
#: Prompts of a training step where a spec names no number; the second where an encoder learns clicks in bf16. The
#: shorter products take, the larger a share of a step is what each step takes once: the update of weights, and calls.
#: Ratings and lists are learned worse in fewer steps, and decoders take long for each.
BATCH_SIZE, _FAST_BATCH_SIZE = 32, 48
#: What a training may keep of frozen layers: a share of the memory that is free when it begins, and never more bytes.
KEPT_SHARE, KEPT_BYTES = 0.25, 2 * 2**30


@dataclass(frozen=True)
class PrecisionChoice:
    """``dtype`` for matrix products (weights stay float32 under autocast) and why it was chosen."""

    dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class DeviceFacts:
    """What there is to compute with; memory in bytes, None where it is unknown."""

    device: str
    name: str
    n_threads: int
    n_cpus: int
    memory_total_bytes: int
    memory_free_bytes: int
    device_memory_total_bytes: int | None
    device_memory_free_bytes: int | None
    precision: str
    precision_reason: str
    torch_version: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MatmulPeaks:
    """Best measured matrix product speed, in units of 1e9 floating point operations a second."""

    fp32_gflops: float
    bf16_gflops: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def left_of_padding(dtype: torch.dtype) -> str:
    """What is left of padding, in words, where a processor trains on rows without it (see ``training.unpadded``)."""
    return "rows filled up to multiples of 8 tokens in attention" if dtype == torch.bfloat16 else "no padding"


def resolve_device(name: str = "auto") -> torch.device:
    """ "auto" is the first CUDA device, else Apple's GPU, else the CPU; others must be there.

    Raises:
        SpecError: an unknown name, or a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in {"cpu", "mps", "cuda"} or (number and (kind != "cuda" or not number.isdecimal())):
        raise SpecError(f"unknown device {name[:40]!r}.", where="device", fix="Known: auto, cpu, mps, cuda, cuda:N.")
    if kind == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number or 0)
        if index >= n_devices:
            raise SpecError(
                f"{name!r} is not here: PyTorch {torch.__version__} sees {n_devices} CUDA devices.",
                where="device",
                fix="Use auto or cpu, or install a CUDA build of PyTorch.",
            )
        return torch.device("cuda", index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SpecError("'mps' is not here: no Apple GPU.", where="device", fix="Use auto or cpu.")
    return torch.device(kind)


def resolve_precision(precision: str, device: torch.device) -> PrecisionChoice:
    """The dtype for matrix products, from "auto", "bf16" or "fp32".

    "auto" takes bf16 only where it is computed in matrix units: CUDA from compute capability 8, processors with AMX
    or AVX-512 BF16. Elsewhere bf16 is emulated and slower than fp32.

    Raises:
        SpecError: unknown precision.
    """
    if precision == "fp32":
        return PrecisionChoice(torch.float32, "fp32 was asked for")
    if precision == "bf16":
        return PrecisionChoice(torch.bfloat16, "bf16 was asked for")
    if precision != "auto":
        raise SpecError(f"unknown precision {precision!r}.", where="training.precision", fix="Known: auto, bf16, fp32.")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return PrecisionChoice(torch.bfloat16, f"bf16: this GPU has bf16 matrix units (compute {major}.{minor})")
        return PrecisionChoice(torch.float32, f"fp32: this GPU has no bf16 matrix units (compute {major}.{minor})")
    if device.type == "cpu":
        unit = cpu_bf16_unit()
        if unit:
            return PrecisionChoice(torch.bfloat16, f"bf16: this processor has {unit}")
        return PrecisionChoice(torch.float32, "fp32: this processor has no fast bf16 matrix units")
    return PrecisionChoice(torch.float32, f"fp32: bf16 training is not proven on {device.type}")


def resolve_batch_size(batch_size: int | None, dtype: torch.dtype, *, clicks: bool) -> int:
    """Prompts of a training step: the spec's own number, or what suits products in ``dtype``.

    Args:
        clicks: an encoder is trained, and for clicks alone.
    """
    if batch_size is not None:
        return batch_size
    return _FAST_BATCH_SIZE if dtype == torch.bfloat16 and clicks else BATCH_SIZE


def cpu_bf16_unit() -> str | None:
    """ "AMX" or "AVX-512 BF16" if the processor says that it has it, else None (always off Linux)."""
    words = set(_cpu_info().split())
    if {"amx_bf16", "amx_tile"} <= words:
        return "AMX"
    return "AVX-512 BF16" if "avx512_bf16" in words else None


def device_facts(name: str = "auto") -> DeviceFacts:
    """Facts of the device that ``name`` resolves to, with the precision "auto" would take there."""
    device = resolve_device(name)
    choice = resolve_precision("auto", device)
    memory = psutil.virtual_memory()
    total = free = None
    title = _cpu_name()
    if device.type == "cuda":
        title = torch.cuda.get_device_name(device)
        free, total = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        title = "Apple GPU"
    return DeviceFacts(
        device=str(device),
        name=title,
        n_threads=torch.get_num_threads(),
        n_cpus=usable_cpus(),
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.available,
        device_memory_total_bytes=total,
        device_memory_free_bytes=free,
        precision=str(choice.dtype).removeprefix("torch."),
        precision_reason=choice.reason,
        torch_version=torch.__version__,
    )


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: the device's allocated memory, or on the CPU this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)


def keepable_memory(device: torch.device) -> int:
    """Bytes that states of frozen layers may take now: of the device's own memory, or of the machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return min(int(KEPT_SHARE * free), KEPT_BYTES)


def usable_cpus() -> int:
    """Processors this process may run on; fewer than the machine has under a container's affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def matmul_peaks(seconds: float = 1.0, device: torch.device | None = None, size: int = 1024) -> MatmulPeaks:
    """The speed of square matrix products in fp32 and bf16, each measured for about half of ``seconds``."""
    device = device or resolve_device("auto")
    return MatmulPeaks(
        fp32_gflops=_matmul_gflops(torch.float32, device, seconds / 2, size),
        bf16_gflops=_matmul_gflops(torch.bfloat16, device, seconds / 2, size),
    )


def _matmul_gflops(dtype: torch.dtype, device: torch.device, seconds: float, size: int) -> float:
    """Best single product: other load on the machine slows some of them, never quickens one."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=generator).to(device=device, dtype=dtype)
    right = torch.randn(size, size, generator=generator).to(device=device, dtype=dtype)
    _timed_product(left, right, device)  # the first one sets up libraries and memory
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while True:
        best = min(best, _timed_product(left, right, device))
        if time.perf_counter() >= deadline:
            return 2.0 * size**3 / best / 1e9


def _timed_product(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    started = time.perf_counter()
    product = left @ right
    if device.type != "cpu":
        # Products on a GPU are only queued; reading one value waits for it.
        product[0, 0].item()
    return time.perf_counter() - started


def _cpu_info() -> str:
    """Linux's description of the processor; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
