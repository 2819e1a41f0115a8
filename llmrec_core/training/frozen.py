"""Frozen layers read once: the states that enter the first trained layer, kept for prompts that come again.

Where only the top layers are trained, what the layers below make of a prompt is the same at each validation and in each
epoch. It is computed once, without graph, by the way of scoring (each history once, nothing padded), and kept on the
device in the precision it was computed in. States belong to token sequences: a history that was cropped or worded
differently is another prompt with states of its own.

Validations give what they give without this, bit by bit: they go through the very batches the states come from.
Training gathers them into its own rows, so that they differ from states computed there in the rounding of sums alone.

Where memory runs out while they are read, they are read anew in smaller batches, which is what later ones are then
too; where it holds no such states at all, everything goes on as if there were none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import numpy as np
import torch
from torch import Tensor

from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.errors import RunCancelledError, RunFailedError
from llmrec_core.models.device import keepable_memory
from llmrec_core.models.memory import until_it_fits
from llmrec_core.models.tuning_frozen import FrozenPart, n_frozen_layers
from llmrec_core.specs import TrainingSpec
from llmrec_core.training import scoring
from llmrec_core.training.batches import Batch, BatchPlan
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import HEAD, Packed, TokenisedPrompts
from llmrec_core.training.steps import Known, nothing_known
from llmrec_core.training.unpadded import end_to_end
from llmrec_core.training.validation import Validation


class KeptStates:
    """States below the first trained layer, of all tokens of some prompts.

    Args:
        part: of the network's encoder.
        tokens: the prompts.
        check: called before each batch that is read.

    Raises:
        RunFailedError: there is no memory for all states.
    """

    def __init__(
        self, network: PromptNetwork, part: FrozenPart, tokens: TokenisedPrompts, check: Callable[[], None]
    ) -> None:
        self.tokens = tokens
        #: Tokens a batch: whatever memory does later, these are the batches that the states belong to.
        self.at_once = scoring.batch_tokens(network)
        self._network, self._part = network, part
        #: Where the batches of ``flat_batches`` begin and end in the kept states.
        self._bounds = [0]
        # Where the first token of each head and of each prompt's tail stands.
        self._head_at = np.zeros(len(tokens.heads), np.int64)
        self._tail_at = np.zeros(len(tokens), np.int64)
        self._states = self._read(network, check)

    @property
    def n_bytes(self) -> int:
        """What the states take."""
        return self._states.nbytes

    @staticmethod
    def size(network: PromptNetwork, tokens: TokenisedPrompts) -> tuple[int, int]:
        """Tokens to keep, and the bytes of their states at most (autocast may leave some of them smaller).

        The smaller batches are, the more of them a head stands in.
        """
        encoder = network.encoder
        n_tokens = scoring.n_flat_tokens(network, tokens)
        return n_tokens, n_tokens * encoder.config.hidden_size * encoder.dtype.itemsize

    def batch(self, number: int) -> AbstractContextManager[None]:
        """Inside, the network reads the batch of that number of ``scoring.flat_batches``, but for its frozen layers."""
        return self._part.known(self._states[None, self._bounds[number] : self._bounds[number + 1]])

    def rows(self, prompts: IntArray, packed: Packed) -> AbstractContextManager[None]:
        """Inside, the network reads these rows, but for its frozen layers.

        Args:
            prompts: numbers of the packed prompts, in the order of ``packed.row``.
        """
        places = torch.from_numpy(self._places(prompts, packed))
        if self._network.unpadded:
            places = end_to_end(packed, places, self._network.computes_in)[None]
        return self._part.known(self._states[places.to(self._states.device)])

    @torch.no_grad()
    def _read(self, network: PromptNetwork, check: Callable[[], None]) -> Tensor:
        """[n_tokens, hidden_size]."""
        n_tokens, states = scoring.n_flat_tokens(network, self.tokens), torch.empty(0)
        training = network.training
        network.eval()
        try:
            # Closed whatever happens: attention is put back with it.
            with closing(scoring.flat_batches(network, self.tokens, self.at_once)) as batches:
                for batch in batches:
                    check()
                    with self._part.alone() as found:
                        scoring.read_flat(network, batch)
                    if not len(states):
                        states = _room_for(n_tokens, found[0])
                    begin, end = self._bounds[-1], self._bounds[-1] + found[0].shape[1]
                    states[begin:end] = found[0][0]
                    self._bounds.append(end)
                    starts = begin + batch.starts.cpu().numpy()
                    self._tail_at[batch.members] = starts
                    # The first tail of a head stands right behind it.
                    heads, first = np.unique(self.tokens.head_of[batch.members], return_index=True)
                    self._head_at[heads] = starts[first] - self.tokens.heads.lengths[heads]
        finally:
            network.train(training)
        return states

    def _places(self, prompts: IntArray, packed: Packed) -> IntArray:
        """Where the state of each token of the rows is kept, [n_rows, width]; anywhere for padding."""
        segment, position = packed.segment.cpu().numpy(), packed.position_ids.cpu().numpy()
        row, slot = packed.row.cpu().numpy(), packed.slot.cpu().numpy()
        heads = self.tokens.head_of[prompts]
        # The place of position 0, would the segment go back so far: tails count on from their heads.
        zero = np.zeros((len(segment), packed.n_slots + 1), np.int64)
        zero[row, HEAD] = self._head_at[heads]
        zero[row, slot + 1] = self._tail_at[prompts] - self.tokens.heads.lengths[heads]
        places = np.take_along_axis(zero, np.maximum(segment, HEAD).astype(np.int64), axis=1) + position
        return np.where(segment < HEAD, 0, places)


def _room_for(n_tokens: int, like: Tensor) -> Tensor:
    """Room for states of so many tokens, of the kind of ``like``: smaller batches would need no less."""

    def smaller() -> None:
        n_bytes = n_tokens * like.shape[-1] * like.dtype.itemsize
        raise RunFailedError(f"there is no memory for states of {n_tokens:,} tokens ({_megabytes(n_bytes)}).")

    return until_it_fits(lambda: like.new_empty(n_tokens, like.shape[-1]), smaller, like.device)


@contextmanager
def keeping_states(
    network: PromptNetwork, plan: BatchPlan, validation: Validation | None, spec: TrainingSpec, ctx: FitContext
) -> Iterator[Known]:
    """Inside, validations read frozen layers' states where that saves anything; hands out what makes training do so.

    Says in the log what is kept, and why not where frozen layers are computed again. Networks that do not score
    prompts, and models without frozen layers at the bottom, are left alone.
    """
    n_layers = n_frozen_layers(network.encoder) if isinstance(network, PromptNetwork) else 0
    if not n_layers or not scoring.reads_trees(network.backbone):
        yield nothing_known
        return
    part, left = FrozenPart(network.encoder, n_layers), keepable_memory(network.device)
    layers = "The frozen lowest layer is" if n_layers == 1 else f"The {n_layers} frozen lowest layers are"
    limit = left

    def check() -> None:
        if ctx.should_stop() == "cancel":
            raise RunCancelledError("the run was cancelled.")

    def log(level: str, message: str) -> None:
        ctx.emit("log", level=level, message=message)

    def read_less() -> None:
        scoring.read_less(network)
        at_once = scoring.batch_tokens(network)
        log("warning", f"Out of memory: prompts are now read {at_once:,} tokens at once (same result, slower).")

    def read(tokens: TokenisedPrompts, what: str) -> KeptStates:
        n_tokens, n_bytes = KeptStates.size(network, tokens)
        if n_bytes > left:
            told = f"states of {n_tokens:,} tokens take {_megabytes(n_bytes)}, and {_megabytes(left)} may be used."
            raise RunFailedError(told)
        told = f"states of {n_tokens:,} tokens are kept, {_megabytes(n_bytes)} of at most {_megabytes(limit)}."
        log("info", f"{layers} computed once for {what}: {told}")
        return KeptStates(network, part, tokens, check)

    def keep(tokens: TokenisedPrompts, what: str, reason: str | None) -> KeptStates | None:
        nonlocal left
        if reason is None:
            try:
                kept = until_it_fits(lambda: read(tokens, what), read_less, network.device)
            except RunFailedError as error:
                reason = error.what
            else:
                left -= kept.n_bytes
                return kept
        log("info", f"{layers} computed again for each batch of {what}: {reason}")
        return None

    try:
        if validation is not None:
            network.kept = keep(validation.tokens, "validation", _why_validation_is_read_anew(plan, spec))
        kept = keep(plan.tokens, "training", _why_training_is_read_anew(plan, spec))

        def known(part: Batch) -> AbstractContextManager[None]:
            assert kept is not None
            return kept.rows(plan.prompts_of(part.lists), part.packed)

        yield nothing_known if kept is None else known
    finally:
        network.kept = None


def _why_validation_is_read_anew(plan: BatchPlan, spec: TrainingSpec) -> str | None:
    steps = -(-len(plan) // spec.gradient_accumulation_steps)
    return "there is but one." if steps <= spec.validation_every else None


def _why_training_is_read_anew(plan: BatchPlan, spec: TrainingSpec) -> str | None:
    if spec.adversarial_epsilon:
        return "adversarial training changes what they read."
    if spec.dropout:
        return "dropout changes them from step to step."
    read = np.concatenate(plan.schedule)
    return "each prompt is read once." if len(np.unique(read)) == len(read) else None


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
