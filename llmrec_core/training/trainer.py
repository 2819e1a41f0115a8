"""The training loop: Hugging Face's Trainer, with checkpoints free of pickle, events, and polling for cancel.

transformers keeps the loop, accumulation, clipping, the learning-rate schedule and the skipping of batches on resume.
What would write pickles, print, or reach for services is replaced here.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainerCallback, TrainingArguments, get_linear_schedule_with_warmup
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from llmrec_core.contracts import FitContext
from llmrec_core.errors import ModelError, RunCancelledError, RunFailedError
from llmrec_core.models.device import left_of_padding, memory_in_use
from llmrec_core.models.memory import until_it_fits
from llmrec_core.models.tuning import recomputed_layers
from llmrec_core.models.tuning_adalora import RankSchedule, rank_schedule
from llmrec_core.models.tuning_lora import frozen_laid_out
from llmrec_core.specs import LOWER_IS_BETTER, TrainingSpec
from llmrec_core.training import checkpoints
from llmrec_core.training.balancing import make_balance
from llmrec_core.training.batches import Batch, BatchPlan
from llmrec_core.training.clock import Clock
from llmrec_core.training.frozen import keeping_states
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import LIST_TASKS
from llmrec_core.training.optimizer import MasterWeightAdamW, make_optimizer
from llmrec_core.training.scoring import batch_tokens
from llmrec_core.training.steps import BatchStep, Known, nothing_known
from llmrec_core.training.unpadded import without_padding
from llmrec_core.training.validation import Validation

#: A batch that does not fit the device's memory is cut in 2, 4 ... up to this many parts.
_MAX_PARTS = 64
#: Train events are at least this far apart.
_EVENT_INTERVAL_S = 0.3


@dataclass(frozen=True)
class TrainingOutcome:
    """What happened.

    Attributes:
        losses: mean loss of every optimizer step taken in this process.
        steps: optimizer steps of the whole training.
        best_step, best_value: where the kept weights come from; None without a defined validation metric.
        stopped: "early" by patience, "person" by request, None: ran to its end.
    """

    losses: list[float]
    steps: int
    best_step: int | None
    best_value: float | None
    stopped: str | None


def train(
    network: PromptNetwork,
    plan: BatchPlan,
    validation: Validation | None,
    weights: Mapping[str, float],
    spec: TrainingSpec,
    ctx: FitContext,
) -> TrainingOutcome:
    """Trains ``network`` in place and leaves it with the weights of the best validation.

    Args:
        network: trainable weights have ``requires_grad``.
        plan: batches.
        validation: rows watched for early stopping; None: train to the end.
        weights: task -> weight of its loss; with ``spec.balance``, where it begins.

    Raises:
        RunCancelledError: ``ctx.should_stop()`` said "cancel".
        RunFailedError: out of memory even with the smallest parts, a loss that is not finite, or a full disk.
        ModelError: ``ctx.resume_from`` holds checkpoints of another training.
    """
    recomputed = recomputed_layers(network.encoder, spec.gradient_checkpointing)
    with (
        own_generators(ctx.seed, network.device),
        _quiet_transformers(),
        keeping_states(network, plan, validation, spec, ctx) as known,
        recomputed,
        frozen_laid_out(network.encoder),
        without_padding(network, whole_rows=bool(spec.adversarial_epsilon) or spec.gradient_checkpointing),
    ):
        ctx.emit("log", level="info", message=_how(network, plan, spec))
        trainer = _Trainer(network, plan, validation, weights, spec, ctx, known)
        trainer.train(resume_from_checkpoint=trainer.checkpoint_to_resume())
        trainer.keep_best()
    return TrainingOutcome(
        trainer.losses, trainer.state.global_step, trainer.best_step, trainer.best_value, trainer.stopped
    )


class _EachStep(TrainerCallback):
    def __init__(self, trainer: _Trainer) -> None:
        self._trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.ranks is not None:
            self._trainer.ranks.after_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.after_step()


class _Trainer(HuggingFaceTrainer):
    def __init__(
        self,
        network: PromptNetwork,
        plan: BatchPlan,
        validation: Validation | None,
        weights: Mapping[str, float],
        spec: TrainingSpec,
        ctx: FitContext,
        known: Known,
    ) -> None:
        self.spec, self.ctx, self.plan, self.validation = spec, ctx, plan, validation
        self.balance = make_balance(weights, spec)
        self.network = network
        self.losses: list[float] = []
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.stopped: str | None = None
        self._best: dict[str, Tensor] = {}
        self._without_gain = 0
        self._parts = 1
        #: Whether the prompts of one list may be computed apart. Adversarial pushes are measured over whole rows.
        self._lists_part = LIST_TASKS.isdisjoint(weights) and not spec.adversarial_epsilon
        self._step_batches: list[Batch] = []
        self._step_loss = 0.0
        self._step_losses: dict[str, list[float]] = {}
        self._step_norms: dict[str, list[float]] = {}
        self._last_losses: dict[str, float] = {}
        self._adam: MasterWeightAdamW = make_optimizer(network, spec)
        #: AdaLoRA's share in each step; made when the number of steps is known.
        self.ranks: RankSchedule | None = None
        self._batch = BatchStep(network, self.balance, spec, _of_whole_lists(known))
        self._clock = Clock()
        if network.device.type == "cuda":
            # accelerate places on the current CUDA device.
            torch.cuda.set_device(network.device)
        arguments = TrainingArguments(
            output_dir=str(ctx.checkpoint_dir or tempfile.gettempdir()),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=spec.gradient_accumulation_steps,
            num_train_epochs=1,
            max_grad_norm=spec.max_grad_norm,
            learning_rate=spec.learning_rate,
            seed=ctx.seed,
            use_cpu=network.device.type == "cpu",
            logging_strategy="no",
            eval_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            log_level="error",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        # Several GPUs would be used through DataParallel, which is slower than one and breaks packed rows.
        arguments._n_gpu = min(1, arguments.n_gpu)
        super().__init__(model=network, args=arguments, train_dataset=plan, optimizers=(self._adam, None))
        # Called before each step, where accelerate would go over all gradients twice more.
        self.accelerator.clip_grad_norm_ = lambda _, max_norm, *__: self._adam.clip(max_norm)
        self.remove_callback(PrinterCallback)
        self.add_callback(_EachStep(self))

    # -- what transformers calls -----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Batches come ready; size 1 keeps the batch sampler that skipping on resume works on.
        return DataLoader(self.plan, batch_size=1, shuffle=False, collate_fn=_only)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.ranks = rank_schedule(self.network.encoder, num_training_steps)
        if self.lr_scheduler is None:
            warmup = round(self.spec.warmup_ratio * num_training_steps)
            self.lr_scheduler = get_linear_schedule_with_warmup(
                optimizer or self.optimizer, num_warmup_steps=warmup, num_training_steps=num_training_steps + 1
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        batch: Batch = inputs["batch"]
        self._step_batches.append(batch)
        todo = [batch]

        def smaller() -> None:
            self._halve()
            # Earlier batches of this step are redone too, and told anew: their gradients went when memory ran out.
            self._tell_anew()
            todo[:] = self._step_batches

        loss = until_it_fits(lambda: [self._backward(one) for one in todo][-1], smaller, self.network.device)
        self._clock.count(batch)
        return torch.tensor(loss, device=self.args.device)

    def _backward(self, batch: Batch) -> float:
        """Adds the gradients of one batch, in as many parts as memory asks for, and notes its losses; its mean loss."""
        whole = 0.0
        counts = batch.labels.counts()
        self._batch.begin()
        self.network.train()
        for part in self._parts_of(batch):
            whole += self._batch.backward(part, counts, self.current_gradient_accumulation_steps)
        if self.ranks is not None:
            (self.ranks.penalty() / self.current_gradient_accumulation_steps).backward()
        if not np.isfinite(whole):
            raise RunFailedError(
                f"the loss is {whole} at step {self.state.global_step + 1}: the training has diverged.",
                where="training.learning_rate",
                fix="Lower the learning rate, or set training.precision to fp32.",
            )
        for task, value in self._batch.losses.items():
            self._step_losses.setdefault(task, []).append(value)
        for task, squares in self._batch.squares.items():
            self._step_norms.setdefault(task, []).append(squares**0.5)
        self._step_loss += whole / self.current_gradient_accumulation_steps
        return whole

    def _parts_of(self, batch: Batch) -> Iterator[Batch]:
        """The batch in as many parts as memory asks for: of whole lists, or of prompts where losses allow that."""
        if self._parts == 1:
            yield batch
        elif self._parts <= len(batch.lists) or not self._lists_part:
            for lists in np.array_split(batch.lists, min(self._parts, len(batch.lists))):
                yield self.plan.collate(lists)
        else:
            for chosen in np.array_split(np.arange(batch.n_prompts), min(self._parts, batch.n_prompts)):
                yield self.plan.collate_prompts(batch.lists, chosen)

    def _halve(self) -> None:
        self._parts *= 2
        self.network.zero_grad(set_to_none=True)
        self._adam.zero_grad()
        if self._parts > _MAX_PARTS:
            if self._lists_part or not isinstance(self.network, PromptNetwork):
                raise RunFailedError(
                    "the device's memory is too small for even a small part of a batch.",
                    where="training.batch_size",
                    fix="Lower prompt.max_tokens, tune with LoRA, or use another device.",
                )
            raise RunFailedError(
                "the device's memory is too small for even a small part of a batch, and a list of candidates cannot be "
                f"parted: {self._why_whole_lists()}.",
                where="training.rank_candidates",
                fix="Lower it or prompt.max_tokens, tune with LoRA, or use another device.",
            )
        self._log("warning", f"Out of memory: batches are now computed in {self._parts} parts (same result, slower).")

    def _why_whole_lists(self) -> str:
        if self.spec.adversarial_epsilon:
            return "adversarial training pushes the words of a history and its candidates together"
        return "its loss compares them with each other"

    def _tell_anew(self) -> None:
        """Nothing of the running step has been told yet."""
        self._step_loss, self._step_losses, self._step_norms = 0.0, {}, {}

    def after_step(self) -> None:
        """Called when an optimizer step is whole: events, validation, checkpoint, stopping."""
        step, total = self.state.global_step, self.state.max_steps
        self._step_batches.clear()
        self.losses.append(self._step_loss)
        losses, norms = (
            {task: float(np.mean(values)) for task, values in found.items()}
            for found in (self._step_losses, self._step_norms)
        )
        self.balance.follow(losses, norms)
        self._last_losses |= losses
        self._tell_anew()
        asked = self.ctx.should_stop()
        if asked == "cancel":
            raise RunCancelledError("the run was cancelled.")
        last = step >= total or asked == "stop"
        if self._clock.due(_EVENT_INTERVAL_S) or last or step == 1:
            self._emit_progress(step, total)
        if asked == "stop":
            self.stopped = "person"
        if self.validation is not None and (last or step % self.spec.validation_every == 0):
            self._validate(step)
            if self.stopped is None and 0 < self.spec.early_stopping_patience <= self._without_gain and not last:
                self.stopped = "early"
                self._log("info", f"No gain in {self._without_gain} validations: stopped at step {step} of {total}.")
        if step % self.spec.validation_every == 0 or last or self.stopped:
            self._save_checkpoint(self.network, None)
        if self.stopped:
            self.control.should_training_stop = True

    def _emit_progress(self, step: int, total: int) -> None:
        facts = self._clock.lap()
        eta = facts.seconds_per_step * (total - step)
        recent = self.losses[-facts.steps :]
        self.ctx.emit(
            "train",
            step=step,
            total=total,
            epoch=round(step * self.spec.gradient_accumulation_steps / self.plan.batches_per_epoch, 4),
            loss=float(np.mean(recent)),
            learning_rate=float(self._adam.param_groups[0]["lr"]),
            samples_per_s=facts.samples_per_s,
            tokens_per_s=facts.tokens_per_s,
            memory_bytes=memory_in_use(self.network.device),
            eta_s=eta,
            **self._tasks_apart(),
        )
        self.ctx.emit("progress", stage="training", step=step, total=total, eta_s=eta)

    def _tasks_apart(self) -> dict[str, dict[str, float]]:
        """Each task's newest loss and the weight it now has; {} with one task."""
        weights = self.balance.weights()
        return {"losses": dict(self._last_losses), "weights": weights} if len(weights) > 1 else {}

    def _validate(self, step: int) -> None:
        assert self.validation is not None
        before = batch_tokens(self.network)
        metrics = self.validation.measure(self.network)
        after = batch_tokens(self.network)
        if after != before:
            self._log(
                "warning", f"Out of memory: prompts are now scored {after:,} tokens at once (same result, slower)."
            )
        self.ctx.emit("validation", step=step, metrics=metrics)
        value = metrics.get(self.validation.metric)
        if value is None:
            return
        lower = self.validation.metric in LOWER_IS_BETTER
        if self.best_value is None or (value < self.best_value if lower else value > self.best_value):
            self.best_value, self.best_step, self._without_gain = value, step, 0
            self._best = self._weights()
        else:
            self._without_gain += 1

    def _weights(self) -> dict[str, Tensor]:
        """Name -> CPU copy of every trained weight, in float32 where there is a master."""
        masters = {id(parameter): master for parameter, master in self._adam.pairs}
        return {
            name: masters[id(parameter)].detach().cpu().clone()
            for name, parameter in self.network.named_parameters()
            if id(parameter) in masters
        }

    @torch.no_grad()
    def _put_weights(self, weights: Mapping[str, Tensor]) -> None:
        masters = {id(parameter): master for parameter, master in self._adam.pairs}
        own = {n: masters[id(p)] for n, p in self.network.named_parameters() if id(p) in masters}
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise ModelError(
                "the checkpoint holds weights of another model.", where="resume", fix="Start a new run instead."
            )
        for name, master in own.items():
            master.copy_(weights[name])
        self._adam.round_back()

    def keep_best(self) -> None:
        """Puts the weights of the best validation into the network."""
        if self._best and self.best_step != self.state.global_step:
            self._put_weights(self._best)
            self._log("info", f"Kept the weights of step {self.best_step}, the best on validation.")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.ctx.checkpoint_dir is None:
            return
        rng_tensors, rng_values = checkpoints.generator_state()
        state = {
            "plan": self.plan.fingerprint(),
            "step": self.state.global_step,
            "scheduler_step": self._schedule().last_epoch,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "without_gain": self._without_gain,
            "parts": self._parts,
            "balance": self.balance.state(),
            "generators": rng_values,
        }
        tensors = {
            "weights": self._weights(),
            "optimizer": checkpoints.optimizer_tensors(self._adam),
            "rng": rng_tensors,
        }
        if self.ranks is not None:
            tensors["ranks"] = self.ranks.state()
        if self._best and self.best_step != self.state.global_step:
            tensors["best"] = self._best
        trainer_state = {
            key: value for key, value in vars(self.state).items() if isinstance(value, int | float | str | type(None))
        }
        checkpoints.write_checkpoint(
            self.ctx.checkpoint_dir, self.state.global_step, checkpoints.Checkpoint(tensors, state, trainer_state)
        )

    def checkpoint_to_resume(self) -> str | None:
        """The newest whole checkpoint of ``ctx.resume_from``; None starts from the beginning.

        Raises:
            ModelError: it belongs to other data, prompts or settings.
        """
        if self.ctx.resume_from is None:
            return None
        found = checkpoints.newest_checkpoint(self.ctx.resume_from, self._log)
        if found is None:
            self._log("warning", "No usable checkpoint was found; training starts from the beginning.")
            return None
        if checkpoints.read_state(found).get("plan") != self.plan.fingerprint():
            raise ModelError(
                "the checkpoint was made with other data, prompts or training settings.",
                where=str(found),
                fix="Resume with the spec of the run it comes from, or start a new run.",
            )
        self._log("info", f"Going on from {found.name}.")
        return str(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        state = checkpoints.read_state(folder)
        weights = checkpoints.read_tensors(folder, "weights")
        self._put_weights(weights)
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self._without_gain, self._parts = state["without_gain"], state["parts"]
        if state.get("balance"):
            self.balance.restore(state["balance"])
        self._best = checkpoints.read_tensors(folder, "best")
        if self.best_step is not None and not self._best:
            self._best = weights

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        checkpoints.load_optimizer(self._adam, checkpoints.read_tensors(Path(checkpoint), "optimizer"))
        if self.ranks is not None:
            self.ranks.restore(checkpoints.read_tensors(Path(checkpoint), "ranks"))
        schedule = self._schedule()
        schedule.last_epoch = int(checkpoints.read_state(Path(checkpoint))["scheduler_step"])
        rates = zip(self._adam.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(schedule.last_epoch)

    def _schedule(self) -> Any:
        """The schedule itself, without the wrapper that accelerate may have put around it."""
        return getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            checkpoints.restore_generators(
                checkpoints.read_tensors(folder, "rng"), checkpoints.read_state(folder)["generators"]
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        raise NotImplementedError("recommenders save themselves")

    def _log(self, level: str, message: str) -> None:
        self.ctx.emit("log", level=level, message=message)


def _how(network: PromptNetwork, plan: BatchPlan, spec: TrainingSpec) -> str:
    """What was chosen for the device, as it is now: attention, padding, batch sizes."""
    unpadded = getattr(network, "unpadded", False)
    attention = "row by row" if unpadded else network.backbone.attention
    padding = left_of_padding(network.computes_in) if unpadded else "rows padded to the longest of a batch"
    if spec.bucket_by_length and not unpadded:
        padding += ", those of like length together"
    step = f"{plan.batch_size:,} prompts a batch"
    if spec.gradient_accumulation_steps > 1:
        step += f" and {spec.gradient_accumulation_steps:,} batches a step"
    scored = f"scoring takes {batch_tokens(network):,} tokens at once"
    return f"Training with attention {attention}, {padding}, {step}; {scored}."


def _of_whole_lists(known: Known) -> Known:
    """Kept states belong to lists: where one is parted, frozen layers are computed again, which takes no graph."""
    return lambda part: known(part) if part.whole else nothing_known(part)


def _only(batches: list[Batch]) -> dict[str, Batch]:
    # transformers looks for keys in what it gets.
    return {"batch": batches[0]}


@contextmanager
def own_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators seeded for the training and put back afterwards: a fit leaves no trace in its process."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """The Trainer sets the library's verbosity for the whole process; it is put back."""
    level = transformers_logging.get_verbosity()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
