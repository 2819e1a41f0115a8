"""Scoring without gradients: each history is read once for all its candidates, and nothing is padded but attention.

Heads and tails (see ``packing``) stand one after the other in a single row of tokens, so linear layers work on exactly
the tokens there are. Attention goes by blocks: a head reads itself; a block of tails reads the keys and values of its
head, which are computed once and never copied, and each tail itself. Its cost grows with the number of tails, where
a mask over a packed row grows with its square. Where few candidates share a history, a processor reads it with them
under such a mask all the same (see ``row_attention``): there are fewer calls then. Both are registered with
transformers as an attention of their own, so every architecture that takes one runs with the code it came with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from llmrec_core.contracts import IntArray
from llmrec_core.models.calling import called_instead
from llmrec_core.models.device import BATCH_TOKENS
from llmrec_core.models.laid_out import laid_out
from llmrec_core.models.loading import Backbone
from llmrec_core.models.memory import Portion, until_it_fits
from llmrec_core.models.tuning import layer_stack
from llmrec_core.models.tuning_soft import READY_MASK_TYPES, soft_states
from llmrec_core.training.packing import Packed, TokenisedPrompts, filled_mask, pack, plan_rows, row_lengths
from llmrec_core.training.row_attention import Questions, attend_by_heads, n_behind, steps

if TYPE_CHECKING:
    from llmrec_core.training.network import PromptNetwork

Predictions = dict[str, npt.NDArray[np.float32]]

#: Architectures whose last layer is called part by part, under the names that its parts have there.
LAST_LAYERS = frozenset({"bert", "electra"})
#: Attention scores of one block of tails over all its heads of attention: few enough to stay in a processor's cache.
_BLOCK_CELLS = {"cpu": 250_000, "cuda": 200_000_000, "mps": 20_000_000}
#: Row by row is faster as long as it meets at most so many times the pairs of tokens that blocks meet.
_MORE_PAIRS = {torch.bfloat16: 3.0, torch.float32: 2.0}
_BLOCKS = "llmrec-blocks"


class Reader(Protocol):
    """What reads flat batches."""

    encoder: Any
    causal: bool
    autocast: torch.dtype | None

    @property
    def device(self) -> torch.device: ...


#: How much of what is usual a network reads at once, since memory ran out.
_portions: WeakKeyDictionary[Reader, Portion] = WeakKeyDictionary()


def reads_trees(backbone: Backbone) -> bool:
    """Whether a token of this model can be told which others it reads, and at which position it stands."""
    return backbone.facts.model_type in READY_MASK_TYPES and backbone.facts.config.get("sliding_window") is None


def predict(network: PromptNetwork, tokens: TokenisedPrompts, tasks: tuple[str, ...]) -> Predictions:
    """Raw outputs of the named heads, float32 [n_prompts] (or wider), batch by batch in bounded memory.

    The network must be in evaluation mode. Scores do not depend on which prompts share a batch, but for rounding: where
    memory runs out, the network's batches are smaller from then on, and the rest is read in such.

    Raises:
        RunFailedError: memory is too small even for small batches.
    """
    out: Predictions = {}
    done = np.zeros(len(tokens), bool)

    def read_rest() -> None:
        left, rest = np.flatnonzero(~done), tokens
        if len(left) < len(tokens):
            rest = TokenisedPrompts(tokens.heads, tokens.tails, tokens.head_of[left], tokens.tail_of[left])
        for members, scores in _score(network, rest, tasks):
            for task, found in scores.items():
                if task not in out:
                    out[task] = np.empty((len(tokens), *found.shape[1:]), np.float32)
                out[task][left[members]] = found
            done[left[members]] = True

    def smaller() -> None:
        # Kept states belong to the batches that were; without them there is more memory too.
        network.kept = None
        read_less(network)

    until_it_fits(read_rest, smaller, network.device)
    return {task: out.get(task, np.empty(0, np.float32)) for task in tasks}


def _score(
    network: PromptNetwork, tokens: TokenisedPrompts, tasks: tuple[str, ...]
) -> Iterator[tuple[IntArray, Predictions]]:
    """Prompts of a batch and their outputs."""
    read = _read_batches if reads_trees(network.backbone) else _padded_batches
    # Where memory ran out, none is spent on a second copy of the weights.
    n_tokens = 0 if portion(network).halved else _n_tokens(tokens)
    # Closed whatever happens: attention is put back with it.
    with laid_out(network.encoder, n_tokens), closing(read(network, tokens)) as batches:
        for members, vectors in batches:
            scores = network.heads(vectors)
            yield members, {task: scores[task].float().cpu().numpy() for task in tasks}


def _n_tokens(tokens: TokenisedPrompts) -> int:
    """Tokens of all prompts, a head's once."""
    heads = tokens.heads.lengths[np.unique(tokens.head_of)]
    return int(heads.sum() + tokens.tails.lengths[tokens.tail_of].sum())


