"""Training of the sequential family: windows of histories, the softmax over items, stopping, checkpoints.

One epoch shows every training row once as the thing to be predicted: histories longer than a window are cut at an
offset drawn for that epoch, so that cuts fall elsewhere each time. Everything drawn depends on (seed, epoch) alone, so
a resumed training goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.contracts import FitContext, FloatArray, IntArray
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
) -> Outcome:
    """Trains ``network`` in place and leaves it with the weights of the best epoch.

    Args:
        measure: value of ``metric`` (higher is better) on validation users with the network as it is; None: train on.
        fingerprint: of data and settings; a checkpoint of another training is refused.

    Raises:
        As :meth:`RoundLoop.run`.
    """
    with own_generators(ctx.seed, network.delta.device):
        return _Loop(network, histories, spec, ctx, measure, metric, fingerprint).run()


class _Loop(RoundLoop):
    """A round is an epoch."""

    def __init__(
        self,
        network: SequenceNetwork,
        histories: Histories,
        spec: SequentialSpec,
        ctx: FitContext,
        measure: Callable[[], float] | None,
        metric: str,
        fingerprint: str,
    ) -> None:
        self.network, self.histories, self.spec = network, histories, spec
        # An estimate: the cut of long histories moves by epoch, and may make a window more or less of each.
        n_windows = len(self._windows(0, ctx.seed)[0])
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
            stopped = self._take_step(self._loss(inputs, targets), number, len(inputs.items))
            if stopped:
                return stopped
        return None

    def _windows(self, number: int, seed: int) -> tuple[IntArray, IntArray]:
        return windows(self.histories.starts, self.spec.max_history, np.random.default_rng([seed, 7, number]))

    def _batches(self, number: int) -> Iterator[tuple[Sequences, Tensor]]:
        """Inputs [n, length] and the item wanted at each place, [n, length], -1 where none is."""
        low, high = self._windows(number, self.ctx.seed)
        turned = torch.from_numpy(
            np.random.default_rng([self.ctx.seed, 9, number]).random(len(low)) < self.spec.reverse
        )
        for start in range(0, len(low), self.spec.batch_size):
            part = slice(start, start + self.spec.batch_size)
            device = self.network.delta.device
            whole = self.histories.batch(low[part], high[part], device).reversed(turned[part].to(device))
            yield inputs_and_targets(whole)

    def _loss(self, inputs: Sequences, targets: Tensor) -> Tensor:
        vectors = self.network.item_vectors()
        states = self.network.states(inputs, vectors)[targets >= 0]
        wanted = targets[targets >= 0]
        if not self.sampled:
            return catalogue_loss(states, vectors, wanted, self.spec.label_smoothing)
        # The sum over all items is estimated from drawn ones, each weighing 1 / (n_negatives * share): so what is drawn
        # often does not count more for it (logQ correction; the target itself is known, not drawn, and needs none).
        drawn = torch.multinomial(self.draw_share, self.spec.n_negatives, replacement=True)
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


def inputs_and_targets(whole: Sequences) -> tuple[Sequences, Tensor]:
    """Each row of windows without its last entry, and what comes next at each place (-1: nothing), [n, length - 1].

    A window's last entry is a target only.
    """
    inputs = Sequences(*(getattr(whole, name)[:, :-1] for name in ("items", "ratings", "gaps", "mask")))
    return inputs, torch.where(whole.mask[:, 1:], whole.items[:, 1:], -1)


def last_item_scores(network: SequenceNetwork, batch: Sequences) -> FloatArray:
    """Scores of every item after each history, float32 [n, n_items]."""
    with torch.inference_mode():
        vectors = network.item_vectors()
        return np.asarray((network.last_states(batch, vectors) @ vectors.T).float().cpu().numpy(), np.float32)
