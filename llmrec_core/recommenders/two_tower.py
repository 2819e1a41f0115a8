"""The two-tower family: users and items as vectors of one language model, and the nearest items to each user.

It ranks the whole catalogue by one product of vectors: exactly, or through FAISS above a stated size. Items that nobody
has met yet are their texts, and ranked among the others. See ``training.two_tower_network``.
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
    Ranking,
    Recommender,
    check_candidates,
    check_task,
    pick_scores,
)
from llmrec_core.errors import InputError, ModelError, SpecError
from llmrec_core.models.loading import Backbone
from llmrec_core.models.memory import Portion
from llmrec_core.models.text_vectors import Whitening, embed_texts, token_rows
from llmrec_core.models.tuning import apply_tuning, parameter_counts
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.recommenders._going_on import First
from llmrec_core.recommenders._histories import query_histories, training_histories, training_rows
from llmrec_core.recommenders._language_models import (
    fingerprint,
    freeze,
    load_base,
    load_model,
    save_model,
    trained_names,
)
from llmrec_core.recommenders._remembered import Remembered
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders._watch import METRIC, watched
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.recommenders.vector_search import VectorIndex
from llmrec_core.saved import FIX, catalogue_sha256
from llmrec_core.specs import PromptSpec, TwoTowerSpec
from llmrec_core.training.contrastive import PromptExamples, TextTable, train_two_towers
from llmrec_core.training.rounds import Outcome
from llmrec_core.training.samples import new_and_replayed
from llmrec_core.training.sequence_network import Sequences
from llmrec_core.training.sequences import Histories, Mix
from llmrec_core.training.two_tower_network import TwoTowerNetwork

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Score cells held at once (float32): 64 MB.
_BLOCK_CELLS = 16_000_000
#: Users whose vectors FAISS is measured with.
_N_ASKED = 200
_WEIGHTS = "weights.safetensors"


class TwoTowerRecommender(Recommender):
    """See the module.

    A user without a known history item is ranked by how often items were met, unless prompts stand for users.

    Args:
        prompt: what a prompt of the user looks like, where ``spec.user`` is "prompt".
    """

    family: ClassVar[str] = "two-tower"

    def __init__(self, spec: TwoTowerSpec | None = None, prompt: PromptSpec | None = None) -> None:
        self.spec: TwoTowerSpec = spec or TwoTowerSpec()
        self.prompt = prompt or PromptSpec()
        self.outcome: Outcome | None = None
        self._backbone: Backbone | None = None
        self._network: TwoTowerNetwork | None = None
        self._renderer: PromptRenderer | None = None
        self._trained: frozenset[str] = frozenset()
        self._base: dict[str, str] = {}
        self._scale: tuple[float, float] | None = None
        self._counts: IntArray = np.empty(0, np.int64)
        self._item_index: Mapping[str, int] = {}
        self._catalogue = ""
        #: Outputs of the language model for every item, [n_items, hidden_size], and which of them have a text.
        self._pooled = torch.empty(0)
        self._has_text = np.empty(0, bool)
        self._asked: FloatArray = np.empty((0, 0), np.float32)
        self._index: VectorIndex | None = None
        self._remembered: Remembered[tuple[torch.Tensor, FloatArray]] = Remembered()
        #: How much of a block of users by items fits.
        self._portion = Portion(
            "memory is too small to score all items for even one user.",
            where="recommender.max_history",
            fix="Lower it, free memory of the device, or use another one.",
            most_halved=10,
        )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True, similar=True)

    @property
    def n_items(self) -> int:
        self._fitted()
        return len(self._counts)

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self, split: Split, ctx: FitContext) -> None:
        """With ``ctx.continued`` it begins with the weights of a finished run: the towers and what was tuned of the
        language model. Items go by their ids; what is new has its text, whitened as that run's was, and a fresh id
        delta. The first run's test rows are in no training history, not even to be read.

        Raises:
            SpecError: the way of tuning is one that two towers do not have.
            ModelError: that run's recommender cannot be read, or has another shape or base model.
            InputError: it was fitted on the same data.
            DataError: there is nothing new to learn from.
        """
        dataset = split.dataset
        if self.spec.tuning.method == "adalora":
            raise SpecError(
                "two towers give no ranks to adapters while they are trained.",
                where="recommender.tuning.method",
                fix="Choose lora.",
            )
        ctx.emit("stage", stage="tokenizing")
        backbone = load_base(self.spec.model, ctx, trainable=True)
        self._base = fingerprint(self.spec.model, backbone)
        apply_tuning(backbone.model, self.spec.tuning, seed=ctx.seed)
        first = None if ctx.start_from is None else _First.load(ctx, self.spec)
        if first is not None:
            first.hand_over_model(backbone, self._base)
        if self.spec.tuning_steps == 0:
            backbone.model.requires_grad_(False)
        self._know(dataset, np.asarray(split.train_item_counts), dataset.rating_scale)
        texts = item_texts(dataset, self.spec.item_fields, facts=self.spec.facts)
        self._has_text = np.array([bool(text.strip()) for text in texts])
        rows = token_rows(backbone, texts)
        examples: Histories | PromptExamples
        if self.spec.user == "prompt":
            self._renderer = PromptRenderer(self.prompt, dataset, TokenCounter.from_folder(backbone.facts.folder))
            queries, targets = self._prompt_examples(split, ctx)
            rows += token_rows(backbone, self._prompts(queries), self.prompt.max_tokens)
            examples = PromptExamples(targets, dataset.n_items)
        else:
            examples = training_histories(split)
        table = TextTable(backbone, rows)
        table.refresh()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            whitening = self._whitening(table) if first is None else first.whitening()
            network = TwoTowerNetwork(self.spec, whitening, torch.from_numpy(self._counts > 0))
        plan = (
            f"{dataset.fingerprint} {split.describe()} {self.spec.model_dump_json()} {self._prompt_print()} {ctx.seed}"
        )
        mix: Mix | None = None
        if first is not None:
            first.hand_over_towers(network, dataset)
            plan += f" {first.continued.replay} {first.sha256}"
            if isinstance(examples, Histories):
                mix = Mix(first.continued.new_among(training_rows(split)), first.continued.replay)
            ctx.emit("log", level="info", message="The training goes on from the weights of a finished run.")
        self._backbone, self._network = backbone, network.to(backbone.device)
        value = watched(split, self.spec.validation_users, ctx)
        counts = parameter_counts(backbone.model)
        message = f"{len(rows):,} texts; {counts.trainable:,} of {counts.total:,} weights of the model are trained."
        ctx.emit("log", level="info", message=message)
        ctx.emit("stage", stage="training")
        self.outcome = train_two_towers(
            network,
            table,
            examples,
            split.offered("train"),
            self.spec,
            ctx,
            None if value is None else lambda: value(self._with(table)),
            METRIC,
            plan,
            mix,
        )
        self._with(table)
        self._trained = freeze(backbone) | (frozenset() if first is None else first.model._trained)
        network.eval()
        network.requires_grad_(False)
        sample = split.queries("valid", max_users=_N_ASKED, seed=ctx.seed).queries
        self._asked = self._users(sample)

    def _whitening(self, table: TextTable) -> Whitening:
        """It sees the items of training rows only."""
        known = np.flatnonzero(self._counts > 0)
        seen = table.pooled[: len(self._counts)].cpu().numpy()
        return Whitening.fit(seen[known] if len(known) > 1 else seen, self.spec.n_text)

    def _with(self, table: TextTable) -> TwoTowerRecommender:
        """Itself, with items as the table has them now."""
        self._pooled = table.pooled[: len(self._counts)]
        return self

    def _prompt_examples(self, split: Split, ctx: FitContext) -> tuple[list[Query], IntArray]:
        """Training rows drawn by seed, each as what was known before it and the item that was chosen.

        Of what goes on with newer data they are new ones, and a share of those that were learned before.
        """
        rows, rng = split.labelled("train"), np.random.default_rng([ctx.seed, 3])
        if ctx.continued is None:
            drawn = rng.permutation(len(rows))[: self.spec.max_prompts]
        else:
            chosen = new_and_replayed(rows.row, ctx.continued, self.spec.max_prompts, rng)
            drawn = np.flatnonzero(np.isin(rows.row, chosen))
        dataset = split.dataset
        queries = []
        for at in np.sort(drawn):
            user = str(dataset.user_ids[rows.user_idx[at]])
            history = split.history_before(int(rows.row[at]), self.prompt.max_history)
            queries.append(Query(user, history, dataset.profile(user)))
        return queries, rows.item_idx[np.sort(drawn)]

    def _prompt_print(self) -> str:
        return self.prompt.model_dump_json() if self.spec.user == "prompt" else ""

    def _prompts(self, queries: Sequence[Query]) -> list[str]:
        """What a prompt says before its candidate."""
        assert self._renderer is not None
        rendered = self._renderer.render_many([(query, 0) for query in queries])
        found = []
        for prompt in rendered:
            end = min((s.start for s in prompt.spans if s.kind == "candidate"), default=len(prompt.text))
            found.append(prompt.text[:end].strip())
        return found

    # -- asking --------------------------------------------------------------------------------------------------------

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        _, network = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), len(self._counts))
        scores = np.empty(items.shape, np.float32)
        if not len(queries):
            return scores
        was_training = network.training
        network.eval()
        items_there, vectors = self._item_vectors()
        block = max(1, min(1024, _BLOCK_CELLS // max(1, len(vectors))))
        popularity = (self._counts / max(1, self._counts.max(initial=0)) * 1e-6).astype(np.float32)

        def score_part(part: slice) -> None:
            users = self._users(queries[part], items_there)
            # The vector of nobody is zero, and so is every score: popularity orders.
            found = users @ vectors.T + popularity * (np.abs(users).max(axis=1, keepdims=True) == 0)
            scores[part] = pick_scores(found, items[part])

        try:
            self._portion.each(len(queries), block, score_part, items_there.device)
        finally:
            network.train(was_training)
        return scores

    def top_k(self, queries: Sequence[Query], k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        if self.n_items <= self.spec.approximate_above or not len(queries):
            return super().top_k(queries, k, exclude)
        if self._index is None:
            self._index = VectorIndex(
                self._vectors(),
                approximate_above=self.spec.approximate_above,
                recall=self.spec.recall,
                queries=self._asked,
            )
        users = self._users(queries)
        rankings = self._index.search(users, k, exclude)
        for row in np.flatnonzero(np.abs(users).max(axis=1) == 0).tolist():
            seen = None if exclude is None else exclude[row : row + 1]
            rankings[row] = super().top_k(queries[row : row + 1], k, seen)[0]
        return rankings

    def item_vectors(self) -> FloatArray:
        """What items are compared by, float32 [n_items, width]; zeros for items of which nothing is known."""
        _, network = self._fitted()
        known = self._has_text | (network.trained.cpu().numpy() & (self.spec.id_bound > 0))
        return self._vectors() * known[:, None].astype(np.float32)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of items that are not in the catalogue, by their texts (see ``item_texts``), float32 [n, width]."""
        backbone, network = self._fitted()
        with torch.no_grad():
            pooled = torch.from_numpy(embed_texts(backbone, texts)).to(backbone.device)
            return np.asarray(network.items(network.whitened(pooled)).cpu().numpy(), np.float32)

    def _vectors(self) -> FloatArray:
        """Vectors of all items, float32 [n_items, width]; read only."""
        return self._item_vectors()[1]

    def _item_vectors(self) -> tuple[torch.Tensor, FloatArray]:
        """The same on the network's device and here, computed once for weights and texts as they are."""
        _, network = self._fitted()

        def make() -> tuple[torch.Tensor, FloatArray]:
            with torch.no_grad():
                found = network.items(network.whitened(self._pooled), self._all())
            here = np.asarray(found.cpu().numpy(), np.float32)
            here.flags.writeable = False
            return found, here

        return self._remembered.of([*network.parameters(), *network.buffers(), self._pooled], make)

    def _all(self) -> torch.Tensor:
        return torch.arange(len(self._counts), device=self._pooled.device)

    @torch.no_grad()
    def _users(self, queries: Sequence[Query], items: torch.Tensor | None = None) -> FloatArray:
        """User vectors, float32 [n_queries, width]; zeros where nothing is known.

        Args:
            items: vectors of all items, where they are at hand.
        """
        backbone, network = self._fitted()
        if not len(queries):
            return np.empty((0, self.spec.width), np.float32)
        if self.spec.user == "prompt":
            # Equal prompts are read once by what embeds them.
            vectors = network.items(network.whitened(self._read(self._prompts(queries))))
            rows = torch.arange(len(queries), device=backbone.device)[:, None]
            batch = Sequences(rows, torch.zeros_like(rows), torch.zeros_like(rows), rows >= 0)
            return np.asarray(network.last_of(vectors, batch).cpu().numpy(), np.float32)
        histories = query_histories(queries, self._item_index, self.spec.max_history, self._scale)
        first, which = histories.distinct()
        batch = histories.batch(histories.starts[first], histories.starts[first + 1], backbone.device)
        items = self._item_vectors()[0] if items is None else items
        return np.asarray(network.last_of(items, batch).cpu().numpy(), np.float32)[which]

    def _read(self, prompts: Sequence[str]) -> torch.Tensor:
        backbone, _ = self._fitted()
        was_training = backbone.model.training
        found = embed_texts(backbone, prompts, max_tokens=self.prompt.max_tokens)
        backbone.model.train(was_training)
        return torch.from_numpy(found).to(backbone.device)

    def _know(self, dataset: Dataset, counts: IntArray, scale: tuple[float, float] | None) -> None:
        self._counts, self._scale = counts, scale
        self._item_index = dict(dataset.item_index)
        self._catalogue = catalogue_sha256(dataset.item_ids)

    def _fitted(self) -> tuple[Backbone, TwoTowerNetwork]:
        if self._backbone is None or self._network is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._backbone, self._network

    # -- disk ----------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        backbone, network = self._fitted()
        tensors = {f"towers.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {"pooled": self._pooled, "asked": torch.from_numpy(self._asked)}
        tensors |= {"counts": torch.from_numpy(self._counts), "has_text": torch.from_numpy(self._has_text)}
        tensors["trained"] = network.trained
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, folder / _WEIGHTS)
        # The template's text goes along: a saved template may change or go after the run.
        source = self._renderer.source if self._renderer is not None else self.prompt.source
        write_head(
            folder,
            self.family,
            {
                "spec": self.spec.model_dump(mode="json"),
                "prompt": self.prompt.model_copy(update={"source": source}).model_dump(mode="json"),
                "rating_scale": self._scale,
                "catalogue_sha256": self._catalogue,
                **save_model(folder, backbone, self._base, self._trained),
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> TwoTowerRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        try:
            loaded = cls(TwoTowerSpec.model_validate(head.get("spec")), PromptSpec.model_validate(head.get("prompt")))
            tensors = load_file(folder / _WEIGHTS)
            towers = {n.removeprefix("towers."): t for n, t in tensors.items() if n.startswith("towers.")}
            whitening = Whitening(towers["mean"].numpy(), towers["components"].numpy())
            pooled, counts = tensors["pooled"], tensors["counts"].numpy()
            # Towers that went on know items of the first run's training that their own may not have.
            trained = tensors.get("trained", torch.from_numpy(counts > 0))
            network = TwoTowerNetwork(loaded.spec, whitening, trained)
            network.load_state_dict(towers)
            loaded._has_text, loaded._asked = tensors["has_text"].numpy(), tensors["asked"].numpy()
            scale = head.get("rating_scale")
            loaded._know(dataset, counts, None if scale is None else (float(scale[0]), float(scale[1])))
            loaded._base = {str(key): str(value) for key, value in head["base"].items()}
        except (
            ValidationError, SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError,
        ):  # fmt: skip
            raise ModelError("its weights or its spec cannot be read.", where=str(folder), fix=FIX) from None
        backbone = load_model(folder, head, loaded.spec.model, loaded.spec.tuning, ctx)
        n_items, width = dataset.n_items, len(whitening.mean)
        shapes = (counts.shape, loaded._has_text.shape, trained.shape, tuple(pooled.shape), loaded._asked.shape[1:])
        one = (n_items,)
        if shapes != (one, one, one, (n_items, width), (loaded.spec.width,)) or width != backbone.hidden_size:
            raise ModelError("its weights do not fit the catalogue.", where=str(folder), fix=FIX)
        loaded._trained = trained_names(folder, head, backbone)
        loaded._backbone, loaded._pooled = backbone, pooled.to(backbone.device)
        loaded._network = network.to(backbone.device)
        network.eval()
        network.requires_grad_(False)
        if loaded.spec.user == "prompt":
            counter = TokenCounter.from_folder(backbone.facts.folder)
            loaded._renderer = PromptRenderer(loaded.prompt, dataset, counter)
        return loaded


class _First(First[TwoTowerRecommender]):
    """The recommender that a training goes on from with newer data, and what of it is taken over."""

    kind = TwoTowerRecommender
    called = "two towers have"

    @classmethod
    def fault(cls, model: TwoTowerRecommender, spec: TwoTowerSpec) -> str | None:
        found = super().fault(model, spec)
        if found is None and model._trained and model.spec.tuning != spec.tuning:
            # Its own run tuned nothing, but one before it did.
            return "its language model was tuned in another way"
        return found

    def whitening(self) -> Whitening:
        """How its texts were whitened."""
        _, network = self.model._fitted()
        return Whitening(network.mean.cpu().numpy(), network.components.cpu().numpy())

    def hand_over_model(self, backbone: Backbone, base: Mapping[str, str]) -> None:
        """Copies what was tuned of the language model; ``base``: which model ``backbone`` is.

        Raises:
            ModelError: it is another one than that which was tuned.
        """
        if dict(base) != self.model._base:
            raise ModelError(
                f"the base model {self.model.spec.model!r} is not the one that the run to go on from began with.",
                where="continue_from",
                fix="Put the base model back, or train anew.",
            )
        if self.model._trained:
            found, _ = self.model._fitted()
            backbone.model.load_state_dict(found.model.state_dict())

    def hand_over_towers(self, network: TwoTowerNetwork, dataset: Dataset) -> None:
        """Copies all weights into the network of ``dataset``; items are the same where their ids are.

        Id deltas are those of items that it was trained on; all others begin as they do in a first training.
        """
        _, old = self.model._fitted()
        place = self.places(dataset)
        known = (place >= 0) & old.trained.cpu()[place]
        weights = dict(old.state_dict())
        if network.delta is not None and old.delta is not None:
            weights["delta"] = network.delta.detach().clone()
            weights["delta"][known] = old.delta.detach().cpu()[place[known]]
        network.load_state_dict(weights)
        network.trained |= known