def batch_tokens(network: Reader) -> int:
    """Tokens that are read at once (or one prompt, if that is longer)."""
    return portion(network).of(_usual_tokens(network))


def portion(network: Reader) -> Portion:
    """How much of what is usual the network reads at once."""
    if network not in _portions:
        _portions[network] = Portion(
            "the device's memory is too small to score even a small batch of prompts.",
            where="prompt.max_tokens",
            fix="Lower it, free memory of the device, or use another one.",
        )
    return _portions[network]


def read_less(network: Reader) -> None:
    """From now on the network reads half as much at once.

    Raises:
        RunFailedError: memory is too small even for small batches.
    """
    portion(network).halve(_usual_tokens(network))


def _usual_tokens(network: Reader) -> int:
    return BATCH_TOKENS.get(network.device.type, BATCH_TOKENS["cpu"])


# ---- one row without padding -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Sequences that may read their ``prefix`` and, each, itself.

    Attributes:
        tokens: where they stand in the row, end to end.
        prefix: where what all of them read stands; may be empty.
        place: int64 [n, longest], position of each token in the row; behind the end of a sequence its first token.
        inside: int64 [tokens], where in the flattened ``place`` the tokens of the row are; None: nothing is padded.
        bias: added to scores inside a sequence, [n or 1, longest, longest]; None: all of it is read.
    """

    tokens: slice
    prefix: slice
    place: Tensor
    inside: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class FlatBatch:
    """One row of heads and tails.

    Attributes:
        input_ids, position_ids: int64 [1, n_tokens].
        blocks: they cover the row; or each history with its candidates reads itself, see :func:`_goes_by_rows`.
        members: the prompts, in the order of their tails.
        starts, ends: int64 [n_prompts], where each tail stands.
    """

    input_ids: Tensor
    position_ids: Tensor
    blocks: tuple[Block, ...] | Questions
    members: IntArray
    starts: Tensor
    ends: Tensor


def plan_batches(tokens: TokenisedPrompts, budget: int) -> Iterator[list[IntArray]]:
    """Prompts in batches of at most ``budget`` tokens (or one prompt).

    A batch is a list of prompts of one head each, short tails first. A head is read again only where its tails do not
    fit into one batch.
    """
    lengths = tokens.tails.lengths[tokens.tail_of]
    order = np.lexsort((lengths, tokens.head_of))
    borders = np.flatnonzero(np.diff(tokens.head_of[order])) + 1
    batch: list[IntArray] = []
    used = 0
    for group in np.split(order, borders) if len(order) else []:
        n_head = int(tokens.heads.lengths[tokens.head_of[group[0]]])
        ends = np.cumsum(lengths[group])
        start = 0
        while start < len(group):
            taken = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, taken + budget - used - n_head, side="right"))
            whole = n_head + int(ends[-1]) - taken
            # A head is not parted from its tails for the sake of a full batch, unless it fills batches by itself.
            if batch and (stop <= start or (stop < len(group) and whole <= budget)):
                yield batch
                batch, used = [], 0
                continue
            stop = max(stop, start + 1)
            batch.append(group[start:stop])
            used += n_head + int(ends[stop - 1]) - taken
            start = stop
    if batch:
        yield batch


def lay_out(tokens: TokenisedPrompts, groups: list[IntArray], network: PromptNetwork) -> FlatBatch:
    """The row of a batch of :func:`plan_batches`, on the network's device."""
    kind = network.device.type
    n_attention_heads = int(network.encoder.config.num_attention_heads)
    cells = _BLOCK_CELLS.get(kind, _BLOCK_CELLS["cpu"]) // n_attention_heads
    ids: list[npt.NDArray[np.int32]] = []
    positions: list[IntArray] = []
    blocks: list[Block] = []
    starts: list[IntArray] = []
    ends: list[IntArray] = []
    by_rows = _goes_by_rows(tokens, groups, network)
    at = 0
    for group in groups:
        head = tokens.heads[int(tokens.head_of[group[0]])]
        prefix = slice(at, at + len(head))
        if len(head):
            ids.append(head)
            positions.append(np.arange(len(head), dtype=np.int64))
            if not by_rows:
                blocks.append(block_of(np.array([len(head)]), slice(at, at), at, network))
            at += len(head)
        tails = tokens.tail_of[group]
        sizes = tokens.tails.lengths[tails]
        ids.append(tokens.tails.taken(tails)[0])
        after = at + np.cumsum(sizes)
        starts.append(after - sizes)
        ends.append(after)
        positions.append(len(head) + np.arange(at, after[-1]) - np.repeat(after - sizes, sizes))
        start = len(group) if by_rows else 0
        while start < len(group):
            # Tails come short ones first, so this many of the longest still fit.
            rows = np.arange(1, len(group) - start + 1) * sizes[start:] * (len(head) + sizes[start:])
            stop = start + max(1, int(np.searchsorted(rows, cells, side="right")))
            blocks.append(block_of(sizes[start:stop], prefix, int(after[start] - sizes[start]), network))
            start = stop
        at = int(after[-1])
    device = network.device
    row, place = np.concatenate(ids).astype(np.int64), np.concatenate(positions)
    read: tuple[Block, ...] | Questions = tuple(blocks)
    if by_rows:
        behind = n_behind(len(row), network.computes_in)
        read = _questions(tokens, groups, network)
        row, place = np.pad(row, (0, behind)), np.pad(place, (0, behind))
    return FlatBatch(
        torch.from_numpy(row[None]).to(device),
        torch.from_numpy(place[None]).to(device),
        read,
        np.concatenate(groups),
        torch.from_numpy(np.concatenate(starts)).to(device),
        torch.from_numpy(np.concatenate(ends)).to(device),
    )


