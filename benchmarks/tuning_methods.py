"""Ways of tuning MiniLM on real prompts: samples a second, bytes of optimizer and gradients, and AUC on validation.

Each way takes the very step that ``llmrec train`` takes: same prompts in the same batches, clipping, optimizer. Windows
of four steps, after one that is not counted, go round all ways, so that other load on the machine meets each; ratios
are to full tuning in its round.
Bytes are counted over the tensors themselves after a step. AUC is that of validation rows after one pass over the same
training prompts with the same settings (``--part quality``; nothing is timed there).

``--part frozen`` runs whole trainings of the top layers, with their validations, in turn with states of the frozen
layers kept and without memory for them, in CPU seconds of one thread, which other load on the machine changes least.
The line below trains on fewer prompts than a run does, and watches fewer more often: as many validation prompts for
each training prompt as the defaults ask for.

    python -m benchmarks.tuning_methods --workspace DIR --part speed
    python -m benchmarks.tuning_methods --workspace DIR --part quality [--methods full,lora]
    python -m benchmarks.tuning_methods --workspace DIR --part frozen --samples 256 --held-out 52 --epochs 3

All write into ``benchmarks/results/tuning_methods.json`` and print the table of ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks._machine import as_a_worker, machine
from benchmarks.training_speed import Samples
from llmrec_core.contracts import FitContext
from llmrec_core.data import DatasetStore, make_split
from llmrec_core.evaluation.metrics import auc
from llmrec_core.models.catalogue import fetch_model
from llmrec_core.models.device import resolve_precision
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.tuning import apply_tuning, parameter_counts
from llmrec_core.models.tuning_adalora import rank_schedule
from llmrec_core.models.tuning_lora import frozen_laid_out
from llmrec_core.presets import preset_spec
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.specs import RunSpec, TuningSpec
from llmrec_core.training import frozen as frozen_module
from llmrec_core.training.batches import BatchPlan, sized
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import weighted_loss
from llmrec_core.training.optimizer import make_optimizer
from llmrec_core.training.packing import tokenise
from llmrec_core.training.samples import training_lists, validation_lists
from llmrec_core.training.trainer import train
from llmrec_core.training.unpadded import without_padding
from llmrec_core.training.validation import Validation
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "tuning_methods.json"
WINDOW_STEPS = 4
WAYS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "top-layers": {"method": "top-layers"},
    "lora": {"method": "lora"},
    "lora-attention": {"method": "lora", "lora_targets": "attention"},
    "adalora": {"method": "adalora"},
    "ia3": {"method": "ia3"},
    "prefix": {"method": "prefix"},
    "prompt": {"method": "prompt"},
    "bottleneck": {"method": "bottleneck"},
}


class Bench:
    """Prompts, and a fresh network for each way."""

    def __init__(self, workspace: Workspace, dataset: str, n_samples: int, n_held_out: int) -> None:
        self.folder = fetch_model(workspace, "minilm")
        data = DatasetStore(workspace).load(dataset)
        changes = {"training.max_samples": n_samples, "training.validation_samples": n_held_out}
        self.run: RunSpec = preset_spec("bert-click", dataset, changes)
        split = make_split(data, self.run.split)
        renderer = PromptRenderer(self.run.prompt, data, TokenCounter.from_folder(self.folder))
        lists, held = training_lists(split, self.run, 0), validation_lists(split, self.run, 0)
        self.samples = Samples(lists, renderer.render_many(lists.pairs()))
        self.held = Samples(held, renderer.render_many(held.pairs()))
        backbone = self.network("full").backbone
        self.tokens = tokenise(backbone, self.samples.prompts, shared=True)
        self.held_tokens = tokenise(backbone, self.held.prompts, shared=True)
        self.plan = BatchPlan(lists, self.tokens, sized(self.run, self.network("full")), 0, backbone.pad_id)

    def network(self, way: str) -> PromptNetwork:
        dtype = resolve_precision(self.run.training.precision, torch.device("cpu")).dtype
        backbone = load_backbone(self.folder, dtype=dtype, dropout=self.run.training.dropout)
        apply_tuning(backbone.model, TuningSpec(**WAYS[way]))
        heads = TaskHeads(backbone.hidden_size, ("click",))
        return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=True)

    def steps(self, network: PromptNetwork, bytes_of: dict[str, int]) -> Iterator[int]:
        """Training steps without end, handing out their number of samples; fills in the bytes after the first."""
        optimizer = make_optimizer(network, self.run.training)
        ranks = rank_schedule(network.encoder, 10_000)
        network.train()
        trained = [p for p in network.parameters() if p.requires_grad]
        step = 0
        with frozen_laid_out(network.encoder):
            while True:
                batch = self.plan[step % len(self.plan)]
                step += 1
                with without_padding(network, whole_rows=False):
                    weighted_loss(network(batch.packed), batch.labels, {"click": 1.0}).backward()
                if ranks is not None:
                    ranks.penalty().backward()
                optimizer.clip(self.run.training.max_grad_norm)
                optimizer.step()
                if ranks is not None:
                    ranks.after_step(step)
                if not bytes_of:
                    moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
                    masters = [m for p, m in optimizer.pairs if m is not p]
                    bytes_of["gradients"] = _bytes(p.grad for p in trained if p.grad is not None)
                    bytes_of["optimizer"] = _bytes(moments) + _bytes(masters)
                optimizer.zero_grad()
                yield batch.n_prompts

    def speed(self, n_windows: int) -> dict[str, dict[str, Any]]:
        networks = {way: self.network(way) for way in WAYS}
        counted: dict[str, dict[str, int]] = {way: {} for way in WAYS}
        loops = {way: self.steps(network, counted[way]) for way, network in networks.items()}
        for loop in loops.values():
            next(loop)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(n_windows):
            for way, loop in loops.items():
                # The first one after another way had the caches is slow.
                next(loop)
                started = time.perf_counter()
                done = sum(next(loop) for _ in range(WINDOW_STEPS))
                rates[way].append(done / (time.perf_counter() - started))
        full = sum(counted["full"].values())
        found = {}
        for way in WAYS:
            ratios = [own / base for own, base in zip(rates[way], rates["full"], strict=True)]
            found[way] = {
                "trained_weights": parameter_counts(networks[way].encoder).trainable,
                "samples_per_s": round(statistics.median(rates[way]), 1),
                "ratio_to_full": round(statistics.median(ratios), 3),
                "ratio_of_each_window": [round(ratio, 3) for ratio in ratios],
                "gradient_bytes": counted[way]["gradients"],
                "optimizer_bytes": counted[way]["optimizer"],
                "share_of_full_bytes": round(sum(counted[way].values()) / full, 4),
            }
        return found

    def quality(self, way: str) -> float:
        network = self.network(way)
        train(network, self.plan, None, {"click": 1.0}, self.run.training, FitContext(seed=0))
        return round(float(auc(self.held.labels, network.predict(self.held_tokens, ("click",))["click"])), 4)


def frozen(bench: Bench, n_rounds: int, epochs: float, every: int) -> dict[str, Any]:
    """Whole trainings of the top layers with kept states and without, and what both gave."""
    changes = {"epochs": epochs, "validation_every": every, "early_stopping_patience": 0}
    spec = bench.run.training.model_copy(update=changes)
    any_one = bench.network("top-layers")
    sized_spec = sized(bench.run.model_copy(update={"training": spec}), any_one)
    plan = BatchPlan(bench.samples.lists, bench.tokens, sized_spec, 0, any_one.backbone.pad_id)
    validation = Validation("auc", bench.held.lists, bench.held_tokens, {"click": 1.0})
    seconds: dict[str, list[float]] = {"kept": [], "computed again": []}
    losses: dict[str, list[float]] = {}
    measured: dict[str, list[dict[str, float]]] = {}
    told: list[str] = []
    for number in range(n_rounds):
        for side in seconds if number % 2 else reversed(seconds):
            network, found = bench.network("top-layers"), measured.setdefault(side, [])
            found.clear()

            def hear(kind: str, found: list[dict[str, float]] = found, **payload: Any) -> None:
                if kind == "validation":
                    found.append(payload["metrics"])
                elif kind == "log":
                    told.append(payload["message"])

            nothing = patch.object(frozen_module, "keepable_memory", lambda _: 0)
            with nullcontext() if side == "kept" else nothing:
                started = time.process_time()
                outcome = train(network, plan, validation, {"click": 1.0}, spec, FitContext(seed=0, emit=hear))
                seconds[side].append(time.process_time() - started)
            losses[side] = outcome.losses
        print(f"round {number + 1}: " + ", ".join(f"{n} {s[-1]:.1f} s" for n, s in seconds.items()), flush=True)
    ratios = [again / kept for kept, again in zip(seconds["kept"], seconds["computed again"], strict=True)]
    apart = zip(losses["kept"], losses["computed again"], strict=True)
    return {
        "machine": machine(precision=True),
        "n_training_samples": len(bench.samples.prompts),
        "n_validation_samples": len(bench.held.prompts),
        "n_validations": len(measured["kept"]),
        "cpu_seconds": {name: round(statistics.median(found), 2) for name, found in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_each_round": [round(ratio, 3) for ratio in ratios],
        "largest_difference_of_losses": max(abs(one - other) for one, other in apart),
        "last_validation": {name: found[-1] for name, found in measured.items()},
        "log": sorted({line for line in told if "frozen" in line}),
    }


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def table(result: dict[str, Any]) -> str:
    rows = [
        "| way | trained weights | samples/s | to full | optimizer and gradients | validation AUC |",
        "|---|---|---|---|---|---|",
    ]
    for way, found in result["ways"].items():
        n_bytes = (found.get("gradient_bytes", 0) + found.get("optimizer_bytes", 0)) / 1e6
        share = f"{100 * found.get('share_of_full_bytes', 0):.1f} %"
        rows.append(
            f"| {way} | {found.get('trained_weights', 0):,} | {found.get('samples_per_s')} | "
            f"{found.get('ratio_to_full')} | {n_bytes:.1f} MB ({share}) | {found.get('validation_auc', '')} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--part", choices=["speed", "quality", "frozen"], required=True)
    parser.add_argument("--methods", default=",".join(WAYS))
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3.0, help="of --part frozen")
    parser.add_argument("--every", type=int, default=5, help="steps between two validations of --part frozen")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    as_a_worker("benchmarks.tuning_methods")
    bench = Bench(Workspace.open(given.workspace), given.dataset, given.samples, given.held_out)
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"ways": {}}
    result |= {
        "what": "one training step of each way of tuning, windows in turn; validation AUC after one pass",
        "model": "minilm",
        "dataset": given.dataset,
        "batch_size": bench.plan.batch_size,
        "learning_rate": bench.run.training.learning_rate,
    }
    if given.part != "frozen":
        # Whole trainings are counted on one thread, and tell so themselves.
        result["machine"] = machine(precision=True)
    if given.part == "speed":
        for way, found in bench.speed(given.windows).items():
            result["ways"].setdefault(way, {}).update(found)
    elif given.part == "frozen":
        torch.set_num_threads(1)
        found = frozen(bench, given.windows, given.epochs, given.every)
        result.setdefault("frozen_layers", {})[f"{given.epochs:g} epochs"] = found
        print(json.dumps(found, indent=2))
    else:
        result |= {"n_training_samples": len(bench.samples.prompts), "n_validation_samples": len(bench.held.prompts)}
        for way in given.methods.split(","):
            result["ways"].setdefault(way, {})["validation_auc"] = bench.quality(way)
            print(way, result["ways"][way]["validation_auc"], flush=True)
            given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
