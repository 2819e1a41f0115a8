"""Fixtures of more than one file."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """An empty folder of models, one a file."""
    return tmp_path_factory.mktemp("models")
