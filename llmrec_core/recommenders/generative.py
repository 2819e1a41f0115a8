"""The generative family: a decoder writes the next item's title after the history, and can only name real items.

Score of an item = log-probability that its title is written, exact and normalised over what the catalogue allows (see
``models.generation``); items of equal title share its probability by how often each was chosen in training. So the
scores of all items are the log of a distribution over the catalogue. Rankings are found by beam search over the trie
of titles. It also writes a short text about an item, held to the item's own fields (see ``recommenders._texts``).

What is saved is what was trained; the model below it must be at hand, since its head is used as it came. A compressed
child is saved whole, and writes with the words it reads with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec_core.contracts import (
    TITLE,
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Ranking,
    Recommender,
    check_candidates,
    check_task,
)
from llmrec_core.errors import InputError, ModelError, SpecError
from llmrec_core.models.device import resolve_device
from llmrec_core.models.generation import Found, TitleDecoder
from llmrec_core.models.label_words import LanguageHead, language_head
from llmrec_core.models.loading import Backbone, load_backbone, save_backbone
from llmrec_core.models.trie import Trie
from llmrec_core.models.tuning import (
    adapters_off,
    apply_tuning,
    has_adapters,
    load_trainable_state,
    parameter_counts,
)
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.recommenders._language_models import base_folder, fingerprint, precision_of
from llmrec_core.recommenders._storage import RANKER_FOLDER, check_head, read_run, write_head
from llmrec_core.recommenders._texts import TextWriter, WrittenText, chat_template, texts_to_learn
from llmrec_core.recommenders._titles import TitlePrompts, check_room
from llmrec_core.saved import FIX, catalogue_sha256
from llmrec_core.specs import GenerativeSpec, ObjectiveSpec, RunSpec, TuningSpec
from llmrec_core.training.generative import TASK, TitleQuestions, WritingNetwork, WritingPlan, WritingSamples
from llmrec_core.training.network import PromptNetwork, can_share
from llmrec_core.training.packing import Ragged, TokenisedPrompts
from llmrec_core.training.samples import training_lists, validation_lists
from llmrec_core.training.token_cache import Question, kept_tokens
from llmrec_core.training.trainer import TrainingOutcome, train
from llmrec_core.training.validation import Validation

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: More branches are not read only to know what the model thinks of titles by themselves.
_MOST_PLACES = 200_000
_TRAINED, _SHARES, _MODEL = "trained.safetensors", "shares.safetensors", "model"


@dataclass(frozen=True)
class _Parts:
    """What a fitted one is made of; ``log_share``: each item's share of its title's probability, [n_items]."""

    dataset: Dataset
    backbone: Backbone
    prompts: TitlePrompts
    network: WritingNetwork
    log_share: npt.NDArray[np.float64]
    chat: str

    @property
    def decoder(self) -> TitleDecoder:
        return self.network.decoder

    def search(self, query: Query, n_wanted: int, width: int, n_below: IntArray) -> Found:
        """As :meth:`TitleDecoder.search`, behind a query; in parts where memory runs out."""
        (head,) = self.prompts.heads([query])
        return self.network.in_parts(lambda: self.decoder.search(self.network.read(head), n_wanted, width, n_below))

    def kept_heads(self, queries: Sequence[Query], ctx: FitContext, what: str) -> list[list[int]]:
        """As :meth:`TitlePrompts.heads`, or what that gave when a run before asked for the same.

        Args:
            what: they are read for, in the log.
        """
        none = np.empty(0, np.int64)
        question = Question("histories", self.prompts, queries, none, none, shared=False)

        def make() -> TokenisedPrompts:
            distinct: dict[tuple[int, ...], int] = {}
            which = [distinct.setdefault(tuple(head), len(distinct)) for head in self.prompts.heads(queries)]
            # Kept as tails of an empty head: what is kept has no empty tails.
            tails, head_of = Ragged.of(list(distinct)), np.zeros(len(which), np.int64)
            return TokenisedPrompts(Ragged.of([()]), tails, head_of, np.array(which, np.int64))

        tokens = kept_tokens(question, make, self.backbone, ctx, what)
        return [tokens.tails[tail].tolist() for tail in tokens.tail_of.tolist()]


class GenerativeRecommender(Recommender):
    """See the module.

    Args:
        run: prompt, training and seed are taken from it; objectives are not: what is learned is the next title.
        spec: model, trie, texts and tuning.
    """

    family: ClassVar[str] = "generative"

    def __init__(self, run: RunSpec, spec: GenerativeSpec) -> None:
        self.run = run
        self.spec: GenerativeSpec = spec
        self.outcome: TrainingOutcome | None = None
        self._parts: _Parts | None = None
        self._base: dict[str, str] = {}
        self._tuned: frozenset[str] = frozenset()
        #: Whether the model is this recommender's own, with its table of words for a head.
        self._whole = False
        self._vocabulary: LanguageHead | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), text=True, decoder=True)

    @property
    def n_items(self) -> int:
        return self._fitted().dataset.n_items

    @property
    def renderer(self) -> TitlePrompts:
        """Shows what is read and written."""
        return self._fitted().prompts

    def fit(self, split: Split, ctx: FitContext) -> None:
        folder = base_folder(ctx, self.spec.model)
        ctx.emit("stage", stage="tokenizing")
        backbone = self._load_base(folder, ctx, trainable=self.spec.tuning.method != "none")
        self._base = fingerprint(self.spec.model, backbone)
        self._tune(backbone, ctx)
        parts = self._parts = self._assemble(split.dataset, backbone, folder, counts=split.train_item_counts)
        if self.spec.prior == "popularity":
            self._calibrate(parts, split, ctx)
        if ctx.start_from is not None:
            # Behind the calibration: what was trained was trained beside that of the model as it came.
            self._start_from(ctx.start_from, split.dataset if ctx.continued is None else ctx.continued.dataset, ctx)
        plan = self._plan(split, ctx, parts)
        validation = self.validation(split, ctx)
        for name, floor in ctx.floors.items():
            ctx.emit("baseline", name=name, metrics=validation.measure_floor(floor))
        ctx.emit("stage", stage="training")
        if self.spec.tuning.method == "none":
            ctx.emit("validation", step=0, metrics=validation.measure(cast(PromptNetwork, parts.network)))
        else:
            training = self.run.training
            self.outcome = train(cast(PromptNetwork, parts.network), plan, validation, {TASK: 1.0}, training, ctx)
        self._freeze(backbone)

    def _calibrate(self, parts: _Parts, split: Split, ctx: FitContext) -> None:
        """Puts popularity in the place of what the model thinks of each title before it has read a history."""
        trie = parts.decoder.trie
        n_places = int((trie.n_children > 1).sum())
        if n_places > _MOST_PLACES:
            ctx.emit(
                "log",
                level="warning",
                message=f"{n_places:,} branches of titles are too many to read once more: the model's own opinion of "
                "titles is left in.",
            )
            return
        parts.backbone.model.eval()
        # One more than it was, so that an item which nobody chose can still be meant.
        weight = np.asarray(split.train_item_counts, np.float64) + 1.0
        (head,) = parts.prompts.heads([Query("")])
        parts.network.in_parts(lambda: parts.decoder.calibrate(parts.network.read(head), weight))

    def _start_from(self, folder: Path, dataset: Dataset, ctx: FitContext) -> None:
        """Takes over the language model's trained weights of a finished run; titles and their shares are today's.

        Args:
            dataset: what that run was fitted on.

        Raises:
            ModelError: it holds no model that writes titles, or one of another kind or tuning than this one.
        """
        inner = folder / RANKER_FOLDER
        found = type(self).load(inner if inner.is_dir() else folder, dataset, ctx)
        if (found.spec.model, found.spec.tuning) != (self.spec.model, self.spec.tuning):
            raise ModelError(
                "the run to go on from has another model or way of tuning.",
                where="continue_from",
                fix="Use its recommender.model and tuning here too.",
            )
        self._fitted().backbone.model.load_state_dict(found.backbone.model.state_dict())
        message = "The training goes on from the weights of a finished run."
        ctx.emit("log", level="info", message=message)

    def _plan(self, split: Split, ctx: FitContext, parts: _Parts) -> WritingPlan:
        """Training rows as histories with the title that came next, and texts to learn from.

        What goes on with newer data learns new rows, mixed with those it learned before.
        """
        once = self.run.training.model_copy(update={"negatives_per_positive": 0})
        click = self.run.model_copy(update={"objectives": (ObjectiveSpec(task="click"),), "training": once})
        lists = training_lists(split, click, ctx.seed, continued=ctx.continued)
        heads = parts.kept_heads(lists.queries, ctx, "training")
        # Items that do not exist yet while training are no continuations there: nothing is learned against them.
        offered = split.offered("train")
        trie = Trie.of([parts.prompts.titles[item] for item in offered.tolist()], parts.prompts.end)
        leaf = np.full(split.dataset.n_items, -1, np.int64)
        leaf[offered] = trie.leaf_of
        tails, leaves = [], []
        for item in lists.items.tolist():
            if self.spec.loss == "words":
                tails.append([*parts.prompts.titles[item], parts.prompts.end])
                leaves.append(-1)
                continue
            way = trie.path(int(leaf[item]))
            # What follows the last place where something is decided is not read.
            while way and trie.n_children[way[-1]] < 2:
                way.pop()
            tails.append(trie.token[way].tolist())
            leaves.append(int(leaf[item]))
        n_titles = len(tails)
        if self.spec.text_field is not None:
            writer = TextWriter(parts.dataset, parts.prompts, parts.backbone, parts.chat, self.spec)
            for head, tail in texts_to_learn(split, writer, n_titles, self.spec, ctx):
                heads.append(head)
                tails.append(tail)
                leaves.append(-1)
        if -1 in leaves:
            parts.network.learn_words(self._words())
        samples = WritingSamples.of(heads, tails, leaves)
        twins = parts.decoder.trie.leaf_of[offered]
        plan = WritingPlan(samples, trie, parts.decoder, twins, self.run.training, ctx.seed, parts.backbone.pad_id)
        counts = parameter_counts(parts.backbone.model)
        texts = f" and {len(tails) - n_titles:,} texts" if len(tails) > n_titles else ""
        ctx.emit(
            "log",
            level="info",
            message=f"{n_titles:,} titles to write{texts}; {parts.decoder.trie.n_nodes:,} places in the trie of "
            f"{split.dataset.n_items:,} titles; {counts.trainable:,} of {counts.total:,} weights are trained on "
            f"{parts.backbone.device} ({precision_of(self.run, parts.backbone.device)[2]}).",
        )
        return plan

    def validation(self, split: Split, ctx: FitContext) -> Validation:
        """Held-out next items among drawn ones, as other families are watched."""
        parts = self._fitted()
        ranking = self.run.model_copy(update={"objectives": (ObjectiveSpec(task="rank"),)})
        lists = validation_lists(split, ranking, ctx.seed)
        leaves = parts.decoder.trie.leaf_of[lists.items]
        plus = parts.log_share[lists.items].astype(np.float32)
        heads = parts.kept_heads(lists.queries, ctx, "validation")
        questions = TitleQuestions(heads, lists.list_of, leaves, plus)
        return Validation(self.run.training.validation_metric, lists, cast(Any, questions), {TASK: 1.0})

    # -- asking ----------------------------------------------------------------------------------------------------

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        """Log-probability of each candidate, all titles of one history read as one tree, many of them at once.

        A query that hides titles (explanations do) knows nothing of any candidate: all are equally probable.
        """
        parts = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), parts.dataset.n_items)
        scores = np.full(items.shape, -np.inf, np.float32)
        hidden = np.array([TITLE in query.hidden_fields for query in queries], bool)
        scores[hidden[:, None] & (items >= 0)] = -np.log(parts.dataset.n_items)
        rows, columns = np.nonzero((items >= 0) & ~hidden[:, None])
        asked, head_of = np.unique(rows, return_inverse=True)
        heads = parts.prompts.heads([queries[row] for row in asked.tolist()])
        wanted = items[rows, columns]
        found = parts.network.log_probs(heads, head_of, parts.decoder.trie.leaf_of[wanted])
        scores[rows, columns] = found + parts.log_share[wanted]
        return scores

    def top_k(self, queries: Sequence[Query], k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        """The k best items by beam search; excluded ones keep their probability and are not shown."""
        parts = self._fitted()
        trie = parts.decoder.trie
        rankings = []
        for row, query in enumerate(queries):
            allowed = np.ones(parts.dataset.n_items, bool)
            if exclude is not None:
                allowed[exclude[row]] = False
            found = parts.search(query, min(k, int(allowed.sum())), self.spec.beams, trie.count_below(allowed))
            items: list[int] = []
            scores: list[float] = []
            for leaf, value in zip(found.leaves.tolist(), found.log_probs.tolist(), strict=True):
                for item in trie.titles_at(leaf).tolist():
                    if allowed[item]:
                        items.append(item)
                        scores.append(value + float(parts.log_share[item]))
            shown = np.array(scores, np.float32)
            named = np.array(items, np.int64)
            order = np.lexsort((named, -shown))[:k]
            rankings.append(Ranking(named[order], shown[order]))
        return rankings

    def write(self, query: Query, item_idx: int, seed: int = 0) -> WrittenText:
        """A short text about an item for a user; see ``recommenders._texts``.

        Raises:
            InputError: an item outside the catalogue.
        """
        parts = self._fitted()
        if not 0 <= item_idx < parts.dataset.n_items:
            raise InputError(f"item number {item_idx} is outside the catalogue.", where="item")
        writer = TextWriter(parts.dataset, parts.prompts, parts.backbone, parts.chat, self.spec)
        # Adapters that learned titles alone make sentences worse.
        own = adapters_off(parts.backbone.model) if self.spec.text_field is None else nullcontext()
        with own:
            return parts.network.in_parts(lambda: writer.write(query, item_idx, parts.network, self._words(), seed))

    # -- parts -----------------------------------------------------------------------------------------------------

    def _fitted(self) -> _Parts:
        if self._parts is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._parts

    def _words(self) -> LanguageHead:
        """The head over the whole vocabulary, made when it is first needed."""
        if self._vocabulary is None:
            backbone = self._fitted().backbone
            table = cast(torch.nn.Embedding, backbone.model.get_input_embeddings())
            self._vocabulary = language_head(self._spelling(backbone), range(len(table.weight)))
        return self._vocabulary

    def _spelling(self, backbone: Backbone) -> Backbone:
        """Where the head is taken from: of a model of its own the table of words, else the files it came in."""
        return replace(backbone, facts=replace(backbone.facts, weight_files=())) if self._whole else backbone

    def _load_base(self, folder: Path, ctx: FitContext, *, trainable: bool) -> Backbone:
        device = resolve_device(ctx.device)
        dropout = self.run.training.dropout if trainable else 0.0
        backbone = load_backbone(
            folder, device=device, dtype=precision_of(self.run, device)[0], dropout=dropout, trainable=trainable
        )
        if backbone.kind != "decoder":
            raise SpecError(
                f"{self.spec.model!r} is an encoder, which cannot write.",
                where="recommender.model",
                fix="Choose a decoder, such as smollm2-135m.",
            )
        check_room(self.run.prompt.max_tokens, self.spec.max_title_tokens + 1, backbone)
        return backbone

    def _tune(self, backbone: Backbone, ctx: FitContext) -> None:
        # The head is tied to the word embeddings in most small models: what is written is spelled as it is read.
        tuning = self.spec.tuning.model_copy(update={"freeze_embeddings": True})
        apply_tuning(backbone.model, tuning, seed=ctx.seed)

    def _assemble(
        self,
        dataset: Dataset,
        backbone: Backbone,
        folder: Path,
        log_share: npt.NDArray[np.float64] | None = None,
        counts: IntArray | None = None,
    ) -> _Parts:
        """``log_share``, or the ``counts`` that it is made of: how often each item was chosen in training."""
        renderer = PromptRenderer(self.run.prompt, dataset, TokenCounter.from_folder(folder))
        prompts = TitlePrompts(renderer, dataset, backbone, self.spec.max_title_tokens)
        trie = Trie.of(prompts.titles, prompts.end)
        if log_share is None:
            # One more than it was, so that an item which nobody chose can still be meant.
            weight = np.asarray(counts, np.float64) + 1.0
            log_share = np.log(weight / np.bincount(trie.leaf_of, weight, minlength=trie.n_nodes)[trie.leaf_of])
        network = WritingNetwork(
            backbone,
            TitleDecoder(self._spelling(backbone), trie),
            packed=can_share(backbone, "last"),
            autocast=precision_of(self.run, backbone.device)[1],
        )
        return _Parts(dataset, backbone, prompts, network, log_share, chat_template(folder))

    def _freeze(self, backbone: Backbone) -> None:
        self._tuned = frozenset(name for name, p in backbone.model.named_parameters() if p.requires_grad)
        backbone.model.requires_grad_(False)
        backbone.model.eval()

    # -- around another model --------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """The tuned model."""
        return self._fitted().backbone

    @property
    def writes_as_it_came(self) -> bool:
        """Whether texts are written by the model without what it learned of titles."""
        return self.spec.text_field is None and has_adapters(self.backbone.model)

    def around(self, backbone: Backbone) -> GenerativeRecommender:
        """The same recommender around another model of the same tokens, which it saves whole.

        Raises:
            InputError: this architecture writes with other words than it reads with, which the model does not hold.
        """
        parts = self._fitted()
        if not backbone.facts.config.get("tie_word_embeddings", backbone.model.config.tie_word_embeddings):
            raise InputError(
                f"{self.spec.model!r} writes with a table of words of its own, which compression leaves behind.",
                where="parent_run",
                fix="Train on a model that writes with the words it reads with, such as smollm2-135m.",
            )
        child = copy.copy(self)
        # What it was trained like is over: no adapter is left, and all its weights are its own.
        child.spec = self.spec.model_copy(update={"tuning": TuningSpec(method="full")})
        child._whole, child._vocabulary = True, None
        child._freeze(backbone)
        made = child._assemble(parts.dataset, backbone, parts.backbone.facts.folder, parts.log_share)
        made.decoder.bias = parts.decoder.bias.clone()
        child._parts = replace(made, chat=parts.chat)
        return child

    # -- disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        parts = self._fitted()
        if self._whole:
            (folder / _MODEL).mkdir()
            save_backbone(parts.backbone, folder / _MODEL)
        elif self._tuned:
            state = parts.backbone.model.state_dict()
            save_file({n: state[n].detach().cpu().contiguous() for n in sorted(self._tuned)}, folder / _TRAINED)
        save_file({"log_share": torch.from_numpy(parts.log_share), "bias": parts.decoder.bias.cpu()}, folder / _SHARES)
        # The template's text goes along: a saved template may change or go after the run.
        prompt = self.run.prompt.model_copy(update={"source": parts.prompts.renderer.source})
        run = self.run.model_copy(update={"prompt": prompt, "recommender": self.spec})
        write_head(
            folder,
            self.family,
            {
                "run": run.model_dump(mode="json"),
                "base": self._base,
                "whole_model": self._whole,
                "catalogue_sha256": catalogue_sha256(parts.dataset.item_ids),
                "dataset_fingerprint": parts.dataset.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> GenerativeRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        run = read_run(head, folder)
        try:
            shares = load_file(folder / _SHARES)
            log_share, bias = shares["log_share"].numpy(), shares["bias"]
        except (SafetensorError, OSError, KeyError):
            raise ModelError("its shares cannot be read.", where=str(folder), fix=FIX) from None
        if not isinstance(run.recommender, GenerativeSpec) or log_share.shape != (dataset.n_items,):
            raise ModelError("its spec or its shares do not fit.", where=str(folder), fix=FIX)
        loaded = cls(run, run.recommender)
        loaded._whole = bool(head.get("whole_model"))
        base = folder / _MODEL if loaded._whole else base_folder(ctx, run.recommender.model)
        backbone = loaded._load_base(base, ctx, trainable=False)
        if not loaded._whole:
            loaded._base = fingerprint(run.recommender.model, backbone)
            if loaded._base != head.get("base"):
                raise ModelError(
                    f"the base model {run.recommender.model!r} is not the one it was trained on.",
                    where=str(folder),
                    fix="Put the base model back, or run the training again.",
                )
            loaded._tune(backbone, ctx)
            if (folder / _TRAINED).is_file():
                load_trainable_state(backbone.model, load_file(folder / _TRAINED))
        loaded._freeze(backbone)
        # Shares are those of the training data, which need not be at hand.
        parts = loaded._assemble(dataset, backbone, base, log_share)
        if bias.shape != parts.decoder.bias.shape:
            raise ModelError("its titles are not those of this dataset.", where=str(folder), fix=FIX)
        parts.decoder.bias = bias.to(backbone.device)
        loaded._parts = parts
        return loaded
