"""How the test part of a split differs from what training saw: what a model meets that it was not prepared for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import RATING
from llmrec_core.data.splitting import Split
from llmrec_core.errors import DataError

_GROUPS = 10
_DRAWS = 5
_MAX_RATINGS = 20
#: Shares are not taken as smaller, so that an empty group counts as rare and not as infinitely far.
_SMALLEST = 1e-4
#: Rules of thumb of credit scoring for the population stability index: below, stable; above, another population.
_STABLE, _SHIFTED = 0.1, 0.25
#: Divergence over what chance alone gives: up to here nothing was seen, from there on a lot.
_LIKE_CHANCE, _FAR_FROM_CHANCE = 1.5, 4.0


@dataclass(frozen=True)
class Drift:
    """Test against training.

    Attributes:
        item_divergence: Jensen-Shannon divergence of item popularity in bits, 0 (same) to 1 (no item in common).
        item_divergence_chance: what a random part of training, as large as the test part, gives against the rest of
            training; mean of five seeded draws.
        item_psi: population stability index over ten groups of items, each with a tenth of the training rows, from
            the most popular items down; items that training never saw count in ``new_item_share`` alone.
        groups: (items of the group, share of training rows, share of test rows of known items).
        rating_mean_train, rating_mean_test, rating_psi: None without ratings in both parts.
        new_user_share, new_item_share: test rows of users and of items without a training row, 0 to 1.
        readings: what the numbers mean, in sentences.
    """

    n_train: int
    n_test: int
    item_divergence: float
    item_divergence_chance: float
    item_psi: float
    groups: list[tuple[int, float, float]]
    rating_mean_train: float | None
    rating_mean_test: float | None
    rating_psi: float | None
    new_user_share: float
    new_item_share: float
    readings: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def drift(split: Split, seed: int = 0) -> Drift:
    """Compares the test part with the training part of ``split``.

    Raises:
        DataError: one of the two has no rows.
    """
    if not len(split.train) or not len(split.test):
        raise DataError("drift needs rows for training and for testing.", where=split.dataset.name)
    table = split.dataset.interactions
    users, items = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    n_items, n_users = split.dataset.n_items, split.dataset.n_users
    train = np.bincount(items[split.train], minlength=n_items)
    test = np.bincount(items[split.test], minlength=n_items)
    known = train > 0
    seen_users = np.bincount(users[split.train], minlength=n_users) > 0
    groups = _popularity_groups(train, test)
    ratings = table[RATING].to_numpy(np.float64)
    mean_train, mean_test, rating_psi = _rating_shift(ratings[split.train], ratings[split.test])
    found = Drift(
        n_train=len(split.train),
        n_test=len(split.test),
        item_divergence=divergence(train, test),
        item_divergence_chance=_chance(train, len(split.test), seed),
        item_psi=stability([t for _, t, _ in groups], [t for _, _, t in groups]),
        groups=groups,
        rating_mean_train=mean_train,
        rating_mean_test=mean_test,
        rating_psi=rating_psi,
        new_user_share=float(1 - seen_users[users[split.test]].mean()),
        new_item_share=float(1 - known[items[split.test]].mean()),
        readings=[],
    )
    found.readings.extend(_readings(found))
    return found


def divergence(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence in bits of two distributions given as counts [n]; 0 where one has none.

    Mean of the Kullback-Leibler divergences from both to their middle (Lin, 1991).
    """
    p, q = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if not p.sum() or not q.sum():
        return 0.0
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def distance(a: npt.NDArray[np.float64]) -> float:
        at = a > 0
        return float((a[at] * np.log2(a[at] / middle[at])).sum())

    return min(1.0, max(0.0, (distance(p) + distance(q)) / 2))


def stability(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Population stability index of shares [n]: sum((actual - expected) * ln(actual / expected)), 0 for the same."""
    e, a = (np.maximum(np.asarray(x, np.float64), _SMALLEST) for x in (expected, actual))
    return float(((a - e) * np.log(a / e)).sum())


def _chance(train: npt.NDArray[np.int64], n_test: int, seed: int) -> float:
    """Divergence between a random part of training and its rest: drawn as counts, since only counts matter."""
    total = int(train.sum())
    size = min(n_test, total // 2)
    if not size:
        return 0.0
    rng = np.random.default_rng(seed)
    draws = [rng.multivariate_hypergeometric(train, size, method="marginals") for _ in range(_DRAWS)]
    return float(np.mean([divergence(train - part, part) for part in draws]))


def _popularity_groups(train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]) -> list[tuple[int, float, float]]:
    order = np.lexsort((np.arange(len(train)), -train))
    order = order[train[order] > 0]
    held = np.cumsum(train[order]) / train.sum()
    # An item belongs where its middle row lies, so that one very popular item fills a group of its own.
    group = np.minimum(((held - train[order] / train.sum() / 2) * _GROUPS).astype(int), _GROUPS - 1)
    shares = []
    of_test = max(1, int(test[order].sum()))
    for number in range(_GROUPS):
        mine = order[group == number]
        if len(mine):
            shares.append((len(mine), float(train[mine].sum() / train.sum()), float(test[mine].sum() / of_test)))
    return shares


def _rating_shift(
    train: npt.NDArray[np.float64], test: npt.NDArray[np.float64]
) -> tuple[float | None, float | None, float | None]:
    train, test = train[~np.isnan(train)], test[~np.isnan(test)]
    if not len(train) or not len(test):
        return None, None, None
    values = np.unique(train)
    if len(values) > _MAX_RATINGS:
        values = np.unique(np.quantile(train, np.linspace(0, 1, _GROUPS + 1)[:-1]))
    shares = []
    for part in (train, test):
        at = np.maximum(np.searchsorted(values, part, side="right") - 1, 0)
        shares.append(np.bincount(at, minlength=len(values)) / len(part))
    return float(train.mean()), float(test.mean()), stability(*shares)


def _readings(found: Drift) -> list[str]:
    said = []
    d, chance = found.item_divergence, found.item_divergence_chance
    if chance:
        ratio = d / chance
        level = "hardly differs" if ratio < _LIKE_CHANCE else "differs" if ratio < _FAR_FROM_CHANCE else "differs much"
        said.append(
            f"Item popularity {level} between training and test: by {d:.3f} bits, {ratio:.1f} times what chance alone "
            f"gives ({chance:.3f})."
        )
    else:
        said.append(f"Item popularity differs between training and test by {d:.3f} bits.")
    psi = found.item_psi
    level = "is as in training" if psi < _STABLE else "has shifted" if psi < _SHIFTED else "has shifted strongly"
    said.append(f"Interest in popular against rare items {level} (stability index {psi:.2f}).")
    new_users, new_items = 100 * found.new_user_share, 100 * found.new_item_share
    said.append(
        f"Training never saw the users of {new_users:.1f} % of the test rows, nor the items of {new_items:.1f} %."
    )
    if found.rating_mean_train is not None and found.rating_mean_test is not None:
        shift = found.rating_mean_test - found.rating_mean_train
        said.append(
            f"The mean rating goes from {found.rating_mean_train:.2f} to {found.rating_mean_test:.2f} ({shift:+.2f})."
        )
    return said