def _goes_by_rows(tokens: TokenisedPrompts, groups: list[IntArray], network: PromptNetwork) -> bool:
    """Whether each history reads itself and its candidates as one row, in which most pairs of tokens may be hidden.

    Where few candidates share a history that is faster than blocks: these are small then, and many.
    """
    if network.device.type != "cpu" or soft_states(network.encoder) is not None:
        return False
    heads, tails, row = _lengths(tokens, groups)
    in_rows = ((heads + np.bincount(row, tails)) ** 2).sum()
    in_blocks = (heads**2).sum() + (tails * (heads[row] + tails)).sum()
    return bool(in_rows <= _MORE_PAIRS.get(network.computes_in, 0.0) * in_blocks)


def _lengths(tokens: TokenisedPrompts, groups: list[IntArray]) -> tuple[IntArray, IntArray, IntArray]:
    """Tokens of each head and of each tail of a batch, and the number of each tail's head."""
    first = np.fromiter((group[0] for group in groups), np.int64, len(groups))
    sizes = np.fromiter(map(len, groups), np.int64, len(groups))
    tails = tokens.tails.lengths[tokens.tail_of[np.concatenate(groups)]]
    return tokens.heads.lengths[tokens.head_of[first]], tails, np.repeat(np.arange(len(groups)), sizes)


