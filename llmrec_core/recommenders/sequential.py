"""The sequential family: item vectors from a language model plus id deltas, and a small transformer over the history.

It ranks the whole catalogue at once, so it needs no retriever; items that nobody has met yet are ranked by their text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Recommender,
    check_candidates,
    check_task,
    pick_scores,
)
from llmrec_core.data.companions import Companions
from llmrec_core.errors import InputError, ModelError
from llmrec_core.models.device import resolve_device
from llmrec_core.models.text_vectors import Whitening, embed_texts
from llmrec_core.recommenders._histories import query_histories, training_histories
from llmrec_core.recommenders._language_models import load_base
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders._watch import METRIC, watched
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.saved import FIX, catalogue_sha256
from llmrec_core.specs import SequentialSpec
from llmrec_core.training.rounds import Outcome
from llmrec_core.training.sequence_network import SequenceNetwork
from llmrec_core.training.sequences import (
    last_item_scores,
    train_sequences,
)

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Score cells held at once (float32): 64 MB.
_BLOCK_CELLS = 16_000_000
_WEIGHTS = "weights.safetensors"


class SequentialRecommender(Recommender):
    """See the module; the score of an item is the product of its vector with the state after the history.

    An empty history, or one of unknown items alone, scores every item by how often it was met, far below 1.
    """

    family: ClassVar[str] = "sequential"

    def __init__(self, spec: SequentialSpec | None = None) -> None:
        self.spec: SequentialSpec = spec or SequentialSpec()
        self.outcome: Outcome | None = None
        self._network: SequenceNetwork | None = None
        self._scale: tuple[float, float] | None = None
        self._counts: IntArray = np.empty(0, np.int64)
        self._item_index: Mapping[str, int] = {}
        self._catalogue = ""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True, similar=True)

    @property
    def n_items(self) -> int:
        return len(self._fitted().trained)

    def fit(self, split: Split, ctx: FitContext) -> None:
        dataset = split.dataset
        device = resolve_device(ctx.device)
        self._know(dataset, np.asarray(split.train_item_counts), dataset.rating_scale)
        ctx.emit("stage", stage="tokenizing")
        text = self._text(dataset, ctx)
        trained = torch.from_numpy(self._counts > 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            network = SequenceNetwork(self.spec, torch.from_numpy(text), trained, self._given(dataset))
        self._network = network.to(device)
        histories = training_histories(split)
        ctx.emit("stage", stage="training")
        value = watched(split, self.spec.validation_users, ctx)
        measure = None if value is None else (lambda: value(self))
        fingerprint = f"{dataset.fingerprint} {split.describe()} {self.spec.model_dump_json()} {ctx.seed}"
        self.outcome = train_sequences(network, histories, self.spec, ctx, measure, METRIC, fingerprint)
        network.eval()
        network.requires_grad_(False)

    def _text(self, dataset: Dataset, ctx: FitContext) -> npt.NDArray[np.float32]:
        """Whitened text vectors of all items; whitening sees the items of training rows only."""
        if self.spec.model is None:
            return np.empty((dataset.n_items, 0), np.float32)
        texts = item_texts(dataset, self.spec.item_fields, facts=self.spec.facts)
        vectors = embed_texts(load_base(self.spec.model, ctx, trainable=False), texts)
        known = vectors[self._counts > 0]
        return Whitening.fit(known if len(known) > 1 else vectors, self.spec.n_text).apply(vectors)

    def _given(self, dataset: Dataset) -> torch.Tensor | None:
        """Feature vectors that came with the data, whitened by those of items in training rows; NaN rows without."""
        vectors = Companions(dataset).vectors if self.spec.use_vectors else None
        if vectors is None:
            return None
        has = ~np.isnan(vectors).any(axis=1)
        known = vectors[has & (self._counts > 0)]
        if len(known) < 2:
            return None
        found = Whitening.fit(known, self.spec.n_text).apply(vectors[has])
        whitened = np.full((len(vectors), found.shape[1]), np.nan, np.float32)
        whitened[has] = found
        return torch.from_numpy(whitened)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        network = self._fitted()
        check_task(task, self.capabilities.tasks)
        n_items = self.n_items
        items = check_candidates(candidates, len(queries), n_items)
        scores = np.empty(items.shape, np.float32)
        block = max(1, min(1024, _BLOCK_CELLS // max(1, n_items)))
        popularity = (self._counts / max(1, self._counts.max(initial=0)) * 1e-6).astype(np.float32)
        was_training = network.training
        network.eval()
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            histories = query_histories(queries[part], self._item_index, self.spec.max_history, self._scale)
            batch = histories.batch(histories.starts[:-1], histories.starts[1:], network.delta.device)
            found = last_item_scores(network, batch)
            # The state after an empty history is zero, and so is every score: popularity orders.
            found += popularity * (np.diff(histories.starts) == 0)[:, None]
            scores[part] = pick_scores(found, items[part])
        network.train(was_training)
        return scores

    def item_vectors(self) -> FloatArray:
        """What items are compared by, float32 [n_items, width]."""
        with torch.inference_mode():
            return np.asarray(self._fitted().item_vectors().float().cpu().numpy(), np.float32)

    def _know(self, dataset: Dataset, counts: IntArray, scale: tuple[float, float] | None) -> None:
        self._counts, self._scale = counts, scale
        self._item_index = dict(dataset.item_index)
        self._catalogue = catalogue_sha256(dataset.item_ids)

    def _fitted(self) -> SequenceNetwork:
        if self._network is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._network

    # -- disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        network = self._fitted()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        tensors["counts"] = torch.from_numpy(self._counts)
        save_file(tensors, folder / _WEIGHTS)
        write_head(
            folder,
            self.family,
            {
                "spec": self.spec.model_dump(mode="json"),
                "rating_scale": self._scale,
                "catalogue_sha256": self._catalogue,
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> SequentialRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        try:
            loaded = cls(SequentialSpec.model_validate(head.get("spec")))
            tensors = load_file(folder / _WEIGHTS)
            counts = tensors.pop("counts").numpy()
            network = SequenceNetwork(loaded.spec, tensors["text"], tensors["trained"], tensors.get("given"))
            network.load_state_dict(tensors)
            scale = head.get("rating_scale")
            loaded._know(dataset, counts, None if scale is None else (float(scale[0]), float(scale[1])))
        except (ValidationError, SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError):
            raise ModelError("its weights or its spec cannot be read.", where=str(folder), fix=FIX) from None
        if counts.shape != (dataset.n_items,) or len(network.trained) != dataset.n_items:
            raise ModelError("its weights do not fit the catalogue.", where=str(folder), fix=FIX)
        loaded._network = network.to(resolve_device(ctx.device))
        network.eval()
        network.requires_grad_(False)
        return loaded
