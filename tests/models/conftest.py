"""Fixtures of more than one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import WRITERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each kind, by name; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name) for name, write in WRITERS.items()}
