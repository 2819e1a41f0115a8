"""Training rows without padding: linear layers work on the tokens there are, the last layer on those that are pooled.

Scores, gradients and updates are those of the padded rows (see ``packing``), but for the rounding of sums:

- the tokens of all rows stand end to end in one, and attention goes row by row, those of one length together: nothing
  reads the tokens of another row, and what is made of a few rows stays in the processor's cache until it is used;
- above the last attention nothing reads a token that no prompt's vector is made of. In encoders' last layer, pooled
  tokens alone ask and are fed forward; of a history with its candidates they are a third or less.

In bf16 some padding stays. oneDNN, which multiplies there, makes code for each new shape, and that takes about as long
as the product. So all tokens together are filled up to a multiple of 16, and rows to multiples of 8, but for attention
alone: elsewhere the length of a row is no shape.

For processors, where time goes with the operations. PyTorch's fused attention on cards takes padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from llmrec_core.models.calling import called_instead
from llmrec_core.models.tuning import layer_stack
from llmrec_core.models.tuning_lora import FusedLoraLinear, side_by_side
from llmrec_core.models.tuning_soft import soft_states
from llmrec_core.training import row_attention
from llmrec_core.training.packing import Packed, filled_mask
from llmrec_core.training.row_attention import Questions, RowAttention, attend, attend_by_heads, n_behind
from llmrec_core.training.scoring import LAST_LAYERS, reads_trees

if TYPE_CHECKING:
    from llmrec_core.training.network import PromptNetwork

_ROWS = "llmrec-rows"


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


def end_to_end(packed: Packed, values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` [n_rows, width] of tokens as they stand in :class:`Rows`, [n_tokens]; 0 for those behind the rows."""
    found = values[packed.segment >= 0]
    return nn.functional.pad(found, (0, n_behind(len(found), dtype)))


@dataclass(frozen=True)
class Rows:
    """Tokens of packed rows end to end, and behind them, in bf16, some that fill their number up.

    Attributes:
        input_ids, position_ids: int64 [1, n_tokens].
        questions: all tokens ask.
        pooled: int64 [n_pooled], tokens that vectors are made of, and some others.
        of_pooled: these ask.
        weights: float32 [n_prompts, n_pooled], how they become vectors; 0 for the others.
    """

    input_ids: Tensor
    position_ids: Tensor
    questions: Questions
    pooled: Tensor
    of_pooled: Questions
    weights: Tensor

    @classmethod
    def of(cls, packed: Packed, weights: Tensor, dtype: torch.dtype, *, causal: bool) -> Rows:
        """
        Args:
            weights: of :func:`llmrec_core.training.packing.pooling_weights`.
            dtype: in which attention is computed.
        """
        mask = filled_mask(packed, dtype, causal=causal)
        lengths, asks = packed.lengths, (weights > 0).any(1)
        row, at = asks.nonzero(as_tuple=True)
        n_asked, step = asks.sum(1), row_attention.steps(dtype)[0]
        asked = nn.utils.rnn.pad_sequence(at.split(n_asked.tolist()), batch_first=True)
        asked = nn.functional.pad(asked, (0, -asked.shape[1] % step))
        behind = n_behind(len(row), dtype), n_behind(int(lengths.sum()), dtype)
        of_prompt = weights[packed.row[:, None], packed.slot[:, None], at] * (packed.row[:, None] == row)
        return cls(
            end_to_end(packed, packed.input_ids, dtype)[None],
            end_to_end(packed, packed.position_ids, dtype)[None],
            Questions.of(mask, lengths, lengths, step, (behind[1], behind[1])),
            nn.functional.pad((lengths.cumsum(0) - lengths)[row] + at, (0, behind[0])),
            Questions.of(mask[torch.arange(len(mask))[:, None], asked], n_asked, lengths, step, behind),
            nn.functional.pad(of_prompt, (0, behind[0])),
        )


# ---- the computation -------------------------------------------------------------------------------------------------


