"""Which lists train together, step by step: drawn by seed, lists of similar length side by side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from llmrec_core.contracts import IntArray
from llmrec_core.models.device import resolve_batch_size
from llmrec_core.specs import RunSpec, TrainingSpec
from llmrec_core.training.network import MAX_TAILS, PromptNetwork
from llmrec_core.training.objectives import Labels
from llmrec_core.training.packing import Packed, TokenisedPrompts, pack, plan_rows, row_lengths
from llmrec_core.training.samples import SampleLists

#: Batches whose lists are sorted together: enough for even lengths, few enough to leave the order random.
_BUCKET_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """``lists``: list numbers; ``n_prompts``, ``n_tokens``: what is in it, padding not counted; ``whole``: whether all
    prompts of the lists are."""

    lists: IntArray
    packed: Packed
    labels: Labels
    n_prompts: int
    n_tokens: int
    whole: bool = True


def sized(run: RunSpec, network: PromptNetwork) -> TrainingSpec:
    """How the run trains, with the batch size that suits the network where it is, if the spec names none."""
    clicks = not network.causal and {objective.task for objective in run.objectives} == {"click"}
    size = resolve_batch_size(run.training.batch_size, network.computes_in, clicks=clicks)
    return run.training.model_copy(update={"batch_size": size})


class BatchPlan(TorchDataset[Batch]):
    """The whole training as a list of ready batches: element i is the i-th batch of all epochs.

    One flat sequence makes resuming exact: position is a number, whatever the epochs and fractions of epochs.

    Args:
        lists: samples; all prompts of a list stay in one batch.
        tokens: their prompts, in the same order.
        spec: batch size (in prompts, see :func:`sized`), epochs and bucketing.
        seed: of the order.
        pad_id: padding token.
        n_rounds: ``lists`` are the same ones so many times over (see ``augmentation``): each pass takes its own.
    """

    def __init__(
        self,
        lists: SampleLists,
        tokens: TokenisedPrompts,
        spec: TrainingSpec,
        seed: int,
        pad_id: int,
        n_rounds: int = 1,
    ) -> None:
        self.tokens = tokens
        self._pad_id = pad_id
        self._labels = {task: torch.from_numpy(values) for task, values in lists.labels.items()}
        self._offsets = {task: torch.from_numpy(values) for task, values in lists.offsets.items()}
        n_lists = len(lists.queries)
        self._starts = np.searchsorted(lists.list_of, np.arange(n_lists + 1))
        list_size = max(1, int(np.diff(self._starts).max(initial=1)))
        assert spec.batch_size is not None
        self.batch_size = spec.batch_size
        per_batch = max(1, spec.batch_size // list_size)
        lengths = self._lengths() if n_lists else np.empty(0, np.int64)
        rounds = np.split(lengths, n_rounds)
        n_lists //= n_rounds
        n_batches = max(1, round(spec.epochs * n_lists / per_batch))
        rng = np.random.default_rng([seed, 3])
        self.batches_per_epoch = max(1, -(-n_lists // per_batch))
        self.schedule: list[IntArray] = []
        number = 0
        while len(self.schedule) < n_batches:
            shift = number % n_rounds * n_lists
            batches = _epoch(rounds[number % n_rounds], per_batch, rng, spec.bucket_by_length)
            self.schedule += [lists_of + shift for lists_of in batches] if shift else batches
            number += 1
        self.schedule = self.schedule[:n_batches]

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, position: int) -> Batch:
        return self.collate(self.schedule[position])

    def collate(self, lists: IntArray) -> Batch:
        """These lists as one batch."""
        return self._collate(lists, None)

    def collate_prompts(self, lists: IntArray, chosen: IntArray) -> Batch:
        """Some of the prompts of these lists as one batch, for losses that add up over prompts.

        Args:
            chosen: places in :meth:`prompts_of`.
        """
        return self._collate(lists, chosen)

    def _collate(self, lists: IntArray, chosen: IntArray | None) -> Batch:
        prompts = self._spread(lists)
        list_of = np.repeat(np.arange(len(lists), dtype=np.int64), self._starts[lists + 1] - self._starts[lists])
        if chosen is not None:
            prompts, list_of = prompts[chosen], list_of[chosen]
        packed = self._pack(prompts)
        rows = torch.from_numpy(prompts)
        labels = Labels(
            {task: values[rows] for task, values in self._labels.items()},
            torch.from_numpy(list_of),
            len(lists),
            {task: values[rows] for task, values in self._offsets.items()},
        )
        return Batch(lists, packed, labels, len(prompts), packed.n_tokens, chosen is None)

    def prompts_of(self, lists: IntArray) -> IntArray:
        """Numbers in ``tokens`` of what a batch of these lists reads, in the order of ``Packed.row``."""
        return self._spread(lists)

    def _spread(self, lists: IntArray) -> IntArray:
        return np.concatenate([np.arange(self._starts[i], self._starts[i + 1], dtype=np.int64) for i in lists])

    def _lengths(self) -> IntArray:
        """Tokens that each list reads, [n_lists]: what its prompts share is read once, so batches of even lengths have
        rows of even lengths."""
        lists = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        heads = np.unique(np.stack([lists, self.tokens.head_of]), axis=1)
        tails = self.tokens.tails.lengths[self.tokens.tail_of]
        found = np.bincount(heads[0], self.tokens.heads.lengths[heads[1]]) + np.bincount(lists, tails)
        return found.astype(np.int64)

    def _pack(self, prompts: IntArray) -> Packed:
        rows = plan_rows(self.tokens, prompts, MAX_TAILS)
        # Rows of one length side by side, which go through attention together (see ``unpadded``).
        by_length = np.argsort(row_lengths(self.tokens, prompts, rows), kind="stable").tolist()
        return pack(self.tokens, prompts, [rows[number] for number in by_length], self._pad_id)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the order, the tokens, the labels and the offsets: equal plans train equally."""
        digest = hashlib.sha256()
        for lists in self.schedule:
            digest.update(lists.tobytes())
        for array in (self.tokens.heads.flat, self.tokens.tails.flat, self.tokens.head_of, self.tokens.tail_of):
            digest.update(np.ascontiguousarray(array).tobytes())
        for task in sorted(self._labels):
            digest.update(task.encode() + self._labels[task].numpy().tobytes())
        for task in sorted(self._offsets):
            digest.update(b"offset " + task.encode() + self._offsets[task].numpy().tobytes())
        return digest.hexdigest()


def _epoch(lengths: IntArray, per_batch: int, rng: np.random.Generator, bucket: bool) -> list[IntArray]:
    """One pass over all lists in batches of ``per_batch``; the last may be smaller."""
    order = rng.permutation(len(lengths))
    if bucket:
        block = per_batch * _BUCKET_BATCHES
        parts = [order[start : start + block] for start in range(0, len(order), block)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
    # Sorted blocks would show short histories first and long ones last.
    return [batches[i] for i in rng.permutation(len(batches))] if bucket else batches
