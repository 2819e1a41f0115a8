"""A run that goes on from another one's weights: that one is finished, and knew nothing that is held out here."""

import pytest
from runs.runs_lab import Lab

from llmrec_core.errors import InputError, NotFoundError
from llmrec_core.specs import SplitSpec


def test_it_goes_on_from_a_finished_run_on_the_same_rows_alone(lab: Lab) -> None:
    first = lab.submit("nothing")
    with pytest.raises(InputError, match="only a finished run has weights"):
        lab.submit(continue_from=first)
    lab.finish(first)
    second = lab.submit(continue_from=first)
    assert lab.store.get(second).spec.continue_from == first
    with pytest.raises(InputError, match="may know what is held out"):
        lab.submit(continue_from=first, split=SplitSpec(protocol="random"))
    with pytest.raises(NotFoundError):
        lab.submit(continue_from="20200101-000000-aaaaa")
