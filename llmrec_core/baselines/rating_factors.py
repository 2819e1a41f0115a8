"""Latent factors of ratings, whose prior knows who rated what: a Bayesian matrix factorisation with side information.

    rating(u, i) = mean + x_u . y_i + noise,    x_u = (p_u, a_u, 1),    y_i = (q_i, 1, b_i)

a and b are offsets of user and item, p and q their factors. x_u is normal around a linear function of the items that u
rated, y_i around one of the users who rated i (and of the item's text, where it is given): that somebody rated
something at all says much about the rating, which is what SVD++ found (Koren, KDD 2008), here on both sides. All is
learnt by mean-field variational inference with one precision a factor (Lim and Teh, KDD Cup 2007; the prior from
features as in Simm et al., "Macau", 2017), so that thin histories are trusted as little as they deserve. A query's user
is inferred from its history in closed form, as in training: new users are served like known ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._base import Arrays, Baseline, demand
from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    check_candidates,
    check_task,
)
from llmrec_core.errors import DataError, RunCancelledError
from llmrec_core.specs import RatingFactorsFields, RatingFactorsSpec

if TYPE_CHECKING:
    from llmrec_core.data import Split

Numbers = npt.NDArray[np.float64]

#: Passes before the priors move: at the start the factors are noise, and so would be what is learnt of them.
_PASSES_BEFORE_PRECISION, _PASSES_BEFORE_PRIOR = 3, 4
#: Steps of conjugate gradients a pass; they go on from the weights of the pass before.
_GRADIENT_STEPS = 8
#: Variance of the noise at the start, as a share of that of the ratings.
_FIRST_NOISE = 0.65


@dataclass(frozen=True)
class RatingRows:
    """Training rows for models of ratings.

    Attributes:
        users, items, ratings: rated rows, [n_rows].
        seen: who met what, rated or not, as ones, float64 CSR [n_users, n_items].
        scale: ends of the rating scale.
    """

    users: IntArray
    items: IntArray
    ratings: Numbers
    seen: sp.csr_array
    scale: tuple[float, float]

    @classmethod
    def of(cls, split: Split, family: str) -> RatingRows:
        """The training rows of ``split``.

        Raises:
            DataError: none of them has a rating.
        """
        dataset = split.dataset
        table = dataset.interactions
        ratings = table["rating"].to_numpy(np.float64)[split.train]
        users, items = (table[name].to_numpy(np.int64)[split.train] for name in ("user_idx", "item_idx"))
        rated = ~np.isnan(ratings)
        if not rated.any():
            raise DataError(
                f"{family} predicts ratings, and the training rows have none.",
                where=f"dataset {dataset.name}",
                fix="Use another family, or import a rating column.",
            )
        seen = sp.csr_array((np.ones(len(users)), (users, items)), shape=(dataset.n_users, dataset.n_items))
        seen.data[:] = 1.0
        low, high = dataset.rating_scale or (float(ratings[rated].min()), float(ratings[rated].max()))
        return cls(users[rated], items[rated], ratings[rated], seen, (low, high))


@dataclass(frozen=True)
class RatedHistory:
    """A query's history as positions: ``met`` all known items, ``rated`` those with ``ratings``."""

    met: IntArray
    rated: IntArray
    ratings: Numbers

    @classmethod
    def of(cls, query: Query, known: Mapping[str, int]) -> RatedHistory:
        """Items outside the catalogue are passed over."""
        found = [(known[entry.item_id], entry.rating) for entry in query.history if entry.item_id in known]
        rated = [(item, rating) for item, rating in found if rating is not None]
        return cls(
            np.unique(np.array([item for item, _ in found], np.int64)),
            np.array([item for item, _ in rated], np.int64),
            np.array([rating for _, rating in rated], np.float64),
        )


