"""Two towers over one language model: what a user is looking for, and what an item is, as vectors of one space.

An item is its text (the pooled output of the language model, whitened and mapped to ``width`` dimensions) and, where
training knows the item, a bounded id delta: what its raters say and its text does not. So an item that nobody has met
is its text, and lies among the others. A user is either the history, read by a small causal transformer over the same
vectors (with ratings, time gaps and a learnt decay by distance), or a prompt, read by the language model and mapped
like a text. The score is the product of the user's direction and the item, over a temperature: long items are liked
by many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmrec_core.models.text_vectors import Whitening
from llmrec_core.specs import TwoTowerSpec
from llmrec_core.training.sequence_network import N_GAP_BINS, N_RATING_BINS, Block, Dropout, Sequences


class TwoTowerNetwork(nn.Module):
    """See the module; the language model itself stands outside, its pooled outputs come in.

    Args:
        whitening: of pooled item texts; fixed.
        trained: items with training rows, bool [n_items]; only they have an id delta.
    """

    mean: Tensor
    components: Tensor
    trained: Tensor

    def __init__(self, spec: TwoTowerSpec, whitening: Whitening, trained: Tensor) -> None:
        super().__init__()
        self.spec = spec
        width, n_text = spec.width, whitening.components.shape[1]
        self.drop = Dropout(spec.dropout)
        self.register_buffer("mean", torch.from_numpy(whitening.mean))
        self.register_buffer("components", torch.from_numpy(whitening.components))
        # Known from the counts that are saved anyway.
        self.register_buffer("trained", trained, persistent=False)
        self.delta = nn.Parameter(torch.randn(len(trained), width) * 0.02) if spec.id_bound else None
        self.project = nn.Linear(n_text, width, bias=False)
        # Whitened inputs have unit variance; outputs of length about 1 keep the first softmax soft.
        nn.init.normal_(self.project.weight, std=1.0 / math.sqrt(width * n_text))
        if spec.user == "history":
            self.rating = nn.Parameter(torch.randn(N_RATING_BINS, width) * 0.1)
            self.gap = nn.Parameter(torch.randn(N_GAP_BINS, width) * 0.1)
            # Each head begins with a decay of its own (ALiBi: Press, Smith and Lewis, ICLR 2022), and learns on.
            slopes = 0.3 * 2.0 ** (-4.0 * torch.arange(spec.n_heads) / spec.n_heads)
            self.distance = nn.Parameter(-torch.outer(slopes, torch.arange(spec.max_history).float()))
            self.norm_in = nn.LayerNorm(width)
            self.layers = nn.ModuleList(Block(width, spec.n_heads, self.drop) for _ in range(spec.n_layers))
            self.norm_out = nn.LayerNorm(width)
            self.wanted = nn.Linear(width, width)
        #: Log of a factor on the user's side: how sure the model may be.
        self.sharpness = nn.Parameter(torch.zeros(()))

    def whitened(self, pooled: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, n_text]."""
        return (pooled.float() - self.mean) @ self.components

    def items(self, whitened: Tensor, which: Tensor | None = None) -> Tensor:
        """[n, n_text] -> [n, width]; ``which``: the item of each text, [n], None for texts without an item."""
        found: Tensor = self.project(whitened)
        return found if which is None or self.delta is None else found + self._bounded(self.delta, which)

    def _bounded(self, delta: Tensor, which: Tensor) -> Tensor:
        """Id deltas of some items, none longer than the bound, [n, width]."""
        chosen = delta[which]
        length = chosen.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return chosen * (self.spec.id_bound / length).clamp_max(1.0) * self.trained[which][:, None]

    def users(self, whitened: Tensor, batch: Sequences, which: Tensor | None = None) -> Tensor:
        """What is looked for after each position, [n, length, width], so long that its product with an item is a logit.

        Args:
            whitened: texts of history items, or of prompts, [n_texts, n_text].
            batch: ``items`` are rows of ``whitened``; of prompts there is one a row.
            which: the item of each text, [n_texts]; None: prompts.
        """
        return self.users_of(self.items(whitened, None if self.spec.user == "prompt" else which), batch)

    def users_of(self, vectors: Tensor, batch: Sequences) -> Tensor:
        """As :meth:`users`; ``vectors``: what :meth:`items` makes of the texts, [n_texts, width]."""
        if self.spec.user == "prompt":
            return self._logit_scale() * nn.functional.normalize(vectors, dim=-1)[batch.items]
        states = vectors[batch.items] + self.rating[batch.ratings] + self.gap[batch.gaps]
        states = self.drop(self.norm_in(states), self.training)
        length = batch.items.shape[1]
        place = torch.arange(length, device=states.device)
        back = place[:, None] - place[None, :]
        # Padding stands on the right, so the causal mask already hides it from every real position.
        mask = self.distance[:, back.clamp_min(0)].masked_fill(back < 0, -torch.inf)
        for layer in self.layers:
            states = layer(states, mask)
        return self._logit_scale() * nn.functional.normalize(self.wanted(self.norm_out(states)), dim=-1)

    def last(self, whitened: Tensor, batch: Sequences, which: Tensor | None = None) -> Tensor:
        """:meth:`users` after each whole row, [n, width]; zeros after an empty one."""
        return _last(self.users(whitened, batch, which), batch)

    def last_of(self, vectors: Tensor, batch: Sequences) -> Tensor:
        """:meth:`users_of` after each whole row, [n, width]; zeros after an empty one."""
        return _last(self.users_of(vectors, batch), batch)

    def _logit_scale(self) -> Tensor:
        return self.sharpness.exp() / self.spec.temperature


def _last(found: Tensor, batch: Sequences) -> Tensor:
    lengths = batch.mask.sum(dim=1)
    rows = torch.arange(len(found), device=found.device)
    return found[rows, (lengths - 1).clamp_min(0)] * (lengths > 0)[:, None]
