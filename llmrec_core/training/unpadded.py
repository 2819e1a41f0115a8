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

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from llmrec_core.models.calling import called_instead
from llmrec_core.models.tuning import layer_stack
from llmrec_core.models.tuning_lora import FusedLoraLinear, side_by_side
from llmrec_core.models.tuning_soft import soft_states
from llmrec_core.training.packing import Packed, tree_mask
from llmrec_core.training.scoring import LAST_LAYERS, reads_trees

if TYPE_CHECKING:
    from llmrec_core.training.network import PromptNetwork

_ROWS = "llmrec-rows"
#: What the tokens of a row, for attention, and those of all rows together are filled up to in bf16.
_ROW_STEP, _TOTAL_STEP = 8, 16
#: Pairs of tokens for which attention is computed at once, in all rows of a group: what it makes of them should stay in
#: the processor's cache until it is used.
_GROUPED_PAIRS = 1 << 17
#: Powers whose sum is as far from 1 are computed anew: gradients are multiplied by its inverse, and the range ends at
#: 2^127.
_FAR = 2.0**90


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


class RowGroup(NamedTuple):
    """Rows in which as many tokens ask, and as many are read.

    Attributes:
        n_asked, n_read: in each row, how many ask and how many are read.
        mask: what attention adds, [n_rows, 1, n_asked, n_read].
    """

    n_asked: int
    n_read: int
    mask: Tensor


class Places(NamedTuple):
    """Where tokens go that stand row by row, end to end, when rows of one length are put side by side and filled up.

    Behind the last row may be tokens of no row. They are what rows are filled up with, and nothing may be made of what
    attention returns for them.

    Attributes:
        tokens: int64 [n_places], the token in each place; None: all of them, as they stand.
        places: int64 [n_tokens in rows], the place of each token.
        n_behind: tokens behind the last row.
    """

    tokens: Tensor | None
    places: Tensor
    n_behind: int

    @classmethod
    def of(cls, lengths: Tensor, filled: Tensor, order: Sequence[int], n_behind: int) -> Places:
        """
        Args:
            lengths, filled: int64 [n_rows], tokens of each row, and with those that fill it up.
            order: in which rows are put.
        """
        n_tokens = int(lengths.sum())
        at = torch.arange(int(filled.max())) if len(filled) else filled
        starts = (lengths.cumsum(0) - lengths)[:, None]
        grid = torch.where(at < lengths[:, None], starts + at, n_tokens)[order]
        tokens = grid[at < filled[order, None]]
        real = (tokens < n_tokens).nonzero().squeeze(1)
        places = torch.empty(n_tokens, dtype=torch.int64).index_copy_(0, tokens[real], real)
        unmoved = not n_behind and len(tokens) == n_tokens and bool((tokens[1:] > tokens[:-1]).all())
        return cls(None if unmoved else tokens, places, n_behind)

    def there(self, states: Tensor) -> Tensor:
        """States of tokens [n_tokens, ...] in their places, [n_places, ...]."""
        return states if self.tokens is None else states.index_select(0, self.tokens)

    def back(self, states: Tensor) -> Tensor:
        """The way back, with 0 for tokens behind."""
        if self.tokens is None:
            return states
        n_tokens = len(self.places)
        found = states.new_empty(n_tokens + self.n_behind, *states.shape[1:])
        torch.index_select(states, 0, self.places, out=found[:n_tokens])
        found[n_tokens:] = 0
        return found


