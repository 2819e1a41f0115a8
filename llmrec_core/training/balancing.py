"""How the losses of several tasks are weighed while they are trained together.

Weights live outside the network: after each optimizer step they are moved by what that step's losses, or gradients,
were. So they need no place in the optimizer, and a checkpoint keeps them as a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmrec_core.specs import TrainingSpec

#: Squared errors are the half of a Gaussian's -log likelihood; cross-entropies are whole ones.
_GAUSSIAN = {"rating": 0.5}
#: Bounds of a weight relative to the one in the spec: a task is never switched off, and never drowns the others.
_SMALLEST, _LARGEST = 1e-2, 1e2


class Balance:
    """Weights of the tasks' losses, and how they follow the training. As it is, they stay those of the spec.

    Args:
        given: task -> weight in the spec.
    """

    #: Whether :meth:`follow` wants norms of gradients.
    needs_norms = False

    def __init__(self, given: Mapping[str, float]) -> None:
        self.given = dict(given)

    def weights(self) -> dict[str, float]:
        """Task -> what its loss is multiplied by in the next step."""
        return dict(self.given)

    def follow(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Called after each optimizer step.

        Args:
            losses: task -> mean loss of the step; tasks without labels in it are missing.
            norms: task -> length of the gradient of that loss, not weighted; {} unless ``needs_norms``.
        """

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        return {}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Puts :meth:`state` back."""


class Uncertainty(Balance):
    """Each loss divided by a learned noise of its task (Kendall, Gal and Cipolla, CVPR 2018).

    The sum over tasks of given * c * exp(-s) * loss + s / 2 is minimised over s = log of the noise's variance as well,
    by gradient steps; c is 1/2 for squared errors and 1 for cross-entropies. At the minimum exp(-s) is
    1 / (2 c given loss): every task then weighs in with the same share, whatever the scale of its loss.
    """

    def __init__(self, given: Mapping[str, float], rate: float) -> None:
        super().__init__(given)
        self._rate = rate
        self._log_variance = dict.fromkeys(given, 0.0)

    def weights(self) -> dict[str, float]:
        return {task: self._factor(task) * math.exp(-s) for task, s in self._log_variance.items()}

    def follow(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        low, high = math.log(_SMALLEST), math.log(_LARGEST)
        for task, loss in losses.items():
            s = self._log_variance[task]
            gradient = 0.5 - self._factor(task) * math.exp(-s) * loss
            # A loss of 30 at the start would throw s out of its bounds at once.
            self._log_variance[task] = min(high, max(low, s - self._rate * max(-1.0, min(1.0, gradient))))

    def _factor(self, task: str) -> float:
        return self.given[task] * _GAUSSIAN.get(task, 1.0)

    def state(self) -> dict[str, dict[str, float]]:
        return {"log_variance": dict(self._log_variance)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._log_variance.update({task: float(s) for task, s in state["log_variance"].items()})


class GradNorm(Balance):
    """Gradients of all tasks of similar length (Chen et al., "GradNorm", ICML 2018).

    The length of a task's weighted gradient at the vectors that the heads read is drawn towards a share of the lengths
    of all that grows with (how much of its first loss the task still has) ** alpha. Steps follow the sign of the
    paper's L1 loss; the weights keep their sum.
    """

    needs_norms = True

    def __init__(self, given: Mapping[str, float], rate: float, alpha: float) -> None:
        super().__init__(given)
        self._rate, self._alpha = rate, alpha
        self._weight = dict(given)
        self._first: dict[str, float] = {}

    def weights(self) -> dict[str, float]:
        return dict(self._weight)

    def follow(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        for task, loss in losses.items():
            self._first.setdefault(task, max(loss, 1e-12))
        tasks = [task for task in losses if task in norms]
        if len(tasks) < 2:
            return
        length = {task: self._weight[task] * norms[task] for task in tasks}
        left = {task: max(losses[task] / self._first[task], 1e-12) ** self._alpha for task in tasks}
        # Shares of the present total: else all could be too long at once, and nothing would move.
        scale = sum(length.values()) / sum(left.values())
        for task in tasks:
            wanted = scale * left[task]
            step = self._rate * (1 if length[task] > wanted else -1 if length[task] < wanted else 0)
            bounds = self.given[task] * _SMALLEST, self.given[task] * _LARGEST
            self._weight[task] = min(bounds[1], max(bounds[0], self._weight[task] * math.exp(-step)))
        scale = sum(self.given.values()) / sum(self._weight.values())
        self._weight = {task: weight * scale for task, weight in self._weight.items()}

    def state(self) -> dict[str, dict[str, float]]:
        return {"weight": dict(self._weight), "first": dict(self._first)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._weight.update({task: float(weight) for task, weight in state["weight"].items()})
        self._first = {task: float(loss) for task, loss in state["first"].items()}


def make_balance(given: Mapping[str, float], spec: TrainingSpec) -> Balance:
    """As ``spec.balance`` says; one task alone has nothing to be balanced against."""
    if len(given) > 1 and spec.balance == "uncertainty":
        return Uncertainty(given, spec.balance_rate)
    if len(given) > 1 and spec.balance == "grad-norm":
        return GradNorm(given, spec.balance_rate, spec.balance_alpha)
    return Balance(given)