def _questions(tokens: TokenisedPrompts, groups: list[IntArray], network: PromptNetwork) -> Questions:
    """Of the rows of a batch, each a head with its tails."""
    members, kind = np.concatenate(groups), network.computes_in
    rows = np.split(np.arange(len(members)), np.cumsum([len(group) for group in groups])[:-1])
    packed = pack(tokens, members, rows, network.backbone.pad_id)
    lengths, behind = packed.lengths, n_behind(packed.n_tokens, kind)
    return Questions.of(
        filled_mask(packed, kind, causal=network.causal), lengths, lengths, steps(kind)[0], (behind, behind)
    )


def block_of(sizes: IntArray, prefix: slice, at: int, network: Reader) -> Block:
    """Sequences of these sizes from ``at`` on."""
    device = network.device
    longest = int(sizes.max())
    starts = at + np.cumsum(sizes) - sizes
    column = np.arange(longest)
    real = column < sizes[:, None]
    place = torch.from_numpy(np.where(real, starts[:, None] + column, starts[:, None])).to(device)
    padded = not real.all()
    allowed = np.tri(longest, dtype=bool)[None] if network.causal else np.ones((1, longest, longest), bool)
    bias = None
    if padded:
        allowed = allowed & real[:, None, :]
    if padded or network.causal:
        # A quarter of the smallest number: sums with it stay finite, and exp of them is 0.
        lowest = torch.finfo(torch.float32).min / 4
        bias = torch.zeros(allowed.shape).masked_fill_(torch.from_numpy(~allowed), lowest).to(device)
    inside = torch.from_numpy(np.flatnonzero(real)).to(device) if padded else None
    return Block(slice(at, int(at + sizes.sum())), prefix, place, inside, bias)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    blocks: tuple[Block, ...] | Questions | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one row by blocks, in the form that transformers calls.

    Args:
        query: [1, n_heads, n_tokens, width].
        key, value: [1, n_key_heads, n_given + n_tokens, width]; what was given before the row (trained prefixes) is
            read by every token.
        attention_mask: read only where there are no blocks, which say the same.
        scaling: of the products; None: 1 / sqrt(width).
        blocks: from :class:`FlatBatch`; None: plain attention, for states that are made by the model before it reads.

    Returns:
        [1, n_tokens, n_heads, width], and no weights.
    """
    if blocks is None:
        found = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return found.transpose(1, 2), None
    n_heads, n_tokens, width = query.shape[1:]
    n_key_heads, n_given = key.shape[1], key.shape[2] - n_tokens
    scale = width**-0.5 if scaling is None else scaling
    if isinstance(blocks, Questions):
        return attend_by_heads(query, key, value, blocks, scale), None
    # Query heads of one key head side by side: [n_key_heads, shared, n_tokens, width], without copying keys.
    asked = query[0].reshape(n_key_heads, n_heads // n_key_heads, n_tokens, width) * scale
    keys, values = key[0], value[0]
    out = query.new_empty(n_tokens, n_heads, width)
    for block in blocks:
        q, k, v = (_sequences(states, block) for states in (asked, keys[:, None, n_given:], values[:, None, n_given:]))
        within = torch.matmul(q, k.transpose(-1, -2))
        if block.bias is not None:
            within = within + block.bias.to(within.dtype)
        before = slice(n_given + block.prefix.start, n_given + block.prefix.stop)
        head_k, head_v = keys[:, before], values[:, before]
        if n_given:
            head_k = torch.cat([keys[:, :n_given], head_k], 1)
            head_v = torch.cat([values[:, :n_given], head_v], 1)
        n_head = head_k.shape[1]
        if not n_head:
            weights = within.softmax(-1, dtype=torch.float32).to(v.dtype)
            found = torch.matmul(weights, v)
        else:
            across = torch.matmul(q.flatten(1, 3), head_k.transpose(-1, -2)).view(*within.shape[:-1], n_head)
            weights = torch.cat([across, within], -1).softmax(-1, dtype=torch.float32).to(v.dtype)
            found = torch.matmul(weights[..., n_head:], v)
            found += torch.matmul(weights[..., :n_head].flatten(1, 3), head_v).view_as(found)
        rows = found.flatten(0, 1).flatten(1, 2).transpose(0, 1)
        out[block.tokens] = (rows if block.inside is None else rows.index_select(0, block.inside)).to(out.dtype)
    return out.unsqueeze(0), None


def _sequences(states: Tensor, block: Block) -> Tensor:
    """The block's part of [..., n_tokens, width] as [..., n, longest, width]."""
    if block.inside is None:
        part = states[..., block.tokens, :]
    else:
        # Tokens with all their heads, as they lie in memory: an index further inside takes four times as long.
        tokens = states.movedim(-2, 0).index_select(0, block.place.reshape(-1))
        part = tokens.movedim(0, -2).contiguous()
    return part.unflatten(-2, tuple(block.place.shape))


