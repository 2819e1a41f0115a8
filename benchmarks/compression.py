"""Children of a tuned MiniLM cross-encoder beside their parent: size, speed, order, quality.

``python -m benchmarks.compression --workspace DIR --run RUN [--users 12] [--candidates 32]``

The run is finished (``llmrec train``), and so are its children (``llmrec compress RUN --method ...``). Quality is their
own results: the same test users, protocol and floors, differences paired over users. Speed is measured here: parent in
float32, parent in bfloat16 (whichever it was saved in) and every child that reads prompts score the same prompts, made
before the clock starts, one after the other in alternating order, five times; medians of ratios. Seconds are of this
process on the processor, so that others on the machine count less. Order and "alone" are as in
``llmrec_core.compression.measure``, measured anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import machine
from llmrec_core.compression.measure import rank_correlation
from llmrec_core.contracts import FitContext
from llmrec_core.data import DatasetStore, make_split
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.pipeline import ranker_of
from llmrec_core.recommenders.reworked import network_of, reader_of, validation_of
from llmrec_core.runs import RunStore
from llmrec_core.runs.children import family_rows
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import TokenisedPrompts, tokenise
from llmrec_core.training.validation import main_task
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "compression.json"
#: The parent in both; a run keeps its weights in the one that its machine computes faster.
_FLOAT32, _BFLOAT16 = "parent, float32", "parent, bfloat16"


def in_precision(network: PromptNetwork, dtype: torch.dtype) -> PromptNetwork:
    """The same network with weights in ``dtype``; heads stay in float32."""
    backbone = replace(network.backbone, model=copy.deepcopy(network.encoder).to(dtype))
    heads = copy.deepcopy(network.heads)
    return PromptNetwork(
        backbone, heads, pooling=network.pooling, shared=network.shared, mask_id=network.mask_id
    ).eval()


def measure(workspace: Workspace, run_id: str, n_users: int, n_candidates: int) -> dict[str, Any]:
    store = RunStore(workspace)
    spec = store.get(run_id).spec
    dataset = DatasetStore(workspace).load(spec.dataset.name, spec.dataset.version)
    split = make_split(dataset, spec.split)
    ctx = FitContext(workspace_models=workspace.models, device="cpu", seed=0)
    rows = family_rows(store, run_id)
    loaded = {
        row["run_id"]: registry.load(store.get(row["run_id"]).folder / "artifacts" / "recommender", dataset, ctx)
        for row in rows
    }
    parent = reader_of(loaded[run_id])
    held_out = split.queries("valid", max_users=n_users, seed=0)
    rng = np.random.default_rng(11)
    items = np.stack([rng.permutation(dataset.n_items)[:n_candidates] for _ in held_out.queries]).astype(np.int64)
    pairs = [(q, item) for q, row in zip(held_out.queries, items.tolist(), strict=True) for item in row]
    shared = network_of(parent).shared
    tokens = tokenise(network_of(parent).backbone, parent.renderer.render_many(pairs), shared=shared)
    networks: dict[str, Any] = {
        _FLOAT32: in_precision(network_of(parent), torch.float32),
        _BFLOAT16: in_precision(network_of(parent), torch.bfloat16),
    }
    for row in rows[1:]:
        part = ranker_of(loaded[row["run_id"]])
        if isinstance(part, CrossEncoderRecommender):
            networks[row["run_id"]] = part._network
    seconds = _alternating(networks, tokens, main_task(parent.tasks))
    validation = validation_of(loaded[run_id], split, ctx)
    right = parent.score(held_out.queries, items)

    def model_bytes(run: str) -> int:
        """Of what reads prompts, without the retriever before it."""
        whole = store.get(run).folder / "artifacts" / "recommender"
        reader = whole / "ranker"
        files = (reader if reader.is_dir() else whole).rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def told(row: dict[str, Any]) -> dict[str, Any]:
        part = ranker_of(loaded[row["run_id"]])
        own = seconds.get(row["run_id"])
        found = part.score(held_out.queries, items)
        return {
            "method": row["method"],
            "settings": row["settings"],
            "size_bytes": row["size_bytes"],
            "size_share": row["size_share"],
            "model_bytes": model_bytes(row["run_id"]),
            "model_share": model_bytes(row["run_id"]) / model_bytes(run_id),
            "memory_bytes": row["memory_bytes"],
            "prompts_per_s": None if own is None else len(tokens) / statistics.median(own),
            "over_parent_float32": _ratio(seconds[_FLOAT32], own),
            "over_parent_bfloat16": _ratio(seconds[_BFLOAT16], own),
            "whole_run_over_parent": row["speed_ratio"],
            "largest_difference_of_scores": float(np.abs(found - right).max()),
            "rank_correlation": rank_correlation(right, found),
            "alone": validation.measure_floor(part).get(validation.metric),
            "value": row["value"],
            "difference": row["difference"],
        }

    return {
        "machine": machine(),
        "prompts": len(tokens),
        "users": len(held_out.queries),
        "prompts_per_s": {name: len(tokens) / statistics.median(seconds[name]) for name in (_FLOAT32, _BFLOAT16)},
        "parent_weights": str(network_of(parent).encoder.dtype).removeprefix("torch."),
        "spread_of_scores": float(right.std()),
        "metric": rows[0]["metric"],
        "metric_alone": validation.metric,
        "parent": {
            "size_bytes": rows[0]["size_bytes"],
            "model_bytes": model_bytes(run_id),
            "memory_bytes": rows[0]["memory_bytes"],
            "value": rows[0]["value"],
            "alone": validation.measure_floor(parent).get(validation.metric),
        },
        "children": {row["run_id"]: told(row) for row in rows[1:]},
        "protocol": store.result(run_id)["protocol"],
    }


def _alternating(networks: dict[str, Any], tokens: TokenisedPrompts, task: str) -> dict[str, list[float]]:
    """Seconds of each on the processor, five rounds, every second one backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        network.predict(tokens, (task,))
    for number in range(5):
        for name in networks if number % 2 else reversed(networks):
            start = time.process_time()
            networks[name].predict(tokens, (task,))
            seconds[name].append(time.process_time() - start)
    return seconds


def _ratio(theirs: list[float], own: list[float] | None) -> float | None:
    return None if own is None else statistics.median(p / c for p, c in zip(theirs, own, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    found = measure(Workspace.open(given.workspace), given.run, given.users, given.candidates)
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
