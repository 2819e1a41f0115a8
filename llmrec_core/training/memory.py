"""Running out of memory: how it is told from other faults, and what is freed before smaller parts are tried."""

from __future__ import annotations

import torch

#: Where there is no kind of error for it, its words: PyTorch's allocator of processors (the second on Windows), Apple's
#: GPU, CUDA itself, cuBLAS, and cuDNN of old and of today.
_WORDS = (
    "can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, of a device or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_memory(device: torch.device) -> None:
    """Gives back what PyTorch keeps for later; call it outside the handler, whose traceback holds tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
