"""Training samples per second: our path against the textbook recipe, on the same prompts, in one run.

Textbook: every prompt alone, padded to 128 tokens, float32, batches of 16, default (sdpa) attention, all weights
trained including embeddings, plain AdamW, dropout 0.1. Ours: what ``llmrec train`` does. Windows of a few steps
alternate between the two, so that other load on the machine meets both; the ratio is the median of the windows' ratios.
Afterwards both are trained on the same number of samples and compared by AUC on held-out prompts.

    python -m benchmarks.training_speed --workspace DIR [--seeds 3:7] [--scores FOLDER] [--only speed]

With ``--scores`` the held-out scores of each finished training are kept there, under a hash of all that made them, so
that an interrupted comparison goes on where it stopped. It writes ``benchmarks/results/training_speed.json`` and prints
the table of ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._machine import as_a_worker, machine
from llmrec_core.contracts import FitContext, RenderedPrompt
from llmrec_core.data import Dataset, DatasetStore, make_split
from llmrec_core.evaluation.metrics import auc
from llmrec_core.models.catalogue import fetch_model
from llmrec_core.models.device import (
    device_facts,
    matmul_peaks,
    resolve_batch_size,
    resolve_device,
    resolve_precision,
)
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.tuning import apply_tuning
from llmrec_core.presets import preset_spec
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.specs import RunSpec
from llmrec_core.training.batches import BatchPlan, sized
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.objectives import weighted_loss
from llmrec_core.training.optimizer import make_optimizer
from llmrec_core.training.packing import tokenise
from llmrec_core.training.samples import SampleLists, training_lists, validation_lists
from llmrec_core.training.trainer import train
from llmrec_core.training.unpadded import without_padding
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "training_speed.json"
WIDTH, TEXTBOOK_BATCH = 128, 16
#: Steps of a window, after one that is not counted: the first one after the other side had the caches is slow.
WINDOW_STEPS = 9
Step = Callable[[], int]


@dataclass
class Samples:
    lists: SampleLists
    prompts: list[RenderedPrompt]

    @property
    def labels(self) -> np.ndarray:
        return self.lists.labels["click"]


class Textbook:
    """The recipe of most tutorials, written out."""

    def __init__(self, folder: Path, samples: Samples, n_steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.backbone = load_backbone(folder, dropout=0.1, attention="sdpa")
        self.head = nn.Linear(self.backbone.hidden_size, 1)
        self.head.weight.data.normal_(0, 0.02)
        self.head.bias.data.zero_()
        self.ids, self.mask = self._padded(samples.prompts)
        self.labels = torch.from_numpy(samples.labels)
        parameters = [*self.backbone.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / (0.06 * n_steps + 1), max(0.0, (n_steps - step) / n_steps))
        )
        self.order = np.random.default_rng(seed).permutation(len(samples.prompts))
        self.at = 0

    def _padded(self, prompts: list[RenderedPrompt]) -> tuple[Tensor, Tensor]:
        rows = self.backbone.encode([prompt.text for prompt in prompts])
        batch = self.backbone.pad(rows)
        missing = WIDTH - batch["input_ids"].shape[1]
        if missing < 0:
            raise SystemExit(f"a prompt has more than {WIDTH} tokens; lower prompt.max_tokens")
        ids = nn.functional.pad(batch["input_ids"], (0, missing), value=self.backbone.pad_id)
        return ids, nn.functional.pad(batch["attention_mask"], (0, missing))

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.backbone.pooled(ids, mask, "mean")).squeeze(-1)

    def step(self) -> int:
        if self.at >= len(self.order):
            self.at = 0
        chosen = torch.from_numpy(self.order[self.at : self.at + TEXTBOOK_BATCH])
        self.at += TEXTBOOK_BATCH
        self.backbone.model.train()
        loss = nn.functional.binary_cross_entropy_with_logits(
            self.logits(self.ids[chosen], self.mask[chosen]), self.labels[chosen]
        )
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return len(chosen)

    @torch.inference_mode()
    def score(self, prompts: list[RenderedPrompt]) -> np.ndarray:
        self.backbone.model.eval()
        ids, mask = self._padded(prompts)
        return torch.cat([self.logits(i, m) for i, m in zip(ids.split(32), mask.split(32), strict=True)]).numpy()


def our_network(folder: Path, run: RunSpec, seed: int = 0) -> PromptNetwork:
    choice = resolve_precision(run.training.precision, torch.device("cpu"))
    backbone = load_backbone(folder, dtype=choice.dtype, dropout=run.training.dropout)
    apply_tuning(backbone.model, run.recommender.ranker.tuning, seed=seed)  # type: ignore[union-attr]
    heads = TaskHeads(backbone.hidden_size, ("click",), seed=seed)
    return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=True)


def our_windows(network: PromptNetwork, plan: BatchPlan, run: RunSpec) -> Iterator[int]:
    """Our training step, handing out its number of samples each time.

    Batches, network, loss, clipping and optimizer are those of ``train``; in a run, events and validations come on
    top of it.
    """
    optimizer = make_optimizer(network, run.training)
    network.train()
    position = 0
    with without_padding(network, whole_rows=False):
        while True:
            batch = plan[position % len(plan)]
            weighted_loss(network(batch.packed), batch.labels, {"click": 1.0}).backward()
            optimizer.clip(run.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            position += 1
            yield batch.n_prompts


@dataclass
class Window:
    """Some steps, one after the other."""

    n_samples: int
    n_steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.n_samples / self.seconds


def timed(step: Step, at_least: int) -> Window:
    """Steps that cover at least so many samples, after one that is not counted."""
    step()
    started, n_samples, n_steps = time.perf_counter(), 0, 0
    while n_samples < at_least:
        n_samples += step()
        n_steps += 1
    return Window(n_samples, n_steps, time.perf_counter() - started)


def encoder_operations(network: PromptNetwork, plan: BatchPlan) -> np.ndarray:
    """Floating point operations of the encoder's matrix products in a training step on each batch, [n_batches].

    What is asked of real tokens: keys and values of all; in the last layer the rest for pooled tokens alone. Backwards
    twice as much: the embeddings are frozen, but their norm is trained, so that the first layer too hands its gradient
    on. Attention counts every pair of tokens of a row.
    """
    config = network.encoder.config
    size, n_layers = config.hidden_size, config.num_hidden_layers
    read, asked = 2 * size * size, 2 * size * (size + config.intermediate_size)
    found = []
    for position in range(len(plan)):
        packed = plan[position].packed
        lengths = (packed.segment >= 0).sum(1).double()
        pooled = (network.pooling_weights(packed) > 0).any(1).sum(1).double()
        n_tokens, n_pooled = float(lengths.sum()), float(pooled.sum())
        forward = 2 * (n_tokens * n_layers * read + ((n_layers - 1) * n_tokens + n_pooled) * asked)
        pairs = 4 * size * float(((n_layers - 1) * lengths**2 + pooled * lengths).sum())
        found.append(3 * (forward + pairs))
    return np.array(found)


class Kept:
    """Held-out scores and training seconds of finished trainings, by a hash of everything that made them."""

    def __init__(self, folder: Path | None, facts: dict[str, object]) -> None:
        self.folder, self.facts = folder, facts

    def get(self, side: str, recipe: object, seed: int, make: Callable[[], tuple[np.ndarray, float]]) -> np.ndarray:
        """``make()`` -> (scores, seconds), or what an earlier call with the same facts gave."""
        key = json.dumps([side, recipe, seed, self.facts], sort_keys=True, default=str)
        path = self.folder and self.folder / f"{side}-{seed}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        if path and path.exists():
            return np.asarray(np.load(path, allow_pickle=False)["scores"])
        scores, seconds = make()
        print(f"seed {seed}: {side} trained in {seconds:.0f} s", flush=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, scores=scores, seconds=seconds)
        return scores


def auc_difference(truth: np.ndarray, users: np.ndarray, found: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Mean over seeds of AUC(ours) - AUC(textbook), with a 95 % bootstrap interval over held-out users."""

    def mean_gap(rows: np.ndarray) -> float:
        gaps = [
            auc(truth[rows], ours[rows]) - auc(truth[rows], book[rows])
            for ours, book in zip(found["ours"], found["textbook"], strict=True)
        ]
        return float(np.mean(gaps))

    order = np.argsort(users, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    rng = np.random.default_rng(0)
    draws = [
        mean_gap(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))])) for _ in range(300)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    gap = mean_gap(np.arange(len(truth)))
    return {"mean": round(gap, 4), "ci_low": round(float(low), 4), "ci_high": round(float(high), 4)}


