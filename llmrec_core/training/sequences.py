"""Training of the sequential family: windows of histories, the softmax over items, stopping, checkpoints.

One epoch shows every training row once as the thing to be predicted: histories longer than a window are cut at an
offset drawn for that epoch, so that cuts fall elsewhere each time. Everything drawn depends on (seed, epoch) alone, so
a resumed training goes on exactly where it stopped.

A training that goes on with newer data shows every new row once an epoch, each after at least half a window of what the
user did before it, as far as there is so much; and beside them windows of old rows, drawn anew each epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.contracts import FitContext, FloatArray, IntArray
from llmrec_core.errors import DataError
from llmrec_core.specs import SequentialSpec
from llmrec_core.training.rounds import Outcome, RoundLoop, pace
from llmrec_core.training.sequence_network import N_GAP_BINS, N_RATING_BINS, SequenceNetwork, Sequences, catalogue_loss
from llmrec_core.training.trainer import own_generators


@dataclass(frozen=True)
class Histories:
    """Rows of many histories end to end.

    Attributes:
        items: item_idx, [n_rows].
        ratings, gaps: bins as in :class:`Sequences`, [n_rows].
        starts: history h is rows ``starts[h]`` to ``starts[h + 1]``, [n_histories + 1].
    """

    items: IntArray
    ratings: IntArray
    gaps: IntArray
    starts: IntArray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def distinct(self) -> tuple[IntArray, IntArray]:
        """Histories that differ, by the first place of each, and which of them each history is, [n_histories]."""
        places: dict[bytes, int] = {}
        first: list[int] = []
        which = np.empty(len(self), np.int64)
        whole = np.stack([self.items, self.ratings, self.gaps], axis=1)
        for number, (low, high) in enumerate(pairwise(self.starts.tolist())):
            which[number] = places.setdefault(whole[low:high].tobytes(), len(first))
            if which[number] == len(first):
                first.append(number)
        return np.array(first, np.int64), which

    def batch(self, low: IntArray, high: IntArray, device: torch.device) -> Sequences:
        """Rows low[i] to high[i] as one padded batch."""
        lengths = high - low
        width = max(1, int(lengths.max(initial=0)))
        mask = np.arange(width) < lengths[:, None]
        rows = np.minimum(low[:, None] + np.arange(width), max(0, len(self.items) - 1))

        def padded(values: IntArray) -> Tensor:
            found = np.zeros(mask.shape, np.int64)
            if len(values):
                found[mask] = values[rows[mask]]
            return torch.from_numpy(found).to(device)

        return Sequences(padded(self.items), padded(self.ratings), padded(self.gaps), torch.from_numpy(mask).to(device))


@dataclass(frozen=True)
class Mix:
    """What a training that goes on with newer data predicts.

    Attributes:
        is_new: rows that the first training did not see, bool [n_rows] of the histories.
        replay: share of the rows to predict that are old, exactly; they are drawn by windows, of the last of which only
            the latest rows that are still wanted are predicted. All of them where so many are not there.
    """

    is_new: npt.NDArray[np.bool_]
    replay: float

    def windows(self, starts: IntArray, size: int, rng: np.random.Generator) -> Windows:
        """Windows of new rows and, drawn beside them, of old ones, in a drawn order.

        Raises:
            DataError: each new row is the first of its history.
        """
        low, high = windows(starts, max(1, size // 2), rng)
        before = starts[np.searchsorted(starts, low, side="right") - 1]
        new = Windows(np.maximum(before, high - 1 - size), high, low + 1, np.ones(len(low), bool))
        n_new = self._n_asked(new)
        new = new.take(np.flatnonzero(n_new))
        if not len(new.low):
            raise DataError(
                "there is nothing new to learn from: each newer interaction is its user's first, and what is learned "
                "is what follows on something.",
                where="continue_from",
                fix="Import a version with more of their interactions, or start a run of its own.",
            )
        low, high = windows(starts, size, rng)
        old = Windows(low, high, low + 1, np.zeros(len(low), bool))
        n_old = self._n_asked(old)
        wanted = self._wanted(int(n_new.sum()))
        taken = np.flatnonzero((n_old > 0) & (n_old.cumsum() - n_old < wanted))
        old = old.take(taken)
        surplus = int(n_old[taken].sum()) - wanted
        if surplus > 0:
            inside = np.arange(old.first[-1], old.high[-1])
            old.first[-1] = inside[~self.is_new[inside]][surplus]
        return new.and_those(old).take(rng.permutation(len(new.low) + len(old.low)))

    def odds(self, starts: IntArray) -> npt.NDArray[np.float64]:
        """How probably each row is predicted in an epoch, [n_rows]; the first of a history never is."""
        can_be = np.ones(len(self.is_new), bool)
        can_be[starts[:-1][starts[:-1] < len(can_be)]] = False
        n_old, n_new = (int((can_be & chosen).sum()) for chosen in (~self.is_new, self.is_new))
        share = min(1.0, self._wanted(n_new) / max(1, n_old))
        return np.where(can_be, np.where(self.is_new, 1.0, share), 0.0)

    def _wanted(self, n_new: int) -> int:
        """How many old rows make the share beside so many new ones."""
        return round(self.replay / (1 - self.replay) * n_new)

    def asked(self, found: Windows, width: int) -> npt.NDArray[np.bool_]:
        """Rows of each window that are to be predicted, [n, width]."""
        rows = found.low[:, None] + np.arange(width)
        inside = (rows >= found.first[:, None]) & (rows < found.high[:, None])
        return inside & (self.is_new[np.minimum(rows, len(self.is_new) - 1)] == found.new[:, None])

    def _n_asked(self, found: Windows) -> IntArray:
        """How many rows of each window are to be predicted, [n]."""
        before = np.concatenate([[0], np.cumsum(self.is_new)]).astype(np.int64)
        n_new = before[found.high] - before[found.first]
        return np.where(found.new, n_new, found.high - found.first - n_new)


class Windows(NamedTuple):
    """Windows of histories, all [n].

    Attributes:
        low, high: rows that are read.
        first: rows from here on are to be predicted, those before are read alone.
        new: whether new rows alone are to be predicted, or old ones alone.
    """

    low: IntArray
    high: IntArray
    first: IntArray
    new: npt.NDArray[np.bool_]

    def take(self, places: IntArray | slice) -> Windows:
        """Some of them."""
        return Windows(self.low[places], self.high[places], self.first[places], self.new[places])

    def and_those(self, others: Windows) -> Windows:
        """These, then others."""
        low, high, first = (
            np.concatenate(pair)
            for pair in ((self.low, others.low), (self.high, others.high), (self.first, others.first))
        )
        return Windows(low, high, first, np.concatenate([self.new, others.new]))


def rating_bins(ratings: npt.ArrayLike, scale: tuple[float, float] | None) -> IntArray:
    """0 without a rating or a scale, else 1 to 10 along the scale."""
    values = np.asarray(ratings, np.float64)
    if scale is None:
        return np.zeros(len(values), np.int64)
    share = np.clip((values - scale[0]) / (scale[1] - scale[0]), 0.0, 1.0)
    bins = 1 + np.minimum(np.nan_to_num(share) * (N_RATING_BINS - 1), N_RATING_BINS - 2).astype(np.int64)
    return np.where(np.isnan(values), 0, bins)


def gap_bins(times: npt.ArrayLike, starts: IntArray) -> IntArray:
    """Minutes since the row before, by powers of two; 0 for the first row of a history and without times."""
    values = np.asarray(times, np.float64)
    minutes = np.maximum(0.0, np.diff(values, prepend=values[:1])) / 60.0
    bins = np.minimum(1 + np.log2(1.0 + np.nan_to_num(minutes)), N_GAP_BINS - 1).astype(np.int64)
    bins[np.isnan(minutes)] = 0
    inside = starts[:-1][starts[:-1] < len(bins)]
    bins[inside] = 0
    return bins


def train_sequences(
    network: SequenceNetwork,
    histories: Histories,
    spec: SequentialSpec,
    ctx: FitContext,
    measure: Callable[[], float] | None,
    metric: str,
    fingerprint: str,
    mix: Mix | None = None,
) -> Outcome:
    """Trains ``network`` in place and leaves it with the weights of the best epoch.

    Args:
        measure: value of ``metric`` (higher is better) on validation users with the network as it is; None: train on.
        fingerprint: of data and settings; a checkpoint of another training is refused.
        mix: what is predicted where the network was trained before; None: all rows. The weights as they came are
            measured too, and kept if no epoch makes them better.

    Raises:
        As :meth:`RoundLoop.run`.
    """
    with own_generators(ctx.seed, network.delta.device):
        return _Loop(network, histories, spec, ctx, measure, metric, fingerprint, mix).run()


@dataclass(frozen=True)
class _Batch:
    """Inputs and the item wanted at each place, [n, length], -1 where none is; ``drawn``: negatives, None for all."""

    inputs: Sequences
    targets: Tensor
    drawn: Tensor | None


class _Loop(RoundLoop[_Batch]):
    """A round is an epoch."""

    when_memory_is_short = (
        "Lower it, or max_history; or n_negatives or full_softmax_items where the catalogue is large."
    )

    def __init__(
        self,
        network: SequenceNetwork,
        histories: Histories,
        spec: SequentialSpec,
        ctx: FitContext,
        measure: Callable[[], float] | None,
        metric: str,
        fingerprint: str,
        mix: Mix | None = None,
    ) -> None:
        self.network, self.histories, self.spec, self.mix = network, histories, spec, mix
        # An estimate: the cut of long histories moves by epoch, and may make a window more or less of each.
        n_windows = len(self._windows(0, ctx.seed).low)
        parameters = list(network.parameters())
        super().__init__(
            network,
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            ctx,
            n_rounds=spec.epochs,
            patience=spec.patience,
            total_steps=spec.epochs * max(1, -(-n_windows // spec.batch_size)),
            measure=measure,
            metric=metric,
            fingerprint=fingerprint,
            average=spec.average,
        )
        counts = np.bincount(histories.items, minlength=len(network.trained)).astype(np.float64)
        share = 0.5 * counts / max(1.0, counts.sum()) + 0.5 / len(counts)
        self.draw_share = torch.from_numpy(share).to(network.delta.device)
        self.sampled = len(counts) > spec.full_softmax_items

    def _round(self, number: int) -> str | None:
        torch.manual_seed(self.ctx.seed * 100_003 + number)
        self.network.drop.seed([self.ctx.seed, 11, number])
        self.network.train()
        for inputs, targets in self._batches(number):
            for group in self.adam.param_groups:
                group["lr"] = self.spec.learning_rate * pace(self.step / self.total_steps)
            stopped = self._take_step(_Batch(inputs, targets, self._drawn()), number, len(targets))
            if stopped:
                return stopped
        return None

    def _begin(self) -> None:
        if self.mix is not None:
            self._validate(0)

    def _windows(self, number: int, seed: int) -> Windows:
        rng = np.random.default_rng([seed, 7, number])
        return windows_of(self.histories, self.spec.max_history, self.mix, rng)

    def _batches(self, number: int) -> Iterator[tuple[Sequences, Tensor]]:
        """Inputs [n, length] and the item wanted at each place, [n, length], -1 where none is."""
        found = self._windows(number, self.ctx.seed)
        turned = torch.from_numpy(
            np.random.default_rng([self.ctx.seed, 9, number]).random(len(found.low)) < self.spec.reverse
        )
        size, device = self.spec.batch_size, self.network.delta.device
        yield from sequence_batches(self.histories, found, turned, self.mix, size, device)

    def _drawn(self) -> Tensor | None:
        if not self.sampled:
            return None
        return torch.multinomial(self.draw_share, self.spec.n_negatives, replacement=True)

    def _backward(self, batch: _Batch, parts: int) -> float:
        whole = 0.0
        for inputs, targets, share in in_parts(batch.inputs, batch.targets, parts):
            loss = self._loss(inputs, targets, batch.drawn) * share
            loss.backward()
            whole += float(loss.detach())
        return whole

    def _loss(self, inputs: Sequences, targets: Tensor, drawn: Tensor | None) -> Tensor:
        vectors = self.network.item_vectors()
        states = self.network.states(inputs, vectors)[targets >= 0]
        wanted = targets[targets >= 0]
        if drawn is None:
            return catalogue_loss(states, vectors, wanted, self.spec.label_smoothing)
        # The sum over all items is estimated from drawn ones, each weighing 1 / (n_negatives * share): so what is drawn
        # often does not count more for it (logQ correction; the target itself is known, not drawn, and needs none).
        weight = (self.draw_share[drawn] * self.spec.n_negatives).log().float()
        own = (states * vectors[wanted]).sum(1, keepdim=True)
        others = (states @ vectors[drawn].T - weight).masked_fill(drawn[None, :] == wanted[:, None], -torch.inf)
        zeros = torch.zeros(len(wanted), dtype=torch.int64, device=wanted.device)
        return nn.functional.cross_entropy(torch.cat([own, others], dim=1), zeros)


def windows(starts: IntArray, size: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """(first, last + 1) row of windows of at most ``size`` inputs and one more row, in a drawn order.

    A longer history is cut at an offset that is drawn each time; the row at a cut is the last target before it and the
    first input after, so that every row but a history's first is a target exactly once.

    Args:
        starts: history h is rows ``starts[h]`` to ``starts[h + 1]``.
    """
    lengths = np.diff(starts)
    offsets = np.where(lengths > size + 1, rng.integers(size, size=len(lengths)), 0)
    n_cuts = np.maximum(0, -(-(lengths - 1 + offsets) // size))
    history = np.repeat(np.arange(len(lengths)), n_cuts)
    number = np.arange(len(history)) - np.repeat(np.cumsum(n_cuts) - n_cuts, n_cuts)
    low = starts[history] + number * size - offsets[history]
    high = np.minimum(low + size + 1, starts[history + 1])
    low = np.maximum(low, starts[history])
    kept = np.flatnonzero(high - low >= 2)
    order = rng.permutation(kept)
    return low[order], high[order]


def windows_of(histories: Histories, size: int, mix: Mix | None, rng: np.random.Generator) -> Windows:
    """What an epoch reads: windows of at most ``size`` inputs, of all rows or as ``mix`` says, in a drawn order."""
    if mix is not None:
        return mix.windows(histories.starts, size, rng)
    low, high = windows(histories.starts, size, rng)
    return Windows(low, high, low + 1, np.ones(len(low), bool))


def sequence_batches(
    histories: Histories, found: Windows, turned: Tensor, mix: Mix | None, size: int, device: torch.device
) -> Iterator[tuple[Sequences, Tensor]]:
    """Inputs [n, length] and the item wanted at each place, [n, length], -1 where none is; ``size`` windows a batch.

    Args:
        turned: which windows are read backwards, bool [n_windows].
        mix: what ``found`` was drawn by.
    """
    for start in range(0, len(found.low), size):
        chosen = slice(start, start + size)
        part, backwards = found.take(chosen), turned[chosen].to(device)
        whole = histories.batch(part.low, part.high, device)
        inputs, targets = inputs_and_targets(whole.reversed(backwards))
        if mix is not None:
            # Like a gap, what is asked belongs to a step from one entry to the next, whichever way it is read.
            asked = torch.from_numpy(mix.asked(part, whole.items.shape[1]).astype(np.int64)).to(device)
            steps = replace(whole, gaps=asked).reversed(backwards).gaps
            targets = targets.where(steps[:, 1:] > 0, -1)
        yield inputs, targets


def inputs_and_targets(whole: Sequences) -> tuple[Sequences, Tensor]:
    """Each row of windows without its last entry, and what comes next at each place (-1: nothing), [n, length - 1].

    A window's last entry is a target only.
    """
    inputs = Sequences(*(getattr(whole, name)[:, :-1] for name in ("items", "ratings", "gaps", "mask")))
    return inputs, torch.where(whole.mask[:, 1:], whole.items[:, 1:], -1)


def in_parts(inputs: Sequences, targets: Tensor, parts: int) -> Iterator[tuple[Sequences, Tensor, float]]:
    """The rows of a batch in at most so many parts, each with its share of all places where an item is wanted.

    Mean losses of the parts, times their shares, add up to the mean loss of the whole.
    """
    if parts == 1:
        yield inputs, targets, 1.0
        return
    n_wanted = (targets >= 0).sum(1)
    for rows in torch.arange(len(targets), device=targets.device).tensor_split(parts):
        share = float(n_wanted[rows].sum() / n_wanted.sum())
        if share:
            yield inputs.take(rows), targets[rows], share


def last_item_scores(network: SequenceNetwork, batch: Sequences, vectors: Tensor) -> FloatArray:
    """Scores of every item after each history, float32 [n, n_items].

    Args:
        vectors: of all items, as the network makes them.
    """
    with torch.inference_mode():
        return np.asarray((network.last_states(batch, vectors) @ vectors.T).float().cpu().numpy(), np.float32)
