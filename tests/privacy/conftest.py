"""One full workspace for all tests of this room; each copies it."""

import pytest
from privacy.forget_cases import Place, full_workspace


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Made once: importing, training and evaluating take longer than most tests that look at what comes of it."""
    return full_workspace(tmp_path_factory.mktemp("template") / "ws", tmp_path_factory.mktemp("files"))
