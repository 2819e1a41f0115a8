"""Going on with newer data: what MiniLM forgets of MovieLens-100K without replay, and with it.

    python benchmarks/continual.py --workspace WORKSPACE [--replay 0 0.3] [--samples 1200] [--users 60]

WORKSPACE holds the dataset ml-100k and the model minilm. Two versions of a dataset of its own are made there: the first
80 % of the ratings by time, and all of them. A first run learns from version 1; then one run for each share of replay
goes on with version 2. Old questions are the test rows of the first run, new ones those of version 2 (each the last
10 % by time); both models answer the same ones. Results go to ``benchmarks/results/continual.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.runs import RunStore, run_foreground
from llmrec_core.specs import parse_run_spec
from llmrec_core.workspace import Workspace

OUT = Path(__file__).parent / "results" / "continual.json"
NAME = "ml-100k-by-time"


def make_versions(workspace: Workspace) -> None:
    """Version 1: the first 80 % of the ratings by time, with the items and users that are in them; version 2: all."""
    store = DatasetStore(workspace)
    whole = store.load("ml-100k")
    table = whole.interactions
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    columns = [c for c in ("user_id", "item_id", "rating", "timestamp") if c in table]
    for share in (0.8, 1.0):
        rows = np.sort(order[: round(share * len(table))])
        frame = table.iloc[rows][columns].reset_index(drop=True).astype({"user_id": str, "item_id": str})
        items = whole.items[whole.items["item_id"].astype(str).isin(set(frame["item_id"]))].reset_index(drop=True)
        store.save(Dataset.from_frames(NAME, frame, items))


def spec_of(version: int, samples: int, users: int, seed: int, **more: Any) -> Any:
    return parse_run_spec(
        {
            "dataset": {"name": NAME, "version": version},
            "split": {"protocol": "temporal", "valid_fraction": 0.1, "test_fraction": 0.1},
            "recommender": {
                "family": "pipeline",
                "retriever": {"family": "item-knn"},
                "ranker": {"family": "cross-encoder", "model": "minilm"},
                "n_candidates": 20,
                "model_weight": 1.0,
                "fusion_users": 10,
            },
            "training": {
                "max_samples": samples,
                "negatives_per_positive": 3,
                "validation_every": 20,
                "validation_samples": 128,
                "early_stopping_patience": 0,
            },
            "evaluation": {"max_users": users, "click_negatives": 0, "primary_metric": "auc"},
            "baselines": [{"family": "popularity"}],
            "device": "cpu",
            "seed": seed,
            **more,
        }
    )


def run(workspace: Workspace, spec: Any) -> tuple[str, dict[str, Any], float]:
    store, started = RunStore(workspace), time.monotonic()
    run_id = store.submit(spec)
    status = run_foreground(workspace, run_id, lambda event: None)
    if status.state != "done":
        raise SystemExit(f"{run_id} is {status.state}: {status.error}")
    return run_id, store.result(run_id), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--replay", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--samples", type=int, default=1200)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    workspace = Workspace.open(asked.workspace)
    if not DatasetStore(workspace).versions(NAME):
        make_versions(workspace)
    sizes = (asked.samples, asked.users, asked.seed)
    first, found, seconds = run(workspace, spec_of(1, *sizes))
    document: dict[str, Any] = {
        "protocol": found["protocol"],
        "samples": asked.samples,
        "users": asked.users,
        "seed": asked.seed,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "first": {"seconds": round(seconds, 1), "metrics": found["metrics"]},
        "continued": [],
    }
    for replay in asked.replay:
        more = {"continue_from": first, "continual": {"replay": replay}}
        _, found, seconds = run(workspace, spec_of(2, *sizes, **more))
        report = found["continual"]
        del report["first_run"]
        document["continued"].append({"replay": replay, "seconds": round(seconds, 1), **report})
        OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"replay {replay:g}: {report['sentence']}", flush=True)


if __name__ == "__main__":
    main()
