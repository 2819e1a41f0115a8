"""Cost against size: one, two, four and eight times the users and interactions, for training, scoring and measuring.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --workspace DIR [--users 400]   (needs ``llmrec models get minilm``)

Data is made: every user has 30 interactions, among 1,000 items at every size, so that a user should cost the same at
every size. Measured are

- ``training``: one epoch of the sequence model (64 wide, no text);
- ``scoring``: the best 100 of every user by that model;
- ``prompts``: MiniLM with a random head scores 20 candidates for each twentieth user: rendering, tokens, network;
- ``evaluation``: all metrics of popularity on every user, AUC and bootstrap included.

Seconds are CPU seconds of one thread, which other load on the machine changes least. Sizes are run in turn,
``--repeats`` times over, and medians are taken. What a task costs before its first user is known
from a sixteenth of the size and left out of the cost of a user; ``deviation`` is how far that cost is, at each size,
from its mean over sizes. Results go to ``benchmarks/results/scaling.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks._machine import as_a_worker, machine
from llmrec_core.baselines import PopularityRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.evaluation import evaluate
from llmrec_core.models.catalogue import fetch_model
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.recommenders.registry import build
from llmrec_core.specs import EvaluationSpec, PopularitySpec, PromptSpec, RunSpec, SplitSpec
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import tokenise
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "scaling.json"
SIZES = (1, 2, 4, 8)
N_ITEMS, N_ROWS = 1000, 30


def made(n_users: int) -> Split:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(n_users), N_ROWS)
    # Popular items are met more often, and a user's next item is near the last one.
    items = (rng.zipf(1.5, len(users)) + 7 * users) % N_ITEMS
    frame = pd.DataFrame(
        {
            "user_id": [f"u{user:07d}" for user in users.tolist()],
            "item_id": [f"i{item:05d}" for item in items.tolist()],
            "rating": rng.integers(1, 6, len(users)).astype(float),
            "timestamp": np.tile(np.arange(N_ROWS, dtype=float), n_users),
        }
    )
    words = ["red", "blue", "night", "house", "star", "war", "love", "city"]
    titles = [" ".join(rng.choice(words, 3)) for _ in range(N_ITEMS)]
    catalogue = pd.DataFrame({"item_id": [f"i{item:05d}" for item in range(N_ITEMS)], "title": titles})
    return make_split(Dataset.from_frames("made", frame, catalogue), SplitSpec())


def tasks(folder: Path, size: int) -> dict[str, Callable[[], Any]]:
    split = made(size)
    run = RunSpec.model_validate(
        {
            "dataset": {"name": "made"},
            # Ten users are asked after the epoch at every size.
            "recommender": {"family": "sequential", "model": None, "width": 64, "epochs": 1, "validation_users": 10},
        }
    )
    model = build(run, run.recommender)
    held = split.queries("test")
    backbone = load_backbone(folder, trainable=False)
    network = PromptNetwork(backbone, TaskHeads(backbone.hidden_size, ("click",)), pooling="mean", shared=True).eval()
    renderer = PromptRenderer(PromptSpec(max_tokens=128), split.dataset, TokenCounter.from_folder(folder))
    floor = PopularityRecommender(PopularitySpec())
    floor.fit(split, FitContext())

    def prompts() -> None:
        for start in range(0, len(held.queries), 640):
            asked = [(q, item) for q in held.queries[start : start + 640 : 20] for item in range(20)]
            tokens = tokenise(backbone, renderer.render_many(asked), shared=True)
            network.predict(tokens, ("click",))

    return {
        "training": lambda: model.fit(split, FitContext(device="cpu")),
        "scoring": lambda: model.top_k(held.queries, 100, held.exclude),
        "prompts": prompts,
        "evaluation": lambda: evaluate({"popularity": floor}, split, EvaluationSpec(max_users=None, ks=(10,))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    as_a_worker("benchmarks.scaling")
    torch.set_num_threads(1)
    model = fetch_model(Workspace.open(given.workspace), "minilm")
    seconds: dict[str, dict[float, list[float]]] = {}
    for _ in range(given.repeats):
        for size in (1 / 16, *SIZES):
            for name, task in tasks(model, int(size * given.users)).items():
                started = time.process_time()
                task()
                seconds.setdefault(name, {}).setdefault(size, []).append(time.process_time() - started)
            print(size, {name: round(found[size][-1], 2) for name, found in seconds.items()}, flush=True)
    result: dict[str, Any] = {"users": given.users, "repeats": given.repeats, "target_deviation": 0.15, "tasks": {}}
    for name, found in seconds.items():
        median = {size: statistics.median(values) for size, values in found.items()}
        a_user = {size: (median[size] - median[1 / 16]) / (size - 1 / 16) for size in SIZES}
        mean = statistics.mean(a_user.values())
        result["tasks"][name] = {
            "cpu_seconds": {f"{size}x": round(median[size], 3) for size in SIZES},
            "start_s": round(median[1 / 16] - mean / 16, 3),
            "deviation": {f"{size}x": round(cost / mean - 1, 3) for size, cost in a_user.items()},
        }
    result["machine"] = machine()
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
