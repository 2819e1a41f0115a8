"""One batch's losses and gradients: every task's loss, what is added so that less is learnt by heart, and the backward.

With every trick off this is one forward and one backward pass, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from llmrec_core.specs import TrainingSpec
from llmrec_core.training.balancing import Balance
from llmrec_core.training.batches import Batch
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import task_losses
from llmrec_core.training.regularising import Adversary, disagreements

#: Opened around the forward passes of a batch.
Known = Callable[[Batch], AbstractContextManager[None]]


def nothing_known(part: Batch) -> AbstractContextManager[None]:
    """Everything is computed."""
    return nullcontext()


class BatchStep:
    """Computes batches, whole or in parts that add up to the whole.

    Args:
        known: opened around the forward passes of a part; inside, the network may know some of what it would compute.

    Attributes:
        losses: task -> loss of the batch so far, by itself, before weights; tasks without labels are missing.
        squares: task -> squared length of the loss's gradient at the vectors that heads read, where ``balance`` asks.
    """

    def __init__(
        self,
        network: PromptNetwork,
        balance: Balance,
        spec: TrainingSpec,
        known: Known = nothing_known,
    ) -> None:
        self.network, self.balance, self.spec = network, balance, spec
        self._known = known
        self.losses: dict[str, float] = {}
        self.squares: dict[str, float] = {}
        self._adversary: Adversary | None = None
        if spec.adversarial_epsilon:
            self._adversary = Adversary(network.encoder.get_input_embeddings(), spec.adversarial_epsilon)

    def begin(self) -> None:
        """A new batch."""
        self.losses, self.squares = {}, {}

    def backward(self, part: Batch, counts: Mapping[str, int], divisor: int) -> float:
        """Adds the gradients of one part, divided by ``divisor``; its weighted loss, the adversarial one not counted.

        Args:
            counts: :meth:`~llmrec_core.training.objectives.Labels.counts` of the whole batch.
        """
        with self._adversary.watching() if self._adversary else nullcontext():
            losses, vectors = self._forward(part, counts)
            self._measure(losses, vectors, counts)
            loss = self._total(losses)
            (loss / divisor).backward()
        if self._adversary is not None:
            with self._adversary.attacking():
                (self._total(self._forward(part, counts)[0]) / divisor).backward()
        return float(loss.detach())

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        weights = self.balance.weights()
        return torch.stack([weights[task] * value for task, value in losses.items()]).sum()

    def _forward(self, part: Batch, counts: Mapping[str, int]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Each task's loss, and the vectors that the heads read, one tensor a pass, where gradients are looked at."""
        labels, tasks = part.labels.to(self.network.device), tuple(self.balance.weights())
        passes: list[dict[str, Tensor]] = []
        vectors: list[Tensor] = []
        with self._known(part):
            for _ in range(2 if self.spec.r_drop else 1):
                if self.balance.needs_norms:
                    # Split where gradients are looked at; other networks than prompts' have outputs alone.
                    vectors.append(self.network.vectors(part.packed))
                    passes.append(self.network.heads(vectors[-1]))
                else:
                    passes.append(self.network(part.packed))
        found = [task_losses(outputs, labels, tasks, counts, self.spec.label_smoothing) for outputs in passes]
        if len(found) == 1:
            return found[0], vectors
        apart = disagreements(passes[0], passes[1], labels, tasks, counts)
        first, second = found
        return {t: (first[t] + second[t]) / 2 + self.spec.r_drop * apart[t] for t in tasks}, vectors

    def _measure(self, losses: Mapping[str, Tensor], vectors: Sequence[Tensor], counts: Mapping[str, int]) -> None:
        """Adds up the losses of this batch's parts, and their gradients at the vectors that the heads read."""
        for task, loss in losses.items():
            if not counts[task]:
                continue
            self.losses[task] = self.losses.get(task, 0.0) + float(loss.detach())
            if vectors:
                gradients = torch.autograd.grad(loss, list(vectors), retain_graph=True)
                squares = sum(float((gradient.float() ** 2).sum()) for gradient in gradients)
                self.squares[task] = self.squares.get(task, 0.0) + squares
