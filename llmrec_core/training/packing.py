"""Token rows for the model: one history read once, with all its candidates behind it.

A prompt is cut where its candidate begins. What stands before (instructions, profile, history) is the *head*, the
rest its *tail*. Tails of equal heads share one row, and the attention mask is a tree: a head token reads the head, a
tail token reads the head and its own tail. So eight candidates of a 60-token history cost 60 + 8 x 18 tokens, not
8 x 78, and a score never depends on which other candidates share the row. Causal decoders compute the same as with
separate prompts; in encoders the history no longer looks at the candidate (the candidate still looks at it), which
fine-tuning gets used to. Models that cannot take such a mask read each prompt alone: a row with an empty head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmrec_core.contracts import IntArray, RenderedPrompt
from llmrec_core.errors import InputError
from llmrec_core.models.loading import Backbone
from llmrec_core.prompts.tokens import space_before

#: Segment of head tokens and of padding; tails of a row count from 1.
HEAD, PADDING = 0, -1


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one flat int32 array: row i is ``flat[starts[i]:starts[i + 1]]``."""

    flat: npt.NDArray[np.int32]
    starts: IntArray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        flat = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @cached_property
    def lengths(self) -> IntArray:
        return np.diff(self.starts)

    def taken(self, rows: IntArray) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
        """Values of ``rows`` end to end, [n]; of each, which of ``rows`` it comes from and its place there."""
        sizes = self.lengths[rows]
        which = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.flat[self.starts[rows][which] + place], which, place

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        return self.flat[self.starts[row] : self.starts[row + 1]]


@dataclass(frozen=True)
class TokenisedPrompts:
    """Prompts as tokens, each distinct head and tail kept once.

    ``head_of``, ``tail_of``: int64 [n_prompts], rows of ``heads`` and ``tails``.
    """

    heads: Ragged
    tails: Ragged
    head_of: IntArray
    tail_of: IntArray

    def __len__(self) -> int:
        return len(self.head_of)

    @property
    def n_tokens(self) -> IntArray:
        """Tokens of each prompt by itself, [n_prompts]."""
        return self.heads.lengths[self.head_of] + self.tails.lengths[self.tail_of]


def tokenise(backbone: Backbone, prompts: Sequence[RenderedPrompt], *, shared: bool) -> TokenisedPrompts:
    """Token ids of ``prompts``; with ``shared`` cut where the candidate begins, else with empty heads.

    Head + tail are always the tokens of the prompt as it stands.

    Raises:
        InputError: a prompt is empty or longer than the model can read.
    """
    distinct: dict[tuple[str, int], int] = {}
    keys = [(prompt.text, _candidate_start(prompt) if shared else 0) for prompt in prompts]
    which = np.fromiter((distinct.setdefault(key, len(distinct)) for key in keys), np.int64, len(keys))
    heads: dict[tuple[int, ...], int] = {}
    tails: dict[tuple[int, ...], int] = {}
    head_of = np.empty(len(distinct), np.int64)
    tail_of = np.empty(len(distinct), np.int64)
    for number, (head, tail) in enumerate(_halves(backbone, list(distinct))):
        n_tokens = len(head) + len(tail)
        if not 1 <= n_tokens <= backbone.max_tokens:
            raise InputError(
                f"a prompt has {n_tokens} tokens; the model reads 1 to {backbone.max_tokens}.",
                where="prompt.max_tokens",
                fix="Lower prompt.max_tokens, or let the template print something for every user.",
            )
        head_of[number] = heads.setdefault(head, len(heads))
        tail_of[number] = tails.setdefault(tail, len(tails))
    return TokenisedPrompts(Ragged.of(list(heads)), Ragged.of(list(tails)), head_of[which], tail_of[which])


#: Token ids of a head and of a tail.
_Ids = tuple[int, ...]


