"""What recommenders over histories go on from with newer data."""

from __future__ import annotations

import numpy as np

from llmrec_core.contracts import IntArray
from llmrec_core.data import Split
from llmrec_core.recommenders._histories import training_histories, training_rows


def all_but_first_rows(split: Split) -> IntArray:
    """The training rows that have something before them in their user's history."""
    firsts = training_rows(split)[np.unique(training_histories(split).starts[:-1])]
    return np.setdiff1d(split.train, firsts)
