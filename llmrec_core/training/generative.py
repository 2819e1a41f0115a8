"""Training a decoder to write: titles of next items behind histories, and texts about items.

Every decision is a list with one right entry, which is what the trainer's rank loss runs over. A title is a list of
the allowed continuations at each place where its trie branches; a free text, at each of its tokens, the pair of that
token's logit and the log-sum of all others, whose softmax is the one over the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.contracts import FloatArray, IntArray, Query
from llmrec_core.models.device import BATCH_SIZE
from llmrec_core.models.generation import MOST, Beginning, TitleDecoder
from llmrec_core.models.label_words import LanguageHead
from llmrec_core.models.loading import Backbone
from llmrec_core.models.memory import until_it_fits
from llmrec_core.models.trie import ROOT, Trie
from llmrec_core.specs import TrainingSpec
from llmrec_core.training import scoring, title_trees
from llmrec_core.training.batches import Batch, BatchPlan
from llmrec_core.training.objectives import Labels
from llmrec_core.training.packing import Ragged, TokenisedPrompts
from llmrec_core.training.samples import SampleLists

T = TypeVar("T")

#: The one loss: the right entry of each list.
TASK = "rank"


@dataclass(frozen=True)
class WritingSamples:
    """What is to be written behind what, [n_samples].

    ``leaves``: the leaf of the training trie whose title is written; -1: free text, learned token by token.
    """

    heads: Ragged
    tails: Ragged
    leaves: IntArray

    @classmethod
    def of(
        cls, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], leaves: Sequence[int]
    ) -> WritingSamples:
        return cls(Ragged.of(heads), Ragged.of(tails), np.array(leaves, np.int64))

    def __len__(self) -> int:
        return len(self.leaves)


@dataclass(frozen=True)
class WritingBatch:
    """Rows of head and tail, and the places in them where something is decided.

    Attributes:
        input_ids, attention_mask: int64 [n_rows, width].
        row, column: place of the state behind each branching node of a title, [n_decisions].
        decision, word, bias: for each allowed continuation its decision, its column in the title head, and what is
            added to its logit, [n_choices].
        text_row, text_column, text_token: place of the state before each token of a free text, and the token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    column: Tensor
    decision: Tensor
    word: Tensor
    bias: Tensor
    text_row: Tensor
    text_column: Tensor
    text_token: Tensor


