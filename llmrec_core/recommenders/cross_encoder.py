"""A language model that reads one prompt a candidate and scores it: fine-tuned on click, rating or rank, or on all.

Score = raw output of one head (rank before click before rating unless a task is named): a trained linear layer, or the
model's own answer in words (``models.label_words``), which needs no training. History shared by many candidates is read
once (``training.packing``); equal prompts are scored once. With ``behaviour``, numbers of user and item stand beside
the text (``training.behaviour``), and the score is the sum of both parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file

from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Recommender,
    RenderedPrompt,
    check_candidates,
    check_task,
)
from llmrec_core.errors import InputError, ModelError
from llmrec_core.models.device import resolve_device
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.label_words import AnswerHeads, answer_heads, mask_token
from llmrec_core.models.loading import Backbone, load_backbone, save_backbone
from llmrec_core.models.tuning import (
    apply_tuning,
    load_trainable_state,
    parameter_counts,
    trainable_state,
)
from llmrec_core.prompts import PromptRenderer, TokenCounter, paraphrase_source, template_source
from llmrec_core.recommenders._language_models import base_folder, fingerprint, precision_of
from llmrec_core.recommenders._storage import RANKER_FOLDER, check_head, read_run, write_head
from llmrec_core.saved import catalogue_sha256
from llmrec_core.specs import CrossEncoderSpec, ListwiseSpec, RecommenderSpec, RunSpec, Task
from llmrec_core.training.augmentation import Wordings, augmented, n_rounds
from llmrec_core.training.batches import BatchPlan, sized
from llmrec_core.training.behaviour import Behaviour
from llmrec_core.training.network import Pooling, PromptNetwork, can_share
from llmrec_core.training.packing import TokenisedPrompts, pack, tokenise
from llmrec_core.training.samples import (
    Pool,
    SampleLists,
    like_threshold,
    scale_ratings,
    training_lists,
    unscale_ratings,
    validation_lists,
)
from llmrec_core.training.token_cache import Question, kept_tokens
from llmrec_core.training.trainer import TrainingOutcome, train
from llmrec_core.training.validation import Validation, main_task

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Prompts rendered and scored at once: bounds memory however many are asked for.
_BLOCK = 4096
#: Files of a saved cross-encoder.
_MODEL, _HEADS, _ADAPTER, _BEHAVIOUR = "model", "heads.safetensors", "adapter.safetensors", "behaviour"


class CrossEncoderRecommender(Recommender):
    """See the module. Full tuning saves the whole model; top-layers and LoRA save what was trained, and the base
    model's name and hash.

    Args:
        run: prompt, objectives, training and seed are taken from it.
        spec: model, pooling and tuning.
    """

    family: ClassVar[str] = "cross-encoder"

    def __init__(self, run: RunSpec, spec: CrossEncoderSpec | ListwiseSpec) -> None:
        self.spec: CrossEncoderSpec | ListwiseSpec = spec
        self.run = run
        self.tasks: tuple[Task, ...] = tuple(o.task for o in run.objectives)
        #: A retriever whose best items serve as hard negatives; set by the two-stage pipeline before the fit.
        self.negative_pool: Pool | None = None
        self.outcome: TrainingOutcome | None = None
        self._network: PromptNetwork | None = None
        self._renderer: PromptRenderer | None = None
        self._dataset: Dataset | None = None
        self._base: dict[str, str] = {}
        #: What stands beside the text; None: text alone.
        self.behaviour: Behaviour | None = None
        #: Names of the backbone's trained weights: after the fit everything is frozen.
        self._tuned: frozenset[str] = frozenset()

    @property
    def capabilities(self) -> Capabilities:
        decoder = self._network is not None and self._network.causal
        return Capabilities(tasks=frozenset(self.tasks), text=True, attention=True, decoder=decoder)

    @property
    def n_items(self) -> int:
        return self._fitted()[2].n_items

    @property
    def renderer(self) -> PromptRenderer:
        """Makes the prompts that the model reads."""
        return self._fitted()[1]

    def fit(self, split: Split, ctx: FitContext) -> None:
        dataset = split.dataset
        folder = base_folder(ctx, self.spec.model)
        zero_shot = self.spec.tuning.method == "none"
        self._dataset = dataset
        ctx.emit("stage", stage="tokenizing")
        backbone = self._load_base(folder, ctx, trainable=not zero_shot)
        self._base = fingerprint(self.spec.model, backbone)
        self._renderer = self._make_renderer(dataset, backbone)
        lists = None if zero_shot else training_lists(split, self.run, ctx.seed, self.negative_pool, ctx.continued)
        held_out = validation_lists(split, self.run, ctx.seed)
        if self.spec.behaviour is not None:
            self.behaviour = Behaviour.fit(
                split, self.run, self.spec.behaviour, held_out, None if zero_shot else self.negative_pool, ctx
            )
            held_out = replace(held_out, offsets=self.behaviour.of_lists(held_out))
            lists = None if lists is None else replace(lists, offsets=self.behaviour.of_training(lists))
            self.behaviour.features.forget_folds()
        # Beside behaviour the text begins by saying nothing.
        biases = self._head_biases(lists) if lists is not None and self.behaviour is None else {}
        network = self._network = self._make_network(backbone, ctx, biases)
        if ctx.start_from is not None:
            self._start_from(ctx.start_from, dataset if ctx.continued is None else ctx.continued.dataset, ctx)
        weights = {o.task: o.weight for o in self.run.objectives}
        low, high = dataset.rating_scale or (0.0, 1.0)
        threshold = like_threshold(dataset, self.run)
        validation = Validation(
            self.run.training.validation_metric,
            held_out,
            self._tokenise(held_out, ctx=ctx, what="validation"),
            cast(dict[str, float], weights),
            rating_scale=(low, high),
            liked_at=0.5 if threshold is None else float(scale_ratings([threshold], (low, high))[0]),
        )
        for name, floor in ctx.floors.items():
            ctx.emit("baseline", name=name, metrics=validation.measure_floor(floor))
        if self.behaviour is not None:
            alone = held_out.offsets[validation.task]
            ctx.emit("baseline", name="behaviour alone", metrics=validation.metric_of(alone))
        if lists is None:
            self.outcome = _without_training(network, validation, ctx)
        else:
            lists = augmented(lists, self.run.training, self.run.prompt.max_history, ctx.seed)
            tokens = self._tokenise(lists, self._wordings(dataset, backbone, ctx.seed), ctx)
            plan = self._plan(lists, tokens, ctx.seed)
            counts = parameter_counts(network)
            ctx.emit(
                "log",
                level="info",
                message=f"{len(tokens):,} prompts in {len(lists.queries):,} lists, "
                f"{tokens.n_tokens.mean():.0f} tokens each; {counts.trainable:,} of {counts.total:,} weights are "
                f"trained on {backbone.device} ({precision_of(self.run, backbone.device)[2]}).",
            )
            ctx.emit("stage", stage="training")
            self.outcome = train(network, plan, validation, cast(dict[str, float], weights), self.run.training, ctx)
        if self.behaviour is not None:
            self._join(self.behaviour, held_out, validation, ctx)
        self._freeze(network)

    def _join(self, behaviour: Behaviour, held_out: SampleLists, validation: Validation, ctx: FitContext) -> None:
        """Chooses the weight of the text on validation, and says what each part is worth there."""
        network, _, _ = self._fitted()
        text = validation.outputs(network)
        behaviour.choose_text_weight(held_out, text, held_out.offsets, ctx)
        task, metric = validation.task, validation.metric
        joined = behaviour.join(text[task], held_out.offsets[task], task)
        alone, both = validation.metric_of(held_out.offsets[task]), validation.metric_of(joined)
        if metric in both and metric in alone:
            message = f"validation {metric}: behaviour alone {alone[metric]:.4f}, with the text {both[metric]:.4f}."
            ctx.emit("log", level="info", message=message)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        _, _, dataset = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), dataset.n_items)
        return self._score(queries, items, task or main_task(self.tasks))

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        """Ratings on the dataset's scale, cut to it; None without a rating head."""
        _, _, dataset = self._fitted()
        items = check_candidates(candidates, len(queries), dataset.n_items)
        if "rating" not in self.tasks or dataset.rating_scale is None:
            return None
        return unscale_ratings(self._score(queries, items, "rating"), dataset.rating_scale)

    def _score(self, queries: Sequence[Query], items: IntArray, task: str) -> FloatArray:
        scores = np.full(items.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(items >= 0)
        for start in range(0, len(rows), _BLOCK):
            row, column = rows[start : start + _BLOCK], columns[start : start + _BLOCK]
            chosen = items[row, column]
            pairs = [(queries[r], i) for r, i in zip(row.tolist(), chosen.tolist(), strict=True)]
            text = self._score_pairs(pairs, task)
            if self.behaviour is not None:
                asked = queries[int(row[0]) : int(row[-1]) + 1]
                text = self.behaviour.join(text, self.behaviour.scores(asked, row - row[0], chosen, task), task)
            scores[row, column] = text
        return scores

    def parts(self, query: Query, item_idx: int, task: str | None = None) -> list[tuple[str, float]] | None:
        """What adds up to the score: the text's part, then each feature of behaviour; None without behaviour.

        Raises:
            InputError: an item outside the catalogue, or a task it does not have.
        """
        if self.behaviour is None:
            return None
        _, _, dataset = self._fitted()
        check_task(task, self.capabilities.tasks)
        check_candidates(np.array([item_idx]), 1, dataset.n_items)
        name = task or main_task(self.tasks)
        text = float(self._score_pairs([(query, item_idx)], name)[0])
        return [("text", self.behaviour.text_weight[name] * text), *self.behaviour.parts(query, item_idx, name)]

    def _score_pairs(self, pairs: Sequence[tuple[Query, int]], task: str) -> FloatArray:
        return self.score_prompts(self._fitted()[1].render_many(pairs), task)

    def score_prompts(self, prompts: Sequence[RenderedPrompt], task: str | None = None) -> FloatArray:
        """Scores of ready prompts by their text alone, float32 [n_prompts]; equal prompts are read once.

        Raises:
            InputError: a task it does not have, or a prompt beyond the model's length.
        """
        network, _, _ = self._fitted()
        check_task(task, self.capabilities.tasks)
        name = task or main_task(self.tasks)
        tokens = tokenise(network.backbone, prompts, shared=network.shared)
        pairs = np.stack([tokens.head_of, tokens.tail_of])
        distinct, back = np.unique(pairs, axis=1, return_inverse=True)
        unique = type(tokens)(tokens.heads, tokens.tails, distinct[0], distinct[1])
        return network.predict(unique, (name,))[name][back.ravel()]

    def attention(
        self, query: Query, item_idx: int
    ) -> tuple[RenderedPrompt, npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What the model looks at in one prompt.

        Returns:
            The prompt; for each token its [start, end) in the text, int64 [n_tokens, 2], (0, 0) for special ones;
            attention [n_layers, n_heads, n_tokens, n_tokens], rows sum to 1; the weight of each token in the pooled
            vector that the heads read, [n_tokens], summing to 1.

        Raises:
            InputError: the item is outside the catalogue.
        """
        network, renderer, _ = self._fitted()
        prompt = renderer.render(query, item_idx)
        _, offsets = network.backbone.encode_with_offsets(prompt.text)
        tokens = tokenise(network.backbone, [prompt], shared=network.shared)
        one = np.zeros(1, np.int64)
        packed = pack(tokens, one, [one], network.backbone.pad_id)
        pooling = network.pooling_weights(packed)[0, 0, : len(offsets)].numpy().astype(np.float32)
        return prompt, offsets, network.attention(packed), pooling

    # -- parts -----------------------------------------------------------------------------------------------------

    def _fitted(self) -> tuple[PromptNetwork, PromptRenderer, Dataset]:
        if self._network is None or self._renderer is None or self._dataset is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._network, self._renderer, self._dataset

    def _wordings(self, dataset: Dataset, backbone: Backbone, seed: int) -> Wordings | None:
        """What words training prompts; None: the same as what words all others."""
        sources = [paraphrase_source(text) for text in self.run.training.paraphrases]
        further = [self._make_renderer(dataset, backbone, source) for source in sources]
        return Wordings([self.renderer, *further], seed) if further else None

    def _make_renderer(self, dataset: Dataset, backbone: Backbone, source: str | None = None) -> PromptRenderer:
        """``source``: another template than the prompt's own."""
        source = template_source(self.run.prompt) if source is None else source
        if self._answers_at_mask(backbone):
            mask, _ = mask_token(backbone)
            # An encoder fills in a blank; a decoder just goes on.
            source = source if mask in source else f"{source.rstrip()} {mask}"
        return PromptRenderer(self.run.prompt, dataset, TokenCounter.from_folder(backbone.facts.folder), source)

    def _answers_at_mask(self, backbone: Backbone) -> bool:
        return self.spec.head == "label-words" and backbone.kind == "encoder"

    def _tokenise(
        self,
        lists: SampleLists,
        wordings: Wordings | None = None,
        ctx: FitContext | None = None,
        what: str = "training",
    ) -> TokenisedPrompts:
        """The prompts of all samples, list by list; kept, or read, where ``ctx`` says where."""
        network, renderer, _ = self._fitted()
        words = wordings or renderer

        def make() -> TokenisedPrompts:
            return tokenise(network.backbone, words.render_many(lists.pairs()), shared=network.shared)

        question = Question("pairs", words, lists.queries, lists.list_of, lists.items, network.shared)
        return kept_tokens(question, make, network.backbone, ctx, what)

    def _plan(self, lists: SampleLists, tokens: TokenisedPrompts, seed: int) -> BatchPlan:
        network, _, _ = self._fitted()
        training = sized(self.run, network)
        return BatchPlan(lists, tokens, training, seed, network.backbone.pad_id, n_rounds(training))

    def _load_base(self, folder: Path, ctx: FitContext, *, trainable: bool) -> Backbone:
        device = resolve_device(ctx.device)
        backbone = load_backbone(
            folder,
            device=device,
            dtype=precision_of(self.run, device)[0],
            dropout=self.run.training.dropout if trainable else 0.0,
            trainable=trainable,
        )
        if self.run.prompt.max_tokens > backbone.max_tokens:
            raise InputError(
                f"max_tokens is {self.run.prompt.max_tokens} and the model reads {backbone.max_tokens}.",
                where="prompt.max_tokens",
                fix=f"Set it to at most {backbone.max_tokens}.",
            )
        return backbone

    def _make_network(
        self,
        backbone: Backbone,
        ctx: FitContext,
        biases: dict[Task, float],
        *,
        tuned: bool = False,
        filled: bool = True,
    ) -> PromptNetwork:
        """``tuned``: the backbone's weights are the trained ones; ``filled`` False: the heads' are loaded later."""
        if not tuned:
            apply_tuning(backbone.model, self.spec.tuning, seed=ctx.seed)
        pooling: Pooling = backbone.default_pooling if self.spec.pooling == "auto" else self.spec.pooling
        heads: TaskHeads | AnswerHeads
        mask_id = -1
        shared = self.spec.share_history
        if self.spec.head == "label-words":
            yes, no = self.spec.label_words
            scale = self._dataset.rating_scale if self._dataset is not None else None
            heads = answer_heads(backbone, self.tasks, (yes, no), scale, filled=filled)
            if self._answers_at_mask(backbone):
                pooling, mask_id = "mask", mask_token(backbone)[1]
                # Cut prompts are new to an encoder (its history no longer sees the candidate): it must get used to it.
                shared &= self.spec.tuning.method != "none"
        else:
            heads = TaskHeads(
                backbone.hidden_size, self.tasks, dropout=self.run.training.dropout, seed=ctx.seed, biases=biases
            )
        return PromptNetwork(
            backbone,
            heads,
            pooling=pooling,
            shared=shared and can_share(backbone, pooling),
            autocast=precision_of(self.run, backbone.device)[1],
            mask_id=mask_id,
        )

    def _start_from(self, folder: Path, dataset: Dataset, ctx: FitContext) -> None:
        """Takes over the weights of a finished run: the language model's, and those of heads that both have.

        Args:
            dataset: what that run was fitted on. Nothing that is taken over counts users or items.

        Raises:
            ModelError: it holds no model that reads prompts, or one of another kind or tuning than this one.
        """
        network, _, _ = self._fitted()
        inner = folder / RANKER_FOLDER
        found = type(self).load(inner if inner.is_dir() else folder, dataset, ctx)
        other, _, _ = found._fitted()
        same = (found.spec.model, found.spec.tuning, found.spec.head) == (
            self.spec.model, self.spec.tuning, self.spec.head,
        )  # fmt: skip
        if not same:
            raise ModelError(
                "the run to go on from has another model, head or way of tuning.",
                where="continue_from",
                fix="Use its recommender.model, head and tuning here too.",
            )
        network.encoder.load_state_dict(other.encoder.state_dict())
        heads, own = other.heads.state_dict(), network.heads.state_dict()
        shared = {name: tensor for name, tensor in heads.items() if name in own and own[name].shape == tensor.shape}
        network.heads.load_state_dict(own | shared)
        both = [task for task in self.tasks if task in found.tasks]
        ctx.emit(
            "log",
            level="info",
            message="The training goes on from the weights of a finished run; heads taken over: "
            f"{', '.join(both) or 'none'}.",
        )

    def _head_biases(self, lists: SampleLists) -> dict[Task, float]:
        """Heads start at what they would say without reading: the click rate, the mean rating."""
        biases: dict[Task, float] = {}
        if "click" in lists.labels:
            rate = float(np.clip(np.nanmean(lists.labels["click"]), 0.01, 0.99))
            biases["click"] = float(np.log(rate / (1 - rate)))
        if "rating" in lists.labels and not np.isnan(lists.labels["rating"]).all():
            biases["rating"] = float(np.nanmean(lists.labels["rating"]))
        return biases

    def _freeze(self, network: PromptNetwork) -> None:
        self._tuned = frozenset(trainable_state(network.encoder)) if self.spec.tuning.method != "full" else frozenset()
        network.requires_grad_(False)
        network.eval()

    @staticmethod
    def _as_recommender(spec: CrossEncoderSpec | ListwiseSpec) -> RecommenderSpec:
        """What stands in the run of a saved folder."""
        assert isinstance(spec, CrossEncoderSpec)
        return spec

    @staticmethod
    def _part_of(run: RunSpec) -> CrossEncoderSpec | ListwiseSpec | None:
        """Its own spec in the run of a saved folder; None: the folder is another family's."""
        return run.recommender if isinstance(run.recommender, CrossEncoderSpec) else None

    # -- disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        network, renderer, dataset = self._fitted()
        heads = {name: tensor.detach().cpu().contiguous() for name, tensor in network.heads.state_dict().items()}
        save_file(heads, folder / _HEADS)
        whole = self.spec.tuning.method == "full"
        if whole:
            (folder / _MODEL).mkdir(exist_ok=True)
            save_backbone(network.backbone, folder / _MODEL)
        else:
            state = network.encoder.state_dict()
            save_file({n: state[n].detach().cpu().contiguous() for n in sorted(self._tuned)}, folder / _ADAPTER)
        if self.behaviour is not None:
            (folder / _BEHAVIOUR).mkdir()
            self.behaviour.save(folder / _BEHAVIOUR)
        # The template's text goes along: a saved template may change or go after the run.
        run = self.run.model_copy(
            update={"prompt": self.run.prompt.model_copy(update={"source": renderer.source})}
            | {"recommender": self._as_recommender(self.spec)}
        )
        write_head(
            folder,
            self.family,
            {
                "run": run.model_dump(mode="json"),
                "base": self._base,
                "whole_model": whole,
                "catalogue_sha256": catalogue_sha256(dataset.item_ids),
                "dataset_fingerprint": dataset.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> CrossEncoderRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        run = read_run(head, folder)
        part = cls._part_of(run)
        if part is None:
            raise ModelError("its spec is of another family.", where=str(folder), fix="Run the training again.")
        loaded = cls(run, part)
        base = folder / _MODEL if head.get("whole_model") else base_folder(ctx, part.model)
        backbone = loaded._load_base(base, ctx, trainable=False)
        loaded._base = dict(head.get("base") or {})
        loaded._dataset = dataset
        network = loaded._make_network(backbone, ctx, {}, tuned=bool(head.get("whole_model")), filled=False)
        if not head.get("whole_model"):
            if fingerprint(part.model, backbone) != loaded._base:
                raise ModelError(
                    f"the base model {part.model!r} is not the one it was trained on.",
                    where=str(folder),
                    fix="Put the base model back, or run the training again.",
                )
            load_trainable_state(backbone.model, load_file(folder / _ADAPTER))
        try:
            network.heads.load_state_dict(load_file(folder / _HEADS))
        except RuntimeError as error:
            raise ModelError(f"the heads do not fit: {error}.", where=str(folder), fix="Train it again.") from None
        if part.behaviour is not None:
            loaded.behaviour = Behaviour.load(folder / _BEHAVIOUR, part.behaviour, loaded.tasks, dataset, ctx)
        loaded._freeze(network)
        loaded._network = network
        loaded._renderer = loaded._make_renderer(dataset, backbone)
        return loaded


def _without_training(network: PromptNetwork, validation: Validation, ctx: FitContext) -> TrainingOutcome:
    """Zero-shot: the validation metric of the model as it came, and nothing else."""
    metrics = validation.measure(network)
    ctx.emit("log", level="info", message="Zero-shot: no weight is trained, the model answers as it came.")
    ctx.emit("validation", step=0, metrics=metrics)
    return TrainingOutcome([], 0, None, metrics.get(validation.metric), None)
