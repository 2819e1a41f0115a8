"""AdamW with float32 master copies of weights that are kept in bf16.

Forward and backward run on bf16 weights, at the full speed of the matrix units and without the casts of autocast. The
updates (smaller than bf16 can add to a weight) go into float32 copies, which are rounded back after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_core.specs import TrainingSpec


class MasterWeightAdamW(torch.optim.AdamW):
    """AdamW over float32 masters; a parameter that is float32 already is its own master.

    Args:
        groups: parameter groups of the model's own parameters.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        masters = []
        for group in groups:
            made = []
            for parameter in group["params"]:
                own = parameter.dtype == torch.float32
                master = parameter if own else nn.Parameter(parameter.detach().float())
                made.append(master)
                self.pairs.append((parameter, master))
            masters.append({**group, "params": made})
        super().__init__(masters, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for parameter, master in self.pairs:
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        found = super().step(closure)
        self.round_back()
        return found

    @torch.no_grad()
    def round_back(self) -> None:
        """Model weights from their masters."""
        for parameter, master in self.pairs:
            if master is not parameter:
                parameter.copy_(master)
                master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter, _ in self.pairs:
            parameter.grad = None


def make_optimizer(network: nn.Module, spec: TrainingSpec) -> MasterWeightAdamW:
    """AdamW with the spec's two learning rates; biases, norms and heads' biases do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = spec.head_learning_rate if name.startswith("heads.") else spec.learning_rate
        # Vectors are biases and norms; pulling them towards zero changes scales that nothing else can restore.
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
    device = next(network.parameters()).device
    return MasterWeightAdamW(listed, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda") or None)
