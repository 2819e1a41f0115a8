"""AdaLoRA's share in each training step: ranks given to the matrices that need them, and factors kept orthogonal.

The layers and the rule by which ranks are given are peft's (Zhang et al., ICLR 2023): every update is B E A with a
diagonal E; all begin with the same rank, and entries of E that matter least are set to 0 until the mean rank is the one
asked for. What peft leaves to its own wrapper of a model stands here, with a state that a checkpoint can hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraLayer, RankAllocator
from torch import Tensor, nn

#: peft's name of the one adapter that there is.
_ADAPTER = "default"
#: Ranks at the beginning, over those at the end (the paper's experiments).
_SPARE = 1.5
#: Shares of the steps before ranks fall, and after they have fallen.
_RISE, _REST = 0.1, 0.3
#: Weight of the penalty on factors that are not orthogonal (the paper's gamma).
_PENALTY = 0.1


def adalora_config(rank: int, alpha: float, dropout: float, names: list[str], *, transposed: bool) -> AdaLoraConfig:
    """peft's settings for a mean rank of ``rank`` at the end; steps are told later (:class:`RankSchedule`)."""
    return AdaLoraConfig(
        target_r=rank,
        init_r=first_rank(rank),
        # Annotated as int by peft, used as a factor only.
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
        # peft wants a number here; it is used by its wrapper of a model alone.
        total_step=1,
    )


def first_rank(rank: int) -> int:
    """Rank that every matrix begins with."""
    return math.ceil(_SPARE * rank)


def _factor(parameters: Any) -> Tensor:
    found: Tensor = parameters[_ADAPTER]
    return found.float()


def rank_schedule(model: nn.Module, n_steps: int) -> RankSchedule | None:
    """The schedule of a model with AdaLoRA layers; None for others."""
    layer = next((module for module in model.modules() if isinstance(module, AdaLoraLayer)), None)
    # Undoes ``first_rank``.
    return None if layer is None else RankSchedule(model, layer.r[_ADAPTER] * 2 // 3, n_steps)


class RankSchedule:
    """What the trainer calls in each step of an AdaLoRA training.

    Args:
        model: with AdaLoRA layers.
        rank: mean rank at the end.
        n_steps: optimizer steps of the whole training.
    """

    def __init__(self, model: nn.Module, rank: int, n_steps: int) -> None:
        self._model = model
        first, rest = int(_RISE * n_steps), int(_REST * n_steps)
        config = AdaLoraConfig(
            target_r=rank,
            init_r=first_rank(rank),
            tinit=first,
            tfinal=rest,
            # About fifty cuts, however long the training is.
            deltaT=max(1, n_steps // 100),
            total_step=n_steps,
        )
        self._last_cut = n_steps - rest
        self._allocator = RankAllocator(model, config, _ADAPTER)
        self._kept: dict[str, list[bool]] = {}

    def penalty(self) -> Tensor:
        """Mean distance of the factors from orthogonal ones, to be added to the loss; a scalar."""
        parts = []
        for module in self._model.modules():
            if isinstance(module, AdaLoraLayer):
                right, left = _factor(module.lora_A), _factor(module.lora_B)
                one = torch.eye(len(right), device=right.device)
                parts += [(right @ right.T - one).norm(), (left.T @ left - one).norm()]
        return _PENALTY * torch.stack(parts).mean()

    def after_step(self, step: int) -> None:
        """To be called when the optimizer has taken ``step`` (from 1) and gradients are still there."""
        if step <= self._last_cut:
            last = step == self._last_cut
            budget, cuts = self._allocator.budget_schedule(step)
            if not last:
                self._allocator.update_ipt(self._model)
            if (cuts or last) and self._allocator.exp_avg_ipt:
                self._cut(min(budget, self._allocator.init_bgt) if not last else self._allocator.target_bgt)
            if last:
                self._allocator.reset_ipt()
        elif self._kept:
            # The optimizer has moved what was cut; peft puts it back in each step, and so do we.
            self._allocator.mask_using_rank_pattern(self._model, self._kept)

    def _cut(self, budget: int) -> None:
        if budget < self._allocator.init_bgt:
            self._kept = self._allocator.mask_to_budget(self._model, budget)

    def ranks(self) -> dict[str, int]:
        """Layer -> entries of E that were not cut."""
        return {name.partition(".lora_E")[0]: sum(kept) for name, kept in self._kept.items()}

    def state(self) -> dict[str, Tensor]:
        """All that the coming steps depend on besides the weights."""
        found = {f"kept.{name}": torch.tensor(kept) for name, kept in self._kept.items()}
        for title in ("exp_avg_ipt", "exp_avg_unc"):
            values: dict[str, Tensor] = getattr(self._allocator, title)
            found |= {f"{title}.{name}": value.detach().cpu().clone() for name, value in values.items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts a :meth:`state` back."""
        devices = {name: parameter.device for name, parameter in self._model.named_parameters()}
        for key, value in state.items():
            title, _, name = key.partition(".")
            if title == "kept":
                self._kept[name] = value.tolist()
            else:
                getattr(self._allocator, title)[name] = value.to(devices[name])
        # peft looks for this one; it is overwritten before it is read.
        self._allocator.ipt = {name: torch.zeros_like(v) for name, v in self._allocator.exp_avg_ipt.items()}
