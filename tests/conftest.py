"""What all tests share: which of them run in one worker, and every recommender family fitted once."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

# What was green stays green: the same examples each time. HYPOTHESIS_PROFILE=default draws others, to find more.
settings.register_profile("same", derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

#: Where fixtures of session scope are dear, all tests are one piece of work; elsewhere each file is one of its own.
_ONE_WORKER = {
    "tests/cli": "cli",
    "tests/pages": "pages",
    "tests/privacy": "privacy",
    "tests/conformance/test_recommenders.py": "families",
    "tests/explanation/test_explain_families.py": "families",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Deals out the tests of ``--dist loadgroup`` by file and room.

    Dealt out one by one, the tests of a file go to the workers in turn, and each worker builds every fixture of a
    module or session anew. The groups of xdist's own mark are not used: xdist 3.8 writes them where pytest 9.2 does
    not look.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return _ONE_WORKER.get(file) or _ONE_WORKER.get(file.rsplit("/", 1)[0]) or file

    return ByRoom(config, log)


@pytest.fixture(scope="session")
def fitted_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple]:
    """Name of a family or variant of ``conformance.families`` to its recommender, split and context, fitted once.

    Only for tests that ask it and change nothing in it.
    """
    from conformance.families import FAMILIES, VARIANTS, tiny_split

    from llmrec_core.contracts import FitContext

    made: dict[str, tuple] = {}

    def fitted(name: str) -> tuple:
        if name not in made:
            split = tiny_split()
            ctx = FitContext(workspace_models=tmp_path_factory.mktemp("models"), device="cpu", seed=0)
            made[name] = ((FAMILIES | VARIANTS)[name](split, ctx), split, ctx)
        return made[name]

    return fitted