class RatingFactors:
    """The fitted model; :func:`learn_factors` makes one.

    Attributes:
        items: means of y, [n_items, n_factors + 2].
        moments: mean of y y^T, [n_items, (n_factors + 2) ** 2].
        from_met: what each met item adds to the mean of x's free part, [n_items, n_factors + 1].
        precision: of x's free part around that mean, [n_factors + 1].
        numbers: mean of the ratings, their deviation, variance of the noise in units of its square.
    """

    DTYPES: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("items", "moments", "from_met", "precision", "numbers"), "float64"
    )

    def __init__(self, items: Numbers, moments: Numbers, from_met: Numbers, precision: Numbers, numbers: Numbers):
        self.items, self.moments, self.from_met = items, moments, from_met
        self.precision, self.numbers = precision, numbers

    def user(self, history: RatedHistory) -> Numbers:
        """Mean of x given the history, [n_factors + 2]."""
        n_items = len(self.items)
        rated = _one_row(history.rated, np.ones(len(history.rated)), n_items)
        met = _one_row(history.met, np.ones(len(history.met)), n_items)
        return self.users(met, rated, _one_row(history.rated, history.ratings, n_items))[0]

    def users(self, met: sp.csr_array, rated: sp.csr_array, ratings: sp.csr_array) -> Numbers:
        """Means of x given histories, [n, n_factors + 2]; each row depends on its own history alone.

        Args:
            met: ones where an item was met, [n, n_items].
            rated, ratings: ones where it was rated, and the ratings in the same places; an item may stand there twice.
        """
        mean, deviation, noise = self.numbers
        size = self.items.shape[1]
        free, fixed = _free_of_user(size), size - 1
        prior = (met @ self.from_met) / np.sqrt(np.maximum(1, np.diff(met.indptr)))[:, None]
        left = sp.csr_array(((ratings.data - mean) / deviation, ratings.indices, ratings.indptr), shape=ratings.shape)
        spoken = np.asarray(rated @ self.moments).reshape(-1, size, size) / noise
        wanted = (left @ self.items)[:, free] / noise - spoken[:, free, fixed] + prior * self.precision
        found = np.empty((len(spoken), size))
        square = spoken[:, free[:, None], free] + np.diag(self.precision)
        found[:, free] = np.linalg.solve(square, wanted[:, :, None])[:, :, 0]
        found[:, fixed] = 1.0
        return found

    def predict(self, history: RatedHistory, items: IntArray) -> Numbers:
        """Expected ratings of ``items`` [n], not clipped."""
        mean, deviation, _ = self.numbers
        # A sum for each row on its own, so that a rating does not depend on what else is asked.
        return np.asarray(mean + deviation * (self.items[items] * self.user(history)).sum(axis=1))

    def tastes(self) -> Numbers:
        """Factors of the items without the offset, each as far as users differ in it, [n_items, n_factors]."""
        return np.asarray(self.items[:, :-2] / np.sqrt(self.precision[:-1]))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: getattr(self, name) for name in self.DTYPES}

    @classmethod
    def of_arrays(cls, arrays: Arrays, n_items: int) -> RatingFactors:
        """Raises: ValueError: they do not fit together or the catalogue."""
        found = cls(*(arrays[name] for name in cls.DTYPES))
        size = found.items.shape[-1]
        demand(found.items.shape == (n_items, size) and size >= 3 and found.moments.shape == (n_items, size * size))
        demand(found.from_met.shape == (n_items, size - 1) and found.precision.shape == (size - 1,))
        demand(found.numbers.shape == (3,) and bool((found.numbers[1:] > 0).all() and (found.precision > 0).all()))
        demand(all(bool(np.isfinite(array).all()) for array in found.arrays().values()))
        return found


