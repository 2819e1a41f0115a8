"""The types that pass between rooms, and the one contract that every recommender keeps.

Light on purpose: NumPy only. Baselines, evaluation, pages and figures import this without PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llmrec_core.errors import DataError, InputError
from llmrec_core.specs import Spec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: Canonical column names of the three tables of a dataset.
USER, ITEM, RATING, TIME, TITLE = "user_id", "item_id", "rating", "timestamp", "title"

SpanKind = Literal["history", "history-group", "profile", "context", "candidate"]


@dataclass(frozen=True)
class HistoryItem:
    """One past interaction. ``timestamp`` is in seconds since 1970 UTC."""

    item_id: str
    rating: float | None = None
    timestamp: float | None = None


@dataclass(frozen=True)
class Query:
    """For whom, knowing what: everything a recommender may look at besides the candidate.

    ``history`` is oldest first and strictly before the moment of the query. ``hidden_fields`` names candidate
    columns that a text model must not see ("title", "category" ...): explanations switch players off by it.
    """

    user_id: str
    history: tuple[HistoryItem, ...] = ()
    profile: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)
    hidden_fields: frozenset[str] = frozenset()

    def with_history(self, history: Sequence[HistoryItem]) -> Query:
        return replace(self, history=tuple(history))


@dataclass(frozen=True)
class Span:
    """``text[start:end]`` came from one player. ``ref``: history position in ``Query.history`` (as text),
    profile or context key, or candidate column."""

    start: int
    end: int
    kind: SpanKind
    ref: str


@dataclass(frozen=True)
class RenderedPrompt:
    """One prompt inside its token budget.

    ``dropped_history``: how many of the oldest offered items were left out. ``clipped_fields``: candidate or
    profile fields cut short because the prompt was too long even without history.
    """

    text: str
    spans: tuple[Span, ...]
    n_tokens: int
    dropped_history: int = 0
    clipped_fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Player:
    """What a person would name as a reason. ``ref`` as in :class:`Span`; for "history-group" ``a-b``
    (inclusive positions in the history). ``value``: share of the score given to it, in units of the score."""

    kind: SpanKind
    ref: str
    text: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """Why this item for this user.

    ``target``: the explained score. For method "shap", ``base_value`` is the score with every player absent and
    ``additivity_gap`` = |base_value + sum(values) - target|. For "attention", values are shares summing to at
    most 1 (the rest went to template words), base_value is 0 and the gap is the share outside players.
    """

    user_id: str
    item_id: str
    method: str
    target: float
    base_value: float
    players: tuple[Player, ...]
    additivity_gap: float
    prompt: RenderedPrompt | None
    budget: int
    seed: int
    #: Score of each token for the "words" view: (start, end, value) over prompt.text; attention only.
    token_values: tuple[tuple[int, int, float], ...] = ()
    #: How far a second scoring of the same query, alone, was off: half precision rounds differently in other batches.
    #: Values below it say nothing. 0 for attention.
    score_noise: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """The best items of one query, best first. Both arrays have shape [k']; k' <= k."""

    items: IntArray
    scores: FloatArray


@dataclass(frozen=True)
class Capabilities:
    """What a recommender offers; screens and explainers show only what fits.

    ``tasks``: heads it has. ``text``: reads prompts (candidate fields matter). ``attention``: offers attention
    over a prompt. ``full_catalogue``: scoring every item for a query is cheap. ``similar``: it has
    :meth:`Recommender.item_vectors`, so it can say which items are alike. ``decoder``: its scores are read by a
    decoder, each many times as dear as an encoder's, so explainers ask for fewer.
    """

    tasks: frozenset[str]
    text: bool = False
    attention: bool = False
    full_catalogue: bool = False
    similar: bool = False
    decoder: bool = False


Emit = Callable[..., None]


def _no_emit(event_type: str, **payload: Any) -> None:
    """Drops the event: fits called from Python without a run."""


@dataclass(frozen=True)
class Continued:
    """What a training on newer data goes on from.

    Attributes:
        dataset: the data that the first recommender was fitted on; its numbers of users and items are not today's.
        trained: rows of today's data that it was trained on.
        replay: share of what is learned from (prompts, or rows to predict) that is drawn from them; the others are new.
    """

    dataset: Dataset
    trained: IntArray
    replay: float

    def new_among(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Which of today's training rows the first recommender was not trained on.

        Raises:
            DataError: none.
        """
        found = ~np.isin(rows, self.trained)
        if not found.any():
            raise DataError(
                "there is nothing new to learn from: the first run was trained on every row that this one could use.",
                where="continue_from",
                fix="Import a newer version of the data, or start a second stage without continual.",
            )
        return found


@dataclass
class FitContext:
    """Run-time side of a fit, kept apart from the spec.

    Attributes:
        workspace_models: folder with prepared models (``Workspace.models``); None for baselines.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        seed: seeds every generator the fit makes; the global ones are not relied upon.
        emit: called as ``emit(event_type, **json_values)``; see ``llmrec_core.runs.events`` for the types.
        should_stop: polled at every step. "cancel": raise RunCancelledError; "stop": end training now and keep
            what is there.
        checkpoint_dir: where checkpoints go; None: no checkpoints.
        resume_from: a parent's checkpoint folder to go on from.
        floors: fitted baselines by name; their value of the validation metric is reported beside the model's.
        start_from: folder of a finished run's recommender; what is trained begins with its weights.
        continued: with ``start_from``, where that one was fitted on older data; None: on the same.
        token_cache: folder in which tokens of training prompts are kept for the next run that asks for the same
            (``Workspace.token_cache``); None: they are made anew.
    """

    workspace_models: Path | None = None
    device: str = "auto"
    seed: int = 0
    emit: Emit = _no_emit
    should_stop: Callable[[], Literal["cancel", "stop"] | None] = lambda: None
    checkpoint_dir: Path | None = None
    resume_from: Path | None = None
    floors: Mapping[str, Recommender] = field(default_factory=dict)
    start_from: Path | None = None
    continued: Continued | None = None
    token_cache: Path | None = None


class Recommender(ABC):
    """One contract for all families, baselines included.

    Items are addressed by ``item_idx``: the position in ``dataset.item_ids`` of the dataset it was fitted on
    (every known item, with or without interactions). Higher scores are better, always.
    """

    family: ClassVar[str]
    spec: Spec

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this (fitted) recommender offers."""

    @abstractmethod
    def fit(self, split: Split, ctx: FitContext) -> None:
        """Learns from ``split``'s training rows; validation rows may only steer stopping and fusion."""

    @abstractmethod
    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        """Scores of candidates, float32 [n_queries, n_candidates].

        Args:
            queries: n_queries queries; an empty history is allowed, an unknown user too.
            candidates: item_idx, [n_candidates] (the same for all) or [n_queries, n_candidates]; -1 is padding and
                scores -inf.
            task: head to use; None: the recommender's main one.

        Raises:
            InputError: a candidate outside the catalogue, or a task it does not have.
        """

    def top_k(self, queries: Sequence[Query], k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        """The k best items of the catalogue for each query, ties by item_idx.

        ``exclude``: item_idx never shown, one array a query (seen items). k above the catalogue gives all.
        """
        everything = np.arange(self.n_items, dtype=np.int64)
        rankings = []
        # Blocks of users keep memory at block x catalogue.
        block = max(1, 4_000_000 // max(1, len(everything)))
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            scores = self.score(queries[part], everything)
            rankings += rank_rows(scores, k, None if exclude is None else exclude[part])
        return rankings

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        """Ratings on the dataset's own scale, shaped like :meth:`score`; None where it has no rating head."""
        return None

    def item_vectors(self) -> FloatArray | None:
        """What items are compared by, float32 [n_items, n_dimensions]: alike items have a cosine near 1.

        A row of zeros is an item of which nothing is known. None where the family has no such vectors; exactly
        then ``capabilities.similar`` is False.
        """
        return None

    @property
    @abstractmethod
    def n_items(self) -> int:
        """Size of the catalogue it was fitted on."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes safetensors, npz-free arrays (``.npy`` without pickle) and JSON into an existing empty folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> Recommender:
        """The recommender saved there; scores equal those before saving.

        Raises:
            ModelError: parts are missing, damaged, or of another dataset's catalogue.
        """


def check_candidates(candidates: IntArray, n_queries: int, n_items: int) -> IntArray:
    """``candidates`` as int64 [n_queries, n_candidates], checked; every ``score`` begins with it.

    Args:
        candidates: item_idx, [n_candidates] or [n_queries, n_candidates]; -1 is padding.
        n_queries: rows wanted; a one-dimensional list is repeated (as a read-only view).
        n_items: size of the catalogue.

    Raises:
        InputError: not integers, another shape, or an index below -1 or at or above ``n_items``.
    """
    array = np.asarray(candidates)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InputError("candidates must be integer positions in the catalogue.", fix="Pass item_idx, not item ids.")
    array = array.astype(np.int64, copy=False)
    if array.ndim not in (1, 2) or (array.ndim == 2 and len(array) != n_queries):
        raise InputError(
            f"candidates of shape {np.shape(candidates)} do not fit {n_queries} queries.",
            fix="Pass [n_candidates] or [n_queries, n_candidates].",
        )
    if array.size and (array.min() < -1 or array.max() >= n_items):
        wrong = array[(array < -1) | (array >= n_items)][0]
        raise InputError(
            f"candidate {wrong} is outside the catalogue of {n_items} items.",
            fix="Use item_idx of the dataset the recommender was fitted on.",
        )
    # Repeated last: a list for all queries is looked through once.
    return np.broadcast_to(array, (n_queries, len(array))) if array.ndim == 1 else array


def pick_scores(found: FloatArray, items: IntArray) -> FloatArray:
    """The scores of ``items`` [n_queries, n_candidates] out of whole rows ``found`` [n_queries, n_items].

    Padding (-1) scores -inf. Whoever asks for the catalogue as it stands gets ``found`` itself.
    """
    if (
        items.shape == found.shape
        and items.strides[0] == 0
        and np.array_equal(items[:1], np.arange(len(items.T))[None])
    ):
        return found
    scores = np.take_along_axis(found, np.maximum(items, 0), axis=1)
    scores[items < 0] = -np.inf
    return scores


def check_task(task: str | None, tasks: frozenset[str]) -> None:
    """Refuses a head that the recommender lacks; None always passes.

    Raises:
        InputError: ``task`` is not in ``tasks``.
    """
    if task is not None and task not in tasks:
        offered = ", ".join(sorted(tasks)) or "none"
        raise InputError(f"this recommender has no {task!r} head (it has: {offered}).", fix="Leave the task empty.")


#: Groups of columns, for each place of a list, that stand for a row of scores; see :func:`rank_rows`.
_GROUPS_A_PLACE = 6


def rank_rows(scores: FloatArray, k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
    """Top k of each row of scores [n_rows, n_items], best first; -inf and NaN never appear; ties by lower index.

    No row is sorted. Columns are dealt to a few hundred groups; the k-th best of the groups' maxima is at most the k-th
    best score, so what lies below it cannot be in the list, and what is left is hardly more than the list. Three
    passes over the scores, all of them vectorised.

    Args:
        exclude: columns never shown, one array a row. ``scores`` is the same afterwards as before.
    """
    n_rows, n_items = scores.shape
    k = min(k, n_items)
    if k == 0 or not n_rows:
        return [Ranking(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(n_rows)]
    values = np.array(scores, np.float32) if not scores.flags.writeable else scores.astype(np.float32, copy=False)
    if exclude is not None:
        line = np.repeat(np.arange(n_rows), [len(items) for items in exclude])
        seen = np.concatenate([*exclude, np.empty(0, np.int64)]).astype(np.int64)
        before, values[line, seen] = values[line, seen], -np.inf
    depth = max(1, n_items // (_GROUPS_A_PLACE * k))
    n_groups = n_items // depth
    maxima = values[:, : n_groups * depth].reshape(n_rows, depth, n_groups)
    # fmax passes NaN over; a group of nothing else is no group. Columns behind the last one make no bound.
    best = np.fmax.reduce(maxima, axis=1)
    best[np.isnan(best)] = -np.inf
    bound = np.partition(best, n_groups - k, axis=1)[:, n_groups - k]
    found = np.flatnonzero(values >= np.maximum(bound, np.finfo(np.float32).min)[:, None])
    row, item = np.divmod(found, n_items)
    score = values.reshape(-1)[found] if values.flags.c_contiguous else values[row, item]
    if exclude is not None:
        values[line, seen] = before
    order = np.lexsort((item, -score, row))
    item, score = item[order].astype(np.int64), score[order]
    ends = np.cumsum(np.bincount(row, minlength=n_rows))
    starts = np.concatenate([[0], ends[:-1]])
    stops = np.minimum(ends, starts + k)
    return [Ranking(item[a:b].copy(), score[a:b].copy()) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
