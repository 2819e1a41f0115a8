"""The frozen bottom of a model: embeddings and layers of which nothing is trained, run by themselves or left out.

What they make of a text never changes while the layers above are trained, so it can be kept. The model is driven
through its own forward, with masks, positions and the norm at its end as it came; only the calls of single layers are
replaced for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from llmrec_core.errors import SpecError
from llmrec_core.models.calling import called_instead
from llmrec_core.models.tuning import layer_stack, norms_behind
from llmrec_core.models.tuning_soft import READY_MASK_TYPES


def n_frozen_layers(model: PreTrainedModel) -> int:
    """Lowest layers of which, as of all that stands before them, no weight is trained; 0 where that cannot be told.

    Only architectures are answered for whose layers are known to hand on states and nothing else.
    """
    if model.config.model_type not in READY_MASK_TYPES:
        return 0
    try:
        layers = layer_stack(model)
    except SpecError:
        return 0
    placed = {id(weight) for part in (*layers, *norms_behind(model)) for weight in part.parameters()}
    if any(weight.requires_grad and id(weight) not in placed for weight in model.parameters()):
        return 0
    trained = (i for i, layer in enumerate(layers) if any(weight.requires_grad for weight in layer.parameters()))
    return next(trained, 0)


class FrozenPart:
    """The lowest layers of a model and its embeddings.

    Args:
        n_layers: from :func:`n_frozen_layers`, at least 1.
    """

    def __init__(self, model: PreTrainedModel, n_layers: int) -> None:
        self.n_layers = n_layers
        self._layers = list(layer_stack(model))

    @contextmanager
    def alone(self) -> Iterator[list[Tensor]]:
        """Inside, layers above do nothing; each call of the model appends the states that they would read.

        States are [n_rows, width, hidden_size].
        """
        found: list[Tensor] = []

        def keep(states: Tensor, *_: Any, **__: Any) -> Tensor:
            found.append(states)
            return states

        def pass_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
            return states

        first, *others = self._layers[self.n_layers :]
        with called_instead([first], keep), called_instead(others, pass_on):
            yield found

    @contextmanager
    def known(self, states: Tensor) -> Iterator[None]:
        """Inside, the model takes ``states`` for what its frozen layers make of whatever it is called with."""

        def give(*_: Any, **__: Any) -> Tensor:
            return states

        with called_instead(self._layers[: self.n_layers], give):
            yield
