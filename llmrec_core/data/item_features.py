"""What training tells of each item, for metrics and policies: who has it, and which categories it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.contracts import IntArray
from llmrec_core.data.companions import Companions
from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting import Split

#: Categories kept, the most frequent ones: beyond these a category says little about the mix of a list.
_MAX_CATEGORIES = 1000
#: Items that hold this share of the training interactions are the short head, the others the long tail.
_HEAD_SHARE = 0.8
#: Share of the wanted mix that is added to the list's, so that a category without an item costs a finite amount.
_SMOOTHING = 0.01

Values = npt.NDArray[np.float64]


def kl_divergence(wanted: Values, mix: Values) -> Values:
    """KL(p || (1 - a) q + a p) in nats with a = .01, p the ``wanted`` mix and q the list's; 0: the same mix.

    (Steck, "Calibrated Recommendations", RecSys 2018.) Along the last axis; both arrays broadcast.
    """
    smooth = (1 - _SMOOTHING) * mix + _SMOOTHING * wanted
    ratio = np.divide(wanted, smooth, out=np.ones(np.shape(smooth)), where=wanted > 0)
    return np.asarray((wanted * np.log(ratio)).sum(axis=-1))


@dataclass(frozen=True)
class Categories:
    """Which categories each item has.

    Attributes:
        names: category names; with several fields ``field: name``.
        shares: sparse float64 [n_items, n_categories]; an item's categories share 1 evenly, a row without any is 0.
    """

    names: tuple[str, ...]
    shares: sp.csr_array

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which items have a category, [n_items]."""
        return np.diff(self.shares.indptr) > 0

    @cached_property
    def unit(self) -> sp.csr_array:
        """Category vectors of length 1, [n_items, n_categories]: their product is the cosine. 0 rows stay 0."""
        lengths = np.sqrt(np.asarray((self.shares * self.shares).sum(axis=1)).ravel())
        return sp.csr_array(sp.diags_array(1.0 / np.where(lengths > 0, lengths, 1.0)) @ self.shares)

    def mix(self, lists: Sequence[IntArray]) -> Values:
        """Mean shares of the items of each list that have a category, [n_lists, n_categories]; 0 where none has.

        Rows sum to 1 or 0. -1 is padding.
        """
        sizes = [len(items) for items in lists]
        line = np.repeat(np.arange(len(lists)), sizes)
        items = np.concatenate([*lists, np.empty(0, np.int64)]).astype(np.int64)
        # -1 reads the last item here, and is dropped by the mask.
        told = (items >= 0) & self.known[items]
        picked = sp.csr_array(
            (np.ones(int(told.sum())), (line[told], items[told])), shape=(len(lists), self.shares.shape[0])
        )
        sums = (picked @ self.shares).toarray()
        return np.asarray(sums / np.maximum(np.bincount(line[told], minlength=len(lists)), 1)[:, None])

    @classmethod
    def of(cls, dataset: Dataset, fields: Sequence[str] | None = None) -> Categories:
        """From item columns; None: the category columns of the dataset (none: no item has a category).

        Raises:
            InputError: there is no such column.
        """
        chosen = dataset.category_fields if fields is None else tuple(fields)
        companions = Companions(dataset)
        found: list[list[str]] = [[] for _ in range(dataset.n_items)]
        for field in chosen:
            before = f"{field}: " if len(chosen) > 1 else ""
            for idx, names in enumerate(found):
                names += dict.fromkeys(before + name for name in companions.categories(idx, field))
        counts = Counter(name for names in found for name in names)
        kept = sorted(sorted(counts), key=lambda name: -counts[name])[:_MAX_CATEGORIES]
        place = {name: column for column, name in enumerate(kept)}
        columns = [[place[name] for name in names if name in place] for names in found]
        sizes = np.array([len(row) for row in columns], np.int64)
        shares = sp.csr_array(
            (
                np.repeat(1.0 / np.maximum(sizes, 1), sizes),
                np.array([column for row in columns for column in row], np.int64),
                np.concatenate([[0], np.cumsum(sizes)]),
            ),
            shape=(dataset.n_items, len(kept)),
        )
        return cls(tuple(kept), shares)


@dataclass(frozen=True)
class ItemFeatures:
    """Facts of the training rows about items.

    Attributes:
        item_users: distinct training users of each item, int64 [n_items].
        n_users: distinct training users in all.
        categories: of the dataset's category columns.
    """

    item_users: IntArray
    n_users: int
    categories: Categories

    @classmethod
    def of(cls, split: Split) -> ItemFeatures:
        rows = split.labelled("train")
        n_items = split.dataset.n_items
        # Sorted, not hashed as by np.unique: many times faster on millions of pairs.
        pairs = np.sort(rows.user_idx * n_items + rows.item_idx)
        pairs = pairs[np.diff(pairs, prepend=-1) != 0]
        n_users = int(np.count_nonzero(np.diff(pairs // n_items, prepend=-1)))
        item_users = np.bincount(pairs % n_items, minlength=n_items).astype(np.int64)
        return cls(item_users, n_users, Categories.of(split.dataset))

    @cached_property
    def surprise(self) -> Values:
        """-log2 of the share of training users who have the item, in bits, [n_items].

        An item that nobody has counts as if one user had it, so that its value is the largest finite one.
        """
        return np.asarray(-np.log2(np.maximum(self.item_users, 1) / max(1, self.n_users)))

    @cached_property
    def tail(self) -> npt.NDArray[np.bool_]:
        """Long tail, [n_items]: all but the most popular items that together hold 80 % of the training interactions."""
        order = np.argsort(-self.item_users, kind="stable")
        held_before = np.cumsum(self.item_users[order]) - self.item_users[order]
        tail = np.empty(len(order), bool)
        tail[order] = held_before >= _HEAD_SHARE * self.item_users.sum()
        return tail

    @cached_property
    def chart_places(self) -> IntArray:
        """Place by popularity, 1 for the most popular, equal counts sharing a place, 0 where nobody has the item."""
        counts = np.unique(self.item_users)[::-1]
        place = len(counts) - np.searchsorted(counts[::-1], self.item_users)
        return np.where(self.item_users > 0, place, 0).astype(np.int64)