@contextmanager
def attending_by_blocks(encoder: Any) -> Iterator[None]:
    """Inside, the model reads batches of blocks."""
    AttentionInterface.register(_BLOCKS, block_attention)
    before = encoder.config._attn_implementation
    encoder.set_attn_implementation(_BLOCKS)
    try:
        yield
    finally:
        encoder.set_attn_implementation(before)


def n_flat_tokens(network: PromptNetwork, tokens: TokenisedPrompts) -> int:
    """Tokens in all batches of :func:`flat_batches` as they are now."""
    found = 0
    for groups in plan_batches(tokens, batch_tokens(network)):
        heads, tails, _ = _lengths(tokens, groups)
        n_tokens = int(heads.sum() + tails.sum())
        found += n_tokens
        if _goes_by_rows(tokens, groups, network):
            found += n_behind(n_tokens, network.computes_in)
    return found


def flat_batches(network: PromptNetwork, tokens: TokenisedPrompts, at_once: int) -> Generator[FlatBatch]:
    """All prompts, for as many tokens ``at_once`` always in the same batches.

    Until the last one is taken or it is closed, attention goes by blocks.
    """
    with attending_by_blocks(network.encoder):
        for groups in plan_batches(tokens, at_once):
            yield lay_out(tokens, groups, network)


def read_flat(network: Reader, batch: FlatBatch) -> Tensor:
    """States of the tokens of a batch of :func:`flat_batches`, [n_tokens, hidden_size]."""
    with torch.autocast(network.device.type, dtype=network.autocast, enabled=network.autocast is not None):
        return network.encoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, blocks=batch.blocks
        ).last_hidden_state[0]


def _read_batches(network: PromptNetwork, tokens: TokenisedPrompts) -> Generator[tuple[IntArray, Tensor]]:
    """Prompts of a batch and what the heads read of each, float32 [n, hidden_size]."""
    kept = network.kept if network.kept is not None and network.kept.tokens is tokens else None
    with closing(flat_batches(network, tokens, batch_tokens(network) if kept is None else kept.at_once)) as batches:
        for number, batch in enumerate(batches):
            with nullcontext() if kept is None else kept.batch(number), _tails_alone(network, batch) as read:
                hidden = read_flat(network, batch)
            yield batch.members, pooled(read, hidden, network.pooling, network.mask_id)


