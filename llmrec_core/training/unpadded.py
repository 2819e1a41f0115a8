"""Training rows without padding: linear layers work on the tokens there are, the last layer on those that are pooled.

Scores, gradients and updates are those of the padded rows (see ``packing``), but for the rounding of sums:

- the tokens of all rows stand end to end in one, and attention goes row by row, so that what it makes of a row stays in
  the processor's cache until it is used;
- above the last attention nothing reads a token that no prompt's vector is made of. In encoders' last layer, pooled
  tokens alone ask and are fed forward; of a history with its candidates they are a third or less.

For processors, where time goes with the operations. PyTorch's fused attention on cards takes padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from llmrec_core.models.tuning import layer_stack
from llmrec_core.models.tuning_frozen import called_instead
from llmrec_core.models.tuning_soft import soft_states
from llmrec_core.training.packing import Packed, tree_mask
from llmrec_core.training.scoring import reads_trees

if TYPE_CHECKING:
    from llmrec_core.training.network import PromptNetwork

_ROWS = "llmrec-rows"
#: Architectures whose layers keep their parts under the names that :func:`_pooled_tokens_alone` calls.
_ENCODERS = frozenset({"bert", "electra"})


@contextmanager
def without_padding(network: nn.Module, *, whole_rows: bool) -> Iterator[None]:
    """Inside, the network computes packed prompts as this module says, where its model and device allow that.

    Args:
        whole_rows: something else needs the rows as they are: it looks at embeddings row by row, or computes layers
            again backwards, and would not find what is put in their place here.
    """
    if whole_rows or not _possible(network):
        yield
        return
    AttentionInterface.register(_ROWS, _row_attention)
    whole: Any = network
    encoder = whole.encoder
    before = encoder.config._attn_implementation
    encoder.set_attn_implementation(_ROWS)
    whole.unpadded = True
    try:
        yield
    finally:
        whole.unpadded = False
        encoder.set_attn_implementation(before)


def _possible(network: Any) -> bool:
    if not hasattr(network, "unpadded"):
        return False
    encoder = network.encoder
    return (
        network.device.type == "cpu"
        and reads_trees(network.backbone)
        and encoder.config._attn_implementation == "eager"
        # States that are trained before the text belong to rows.
        and soft_states(encoder) is None
    )


# ---- where tokens stand ----------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """One row: which tokens ask, which are read, and what attention adds, [n_asked, n_read]."""

    asked: slice
    read: slice
    mask: Tensor


@dataclass(frozen=True)
class Rows:
    """Tokens of packed rows end to end.

    Attributes:
        input_ids, position_ids: int64 [1, n_tokens].
        spans: one a row, all its tokens ask.
        pooled: int64 [n_pooled], tokens that vectors are made of.
        pooled_spans: one a row, its pooled tokens ask.
        weights: float32 [n_prompts, n_pooled], how they become vectors.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[Span, ...]
    pooled: Tensor
    pooled_spans: tuple[Span, ...]
    weights: Tensor

    @classmethod
    def of(cls, packed: Packed, weights: Tensor, dtype: torch.dtype, *, causal: bool) -> Rows:
        """
        Args:
            weights: of :func:`llmrec_core.training.packing.pooling_weights`.
            dtype: in which attention is computed.
        """
        # A row's padding stands behind its tokens.
        real = packed.segment >= 0
        mask = tree_mask(packed.segment, packed.position_ids, dtype, causal=causal)[:, 0]
        pools = (weights > 0).any(1)
        row, at = pools.nonzero(as_tuple=True)
        lengths, n_pooled = real.sum(1), pools.sum(1)
        starts = lengths.cumsum(0) - lengths
        spans, pooled_spans = [], []
        first = 0
        for number, (start, length, n_asked) in enumerate(
            zip(*map(Tensor.tolist, (starts, lengths, n_pooled)), strict=True)
        ):
            read = slice(start, start + length)
            seen = mask[number, :length, :length]
            spans.append(Span(read, read, seen))
            asked = slice(first, first + n_asked)
            pooled_spans.append(Span(asked, read, seen[at[asked]]))
            first += n_asked
        of_prompt = weights.new_zeros(len(packed.row), len(row))
        mine = packed.row[:, None] == row
        of_prompt[mine] = weights[packed.row[:, None], packed.slot[:, None], at][mine]
        return cls(
            packed.input_ids[real][None],
            packed.position_ids[real][None],
            tuple(spans),
            starts[row] + at,
            tuple(pooled_spans),
            of_prompt,
        )


# ---- the computation -------------------------------------------------------------------------------------------------


