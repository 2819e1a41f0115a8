"""A training in rounds, each followed by a validation and a checkpoint: stopping, keeping the best, going on later.

What is drawn in a round may depend on (seed, number of the round) alone; then a training that was cut short and resumed
ends with the very weights of one that was not.

A batch that does not fit into memory is computed in parts that add up to it: same loss, same gradients, slower.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from llmrec_core.contracts import FitContext
from llmrec_core.errors import ModelError, RunCancelledError, RunFailedError
from llmrec_core.models.memory import until_it_fits
from llmrec_core.training import checkpoints
from llmrec_core.training.optimizer import MasterWeightAdamW

_EVENT_INTERVAL_S = 0.3
#: A batch that does not fit is cut in 2, 4 ... up to this many parts.
_MAX_PARTS = 64
_WARMUP = 0.05


#: What a subclass makes of a batch before anything is computed.
B = TypeVar("B")


@dataclass(frozen=True)
class Outcome:
    """What happened: rounds run, the kept one (0: as it came), its value on validation, why it stopped (None: ran to
    its end)."""

    rounds: int
    best_round: int | None
    best_value: float | None
    stopped: str | None


class RoundLoop(ABC, Generic[B]):
    """Runs :meth:`_round` again and again; a subclass makes batches and losses.

    Args:
        parts: everything that is trained; parameters with ``requires_grad`` are kept, saved and put back.
        groups: parameter groups for AdamW, with ``weight_decay``; rates are set by the subclass before each step.
        n_rounds: rounds in all.
        patience: rounds without gain before :meth:`_run_dry` is asked; 0: never.
        total_steps: for progress; may be an estimate.
        measure: value of ``metric`` (higher is better) with the parts as they are; None: train to the end.
        fingerprint: of data and settings; a checkpoint of another training is refused.
        average: what is measured and kept is a running mean of the weights, which forgets 1 - this a step; 0: the last.
    """

    def __init__(
        self,
        parts: nn.Module,
        groups: list[dict[str, Any]],
        ctx: FitContext,
        *,
        n_rounds: int,
        patience: int,
        total_steps: int,
        measure: Callable[[], float] | None,
        metric: str,
        fingerprint: str,
        average: float = 0.0,
    ) -> None:
        self.parts, self.ctx, self.n_rounds, self.patience = parts, ctx, n_rounds, patience
        self.total_steps, self.measure, self.metric, self.fingerprint = total_steps, measure, metric, fingerprint
        self.adam = MasterWeightAdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.best: dict[str, Tensor] = {}
        self.best_round: int | None = None
        self.best_value: float | None = None
        self.without_gain = 0
        self.step = 0
        self._trained = {name: p for name, p in parts.named_parameters() if p.requires_grad}
        self._parts = 1
        self.average = average
        #: Running mean of the weights; empty where the last ones are kept.
        self.mean = self._copy() if average else {}

    #: What to do where even small parts do not fit.
    when_memory_is_short: ClassVar[str] = "Lower it, or use another device."

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def _round(self, number: int) -> str | None:
        """Takes the steps of a round (from 0) through :meth:`_take_step`; returns why it was stopped, if it was."""

    @abstractmethod
    def _backward(self, batch: B, parts: int) -> float:
        """Adds the gradients of a batch, computed in as many parts, or as there are; its loss.

        It may be called again with more parts, for the same gradients: what is drawn belongs into the batch.
        """

    def _begin(self) -> None:
        """Called once before the first round of a training that begins."""

    def _run_dry(self, done: int) -> int | None:
        """The round to go on with after ``patience`` rounds without gain, ``done`` of them run; None: stop."""
        return None

    # -- the course ----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Trains, and leaves the parts with the weights of the best round.

        Raises:
            RunCancelledError: ``ctx.should_stop()`` said "cancel".
            RunFailedError: the loss is not finite, memory is too small, or a checkpoint cannot be written.
            ModelError: ``ctx.resume_from`` holds checkpoints of another training.
        """
        number, stopped = self._resume(), None
        if number == 0:
            self._begin()
        self.started, self.first_step, self.last_event = time.monotonic(), self.step, 0.0
        while number < self.n_rounds and stopped is None:
            stopped = self._round(number)
            number += 1
            self._validate(number)
            if stopped is None and 0 < self.patience <= self.without_gain and number < self.n_rounds:
                target = self._run_dry(number)
                message = f"No gain in {self.patience} validations: stopped after {number}; kept {self.best_round}."
                self.ctx.emit("log", level="info", message=message)
                if target is None:
                    stopped = "early"
                else:
                    number, self.without_gain = target, 0
            self._save(number)
        if self.best or self.mean:
            self.put(self.best or self.mean)
        return Outcome(number, self.best_round, self.best_value, stopped)

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that is trained."""
        return self._trained

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        """Copies weights by name into the parts."""
        own = self.trained()
        if own.keys() != weights.keys() or any(own[n].shape != weights[n].shape for n in own):
            raise ModelError("the checkpoint does not fit the model.", fix="Start a new run.")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained().items()}

    def _take_step(self, batch: B, number: int, n_rows: int) -> str | None:
        """One step of the optimizer on ``n_rows`` examples; returns "person" when somebody asked to stop."""
        device = next(self.parts.parameters()).device
        value = until_it_fits(lambda: self._backward(batch, self._parts), self._halve, device)
        if not math.isfinite(value):
            raise RunFailedError(
                f"the loss is {value} in round {number + 1}: the training has diverged.",
                where="recommender.learning_rate",
                fix="Lower the learning rate.",
            )
        nn.utils.clip_grad_norm_(list(self.trained().values()), 1.0)
        self.adam.step()
        self.adam.zero_grad()
        self.step += 1
        self._add_to_mean()
        self._tell(number, value, n_rows)
        asked = self.ctx.should_stop()
        if asked == "cancel":
            raise RunCancelledError("the run was cancelled.")
        return "person" if asked == "stop" else None

    def _halve(self) -> None:
        """Forgets what there is of a step, and asks for smaller parts.

        Raises:
            RunFailedError: they cannot be smaller.
        """
        self.adam.zero_grad()
        self._parts *= 2
        if self._parts > _MAX_PARTS:
            raise RunFailedError(
                "the device's memory is too small for even a small part of a batch.",
                where="recommender.batch_size",
                fix=self.when_memory_is_short,
            )
        message = f"Out of memory: batches are now computed in {self._parts} parts (same result, slower)."
        self.ctx.emit("log", level="warning", message=message)

    def _tell(self, number: int, loss: float, n_rows: int) -> None:
        now = time.monotonic()
        if now - self.last_event < _EVENT_INTERVAL_S and self.step not in (1, self.total_steps):
            return
        self.last_event = now
        pace = (now - self.started) / max(1, self.step - self.first_step)
        total = max(self.total_steps, self.step)
        eta_s = pace * (total - self.step)
        self.ctx.emit(
            "train",
            step=self.step,
            total=total,
            epoch=number + 1,
            loss=loss,
            learning_rate=max(float(group["lr"]) for group in self.adam.param_groups),
            samples_per_s=n_rows / max(pace, 1e-9),
            tokens_per_s=None,
            memory_bytes=None,
            eta_s=eta_s,
        )
        self.ctx.emit("progress", stage="training", step=self.step, total=total, eta_s=eta_s)

    def _validate(self, done: int) -> None:
        if self.measure is None:
            return
        self.parts.eval()
        with self._averaged():
            value = self.measure()
            gained = self.best_value is None or value > self.best_value
            if gained:
                self.best_value, self.best_round, self.without_gain = value, done, 0
                self.best = self._copy()
        self.ctx.emit("validation", step=self.step, metrics={self.metric: value})
        if not gained:
            self.without_gain += 1

    def _add_to_mean(self) -> None:
        # Early weights are far off: the mean forgets faster in the first steps.
        share = 1.0 - min(self.average, (1.0 + self.step) / (10.0 + self.step))
        for name, mean in self.mean.items():
            mean.lerp_(self.trained()[name].detach(), share)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The parts as they are measured and kept; afterwards as they are trained on."""
        if not self.mean:
            yield
            return
        last = self._copy()
        self.put(self.mean)
        try:
            yield
        finally:
            self.put(last)

    # -- disk ----------------------------------------------------------------------------------------------------------

    def _save(self, number: int) -> None:
        if self.ctx.checkpoint_dir is None:
            return
        kept = {"weights": self._copy(), "best": self.best, "mean": self.mean}
        tensors = {title: {name: t.cpu() for name, t in part.items()} for title, part in kept.items() if part}
        tensors["optimizer"] = checkpoints.optimizer_tensors(self.adam)
        state = {
            "plan": self.fingerprint,
            "round": number,
            "step": self.step,
            "best_round": self.best_round,
            "best_value": self.best_value,
            "without_gain": self.without_gain,
            "parts": self._parts,
        }
        found = checkpoints.Checkpoint(tensors, state, {"global_step": self.step})
        checkpoints.write_checkpoint(self.ctx.checkpoint_dir, number, found)

    def _resume(self) -> int:
        """The round to go on with."""
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
        self.put(checkpoints.read_tensors(found, "weights"))
        checkpoints.load_optimizer(self.adam, checkpoints.read_tensors(found, "optimizer"))
        self.best = checkpoints.read_tensors(found, "best")
        for name, mean in checkpoints.read_tensors(found, "mean").items():
            self.mean[name].copy_(mean)
        self.step = int(state["step"])
        self.best_round, self.best_value = state["best_round"], state["best_value"]
        self.without_gain = int(state["without_gain"])
        self._parts = int(state.get("parts", 1))
        log("info", f"Going on after round {state['round']}.")
        return int(state["round"])


def pace(done: float) -> float:
    """Learning rate as a share of its peak, ``done`` of the training over: a short rise, then a cosine to a tenth."""
    if done < _WARMUP:
        return max(done / _WARMUP, 0.02)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - _WARMUP) / (1.0 - _WARMUP))))
