"""A small causal transformer over item vectors: each position of a history predicts the item that came next.

An item is ``content + bounded(id delta)``; its content is the projected whitened text, or, where the data brought
feature vectors of items (of images, say), a mix of both that a gate learns for each item and dimension (gated
multimodal unit: Arevalo et al., ICLR workshop 2017). The delta is what the text does not say about items that
training knows; its length is bounded, so that items without one (new in the catalogue) lie among the others (the idea
of "Let It Go? Not Quite", RecSys 2025). The same vectors are read and predicted. Ratings and time gaps of the history
enter as embeddings (SASRec: Kang and McAuley, ICDM 2018, with side information). Some training histories are read
backwards, since orders within a sitting are partly chance, and what is kept is a running mean of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_core.specs import SequentialSpec

N_RATING_BINS = 11
N_GAP_BINS = 24


@dataclass(frozen=True)
class Sequences:
    """Histories as tensors, padded on the right: all [n, length].

    Attributes:
        items: item_idx; 0 at padding.
        ratings: 0 without a rating, else 1 to 10 along the scale.
        gaps: 0 for the first entry and without times, else 1 + log2 of the minutes since the entry before.
        mask: True where there is an entry.
    """

    items: Tensor
    ratings: Tensor
    gaps: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> Sequences:
        """Some of the histories, as wide as all."""
        return Sequences(self.items[rows], self.ratings[rows], self.gaps[rows], self.mask[rows])

    def reversed(self, chosen: Tensor) -> Sequences:
        """Rows of ``chosen`` (bool [n]) read backwards, the others as they are; a gap stays between its two entries."""
        n, length = self.items.shape
        forward = torch.arange(length, device=self.items.device).expand(n, length)
        turned = chosen[:, None] & self.mask
        last = self.mask.sum(dim=1, keepdim=True) - 1
        source = torch.where(turned, last - forward, forward)
        # The entry before, when read backwards, is the one that came after: its gap is the one between the two.
        after = torch.where(turned, (source + 1).clamp_max(length - 1), forward)
        gaps = torch.where(turned & (forward == 0), 0, self.gaps.gather(1, after))
        return Sequences(self.items.gather(1, source), self.ratings.gather(1, source), gaps, self.mask)


class Dropout:
    """Dropout whose masks come as bytes from NumPy's SFC64: drawing floats took a quarter of a step on a CPU.

    The share that falls is rounded to 256ths there. On other devices it is PyTorch's own.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._limit = round(256 * share)
        self.seed([0])

    def seed(self, entropy: list[int]) -> None:
        """All later masks depend on this alone."""
        self._draws = np.random.Generator(np.random.SFC64(entropy))

    def __call__(self, values: Tensor, training: bool) -> Tensor:
        if not training or self._limit == 0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.share)
        drawn = torch.frombuffer(bytearray(self._draws.bytes(values.numel())), dtype=torch.uint8)
        kept = (drawn >= self._limit).view(values.shape).to(values.dtype)
        return values * kept.mul_(256.0 / (256 - self._limit))


class Block(nn.Module):
    """A pre-norm transformer layer; [n, length, width] in and out."""

    def __init__(self, width: int, n_heads: int, drop: Dropout) -> None:
        super().__init__()
        self.n_heads, self.drop = n_heads, drop
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.query_key_value.weight)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """``mask``: added to the attention, [length, length] or [n_heads, length, length]."""
        n, length, width = states.shape
        whole = self.query_key_value(self.norm_attention(states))
        query, key, value = whole.view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: at such lengths PyTorch's fused attention is the slower one backwards on a CPU.
        scores = (query * (query.shape[-1] ** -0.5)) @ key.transpose(-1, -2) + mask
        found = self.drop(scores.softmax(dim=-1), self.training) @ value
        states = states + self.drop(self.attended(found.transpose(1, 2).reshape(n, length, width)), self.training)
        hidden = self.drop(nn.functional.gelu(self.widen(self.norm_hidden(states))), self.training)
        return states + self.drop(self.narrow(hidden), self.training)