def vectors(network: PromptNetwork, packed: Packed) -> Tensor:
    """What the heads read of each prompt, float32 [n_prompts, hidden_size], as ``PromptNetwork.vectors``."""
    encoder: Any = network.encoder
    rows = Rows.of(packed, network.pooling_weights(packed), network.computes_in, causal=network.causal)
    layers: Any = layer_stack(encoder) if encoder.config.model_type in LAST_LAYERS else [None]
    last = layers[-1]
    more = {"use_cache": False} if network.causal else {}
    with (
        torch.autocast(network.device.type, dtype=network.autocast, enabled=network.autocast is not None),
        ExitStack() as instead,
    ):
        if last is not None:
            instead.enter_context(called_instead([last], partial(_pooled_tokens_alone, last)))
        for layer in layers[:-1]:
            attention = layer.attention.self
            forward = partial(_self_attention, attention, attention.forward)
            instead.enter_context(called_instead([attention], forward))
        found = encoder(input_ids=rows.input_ids, position_ids=rows.position_ids, rows=rows, **more)
    # Squeezed, here and below: the gradient of an index is written into zeros of the whole.
    states = found.last_hidden_state.squeeze(0)
    return rows.weights @ (states[rows.pooled] if last is None else states).float()


def _pooled_tokens_alone(layer: Any, states: Tensor, *_: Any, rows: Rows, **__: Any) -> Tensor:
    """The layer's own parts in their order; all tokens are read, and the pooled ones ask: [1, n_pooled, size]."""
    attention, output = layer.attention.self, layer.attention.output
    tokens = states.squeeze(0)
    asked = tokens.index_select(0, rows.pooled)
    query, key, value = (
        part(given).unflatten(-1, (-1, attention.attention_head_size))
        for part, given in ((attention.query, asked), (attention.key, tokens), (attention.value, tokens))
    )
    dropout = attention.dropout.p if attention.training else 0.0
    read = attend(query, key, value, rows.of_pooled, attention.scaling, dropout)
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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_by_heads(query, key, value, rows.questions, scale, dropout), None


class _Beside(torch.autograd.Function):
    """Three linear layers that read the same, as one product: x [n, in] -> [n, 3 * out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_and_biases: Tensor) -> Tensor:
        weight, bias = torch.cat(weights_and_biases[:3]), torch.cat(weights_and_biases[3:])
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        needed = ctx.needs_input_grad
        to_x = gradient @ weight if needed[0] else None
        to_weights = (gradient.T @ x).chunk(3) if any(needed[1:4]) else [None] * 3
        to_biases = gradient.sum(0).chunk(3) if any(needed[4:]) else [None] * 3
        found = [one if wanted else None for one, wanted in zip([*to_weights, *to_biases], needed[1:], strict=True)]
        return to_x, *found


def _side_by_side(parts: Sequence[Any], x: Tensor) -> Tensor | None:
    """Queries, keys and values of ``x`` [n, in] as one product, [n, 3 * out]; None where their layers are of other
    kinds or sizes."""
    kinds = {type(part) for part in parts}
    if len(kinds) > 1 or not kinds <= {nn.Linear, FusedLoraLinear} or torch.is_autocast_enabled(x.device.type):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return None
    bases = [part.get_base_layer() if isinstance(part, FusedLoraLinear) else part for part in parts]
    wanted = (bases[0].weight.shape, x.dtype, False)
    if any((base.weight.shape, base.weight.dtype, base.bias is None) != wanted for base in bases):
        return None
    if FusedLoraLinear in kinds:
        return side_by_side(parts, x)
    found: Tensor = _Beside.apply(x, *(part.weight for part in parts), *(part.bias for part in parts))
    return found


def _self_attention(attention: Any, plain: Any, states: Tensor, *args: Any, **given: Any) -> tuple[Tensor, None]:
    """The part of an encoder's layer that asks and reads; ``plain`` is its own way."""
    joint = _side_by_side((attention.query, attention.key, attention.value), states.squeeze(0))
    if joint is None:
        found: tuple[Tensor, None] = plain(states, *args, **given)
        return found
    dropout = attention.dropout.p if attention.training else 0.0
    states = joint.unflatten(1, (3, -1, attention.attention_head_size))
    read = RowAttention.apply(given["rows"].questions, attention.scaling, dropout, states)
    return read.flatten(1).unsqueeze(0), None
