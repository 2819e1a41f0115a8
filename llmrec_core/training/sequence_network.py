"""A small causal transformer over item vectors: each position of a history predicts the item that came next.

An item is ``project(whitened text) + bounded(id delta)``. The delta is what the text does not say about items that
training knows; its length is bounded, so that items without one (new in the catalogue) lie among the others (the idea
of "Let It Go? Not Quite", RecSys 2025). The same vectors are read and predicted. Ratings and time gaps of the history
enter as embeddings (SASRec: Kang and McAuley, ICDM 2018, with side information).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


class SequenceNetwork(nn.Module):
    """See the module.

    Args:
        text: whitened item texts, float32 [n_items, n_text]; n_text may be 0.
        trained: items with training rows, bool [n_items]; only they have an id delta.
    """

    text: Tensor
    trained: Tensor

    def __init__(self, spec: SequentialSpec, text: Tensor, trained: Tensor) -> None:
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
        self.dropout = nn.Dropout(spec.dropout)
        layer = nn.TransformerEncoderLayer(
            width, spec.n_heads, 4 * width, spec.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, spec.n_layers, enable_nested_tensor=False)
        self.norm_out = nn.LayerNorm(width)
        if self.project is not None:
            # Whitened inputs have unit variance; outputs of length about 1 keep the first softmax soft.
            nn.init.normal_(self.project.weight, std=1.0 / math.sqrt(width * text.shape[1]))

    def item_vectors(self) -> Tensor:
        """[n_items, width]."""
        length = self.delta.norm(dim=1, keepdim=True).clamp_min(1e-6)
        delta = self.delta * (self.spec.id_bound / length).clamp_max(1.0) * self.trained[:, None]
        return delta if self.project is None else self.project(self.text) + delta

    def states(self, batch: Sequences, vectors: Tensor) -> Tensor:
        """What each position says about the next item, [n, length, width]; padding positions mean nothing."""
        length = batch.items.shape[1]
        found = vectors[batch.items] + self.position[:length] + self.rating[batch.ratings] + self.gap[batch.gaps]
        found = self.dropout(self.norm_in(found))
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool, device=found.device), diagonal=1)
        # Padding stands on the right, so the causal mask already hides it from every real position.
        return self.norm_out(self.layers(found, mask=causal))

    def last_states(self, batch: Sequences, vectors: Tensor) -> Tensor:
        """The state after each whole history, [n, width]; zeros after an empty one."""
        lengths = batch.mask.sum(dim=1)
        states = self.states(batch, vectors)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp_min(0)]
        return last * (lengths > 0)[:, None]
