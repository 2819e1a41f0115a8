"""Probabilities of titles behind many histories at once: each history with the tree of its titles stands in one row.

As in ``scoring`` nothing is padded: histories and trees stand end to end, linear layers go over all of them, and
attention by blocks: a history reads itself, and a node of a tree its history and the way that leads to it. Trees that
would fill batches by themselves, and models that take no such attention, are read one history after the other (see
``models.generation``). The probabilities are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from llmrec_core.contracts import IntArray
from llmrec_core.models.generation import MOST
from llmrec_core.models.trie import ROOT, Trie
from llmrec_core.training.scoring import Block, FlatBatch, attending_by_blocks, batch_tokens, block_of, read_flat

if TYPE_CHECKING:
    from llmrec_core.training.generative import WritingNetwork

#: States for which logits of all words of titles are made at once.
_STATES = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Tree:
    """What is read for the titles behind one head.

    Attributes:
        asked: rows of the questions, [n_asked].
        head: the tokens before.
        deciding: nodes at which something is decided, ascending.
        nodes: nodes that are read, branch by branch.
    """

    asked: IntArray
    head: Sequence[int]
    deciding: IntArray
    nodes: IntArray

    def __len__(self) -> int:
        """Tokens in all."""
        return len(self.head) + len(self.nodes)


def log_probs(
    network: WritingNetwork, heads: Sequence[Sequence[int]], head_of: IntArray, leaves: IntArray, rows: IntArray
) -> Iterator[tuple[IntArray, Floats]]:
    """Log-probabilities of titles, batch by batch: which of the questions, and their answers.

    Args:
        heads: texts that titles follow.
        head_of, leaves: of each question its head and the leaf of its title, [n].
        rows: the questions that are asked.
    """
    decoder, budget = network.decoder, batch_tokens(network)
    order = rows[np.argsort(head_of[rows], kind="stable")]
    batch: list[_Tree] = []
    used = 0
    for asked in np.split(order, np.flatnonzero(np.diff(head_of[order])) + 1) if len(order) else []:
        head = heads[int(head_of[asked[0]])]
        deciding = decoder.deciding(leaves[asked])
        tree = _Tree(asked, head, deciding, decoder.to_read(deciding))
        if not network.packed or len(tree.nodes) > MOST or len(tree) > budget:
            yield asked, decoder.log_probs(network.read(head), leaves[asked])
            continue
        if batch and used + len(tree) > budget:
            yield from _answers(network, batch, leaves)
            batch, used = [], 0
        batch.append(tree)
        used += len(tree)
    if batch:
        yield from _answers(network, batch, leaves)


def _answers(network: WritingNetwork, trees: list[_Tree], leaves: IntArray) -> Iterator[tuple[IntArray, Floats]]:
    decoder = network.decoder
    batch, places = _lay_out(network, trees)
    with attending_by_blocks(network.encoder):
        hidden = read_flat(network, batch)
    nodes, at = np.concatenate([tree.deciding for tree in trees]), np.concatenate(places)
    children, values = [np.empty(0, np.int64)], [np.empty(0)]
    for start in range(0, len(nodes), _STATES):
        some = slice(start, start + _STATES)
        states = hidden[torch.from_numpy(at[some]).to(hidden.device)]
        found, _, steps = decoder.continuations(states, nodes[some])
        children.append(found)
        values.append(steps.double().cpu().numpy())
    ends = np.cumsum([decoder.trie.n_children[tree.deciding].sum() for tree in trees[:-1]], dtype=np.int64)
    told = zip(np.split(np.concatenate(children), ends), np.split(np.concatenate(values), ends), strict=True)
    # What one tree decides is written anew for it, and nothing else is read of what others left.
    edges = np.zeros(decoder.trie.n_nodes)
    for tree, (decided, steps_of) in zip(trees, told, strict=True):
        edges[decided] = steps_of
        yield tree.asked, decoder.along(leaves[tree.asked], edges)


def _lay_out(network: WritingNetwork, trees: list[_Tree]) -> tuple[FlatBatch, list[IntArray]]:
    """Heads and trees end to end, and where in the row the state behind each deciding node of each tree is."""
    trie, device = network.decoder.trie, network.device
    ids: list[IntArray] = []
    positions: list[IntArray] = []
    blocks: list[Block] = []
    places: list[IntArray] = []
    at = 0
    for tree in trees:
        n_head, n_nodes = len(tree.head), len(tree.nodes)
        blocks.append(block_of(np.array([n_head]), slice(at, at), at, network))
        ids += [np.array(tree.head, np.int64), trie.token[tree.nodes]]
        positions += [np.arange(n_head), n_head - 1 + trie.depth[tree.nodes]]
        prefix = slice(at, at + n_head)
        at += n_head
        if n_nodes:
            place = torch.arange(at, at + n_nodes, device=device)[None]
            blocks.append(Block(slice(at, at + n_nodes), prefix, place, None, _ways(trie, tree.nodes).to(device)))
        # The root is decided behind the head's last token.
        by_number = np.argsort(tree.nodes)
        found = np.full(len(tree.deciding), at - 1)
        below = tree.deciding > ROOT
        found[below] = at + by_number[np.searchsorted(tree.nodes[by_number], tree.deciding[below])]
        places.append(found)
        at += n_nodes
    nothing = torch.empty(0, dtype=torch.int64)
    input_ids, position_ids = (torch.from_numpy(np.concatenate(part))[None].to(device) for part in (ids, positions))
    return FlatBatch(input_ids, position_ids, tuple(blocks), np.arange(len(trees)), nothing, nothing), places


def _ways(trie: Trie, nodes: IntArray) -> torch.Tensor:
    """What attention adds among nodes of a tree: a node reads itself and those on the way to it, [1, n, n]."""
    by_number = np.argsort(nodes)
    parents = trie.parent[nodes]
    below = np.flatnonzero(parents > ROOT)
    above = by_number[np.searchsorted(nodes[by_number], parents[below])]
    reads = np.eye(len(nodes), dtype=bool)
    depth = trie.depth[nodes[below]]
    for level in np.unique(depth):
        now = depth == level
        reads[below[now]] |= reads[above[now]]
    # A quarter of the smallest number: sums with it stay finite, and exp of them is 0.
    lowest = torch.finfo(torch.float32).min / 4
    return torch.zeros(1, *reads.shape).masked_fill_(torch.from_numpy(~reads), lowest)
