"""The losses: click, rating, rank, similarity, and any weighted set of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

#: Tasks whose loss compares the prompts of a list with each other; those of all others add up over single prompts.
LIST_TASKS = frozenset({"rank"})


@dataclass(frozen=True)
class Labels:
    """What is known about the prompts of one batch.

    Attributes:
        values: task -> float32 [n_prompts]; NaN where the task says nothing about a prompt. click: 0 or 1; rating:
            0-1; rank: 1 for the item that came next in its list, 0 for the others; similarity: 0-1.
        list_of: int64 [n_prompts], the number of the list that each prompt belongs to, counted from 0.
        n_lists: lists in the batch.
        offsets: task -> float32 [n_prompts], what stands beside the network (behaviour): added to its outputs. Tasks
            without are added nothing.
    """

    values: Mapping[str, Tensor]
    list_of: Tensor
    n_lists: int
    offsets: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Labels:
        values, offsets = ({t: v.to(device) for t, v in part.items()} for part in (self.values, self.offsets))
        return Labels(values, self.list_of.to(device), self.n_lists, offsets)

    def counts(self) -> dict[str, int]:
        """What each task's mean runs over: labelled prompts, for rank the lists with a right item."""
        found = {}
        for task, values in self.values.items():
            found[task] = int((values > 0.5).sum() if task == "rank" else (~torch.isnan(values)).sum())
        return found


def weighted_loss(
    outputs: Mapping[str, Tensor],
    labels: Labels,
    weights: Mapping[str, float],
    counts: Mapping[str, int] | None = None,
) -> Tensor:
    """Sum over tasks of weight x mean loss over the task's own labels; a task without labels here adds 0.

    click is binary cross-entropy on logits, similarity the same with a closeness of 0-1 as what is right, rating
    squared error on the 0-1 scale, rank the softmax cross-entropy over each list (Cao et al., ListNet, ICML 2007, with
    one right item), averaged over lists.

    Args:
        outputs: task -> raw head outputs, float32 [n_prompts].
        weights: task -> weight of its loss.
        counts: what to divide by, :meth:`Labels.counts` of the whole batch when ``labels`` is one share of it; the
            losses of all shares then add up to the loss of the whole.
    """
    total = torch.zeros((), device=labels.list_of.device)
    for task, loss in task_losses(outputs, labels, tuple(weights), counts).items():
        total = total + weights[task] * loss
    return total


def task_losses(
    outputs: Mapping[str, Tensor],
    labels: Labels,
    tasks: Sequence[str],
    counts: Mapping[str, int] | None = None,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The mean loss of each task, as in :func:`weighted_loss` before weights; 0 for a task without labels here.

    Args:
        smoothing: share of what is right that is spread evenly: for click over yes and no, for rank over the whole list
            (Szegedy et al., "Rethinking the inception architecture", CVPR 2016). Other tasks have none.
    """
    counts = counts or labels.counts()
    return {task: _summed_loss(task, outputs[task], labels, smoothing) / max(1, counts[task]) for task in tasks}


def _summed_loss(task: str, output: Tensor, labels: Labels, smoothing: float) -> Tensor:
    values = labels.values[task]
    known = ~torch.isnan(values)
    if task in labels.offsets:
        output = output + labels.offsets[task]
    if task in ("click", "similarity"):
        right = values[known]
        if smoothing and task == "click":
            right = right * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(output[known], right, reduction="sum")
    if task == "rating":
        return F.mse_loss(output[known], values[known], reduction="sum")
    return _list_softmax(output[known], values[known], labels.list_of[known], labels.n_lists, smoothing)


def _list_softmax(scores: Tensor, right: Tensor, list_of: Tensor, n_lists: int, smoothing: float) -> Tensor:
    """Sum over lists of -log softmax of the right item within its list; lists may differ in length."""
    shifted, total = _exponents(scores, list_of, n_lists)
    chosen = right > 0.5
    loss = (total[list_of[chosen]].log() - shifted[chosen]).sum()
    if not smoothing:
        return loss
    # The same with every item of the list in the place of the right one, on average over the list.
    size = torch.bincount(list_of, minlength=n_lists)
    mean = torch.zeros(n_lists, device=scores.device).index_add(0, list_of, shifted / size[list_of])
    spread = (total[list_of[chosen]].log() - mean[list_of[chosen]]).sum()
    return (1 - smoothing) * loss + smoothing * spread


def shares_of_lists(scores: Tensor, list_of: Tensor, n_lists: int) -> Tensor:
    """Softmax of ``scores`` [n] within each list; lists may differ in length."""
    shifted, total = _exponents(scores, list_of, n_lists)
    return shifted.exp() / total[list_of]


def _exponents(scores: Tensor, list_of: Tensor, n_lists: int) -> tuple[Tensor, Tensor]:
    """Scores below the best of their list, [n], and the sum of their exponentials, [n_lists]."""
    top = torch.full((n_lists,), -torch.inf, device=scores.device).scatter_reduce(0, list_of, scores.detach(), "amax")
    shifted = scores - top[list_of]
    return shifted, torch.zeros(n_lists, device=scores.device).index_add(0, list_of, shifted.exp())
