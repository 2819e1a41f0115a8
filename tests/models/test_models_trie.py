"""The trie by hand, and what holds for any titles."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.models.trie import ROOT, Trie

END = 9
TITLES = [[1, 2, 3], [1, 2], [1, 2, 3], [4], [1, 5, 6, 7]]


def tokens(trie: Trie, title: int) -> list[int]:
    return [int(trie.token[node]) for node in trie.path(int(trie.leaf_of[title]))]


def test_by_hand():
    trie = Trie.of(TITLES, END)
    # root; 1, 4; 2, 5, end of [4]; 3, end of [1 2], 6; end of [1 2 3], 7; end of [1 5 6 7]
    assert trie.n_nodes == 12
    assert [tokens(trie, title) for title in range(5)] == [[*title, END] for title in TITLES]
    assert trie.leaf_of[0] == trie.leaf_of[2]
    assert trie.titles_at(int(trie.leaf_of[0])).tolist() == [0, 2]
    assert sorted(trie.token[trie.children(np.array([ROOT]))[0]].tolist()) == [1, 4]
    branching = np.flatnonzero(trie.n_children > 1)
    assert trie.depth[branching].tolist() == [0, 1, 2]
    assert trie.words.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    # After 1 5 only 6 7 end can follow, after 1 two ways are open.
    five = trie.path(int(trie.leaf_of[4]))[1]
    assert trie.settled[five] == trie.leaf_of[4]
    assert trie.settled[trie.path(int(trie.leaf_of[0]))[0]] == branching[1]
    assert trie.count_below(np.array([True, False, True, False, False]))[ROOT] == 2
    assert trie.count_below(np.array([False, True, False, False, True]))[branching[2]] == 1


def test_nothing_and_one_title():
    assert Trie.of([], END).n_nodes == 1
    one = Trie.of([[]], END)
    assert one.path(int(one.leaf_of[0])) == [1]
    assert one.settled[ROOT] == 1


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=25))
def test_any_titles(titles: list[list[int]]):
    trie = Trie.of(titles, END)
    assert [tokens(trie, title) for title in range(len(titles))] == [[*title, END] for title in titles]
    assert trie.n_nodes == 1 + len({tuple([*t, END][:n]) for t in titles for n in range(1, len(t) + 2)})
    assert (trie.parent[1:] < np.arange(1, trie.n_nodes)).all()
    leaves = np.flatnonzero(trie.n_children == 0)
    assert sorted(trie.leaf_of.tolist()) == sorted(np.repeat(leaves, trie.n_titles[leaves]).tolist())
    children, owner = trie.children(np.arange(trie.n_nodes))
    assert (trie.parent[children] == owner).all()
    assert len(children) == trie.n_nodes - 1
    # Reading order: a node comes after its parent, and everything below it before its next sibling.
    order = np.argsort(trie.reading_order)
    assert sorted(order.tolist()) == list(range(trie.n_nodes))
    seen: list[int] = []
    for node in order.tolist()[1:]:
        while seen and trie.parent[node] != seen[-1]:
            seen.pop()
        assert trie.parent[node] == (seen[-1] if seen else ROOT)
        seen.append(node)
    wanted = np.arange(len(titles)) % 2 == 0
    below = trie.count_below(wanted)
    for node in range(trie.n_nodes):
        under = [t for t in range(len(titles)) if node == ROOT or node in trie.path(int(trie.leaf_of[t]))]
        assert below[node] == sum(wanted[t] for t in under)
        assert trie.n_titles[node] == len(under)
