"""AdamW for weights that are kept in bf16: with float32 master copies, or without and rounded at random; its moments
in float32, in bf16, or in 8 bits.

Forward and backward run on bf16 weights, at the full speed of the matrix units and without the casts of autocast. The
updates (smaller than bf16 can add to a weight) go into float32 copies, which are rounded back after each step.
Stochastic rounding does without the copies: a weight goes up or down with probabilities that make it right on average,
so small updates are not lost (Gupta et al., ICML 2015). Bytes a bf16 weight with its gradient: masters 16, stochastic
8; with 8-bit moments 10 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llmrec_core.errors import SpecError
from llmrec_core.models.tuning import decays, rate_factor
from llmrec_core.specs import TrainingSpec

#: Values that share one scale in 8-bit moments; smaller tensors keep theirs in float32 (Dettmers et al., ICLR 2022).
_BLOCK, _SMALLEST = 256, 4096
#: Values whose squares are summed at once.
_NORM_BLOCK = 1 << 19


class MasterWeightAdamW(torch.optim.AdamW):
    """AdamW over float32 masters; a parameter that is float32 already is its own master.

    Args:
        groups: parameter groups of the model's own parameters.
        masters: False: every parameter is its own master, whatever its dtype; for subclasses that can step so.

    Attributes:
        pairs: (parameter of the model, what the optimizer works on).
    """

    def __init__(self, groups: list[dict[str, Any]], *, masters: bool = True, **options: Any) -> None:
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        copies = []
        for group in groups:
            made = []
            for parameter in group["params"]:
                own = parameter.dtype == torch.float32 or not masters
                master = parameter if own else nn.Parameter(parameter.detach().float())
                made.append(master)
                self.pairs.append((parameter, master))
            copies.append({**group, "params": made})
        super().__init__(copies, **options)
        #: What the next step divides gradients by; the name is that of ``torch.optim``, whose fused kernels read it.
        self.grad_scale: Tensor | None = None
        self._owner = {id(master): parameter for parameter, master in self.pairs}
        self._one_by_one = bool(self.defaults["fused"]) and any(
            master is not parameter and master.device.type == "cpu" for parameter, master in self.pairs
        )

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Shortens the gradients to ``max_norm`` all together; returns their norm before, float32 [].

        As ``torch.nn.utils.clip_grad_norm_``, but that the fused step, which reads them anyway, does the division.
        """
        found = total_norm([parameter.grad for parameter, _ in self.pairs if parameter.grad is not None])
        if self.defaults["fused"]:
            self.grad_scale = ((found + 1e-6) / max_norm).clamp_min(1.0)
        else:
            nn.utils.clip_grads_with_norm_([parameter for parameter, _ in self.pairs], max_norm, found)
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is None and self._one_by_one:
            self._step_one_by_one()
            self.grad_scale = None
            return None
        for parameter, master in self.pairs:
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        found = super().step(closure)
        self.grad_scale = None
        self.round_back()
        return found

    def _step_one_by_one(self) -> None:
        """The same step, matrix by matrix: from its gradient in bf16 to its weights in bf16 it stays in the cache.

        All together, gradients in float32 and rounded weights would go to memory and back in between.
        """
        room = torch.empty(max(master.numel() for _, master in self.pairs))
        for group in self.param_groups:
            members = [m for m in group["params"] if self._owner[id(m)].grad is not None]
            # Of biases and norms calls would cost more than the work.
            small = [master for master in members if master.numel() < _SMALLEST]
            if small:
                self._step_these(small, [cast(Tensor, self._owner[id(master)].grad).float() for master in small], group)
            for master in members:
                if master.numel() >= _SMALLEST:
                    self._step_these([master], [_float32(cast(Tensor, self._owner[id(master)].grad), room)], group)

    def _step_these(self, masters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        owners, states = [self._owner[id(master)] for master in masters], [self.state[master] for master in masters]
        for master, state in zip(masters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        beta1, beta2 = group["betas"]
        adamw(
            masters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=self.grad_scale,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for owner, master in zip(owners, masters, strict=True):
            if owner is not master:
                owner.copy_(master)

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


class LeanAdamW(MasterWeightAdamW):
    """The same steps with less memory, tensor by tensor.

    Args:
        groups: parameter groups of the model's own parameters.
        stochastic: bf16 weights have no masters; they, and their moments, are rounded at random.
        eight_bit: moments of large tensors are kept in 8 bits.
    """

    def __init__(self, groups: list[dict[str, Any]], *, stochastic: bool, eight_bit: bool, **options: Any) -> None:
        super().__init__(groups, masters=not stochastic, **options)
        self._eight_bit = eight_bit

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = self._owner[id(weight)].grad
                if gradient is not None:
                    self._step_one(weight, gradient.float(), group)
        self.round_back()
        return None if closure is None else closure()

    def _step_one(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        n_steps, (keep, keep_squares) = float(state["step"]), group["betas"]
        mean, square = self._read(state, "exp_avg", weight), self._read(state, "exp_avg_sq", weight)
        mean.lerp_(gradient, 1 - keep)
        square.mul_(keep_squares).addcmul_(gradient, gradient, value=1 - keep_squares)
        self._write(state, "exp_avg", weight, mean)
        self._write(state, "exp_avg_sq", weight, square)
        length = square.div_(1 - keep_squares**n_steps).sqrt_().add_(group["eps"])
        value = weight.float()
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(mean, length, value=-group["lr"] / (1 - keep**n_steps))
        if weight.dtype == torch.bfloat16:
            weight.copy_(round_stochastically(value))
        elif value is not weight:
            weight.copy_(value)

    def _read(self, state: dict[str, Any], name: str, weight: Tensor) -> Tensor:
        """A moment in float32, a copy."""
        if name not in state:
            return torch.zeros_like(weight, dtype=torch.float32)
        if f"{name}_scale" in state:
            return from_8_bits(state[name], state[f"{name}_scale"], signed=name == "exp_avg")
        kept: Tensor = state[name]
        return kept.to(torch.float32, copy=True)

    def _write(self, state: dict[str, Any], name: str, weight: Tensor, value: Tensor) -> None:
        if self._eight_bit and weight.numel() >= _SMALLEST and weight.numel() % _BLOCK == 0:
            state[name], state[f"{name}_scale"] = to_8_bits(value, signed=name == "exp_avg")
        else:
            # A mean of a thousand squares moves by a thousandth, which bf16 takes only when rounded at random.
            state[name] = round_stochastically(value) if weight.dtype == torch.bfloat16 else value.clone()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together, float32 [] on their device."""
    if all(one.device.type == "cpu" for one in gradients):
        # A dot product reads memory at twice the speed of the norm of a single tensor; of bf16 ones, whose norm in
        # float32 takes four times as long, it reads a copy that stays in the cache.
        flat = [one.reshape(-1) for one in gradients if one.numel() >= _SMALLEST]
        small = [one.reshape(-1).float() for one in gradients if one.numel() < _SMALLEST]
        whole = [*flat, *([torch.cat(small)] if small else [])]
        room = torch.empty(_NORM_BLOCK)
        parts = (_float32(part, room) for one in whole for part in one.split(_NORM_BLOCK))
        return torch.tensor(math.fsum(float(torch.dot(part, part)) for part in parts)).sqrt()
    return nn.utils.get_total_norm(list(gradients)).float()


def _float32(tensor: Tensor, room: Tensor) -> Tensor:
    """A bf16 tensor as a copy in ``room``, float32 and at least as large, in place of what was there.

    To take megabytes for each matrix anew and give them back costs about as much as a small operation.
    """
    return tensor if tensor.dtype == torch.float32 else room[: tensor.numel()].view(tensor.shape).copy_(tensor)


def round_stochastically(values: Tensor) -> Tensor:
    """Float32 to bf16, up or down at random (PyTorch's generator of the device) so that the mean is right."""
    # bf16 is the upper half of float32: what the lower half holds is the chance to be rounded away from zero.
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def to_8_bits(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, shape of ``values``) and scales (float32 [n / 256]): each block over its largest absolute value."""
    blocks = values.reshape(-1, _BLOCK)
    scale = blocks.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    table = _codes(signed).to(values.device)
    borders = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(blocks / scale[:, None], borders)
    return codes.to(torch.uint8).view(values.shape), scale


def from_8_bits(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """Undoes :func:`to_8_bits`, but for the rounding."""
    table = _codes(signed).to(codes.device)
    return (table[codes.reshape(-1, _BLOCK).long()] * scale[:, None]).view(codes.shape)


@cache
def _codes(signed: bool) -> Tensor:
    """256 values in [-1, 1] or [0, 1], finer where they are smaller over seven powers of ten (the dynamic codes of
    Dettmers et al., ICLR 2022, section 2.2)."""
    found = [0.0, 1.0]
    for power in range(7):
        borders = torch.linspace(0.1, 1.0, 2 ** (power + (0 if signed else 1)) + 1, dtype=torch.float64)
        values = 10.0 ** (power - 6) * (borders[1:] + borders[:-1]) / 2
        found += values.tolist() + ((-values).tolist() if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float32)


def make_optimizer(network: nn.Module, spec: TrainingSpec) -> MasterWeightAdamW:
    """AdamW with the spec's two learning rates; biases, norms and heads' biases do not decay.

    Raises:
        SpecError: stochastic rounding is asked for and no trained weight is bf16.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = rate_factor(name, causal=getattr(network, "causal", False))
        rate = spec.head_learning_rate if name.startswith("heads.") else spec.learning_rate * factor
        # Vectors are biases and norms; pulling them towards zero changes scales that nothing else can restore.
        decay = spec.weight_decay if parameter.ndim > 1 and decays(name) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
    options: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}
    stochastic = spec.weights == "stochastic"
    if stochastic and not any(p.dtype == torch.bfloat16 for members in groups.values() for p in members):
        raise SpecError(
            "no trained weight is bf16, so nothing can be rounded at random.",
            where="training.weights",
            fix="Set training.precision to bf16 and train layers themselves (full, top-layers); what other methods add "
            "is small and stays float32.",
        )
    if stochastic or spec.optimizer == "adamw-8bit":
        return LeanAdamW(listed, stochastic=stochastic, eight_bit=spec.optimizer == "adamw-8bit", **options)
    device = next(network.parameters()).device
    return MasterWeightAdamW(listed, **options, fused=device.type in ("cpu", "cuda") or None)
