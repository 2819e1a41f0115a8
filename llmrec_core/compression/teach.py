"""Training a smaller network to say what a larger one says: of its scores, its layers' states, and the labels.

The loss of a batch is

    label_weight x the parent's own objectives  +  score_weight x mean (s - t)^2 / var t  +  hidden_weight x
    mean over layers of mean |h_s - h_t|^2 / mean |h_t|^2

with s, t the scores of student and teacher over all heads, and h their states of real tokens after matching layers
(Hinton et al., "Distilling the knowledge in a neural network", 2015; Sun et al., "Patient knowledge distillation",
EMNLP 2019). The teacher reads the same packed rows of the parent's training prompts, and nothing else. Where a training
leaves padding out, both do too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_core.compression._wishes import asked_to_stop
from llmrec_core.contracts import FitContext
from llmrec_core.errors import RunFailedError
from llmrec_core.evaluation.validation import is_better
from llmrec_core.models.tuning import layer_stack
from llmrec_core.specs import TrainingSpec
from llmrec_core.specs.compression import RecoveryFields
from llmrec_core.training.batches import Batch, BatchPlan
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import weighted_loss
from llmrec_core.training.optimizer import make_optimizer
from llmrec_core.training.packing import Packed
from llmrec_core.training.trainer import own_generators
from llmrec_core.training.unpadded import Rows, end_to_end, without_padding
from llmrec_core.training.validation import Validation

#: Validations of one training.
_CHECKS = 8


class _Reader:
    """A network, and what chosen layers of it make of the tokens that it reads."""

    def __init__(self, network: PromptNetwork, layers: Sequence[int]) -> None:
        self._network, self._order = network, list(layers)
        self._found: dict[int, Tensor] = {}
        stack = layer_stack(network.encoder)
        self._hooks = [stack[layer].register_forward_hook(self._keeper(layer)) for layer in layers]

    def _keeper(self, layer: int):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            states = output[0] if isinstance(output, tuple) else output
            assert isinstance(states, Tensor)
            self._found[layer] = states

        return keep

    def read(self, packed: Packed) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Scores of a batch, and states of its tokens after each of the layers, [n_tokens, size]; no padding."""
        network = self._network
        real = packed.segment >= 0
        if self._order and network.unpadded:
            scores = self._end_to_end(packed)
            real = end_to_end(packed, real, network.computes_in)[None]
        else:
            scores = network(packed)
        real = real.to(network.device)
        return scores, [self._found.pop(layer)[real] for layer in self._order]

    def _end_to_end(self, packed: Packed) -> dict[str, Tensor]:
        """As the network does without padding; but its last layer, too, is asked for the states of all tokens."""
        network = self._network
        encoder: Any = network.encoder
        rows = Rows.of(packed, network.pooling_weights(packed), network.computes_in, causal=network.causal)
        more = {"use_cache": False} if network.causal else {}
        with torch.autocast(network.device.type, dtype=network.autocast, enabled=network.autocast is not None):
            found = encoder(input_ids=rows.input_ids, position_ids=rows.position_ids, rows=rows, **more)
        scores: dict[str, Tensor] = network.heads(rows.weights @ found.last_hidden_state[0, rows.pooled].float())
        return scores

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def teach(
    student: PromptNetwork,
    teacher: PromptNetwork,
    pairs: Sequence[tuple[int, int]],
    plan: BatchPlan,
    validation: Validation,
    weights: Mapping[str, float],
    spec: RecoveryFields,
    ctx: FitContext,
) -> None:
    """Trains ``student`` in place and leaves it frozen, with the weights of its best validation.

    Args:
        pairs: (layer of the student, layer of the teacher) whose states are to be alike.
        plan: batches of training prompts; both networks read them.
        weights: task -> weight of its loss.

    Raises:
        RunCancelledError: ``ctx.should_stop()`` said "cancel". RunFailedError: the loss is no number any more.
    """
    ctx.emit("stage", stage="training")
    student.requires_grad_(True)
    for module in student.encoder.modules():
        if isinstance(module, nn.Embedding):
            # As in the parent's training: a short one gains nothing from moving single words.
            module.requires_grad_(False)
    for parameter in student.heads.parameters():
        parameter.requires_grad_(True)
    optimizer = make_optimizer(student, TrainingSpec(learning_rate=spec.learning_rate))
    total = len(plan)
    every, warmup = max(1, total // _CHECKS), max(1, total // 16)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1 - step / (total + 1))
    )
    watched = _Watched(student, validation, ctx)
    ours = _Reader(student, [own for own, _ in pairs] if spec.hidden_weight else [])
    theirs = _Reader(teacher, [other for _, other in pairs] if spec.hidden_weight else [])
    try:
        with (
            own_generators(ctx.seed, student.device),
            without_padding(student, whole_rows=False),
            without_padding(teacher, whole_rows=False),
        ):
            student.train()
            for step in range(1, total + 1):
                stopped = asked_to_stop(ctx)
                loss = _loss(ours, theirs, plan[step - 1], weights, spec)
                if not math.isfinite(float(loss.detach())):
                    raise RunFailedError(
                        f"the loss is {float(loss.detach())} at step {step}.",
                        where="compression.learning_rate",
                        fix="Lower the learning rate.",
                    )
                loss.backward()
                optimizer.clip(1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if step == 1 or step % max(1, total // 100) == 0 or step == total:
                    ctx.emit("train", step=step, total=total, loss=float(loss.detach()), eta_s=None)
                if step % every == 0 or step == total or stopped:
                    watched.look(step)
                if stopped:
                    break
    finally:
        ours.close()
        theirs.close()
    watched.keep_best()
    student.requires_grad_(False)
    student.eval()


def _loss(ours: _Reader, theirs: _Reader, batch: Batch, weights: Mapping[str, float], spec: RecoveryFields) -> Tensor:
    with torch.no_grad():
        right, marks = theirs.read(batch.packed)
    said, states = ours.read(batch.packed)
    device = said[next(iter(weights))].device
    loss = torch.zeros((), device=device)
    if spec.label_weight:
        loss = loss + spec.label_weight * weighted_loss(said, batch.labels.to(device), weights)
    for task in weights:
        spread = right[task].var(unbiased=False).clamp_min(1e-4)
        loss = loss + spec.score_weight * ((said[task] - right[task]) ** 2).mean() / spread / len(weights)
    if spec.hidden_weight:
        distances = [
            ((own - other).float() ** 2).mean() / (other.float() ** 2).mean().clamp_min(1e-12)
            for own, other in zip(states, marks, strict=True)
        ]
        loss = loss + spec.hidden_weight * torch.stack(distances).mean()
    return loss


class _Watched:
    """The watched metric of the student, and its weights where that was best."""

    def __init__(self, student: PromptNetwork, validation: Validation, ctx: FitContext) -> None:
        self._student, self._validation, self._ctx = student, validation, ctx
        self._value = math.nan
        self._best: dict[str, Tensor] = {}

    def look(self, step: int) -> None:
        found = self._validation.measure(self._student)
        self._ctx.emit("validation", step=step, metrics=found)
        value = found.get(self._validation.metric, math.nan)
        if not self._best or is_better(self._validation.metric, value, self._value):
            self._value = value
            self._best = {name: tensor.detach().clone() for name, tensor in self._student.state_dict().items()}

    def keep_best(self) -> None:
        self._student.load_state_dict(self._best)
