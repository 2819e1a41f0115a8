"""Attention roll-out: where the model looked, summed to the same players as the Shapley values.

Attention is a view of the model, not a reason: words can be looked at without moving the score, and the score can
hang on words that are hardly looked at. Shapley values say what moved the score; this says what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import Query, Recommender, RenderedPrompt
from llmrec_core.errors import InputError, LLMRecError
from llmrec_core.explanation.players import Game, Seat, seat_of

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@runtime_checkable
class GivesAttention(Protocol):
    """A recommender that shows its attention over a prompt."""

    def attention(
        self, query: Query, item_idx: int
    ) -> tuple[RenderedPrompt, npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(prompt, offsets [n, 2], attentions [layers, heads, n, n], pooling_weights [n]).

        ``offsets``: each token's place in ``prompt.text``; (0, 0) for special tokens. Rows of ``attentions`` are
        what one token reads, summing to 1. ``pooling_weights``: how token states become the scored vector.
        """
        ...


@dataclass(frozen=True)
class AttentionResult:
    """``shares`` [n_seats] of all attention; with ``outside`` (template words, special tokens) they sum to 1.

    ``token_values``: (start, end, share) for each token that stands in the text.
    """

    prompt: RenderedPrompt
    shares: npt.NDArray[np.float64]
    outside: float
    token_values: tuple[tuple[int, int, float], ...]


def rollout(attentions: Floats, pooling_weights: Floats) -> npt.NDArray[np.float64]:
    """Share of each token in the pooled vector, [n_tokens], summing to 1.

    Roll-out of Abnar & Zuidema (2020): heads are averaged, the residual connection is counted as an identity of
    equal weight, rows are renormalised, and layers are multiplied: A = A_L ... A_1 with A_l = (mean_h W + I) / 2.
    The pooled vector reads the top tokens with ``pooling_weights``, so the result is weights @ A.

    Args:
        attentions: [n_layers, n_heads, n_tokens, n_tokens], rows non-negative.
        pooling_weights: [n_tokens], non-negative, not all zero.

    Raises:
        LLMRecError: shapes that do not fit, or values that are no attention.
    """
    weights = np.asarray(pooling_weights, dtype=np.float64)
    n_tokens = len(weights)
    if attentions.ndim != 4 or attentions.shape[2:] != (n_tokens, n_tokens) or 0 in attentions.shape:
        raise LLMRecError(
            f"attention of shape {list(attentions.shape)} does not fit {n_tokens} tokens.",
            fix="Load the model with the plain (eager) attention implementation.",
        )
    if not np.isfinite(attentions).all() or (attentions < 0).any() or not weights.sum() > 0:
        raise LLMRecError(
            "the model's attention holds values that are no shares.",
            fix="The model may have diverged; use another run.",
        )
    share = weights / weights.sum()
    for layer in np.asarray(attentions, dtype=np.float64).mean(axis=1)[::-1]:
        mixed = layer + np.eye(n_tokens)
        share = share @ (mixed / mixed.sum(axis=1, keepdims=True))
    return share


def attention_shares(recommender: Recommender, game: Game) -> AttentionResult:
    """Roll-out of the full prompt, summed to the seats of ``game``.

    Raises:
        InputError: the recommender offers no attention.
    """
    if not recommender.capabilities.attention or not isinstance(recommender, GivesAttention):
        raise InputError(
            f"the recommender {recommender.family!r} has no attention to show.",
            where="method",
            fix="Use method 'shap', which explains every recommender.",
        )
    prompt, offsets, attentions, weights = cast(GivesAttention, recommender).attention(game.original, game.item_idx)
    shares = rollout(attentions, weights)
    per_seat, outside = pool_to_seats(prompt, offsets, shares, game.seats)
    token_values = tuple(
        (int(start), int(end), float(value)) for (start, end), value in zip(offsets, shares, strict=True) if end > start
    )
    return AttentionResult(prompt, per_seat, outside, token_values)


def pool_to_seats(
    prompt: RenderedPrompt, offsets: npt.NDArray[np.int64], shares: Floats, seats: Sequence[Seat]
) -> tuple[npt.NDArray[np.float64], float]:
    """([n_seats], the share outside all seats). A token belongs to the span it overlaps most, first span on ties."""
    per_seat = np.zeros(len(seats))
    outside = 0.0
    owners = [seat_of(span.kind, span.ref, seats) for span in prompt.spans]
    for (start, end), share in zip(offsets, shares, strict=True):
        best, best_overlap = -1, 0
        for owner, span in zip(owners, prompt.spans, strict=True):
            overlap = min(int(end), span.end) - max(int(start), span.start)
            if overlap > best_overlap and owner >= 0:
                best, best_overlap = owner, overlap
        if best < 0:
            outside += float(share)
        else:
            per_seat[best] += float(share)
    return per_seat, outside
