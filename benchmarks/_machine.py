"""What a measurement was taken on, as results tell it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from llmrec_core.models.device import device_facts
from llmrec_core.runs.processes import computing_environment


def machine(*, precision: bool = False, **versions: str) -> dict[str, Any]:
    """The processor, its threads in use, and versions.

    Args:
        precision: also what matrix products are computed in, and why.
        versions: of further libraries.
    """
    facts = device_facts("cpu")
    why = {"precision": facts.precision_reason} if precision else {}
    return {
        "processor": facts.name,
        "threads": facts.n_threads,
        **why,
        "torch": torch.__version__,
        **versions,
        "python": platform.python_version(),
        "allocator": Path(os.environ.get("LD_PRELOAD", "")).name or "the system's",
    }


def as_a_worker(module: str) -> None:
    """Starts ``python -m module`` again as a run's worker is started: memory that is freed stays with the process."""
    missing = computing_environment()
    if missing:
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **missing})
