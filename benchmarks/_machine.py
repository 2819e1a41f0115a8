"""What a measurement was taken on, as results tell it."""

from __future__ import annotations

import platform
from typing import Any

import torch

from llmrec_core.models.device import device_facts


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
    }
