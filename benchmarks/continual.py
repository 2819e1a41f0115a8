"""Going on with newer data: what is forgotten of MovieLens-100K without replay, and with it.

    python -m benchmarks.continual --workspace WORKSPACE [--replay 0 0.3] [--samples 1200] [--users 60]
    python -m benchmarks.continual --workspace WORKSPACE --family sequential|two-tower [--replay 0 0.3] [--epochs 30]

WORKSPACE holds the dataset ml-100k and the model minilm. Two versions of a dataset of its own are made there: the first
80 % of the ratings by time, and all of them. A first model learns from version 1; then one for each share of replay
goes on with version 2. Old questions are the test rows of the first one, new ones those of version 2; all models answer
the same ones.

cross-encoder: runs as a person would start them, each version's last 10 % by time held out for the test and as many
before for validation; results go to ``benchmarks/results/continual.json``.

sequential, two-tower: 5 % and 5 %, so that half of what came since is there to learn from; beside them a model that
begins anew with all that the others were shown, under the same settings. CPU seconds are those of the fit, reading
texts and validating included. Results go to ``benchmarks/results/continual_sequential.json`` and
``continual_two_tower.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import machine
from llmrec_core.contracts import Continued, FitContext
from llmrec_core.data import Dataset, DatasetStore, Split, continue_split, make_split
from llmrec_core.evaluation.continual import CarriedRecommender, compare_parts
from llmrec_core.presets import preset_spec
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.runs import RunStore, run_foreground
from llmrec_core.specs import EvaluationSpec, SequentialSpec, SplitSpec, TwoTowerSpec, parse_run_spec
from llmrec_core.workspace import Workspace

RESULTS = Path(__file__).parent / "results"
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


def cross_encoder(workspace: Workspace, asked: argparse.Namespace) -> None:
    sizes = (asked.samples, asked.users, asked.seed)
    first, found, seconds = run(workspace, spec_of(1, *sizes))
    document: dict[str, Any] = {
        "protocol": found["protocol"],
        "samples": asked.samples,
        "users": asked.users,
        "seed": asked.seed,
        "machine": machine(),
        "first": {"seconds": round(seconds, 1), "metrics": found["metrics"]},
        "continued": [],
    }
    for replay in asked.replay:
        more = {"continue_from": first, "continual": {"replay": replay}}
        _, found, seconds = run(workspace, spec_of(2, *sizes, **more))
        report = found["continual"]
        del report["first_run"]
        document["continued"].append({"replay": replay, "seconds": round(seconds, 1), **report})
        write("continual.json", document)
        print(f"replay {replay:g}: {report['sentence']}", flush=True)


#: Families that learn from histories: their recommenders and specs.
OVER_HISTORIES: dict[str, tuple[Any, Any]] = {
    "sequential": (SequentialRecommender, SequentialSpec),
    "two-tower": (TwoTowerRecommender, TwoTowerSpec),
}


def over_histories(workspace: Workspace, asked: argparse.Namespace) -> None:
    recommender, spec_class = OVER_HISTORIES[asked.family]
    older, newer = (DatasetStore(workspace).load(NAME, version) for version in (1, 2))
    split_spec = SplitSpec(protocol="temporal", valid_fraction=0.05, test_fraction=0.05)
    preset = preset_spec(asked.family, newer.name, {}).recommender
    assert isinstance(preset, spec_class)
    spec = preset.model_copy(update={"epochs": asked.epochs, "patience": 5})
    evaluation = EvaluationSpec(max_users=None, click_negatives=0)
    context = FitContext(workspace_models=workspace.models, device="cpu", seed=asked.seed)

    def fitted(split: Split, ctx: FitContext) -> tuple[Any, dict[str, Any]]:
        model, before = recommender(spec), time.process_time()
        model.fit(split, ctx)
        seconds = time.process_time() - before
        assert model.outcome is not None
        return model, {
            "cpu_seconds": round(seconds, 1), "epochs": model.outcome.rounds, "kept_epoch": model.outcome.best_round
        }  # fmt: skip

    split = make_split(older, split_spec)
    first, cost = fitted(split, context)
    cut = continue_split(make_split(newer, split_spec), split, split.train)
    n_old = int(np.isin(cut.split.train, cut.trained).sum())
    document: dict[str, Any] = {
        "protocol": cut.split.describe(),
        "spec": spec.model_dump(mode="json"),
        "seed": asked.seed,
        "machine": machine(),
        "rows": {"trained_first": len(split.train), "old": n_old, "new": len(cut.split.train) - n_old},
        "first": cost,
        "later": [],
    }
    before = CarriedRecommender(first, older, newer)
    with tempfile.TemporaryDirectory() as folder:
        first.save(Path(folder))
        contexts: list[tuple[str, FitContext]] = [
            (
                f"replay {replay:g}",
                replace(context, start_from=Path(folder), continued=Continued(older, cut.trained, replay)),
            )
            for replay in asked.replay
        ]
        for name, ctx in [*contexts, ("anew on everything", context)]:
            model, cost = fitted(cut.split, ctx)
            report = compare_parts(before, model, {"old": cut.old, "new": cut.new}, evaluation, seed=asked.seed)
            document["later"].append({"name": name, **cost, **report})
            write(f"continual_{asked.family.replace('-', '_')}.json", document)
            print(f"{name}: {cost} {report['sentence']}", flush=True)


def write(name: str, document: dict[str, Any]) -> None:
    (RESULTS / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--family", choices=("cross-encoder", *OVER_HISTORIES), default="cross-encoder")
    parser.add_argument("--replay", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--samples", type=int, default=1200)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    workspace = Workspace.open(asked.workspace)
    if not DatasetStore(workspace).versions(NAME):
        make_versions(workspace)
    (over_histories if asked.family in OVER_HISTORIES else cross_encoder)(workspace, asked)


if __name__ == "__main__":
    main()