class Questions(NamedTuple):
    """Tokens that ask and tokens that are read, row by row.

    Attributes:
        groups: rows one after the other in the places of ``asked`` and ``read``.
    """

    groups: list[RowGroup]
    asked: Places
    read: Places

    @classmethod
    def of(
        cls, mask: Tensor, n_asked: Tensor, n_read: Tensor, step: int = 1, behind: tuple[int, int] = (0, 0)
    ) -> Questions:
        """
        Args:
            mask: what attention adds in each row, [n_rows, most that ask, most that are read], filled up. What fills
                up may be read by itself alone, and reads something.
            n_asked, n_read: int64 [n_rows].
            step: both are filled up to its multiples.
            behind: how many tokens of no row stand behind those that ask and behind those that are read; at least one
                where something is filled up.
        """
        filled = [_up_to(step, numbers) for numbers in (n_asked, n_read)]
        sizes = list(zip(*(numbers.tolist() for numbers in filled), strict=True))
        order = sorted(range(len(sizes)), key=lambda row: sizes[row][::-1])
        mask, groups, start = mask[order], [], 0
        for (asked, read), members in groupby(sizes[row] for row in order):
            end = start + len(list(members))
            most = max(1, _GROUPED_PAIRS // max(1, asked * read))
            for first in range(start, end, most):
                seen = mask[first : min(first + most, end), None, :asked, :read]
                groups.append(RowGroup(asked, read, seen))
            start = end
        numbers = zip((n_asked, n_read), filled, behind, strict=True)
        return cls(groups, *(Places.of(each, fill, order, left) for each, fill, left in numbers))


def end_to_end(packed: Packed, values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` [n_rows, width] of tokens as they stand in :class:`Rows`, [n_tokens]; 0 for those behind the rows."""
    found = values[packed.segment >= 0]
    return nn.functional.pad(found, (0, _n_behind(len(found), dtype)))


def _n_behind(n_tokens: int, dtype: torch.dtype) -> int:
    """At least one where rows are filled up."""
    step = _steps(dtype)[1]
    return step - n_tokens % step if step > 1 else 0


def _up_to(step: int, numbers: Tensor) -> Tensor:
    return -(-numbers // step) * step


def _steps(dtype: torch.dtype) -> tuple[int, int]:
    return (_ROW_STEP, _TOTAL_STEP) if dtype == torch.bfloat16 else (1, 1)


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
        # What fills a row up reads the head, so that its softmax is one; nothing reads it.
        segment = packed.segment.where(packed.segment >= 0, packed.n_slots + 1)
        mask = tree_mask(segment, packed.position_ids, dtype, causal=causal)[:, 0]
        lengths, asks = (packed.segment >= 0).sum(1), (weights > 0).any(1)
        row, at = asks.nonzero(as_tuple=True)
        n_asked, step = asks.sum(1), _steps(dtype)[0]
        asked = nn.utils.rnn.pad_sequence(at.split(n_asked.tolist()), batch_first=True)
        asked = nn.functional.pad(asked, (0, -asked.shape[1] % step))
        behind = _n_behind(len(row), dtype), _n_behind(int(lengths.sum()), dtype)
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
    read = _attend(query, key, value, rows.of_pooled, attention.scaling, dropout)
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
    asked, read, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(asked, read, value, rows.questions, scale, dropout).unsqueeze(0), None


def _attend(query: Tensor, key: Tensor, value: Tensor, questions: Questions, scaling: float, dropout: float) -> Tensor:
    """[n_asked, n_heads, size] of queries [n_asked, n_heads, size] that read [n_tokens, n_key_heads, size]."""
    kind = value.dtype
    found: Tensor = _RowAttention.apply(questions, scaling, dropout, query.to(kind), key.to(kind), value)
    return found


class _RowAttention(torch.autograd.Function):
    """Softmax attention of rows: of queries, keys and values, or of them side by side [n_tokens, 3, n_heads, size].

    Several query heads may share a key head. It goes group of rows by group of rows: what a group needs stays in the
    processor's cache until it is used.
    """

    @staticmethod
    def forward(ctx: Any, questions: Questions, scaling: float, dropout: float, *states: Tensor) -> Tensor:
        n_heads, n_key_heads, size = states[0].shape[-2], states[-1].shape[-2], states[-1].shape[-1]
        places = _of_each(questions, len(states))
        states = tuple(place.there(one) for place, one in zip(places, states, strict=True))
        found = states[0].new_empty(len(states[0]), n_heads, size)
        saved: list[Tensor] = []
        with torch.autocast(found.device.type, enabled=False):
            for group, at in _spans(questions):
                n_rows = len(group.mask)
                asked, keys, values = _gathered(states, at, n_rows)
                shares, factor = _shares(asked, keys, group, scaling)
                used, kept = shares, []
                if dropout:
                    kept = [torch.empty_like(shares).bernoulli_(1 - dropout).div_(1 - dropout)]
                    used = shares * kept[0]
                read = torch.bmm(used, values).mul_(factor)
                _put(read, found[at.asked], n_rows)
                saved += [asked, keys, values, shares, factor, read, *kept]
        ctx.questions, ctx.scaling, ctx.n_saved = questions, scaling, 7 if dropout else 6
        ctx.shapes, ctx.n_key_heads = [one.shape for one in states], n_key_heads
        ctx.save_for_backward(*saved)
        return questions.asked.back(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradient = ctx.questions.asked.there(gradients[0])
        to_each = [gradient.new_empty(shape) for shape in ctx.shapes]
        for number, (group, at) in enumerate(_spans(ctx.questions)):
            asked, keys, values, shares, factor, read, *kept = saved[number * ctx.n_saved : (number + 1) * ctx.n_saved]
            n_rows = len(group.mask)
            to_read = (_by_heads(gradient[at.asked], n_rows, ctx.n_key_heads) * factor).to(read.dtype)
            # Of the gradients of a token's shares, weighed by them: softmax takes it off.
            mean = (to_read * read).sum(-1, keepdim=True, dtype=factor.dtype)
            if kept:
                used = shares * kept[0]
                to_scores = torch.bmm(to_read, values.mT).mul_(kept[0]).sub_(mean).mul_(shares)
            else:
                used = shares
                to_scores = _product_less(to_read, values, mean).mul_(shares)
            whole, room = _room(asked, keys, values, joint=len(to_each) == 1)
            torch.baddbmm(room[0], to_scores, keys, beta=0, alpha=ctx.scaling, out=room[0])
            torch.baddbmm(room[1], to_scores.mT, asked, beta=0, alpha=ctx.scaling, out=room[1])
            torch.bmm(used.mT, to_read, out=room[2])
            _scatter(whole, to_each, at, n_rows)
        places = _of_each(ctx.questions, len(to_each))
        return None, None, None, *(place.back(one) for place, one in zip(places, to_each, strict=True))


def _of_each(questions: Questions, n_states: int) -> Sequence[Places]:
    """Places of what is asked and what is read, twice; or of all three side by side."""
    return [questions.read] if n_states == 1 else [questions.asked, questions.read, questions.read]


def _shares(asked: Tensor, keys: Tensor, group: RowGroup, scaling: float) -> tuple[Tensor, Tensor]:
    """Softmax [n, n_asked, n_read] as powers of two, and their factors to the sum 1: float32 [n, n_asked, 1].

    The largest score is not taken off first, which saves a pass over all pairs: bf16 reaches as far as float32 does,
    and the sums of a pretrained MiniLM reach 2^67. Where sums come near the ends of that range, it is.
    """
    n_rows = len(group.mask)
    sizes = n_rows, len(asked) // n_rows, asked.shape[1] // max(1, group.n_asked), group.n_asked, group.n_read

    def scores() -> Tensor:
        found = asked.new_empty(*asked.shape[:2], group.n_read)
        found.view(sizes).copy_(group.mask[:, None])
        return found.baddbmm_(asked, keys.mT, alpha=scaling * math.log2(math.e))

    wide = torch.promote_types(asked.dtype, torch.float32)
    powers = scores().exp2_()
    sums = powers.sum(-1, keepdim=True, dtype=wide)
    if not _in_range(sums):
        powers = scores()
        powers.sub_(powers.amax(-1, keepdim=True)).exp2_()
        sums = powers.sum(-1, keepdim=True, dtype=wide)
    return powers, sums.reciprocal_()


def _in_range(sums: Tensor) -> bool:
    if not sums.numel():
        return True
    least, most = (float(one) for one in torch.aminmax(sums))
    # Comparisons with NaN are false.
    return least > 1 / _FAR and most < _FAR


def _product_less(first: Tensor, second: Tensor, less: Tensor) -> Tensor:
    """``first`` [n, rows, size] times the transpose of ``second`` [n, columns, size], minus ``less`` [n, rows, 1]."""
    # As two more columns, the second of what rounding the first one leaves: the product adds up in float32.
    high = less.to(first.dtype)
    low = (less - high).to(first.dtype)
    return torch.bmm(torch.cat([first, high, low], -1), nn.functional.pad(second, (0, 2), value=-1.0).mT)


def _gathered(states: Sequence[Tensor], at: _Span, n_rows: int) -> Sequence[Tensor]:
    """Queries, keys and values of a group of rows, each as :func:`_by_heads`."""
    if len(states) == 1:
        by_row = states[0][at.read].unflatten(0, (n_rows, -1)).permute(2, 0, 3, 1, 4)
        return by_row.reshape(3, -1, *by_row.shape[-2:]).unbind(0)
    places = at.asked, at.read, at.read
    return [_by_heads(one[place], n_rows, states[-1].shape[1]) for one, place in zip(states, places, strict=True)]


def _room(asked: Tensor, keys: Tensor, values: Tensor, *, joint: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Where their gradients go; and each one's place in that."""
    if joint:
        whole = asked.new_empty(3, *asked.shape)
        return [whole], whole.unbind(0)
    each = [torch.empty_like(one) for one in (asked, keys, values)]
    return each, each


def _scatter(found: Sequence[Tensor], states: Sequence[Tensor], at: _Span, n_rows: int) -> None:
    """The way back from :func:`_gathered`."""
    if len(found) == 1:
        room = states[0][at.read].unflatten(0, (n_rows, -1))
        room.copy_(found[0].unflatten(1, (n_rows, -1)).permute(1, 3, 0, 2, 4))
    else:
        for one, to, place in zip(found, states, (at.asked, at.read, at.read), strict=True):
            _put(one, to[place], n_rows)


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
    read = _RowAttention.apply(given["rows"].questions, attention.scaling, dropout, states)
    return read.flatten(1).unsqueeze(0), None


class _Span(NamedTuple):
    asked: slice
    read: slice


def _spans(questions: Questions) -> Iterator[tuple[RowGroup, _Span]]:
    """Where each group stands in the places of what asks and of what is read."""
    asked = read = 0
    for group in questions.groups:
        n_rows = len(group.mask)
        ends = asked + n_rows * group.n_asked, read + n_rows * group.n_read
        yield group, _Span(slice(asked, ends[0]), slice(read, ends[1]))
        asked, read = ends


def _by_heads(states: Tensor, n_rows: int, n_key_heads: int) -> Tensor:
    """Rows of [n_rows * n, n_heads, size], end to end, as [n_rows * n_key_heads, heads that share a key * n, size]."""
    n, n_sharing, size = len(states) // n_rows, states.shape[1] // n_key_heads, states.shape[2]
    by_row = states.view(n_rows, n, n_key_heads, n_sharing, size).permute(0, 2, 3, 1, 4)
    return by_row.reshape(n_rows * n_key_heads, n_sharing * n, size)


def _put(found: Tensor, states: Tensor, n_rows: int) -> None:
    """The way back: into ``states`` [n_rows * n, n_heads, size]."""
    n, n_heads, size = len(states) // n_rows, *states.shape[1:]
    states.view(n_rows, n, n_heads, size).transpose(1, 2).copy_(found.view(n_rows, n_heads, n, size))
