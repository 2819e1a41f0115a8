"""An int8 child of a tuned MiniLM cross-encoder beside its parent: size, NDCG, speed.

``python -m benchmarks.compression --workspace DIR --run RUN --child RUN [--users 60] [--candidates 50]``

Both runs are finished (``llmrec train``, ``llmrec compress RUN --method int8``). Quality is their own results: the same
test users, protocol and floors. Speed is measured here: parent in float32, parent in bfloat16 and child score the same
prompts, made before the clock starts, one after the other in alternating order, five times; medians of ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmrec_core.contracts import FitContext
from llmrec_core.data import DatasetStore, make_split
from llmrec_core.models.device import device_facts
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.reworked import network_of, reader_of
from llmrec_core.runs import RunStore
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import tokenise
from llmrec_core.training.validation import main_task
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "compression.json"


def in_bfloat16(network: PromptNetwork) -> PromptNetwork:
    """The same network with weights in bfloat16; heads stay in float32."""
    backbone = replace(network.backbone, model=copy.deepcopy(network.encoder).to(torch.bfloat16))
    heads = copy.deepcopy(network.heads)
    return PromptNetwork(
        backbone, heads, pooling=network.pooling, shared=network.shared, mask_id=network.mask_id
    ).eval()


def measure(workspace: Workspace, run_id: str, child_id: str, n_users: int, n_candidates: int) -> dict[str, Any]:
    store = RunStore(workspace)
    spec = store.get(run_id).spec
    dataset = DatasetStore(workspace).load(spec.dataset.name, spec.dataset.version)
    split = make_split(dataset, spec.split)
    ctx = FitContext(workspace_models=workspace.models, device="cpu", seed=0)
    parent, child = (
        reader_of(registry.load(store.get(name).folder / "artifacts" / "recommender", dataset, ctx))
        for name in (run_id, child_id)
    )
    held_out = split.queries("valid", max_users=n_users, seed=0)
    pairs = [(query, item) for query in held_out.queries for item in range(n_candidates)]
    prompts = parent.renderer.render_many(pairs)
    networks = {
        "parent, float32": network_of(parent),
        "parent, bfloat16": in_bfloat16(network_of(parent)),
        "child, int8": network_of(child),
    }
    tokens = tokenise(network_of(parent).backbone, prompts, shared=network_of(parent).shared)
    task = main_task(parent.tasks)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        network.predict(tokens, (task,))
    for number in range(5):
        for name in networks if number % 2 else reversed(networks):
            start = time.perf_counter()
            networks[name].predict(tokens, (task,))
            seconds[name].append(time.perf_counter() - start)
    child_s = seconds["child, int8"]
    result = store.result(child_id)["compression"]
    size = {"parent": result["parent"]["size_bytes"], "child": result["child"]["size_bytes"]}
    return {
        "machine": {"processor": platform.processor(), "threads": torch.get_num_threads(), "cores": os.cpu_count()},
        "device": device_facts().name,
        "prompts": len(prompts),
        "prompts_per_s": {name: len(prompts) / statistics.median(found) for name, found in seconds.items()},
        "child_over_parent_float32": statistics.median(
            p / c for p, c in zip(seconds["parent, float32"], child_s, strict=True)
        ),
        "child_over_parent_bfloat16": statistics.median(
            p / c for p, c in zip(seconds["parent, bfloat16"], child_s, strict=True)
        ),
        "size_bytes": size,
        "size_share": size["child"] / size["parent"],
        "memory_bytes": {side: result[side]["memory_bytes"] for side in ("parent", "child")},
        "metric": result["metric"],
        "value": {"parent": result["parent_value"], "child": result["value"]},
        "difference": result["difference"],
        "protocol": store.result(child_id)["protocol"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--child", required=True)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    found = measure(Workspace.open(given.workspace), given.run, given.child, given.users, given.candidates)
    given.out.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2, default=str))


if __name__ == "__main__":
    main()