@contextmanager
def _tails_alone(network: PromptNetwork, batch: FlatBatch) -> Iterator[FlatBatch]:
    """Inside, the last layer of an encoder of a known kind is not fed forward for heads, which nothing reads any more.

    Hands out where tails stand in what then comes out.
    """
    encoder = network.encoder
    if encoder.config.model_type not in LAST_LAYERS or soft_states(encoder) is not None:
        yield batch
        return
    sizes = batch.ends - batch.starts
    ends = sizes.cumsum(0)
    starts = ends - sizes
    tails = torch.arange(int(ends[-1]), device=ends.device) + (batch.starts - starts).repeat_interleave(sizes)
    layer: Any = layer_stack(encoder)[-1]

    def last(states: Tensor, *_: Any, blocks: tuple[Block, ...], **__: Any) -> Tensor:
        attention = layer.attention.self
        query, key, value = (
            part(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        read, _nothing = block_attention(layer, query, key, value, None, attention.scaling, blocks=blocks)
        found: Tensor = layer.feed_forward_chunk(
            layer.attention.output(read.flatten(2).index_select(1, tails), states.index_select(1, tails))
        )
        return found

    with called_instead([layer], last):
        yield replace(batch, input_ids=batch.input_ids.index_select(1, tails), starts=starts, ends=ends)


def pooled(batch: FlatBatch, hidden: Tensor, how: str, mask_id: int = -1) -> Tensor:
    """Token states [n_tokens, hidden_size] as one vector a tail, float32 [n_prompts, hidden_size].

    As :func:`llmrec_core.training.packing.pooling_weights`; tails that lack the mask token give zeros.
    """
    if how == "mean":
        # Bags of tokens in the order of the row; every second bag is what stands between tails, and is dropped.
        borders = functional.pad(torch.stack([batch.starts, batch.ends], 1).reshape(-1), (1, 0))
        rows = torch.arange(len(hidden), device=hidden.device)
        return functional.embedding_bag(rows, hidden.float(), borders, mode="mean")[1::2]
    if how == "cls":
        return hidden[batch.starts].float()
    if how == "mask":
        row = torch.arange(len(hidden), device=hidden.device)
        # Position of the last mask token up to each token; before the first one -1.
        last = torch.where(batch.input_ids[0] == mask_id, row, -1).cummax(0).values[batch.ends - 1]
        return hidden[last.clamp_min(0)].float() * (last >= batch.starts)[:, None]
    return hidden[batch.ends - 1].float()


# ---- models that take no such attention ------------------------------------------------------------------------------


def _padded_batches(network: PromptNetwork, tokens: TokenisedPrompts) -> Generator[tuple[IntArray, Tensor]]:
    """As :func:`_read_batches`, each prompt in a row of its own, rows of similar length side by side."""
    prompts = np.arange(len(tokens), dtype=np.int64)
    rows = plan_rows(tokens, prompts, 1)
    for chosen in _batches(row_lengths(tokens, prompts, rows), batch_tokens(network)):
        batch_rows = [rows[i] for i in chosen]
        members = np.concatenate(batch_rows)
        yield members, network.vectors(_pack_members(tokens, members, batch_rows, network.backbone.pad_id))


def _pack_members(tokens: TokenisedPrompts, members: IntArray, rows: list[IntArray], pad_id: int) -> Packed:
    """Packs rows that index ``tokens`` directly: they are rewritten to index ``members``."""
    bounds = np.cumsum([0, *(len(row) for row in rows)])
    local = [np.arange(start, end, dtype=np.int64) for start, end in pairwise(bounds.tolist())]
    return pack(tokens, members, local, pad_id)


def _batches(lengths: IntArray, budget: int) -> list[IntArray]:
    """Rows in batches of similar length, longest first, each at most ``budget`` tokens with padding (or one row)."""
    order = np.argsort(-lengths, kind="stable")
    found = []
    start = 0
    while start < len(order):
        size = max(1, int(budget // (-(-lengths[order[start]] // 8) * 8)))
        found.append(order[start : start + size])
        start += size
    return found
