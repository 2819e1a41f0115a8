"""Attention of tokens that stand row by row, end to end: rows of one length together, forwards and backwards.

A token reads tokens of its own row alone, so products are made row by row, of all heads and of rows of one length at
once; what a few rows make of their pairs of tokens stays in the processor's cache until it is used. In bf16 rows are
filled up to multiples of 8 tokens: oneDNN, which multiplies there, makes code for each new shape.

For processors. Used in training (``unpadded``) and where what is scored has few candidates a history (``scoring``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: What the tokens of a row, for attention, and those of all rows together are filled up to in bf16.
_ROW_STEP, _TOTAL_STEP = 8, 16
#: Pairs of tokens for which attention is computed at once, in all rows of a group: what it makes of them should stay in
#: the processor's cache until it is used.
_GROUPED_PAIRS = 1 << 17
#: Powers whose sum is as far from 1 are computed anew: gradients are multiplied by its inverse, and the range ends at
#: 2^127.
_FAR = 2.0**90


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


def n_behind(n_tokens: int, dtype: torch.dtype) -> int:
    """Tokens of no row behind so many that stand in rows, where attention is computed in ``dtype``: at least one where
    rows are filled up."""
    step = steps(dtype)[1]
    return step - n_tokens % step if step > 1 else 0


def _up_to(step: int, numbers: Tensor) -> Tensor:
    return -(-numbers // step) * step


def steps(dtype: torch.dtype) -> tuple[int, int]:
    """What tokens of a row, and what tokens of all rows together, are filled up to multiples of."""
    return (_ROW_STEP, _TOTAL_STEP) if dtype == torch.bfloat16 else (1, 1)


# ---- the computation -------------------------------------------------------------------------------------------------


def attend(query: Tensor, key: Tensor, value: Tensor, questions: Questions, scaling: float, dropout: float) -> Tensor:
    """[n_asked, n_heads, size] of queries [n_asked, n_heads, size] that read [n_tokens, n_key_heads, size]."""
    kind = value.dtype
    found: Tensor = RowAttention.apply(questions, scaling, dropout, query.to(kind), key.to(kind), value)
    return found


def attend_by_heads(
    query: Tensor, key: Tensor, value: Tensor, questions: Questions, scaling: float, dropout: float = 0.0
) -> Tensor:
    """The same in the form that transformers calls: [1, n_heads, n_tokens, size] -> [1, n_tokens, n_heads, size]."""
    asked, keys, values = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    return attend(asked, keys, values, questions, scaling, dropout).unsqueeze(0)


class RowAttention(torch.autograd.Function):
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