def learn_factors(
    rows: RatingRows,
    spec: RatingFactorsFields,
    ctx: FitContext,
    rng: np.random.Generator,
    item_features: Numbers | None = None,
) -> RatingFactors:
    """Learns from ``rows``; ``item_features`` [n_items, n] stand beside the raters in the prior of the items.

    Raises:
        RunCancelledError: the run was cancelled.
    """
    deviation = float(rows.ratings.std()) or 1.0
    mean = float(rows.ratings.mean())
    left = (rows.ratings - mean) / deviation
    shape = rows.seen.shape
    ratings = sp.csr_array((left, (rows.users, rows.items)), shape=shape)
    counts = sp.csr_array((np.ones(len(left)), (rows.users, rows.items)), shape=shape)
    size = spec.n_factors + 2
    of_users, of_items = _unit_rows(rows.seen), _unit_rows(rows.seen.T.tocsr())
    if not spec.seen:
        of_users, of_items = of_users[:, :0], of_items[:, :0]
    if item_features is not None:
        of_items = sp.csr_array(sp.hstack([of_items, sp.csr_array(item_features)], format="csr"))
    users = _Side(size, _free_of_user(size), size - 1, of_users, rng)
    items = _Side(size, np.delete(np.arange(size), size - 2), size - 2, of_items, rng)
    by_user, by_item = (counts, ratings), (counts.T.tocsr(), ratings.T.tocsr())
    noise = _FIRST_NOISE
    for number in range(spec.n_iterations):
        if ctx.should_stop() == "cancel":
            raise RunCancelledError("the run was cancelled.")
        users.update(*by_user, items, noise, number, spec.prior_ridge)
        spoken = items.update(*by_item, users, noise, number, spec.prior_ridge)
        if number >= _PASSES_BEFORE_PRECISION:
            found = np.einsum("nk,nk->n", users.mean[rows.users], items.mean[rows.items])
            unsure = float((items.moments() * spoken).sum()) - float(found @ found)
            noise = max(1e-3, (float(((left - found) ** 2).sum()) + unsure) / len(left))
    from_met = users.weights if spec.seen else np.zeros((shape[1], size - 1))
    return RatingFactors(
        items.mean, items.moments(), from_met, users.precision, np.array([mean, deviation, noise], np.float64)
    )


class _Side:
    """Users or items while they are learnt.

    Attributes:
        mean, spread: of the vectors, [n, size] and [n, size, size]; ``fixed`` is 1 and sure, ``free`` the others.
        features, weights: the mean of the prior is ``features @ weights``, [n, n_features] and [n_features, size - 1].
        precision: of the free part around that mean, [size - 1].
    """

    def __init__(self, size: int, free: IntArray, fixed: int, features: sp.csr_array, rng: np.random.Generator):
        n = features.shape[0]
        self.free, self.fixed, self.features, self.across = free, fixed, features, features.T.tocsr()
        self.mean = np.zeros((n, size))
        self.mean[:, : size - 2] = rng.normal(0.0, 0.1, (n, size - 2))
        self.mean[:, fixed] = 1.0
        self.spread = np.zeros((n, size, size))
        self.precision = np.append(np.full(size - 2, float(size - 2)), 4.0)
        self.weights = np.zeros((features.shape[1], size - 1))

    def moments(self) -> Numbers:
        """Mean of each vector times itself, [n, size * size]."""
        outer = self.mean[:, :, None] * self.mean[:, None, :]
        return np.asarray((self.spread + outer).reshape(len(self.mean), -1))

    def update(
        self, counts: sp.csr_array, ratings: sp.csr_array, other: _Side, noise: float, number: int, ridge: float
    ) -> Numbers:
        """One pass: vectors given the other side, then the prior given the vectors.

        Returns:
            Sum of the other side's moments over the rows of each, [n, size * size].
        """
        size = self.mean.shape[1]
        spoken = counts @ other.moments()
        square = spoken.reshape(-1, size, size) / noise
        prior = self.features @ self.weights
        wanted = (ratings @ other.mean)[:, self.free] / noise - square[:, self.free, self.fixed]
        wanted += prior * self.precision
        spread = np.linalg.inv(square[:, self.free][:, :, self.free] + np.diag(self.precision))
        found = np.einsum("nij,nj->ni", spread, wanted)
        self.mean[:, self.free] = found
        self.spread[:, self.free[:, None], self.free] = spread
        if number >= _PASSES_BEFORE_PRIOR and len(self.weights):
            self._learn_prior(found, ridge)
            prior = self.features @ self.weights
        if number >= _PASSES_BEFORE_PRECISION:
            off = ((found - prior) ** 2).sum(axis=0) + np.einsum("nii->i", spread)
            self.precision = len(found) / np.maximum(off, 1e-6)
        return np.asarray(spoken)

    def _learn_prior(self, wanted: Numbers, ridge: float) -> None:
        """Ridge regression of the vectors on the features, by conjugate gradients (Hestenes and Stiefel, 1952)."""

        def times(weights: Numbers) -> Numbers:
            return np.asarray(self.across @ (self.features @ weights) + ridge * weights)

        residual = self.across @ wanted - times(self.weights)
        step, size = residual.copy(), (residual**2).sum(axis=0)
        for _ in range(_GRADIENT_STEPS):
            moved = times(step)
            rate = size / np.maximum((step * moved).sum(axis=0), 1e-30)
            self.weights = self.weights + rate * step
            residual = residual - rate * moved
            last, size = size, (residual**2).sum(axis=0)
            step = residual + size / np.maximum(last, 1e-30) * step