def _halves(backbone: Backbone, prompts: Sequence[tuple[str, int]]) -> list[tuple[_Ids, _Ids]]:
    """The tokens of each (text, place of the cut) before the cut and from there on.

    Where the tokenizer reads a text as its parts (see ``prompts.tokens.reads_by_parts``), every head and every tail is
    read once, however many prompts it stands in; else every prompt is read whole. The ids are the same.
    """
    around = backbone.around
    places = [cut if around is not None and space_before(text, cut) else 0 for text, cut in prompts]
    parted = [(text, cut) for (text, _), cut in zip(prompts, places, strict=True) if cut]
    begin, end = around or ((), ())
    # The space goes with the tail, as in the whole: there it is a part of the word behind it, or is dropped.
    heads = _heads(backbone, {text[: cut - 1] for text, cut in parted}, begin)
    tails = _tails(backbone, {text[cut - 1 :] for text, cut in parted}, end)
    whole = [number for number, cut in enumerate(places) if not cut or not tails[prompts[number][0][cut - 1 :]][0]]
    found = dict(zip(whole, _read_whole(backbone, [prompts[number] for number in whole]), strict=True))
    for number, ((text, _), cut) in enumerate(zip(prompts, places, strict=True)):
        if number not in found:
            head, (tail, n_before) = heads[text[: cut - 1]], tails[text[cut - 1 :]]
            # A space that is a token of its own ends before the cut.
            found[number] = (head + tail[:n_before], tail[n_before:]) if n_before else (head, tail)
    return [found[number] for number in range(len(prompts))]


def _heads(backbone: Backbone, texts: Collection[str], begin: _Ids) -> dict[str, _Ids]:
    listed = list(texts)
    encodings = backbone.tokenizer.encode_batch_fast(listed, add_special_tokens=False)
    return {text: (*begin, *encoding.ids) for text, encoding in zip(listed, encodings, strict=True)}


def _tails(backbone: Backbone, texts: Collection[str], end: _Ids) -> dict[str, tuple[_Ids, int]]:
    """Tokens of texts whose first character stands before the cut, and how many of them do."""
    listed = list(texts)
    found = {}
    for text, encoding in zip(listed, backbone.tokenizer.encode_batch(listed, add_special_tokens=False), strict=True):
        ids = (*encoding.ids, *end)
        found[text] = (ids, head_length([*encoding.offsets, *((0, 0) for _ in end)], 1))
    return found


def _read_whole(backbone: Backbone, prompts: Sequence[tuple[str, int]]) -> list[tuple[_Ids, _Ids]]:
    shared = any(cut for _, cut in prompts)
    encode = backbone.tokenizer.encode_batch if shared else backbone.tokenizer.encode_batch_fast
    found = []
    for (_, cut), encoding in zip(prompts, encode([text for text, _ in prompts]), strict=True):
        ids = tuple(encoding.ids)
        at = head_length(encoding.offsets, cut) if cut else 0
        found.append((ids[:at], ids[at:]))
    return found


def _candidate_start(prompt: RenderedPrompt) -> int:
    """Character at which the first candidate field begins; where the prompt shows none, the end of its text."""
    return min((span.start for span in prompt.spans if span.kind == "candidate"), default=len(prompt.text))


def head_length(offsets: Sequence[tuple[int, int]], cut: int) -> int:
    """Tokens that end at or before character ``cut``; special tokens at the end of the text never count."""
    for position, (start, end) in enumerate(offsets):
        if end > cut and end > start:
            return position
    # Nothing readable behind the cut: the last token stays as the tail, since a tail is what is pooled.
    return max(0, len(offsets) - 1)


@dataclass(frozen=True)
class Packed:
    """One batch of rows. All tensors share the first two sizes [n_rows, width]; ``width`` is a multiple of 8.

    Attributes:
        input_ids, position_ids: int64; a tail's positions go on where its head ended.
        segment: int16; HEAD, the number of a tail in its row, or PADDING.
        row, slot: int64 [n_prompts], where each prompt's tail stands (slot counts from 0).
        n_slots: most tails in one row.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    row: Tensor
    slot: Tensor
    n_slots: int

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64 [n_rows]; its padding stands behind them."""
        return (self.segment >= 0).sum(1)

    @property
    def n_tokens(self) -> int:
        return int((self.segment >= 0).sum())

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        tensors = (self.input_ids, self.position_ids, self.segment, self.row, self.slot)
        ids, positions, segment, row, slot = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Packed(ids, positions, segment, row, slot, self.n_slots)


def plan_rows(tokens: TokenisedPrompts, prompts: IntArray, max_tails: int) -> list[IntArray]:
    """Which of ``prompts`` share a row: those of one head, at most ``max_tails`` each; without a head none do.

    Returns:
        index arrays into ``prompts``; together every position once.
    """
    if not len(prompts):
        return []
    order = np.argsort(tokens.head_of[prompts], kind="stable")
    heads = tokens.head_of[prompts][order]
    first = np.flatnonzero(np.diff(heads, prepend=-1))
    place = np.arange(len(heads)) - np.repeat(first, np.diff(first, append=len(heads)))
    most = np.where(tokens.heads.lengths[heads] > 0, max_tails, 1)
    return np.split(order, np.flatnonzero(place % most == 0)[1:])