def _digest(*parts: Samples) -> str:
    """Of every prompt and label, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update("\0".join(prompt.text for prompt in part.prompts).encode())
        digest.update(np.nan_to_num(part.labels, nan=-1).tobytes())
    return digest.hexdigest()


@dataclass
class Prompts:
    """What both sides train on and are asked."""

    dataset: Dataset
    folder: Path
    run: RunSpec
    train: Samples
    held_out: Samples

    @classmethod
    def of(cls, dataset: Dataset, folder: Path, n_samples: int, n_held_out: int) -> Prompts:
        run = preset_spec("bert-click", dataset.name, {"training.max_samples": n_samples, "prompt.max_tokens": WIDTH})
        split = make_split(dataset, run.split)
        renderer = PromptRenderer(run.prompt, dataset, TokenCounter.from_folder(folder))
        watched = run.training.model_copy(update={"validation_samples": n_held_out})
        train, held = (
            training_lists(split, run, run.seed),
            validation_lists(split, run.model_copy(update={"training": watched}), run.seed),
        )
        return cls(dataset, folder, run, *(Samples(one, renderer.render_many(one.pairs())) for one in (train, held)))

    @property
    def n_steps(self) -> int:
        """Of the textbook recipe, for every training prompt once."""
        return -(-len(self.train.prompts) // TEXTBOOK_BATCH)

    def plan(self, network: PromptNetwork, seed: int) -> BatchPlan:
        tokens = tokenise(network.backbone, self.train.prompts, shared=True)
        return BatchPlan(self.train.lists, tokens, sized(self.run, network), seed, network.backbone.pad_id)


def speed(prompts: Prompts, n_windows: int) -> dict[str, object]:
    """Fresh models, windows in turn, the first of each thrown away; each is followed by the matrix peaks of then."""
    run = prompts.run
    network = our_network(prompts.folder, run)
    plan = prompts.plan(network, run.seed)
    textbook = Textbook(prompts.folder, prompts.train, prompts.n_steps, run.seed)
    loop = our_windows(network, plan, run)
    operations, n_taken = encoder_operations(network, plan), 0

    def ours_step() -> int:
        nonlocal n_taken
        n_taken += 1
        return next(loop)

    peaks, windows, speeds = [], [], []
    for number in range(n_windows + 1):
        pair = (
            timed(textbook.step, WINDOW_STEPS * TEXTBOOK_BATCH),
            timed(ours_step, WINDOW_STEPS * plan.batch_size),
        )
        if number:
            windows.append(pair)
            peaks.append(matmul_peaks(1.0))
            taken = np.arange(n_taken - pair[1].n_steps, n_taken) % len(plan)
            speeds.append(float(operations[taken].sum()) / pair[1].seconds / 1e9)
            print(
                f"window {number}: textbook {pair[0].rate:.1f}, ours {pair[1].rate:.1f} samples/s and "
                f"{speeds[-1]:.0f} of {peaks[-1].bf16_gflops:.0f} GFLOP/s in bf16",
                flush=True,
            )
    ratios = [ours.rate / book.rate for book, ours in windows]
    gflops = statistics.median(speeds)
    peak = {name: max(getattr(one, name) for one in peaks) for name in ("fp32_gflops", "bf16_gflops")}
    shares = [one / best.bf16_gflops for one, best in zip(speeds, peaks, strict=True)]
    return {
        "samples_per_s": {
            "textbook": round(statistics.median(book.rate for book, _ in windows), 2),
            "ours": round(statistics.median(ours.rate for _, ours in windows), 2),
        },
        "ratio": round(statistics.median(ratios), 2),
        "ratio_of_each_window": [round(ratio, 2) for ratio in ratios],
        "target_ratio": 6.0,
        "encoder_gflops": round(gflops, 1),
        "matmul_peaks": {name: round(value, 1) for name, value in peak.items()},
        "share_of_peak": {name.partition("_")[0]: round(gflops / value, 3) for name, value in peak.items()},
        "share_of_bf16_peak_in_each_window": [round(share, 3) for share in shares],
        "median_share_of_bf16_peak": round(statistics.median(shares), 3),
        "target_share_of_bf16_peak": 0.55,
    }


def quality(prompts: Prompts, seeds: range, scores: Path | None, batch_size: int) -> dict[str, object]:
    """Both from the pretrained weights, the same samples once, several seeds; AUC by held-out user resamples."""
    run, held = prompts.run, prompts.held_out
    truth, users = held.labels, held.lists.users[held.lists.list_of]

    def train_textbook(seed: int) -> tuple[np.ndarray, float]:
        textbook, started = Textbook(prompts.folder, prompts.train, prompts.n_steps, seed), time.perf_counter()
        for _ in range(prompts.n_steps):
            textbook.step()
        seconds = time.perf_counter() - started
        return textbook.score(held.prompts), seconds

    def train_ours(seed: int) -> tuple[np.ndarray, float]:
        network = our_network(prompts.folder, run, seed)
        plan = prompts.plan(network, seed)
        started = time.perf_counter()
        train(network, plan, None, {"click": 1.0}, run.training, FitContext(seed=seed))
        seconds = time.perf_counter() - started
        return network.predict(tokenise(network.backbone, held.prompts, shared=True), ("click",))["click"], seconds

    facts = {
        "dataset": prompts.dataset.fingerprint,
        "model": prompts.folder.name,
        "prompts": _digest(prompts.train, held),
    }
    kept = Kept(scores, facts)
    recipe = run.model_dump(mode="json", include={"training", "recommender", "prompt"}) | {"batch_size": batch_size}
    found: dict[str, list[np.ndarray]] = {"textbook": [], "ours": []}
    for seed in seeds:
        found["textbook"].append(kept.get("textbook", [TEXTBOOK_BATCH, WIDTH], seed, partial(train_textbook, seed)))
        found["ours"].append(kept.get("ours", recipe, seed, partial(train_ours, seed)))
        print(f"seed {seed}: " + ", ".join(f"{n} AUC {auc(truth, v[-1]):.4f}" for n, v in found.items()), flush=True)
    return {
        "n_training_samples": len(prompts.train.prompts),
        "n_held_out_samples": len(held.prompts),
        "seeds": list(seeds),
        "auc_by_seed": {name: [round(float(auc(truth, one)), 4) for one in every] for name, every in found.items()},
        "auc_ours_minus_textbook": auc_difference(truth, users, found),
    }


def table(result: dict[str, Any]) -> str:
    rows = ["| recipe | samples/s | held-out AUC by seed |", "|---|---|---|"]
    for name in ("textbook", "ours"):
        aucs = ", ".join(f"{value:.3f}" for value in result["quality"]["auc_by_seed"][name])
        rows.append(f"| {name}: {result['recipes'][name]} | {result['speed']['samples_per_s'][name]} | {aucs} |")
    gap = result["quality"]["auc_ours_minus_textbook"]
    interval = f"{gap['mean']:+.3f} [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
    return "\n".join([*rows, f"| **ratio; AUC difference** | **{result['speed']['ratio']}** | {interval} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--windows", type=int, default=11)
    parser.add_argument("--held-out", type=int, default=4000)
    parser.add_argument("--seeds", default="0:3", help="first:end, the end not included")
    parser.add_argument("--scores", type=Path, help="folder that keeps the scores of finished trainings")
    parser.add_argument("--only", choices=("speed", "quality"), help="measure this and keep the other's last result")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    as_a_worker("benchmarks.training_speed")
    workspace = Workspace.open(given.workspace)
    dataset = DatasetStore(workspace).load(given.dataset)
    prompts = Prompts.of(dataset, fetch_model(workspace, "minilm"), given.samples, given.held_out)
    facts = device_facts(str(resolve_device("cpu")))
    dtype = resolve_precision("auto", resolve_device("cpu")).dtype
    batch_size = resolve_batch_size(prompts.run.training.batch_size, dtype, clicks=True)
    result: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.only else {}
    result |= {
        "what": "training samples per second, one process, alternating windows; AUC after the same samples",
        "dataset": dataset.name,
        "model": prompts.folder.name,
        "recipes": {
            "textbook": "pad to 128, float32, batch 16, sdpa, all weights, dropout 0.1, AdamW",
            "ours": f"shared histories, no padding, {facts.precision}, batch {batch_size}, eager, frozen embeddings",
        },
        "machine": machine(precision=True),
    }
    if given.only != "quality":
        result["speed"] = speed(prompts, given.windows)
    if given.only != "speed":
        result["quality"] = quality(prompts, range(*map(int, given.seeds.split(":"))), given.scores, batch_size)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
