"""A list of policies put to work on the rankings of a batch of users.

The recommender gives each user's best candidates (``depth`` of them, and as many more as blocklists could take away).
Policies then decide which k of them make the list. Inside the list the recommender's own order stays, and every item
keeps the recommender's score, so scores compare with and without policies. What is blocked is out before anybody
chooses; caps are kept last, on the finished list. A list is shorter than k where rules leave no more candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.contracts import FloatArray, IntArray, Query, Recommender
from llmrec_core.data import Dataset
from llmrec_core.data.companions import Companions
from llmrec_core.data.item_features import Categories, ItemFeatures, Values
from llmrec_core.errors import InputError
from llmrec_core.policies.caps import CategoryLimit, fill, fill_with_exposure, max_lists
from llmrec_core.policies.choosing import Mask, blocks, by_calibration, by_diversity, by_novelty
from llmrec_core.specs import (
    BlocklistSpec,
    CalibrationSpec,
    CategoryCapSpec,
    DiversitySpec,
    ExposureSpec,
    NoveltySpec,
    PolicySpec,
    in_order,
)


@dataclass(frozen=True)
class Candidates:
    """A recommender's best items of each user, best first.

    Attributes:
        items: int64 [n_users, n_candidates], -1 padded at the end. scores: float32, same shape, NaN there.
        wanted: category mix of each user's history, [n_users, n_categories], rows sum to 1 or 0.
    """

    items: IntArray
    scores: FloatArray
    wanted: Values


@dataclass(frozen=True)
class Stage:
    """The lists after one policy (None: before the first): items [n_users, k], -1 padded, and scores, NaN there."""

    policy: PolicySpec | None
    items: IntArray
    scores: FloatArray


@dataclass(frozen=True)
class Applied:
    """``without``: the lists before any policy; ``stages``: after the first, the second ... policy of the chain."""

    without: Stage
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        return self.stages[-1] if self.stages else self.without


class PolicyChain:
    """Policies with all they need to know of the items; build one with :func:`llmrec_core.policies.build_chain`.

    Args:
        policies: each novelty policy with its strength known; brought into the order in which they act.
        depth: best items of each user that policies choose from; never fewer than the list is long.
        dataset: the catalogue.
        features: what training tells of the items.
        vectors: item vectors of the recommender, [n_items, size], zero or NaN rows for items without one.
        notes: what a person should know about how the policies were set.

    Raises:
        InputError: a field or kind of similarity that this dataset and recommender do not have.
    """

    def __init__(
        self,
        policies: Sequence[PolicySpec],
        depth: int,
        dataset: Dataset,
        features: ItemFeatures,
        vectors: FloatArray | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.policies = in_order(policies)
        self.depth = depth
        self.dataset = dataset
        self.features = features
        self._vectors = vectors
        self.notes = list(notes)
        #: item_idx -> (reason code, the rule that names it).
        self.blocked: dict[int, tuple[str, str]] = {}
        self._gone: list[IntArray] = []
        check_data(self.policies, dataset)
        for policy in self.policies:
            if isinstance(policy, BlocklistSpec):
                self._block(policy)
            elif isinstance(policy, NoveltySpec) and policy.strength is None:
                raise InputError("the strength of the novelty policy is not known.", fix="Use build_chain to find it.")
            elif isinstance(policy, CalibrationSpec) and not features.categories.names:
                raise _no_categories(dataset)
        if any(isinstance(policy, DiversitySpec) for policy in self.policies):
            _ = self.item_space  # whether there is one is to be known before anything is ranked

    def with_novelty(self, strength: float) -> PolicyChain:
        """The same chain with another strength of its novelty policy."""
        other = copy(self)
        other.notes = list(self.notes)
        other.policies = tuple(
            policy.model_copy(update={"strength": strength}) if isinstance(policy, NoveltySpec) else policy
            for policy in self.policies
        )
        return other

    def candidates(
        self, recommender: Recommender, queries: Sequence[Query], k: int, exclude: Sequence[IntArray]
    ) -> Candidates:
        """The best items for each query, enough for lists of k whatever is blocked; ``exclude`` as in ``top_k``."""
        n = min(max(k, self.depth) + len(self.blocked), self.dataset.n_items)
        found = recommender.top_k(queries, n, exclude)
        items, scores = np.full((len(queries), n), -1, np.int64), np.full((len(queries), n), np.nan, np.float32)
        for line, ranking in enumerate(found):
            items[line, : len(ranking.items)] = ranking.items
            scores[line, : len(ranking.items)] = ranking.scores
        return Candidates(items, scores, self.wanted(queries))

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """Candidates of several blocks of users as one batch; there must be a block."""
        return Candidates(
            np.vstack([part.items for part in parts]),
            np.vstack([part.scores for part in parts]),
            np.vstack([part.wanted for part in parts]),
        )

    def wanted(self, queries: Sequence[Query]) -> Values:
        """Category mix of each history, [n_queries, n_categories]; a row of 0 where nothing is known."""
        index = self.dataset.item_index
        histories = [np.array([index[h.item_id] for h in q.history if h.item_id in index], np.int64) for q in queries]
        return self.features.categories.mix(histories)

    def apply(self, found: Candidates, k: int) -> Applied:
        """Lists of k, without and after each policy. Users are one batch: exposure counts over all of them."""
        work = _Work.of(found)
        stages: list[Stage] = []
        first = sum(isinstance(policy, BlocklistSpec) for policy in self.policies)
        for policy, gone in zip(self.policies[:first], self._gone, strict=True):
            work = work.keep(~np.isin(work.items, gone))
            stages.append(work.stage(policy, k))
        work = work.cut(max(k, self.depth))
        limits: list[CategoryLimit] = []
        cap: int | None = None
        for policy in self.policies[first:]:
            if isinstance(policy, CategoryCapSpec | ExposureSpec):
                if isinstance(policy, CategoryCapSpec):
                    limits.append(CategoryLimit(self.cap_categories(policy).shares, policy.max_items))
                else:
                    cap = max_lists(policy.max_share, len(work.items))
                stages.append(work.keep(self._within(work.items, k, limits, cap)).stage(policy, k))
            else:
                work = work.first(self._choose(policy, work, found.wanted, k))
                stages.append(work.stage(policy, k))
        return Applied(_Work.of(found).stage(None, k), tuple(stages))

    def _choose(self, policy: PolicySpec, work: _Work, wanted: Values, k: int) -> Mask:
        items, values = work.items, work.values
        valid = items >= 0
        if isinstance(policy, NoveltySpec):
            assert policy.strength is not None  # checked when the chain was made
            return by_novelty(values, self.features.surprise[items], valid, k, policy.strength)
        taken = np.zeros(items.shape, bool)
        if isinstance(policy, DiversitySpec):
            space = self.item_space
            for part in blocks(len(items), items.shape[1] * space.shape[1]):
                rows = rows_of(space, items[part])
                taken[part] = by_diversity(values[part], rows, valid[part], k, policy.strength)
            return taken
        assert isinstance(policy, CalibrationSpec)
        shares = self.features.categories.shares
        for part in blocks(len(items), 3 * items.shape[1] * shares.shape[1]):
            rows = rows_of(shares, items[part])
            taken[part] = by_calibration(values[part], rows, wanted[part], valid[part], k, policy.strength)
        return taken

    def _within(self, items: IntArray, k: int, limits: Sequence[CategoryLimit], cap: int | None) -> Mask:
        if cap is None:
            return fill(items, np.zeros(items.shape, bool), k, limits)
        return fill_with_exposure(items, k, limits, cap, self.dataset.n_items)

    def cap_categories(self, policy: CategoryCapSpec) -> Categories:
        """The categories that a cap counts."""
        if policy.field is None:
            return self.features.categories
        if policy.field not in self._fields:
            self._fields[policy.field] = Categories.of(self.dataset, [policy.field])
        return self._fields[policy.field]

    @cached_property
    def _fields(self) -> dict[str, Categories]:
        return {}

    @cached_property
    def item_space(self) -> sp.csr_array | FloatArray:
        """Rows of length 1 whose products are likeness, [n_items, size]: categories, or vectors of the recommender.

        Items of which nothing is known share a direction of their own: they are alike to one another and to nobody
        else, so that a list cannot become diverse by showing what nobody has described.

        Raises:
            InputError: there is neither.
        """
        kind = next((policy.similarity for policy in self.policies if isinstance(policy, DiversitySpec)), "auto")
        if kind == "both":
            # Half of the likeness from each: products of the joined rows are the mean of both products.
            return np.hstack([self._category_space.toarray(), self._vector_space]).astype(np.float32) / np.sqrt(2.0)
        if kind == "vectors" or (kind == "auto" and not self.features.categories.names):
            return self._vector_space
        return self._category_space

    @property
    def _category_space(self) -> sp.csr_array:
        categories = self.features.categories
        if not categories.names:
            raise _no_categories(self.dataset)
        return sp.csr_array(sp.hstack([categories.unit, sp.csr_array((~categories.known).astype(float)[:, None])]))

    @property
    def _vector_space(self) -> FloatArray:
        if self._vectors is None:
            raise InputError(
                "this recommender has no item vectors to compare items by.",
                where="policies",
                fix="Use similarity categories, or leave diversity out.",
            )
        vectors = np.nan_to_num(np.asarray(self._vectors, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unknown = (lengths == 0).astype(np.float64)
        return np.hstack([vectors / np.where(lengths > 0, lengths, 1.0), unknown]).astype(np.float32)

    def _block(self, policy: BlocklistSpec) -> None:
        """Adds the items of one blocklist; the first that names an item gives its reason."""
        index = self.dataset.item_index
        strangers = [item for item in policy.items if item not in index]
        if strangers:
            self.notes.append(
                f"{len(strangers)} blocked item(s) are not in the catalogue: {', '.join(strangers[:5])[:200]}."
            )
        found: dict[int, str] = {index[item]: "listed" for item in policy.items if item in index}
        for rule, items in matching(self.dataset, policy.rules).items():
            for item in items:
                found.setdefault(item, rule)
            if not items:
                self.notes.append(f"no item matches the blocklist's rule {rule[:80]!r}.")
        for item, why in found.items():
            self.blocked.setdefault(item, (policy.reason, why))
        self._gone.append(np.array(sorted(found), np.int64))


def check_data(policies: Sequence[PolicySpec], dataset: Dataset) -> None:
    """Whether the items have what policies ask for; to be known before anything is trained.

    Raises:
        InputError: a field that items do not have, or no categories where a policy cannot do without.
    """
    for policy in policies:
        fields = [rule.partition("=")[0].strip() for rule in policy.rules] if isinstance(policy, BlocklistSpec) else []
        if isinstance(policy, CategoryCapSpec):
            fields = [] if policy.field is None else [policy.field]
        for field in fields:
            if field not in dataset.items.columns:
                raise InputError(
                    f"items have no field {field[:80]!r}.",
                    where="policies",
                    fix=f"Fields are: {', '.join(map(str, dataset.items.columns))}.",
                )
        by_category = isinstance(policy, DiversitySpec) and policy.similarity in ("categories", "both")
        by_category |= isinstance(policy, CategoryCapSpec) and policy.field is None
        if (by_category or isinstance(policy, CalibrationSpec)) and not dataset.category_fields:
            raise _no_categories(dataset)


def _no_categories(dataset: Dataset) -> InputError:
    return InputError(
        f"items of dataset {dataset.name!r} have no categories.",
        where="policies",
        fix="Import items with a category column, or leave calibration and likeness by categories out.",
    )


def matching(dataset: Dataset, rules: Sequence[str]) -> Mapping[str, list[int]]:
    """Rule ``field=value`` -> item_idx with that value, or with it among single values; case is ignored."""
    companions = Companions(dataset)
    found: dict[str, list[int]] = {}
    for rule in rules:
        field, _, value = (part.strip() for part in rule.partition("="))
        wanted = value.casefold()
        found[rule] = [
            item
            for item in range(dataset.n_items)
            if wanted == dataset.item_text(item, field).strip().casefold()
            or wanted in {name.casefold() for name in companions.categories(item, field)}
        ]
    return found


@dataclass(frozen=True)
class _Work:
    """Candidates in the order that policies have given them so far.

    Attributes:
        all_items, all_scores: as in :class:`Candidates`, with a column of padding at the end.
        place: columns of these as they stand now, [n_users, n_places]; the last column is nobody.
    """

    all_items: IntArray
    all_scores: FloatArray
    place: IntArray

    @classmethod
    def of(cls, found: Candidates) -> _Work:
        n, m = found.items.shape
        return cls(
            np.hstack([found.items, np.full((n, 1), -1, np.int64)]),
            np.hstack([found.scores, np.full((n, 1), np.nan, np.float32)]),
            np.where(found.items >= 0, np.arange(m), m),
        )

    @cached_property
    def items(self) -> IntArray:
        return np.take_along_axis(self.all_items, self.place, axis=1)

    @cached_property
    def values(self) -> Values:
        """What standing at a place is worth, whoever stands there: falling [n_users, n_places].

        The recommender's scores in their own order, so that a choice counts as if the recommender had made it.
        """
        scores = np.take_along_axis(self.all_scores, np.sort(self.place, axis=1), axis=1)
        return np.nan_to_num(scores.astype(np.float64), nan=0.0)

    def keep(self, kept: Mask) -> _Work:
        """Those that are kept, in their order; the others are gone."""
        return replace(self, place=np.where(kept, self.place, self.all_items.shape[1] - 1)).first(kept)

    def first(self, taken: Mask) -> _Work:
        """Those that are taken before the others, both in their order."""
        order = np.argsort(~taken, axis=1, kind="stable")
        return replace(self, place=np.take_along_axis(self.place, order, axis=1))

    def cut(self, depth: int) -> _Work:
        return replace(self, place=self.place[:, :depth])

    def stage(self, policy: PolicySpec | None, k: int) -> Stage:
        """Who is in, in the recommender's own order."""
        place = np.sort(self.place[:, :k], axis=1)
        return Stage(
            policy,
            np.take_along_axis(self.all_items, place, axis=1),
            np.take_along_axis(self.all_scores, place, axis=1),
        )


def rows_of(space: sp.csr_array | npt.NDArray[np.floating], items: IntArray) -> Values:
    """Rows of ``space`` for each candidate, dense [n_users, n_candidates, size]; 0 for padding."""
    rows = space[items.ravel()]
    dense = np.asarray(rows if isinstance(rows, np.ndarray) else rows.toarray(), np.float64)
    dense[items.ravel() < 0] = 0.0
    return dense.reshape(*items.shape, -1)