def row_lengths(tokens: TokenisedPrompts, prompts: IntArray, rows: Sequence[IntArray]) -> IntArray:
    """Tokens in each planned row, [n_rows]."""
    if not len(rows):
        return np.empty(0, np.int64)
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    starts = np.cumsum(sizes) - sizes
    chosen = prompts[np.concatenate(rows)]
    tails = np.add.reduceat(tokens.tails.lengths[tokens.tail_of[chosen]], starts)
    return tokens.heads.lengths[tokens.head_of[chosen[starts]]] + tails


def pack(
    tokens: TokenisedPrompts, prompts: IntArray, rows: Sequence[IntArray], pad_id: int, width: int | None = None
) -> Packed:
    """The planned rows as tensors on the CPU; ``width``: pad to this instead of to the longest row."""
    lengths = row_lengths(tokens, prompts, rows)
    wide = -(-int(max(lengths.max(initial=1), width or 0)) // 8) * 8
    ids = np.full((len(rows), wide), pad_id, np.int64)
    positions = np.zeros((len(rows), wide), np.int64)
    segment = np.full((len(rows), wide), PADDING, np.int16)
    row_of = np.empty(len(prompts), np.int64)
    slot_of = np.empty(len(prompts), np.int64)
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    if len(rows):
        # Of all tails, row by row: their prompts, rows, and places among the tails of their row.
        place = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), sizes)
        first = np.cumsum(sizes) - sizes
        slot = np.arange(len(place)) - first[row]
        row_of[place], slot_of[place] = row, slot
        head, tail = tokens.head_of[prompts[place[first]]], tokens.tail_of[prompts[place]]
        behind = tokens.heads.lengths[head]
        n_tail = tokens.tails.lengths[tail]
        before = np.cumsum(n_tail) - n_tail
        values, which, at = tokens.heads.taken(head)
        ids[which, at], positions[which, at], segment[which, at] = values, at, HEAD
        values, which, at = tokens.tails.taken(tail)
        column = (behind[row] + before - before[first][row])[which] + at
        ids[row[which], column] = values
        positions[row[which], column] = behind[row][which] + at
        segment[row[which], column] = slot[which] + 1
    tensors = [torch.from_numpy(array) for array in (ids, positions, segment, row_of, slot_of)]
    return Packed(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], int(sizes.max(initial=0)))


def tree_mask(segment: Tensor, position_ids: Tensor, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """Additive attention mask [n_rows, 1, width, width]: 0 where a token (third size) may read another (fourth).

    Rows of padding tokens are hidden throughout; their softmax is uniform and their states are never used.
    """
    reader, read = segment[:, :, None], segment[:, None, :]
    allowed = (reader == read) | ((read == HEAD) & (reader > HEAD))
    allowed &= read >= 0
    if causal:
        allowed &= position_ids[:, None, :] <= position_ids[:, :, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segment.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min / 4).unsqueeze(1)


def filled_mask(packed: Packed, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """As :func:`tree_mask`, [n_rows, width, width], but that what fills a row up reads the head, so that its softmax is
    one; nothing reads it."""
    segment = packed.segment.where(packed.segment >= 0, packed.n_slots + 1)
    return tree_mask(segment, packed.position_ids, dtype, causal=causal)[:, 0]


def pooling_weights(packed: Packed, how: str, mask_id: int = -1, slots: Tensor | None = None) -> Tensor:
    """How token states become one vector a tail: float32 [n_rows, n_slots, width], each used row summing to 1.

    "mean": over the tail, that is over the tokens that have read the candidate; "last": its last token; "cls": its
    first one, which is the prompt's first where heads are empty; "mask": its last token with the id ``mask_id``.
    ``slots``: 1 .. n_slots, where a graph is given them.
    """
    if slots is None:
        slots = torch.arange(1, packed.n_slots + 1, device=packed.segment.device, dtype=packed.segment.dtype)
    own = packed.segment[:, None, :] == slots[None, :, None]
    weights = own.float()
    if how == "mean":
        return weights / weights.sum(-1, keepdim=True).clamp_min(1.0)
    if how == "mask":
        own = own & (packed.input_ids == mask_id)[:, None, :]
    last = how != "cls"
    place = packed.position_ids[:, None, :].float()
    far = torch.full_like(weights, -1.0 if last else 1e9)
    place = torch.where(own, place.expand_as(weights), far)
    chosen = place.argmax(-1) if last else place.argmin(-1)
    one = torch.zeros_like(weights).scatter_(-1, chosen[..., None], 1.0)
    return one * own.any(-1, keepdim=True)
