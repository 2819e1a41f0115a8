import pytest


@pytest.fixture(scope="session")
def tiny_parent(fitted_family):
    """A fitted cross-encoder of three heads, its split and its context; nobody changes it."""
    return fitted_family("cross-encoder")
