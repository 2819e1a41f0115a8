"""Most popular first: the score of an item is how many training rows name it, for every user alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llmrec_core.baselines._storage import catalogue_hash, read_parts, write_parts
from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Recommender,
    check_candidates,
    check_task,
)
from llmrec_core.errors import InputError, ModelError
from llmrec_core.specs import PopularitySpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split


class PopularityRecommender(Recommender):
    """Counts of training interactions. Items without any score 0; the query is not looked at."""

    family: ClassVar[str] = "popularity"

    def __init__(self, spec: PopularitySpec | None = None) -> None:
        self.spec: PopularitySpec = spec or PopularitySpec()
        self._counts: IntArray | None = None
        self._catalogue = ""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True)

    @property
    def n_items(self) -> int:
        return len(self._fitted())

    def fit(self, split: Split, ctx: FitContext) -> None:
        items = split.dataset.interactions["item_idx"].to_numpy()[split.train]
        self._counts = np.bincount(items, minlength=split.dataset.n_items).astype(np.int64)
        self._catalogue = catalogue_hash(split.dataset.item_ids)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        counts = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), len(counts))
        # The last place stands for padding: index -1 finds it.
        padded = np.append(counts.astype(np.float32), np.float32(-np.inf))
        return padded[items]

    def save(self, folder: Path) -> None:
        write_parts(
            folder,
            family=self.family,
            spec=self.spec,
            catalogue_sha256=self._catalogue,
            arrays={"counts": self._fitted()},
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> PopularityRecommender:
        catalogue = catalogue_hash(dataset.item_ids)
        spec, arrays = read_parts(
            folder,
            family=cls.family,
            spec_type=PopularitySpec,
            catalogue_sha256=catalogue,
            arrays={"counts": "int64"},
        )
        counts = arrays["counts"]
        if counts.shape != (dataset.n_items,) or (counts < 0).any():
            raise ModelError("its counts do not fit the catalogue.", where=str(folder), fix="Train it again.")
        loaded = cls(spec)
        loaded._counts, loaded._catalogue = counts, catalogue
        return loaded

    def _fitted(self) -> IntArray:
        if self._counts is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._counts