class _CatalogueLoss(torch.autograd.Function):
    """Cross-entropy over all items in one buffer: the logits become the softmax, and that the gradient, in place."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
        logits = states @ vectors.T
        rows = torch.arange(len(wanted), device=wanted.device)
        goal = (1.0 - smoothing) * logits[rows, wanted]
        if smoothing:
            goal += smoothing * logits.mean(dim=1)
        top = logits.amax(dim=1, keepdim=True)
        logits.sub_(top).exp_()
        total = logits.sum(dim=1, keepdim=True)
        logits.div_(total)
        ctx.save_for_backward(states, vectors, wanted, logits)
        ctx.smoothing = smoothing
        return (total.log() + top).squeeze(1).sub_(goal).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states, vectors, wanted, gradient = ctx.saved_tensors
        rows = torch.arange(len(wanted), device=wanted.device)
        gradient[rows, wanted] -= 1.0 - ctx.smoothing
        if ctx.smoothing:
            gradient -= ctx.smoothing / gradient.shape[1]
        gradient *= grads[0] / len(wanted)
        return gradient @ vectors, gradient.T @ states, None, None


def catalogue_loss(states: Tensor, vectors: Tensor, wanted: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``states @ vectors.T`` against the wanted items; as ``nn.functional.cross_entropy``.

    Its gradient can be taken once.

    Args:
        states: [n, width]. vectors: [n_items, width]. wanted: item_idx, [n].
        smoothing: share of the target spread over all items.
    """
    loss: Tensor = _CatalogueLoss.apply(states, vectors, wanted, smoothing)
    return loss


class SequenceNetwork(nn.Module):
    """See the module.

    Args:
        text: whitened item texts, float32 [n_items, n_text]; n_text may be 0.
        trained: items with training rows, bool [n_items]; only they have an id delta.
        given: whitened feature vectors, float32 [n_items, n_given], NaN rows for items without; None: there are none.
    """

    text: Tensor
    trained: Tensor
    given: Tensor | None

    def __init__(self, spec: SequentialSpec, text: Tensor, trained: Tensor, given: Tensor | None = None) -> None:
        super().__init__()
        self.spec = spec
        n_items, width = len(trained), spec.width
        self.register_buffer("text", text)
        self.register_buffer("trained", trained)
        self.project = nn.Linear(text.shape[1], width, bias=False) if text.shape[1] else None
        self.delta = nn.Parameter(torch.randn(n_items, width) * 0.02)
        self.position = nn.Parameter(torch.randn(spec.max_history, width) * 0.02)
        self.rating = nn.Parameter(torch.randn(N_RATING_BINS, width) * 0.02)
        self.gap = nn.Parameter(torch.randn(N_GAP_BINS, width) * 0.02)
        self.norm_in = nn.LayerNorm(width)
        self.drop = Dropout(spec.dropout)
        self.layers = nn.ModuleList([Block(width, spec.n_heads, self.drop) for _ in range(spec.n_layers)])
        self.norm_out = nn.LayerNorm(width)
        if self.project is not None:
            # Whitened inputs have unit variance; outputs of length about 1 keep the first softmax soft.
            nn.init.normal_(self.project.weight, std=1.0 / math.sqrt(width * text.shape[1]))
        self.register_buffer("given", given)
        if given is not None:
            self.project_given = nn.Linear(given.shape[1], width, bias=False)
            nn.init.normal_(self.project_given.weight, std=1.0 / math.sqrt(width * given.shape[1]))
            self.gate = nn.Linear(text.shape[1] + given.shape[1], width)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def item_vectors(self) -> Tensor:
        """[n_items, width]."""
        length = self.delta.norm(dim=1, keepdim=True).clamp_min(1e-6)
        delta = self.delta * (self.spec.id_bound / length).clamp_max(1.0) * self.trained[:, None]
        content = self._content()
        return delta if content is None else content + delta

    def _content(self) -> Tensor | None:
        """What is known of items without their ids, [n_items, width]; None: nothing."""
        told = None if self.project is None else self.project(self.text)
        if self.given is None:
            return told
        missing = self.given.isnan().any(dim=1, keepdim=True)
        given = torch.where(missing, 0.0, self.given)
        shown = self.project_given(given)
        if told is None:
            return shown
        share = torch.where(missing, 0.0, torch.sigmoid(self.gate(torch.cat([self.text, given], dim=1))))
        return torch.lerp(told, shown, share)

    def states(self, batch: Sequences, vectors: Tensor) -> Tensor:
        """What each position says about the next item, [n, length, width]; padding positions mean nothing."""
        length = batch.items.shape[1]
        found = vectors[batch.items] + self.position[:length] + self.rating[batch.ratings] + self.gap[batch.gaps]
        found = self.drop(self.norm_in(found), self.training)
        causal = torch.full((length, length), -torch.inf, device=found.device).triu(diagonal=1)
        # Padding stands on the right, so the causal mask already hides it from every real position.
        for layer in self.layers:
            found = layer(found, causal)
        return self.norm_out(found)

    def last_states(self, batch: Sequences, vectors: Tensor) -> Tensor:
        """The state after each whole history, [n, width]; zeros after an empty one."""
        lengths = batch.mask.sum(dim=1)
        states = self.states(batch, vectors)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp_min(0)]
        return last * (lengths > 0)[:, None]