class WritingPlan(BatchPlan):
    """Batches of writing samples; see :class:`BatchPlan`.

    Args:
        samples: what is written.
        trie: of the titles that may be trained on.
        decoder: of all titles.
        leaf_in_all: the leaf in the decoder's trie of each title of ``trie``, [n_titles].
    """

    def __init__(
        self,
        samples: WritingSamples,
        trie: Trie,
        decoder: TitleDecoder,
        leaf_in_all: IntArray,
        spec: TrainingSpec,
        seed: int,
        pad_id: int,
    ) -> None:
        n = len(samples)
        each = np.arange(n, dtype=np.int64)
        lists = SampleLists([Query("")] * n, np.zeros(n, np.int64), each, np.zeros(n, np.int64), {})
        size = BATCH_SIZE if spec.batch_size is None else spec.batch_size
        tokens = TokenisedPrompts(samples.heads, samples.tails, each, each)
        super().__init__(lists, tokens, spec.model_copy(update={"batch_size": size}), seed, pad_id)
        self._samples, self._trie = samples, trie
        # The same place in the trie of all titles, which has the columns and the biases.
        twin = np.zeros(trie.n_nodes, np.int64)
        here, there = trie.leaf_of, leaf_in_all
        while (here > ROOT).any():
            twin[here] = there
            here, there = trie.parent[here].clip(ROOT), decoder.trie.parent[there].clip(ROOT)
        self._column = decoder.trie.column[twin]
        self._bias = decoder.bias.cpu().numpy()[twin]

    def collate(self, lists: IntArray) -> Batch:
        samples, trie = self._samples, self._trie
        rows = [np.concatenate([samples.heads[i], samples.tails[i]]) for i in lists.tolist()]
        decisions: list[tuple[int, int, int]] = []
        texts: list[tuple[int, int, int]] = []
        right: list[int] = []
        for place, sample in enumerate(lists.tolist()):
            last = len(samples.heads[sample]) - 1
            leaf = int(samples.leaves[sample])
            if leaf < 0:
                texts += [(place, last + j, token) for j, token in enumerate(samples.tails[sample].tolist())]
                continue
            # The state behind a node decides which of its children comes next.
            way = [ROOT, *trie.path(leaf)]
            for node, child in pairwise(way):
                if trie.n_children[node] > 1:
                    decisions.append((place, last + int(trie.depth[node]), node))
                    right.append(child)
        children, owner = trie.children(np.array([node for _, _, node in decisions], np.int64))
        labels = children == np.array(right, np.int64)[owner] if len(children) else np.empty(0, bool)
        n_texts = len(texts)
        # A free token is a list of two: the token, and all others together.
        values = np.concatenate([labels, np.tile([True, False], n_texts)]).astype(np.float32)
        list_of = np.concatenate([owner, len(decisions) + np.repeat(np.arange(n_texts), 2)]).astype(np.int64)
        width = -(-max(len(row) for row in rows) // 8) * 8
        ids = np.full((len(rows), width), self._pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        at = np.array(decisions, np.int64).reshape(-1, 3)
        text = np.array(texts, np.int64).reshape(-1, 3)
        choices = (owner, self._column[children], self._bias[children])
        arrays = (ids, mask, at[:, 0], at[:, 1], *choices, text[:, 0], text[:, 1], text[:, 2])
        batch = WritingBatch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        made = Labels({TASK: torch.from_numpy(values)}, torch.from_numpy(list_of), len(decisions) + n_texts)
        return Batch(lists, batch, made, len(lists), int(mask.sum()))  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        samples = self._samples
        for array in (samples.leaves, samples.heads.starts, samples.tails.starts, self._trie.token, self._bias):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TitleQuestions:
    """Titles whose probability is asked: ``leaves`` [n] behind ``heads[head_of]``; ``plus`` [n] is added to each."""

    heads: list[list[int]]
    head_of: IntArray
    leaves: IntArray
    plus: FloatArray


class WritingNetwork(nn.Module):
    """The decoder that is trained; its head stays as it is, since it is tied to the word embeddings in most models.

    Args:
        backbone: tuning was applied before.
        decoder: probabilities of all titles, with the same backbone.
        packed: whether the model takes a tree mask.
        autocast: dtype of matrix products under autocast; None: as the weights are.
    """

    accepts_loss_kwargs = False
    #: As ``scoring`` asks: a token reads what stands before it.
    causal = True

    def __init__(
        self,
        backbone: Backbone,
        decoder: TitleDecoder,
        *,
        packed: bool,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder = backbone.model
        self.backbone, self.decoder = backbone, decoder
        # In a list, so that they are no part of the trained and saved weights.
        self._heads: list[LanguageHead] = [decoder.head]
        self.packed, self.autocast = packed, autocast

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def learn_words(self, vocabulary: LanguageHead) -> None:
        """Gives the head over all tokens, which free texts are learned with."""
        self._heads[1:] = [vocabulary]

    def forward(self, batch: WritingBatch) -> dict[str, Tensor]:
        """Logits of all entries of all lists, float32: continuations of titles, then (token, others) of free texts."""
        device = self.device
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self.encoder(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)
            ).last_hidden_state
        parts = []
        if len(batch.row):
            logits = self._heads[0](hidden[batch.row.to(device), batch.column.to(device)])
            parts.append(logits[batch.decision.to(device), batch.word.to(device)] + batch.bias.to(device))
        if len(batch.text_row):
            logits = self._heads[1](hidden[batch.text_row.to(device), batch.text_column.to(device)])
            token = batch.text_token.to(device)[:, None]
            own = logits.gather(1, token)
            others = logits.scatter(1, token, -torch.inf).logsumexp(1, keepdim=True)
            parts.append(torch.cat([own, others], dim=1).flatten())
        return {TASK: torch.cat(parts)}

    def read(self, head: Sequence[int]) -> Beginning:
        """A text that titles are asked behind."""
        at_once = scoring.portion(self).of(MOST)
        return Beginning(self.backbone, head, packed=self.packed, autocast=self.autocast, at_once=at_once)

    def in_parts(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives; where memory runs out, again with less read at once.

        Raises:
            RunFailedError: memory is too small even for that.
        """
        return until_it_fits(compute, lambda: scoring.read_less(self), self.device)

    @torch.inference_mode()
    def log_probs(self, heads: Sequence[Sequence[int]], head_of: IntArray, leaves: IntArray) -> npt.NDArray[np.float64]:
        """Log-probability of each title behind its head, [n], in bounded memory; see ``training.title_trees``.

        The network must be in evaluation mode.

        Args:
            heads: texts; each is read once.
            head_of, leaves: of each title its head and its leaf, [n].

        Raises:
            RunFailedError: memory is too small even for small batches.
        """
        found = np.empty(len(leaves))
        done = np.zeros(len(leaves), bool)

        def read_rest() -> None:
            for rows, values in title_trees.log_probs(self, heads, head_of, leaves, np.flatnonzero(~done)):
                found[rows], done[rows] = values, True

        self.in_parts(read_rest)
        return found

    def predict(self, questions: TitleQuestions, tasks: tuple[str, ...]) -> dict[str, FloatArray]:
        """Log-probabilities, float32 [n]; each head is read once."""
        training = self.training
        self.eval()
        try:
            found = self.log_probs(questions.heads, questions.head_of, questions.leaves).astype(np.float32)
        finally:
            self.train(training)
        return dict.fromkeys(tasks, found + questions.plus)
