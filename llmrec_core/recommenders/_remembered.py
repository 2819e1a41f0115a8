"""What is computed from weights, kept as long as the weights stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """One value. It is made again when asked for with other tensors, or after any of them was written into.

    PyTorch counts what is written into a tensor. Fused steps of optimizers go around that count: where a tensor is to
    be trained, nothing is remembered. What is written through ``.data`` is not seen either.
    """

    def __init__(self) -> None:
        self._value: T | None = None
        self._made_of: list[tuple[Tensor, int, int]] = []

    def of(self, tensors: Iterable[Tensor], make: Callable[[], T]) -> T:
        """The value that ``make`` gives with these tensors as they are."""
        now = [(tensor, tensor._version, tensor.data_ptr()) for tensor in tensors]
        if any(tensor.requires_grad for tensor, _, _ in now):
            self.forget()
            return make()
        same = len(now) == len(self._made_of) and all(
            one is other and version == before and place == old
            for (one, version, place), (other, before, old) in zip(now, self._made_of, strict=True)
        )
        if self._value is None or not same:
            # The old one goes before the new one comes.
            self.forget()
            self._value, self._made_of = make(), now
        return self._value

    def forget(self) -> None:
        """Frees the value and the tensors it was made of."""
        self._value, self._made_of = None, []
