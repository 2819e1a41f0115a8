"""A language model that chooses from a lettered list: all candidates in one prompt, the letters' logits as scores.

The score of a candidate is the log of its letter's share among the letters of its list, averaged over several orders
of the list, each second one backwards, since models prefer some letters whatever stands there. So a score is *relative
to its list*. That a recommender's score shall depend on query and item alone, the list is a fixed one: the retriever's
best items for the query. Candidates among them are read together, in that list; any other candidate is read in the
place of the list's last item. Without a retriever (``candidates`` is None) the list is what is asked for.

Lists longer than the window are read as RankGPT reads them (Sun et al., EMNLP 2023): the last ``window`` places first,
put into the order that the model gives them, then a window that begins half a window higher, and so on to the top.
The order that results is the ranking. An item's score is its log share in the last window that held it, lowered where
needed to ``MARGIN`` below the item above it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import (
    Capabilities,
    FloatArray,
    IntArray,
    Query,
    RenderedPrompt,
    check_candidates,
    check_task,
)
from llmrec_core.errors import SpecError
from llmrec_core.models.label_words import letter_heads
from llmrec_core.models.tuning import apply_tuning
from llmrec_core.prompts import LETTERS, CandidateList, PromptRenderer, TokenCounter
from llmrec_core.recommenders._language_models import precision_of
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.specs import CrossEncoderSpec, ListwiseSpec, PipelineSpec, RecommenderSpec, RunSpec, Task
from llmrec_core.training.augmentation import Wordings, n_rounds
from llmrec_core.training.batches import BatchPlan, sized
from llmrec_core.training.listwise import ListBatchPlan, ListNetwork, ListPrompts
from llmrec_core.training.network import PromptNetwork, can_share
from llmrec_core.training.packing import TokenisedPrompts, tokenise
from llmrec_core.training.samples import Pool, SampleLists
from llmrec_core.training.token_cache import Question, kept_tokens

if TYPE_CHECKING:
    from llmrec_core.contracts import FitContext
    from llmrec_core.data import Dataset
    from llmrec_core.models.loading import Backbone

#: Least distance of two neighbours in the order that windows give, in nats.
MARGIN = 0.01
#: Prompts rendered and read at once.
_BLOCK = 512


class ListRenderer(PromptRenderer):
    """Shows one candidate in the prompt of its list; other candidates are text around it, not players.

    Args:
        shown: (query, item_idx) -> the list that the candidate is read in.
    """

    def __init__(
        self, run: RunSpec, dataset: Dataset, counter: TokenCounter, shown: Callable[[Query, int], CandidateList]
    ) -> None:
        super().__init__(run.prompt, dataset, counter)
        self._shown = shown
        if not self.reads_lists:
            raise SpecError(
                "the template shows one candidate, and a listwise ranker reads a list of them.",
                where="prompt.template",
                fix="Use the starter 'choice', or write out each of `candidates` with its letter.",
            )

    def render_many(self, pairs: Sequence[tuple[Query, int]]) -> list[RenderedPrompt]:
        return self.render_lists([self._shown(query, int(item)) for query, item in pairs])


class ListwiseRecommender(CrossEncoderRecommender):
    """See the module. It learns from lists with one right item, in a random order, by softmax over their letters.

    Args:
        run: prompt, training and seed are taken from it; its only objective is to rank.
        spec: model, window, number of orders and tuning.
    """

    family: ClassVar[str] = "listwise"

    def __init__(self, run: RunSpec, spec: ListwiseSpec) -> None:
        super().__init__(run, spec)
        self.spec: ListwiseSpec = spec
        self.tasks: tuple[Task, ...] = ("rank",)
        #: (queries, n) -> the list that each query's candidates are read in, best first; set by the pipeline.
        self.candidates: Pool | None = None
        #: Length of that list.
        self.n_candidates = spec.window

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(self.tasks), text=True, attention=True, decoder=True)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        """Log shares within lists, always below or at 0; see the module for which list."""
        _, _, dataset = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), dataset.n_items)
        scores = np.full(items.shape, -np.inf, np.float32)
        lists: dict[tuple[int, tuple[int, ...], int | None], int] = {}
        wanted: list[tuple[int, int, int, int]] = []
        for row, near in enumerate(self._near(queries, items)):
            for column in np.flatnonzero(items[row] >= 0).tolist():
                listed, place = _with(near, int(items[row, column]), self._length(near))
                # Hidden fields are those of one candidate: it is then read in a list of its own.
                asked = place if queries[row].hidden_fields else None
                number = lists.setdefault((row, listed, asked), len(lists))
                wanted.append((row, column, number, place))
        found = self._read([(queries[row], listed, asked) for row, listed, asked in lists])
        for row, column, number, place in wanted:
            scores[row, column] = found[number][place]
        return scores

    def attention(
        self, query: Query, item_idx: int
    ) -> tuple[RenderedPrompt, npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """As of a cross-encoder, in the first of the orders that a list is read in."""
        return super().attention(query, item_idx)

    # -- lists -----------------------------------------------------------------------------------------------------

    def _near(self, queries: Sequence[Query], items: IntArray) -> list[tuple[int, ...]]:
        """The list of each query: the retriever's, or what is asked for."""
        if self.candidates is None:
            return [tuple(np.unique(row[row >= 0]).tolist()) for row in items]
        return [tuple(found.tolist()) for found in self.candidates(queries, self.n_candidates)]

    def _length(self, near: tuple[int, ...]) -> int:
        return self.n_candidates if self.candidates is not None else max(1, len(near))

    def _shown(self, query: Query, item_idx: int) -> CandidateList:
        """The list in which one candidate is shown: as much of its list as one window holds, in the first order."""
        near = self._near([query], np.array([[item_idx]], np.int64))[0]
        listed, place = _with(near, item_idx, self._length(near))
        if len(listed) > self.spec.window:
            listed, place = _with(listed[: self.spec.window], item_idx, self.spec.window)
        order = self._orders(query, len(listed))[0]
        return query, [listed[i] for i in order], int(np.flatnonzero(order == place)[0])

    def _orders(self, query: Query, n: int) -> list[IntArray]:
        """The orders in which a list of ``n`` is read: places by letter. The same for the same user, seed and n."""
        orders: list[IntArray] = []
        for number in range(self.spec.n_permutations):
            if number % 2:
                orders.append(orders[-1][::-1])
            else:
                rng = np.random.default_rng([self.run.seed, zlib.crc32(query.user_id.encode()), number])
                orders.append(rng.permutation(n))
        return orders

    def _read(self, lists: Sequence[CandidateList]) -> list[npt.NDArray[np.float64]]:
        """The score of each item of each list, in the order of the list."""
        orders = [np.arange(len(items)) for _, items, _ in lists]
        scores = [np.zeros(len(items)) for _, items, _ in lists]
        starts = [_window_starts(len(items), self.spec.window) for _, items, _ in lists]
        for step in range(max(map(len, starts), default=0)):
            now = [number for number in range(len(lists)) if step < len(starts[number])]
            places = [orders[n][starts[n][step] : starts[n][step] + self.spec.window] for n in now]
            windows: list[CandidateList] = []
            for number, held in zip(now, places, strict=True):
                query, items, asked = lists[number]
                inside = np.flatnonzero(held == asked) if asked is not None else np.empty(0, np.int64)
                # Of a list in which nothing is asked about here, no field is hidden.
                focus = None if asked is None else (int(inside[0]) if len(inside) else len(LETTERS))
                windows.append((query, [items[i] for i in held], focus))
            for number, held, values in zip(now, places, self._read_windows(windows), strict=True):
                scores[number][held] = values
                start = starts[number][step]
                orders[number][start : start + len(held)] = held[np.argsort(-values, kind="stable")]
        for order, values, begun in zip(orders, scores, starts, strict=True):
            if len(begun) > 1:
                for above, below in pairwise(order):
                    values[below] = min(values[below], values[above] - MARGIN)
        return scores

    def _read_windows(self, windows: Sequence[CandidateList]) -> list[npt.NDArray[np.float64]]:
        """Mean log share of each candidate of windows that fit one prompt."""
        found = [np.zeros(len(items)) for _, items, _ in windows]
        jobs = [(n, order) for n, (query, items, _) in enumerate(windows) for order in self._orders(query, len(items))]
        for start in range(0, len(jobs), _BLOCK):
            block = jobs[start : start + _BLOCK]
            for (number, order), letters in zip(block, self._letters(windows, block), strict=True):
                logits = letters[: len(order)].astype(np.float64)
                shares = logits - (logits.max() + np.log(np.exp(logits - logits.max()).sum()))
                found[number][order] += shares / self.spec.n_permutations
        return found

    def _letters(
        self, windows: Sequence[CandidateList], jobs: Sequence[tuple[int, IntArray]]
    ) -> npt.NDArray[np.float32]:
        """Logits of all letters for windows read in given orders, [n_jobs, window]; equal prompts are read once."""
        network, renderer, _ = self._fitted()
        assert isinstance(network, ListNetwork)
        lists: list[CandidateList] = []
        for number, order in jobs:
            query, items, focus = windows[number]
            if focus is not None and focus < len(items):
                focus = int(np.flatnonzero(order == focus)[0])
            lists.append((query, [items[i] for i in order], focus))
        tokens = tokenise(network.backbone, renderer.render_lists(lists), shared=network.shared)
        pairs = np.stack([tokens.head_of, tokens.tail_of])
        distinct, back = np.unique(pairs, axis=1, return_inverse=True)
        return network.letters(TokenisedPrompts(tokens.heads, tokens.tails, distinct[0], distinct[1]))[back.ravel()]

    # -- what the fit of a cross-encoder asks for ------------------------------------------------------------------

    def _make_renderer(self, dataset: Dataset, backbone: Backbone, source: str | None = None) -> PromptRenderer:
        prompt = self.run.prompt if source is None else self.run.prompt.model_copy(update={"source": source})
        run = self.run.model_copy(update={"prompt": prompt})
        return ListRenderer(run, dataset, TokenCounter.from_folder(backbone.facts.folder), self._shown)

    def _make_network(
        self,
        backbone: Backbone,
        ctx: FitContext,
        biases: dict[Task, float],
        *,
        tuned: bool = False,
        filled: bool = True,
    ) -> PromptNetwork:
        if not tuned:
            apply_tuning(backbone.model, self.spec.tuning, seed=ctx.seed)
        return ListNetwork(
            backbone,
            letter_heads(backbone, LETTERS[: self.spec.window], filled=filled),
            pooling="last",
            shared=self.spec.share_history and can_share(backbone, "last"),
            autocast=precision_of(self.run, backbone.device)[1],
        )

    def _tokenise(
        self,
        lists: SampleLists,
        wordings: Wordings | None = None,
        ctx: FitContext | None = None,
        what: str = "training",
    ) -> TokenisedPrompts:
        """One prompt a list, its candidates in an order drawn by seed."""
        network, renderer, _ = self._fitted()
        rng = np.random.default_rng([self.run.seed, 4])
        asked: list[CandidateList] = []
        letters = []
        starts = np.searchsorted(lists.list_of, np.arange(len(lists.queries) + 1))
        for number, query in enumerate(lists.queries):
            items = lists.items[starts[number] : starts[number + 1]]
            order = rng.permutation(len(items))
            asked.append((query, items[order].tolist(), None))
            letters.append(np.argsort(order))
        words = wordings or renderer

        def make() -> TokenisedPrompts:
            return tokenise(network.backbone, words.render_lists(asked), shared=network.shared)

        shown = np.concatenate([np.asarray(items, np.int64) for _, items, _ in asked] or [lists.items])
        question = Question("lists", words, lists.queries, lists.list_of, shown, network.shared)
        return ListPrompts.of(kept_tokens(question, make, network.backbone, ctx, what), letters)

    def _plan(self, lists: SampleLists, tokens: TokenisedPrompts, seed: int) -> BatchPlan:
        network, _, _ = self._fitted()
        training = sized(self.run, network)
        return ListBatchPlan(lists, tokens, training, seed, network.backbone.pad_id, n_rounds(training))

    @staticmethod
    def _as_recommender(spec: CrossEncoderSpec | ListwiseSpec) -> RecommenderSpec:
        return PipelineSpec(ranker=spec)

    @staticmethod
    def _part_of(run: RunSpec) -> CrossEncoderSpec | ListwiseSpec | None:
        ranker = run.recommender.ranker if isinstance(run.recommender, PipelineSpec) else None
        return ranker if isinstance(ranker, ListwiseSpec) else None


def _with(near: tuple[int, ...], item: int, length: int) -> tuple[tuple[int, ...], int]:
    """The list with ``item`` in it, in the place of the last one if need be, and where it stands."""
    if item in near:
        return near, near.index(item)
    listed = (*near[: length - 1], item)
    return listed, len(listed) - 1


def _window_starts(n: int, window: int) -> list[int]:
    """Where windows over ``n`` places begin, bottom first: each half a window above the last, the top one at 0."""
    if n <= window:
        return [0] if n else []
    starts = list(range(n - window, 0, -max(1, window // 2)))
    return [*starts, 0]
