"""Training and validation samples from a split: lists of one real interaction and seeded negatives.

Each list belongs to one query (a user just before one of their interactions) and holds the item that came next
and items that did not. One prompt can carry labels of several tasks; it is read once for all of them. Where ratings
alone are learned nothing is drawn: a list holds the user's next few ratings, so that their history is read once.

Negatives leave out only what the user has in *training*. Leaving out held-out items too would tell the model, by
their absence, what the test asks for. So a held-out item can be drawn as a negative, as it could in live data. Items
that a split withholds from training (cold-item) are not drawn in training: there they do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.contracts import Continued, FitContext, FloatArray, IntArray, Query
from llmrec_core.errors import DataError
from llmrec_core.specs import ItemKNNSpec, Part, RunSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Share of random negatives drawn evenly over the catalogue; the rest follow popularity ** 0.75. Even draws teach
#: what nobody likes, popular ones keep the model from answering "is it popular?".
EVEN_SHARE = 0.5
#: (queries, items wanted) -> for each query the best items of a retriever, best first, seen items left out.
Pool = Callable[[Sequence[Query], int], list[IntArray]]


@dataclass(frozen=True)
class SampleLists:
    """Prompts to be rendered, list by list.

    Attributes:
        queries: [n_lists].
        users: user_idx, [n_lists].
        list_of: the list of each prompt, [n_prompts], ascending.
        items: item_idx, [n_prompts]; the interaction that really happened is the first of its list (of ratings
            alone: all did).
        labels: task -> float32 [n_prompts]; NaN where the task says nothing.
        offsets: task -> float32 [n_prompts]; what stands beside the text model and is added to its outputs.
    """

    queries: list[Query]
    users: IntArray
    list_of: IntArray
    items: IntArray
    labels: dict[str, FloatArray]
    offsets: dict[str, FloatArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def pairs(self) -> list[tuple[Query, int]]:
        """(query, item_idx) of each prompt, as ``PromptRenderer.render_many`` takes them."""
        return [(self.queries[at], item) for at, item in zip(self.list_of.tolist(), self.items.tolist(), strict=True)]


def training_lists(
    split: Split, spec: RunSpec, seed: int, pool: Pool | None = None, continued: Continued | None = None
) -> SampleLists:
    """Lists from training rows drawn by seed, up to ``training.max_samples`` prompts in all.

    Rows with an earlier history of the same user are preferred; first interactions are used only where there are
    no others, since a prompt without history teaches popularity alone.

    Args:
        pool: a retriever; ``training.hard_negatives`` of the negatives come from its best items.
        continued: rows are new ones, mixed with those that the first training saw.

    Raises:
        DataError: a rating objective on data without ratings, or nothing new to go on with.
    """
    training, tasks = spec.training, tuple(o.task for o in spec.objectives)
    rng = np.random.default_rng([seed, 1])
    n_negatives = _n_negatives(spec)
    rows = split.train
    users = split.dataset.interactions["user_idx"].to_numpy(np.int64)[rows]
    order = np.argsort(users, kind="stable")
    first = np.zeros(len(rows), bool)
    first[order[np.flatnonzero(np.diff(users[order], prepend=-1))]] = True
    later = rows[~first] if (~first).any() else rows
    if set(tasks) == {"rating"} and continued is None:
        return _ratings_in_blocks(split, later, spec, rng)
    n_lists = len(later)
    if training.max_samples is not None:
        n_lists = max(1, min(n_lists, training.max_samples // (1 + n_negatives)))
    if continued is None:
        rows = later[rng.permutation(len(later))[:n_lists]]
    else:
        rows = new_and_replayed(later, continued, n_lists, rng)
    return _lists(split, "train", rows, tasks, spec, n_negatives, rng, pool)


def _ratings_in_blocks(split: Split, rows: IntArray, spec: RunSpec, rng: np.random.Generator) -> SampleLists:
    """Lists of up to ``training.ratings_per_history`` ratings that follow each other; every row stands in one of them.

    For the later ones of a list the history ends a few items too early: little is lost, and it is read once.

    Args:
        rows: training rows, by user and in the order of time.
    """
    size = spec.training.ratings_per_history
    users = split.dataset.interactions["user_idx"].to_numpy(np.int64)[rows]
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    of_user = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
    starts = np.flatnonzero(of_user % size == 0)
    lengths = np.diff(starts, append=len(rows))
    drawn = rng.permutation(len(starts))
    if spec.training.max_samples is not None:
        so_far = np.cumsum(lengths[drawn])
        drawn = drawn[: max(1, int(np.searchsorted(so_far, spec.training.max_samples, side="right")))]
    # The histories, and the refusal of data without ratings.
    firsts = _lists(split, "train", rows[starts[drawn]], ("rating",), spec, 0, rng, None)
    n_rows = lengths[drawn]
    begin_of_list = np.cumsum(n_rows) - n_rows
    list_of = np.repeat(np.arange(len(drawn), dtype=np.int64), n_rows)
    taken = rows[starts[drawn][list_of] + np.arange(len(list_of)) - begin_of_list[list_of]]
    table = split.dataset.interactions
    items, ratings = table["item_idx"].to_numpy(np.int64)[taken], table["rating"].to_numpy(np.float32)[taken]
    assert split.dataset.rating_scale is not None
    return replace(
        firsts, list_of=list_of, items=items, labels={"rating": scale_ratings(ratings, split.dataset.rating_scale)}
    )


def new_and_replayed(rows: IntArray, continued: Continued, n_lists: int, rng: np.random.Generator) -> IntArray:
    """At most ``n_lists`` rows in random order, a share ``continued.replay`` of them from the first training."""
    is_new = continued.new_among(rows)
    new, old = rng.permutation(rows[is_new]), rng.permutation(rows[~is_new])
    # So many that new rows, each used once, are the rest of the mix.
    n_lists = min(n_lists, round(len(new) / (1 - continued.replay)))
    n_old = min(len(old), round(continued.replay * n_lists))
    return rng.permutation(np.concatenate([new[: n_lists - n_old], old[:n_old]]))


def validation_lists(split: Split, spec: RunSpec, seed: int) -> SampleLists:
    """Lists from held-out validation rows, up to ``training.validation_samples`` prompts; random negatives only."""
    tasks = tuple(o.task for o in spec.objectives)
    rng = np.random.default_rng([seed, 2])
    n_negatives = _n_negatives(spec)
    rows = split.labelled("valid").row
    n_lists = max(1, min(len(rows), spec.training.validation_samples // (1 + n_negatives)))
    chosen = rng.permutation(len(rows))[:n_lists]
    return _lists(split, "valid", rows[chosen], tasks, spec, n_negatives, rng, None)


def like_threshold(dataset: Dataset, spec: RunSpec) -> float | None:
    """Ratings above it count as clicked; None: every interaction does."""
    if spec.training.like_threshold is not None:
        return spec.training.like_threshold
    return dataset.like_threshold


def scale_ratings(ratings: npt.ArrayLike, scale: tuple[float, float]) -> FloatArray:
    """Ratings as 0-1, NaN stays NaN."""
    low, high = scale
    return ((np.asarray(ratings, np.float32) - low) / (high - low)).astype(np.float32)


def unscale_ratings(values: FloatArray, scale: tuple[float, float]) -> FloatArray:
    """0-1 outputs as ratings of the dataset, cut to its scale; -inf (padding) stays."""
    low, high = scale
    ratings = np.clip(values, 0.0, 1.0) * (high - low) + low
    return np.where(np.isneginf(values), values, ratings).astype(np.float32)


def _n_negatives(spec: RunSpec) -> int:
    tasks = {o.task for o in spec.objectives}
    click = spec.training.negatives_per_positive if "click" in tasks else 0
    rank = spec.training.rank_candidates - 1 if "rank" in tasks else 0
    return max(click, rank)


def _lists(
    split: Split,
    part: Part,
    rows: IntArray,
    tasks: tuple[str, ...],
    spec: RunSpec,
    n_negatives: int,
    rng: np.random.Generator,
    pool: Pool | None,
) -> SampleLists:
    dataset = split.dataset
    table = dataset.interactions
    users = table["user_idx"].to_numpy(np.int64)[rows]
    positives = table["item_idx"].to_numpy(np.int64)[rows]
    ratings = table["rating"].to_numpy(np.float32)[rows]
    queries = []
    for row, user in zip(rows.tolist(), users.tolist(), strict=True):
        # The whole history, as at the test: templates may count it, and retrievers look further back than a prompt.
        user_id = str(dataset.user_ids[user])
        queries.append(Query(user_id, split.history_before(row), dataset.profile(user_id)))
    n_lists = len(rows)
    negatives = _random_negatives(split, split.offered(part), users, positives, n_negatives, rng)
    n_hard = round(spec.training.hard_negatives * n_negatives) if pool is not None else 0
    if n_hard and pool is not None:
        negatives = _with_hard(negatives, positives, pool(queries, _POOL_DEPTH), n_hard, rng)
    size = 1 + n_negatives
    items = np.concatenate([positives[:, None], negatives], axis=1)
    labels: dict[str, FloatArray] = {}
    if "click" in tasks:
        threshold = like_threshold(dataset, spec)
        values = np.full((n_lists, size), np.nan, np.float32)
        values[:, 1 : 1 + spec.training.negatives_per_positive] = 0.0
        unrated = np.isnan(ratings)
        values[:, 0] = 1.0 if threshold is None else np.where(unrated, 1.0, ratings > threshold)
        labels["click"] = values.ravel()
    if "rank" in tasks:
        values = np.zeros((n_lists, size), np.float32)
        values[:, spec.training.rank_candidates :] = np.nan
        values[:, 0] = 1.0
        labels["rank"] = values.ravel()
    if "rating" in tasks:
        if dataset.rating_scale is None:
            counts = dataset.meta.rating_kind == "counts"
            raise DataError(
                "the ratings of this data are counts." if counts else "this data has no ratings to learn from.",
                where=f"objectives, dataset {dataset.name}",
                fix="Use the click or rank objective, or import a rating column.",
            )
        values = np.full((n_lists, size), np.nan, np.float32)
        values[:, 0] = scale_ratings(ratings, dataset.rating_scale)
        labels["rating"] = values.ravel()
    if "similarity" in tasks:
        labels["similarity"] = _closeness(split, queries, items).ravel()
    # Where the catalogue is nearly used up, missing negatives are -1: those places are dropped.
    kept = items.ravel() >= 0
    list_of = np.repeat(np.arange(n_lists, dtype=np.int64), size)[kept]
    return SampleLists(queries, users, list_of, items.ravel()[kept], {t: v[kept] for t, v in labels.items()})


def _closeness(split: Split, queries: Sequence[Query], items: IntArray) -> FloatArray:
    """How close each candidate is to the last items of the query's history, 0-1; NaN for those without a history.

    The score of item-kNN over training rows in both directions, s / (s + m) with m the median of the positive ones: a
    target that also unseen items have, and which a text can be asked for alone. The user's own rows are among the
    training rows; the target is learned, not shown.
    """
    knn = ItemKNNRecommender(ItemKNNSpec(direction="both", last_items=5))
    knn.fit(split, FitContext())
    # Items of no training row are not far away, they are unknown.
    known = (items >= 0) & (split.train_item_counts[np.maximum(items, 0)] > 0)
    scores = knn.score(queries, items)
    # Ties among items without a vote are ordered by a term far below any vote.
    scores = np.where(scores > 1e-9, scores, 0.0)
    positive = scores[known & (scores > 0)]
    closeness = scores / (scores + (float(np.median(positive)) if len(positive) else 1.0))
    has_history = np.array([len(query.history) > 0 for query in queries], bool)
    return np.where(known & has_history[:, None], closeness, np.nan).astype(np.float32)


#: Items of the retriever among which hard negatives are drawn.
_POOL_DEPTH = 50


def _random_negatives(
    split: Split, offered: IntArray, users: IntArray, positives: IntArray, n_negatives: int, rng: np.random.Generator
) -> IntArray:
    """Distinct ``offered`` items that the user is not known to have, [n_lists, n_negatives]; -1 where too few.

    Drawn with some to spare for all lists at once; what is seen or repeated is moved behind and cut off.
    """
    n_lists = len(users)
    if n_negatives == 0 or n_lists == 0:
        return np.empty((n_lists, n_negatives), np.int64)
    dataset = split.dataset
    n_items = dataset.n_items
    table = dataset.interactions
    # Known rows of held-out users stand in their prompts, so they are no negatives there.
    had = np.concatenate([split.train, split.known])
    owners = table["user_idx"].to_numpy(np.int64)
    asked = np.zeros(dataset.n_users, bool)
    asked[users] = True
    # Pairs of other users are never looked up; sorting them all would take most of the time on large data.
    had = had[asked[owners[had]]]
    pairs = owners[had] * n_items + table["item_idx"].to_numpy(np.int64)[had]
    seen = np.unique(pairs)
    weights = split.train_item_counts[offered].astype(np.float64) ** 0.75
    popular = np.cumsum(weights / weights.sum()) if weights.sum() > 0 else None
    n_draws = 3 * n_negatives + 8
    drawn = offered[rng.integers(len(offered), size=(n_lists, n_draws))]
    if popular is not None:
        places = np.minimum(np.searchsorted(popular, rng.random((n_lists, n_draws))), len(offered) - 1)
        drawn = np.where(rng.random((n_lists, n_draws)) < EVEN_SHARE, drawn, offered[places])
    codes = users[:, None] * n_items + drawn
    # The positive of a held-out row is not in training, but it is no negative of its own list either.
    bad = drawn == positives[:, None]
    if len(seen):
        place = np.minimum(np.searchsorted(seen, codes), len(seen) - 1)
        bad |= seen[place] == codes
    drawn = np.where(bad, -1, drawn)
    return _distinct(drawn, n_negatives)


def _distinct(drawn: IntArray, n_wanted: int) -> IntArray:
    """The first ``n_wanted`` different non-negative values of each row, in their order, -1 behind them."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ranked = np.take_along_axis(drawn, order, axis=1)
    repeated = np.zeros_like(ranked, dtype=bool)
    repeated[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    bad = np.zeros_like(repeated)
    np.put_along_axis(bad, order, repeated | (ranked < 0), axis=1)
    front = np.argsort(bad, axis=1, kind="stable")[:, :n_wanted]
    found = np.take_along_axis(np.where(bad, -1, drawn), front, axis=1)
    if found.shape[1] < n_wanted:
        found = np.pad(found, ((0, 0), (0, n_wanted - found.shape[1])), constant_values=-1)
    return found.astype(np.int64)


def _with_hard(
    negatives: IntArray, positives: IntArray, pools: Sequence[IntArray], n_hard: int, rng: np.random.Generator
) -> IntArray:
    """``n_hard`` of each row's negatives replaced by items drawn from the retriever's pool of that query."""
    depth = max((len(pool) for pool in pools), default=0)
    if depth == 0:
        return negatives
    table = np.full((len(pools), depth), -1, np.int64)
    for row, pool in enumerate(pools):
        table[row, : len(pool)] = pool
    shuffled = np.take_along_axis(table, np.argsort(rng.random(table.shape), axis=1), axis=1)
    shuffled = np.where(shuffled == positives[:, None], -1, shuffled)
    hard = _distinct(shuffled, n_hard)
    # Hard ones are spread over the row, so that a task which uses only its first negatives gets its share.
    mixed = np.concatenate([hard, negatives], axis=1)
    n_negatives = negatives.shape[1]
    combined = _distinct(mixed, n_negatives)
    return np.take_along_axis(combined, np.argsort(rng.random(combined.shape), axis=1), axis=1)
