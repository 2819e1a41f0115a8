"""How fast a training goes: since it last told, and over all its steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmrec_core.training.batches import Batch


@dataclass(frozen=True)
class Lap:
    steps: int
    samples_per_s: float
    tokens_per_s: float
    seconds_per_step: float


class Clock:
    """Speed since the last event, and over all steps for the time that is left."""

    def __init__(self) -> None:
        self._started = self._lap_started = time.monotonic()
        self._samples = self._tokens = self._steps = self._all_steps = 0

    def count(self, batch: Batch) -> None:
        self._samples += batch.n_prompts
        self._tokens += batch.n_tokens

    def due(self, interval_s: float) -> bool:
        self._steps += 1
        self._all_steps += 1
        return time.monotonic() - self._lap_started >= interval_s

    def lap(self) -> Lap:
        now = time.monotonic()
        elapsed = max(1e-6, now - self._lap_started)
        lap = Lap(
            self._steps,
            self._samples / elapsed,
            self._tokens / elapsed,
            (now - self._started) / max(1, self._all_steps),
        )
        self._lap_started = now
        self._samples = self._tokens = self._steps = 0
        return lap