def vectors(network: PromptNetwork, packed: Packed) -> Tensor:
    """What the heads read of each prompt, float32 [n_prompts, hidden_size], as ``PromptNetwork.vectors``."""
    encoder: Any = network.encoder
    rows = Rows.of(packed, network.pooling_weights(packed), network.autocast or encoder.dtype, causal=network.causal)
    last = layer_stack(encoder)[-1] if encoder.config.model_type in _ENCODERS else None
    more = {"use_cache": False} if network.causal else {}
    with (
        torch.autocast(network.device.type, dtype=network.autocast, enabled=network.autocast is not None),
        nullcontext() if last is None else called_instead([last], partial(_pooled_tokens_alone, last)),
    ):
        states = encoder(input_ids=rows.input_ids, position_ids=rows.position_ids, rows=rows, **more).last_hidden_state[
            0
        ]
    return rows.weights @ (states[rows.pooled] if last is None else states).float()


def _pooled_tokens_alone(layer: Any, states: Tensor, *_: Any, rows: Rows, **__: Any) -> Tensor:
    """The layer's own parts in their order; all tokens are read, and the pooled ones ask: [1, n_pooled, size]."""
    attention, output = layer.attention.self, layer.attention.output
    asked = states[0].index_select(0, rows.pooled)
    query, key, value = (
        part(given).unflatten(-1, (-1, attention.attention_head_size))
        for part, given in ((attention.query, asked), (attention.key, states[0]), (attention.value, states[0]))
    )
    dropout = attention.dropout.p if attention.training else 0.0
    read = _attend(query, key, value, rows.pooled_spans, attention.scaling, dropout)
    found: Tensor = layer.feed_forward_chunk(output(read.flatten(1), asked))
    return found.unsqueeze(0)


def _row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    rows: Rows,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: [1, n_heads, n_tokens, size] -> [1, n_tokens, n_heads, size]."""
    asked, read, value = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(asked, read, value, rows.spans, scale, dropout).unsqueeze(0), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...], scaling: float, dropout: float
) -> Tensor:
    """[n_asked, n_heads, size] of queries [n_asked, n_heads, size] that read [n_tokens, n_key_heads, size]."""
    kind = value.dtype
    found: Tensor = _RowAttention.apply((query * scaling).to(kind), key.to(kind), value, spans, dropout)
    return found


class _RowAttention(torch.autograd.Function):
    """Softmax attention, row by row: what a row needs stays in the processor's cache, forwards and backwards.

    Several query heads may share a key head.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...], dropout: float) -> Tensor:
        found = query.new_empty(*query.shape[:2], value.shape[2])
        n_key_heads = key.shape[1]
        n_sharing = query.shape[1] // n_key_heads
        shares: list[Tensor] = []
        kept: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for span in spans:
                asked = _by_head(query[span.asked], n_key_heads)
                scores = torch.bmm(asked, key[span.read].permute(1, 2, 0))
                scores.view(n_key_heads, n_sharing, *span.mask.shape).add_(span.mask)
                share = scores.softmax(-1)
                shares.append(share)
                if dropout:
                    kept.append(torch.empty_like(share).bernoulli_(1 - dropout).div_(1 - dropout))
                    share = share * kept[-1]
                found[span.asked] = _by_token(torch.bmm(share, value[span.read].transpose(0, 1)), n_sharing)
        ctx.spans = spans
        ctx.save_for_backward(query, key, value, *shares, *kept)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        spans: tuple[Span, ...] = ctx.spans
        query, key, value, *saved = ctx.saved_tensors
        shares, kept = saved[: len(spans)], saved[len(spans) :]
        n_key_heads = key.shape[1]
        n_sharing = query.shape[1] // n_key_heads
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for number, span in enumerate(spans):
            share = shares[number]
            out = _by_head(gradients[0][span.asked], n_key_heads)
            d_share = torch.bmm(out, value[span.read].permute(1, 2, 0))
            used = share
            if kept:
                used = share * kept[number]
                d_share.mul_(kept[number])
            d_value[span.read] = torch.bmm(used.transpose(1, 2), out).transpose(0, 1)
            d_scores = torch.ops.aten._softmax_backward_data(d_share, share, -1, share.dtype)
            d_query[span.asked] = _by_token(torch.bmm(d_scores, key[span.read].transpose(0, 1)), n_sharing)
            asked = _by_head(query[span.asked], n_key_heads)
            d_key[span.read] = torch.bmm(d_scores.transpose(1, 2), asked).transpose(0, 1)
        return d_query, d_key, d_value, None, None


def _by_head(states: Tensor, n_key_heads: int) -> Tensor:
    """[n, n_heads, size] as [n_key_heads, heads that share a key x n, size]."""
    if states.shape[1] == n_key_heads:
        return states.transpose(0, 1)
    return states.unflatten(1, (n_key_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _by_token(states: Tensor, n_sharing: int) -> Tensor:
    """Undoes :func:`_by_head`."""
    return states.unflatten(1, (n_sharing, states.shape[1] // n_sharing)).permute(2, 0, 1, 3).flatten(1, 2)
