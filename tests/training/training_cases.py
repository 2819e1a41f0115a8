"""A planted world in which one word of the candidate decides, and runs of a tiny random model over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tiny_models import write_tiny_bert

from llmrec_core.contracts import FitContext, Recommender, RenderedPrompt, Span
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.registry import build
from llmrec_core.specs import RunSpec

WORDS = ("red", "blue", "green", "dark", "light", "old", "new", "star", "war", "toy")


def prompt_of(history: str, candidate: str) -> RenderedPrompt:
    """A prompt of these words, with its candidate marked."""
    text = f"user liked {history} candidate : {candidate}"
    start = text.rindex(candidate)
    return RenderedPrompt(text, (Span(start, len(text), "candidate", "title"),), 0)


def planted_split(n_users: int = 40, n_rows: int = 12, *, shuffled: bool = False) -> Split:
    """Everybody loves comedy (5) and hates horror (1); ``shuffled``: the same ratings dealt out at random."""
    rng = np.random.default_rng(5)
    kinds = ["comedy", "horror"]
    items = pd.DataFrame(
        [
            {"item_id": f"{kind}{number}", "title": f"{word} {kind} story", "category": kind}
            for kind in kinds
            for number, word in enumerate(WORDS)
        ]
    )
    rows = []
    for user in range(n_users):
        for step, item in enumerate(rng.permutation(len(items))[:n_rows]):
            rating = 5.0 if items["category"][item] == "comedy" else 1.0
            rows.append((f"u{user}", items["item_id"][item], rating, 100.0 * step))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    if shuffled:
        frame["rating"] = rng.permutation(frame["rating"].to_numpy())
    return make_split(Dataset.from_frames("planted", frame, items), RunSpec.model_validate(_BASE).split)


_BASE: dict[str, Any] = {
    "dataset": {"name": "planted"},
    "prompt": {"max_tokens": 64, "max_history": 2},
    "objectives": [{"task": "click"}],
    "training": {
        "max_samples": 320,
        "batch_size": 16,
        "negatives_per_positive": 0,
        "learning_rate": 3e-3,
        "head_learning_rate": 1e-2,
        "validation_every": 10,
        "validation_samples": 40,
        "precision": "fp32",
    },
}


def planted_run(models: Path, **training: Any) -> RunSpec:
    """A run over :func:`planted_split`; keywords go over ``training``, but ``objectives``, ``tuning`` and ``seed``."""
    folder = models / "tiny-bert"
    if not folder.exists():
        write_tiny_bert(folder)
    tuning = training.pop("tuning", {"freeze_embeddings": False})
    raw = {
        **_BASE,
        "objectives": training.pop("objectives", _BASE["objectives"]),
        "seed": training.pop("seed", 0),
        "recommender": {"family": "cross-encoder", "model": str(folder), "tuning": tuning},
        "training": {**_BASE["training"], **training},
    }
    return RunSpec.model_validate(raw)


class Events(list[tuple[str, dict[str, Any]]]):
    """Everything a fit emits."""

    def emit(self, event_type: str, **payload: Any) -> None:
        self.append((event_type, payload))

    def of(self, event_type: str) -> list[dict[str, Any]]:
        return [payload for kind, payload in self if kind == event_type]

    @property
    def messages(self) -> str:
        return "\n".join(payload["message"] for payload in self.of("log"))


def fit(
    run: RunSpec,
    split: Split,
    models: Path,
    *,
    events: Events | None = None,
    checkpoints: Path | None = None,
    resume: Path | None = None,
    should_stop: Callable[[], Any] = lambda: None,
    floors: Mapping[str, Recommender] | None = None,
) -> CrossEncoderRecommender:
    recommender = build(run, run.recommender)
    assert isinstance(recommender, CrossEncoderRecommender)
    events = Events() if events is None else events
    recommender.fit(
        split,
        FitContext(
            workspace_models=models, device="cpu", seed=run.seed, emit=events.emit, should_stop=should_stop,
            checkpoint_dir=checkpoints, resume_from=resume, floors=floors or {},
        ),
    )  # fmt: skip
    return recommender


def test_auc(recommender: CrossEncoderRecommender, split: Split) -> float:
    """AUC of "rated 5" over the test rows."""
    from llmrec_core.evaluation.metrics import auc

    rows = split.labelled("test")
    queries = [split.query(str(split.dataset.user_ids[user]), "test") for user in rows.user_idx]
    scores = recommender.score(queries, rows.item_idx[:, None])[:, 0]
    return auc(rows.rating > 3, scores)


test_auc.__test__ = False  # type: ignore[attr-defined]
