"""Two stages: a retriever finds candidates, a language model re-ranks them, and the two scores are fused.

The model reads each candidate (a cross-encoder), chooses from a list of them, or says how probably it would write the
title of each (a generative recommender, which writes texts here as well).

The fused score of an item is

    w * (logit - m) / s  +  (1 - w) * (r - m') / s'

with r the retriever's score divided by its best score over the catalogue for that query, and m, s, m', s' means and
standard deviations over the candidates of validation users, fixed at the fit. So the score of an item depends on the
query and the item alone, not on which other candidates are asked. w is chosen on validation users by NDCG@k unless
the spec gives it; w = 0 is the retriever's order, w = 1 the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

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
)
from llmrec_core.errors import InputError, ModelError, RunCancelledError
from llmrec_core.evaluation.validation import ndcg_of_scores
from llmrec_core.recommenders._storage import RANKER_FOLDER, check_head, read_run, write_head
from llmrec_core.recommenders.blend import make_retriever, part_context
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.recommenders.listwise import ListwiseRecommender
from llmrec_core.recommenders.onnx_encoder import OnnxCrossEncoder
from llmrec_core.saved import catalogue_sha256, read_head
from llmrec_core.specs import CrossEncoderSpec, GenerativeSpec, ListwiseSpec, PipelineSpec, RunSpec
from llmrec_core.training.samples import Pool
from llmrec_core.training.validation import main_task

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: What may stand second.
Ranker = CrossEncoderRecommender | GenerativeRecommender

#: Weights of the model that are tried.
GRID = tuple(round(0.05 * step, 2) for step in range(21))
#: Where a saved pipeline keeps its retriever.
_RETRIEVER = "retriever"


@dataclass(frozen=True)
class Fusion:
    """Weight of the model, and what standardises the two scores."""

    model_weight: float
    model_mean: float
    model_std: float
    retriever_mean: float
    retriever_std: float

    def fuse(self, model: npt.NDArray[np.floating], retriever: npt.NDArray[np.floating]) -> FloatArray:
        """Fused scores, any shape; -inf (padding) stays."""
        z = (model - self.model_mean) / self.model_std
        r = (retriever - self.retriever_mean) / self.retriever_std
        # Not a plain sum: 0 x -inf is NaN.
        fused = self.model_weight * np.where(np.isfinite(z), z, 0) + (1 - self.model_weight) * np.where(
            np.isfinite(r), r, 0
        )
        return np.where(np.isneginf(model), -np.inf, fused).astype(np.float32)


class PipelineRecommender(Recommender):
    """See the module.

    Args:
        run: prompt, objectives, training and the primary metric's cut-off are taken from it.
        spec: retriever, ranker, number of candidates and weight.
    """

    family: ClassVar[str] = "pipeline"

    def __init__(self, run: RunSpec, spec: PipelineSpec) -> None:
        self.spec: PipelineSpec = spec
        self.run = run
        self.retriever: Recommender = make_retriever(spec.retriever, run.prompt)
        self.ranker = self._connected(_make_ranker(run, spec.ranker))
        self.fusion: Fusion | None = None
        #: Model weight -> NDCG on the validation users, as far as it was tried.
        self.fusion_grid: dict[float, float] = {}

    def _connected(self, ranker: Ranker) -> Ranker:
        """A listwise ranker reads every candidate in the list of what the retriever finds."""
        if isinstance(ranker, ListwiseRecommender):
            ranker.candidates, ranker.n_candidates = self._unseen, self.spec.n_candidates
        return ranker

    def _unseen(self, queries: Sequence[Query], k: int) -> list[IntArray]:
        """The retriever's best items for each query that are not in its history, best first."""
        index = self.ranker.renderer.dataset.item_index
        had = [[index[item.item_id] for item in query.history if item.item_id in index] for query in queries]
        return [found.items for found in self.retriever.top_k(queries, k, [np.array(row, np.int64) for row in had])]

    @property
    def capabilities(self) -> Capabilities:
        """The ranker's; a decoder without weight is not asked."""
        own = self.ranker.capabilities
        asked = self.fusion is None or self.fusion.model_weight > 0
        return replace(own, similar=self.retriever.capabilities.similar, decoder=own.decoder and asked)

    @property
    def n_items(self) -> int:
        return self.retriever.n_items

    def item_vectors(self) -> FloatArray | None:
        """The retriever's: a cross-encoder has no vector of an item by itself."""
        return self.retriever.item_vectors()

    def fit(self, split: Split, ctx: FitContext) -> None:
        self.retriever.fit(split, part_context(ctx, self.retriever, _RETRIEVER))
        if isinstance(self.ranker, CrossEncoderRecommender):
            self.ranker.negative_pool = self.hard_negatives(split)
        # What trains nothing takes nothing over: it is the retriever that goes on.
        still = ctx.start_from is not None and self.spec.ranker.tuning.method == "none"
        self.ranker.fit(split, replace(ctx, start_from=None, continued=None) if still else ctx)
        ctx.emit("stage", stage="fusion")
        self._choose_weight(split, ctx)

    def hard_negatives(self, split: Split) -> Pool:
        """The retriever's best items that a user does not have in training."""
        return lambda queries, k: [
            ranking.items for ranking in self.retriever.top_k(queries, k, _seen_in_training(split, queries))
        ]

    def _choose_weight(self, split: Split, ctx: FitContext) -> None:
        """Scores the candidates of validation users once, then tries every weight on those scores."""
        k = _cut_off(self.run)
        held_out = split.queries("valid", max_users=self.spec.fusion_users, seed=ctx.seed)
        if not len(held_out):
            weight = 0.5 if self.spec.model_weight is None else self.spec.model_weight
            self.fusion = Fusion(weight, 0.0, 1.0, 0.0, 1.0)
            ctx.emit("log", level="warning", message=f"no validation user has a new item: model weight {weight:g}.")
            return
        items = _table(
            [r.items for r in self.retriever.top_k(held_out.queries, self.spec.n_candidates, held_out.exclude)]
        )
        model = np.full(items.shape, -np.inf, np.float32)
        block = max(1, len(items) // 20)
        for start in range(0, len(items), block):
            if ctx.should_stop() == "cancel":
                raise RunCancelledError("the run was cancelled.")
            part = slice(start, start + block)
            model[part] = self.ranker.score(held_out.queries[part], items[part])
            done = min(start + block, len(items))
            ctx.emit("progress", stage="fusion", step=done, total=len(items), eta_s=None)
        retriever = self._relative(held_out.queries, items)
        known = items >= 0
        constants = (*_moments(model[known]), *_moments(retriever[known]))
        relevant = np.array([np.isin(row, target) for row, target in zip(items, held_out.targets, strict=True)])
        n_targets = np.array([len(target) for target in held_out.targets], np.int64)
        weights = GRID if self.spec.model_weight is None else (self.spec.model_weight,)
        for weight in weights:
            values = ndcg_of_scores(Fusion(weight, *constants).fuse(model, retriever), relevant & known, n_targets, k)
            self.fusion_grid[weight] = float(np.nanmean(values))
        # The smallest of equally good weights: the model has to earn its say.
        best = max(weights, key=lambda weight: (self.fusion_grid[weight], -weight))
        self.fusion = Fusion(best, *constants)
        tried = ", ".join(f"{weight:g}: {value:.4f}" for weight, value in self.fusion_grid.items())
        ctx.emit(
            "log",
            level="info",
            message=f"model weight {best:g} (0: {self.retriever.family} alone, 1: the model alone); "
            f"ndcg@{k} on {len(items)} validation users by weight: {tried}",
        )

    def _relative(self, queries: Sequence[Query], items: IntArray) -> FloatArray:
        """The retriever's scores divided by the query's best over the catalogue; padding is -inf."""
        scores = self.retriever.score(queries, items)
        everything = np.arange(self.n_items, dtype=np.int64)
        best = np.empty(len(queries), np.float32)
        block = max(1, 4_000_000 // max(1, self.n_items))
        for start in range(0, len(queries), block):
            found = self.retriever.score(queries[start : start + block], everything)
            best[start : start + block] = found.max(axis=1, initial=-np.inf)
        return (scores / np.where(best > 0, best, 1.0)[:, None]).astype(np.float32)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        """Fused scores; with a ``task`` other than the model's main one, that head alone."""
        fusion = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), self.n_items)
        if task is not None and task != self._main_task():
            return self.ranker.score(queries, items, task=task)
        if fusion.model_weight == 0:
            # Nobody waits for a model whose score counts nothing.
            model = np.where(items >= 0, np.float32(fusion.model_mean), np.float32(-np.inf))
        else:
            model = self.ranker.score(queries, items)
        return fusion.fuse(model, self._relative(queries, items))

    def top_k(self, queries: Sequence[Query], k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        """The re-ranked candidates first, then the rest in the retriever's order with scores that go on below."""
        self._fitted()
        n_wanted = max(k, self.spec.n_candidates)
        found = self.retriever.top_k(queries, n_wanted, exclude)
        items = _table([ranking.items[: self.spec.n_candidates] for ranking in found])
        fused = self.score(queries, items)
        rankings = []
        for row, ranking in enumerate(found):
            n = min(self.spec.n_candidates, len(ranking.items))
            head_items, head_scores = ranking.items[:n], fused[row, :n]
            order = np.lexsort((head_items, -head_scores))
            rest = ranking.items[n:]
            floor = float(head_scores.min(initial=0.0)) if n else 0.0
            # Candidates were compared by reading them; the others only keep their order, one rank a step.
            scores = np.concatenate([head_scores[order], floor - 1.0 - np.arange(len(rest))]).astype(np.float32)
            rankings.append(Ranking(np.concatenate([head_items[order], rest])[:k].astype(np.int64), scores[:k]))
        return rankings

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        return self.ranker.predict_ratings(queries, candidates)

    def attention(self, query: Query, item_idx: int) -> tuple[object, ...]:
        """The model's; see :meth:`CrossEncoderRecommender.attention`.

        Raises:
            InputError: it shows none.
        """
        if isinstance(self.ranker, GenerativeRecommender):
            raise InputError(f"a {self.ranker.family} model shows no attention.", where="recommender.ranker")
        return self.ranker.attention(query, item_idx)

    def _main_task(self) -> str | None:
        return main_task(self.ranker.tasks) if isinstance(self.ranker, CrossEncoderRecommender) else None

    def parts(self, query: Query, item_idx: int, task: str | None = None) -> list[tuple[str, float]] | None:
        """What adds up to the score: text and features of the ranker, and the retriever; None without behaviour."""
        fusion = self._fitted()
        if isinstance(self.ranker, GenerativeRecommender):
            return None
        inner = self.ranker.parts(query, item_idx, task)
        if inner is None or (task is not None and task != self._main_task()):
            return inner
        item = np.array([[item_idx]], np.int64)
        retrieved = float(self._relative([query], item)[0, 0])
        found = [(name, fusion.model_weight * value / fusion.model_std) for name, value in inner]
        # What standardises both scores is the same for everybody.
        constant = -fusion.model_weight * fusion.model_mean / fusion.model_std
        retriever = (1 - fusion.model_weight) * (retrieved - fusion.retriever_mean) / fusion.retriever_std
        found[-1] = (found[-1][0], found[-1][1] + constant)
        return [found[0], (f"retriever ({self.retriever.family})", retriever), *found[1:]]

    def _fitted(self) -> Fusion:
        if self.fusion is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self.fusion

    def save(self, folder: Path) -> None:
        fusion = self._fitted()
        for name, part in ((_RETRIEVER, self.retriever), (RANKER_FOLDER, self.ranker)):
            (folder / name).mkdir()
            part.save(folder / name)
        write_head(
            folder,
            self.family,
            {
                "run": self.run.model_copy(update={"recommender": self.spec}).model_dump(mode="json"),
                "fusion": asdict(fusion),
                "fusion_grid": [[weight, value] for weight, value in self.fusion_grid.items()],
                "catalogue_sha256": catalogue_sha256(self.ranker.renderer.dataset.item_ids),
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> PipelineRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        run = read_run(head, folder)
        try:
            fusion = Fusion(**_numbers(head.get("fusion")))
            grid = {float(weight): float(value) for weight, value in head.get("fusion_grid", [])}
        except (TypeError, ValueError):
            raise ModelError("its fusion cannot be read.", where=str(folder), fix="Run the training again.") from None
        if not isinstance(run.recommender, PipelineSpec):
            raise ModelError("its spec is of another family.", where=str(folder), fix="Run the training again.")
        loaded = cls(run, run.recommender)
        loaded.retriever = type(loaded.retriever).load(folder / _RETRIEVER, dataset, ctx)
        # A compressed one may be scored by another runtime than the one it was trained with.
        onnx = read_head(folder / RANKER_FOLDER)["family"] == OnnxCrossEncoder.family
        family = OnnxCrossEncoder if onnx else type(loaded.ranker)
        loaded.ranker = loaded._connected(family.load(folder / RANKER_FOLDER, dataset, ctx))
        loaded.fusion, loaded.fusion_grid = fusion, grid
        return loaded


def _make_ranker(run: RunSpec, spec: CrossEncoderSpec | ListwiseSpec | GenerativeSpec) -> Ranker:
    if isinstance(spec, GenerativeSpec):
        return GenerativeRecommender(run, spec)
    return ListwiseRecommender(run, spec) if isinstance(spec, ListwiseSpec) else CrossEncoderRecommender(run, spec)


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise TypeError("no mapping")
    found = {str(key): float(value) for key, value in values.items()}
    if not np.isfinite(list(found.values())).all():
        raise ValueError("not finite")
    return found


def _cut_off(run: RunSpec) -> int:
    """k of the primary metric; 10 where it has none."""
    _, _, cut = run.evaluation.primary_metric.partition("@")
    return int(cut) if cut.isdecimal() else 10


def ranker_of(recommender: Recommender) -> Recommender:
    """What reads, without the retriever beside it: the second stage of two, else the recommender itself."""
    return recommender.ranker if isinstance(recommender, PipelineRecommender) else recommender


def _moments(values: FloatArray) -> tuple[float, float]:
    """Mean and standard deviation; 0 and 1 where there is nothing to measure."""
    if len(values) == 0:
        return 0.0, 1.0
    std = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), std if std > 1e-9 else 1.0


def _table(rows: Sequence[IntArray]) -> IntArray:
    """Rows of different length as one array, padded with -1."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def _seen_in_training(split: Split, queries: Sequence[Query]) -> list[IntArray]:
    """For each query, all items its user has in training and items that the split does not offer there."""
    dataset = split.dataset
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[split.train]
    items = dataset.interactions["item_idx"].to_numpy(np.int64)[split.train]
    order = np.argsort(users, kind="stable")
    starts = np.searchsorted(users[order], np.arange(dataset.n_users + 1))
    outside = np.setdiff1d(np.arange(dataset.n_items, dtype=np.int64), split.offered("train"))
    found = []
    for query in queries:
        user = dataset.user_idx(query.user_id)
        found.append(np.union1d(items[order[starts[user] : starts[user + 1]]], outside))
    return found
