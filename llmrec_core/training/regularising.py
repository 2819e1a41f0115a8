"""Adversarial embeddings and dropout passes that must agree: what a step adds to learn less by heart.

- :class:`Adversary`, the fast gradient method on word embeddings (Miyato, Dai and Goodfellow, "Adversarial training
  methods for semi-supervised text classification", ICLR 2017): the loss at the embeddings pushed to where it grows.
- :func:`disagreements`, R-drop (Liang et al., "R-Drop: regularized dropout for neural networks", NeurIPS 2021): how far
  two passes of one batch, which dropout makes differ, are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_core.errors import RunFailedError
from llmrec_core.training.objectives import Labels, shares_of_lists

#: Gradients shorter than this have no direction; their rows are left where they are.
_NO_GRADIENT = 1e-12


class Adversary:
    """Pushes the output of the word embeddings. The table itself is not touched: it may be frozen, or shared.

    A step is ``with watching(): ...backward()`` and then ``with attacking(): ...backward()``, with the same number of
    forward passes in both. The push of one row of tokens (a history with its candidates, or one prompt) is
    ``epsilon * gradient / length of the gradient``.

    Args:
        embeddings: the module that turns token ids into vectors [n_rows, width, hidden_size].
        epsilon: length of the push over one row.
    """

    def __init__(self, embeddings: nn.Module, epsilon: float) -> None:
        self._embeddings, self.epsilon = embeddings, epsilon
        self._probes: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, backward passes also leave the gradient at the embeddings' output."""
        self._probes = []

        def probe(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            # The sum of a leaf of zeros has the output's gradient, also where no weight below wants one.
            self._probes.append(torch.zeros_like(output, requires_grad=True))
            return output + self._probes[-1]

        with self._hooked(probe):
            yield

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Inside, forward passes see embeddings that are pushed to where the loss of the watched ones grew.

        Raises:
            RunFailedError: the watched passes did not depend on the word embeddings.
        """
        pushes = iter([self._push(one) for one in self._probes])
        self._probes = []

        def push(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            return output + next(pushes)

        with self._hooked(push):
            yield

    def _push(self, probe: Tensor) -> Tensor:
        if probe.grad is None:
            raise RunFailedError(
                "the loss does not reach the word embeddings.",
                where="training.adversarial_epsilon",
                fix="Set it to 0, or choose another way of tuning.",
            )
        gradient = probe.grad.float()
        length = gradient.flatten(1).norm(dim=1)[:, None, None]
        push = torch.where(length > _NO_GRADIENT, self.epsilon * gradient / length.clamp_min(_NO_GRADIENT), 0.0)
        return push.to(probe.dtype)

    @contextmanager
    def _hooked(self, hook: Any) -> Iterator[None]:
        handle = self._embeddings.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def disagreements(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    labels: Labels,
    tasks: Sequence[str],
    counts: Mapping[str, int],
) -> dict[str, Tensor]:
    """How far two passes over one batch are apart, by task, as a mean over what the task's loss is a mean over.

    click and similarity: mean of the two Kullback-Leibler divergences between the two answers yes or no; rank: the same
    between the two softmaxes over each list; rating: the squared difference. Differentiable in both passes.

    Args:
        first, second: task -> raw head outputs, float32 [n_prompts].
        counts: what to divide by, see :func:`llmrec_core.training.objectives.weighted_loss`.
    """
    found = {}
    for task in tasks:
        known = ~torch.isnan(labels.values[task])
        plus = labels.offsets.get(task, torch.zeros_like(first[task]))
        one, other = ((outputs[task] + plus)[known] for outputs in (first, second))
        if task == "rating":
            apart = (one - other).square().sum()
        elif task == "rank":
            list_of = labels.list_of[known]
            shares = [shares_of_lists(scores, list_of, labels.n_lists) for scores in (one, other)]
            # KL(p, q) + KL(q, p) = sum of (p - q)(log p - log q); the lists' normalisers cancel, as p - q sums to 0.
            apart = 0.5 * ((shares[0] - shares[1]) * (one - other))[_in_counted_list(labels, task, known)].sum()
        else:
            apart = 0.5 * ((one.sigmoid() - other.sigmoid()) * (one - other)).sum()
        found[task] = apart / max(1, counts[task])
    return found


def _in_counted_list(labels: Labels, task: str, known: Tensor) -> Tensor:
    """Which known prompts belong to a list with a right item, bool [n_known]."""
    list_of = labels.list_of[known]
    right = torch.zeros(labels.n_lists, dtype=torch.bool, device=list_of.device)
    right[list_of[labels.values[task][known] > 0.5]] = True
    return right[list_of]
