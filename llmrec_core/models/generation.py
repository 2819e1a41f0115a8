"""What a decoder would write next: exact probabilities of known titles, the best of them, and free text.

A title's probability is the product, over the places of the trie where several tokens may follow, of the softmax over
just these tokens. So the probabilities of all titles sum to 1; what must follow costs nothing, so that a long title or
a rare name is no worse for being long or rare; and no token is read that does not decide anything. (The other reading,
products over the whole vocabulary, charges every title for its length and for how unusual its words are.)

What remains is that a model finds some titles likelier than others whoever is asked about. Calibration takes that out
(:meth:`TitleDecoder.calibrate`): at each branch its own opinion behind an empty history is divided out and a given one,
popularity, put in. So a history moves the probabilities by what it adds, and none leaves them as they were (the idea of
contextual calibration, Zhao et al., ICML 2021, and of PMI scoring, Holtzman et al., EMNLP 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmrec_core.contracts import IntArray
from llmrec_core.models.label_words import LanguageHead, language_head
from llmrec_core.models.loading import Backbone
from llmrec_core.models.trie import ROOT, Trie

#: Tokens read at once of or behind one beginning: attention among them grows with the square. Of known titles fewer
#: are enough, since all of them are at hand.
MOST, _CHUNK = 512, 256

Floats = npt.NDArray[np.float64]


def log_softmax_within(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Log-softmax of ``values`` [n] over those of the same ``group`` (int64 [n], 0 to n_groups - 1)."""
    top = torch.full((n_groups,), -torch.inf, device=values.device).scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    total = torch.zeros(n_groups, device=values.device).index_add(0, group, shifted.exp())
    return shifted - total.log()[group]


class Beginning:
    """A text that was read once, on which any number of trees can grow.

    Args:
        backbone: a decoder in evaluation mode.
        tokens: at least one token.
        packed: whether the model takes a tree mask: then its keys and values are kept and shared by all branches. Else
            each branch is read as a text of its own.
        autocast: dtype of matrix products under autocast; None: as the weights are.
        at_once: tokens read at once at most, of the beginning itself (where the model takes a tree mask) and behind it.

    Attributes:
        state: hidden state behind the last token, [hidden_size].
    """

    @torch.inference_mode()
    def __init__(
        self,
        backbone: Backbone,
        tokens: Sequence[int],
        *,
        packed: bool,
        autocast: torch.dtype | None = None,
        at_once: int = MOST,
    ) -> None:
        self.backbone, self.tokens, self.packed, self.autocast = backbone, list(tokens), packed, autocast
        self.at_once = at_once
        ids = torch.tensor([self.tokens], device=backbone.device)
        self._cache: Any = None
        for part in ids.split(at_once, dim=1) if packed else [ids]:
            found = self.run(input_ids=part, use_cache=packed, past_key_values=self._cache)
            self._cache = found.past_key_values if packed else None
        self.state: Tensor = found.last_hidden_state[0, -1]

    def run(self, **inputs: Any) -> Any:
        """One call of the model."""
        device = self.backbone.device
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.backbone.model(**inputs)

    def cache(self) -> Any:
        """A copy of the keys and values, to be grown."""
        return copy.deepcopy(self._cache)


