"""A finished recommender over histories that a training goes on from with newer data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import torch
from torch import Tensor

from llmrec_core.contracts import Continued, FitContext, Recommender
from llmrec_core.errors import InputError, ModelError
from llmrec_core.recommenders._storage import sha256_of
from llmrec_core.saved import HEAD_FILE
from llmrec_core.specs import changed_shape

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

R = TypeVar("R", bound=Recommender)


class First(Generic[R]):
    """What of it is taken over is said by the families.

    Attributes:
        model: fitted on ``continued.dataset``; on the CPU, since it is only copied from.
        sha256: of the head it was saved with.
    """

    #: Which recommender, and how it is called where it has no second stage.
    kind: type[R]
    called: str

    def __init__(self, model: R, continued: Continued, sha256: str) -> None:
        self.model, self.continued, self.sha256 = model, continued, sha256

    @classmethod
    def load(cls, ctx: FitContext, spec: Any) -> Self:
        """
        Raises:
            InputError: the data is the same. ModelError: it cannot be read, or does not fit ``spec``.
        """
        assert ctx.start_from is not None
        if ctx.continued is None:
            raise InputError(
                f"{cls.called} no second stage on the same data.",
                where="continue_from",
                fix="Go on with newer data (continual), or train anew with other settings.",
            )
        model = cast(R, cls.kind.load(ctx.start_from, ctx.continued.dataset, replace(ctx, device="cpu")))
        fault = cls.fault(model, spec)
        if fault is not None:
            raise ModelError(
                f"the run to go on from does not fit: {fault}.", where="continue_from", fix="Use its fields here too."
            )
        return cls(model, ctx.continued, sha256_of(ctx.start_from / HEAD_FILE))

    @classmethod
    def fault(cls, model: Any, spec: Any) -> str | None:
        """Why ``spec`` cannot go on from ``model``; None where it can."""
        return changed_shape(model.spec, spec)

    def places(self, dataset: Dataset) -> Tensor:
        """Where the first data had each item of ``dataset``, by its id, int64 [n_items]; -1 for new ones."""
        index = self.continued.dataset.item_index
        return torch.tensor([index.get(item, -1) for item in dataset.item_ids.tolist()])
