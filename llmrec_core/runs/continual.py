"""Runs that go on with newer data: what each learned from, all the way back, and how its own rows are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec_core.contracts import IntArray
from llmrec_core.data import ContinuedSplit, Dataset, DatasetStore, Split, continue_split, make_split
from llmrec_core.errors import NotFoundError, SpecError
from llmrec_core.runs.store import Run, RunStore
from llmrec_core.specs import RunSpec
from llmrec_core.workspace import Workspace


@dataclass(frozen=True)
class Continuation:
    """``first``: the run that is gone on from; ``dataset``: its data; ``cut``: how the newer rows are cut."""

    first: Run
    dataset: Dataset
    cut: ContinuedSplit

    def words(self, replay: float) -> str:
        """How much is new, for the log."""
        train = self.cut.split.train
        n_old = int(np.isin(train, self.cut.trained).sum())
        return (
            f"Goes on from run {self.first.run_id}: {len(train) - n_old:,} interactions to learn from are new, "
            f"{n_old:,} are those it was trained on; {replay:.0%} of what is learned from are of these."
        )


def continuation_of(spec: RunSpec, workspace: Workspace, dataset: Dataset) -> Continuation | None:
    """What ``spec`` goes on from with newer data; None where it does not.

    Args:
        dataset: the data of ``spec``.

    Raises:
        NotFoundError: the first run, or the data that it was trained on, is gone.
        SpecError, DataError: as :func:`llmrec_core.data.continue_split`.
    """
    if spec.continual is None or spec.continue_from is None:
        return None
    first = RunStore(workspace).get(spec.continue_from)
    older = DatasetStore(workspace).load(first.spec.dataset.name, first.spec.dataset.version)
    if (older.name, older.version) == (dataset.name, dataset.version):
        raise SpecError(
            f"run {first.run_id} was trained on this version already.",
            where="continual",
            fix="Import the data with what came since, or start a second stage without continual.",
        )
    split, trained = _learned(first, workspace, older)
    return Continuation(first, older, continue_split(make_split(dataset, spec.split), split, trained))


def split_of(spec: RunSpec, workspace: Workspace, dataset: Dataset) -> Split:
    """The split that a run was trained and measured on, for showing and serving it.

    Where the run that it went on from is gone, rows which that one learned may count as held out here; histories are
    the same either way.
    """
    try:
        found = continuation_of(spec, workspace, dataset)
    except NotFoundError:
        found = None
    return make_split(dataset, spec.split) if found is None else found.cut.split


def _learned(run: Run, workspace: Workspace, dataset: Dataset) -> tuple[Split, IntArray]:
    """A run's split, and the rows of its data that it, or one that it went on from, was trained on."""
    found = continuation_of(run.spec, workspace, dataset)
    if found is None:
        split = make_split(dataset, run.spec.split)
        return split, split.train
    return found.cut.split, np.union1d(found.cut.split.train, found.cut.trained)
