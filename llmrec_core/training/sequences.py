"""Training of the sequential family: windows of histories, the softmax over items, stopping, checkpoints.

One epoch shows every training row once as the thing to be predicted: histories longer than a window are cut at an
offset drawn for that epoch, so that cuts fall elsewhere each time. Everything drawn depends on (seed, epoch) alone, so
a resumed training goes on exactly where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.contracts import FitContext, FloatArray, IntArray
from llmrec_core.errors import ModelError, RunCancelledError, RunFailedError
from llmrec_core.specs import SequentialSpec
from llmrec_core.training import checkpoints
from llmrec_core.training.optimizer import MasterWeightAdamW
from llmrec_core.training.sequence_network import N_GAP_BINS, N_RATING_BINS, SequenceNetwork, Sequences, catalogue_loss
from llmrec_core.training.trainer import own_generators

_EVENT_INTERVAL_S = 0.3
_WARMUP = 0.05


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


@dataclass(frozen=True)
class SequenceOutcome:
    """What happened: epochs run, the kept one, its value on validation, why it stopped (None: ran to its end)."""

    epochs: int
    best_epoch: int | None
    best_value: float | None
    stopped: str | None


def train_sequences(
    network: SequenceNetwork,
    histories: Histories,
    spec: SequentialSpec,
    ctx: FitContext,
    measure: Callable[[], float] | None,
    metric: str,
    fingerprint: str,
) -> SequenceOutcome:
    """Trains ``network`` in place and leaves it with the weights of the best epoch.

    Args:
        measure: value of ``metric`` (higher is better) on validation users with the network as it is; None: train on.
        fingerprint: of data and settings; a checkpoint of another training is refused.

    Raises:
        RunCancelledError: ``ctx.should_stop()`` said "cancel".
        RunFailedError: the loss is not finite, or a checkpoint cannot be written.
        ModelError: ``ctx.resume_from`` holds checkpoints of another training.
    """
    device = network.delta.device
    with own_generators(ctx.seed, device):
        return _Loop(network, histories, spec, ctx, measure, metric, fingerprint).run()


class _Loop:
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
        self.network, self.histories, self.spec, self.ctx = network, histories, spec, ctx
        self.measure, self.metric, self.fingerprint = measure, metric, fingerprint
        vectors = [p for p in network.parameters() if p.ndim < 2]
        matrices = [p for p in network.parameters() if p.ndim >= 2]
        self.adam = MasterWeightAdamW(
            [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=spec.learning_rate,
            betas=(0.9, 0.98),
        )
        # Upper bound: the cut of long histories moves by epoch, and may make one window more of each.
        self.steps_per_epoch = max(1, -(-len(self._windows(0)[0]) // spec.batch_size))
        self.losses: Sequence[float] = ()
        self.best: dict[str, Tensor] = {}
        #: Running mean of the weights; empty where the last ones are kept.
        self.average = self._weights() if spec.average else {}
        self.best_epoch: int | None = None
        self.best_value: float | None = None
        self.without_gain = 0
        self.step = 0
        counts = np.bincount(histories.items, minlength=len(network.trained)).astype(np.float64)
        share = 0.5 * counts / max(1.0, counts.sum()) + 0.5 / len(counts)
        self.draw_share = torch.from_numpy(share).to(network.delta.device)
        self.sampled = len(counts) > spec.full_softmax_items

    def run(self) -> SequenceOutcome:
        stopped: str | None = None
        epoch = self._resume()
        self.started, self.first_step, self.last_event = time.monotonic(), self.step, 0.0
        while epoch < self.spec.epochs and stopped is None:
            stopped = self._epoch(epoch)
            epoch += 1
            stopped = self._validate(epoch) or stopped
            self._save(epoch)
        if self.best or self.average:
            self.network.load_state_dict(self.best or self.average, strict=False)
        return SequenceOutcome(epoch, self.best_epoch, self.best_value, stopped)

    # -- one epoch -------------------------------------------------------------------------------------------------

    def _windows(self, epoch: int) -> tuple[IntArray, IntArray]:
        """(first, last + 1) row of each window: at most max_history inputs and, one step on, as many targets."""
        rng = np.random.default_rng([self.ctx.seed, 7, epoch])
        size = self.spec.max_history
        low: list[int] = []
        high: list[int] = []
        starts = self.histories.starts
        offsets = rng.integers(0, size, len(self.histories))
        for start, end, offset in zip(starts[:-1].tolist(), starts[1:].tolist(), offsets.tolist(), strict=True):
            if end - start < 2:
                continue
            # Cuts are places between rows; the row at a cut is the last target before it and the first input after.
            first = start if end - start <= size + 1 else start - offset
            for at in range(first, end - 1, size):
                low.append(max(at, start))
                high.append(min(at + size + 1, end))
        kept = np.array(high, np.int64) - np.array(low, np.int64) >= 2
        order = rng.permutation(int(kept.sum()))
        return np.array(low, np.int64)[kept][order], np.array(high, np.int64)[kept][order]

    def _batches(self, epoch: int) -> Iterator[tuple[Sequences, Tensor]]:
        low, high = self._windows(epoch)
        turned = torch.from_numpy(np.random.default_rng([self.ctx.seed, 9, epoch]).random(len(low)) < self.spec.reverse)
        for start in range(0, len(low), self.spec.batch_size):
            part = slice(start, start + self.spec.batch_size)
            device = self.network.delta.device
            whole = self.histories.batch(low[part], high[part], device).reversed(turned[part].to(device))
            inputs = Sequences(*(getattr(whole, n)[:, :-1] for n in ("items", "ratings", "gaps", "mask")))
            # A window's last row is a target only.
            targets = torch.where(whole.mask[:, 1:], whole.items[:, 1:], -1)
            yield inputs, targets

    def _epoch(self, epoch: int) -> str | None:
        torch.manual_seed(self.ctx.seed * 100_003 + epoch)
        self.network.drop.seed([self.ctx.seed, 11, epoch])
        self.network.train()
        total = self.spec.epochs * self.steps_per_epoch
        for inputs, targets in self._batches(epoch):
            for group in self.adam.param_groups:
                group["lr"] = self.spec.learning_rate * _pace(self.step / total)
            loss = self._loss(inputs, targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunFailedError(
                    f"the loss is {value} in epoch {epoch + 1}: the training has diverged.",
                    where="recommender.learning_rate",
                    fix="Lower the learning rate.",
                )
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.adam.step()
            self.adam.zero_grad()
            self.step += 1
            self._add_to_average()
            self._tell(epoch, value, len(inputs.items), total)
            asked = self.ctx.should_stop()
            if asked == "cancel":
                raise RunCancelledError("the run was cancelled.")
            if asked == "stop":
                return "person"
        return None

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

    def _tell(self, epoch: int, loss: float, n: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last_event < _EVENT_INTERVAL_S and self.step not in (1, total):
            return
        self.last_event = now
        pace = (now - self.started) / max(1, self.step - self.first_step)
        self.ctx.emit(
            "train",
            step=self.step,
            total=total,
            epoch=round(epoch + (self.step % self.steps_per_epoch) / self.steps_per_epoch, 4),
            loss=loss,
            learning_rate=float(self.adam.param_groups[0]["lr"]),
            samples_per_s=n / max(pace, 1e-9),
            tokens_per_s=None,
            memory_bytes=None,
            eta_s=pace * max(0, total - self.step),
        )
        self.ctx.emit("progress", stage="training", step=self.step, total=total, eta_s=pace * max(0, total - self.step))

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.named_parameters()}

    def _add_to_average(self) -> None:
        # Early weights are far off: the mean forgets faster in the first steps.
        share = 1.0 - min(self.spec.average, (1.0 + self.step) / (10.0 + self.step))
        for name, tensor in self.network.named_parameters():
            if name in self.average:
                self.average[name].lerp_(tensor.detach(), share)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network as it is measured and kept; afterwards as it is trained on."""
        if not self.average:
            yield
            return
        trained = self._weights()
        self.network.load_state_dict(self.average, strict=False)
        try:
            yield
        finally:
            self.network.load_state_dict(trained, strict=False)

    # -- after an epoch --------------------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> str | None:
        if self.measure is None:
            return None
        self.network.eval()
        with self._averaged():
            value = self.measure()
            gained = self.best_value is None or value > self.best_value
            if gained:
                self.best_value, self.best_epoch, self.without_gain = value, epoch, 0
                self.best = self._weights()
        self.ctx.emit("validation", step=self.step, metrics={self.metric: value})
        if not gained:
            self.without_gain += 1
        if 0 < self.spec.patience <= self.without_gain and epoch < self.spec.epochs:
            message = f"No gain in {self.without_gain} epochs: stopped after {epoch}; kept epoch {self.best_epoch}."
            self.ctx.emit("log", level="info", message=message)
            return "early"
        return None

    def _save(self, epoch: int) -> None:
        if self.ctx.checkpoint_dir is None:
            return
        tensors = {"weights": self._weights(), "optimizer": checkpoints.optimizer_tensors(self.adam)}
        tensors |= {name: part for name, part in (("best", self.best), ("average", self.average)) if part}
        tensors = {name: {key: tensor.cpu() for key, tensor in part.items()} for name, part in tensors.items()}
        state = {
            "plan": self.fingerprint,
            "epoch": epoch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "without_gain": self.without_gain,
        }
        checkpoints.write_checkpoint(
            self.ctx.checkpoint_dir, epoch, checkpoints.Checkpoint(tensors, state, {"global_step": self.step})
        )

    def _resume(self) -> int:
        """The epoch to go on with."""
        if self.ctx.resume_from is None:
            return 0

        def log(level: str, message: str) -> None:
            self.ctx.emit("log", level=level, message=message)

        found = checkpoints.newest_checkpoint(self.ctx.resume_from, log)
        if found is None:
            log("warning", "No usable checkpoint was found; training starts from the beginning.")
            return 0
        state = checkpoints.read_state(found)
        if state.get("plan") != self.fingerprint:
            raise ModelError(
                "the checkpoint was made with other data or training settings.",
                where=str(found),
                fix="Resume with the spec of the run it comes from, or start a new run.",
            )
        try:
            self.network.load_state_dict(checkpoints.read_tensors(found, "weights"), strict=False)
        except RuntimeError as error:
            raise ModelError(
                f"the checkpoint does not fit: {error}.", where=str(found), fix="Start a new run."
            ) from None
        checkpoints.load_optimizer(self.adam, checkpoints.read_tensors(found, "optimizer"))
        self.best = checkpoints.read_tensors(found, "best")
        if self.average:
            device = self.network.delta.device
            self.average = {n: t.to(device) for n, t in checkpoints.read_tensors(found, "average").items()}
        self.step = int(state["step"])
        self.best_epoch, self.best_value = state["best_epoch"], state["best_value"]
        self.without_gain = int(state["without_gain"])
        log("info", f"Going on after epoch {state['epoch']}.")
        return int(state["epoch"])


def _pace(done: float) -> float:
    """Learning rate as a share of its peak: a short rise, then a cosine to a tenth."""
    if done < _WARMUP:
        return max(done / _WARMUP, 0.02)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - _WARMUP) / (1.0 - _WARMUP))))


def last_item_scores(network: SequenceNetwork, batch: Sequences) -> FloatArray:
    """Scores of every item after each history, float32 [n, n_items]."""
    with torch.inference_mode():
        vectors = network.item_vectors()
        return np.asarray((network.last_states(batch, vectors) @ vectors.T).float().cpu().numpy(), np.float32)
