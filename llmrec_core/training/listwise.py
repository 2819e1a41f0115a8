"""Lists in one prompt: candidates are lettered, and a candidate's score is the logit of its letter at the end.

To everything around it (samples, losses, validation) a list looks as it does for models that read one prompt a
candidate: one output for each candidate. Only here are the candidates of a list read together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmrec_core.contracts import IntArray
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import Packed, TokenisedPrompts, pack


@dataclass(frozen=True)
class ListPrompts(TokenisedPrompts):
    """Prompts of lists, and where each candidate stands.

    ``prompt_of``, ``letter_of``: int64 [n_candidates]; the prompt of each candidate, ascending, and its letter there.
    """

    prompt_of: IntArray
    letter_of: IntArray

    @classmethod
    def of(cls, tokens: TokenisedPrompts, letters: Sequence[IntArray]) -> ListPrompts:
        """``letters``: for each prompt the letters of its candidates, counted from 0."""
        sizes = [len(row) for row in letters]
        prompt_of = np.repeat(np.arange(len(tokens), dtype=np.int64), sizes)
        letter_of = np.concatenate([*letters, np.empty(0, np.int64)]).astype(np.int64)
        return cls(tokens.heads, tokens.tails, tokens.head_of, tokens.tail_of, prompt_of, letter_of)


@dataclass(frozen=True)
class PackedLists(Packed):
    """``owner``, ``letter``: int64 [n_candidates], each candidate's prompt in this batch and its letter there."""

    owner: Tensor
    letter: Tensor

    def to(self, device: torch.device) -> PackedLists:
        if device.type == "cpu":
            return self
        owner, letter = (tensor.to(device, non_blocking=True) for tensor in (self.owner, self.letter))
        return PackedLists(**vars(super().to(device)), owner=owner, letter=letter)


class ListBatchPlan(BatchPlan):
    """Batches of lists; ``tokens`` are :class:`ListPrompts`, one prompt a list."""

    tokens: ListPrompts

    def prompts_of(self, lists: IntArray) -> IntArray:
        return np.unique(self.tokens.prompt_of[super().prompts_of(lists)])

    def _lengths(self) -> IntArray:
        return self.tokens.n_tokens

    def _pack(self, prompts: IntArray) -> PackedLists:
        owners = self.tokens.prompt_of[prompts]
        lists, owner = np.unique(owners, return_inverse=True)
        # No history is shared here: each list belongs to a user's moment of its own.
        rows = [np.array([place], np.int64) for place in range(len(lists))]
        packed = pack(self.tokens, lists, rows, self._pad_id)
        letter = self.tokens.letter_of[prompts]
        return PackedLists(**vars(packed), owner=torch.from_numpy(owner), letter=torch.from_numpy(letter))

    def fingerprint(self) -> str:
        letters = np.ascontiguousarray(self.tokens.letter_of)
        return hashlib.sha256(super().fingerprint().encode() + letters.tobytes()).hexdigest()


class ListNetwork(PromptNetwork):
    """Scores of candidates from the prompts of their lists; its heads are ``LetterHeads``."""

    def forward(self, packed: Packed) -> dict[str, Tensor]:
        """``{"rank": logits of the candidates' letters}``, float32 [n_candidates]."""
        assert isinstance(packed, PackedLists)
        packed = packed.to(self.device)
        return {"rank": super().forward(packed)["letters"][packed.owner, packed.letter]}

    def predict(self, tokens: TokenisedPrompts, tasks: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
        """The same in evaluation mode for any number of lists; ``tasks`` is ("rank",)."""
        assert isinstance(tokens, ListPrompts)
        return {"rank": self.letters(tokens)[tokens.prompt_of, tokens.letter_of]}

    def letters(self, tokens: TokenisedPrompts) -> npt.NDArray[np.float32]:
        """Logits of all letters, [n_prompts, n_letters]."""
        return super().predict(tokens, ("letters",))["letters"]