def _one_row(items: IntArray, values: Numbers, n_items: int) -> sp.csr_array:
    return sp.csr_array((values, items, np.array([0, len(items)])), shape=(1, n_items))


def _free_of_user(size: int) -> IntArray:
    return np.arange(size - 1)


def _unit_rows(seen: sp.csr_array) -> sp.csr_array:
    """``seen`` with rows of length 1, so that long histories do not shout."""
    counts = np.maximum(1, np.diff(seen.indptr))
    return sp.csr_array(sp.diags_array(1.0 / np.sqrt(counts)) @ seen)


class RatingFactorsRecommender(Baseline):
    """Ranks by expected rating, the mean of ``n_models`` models that began elsewhere.

    Without ratings in the history it goes by what was met, and without any history by the items alone.
    """

    family: ClassVar[str] = "rating-factors"
    spec_type: ClassVar[type[RatingFactorsFields]] = RatingFactorsSpec
    dtypes: ClassVar = {**RatingFactors.DTYPES, "scale": "float64"}

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, similar=True)

    def fit(self, split: Split, ctx: FitContext) -> None:
        """Raises: DataError where no training row has a rating."""
        rows = RatingRows.of(split, self.family)
        features = self._item_features(split, ctx)
        seeds = np.random.SeedSequence(ctx.seed).spawn(self.spec.n_models)
        self._models = [learn_factors(rows, self.spec, ctx, np.random.default_rng(seed), features) for seed in seeds]
        self._scale = np.array(rows.scale)
        self._know(split.dataset)

    def _item_features(self, split: Split, ctx: FitContext) -> Numbers | None:
        """What stands beside the raters of an item in its prior, [n_items, n]; None: nothing."""
        return None

    def item_vectors(self) -> FloatArray:
        """Factors of the items without their offsets, of all models side by side."""
        self._known_items()
        return np.concatenate([model.tastes() for model in self._models], axis=1).astype(np.float32)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        check_task(task, self.capabilities.tasks)
        known = self._known_items()
        items = check_candidates(candidates, len(queries), self.n_items)
        scores = np.empty(items.shape, np.float32)
        for row, query in enumerate(queries):
            history = RatedHistory.of(query, known)
            asked = np.maximum(items[row], 0)
            scores[row] = np.mean([model.predict(history, asked) for model in self._models], axis=0)
        scores[items < 0] = -np.inf
        return scores

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        return on_scale(self.score(queries, candidates), self._scale)

    def _arrays(self) -> Arrays:
        parts = [model.arrays() for model in self._models]
        return {**{name: np.stack([part[name] for part in parts]) for name in parts[0]}, "scale": self._scale}

    def _take(self, arrays: Arrays, n_items: int) -> None:
        self._scale = arrays["scale"]
        demand(self._scale.shape == (2,) and bool(np.isfinite(self._scale).all()))
        demand(all(len(arrays[name]) == self.spec.n_models for name in RatingFactors.DTYPES))
        self._models = [
            RatingFactors.of_arrays({name: arrays[name][number] for name in RatingFactors.DTYPES}, n_items)
            for number in range(self.spec.n_models)
        ]


def on_scale(scores: FloatArray, scale: Numbers) -> FloatArray:
    """Ratings inside the scale; padding (-inf) stays."""
    return np.where(np.isneginf(scores), scores, np.clip(scores, *scale)).astype(np.float32)
