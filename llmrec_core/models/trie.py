"""A trie of token sequences as flat arrays: which tokens may follow a beginning so that a known title comes out.

Nodes are numbered level by level, and within a level in the order of the sorted sequences. So parents stand before
their children, and the children of a node are neighbours. No PyTorch here: it is built once a catalogue, in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import IntArray

ROOT = 0
_NOTHING = -1


@dataclass(frozen=True)
class Trie:
    """Titles as paths from node 0; every title ends at a leaf, and equal titles at the same one.

    Attributes:
        token: token that leads into a node, int64 [n_nodes]; -1 for the root.
        parent: node before it, [n_nodes]; -1 for the root.
        depth: tokens from the root, [n_nodes].
        child_start: children of node v are ``child_start[v]`` up to ``child_start[v + 1]``, [n_nodes + 1].
        leaf_of: the leaf of each title, [n_titles].
        first, n_titles: with titles sorted, those below a node are ``n_titles`` in a row from ``first``, [n_nodes].
        order: title at each place of the sorted list, [n_titles].
    """

    token: IntArray
    parent: IntArray
    depth: IntArray
    child_start: IntArray
    leaf_of: IntArray
    first: IntArray
    n_titles: IntArray
    order: IntArray

    @classmethod
    def of(cls, titles: Sequence[Sequence[int]], end: int) -> Trie:
        """The trie of ``titles``, each closed by ``end``; an ``end`` inside a title is left out.

        The closing token makes a title that begins another one ("Alien", "Alien 3") a leaf of its own.
        """
        rows = [[*(token for token in title if token != end), end] for title in titles]
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        width = int(lengths.max(initial=1))
        inside = np.arange(width) < lengths[:, None]
        table = np.full((len(rows), width), _NOTHING, np.int32)
        table[inside] = np.fromiter((token for row in rows for token in row), np.int32, int(lengths.sum()))
        order = np.lexsort(table.T[::-1]) if len(rows) else np.empty(0, np.int64)
        table, inside = table[order], inside[order]
        # The first column in which a row is not the one above it: deeper nodes of the row are new.
        differs = np.ones((len(rows), width), bool)
        differs[1:] = table[1:] != table[:-1]
        fresh = np.logical_or.accumulate(differs, axis=1)
        token, parent, depth = [np.array([_NOTHING])], [np.array([_NOTHING])], [np.array([0])]
        first, below = [np.array([0])], [np.array([len(rows)])]
        at = np.zeros(len(rows), np.int64)
        n_nodes = 1
        for column in range(width):
            here = inside[:, column]
            new = np.flatnonzero(here & fresh[:, column])
            token.append(table[new, column])
            parent.append(at[new])
            depth.append(np.full(len(new), column + 1))
            first.append(new)
            number = np.cumsum(here & fresh[:, column]) - 1
            below.append(np.bincount(number[here], minlength=len(new)))
            at = np.where(here, n_nodes + number, at)
            n_nodes += len(new)
        leaf_of = np.empty(len(rows), np.int64)
        leaf_of[order] = at
        parents = np.concatenate(parent).astype(np.int64)
        n_children = np.bincount(parents[1:], minlength=n_nodes)
        child_start = 1 + np.concatenate([[0], np.cumsum(n_children)]).astype(np.int64)
        arrays = [np.concatenate(part).astype(np.int64) for part in (token, depth, first, below)]
        return cls(arrays[0], parents, arrays[1], child_start, leaf_of, arrays[2], arrays[3], order.astype(np.int64))

    @property
    def n_nodes(self) -> int:
        return len(self.token)

    @cached_property
    def n_children(self) -> IntArray:
        """[n_nodes]; 0 for leaves, 1 where only one continuation is allowed."""
        return np.diff(self.child_start)

    @cached_property
    def words(self) -> IntArray:
        """The distinct tokens that occur, ascending."""
        return np.unique(self.token[1:])

    @cached_property
    def column(self) -> IntArray:
        """Place of each node's token in :attr:`words`, [n_nodes]; the root's means nothing."""
        return np.searchsorted(self.words, self.token).astype(np.int64)

    @cached_property
    def settled(self) -> IntArray:
        """[n_nodes]: where one comes to by following single continuations: a node with several of them, or a leaf."""
        found = np.arange(self.n_nodes, dtype=np.int64)
        for level in range(int(self.depth.max()), -1, -1):
            nodes = np.flatnonzero((self.depth == level) & (self.n_children == 1))
            found[nodes] = found[self.child_start[nodes]]
        return found

    @cached_property
    def reading_order(self) -> IntArray:
        """[n_nodes]: rank of each node when every branch is read to its end before the next one."""
        rank = np.empty(self.n_nodes, np.int64)
        rank[np.lexsort((self.depth, self.first))] = np.arange(self.n_nodes)
        return rank

    def children(self, nodes: IntArray) -> tuple[IntArray, IntArray]:
        """All children of ``nodes`` in a row: (their numbers, the position in ``nodes`` that each belongs to)."""
        counts = self.n_children[nodes]
        owner = np.repeat(np.arange(len(nodes), dtype=np.int64), counts)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.child_start[nodes][owner] + offset, owner

    def ancestors(self, nodes: IntArray) -> npt.NDArray[np.bool_]:
        """Which nodes lie on the way from the root to any of ``nodes``, themselves included, bool [n_nodes]."""
        found = np.zeros(self.n_nodes, bool)
        current = np.unique(nodes)
        while len(current):
            found[current] = True
            current = np.unique(self.parent[current])
            current = current[current >= 0]
            current = current[~found[current]]
        return found

    def path(self, node: int, above: int = ROOT) -> list[int]:
        """Nodes from below ``above`` (an ancestor) down to ``node``."""
        found = []
        while node != above:
            found.append(node)
            node = int(self.parent[node])
        return found[::-1]

    def count_below(self, wanted: npt.NDArray[np.bool_]) -> IntArray:
        """How many of the ``wanted`` titles (bool [n_titles]) lie below each node, [n_nodes]."""
        total = np.concatenate([[0], np.cumsum(wanted[self.order])])
        return total[self.first + self.n_titles] - total[self.first]

    def titles_at(self, leaf: int) -> IntArray:
        """The titles that end at ``leaf``, ascending."""
        start = self.first[leaf]
        return np.sort(self.order[start : start + self.n_titles[leaf]])
