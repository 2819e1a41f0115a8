"""The sequential family: item vectors from a language model plus id deltas, and a small transformer over the history.

It ranks the whole catalogue at once, so it needs no retriever; items that nobody has met yet are ranked by their text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
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
from llmrec_core.errors import DataError, InputError, ModelError
from llmrec_core.models.device import resolve_device
from llmrec_core.models.memory import Portion
from llmrec_core.models.text_vectors import Vectors, Whitening, embed_texts
from llmrec_core.recommenders._going_on import First
from llmrec_core.recommenders._histories import query_histories, training_histories, training_rows
from llmrec_core.recommenders._language_models import load_base
from llmrec_core.recommenders._remembered import Remembered
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders._watch import METRIC, watched
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.saved import FIX, catalogue_sha256
from llmrec_core.specs import SequentialSpec
from llmrec_core.training.rounds import Outcome
from llmrec_core.training.sequence_network import SequenceNetwork
from llmrec_core.training.sequences import Mix, last_item_scores, train_sequences

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
        #: How vectors of texts ("text") and those that came with the data ("given") were whitened: who goes on from
        #: here does the same, so that old and new vectors mean the same.
        self._whitening: dict[str, Whitening] = {}
        self._vectors: Remembered[torch.Tensor] = Remembered()
        #: How much of a block of histories by items fits.
        self._portion = Portion(
            "memory is too small to score all items after even one history.",
            where="recommender.max_history",
            fix="Lower it, free memory of the device, or use another one.",
            most_halved=10,
        )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True, similar=True)

    @property
    def n_items(self) -> int:
        return len(self._fitted().trained)

    def fit(self, split: Split, ctx: FitContext) -> None:
        """With ``ctx.continued`` it begins with the weights of a finished run, matched by item ids.

        Items that are new there have their text, whitened as that run's was, and a fresh id delta; the first run's test
        rows are in no training history, not even to be read.

        Raises:
            ModelError: that run's recommender cannot be read or has another shape.
            DataError: there is nothing new to learn from.
        """
        dataset = split.dataset
        device = resolve_device(ctx.device)
        self._vectors.forget()
        first = None if ctx.start_from is None else _First.load(ctx, self.spec)
        self._know(dataset, np.asarray(split.train_item_counts), dataset.rating_scale)
        ctx.emit("stage", stage="tokenizing")
        text = self._text(dataset, ctx, first)
        given = self._given(dataset, first)
        trained = torch.from_numpy(self._counts > 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            network = SequenceNetwork(self.spec, torch.from_numpy(text), trained, given)
        fingerprint = f"{dataset.fingerprint} {split.describe()} {self.spec.model_dump_json()} {ctx.seed}"
        mix = None
        if first is not None:
            first.hand_over(network, dataset)
            mix = Mix(first.continued.new_among(training_rows(split)), first.continued.replay)
            fingerprint += f" {mix.replay} {first.sha256}"
        self._network = network.to(device)
        histories = training_histories(split)
        ctx.emit("stage", stage="training")
        value = watched(split, self.spec.validation_users, ctx)
        measure = None if value is None else (lambda: value(self))
        self.outcome = train_sequences(network, histories, self.spec, ctx, measure, METRIC, fingerprint, mix)
        network.eval()
        network.requires_grad_(False)

    def _text(self, dataset: Dataset, ctx: FitContext, first: _First | None = None) -> Vectors:
        """Whitened text vectors of all items; whitening sees the items of training rows only, or is the first run's."""
        if self.spec.model is None:
            return np.empty((dataset.n_items, 0), np.float32)
        texts = item_texts(dataset, self.spec.item_fields, facts=self.spec.facts)
        if first is None:
            vectors = embed_texts(load_base(self.spec.model, ctx, trainable=False), texts)
            known = vectors[self._counts > 0]
            self._whitening["text"] = Whitening.fit(known if len(known) > 1 else vectors, self.spec.n_text)
            return self._whitening["text"].apply(vectors)
        known_texts, whitening = first.texts(ctx)
        self._whitening["text"] = whitening
        unread = [text for text in dict.fromkeys(texts) if text not in known_texts]
        if unread:
            vectors = embed_texts(load_base(self.spec.model, ctx, trainable=False), unread)
            known_texts |= dict(zip(unread, whitening.apply(vectors), strict=True))
        return np.stack([known_texts[text] for text in texts])

    def _given(self, dataset: Dataset, first: _First | None = None) -> torch.Tensor | None:
        """Feature vectors that came with the data, whitened by those of items in training rows, or as the first run's
        were; NaN rows without."""
        vectors = Companions(dataset).vectors if self.spec.use_vectors else None
        whitening = None if first is None else first.given()
        if whitening is not None:
            width = len(whitening.mean)
            vectors = np.full((dataset.n_items, width), np.nan, np.float32) if vectors is None else vectors
            if vectors.shape[1] != width:
                raise DataError(
                    f"feature vectors have {vectors.shape[1]:,} numbers, the first run's had {width:,}.",
                    where=f"dataset {dataset.name}",
                    fix="Import vectors of the same kind, or train anew.",
                )
        if vectors is None or (first is not None and whitening is None):
            return None
        has = ~np.isnan(vectors).any(axis=1)
        if whitening is None:
            known = vectors[has & (self._counts > 0)]
            if len(known) < 2:
                return None
            whitening = Whitening.fit(known, self.spec.n_text)
        self._whitening["given"] = whitening
        whitened = np.full((len(vectors), whitening.components.shape[1]), np.nan, np.float32)
        whitened[has] = whitening.apply(vectors[has])
        return torch.from_numpy(whitened)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        network = self._fitted()
        check_task(task, self.capabilities.tasks)
        n_items = self.n_items
        items = check_candidates(candidates, len(queries), n_items)
        scores = np.empty(items.shape, np.float32)
        block = max(1, min(1024, _BLOCK_CELLS // max(1, n_items)))
        popularity = (self._counts / max(1, self._counts.max(initial=0)) * 1e-6).astype(np.float32)
        device = network.delta.device

        def score_part(part: slice) -> None:
            histories = query_histories(queries[part], self._item_index, self.spec.max_history, self._scale)
            first, which = histories.distinct()
            batch = histories.batch(histories.starts[first], histories.starts[first + 1], device)
            found = last_item_scores(network, batch, self._item_vectors())[which]
            # The state after an empty history is zero, and so is every score: popularity orders.
            found += popularity * (np.diff(histories.starts) == 0)[:, None]
            scores[part] = pick_scores(found, items[part])

        was_training = network.training
        network.eval()
        try:
            self._portion.each(len(queries), block, score_part, device)
        finally:
            network.train(was_training)
        return scores

    def item_vectors(self) -> FloatArray:
        """What items are compared by, float32 [n_items, width]."""
        # A copy: what is remembered is nobody's to write into.
        return np.array(self._item_vectors().cpu().numpy(), np.float32)

    def _item_vectors(self) -> torch.Tensor:
        """Vectors of all items on the network's device, computed once for weights as they are."""
        network = self._fitted()

        def make() -> torch.Tensor:
            with torch.no_grad():
                return network.item_vectors().float()

        return self._vectors.of([*network.parameters(), *network.buffers()], make)

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
        for name, whitening in self._whitening.items():
            tensors[f"{name}_mean"] = torch.from_numpy(whitening.mean)
            tensors[f"{name}_components"] = torch.from_numpy(np.ascontiguousarray(whitening.components))
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
            for name in ("text", "given"):
                if f"{name}_mean" in tensors:
                    parts = (tensors.pop(f"{name}_{part}").numpy() for part in ("mean", "components"))
                    loaded._whitening[name] = Whitening(*parts)
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


class _First(First[SequentialRecommender]):
    """The recommender that a training goes on from with newer data, and what of it is taken over."""

    kind = SequentialRecommender
    called = "a sequential recommender has"

    def texts(self, ctx: FitContext) -> tuple[dict[str, Vectors], Whitening]:
        """Text -> its whitened vector, of all that it has read; and how it was whitened."""
        model, dataset = self.model, self.continued.dataset
        read = item_texts(dataset, model.spec.item_fields, facts=model.spec.facts)
        vectors = model._fitted().text.cpu().numpy()
        if "text" not in model._whitening:
            # Saved before this was kept: it depends on what it was fitted on alone.
            model._text(dataset, ctx)
        return dict(zip(read, vectors, strict=True)), model._whitening["text"]

    def given(self) -> Whitening | None:
        """How its feature vectors were whitened; None: it has none, so none can be read."""
        if self.model._fitted().given is None:
            return None
        if "given" not in self.model._whitening:
            self.model._given(self.continued.dataset)
        return self.model._whitening["given"]

    def hand_over(self, network: SequenceNetwork, dataset: Dataset) -> None:
        """Copies all weights into the network of ``dataset``; items are the same where their ids are."""
        old, place = self.model._fitted(), self.places(dataset)
        known = place >= 0
        weights = dict(old.state_dict()) | dict(network.named_buffers())
        weights["delta"] = network.delta.detach().clone()
        weights["delta"][known] = old.delta.detach().cpu()[place[known]]
        weights["trained"][known] |= old.trained.cpu()[place[known]]
        if old.given is not None:
            # A vector that did not come again is still what it was.
            mine, theirs = weights["given"][known], old.given.cpu()[place[known]]
            weights["given"][known] = torch.where(mine.isnan(), theirs, mine)
        network.load_state_dict(weights)
