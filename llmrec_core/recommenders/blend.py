"""Several recommenders that rank the whole catalogue, as one: a weighted sum of their standardised scores.

For a query, each member's scores are standardised over the catalogue (mean 0, deviation 1), so that the score of an
item depends on the query and the item alone. The weights are those under which validation users most likely chose what
they did, if they choose in proportion to exp(blended score): McFadden's conditional logit (1974) with weights of at
least 0 and a ridge. Its likelihood is smooth and has one maximum, so it picks up less of the chance in a few hundred
users than a search by NDCG does. NDCG@10 then only decides, in five steps, how far to go there from the best member
alone. Weights that the spec gives are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy.optimize import minimize

from llmrec_core.baselines import BASELINES
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
from llmrec_core.errors import InputError, ModelError, RunCancelledError
from llmrec_core.evaluation.validation import ndcg_of_scores
from llmrec_core.recommenders._storage import check_head, write_head
from llmrec_core.recommenders.content_knn import ContentKNNRecommender
from llmrec_core.recommenders.ratings import RatingsRecommender
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.saved import FIX, catalogue_sha256, read_head
from llmrec_core.specs import (
    BlendSpec,
    ContentKNNSpec,
    PromptSpec,
    RatingsSpec,
    RetrieverSpec,
    SequentialSpec,
    TwoTowerSpec,
    changed_shape,
)

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, EvalSet, Split

#: Score cells held at once (float32): 64 MB.
_BLOCK_CELLS = 16_000_000
#: Items kept of each validation user: whoever stands below the first few hundred of every member is not found at 10.
_DEPTH = 300
_K = 10
#: Steps from the best single member to the likeliest weights; of equally good ones the first is taken.
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
#: Parts that can go on from weights, or have parts that can.
_GOES_ON = (SequentialSpec, TwoTowerSpec, BlendSpec)
#: Weight of the squared weights beside the log-likelihood of all validation users.
_RIDGE = 1.0


class BlendRecommender(Recommender):
    """See the module."""

    family: ClassVar[str] = "blend"

    def __init__(self, spec: BlendSpec | None = None) -> None:
        self.spec: BlendSpec = spec or BlendSpec()
        self.members: list[Recommender] = [make_retriever(member) for member in self.spec.members]
        self.weights: npt.NDArray[np.float64] | None = None
        self._catalogue = ""

    @property
    def capabilities(self) -> Capabilities:
        similar = any(member.capabilities.similar for member in self.members)
        return Capabilities(tasks=frozenset(), full_catalogue=True, similar=similar)

    @property
    def n_items(self) -> int:
        return self.members[0].n_items

    def item_vectors(self) -> FloatArray | None:
        """Members' vectors side by side, so scaled that a cosine is the mean of theirs by the blend's weights.

        Members without vectors have no say; if those with vectors weigh nothing in the blend, they weigh alike here.
        """
        weights = self._fitted()
        pairs = [(w, v) for w, m in zip(weights, self.members, strict=True) if (v := m.item_vectors()) is not None]
        if not pairs:
            return None
        alike = not any(weight > 0 for weight, _ in pairs)
        parts = []
        for weight, vectors in pairs:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-9)
            parts.append(unit * np.float32(np.sqrt(1.0 if alike else weight)))
        return np.concatenate(parts, axis=1)

    def fit(self, split: Split, ctx: FitContext) -> None:
        for number, member in enumerate(self.members, start=1):
            ctx.emit("log", level="info", message=f"fitting {member.family}, {number} of {len(self.members)}")
            member.fit(split, part_context(ctx, member, str(number - 1)))
            if ctx.should_stop() == "cancel":
                raise RunCancelledError("the run was cancelled.")
        self._catalogue = catalogue_sha256(split.dataset.item_ids)
        ctx.emit("stage", stage="fusion")
        self.weigh(split, ctx)

    def weigh(self, split: Split, ctx: FitContext) -> None:
        """Chooses the weights on the validation users of ``split``; the fitted members stay as they are."""
        if self.spec.weights is not None:
            self.weights = np.asarray(self.spec.weights, np.float64) / sum(self.spec.weights)
            return
        held_out = split.queries("valid", max_users=self.spec.validation_users, seed=ctx.seed)
        if not len(held_out):
            self.weights = np.full(len(self.members), 1.0 / len(self.members))
            ctx.emit("log", level="warning", message="no validation user has a new item: equal weights.")
            return
        scores, offered, relevant = self._validation_scores(held_out)
        n_targets = np.array([len(targets) for targets in held_out.targets], np.int64)
        scored = np.where(offered, scores, np.float32(-1e6))

        def value(weights: npt.NDArray[np.float64]) -> float:
            blended = np.tensordot(weights, scored, axes=1)
            return float(np.nanmean(ndcg_of_scores(blended, relevant, n_targets, _K)))

        alone = [value(row) for row in np.eye(len(self.members))]
        likeliest = choice_weights(scores, offered, relevant)
        best_alone = np.eye(len(self.members))[int(np.argmax(alone))]
        # Likely choices are about whole lists, NDCG is about their tops: where one member knows those best, as
        # popularity does for users of whom little is known, the others have to earn their say.
        tried = [(1 - share) * best_alone + share * likeliest for share in _SHARES]
        values = [value(weights) for weights in tried]
        best = int(np.argmax(values))
        self.weights = tried[best]
        names = [member.family for member in self.members]
        shares = ", ".join(f"{n} {w:.2f} (alone {a:.4f})" for n, w, a in zip(names, self.weights, alone, strict=True))
        ctx.emit(
            "log",
            level="info",
            message=f"ndcg@{_K} {values[best]:.4f} on {len(held_out)} validation users with weights {shares}",
        )

    def _validation_scores(
        self, held_out: EvalSet
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Members' standardised scores of the items that any member puts first, [n_members, n_users, n_kept]; which
        places are filled, and which of them are targets, both [n_users, n_kept]."""
        depth = min(_DEPTH, self.n_items)
        n_kept = min(self.n_items, depth * len(self.members))
        scores = np.zeros((len(self.members), len(held_out), n_kept), np.float32)
        offered = np.zeros((len(held_out), n_kept), bool)
        relevant = np.zeros((len(held_out), n_kept), bool)
        for start, end, block in self._blocks(held_out.queries):
            for row in range(start, end):
                own = block[:, row - start]
                own[:, held_out.exclude[row]] = -np.inf
                first = np.argpartition(-own, depth - 1, axis=1)[:, :depth]
                kept = np.unique(first)
                kept = kept[np.isfinite(own[0, kept])][:n_kept]
                scores[:, row, : len(kept)] = own[:, kept]
                offered[row, : len(kept)] = True
                relevant[row, : len(kept)] = np.isin(kept, held_out.targets[row])
        return scores, offered, relevant

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        weights = self._fitted()
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), self.n_items)
        scores = np.empty(items.shape, np.float32)
        for start, end, block in self._blocks(queries):
            blended = np.tensordot(weights.astype(np.float32), block, axes=1)
            scores[start:end] = pick_scores(blended, items[start:end])
        return scores

    def _blocks(self, queries: Sequence[Query]) -> Iterator[tuple[int, int, FloatArray]]:
        """(first, last + 1, standardised scores [n_members, n_queries, n_items]) over all queries in turn."""
        everything = np.arange(self.n_items, dtype=np.int64)
        size = max(1, _BLOCK_CELLS // max(1, self.n_items * len(self.members)))
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            yield start, start + len(part), np.stack([_standard(m.score(part, everything)) for m in self.members])

    def _fitted(self) -> npt.NDArray[np.float64]:
        if self.weights is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self.weights

    def save(self, folder: Path) -> None:
        weights = self._fitted()
        for number, member in enumerate(self.members):
            (folder / str(number)).mkdir()
            member.save(folder / str(number))
        write_head(
            folder,
            self.family,
            {
                "spec": self.spec.model_dump(mode="json"),
                "weights": weights.tolist(),
                "catalogue_sha256": self._catalogue,
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> BlendRecommender:
        head = check_head(folder, cls.family, dataset.item_ids)
        try:
            loaded = cls(BlendSpec.model_validate(head.get("spec")))
            weights = np.asarray(head.get("weights"), np.float64)
        except (ValidationError, TypeError, ValueError):
            raise ModelError("its spec cannot be read.", where=str(folder), fix=FIX) from None
        if weights.shape != (len(loaded.members),) or not np.isfinite(weights).all():
            raise ModelError("its weights do not fit its members.", where=str(folder), fix=FIX)
        loaded.members = [
            type(member).load(folder / str(number), dataset, ctx) for number, member in enumerate(loaded.members)
        ]
        loaded.weights, loaded._catalogue = weights, catalogue_sha256(dataset.item_ids)
        return loaded


def part_context(ctx: FitContext, part: Recommender, name: str) -> FitContext:
    """What a part of a recommender is told of the run that is gone on from.

    A part that is trained in histories, or of towers, goes on from the part of that name there, if its weights fit; all
    others are fitted anew on what the newer data has to learn from.
    """
    if ctx.start_from is None:
        return ctx
    anew = replace(ctx, start_from=None, continued=None)
    folder = ctx.start_from / name
    if ctx.continued is None or not folder.is_dir() or not isinstance(part.spec, _GOES_ON):
        return anew
    head = read_head(folder)
    if head["family"] == part.family:
        try:
            first = type(part.spec).model_validate(head.get("spec"))
        except ValidationError:
            raise ModelError("its spec cannot be read.", where=str(folder), fix=FIX) from None
        if changed_shape(first, part.spec) is None:
            return replace(ctx, start_from=folder)
    message = f"{part.family}: the run to go on from has no such part with weights of this shape; it is fitted anew."
    ctx.emit("log", level="warning", message=message)
    return anew


def make_retriever(spec: RetrieverSpec, prompt: PromptSpec | None = None) -> Recommender:
    """The unfitted recommender of a spec that ranks whole catalogues; ``prompt`` is for those that read prompts."""
    if isinstance(spec, BlendSpec):
        return BlendRecommender(spec)
    if isinstance(spec, SequentialSpec):
        return SequentialRecommender(spec)
    if isinstance(spec, ContentKNNSpec):
        return ContentKNNRecommender(spec)
    if isinstance(spec, RatingsSpec):
        return RatingsRecommender(spec)
    if isinstance(spec, TwoTowerSpec):
        return TwoTowerRecommender(spec, prompt)
    family: Callable[..., Recommender] = BASELINES[spec.family]
    return family(spec)


def choice_weights(
    scores: npt.NDArray[np.float32], offered: npt.NDArray[np.bool_], relevant: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Weights [n_members] that sum to 1: the conditional logit of the module.

    Args:
        scores: standardised scores of each member, [n_members, n_users, n_items].
        offered: places that hold an item, [n_users, n_items].
        relevant: what the user chose, [n_users, n_items]; users without any say nothing. Several count in equal parts.
    """
    says = relevant.any(axis=1)
    n_members = len(scores)
    even = np.full(n_members, 1.0 / n_members)
    if not says.any():
        return even
    utilities = np.ascontiguousarray(np.moveaxis(scores[:, says].astype(np.float64), 0, 2))
    outside = np.where(offered[says], 0.0, -np.inf)
    chosen = relevant[says] / relevant[says].sum(axis=1, keepdims=True)
    reached = np.einsum("ui,uim->m", chosen, utilities)

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        blended = utilities @ weights + outside
        top = blended.max(axis=1, keepdims=True)
        shares = np.exp(blended - top)
        totals = shares.sum(axis=1, keepdims=True)
        shares /= totals
        value = float((np.log(totals) + top).sum() - weights @ reached + _RIDGE * weights @ weights / 2)
        return value, np.einsum("ui,uim->m", shares, utilities) - reached + _RIDGE * weights

    found = minimize(loss, even, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * n_members)
    total = float(found.x.sum())
    # All weights 0: no member tells the chosen items from the others.
    return np.asarray(found.x / total) if total > 1e-6 else even


def _standard(scores: FloatArray) -> FloatArray:
    """Rows of mean 0 and deviation 1; a row of equal scores becomes 0."""
    mean = scores.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = scores.std(axis=1, keepdims=True, dtype=np.float64)
    # Ties among items without any vote are ordered by tiny terms: they must stay, and must not be blown up.
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    return ((scores - mean) / scale).astype(np.float32)
