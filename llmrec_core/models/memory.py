"""Running out of memory: how it is told from other faults, and how the same is then computed in smaller parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from llmrec_core.errors import RunFailedError

T = TypeVar("T")

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


def until_it_fits(compute: Callable[[], T], smaller: Callable[[], None], device: torch.device) -> T:
    """What ``compute`` gives; it is called again each time that memory runs out.

    Args:
        compute: does the same each time, or goes on where it was.
        smaller: lets go of what is in the way and makes ``compute`` need less; raises where that cannot be.
        device: whose memory is freed.
    """
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Outside the handler: its traceback would keep the memory that is to be freed.
        try:
            smaller()
        finally:
            free_memory(device)


@dataclass
class Portion:
    """How much is computed at once: half as much each time that memory runs out, and so it stays.

    Args:
        what, where, fix: what is said where even the smallest portion does not fit.
        most_halved: how often it may be halved.
    """

    what: str
    where: str
    fix: str
    most_halved: int = 6
    halved: int = 0

    def of(self, whole: int) -> int:
        """As much of ``whole`` as fits, at least 1."""
        return max(1, whole >> self.halved)

    def halve(self, whole: int) -> None:
        """Half as much from now on.

        Raises:
            RunFailedError: it cannot be less.
        """
        if self.halved >= self.most_halved or self.of(whole) == 1:
            # Where other memory is free again, portions may be as large as ever.
            self.halved = 0
            raise RunFailedError(self.what, where=self.where, fix=self.fix)
        self.halved += 1

    def each(self, n: int, whole: int, compute: Callable[[slice], object], device: torch.device) -> None:
        """Calls ``compute`` with parts of 0 to n in turn, of ``whole`` places each or as many as fit.

        Raises:
            RunFailedError: not even the smallest part fits.
        """

        def next_part(start: int) -> int:
            part = slice(start, min(n, start + self.of(whole)))
            compute(part)
            return part.stop

        done = 0
        while done < n:
            done = until_it_fits(partial(next_part, done), partial(self.halve, whole), device)
