"""The leakage check of a split together with what learns from it here: baselines and the samples of the fine-tuning.

Light (no PyTorch), so that pages and the command line can show it; every run begins with it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.baselines import BASELINES
from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.data import Split
from llmrec_core.data.leakage import LeakageReport, Probe, check_leakage
from llmrec_core.specs import (
    BaselineSpec,
    DatasetRef,
    ItemKNNSpec,
    ObjectiveSpec,
    PopularitySpec,
    RunSpec,
    TrainingSpec,
)
from llmrec_core.training.samples import training_lists

#: Training rows beyond which baselines are fitted for the check on some users only: it is to take seconds.
MAX_ROWS = 200_000
#: Prompts drawn for the check.
_N_PROMPTS = 4_000

#: Families whose fit is a matter of counting, so that fitting them twice costs little. The others see the same rows.
_TITLES = {"popularity": "Popularity", "item-knn": "Item-kNN"}


def leakage_report(
    split: Split, baselines: Sequence[BaselineSpec] = (PopularitySpec(), ItemKNNSpec()), seed: int = 0
) -> LeakageReport:
    """Every check of :func:`check_leakage`, with each baseline and the training samples learned twice.

    Args:
        split: the split a run is to use.
        baselines: popularity and item-knn among them are fitted, on all training rows, or on those of some users
            (drawn by ``seed``) where there are more than :data:`MAX_ROWS`.
        seed: seeds what is drawn.
    """
    probes = [_fitted(spec, seed) for spec in baselines if spec.family in _TITLES]
    return check_leakage(split, [*probes, _samples(seed)], seed)


def _fitted(spec: BaselineSpec, seed: int) -> Probe:
    def learn(split: Split) -> dict[str, npt.NDArray[Any]]:
        family: Callable[..., Recommender] = BASELINES[spec.family]
        recommender = family(spec)
        recommender.fit(_some_users(split, seed), FitContext(seed=seed))
        with tempfile.TemporaryDirectory(prefix="llmrec-leakage-") as folder:
            recommender.save(Path(folder))
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return {path.name: np.fromfile(path, np.uint8) for path in files}

    return Probe(spec.family, _TITLES[spec.family], learn)


def _some_users(split: Split, seed: int) -> Split:
    """``split`` with the training rows of so many users, drawn by seed, that there are about MAX_ROWS."""
    if len(split.train) <= MAX_ROWS:
        return split
    n_users = split.dataset.n_users
    users = split.dataset.interactions["user_idx"].to_numpy(np.int64)[split.train]
    drawn = np.random.default_rng([seed, 11]).permutation(n_users)
    rows = np.cumsum(np.bincount(users, minlength=n_users)[drawn])
    chosen = np.zeros(n_users, bool)
    chosen[drawn[: int(np.searchsorted(rows, MAX_ROWS)) + 1]] = True
    return replace(split, train=split.train[chosen[users]])


def _samples(seed: int) -> Probe:
    """Prompts of the fine-tuning: who is asked, after which history, about which items, negatives among them."""

    def learn(split: Split) -> dict[str, npt.NDArray[Any]]:
        run = RunSpec(
            dataset=DatasetRef(name=split.dataset.name),
            objectives=(ObjectiveSpec(task="click"), ObjectiveSpec(task="rank")),
            training=TrainingSpec(max_samples=_N_PROMPTS),
        )
        lists = training_lists(split, run, seed)
        histories = [
            hashlib.sha256(
                "\n".join(f"{e.item_id}\t{e.rating}\t{e.timestamp}" for e in query.history).encode()
            ).digest()
            for query in lists.queries
        ]
        return {
            "users": lists.users,
            "items": lists.items,
            "lists": lists.list_of,
            "histories": np.frombuffer(b"".join(histories), np.uint8),
            **{f"labels {task}": values for task, values in lists.labels.items()},
        }

    return Probe("negatives", "Training prompts and negatives", learn)