class Tree:
    """What may follow a beginning; nodes are numbered as they are added, from 0."""

    def __init__(self, beginning: Beginning) -> None:
        self._from = beginning
        self._cache = beginning.cache()
        self._tokens: list[int] = []
        #: Row i: which nodes lie on the way to node i, itself included.
        self._ways: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Adds nodes and reads them.

        Args:
            tokens: [n].
            parents: for each the node it follows, -1 for the beginning; one added in the same call must stand before.

        Returns:
            Hidden state behind each new node, [n, hidden_size].
        """
        parts, most = [], self._from.at_once
        for start in range(0, len(tokens), most):
            for token, parent in zip(tokens[start : start + most], parents[start : start + most], strict=True):
                self._ways.append([*(self._ways[parent] if parent >= 0 else ()), len(self._tokens)])
                self._tokens.append(int(token))
            n_new = min(most, len(tokens) - start)
            parts.append(self._read(n_new) if self._from.packed else self._read_alone(n_new))
        return torch.cat(parts)

    def _read(self, n_new: int) -> Tensor:
        n_before, n_all = len(self._from.tokens), len(self._tokens)
        device, dtype = self._from.backbone.device, self._from.autocast or self._from.backbone.model.dtype
        allowed = np.zeros((n_new, n_before + n_all), bool)
        allowed[:, :n_before] = True
        ways = self._ways[-n_new:]
        rows = np.repeat(np.arange(n_new), [len(way) for way in ways])
        allowed[rows, n_before + np.fromiter((node for way in ways for node in way), np.int64, len(rows))] = True
        mask = torch.zeros(allowed.shape, dtype=dtype)
        mask = mask.masked_fill_(torch.from_numpy(~allowed), torch.finfo(dtype).min / 4)
        positions = torch.tensor([[n_before + len(way) - 1 for way in ways]])
        return self._from.run(
            input_ids=torch.tensor([self._tokens[-n_new:]], device=device),
            attention_mask=mask[None, None].to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[0]

    def _read_alone(self, n_new: int) -> Tensor:
        first = len(self._tokens) - n_new
        inside = {node for way in self._ways[first:] for node in way[:-1]}
        tips = [way for way in self._ways[first:] if way[-1] not in inside]
        rows = [self._from.tokens + [self._tokens[node] for node in way] for way in tips]
        inputs = self._from.backbone.pad(rows)
        device = self._from.backbone.device
        hidden = self._from.run(**{name: tensor.to(device) for name, tensor in inputs.items()}).last_hidden_state
        place = {node: (row, column) for row, way in enumerate(tips) for column, node in enumerate(way)}
        at = [place[node] for node in range(first, len(self._tokens))]
        columns = [len(self._from.tokens) + column for _, column in at]
        return hidden[[row for row, _ in at], columns]


@dataclass(frozen=True)
class Found:
    """Titles that a search came to: their leaves [n] and log-probabilities [n], best first."""

    leaves: IntArray
    log_probs: Floats


class TitleDecoder:
    """Probabilities of the titles of a trie behind any beginning.

    Args:
        backbone: a decoder.
        trie: its tokens are the model's.

    Attributes:
        bias: added to the logit of the token into each node, float32 [n_nodes].
    """

    def __init__(self, backbone: Backbone, trie: Trie) -> None:
        self.trie = trie
        self.head: LanguageHead = language_head(backbone, trie.words.tolist())
        self.bias = torch.zeros(trie.n_nodes, device=backbone.device)

    def continuations(self, states: Tensor, nodes: IntArray) -> tuple[IntArray, IntArray, Tensor]:
        """The children of ``nodes`` and the log-probability of each, given the states behind the nodes.

        Args:
            states: [n, hidden_size]; gradients pass.
            nodes: [n], none of them a leaf.

        Returns:
            (children, position in ``nodes`` that each belongs to, log-probabilities float32), each [n_children].
        """
        children, owner = self.trie.children(nodes)
        logits = self.head(states)
        rows = torch.from_numpy(owner).to(logits.device)
        columns = torch.from_numpy(self.trie.column[children]).to(logits.device)
        values = logits[rows, columns] + self.bias[torch.from_numpy(children).to(logits.device)]
        return children, owner, log_softmax_within(values, rows, len(nodes))

    @torch.inference_mode()
    def log_probs(self, beginning: Beginning, leaves: IntArray) -> Floats:
        """Log-probability of each title, [n], by reading every node on the ways to them once."""
        return self.along(leaves, self._edges(beginning, self.deciding(leaves)))

    def deciding(self, leaves: IntArray) -> IntArray:
        """Nodes on the ways to ``leaves`` at which something is decided, ascending."""
        return np.flatnonzero(self.trie.ancestors(leaves) & (self.trie.n_children > 1))

    def to_read(self, deciding: IntArray) -> IntArray:
        """Nodes that must be read to know the states behind ``deciding``, branch by branch."""
        read = self.trie.ancestors(deciding)
        read[ROOT] = False
        nodes = np.flatnonzero(read)
        return nodes[np.argsort(self.trie.reading_order[nodes])]

    def along(self, leaves: IntArray, edges: Floats) -> Floats:
        """Sums of ``edges`` [n_nodes] on the way to each of ``leaves``, [n]."""
        trie = self.trie
        total, current = np.zeros(len(leaves)), leaves
        while (current > ROOT).any():
            total += edges[current]
            current = np.where(current > ROOT, trie.parent[current], ROOT)
        return total

    @torch.inference_mode()
    def calibrate(self, beginning: Beginning, weight: Floats) -> None:
        """Makes the probability of each title behind ``beginning`` proportional to its ``weight``, [n_titles], above 0.

        All branches are read once; :attr:`bias` is what came of it.
        """
        trie = self.trie
        self.bias = torch.zeros_like(self.bias)
        edges = self._edges(beginning, np.flatnonzero(trie.n_children > 1))
        total = np.concatenate([[0.0], np.cumsum(weight[trie.order])])
        below = total[trie.first + trie.n_titles] - total[trie.first]
        bias = (np.log(below) - edges).astype(np.float32)
        bias[ROOT] = 0.0
        self.bias = torch.from_numpy(bias).to(self.bias.device)

    def _edges(self, beginning: Beginning, deciding: IntArray) -> Floats:
        """Log-probability of every child of the ``deciding`` nodes, 0 for all other nodes, [n_nodes]."""
        edges = np.zeros(self.trie.n_nodes)
        if len(deciding) and deciding[0] == ROOT:
            self._note(edges, beginning.state[None], deciding[:1])
        for nodes, states in self._read(beginning, deciding):
            self._note(edges, states, nodes)
        return edges

    def _note(self, edges: Floats, states: Tensor, nodes: IntArray) -> None:
        """Puts the log-probability of each child of ``nodes`` into ``edges``, [n_nodes], given the states behind."""
        children, _, values = self.continuations(states, nodes)
        edges[children] = values.double().cpu().numpy()

    def _read(self, beginning: Beginning, deciding: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """The deciding nodes below the root with the states behind them, branch by branch."""
        trie = self.trie
        nodes, n_chunk = self.to_read(deciding), min(_CHUNK, beginning.at_once)
        for start in range(0, len(nodes), n_chunk):
            chunk = nodes[start : start + n_chunk].tolist()
            # What leads to the first of them was read with the chunk before; a little is read twice.
            chunk = trie.path(chunk[0])[:-1] + chunk
            place = {node: position for position, node in enumerate(chunk)}
            parents = [place.get(int(trie.parent[node]), -1) for node in chunk]
            states = Tree(beginning).extend(trie.token[chunk].tolist(), parents)
            kept = np.flatnonzero(trie.n_children[chunk] > 1)
            yield np.array(chunk, np.int64)[kept], states[torch.from_numpy(kept).to(states.device)]

    @torch.inference_mode()
    def search(self, beginning: Beginning, n_wanted: int, width: int, n_below: IntArray) -> Found:
        """The most probable titles, by beam search over the places where the trie branches.

        A branch can only lose probability as it grows, so the search ends as soon as enough titles are better than
        every open branch. It is exact unless more than ``width`` branches were open at once; then the best are kept.

        Args:
            n_wanted: items wanted.
            width: open branches kept; at least ``n_wanted``, so that nothing runs dry.
            n_below: items that may be named below each node, [n_nodes]; branches without any are not looked at.
        """
        trie = self.trie
        tree = Tree(beginning)
        width = max(width, n_wanted)
        open_nodes: list[tuple[float, int, int]] = []
        leaves: list[int] = []
        values: list[float] = []

        def meet(value: float, node: int, above: int) -> None:
            """A branch led to ``node``; on the way, the model has read as far as ``above``."""
            settled = int(trie.settled[node])
            if not n_below[node]:
                return
            if trie.n_children[settled] == 0:
                leaves.append(settled)
                values.append(value)
            else:
                open_nodes.append((value, settled, above))

        meet(0.0, ROOT, ROOT)
        read: dict[int, int] = {ROOT: -1}
        while open_nodes:
            open_nodes.sort(key=lambda entry: (-entry[0], entry[1]))
            del open_nodes[width:]
            if _enough(np.array(values), n_below[leaves], n_wanted, open_nodes[0][0]):
                break
            tokens: list[int] = []
            parents: list[int] = []
            for _, node, above in open_nodes:
                for step in trie.path(node, above):
                    parents.append(read[int(trie.parent[step])])
                    tokens.append(int(trie.token[step]))
                    read[step] = len(tree) + len(tokens) - 1
            states = tree.extend(tokens, parents) if tokens else beginning.state[None][:0]
            first = len(tree) - len(tokens)
            at = [read[node] - first for _, node, _ in open_nodes]
            behind = torch.stack([states[i] if i >= 0 else beginning.state for i in at])
            nodes = np.array([node for _, node, _ in open_nodes], np.int64)
            so_far = [value for value, _, _ in open_nodes]
            open_nodes = []
            children, owner, steps = self.continuations(behind, nodes)
            for child, parent, step in zip(
                children.tolist(), owner.tolist(), steps.double().cpu().tolist(), strict=True
            ):
                meet(so_far[parent] + step, child, int(nodes[parent]))
        named, log_probs = np.array(leaves, np.int64), np.array(values)
        order = np.lexsort((named, -log_probs))
        return Found(named[order], log_probs[order])


def _enough(values: Floats, n_items: IntArray, n_wanted: int, best_open: float) -> bool:
    """Whether ``n_wanted`` items were found that no open branch can beat."""
    return int(n_items[values >= best_open].sum()) >= n_wanted if len(values) else False


@torch.inference_mode()
def write_text(
    beginning: Beginning,
    head: LanguageHead,
    *,
    max_tokens: int,
    stops: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 0.9,
    seed: int = 0,
) -> list[int]:
    """Tokens that go on after ``beginning``, until one of ``stops`` (left out) or ``max_tokens``.

    Args:
        head: over the whole vocabulary.
        temperature: 0 takes the most probable token each time; else tokens are drawn from the smallest set that holds
            ``top_p`` of the probability (nucleus sampling: Holtzman et al., ICLR 2020), by ``seed``.
    """
    tree, state = Tree(beginning), beginning.state
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < max_tokens:
        logits = head(state[None])[0].float().cpu()
        if temperature <= 0:
            token = int(logits.argmax())
        else:
            share, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
            share[(share.cumsum(0) - share) > top_p] = 0.0
            token = int(order[torch.multinomial(share, 1, generator=generator)])
        if token in stops:
            break
        found.append(token)
        state = tree.extend([token], [len(tree) - 1])[0]
    return found
