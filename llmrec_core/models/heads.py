"""Task heads: from the pooled vector of a prompt to one number a task.

One linear layer each. The backbone is tuned along with them, so a deeper head adds parameters to learn from scratch
and nothing that the layers below could not do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmrec_core.errors import SpecError
from llmrec_core.specs import Task

TASKS: tuple[Task, ...] = ("click", "rating", "rank", "similarity")


class TaskHeads(nn.Module):
    """A linear head for each task, in float32 whatever the backbone runs in.

    Outputs are raw: "click" and "similarity" logits, "rank" a score within a list, "rating" a rating on the 0-1 scale
    (not clamped).

    Args:
        hidden_size: width of the pooled vector.
        tasks: heads to make; order does not matter, neither for the outputs nor for the initial weights.
        dropout: on the pooled vector while training.
        seed: of the initial weights.
        biases: initial bias of a head, such as the mean scaled rating; 0 if not given.

    Raises:
        SpecError: no task, an unknown one, or one twice.
    """

    def __init__(
        self,
        hidden_size: int,
        tasks: Sequence[Task],
        *,
        dropout: float = 0.0,
        seed: int = 0,
        biases: Mapping[Task, float] | None = None,
    ) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) != len(tasks) or not set(tasks) <= set(TASKS):
            raise SpecError(f"task heads cannot be made for {list(tasks)}.", fix=f"Known tasks: {', '.join(TASKS)}.")
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        for number, task in enumerate(TASKS):
            if task not in tasks:
                continue
            head = nn.utils.skip_init(nn.Linear, hidden_size, 1)
            generator = torch.Generator().manual_seed(seed * 1000 + number)
            with torch.no_grad():
                head.weight.normal_(0.0, 0.02, generator=generator)
                head.bias.fill_((biases or {}).get(task, 0.0))
            self.heads[task] = head

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """Outputs of every head, float32 [n], from ``pooled`` [n, hidden_size] of any float dtype."""
        # Without this, autocast would round the last and most sensitive product to bf16.
        with torch.autocast(pooled.device.type, enabled=False):
            vectors = self.dropout(pooled.float())
            return {task: head(vectors).squeeze(-1) for task, head in self.heads.items()}
