"""Scoring, ranking and measuring: our paths against the plain ones, in one run.

    python -m benchmarks.scoring --workspace DIR decoder encoder top-k     (needs ``llmrec data public ml-100k``)
    python -m benchmarks.scoring --ranx PYTHON metrics                     (PYTHON: one of an environment with ranx)

- ``decoder``: SmolLM2-135M, 100 candidates of one user. Plain: every prompt alone, batches of 32 padded to their
  longest, through the model as transformers has it (sdpa). A window of it reads a fifth of the candidates and counts
  five times.
- ``encoder``: MiniLM re-ranks 50 candidates for 200 users, 40 users a window. Plain: batches of 32 padded to 128
  tokens, sdpa, float32; a window of it reads a tenth of the users and counts ten times.
- ``top-k``: the best 100 of 50,000 items for 20,000 users by 64 factors, 4,000 users a window, 50 seen items each left
  out. Plain: all scores at once, then a full argsort of every row; a window of it ranks an eighth of the users and
  counts eight times.
- ``metrics``: six ranking metrics at 10 and at 100 for 100,000 users with lists of 100 and ten targets each.

With ``--one-thread`` (and OMP_NUM_THREADS=1) CPU seconds of one thread are compared; not for ``metrics``, whose peer is
another process. Sides alternate, five windows each; a first pair is thrown away (but for the decoder, whose windows are
long). The ratio is the median of the windows' ratios. Each part writes itself into ``benchmarks/results/scoring.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from benchmarks._machine import machine
from llmrec_core.contracts import FloatArray, RenderedPrompt
from llmrec_core.data import DatasetStore, make_split
from llmrec_core.evaluation.metrics import Hits
from llmrec_core.models.catalogue import fetch_model
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.recommenders.vector_search import VectorIndex
from llmrec_core.specs import PromptSpec, SplitSpec
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import TokenisedPrompts, pack, tokenise
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "scoring.json"
WINDOWS = 5
Side = Callable[[int], Any]


def alternate(plain: Side, ours: Side, plain_share: float = 1.0, warm: bool = True) -> dict[str, Any]:
    """Seconds of both sides in turn; ``plain_share``: the part of a window that the plain side really does."""
    # With one thread, CPU seconds: what else runs on the machine changes them least.
    one_thread = torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    pairs = []
    for number in range(0 if warm else 1, WINDOWS + 1):
        seconds = []
        for side in (plain, ours):
            started = clock()
            side(max(0, number - 1))
            seconds.append(clock() - started)
        if number:
            pairs.append((seconds[0] / plain_share, seconds[1]))
            print(f"window {number}: plain {pairs[-1][0]:.2f} s, ours {pairs[-1][1]:.2f} s", flush=True)
    ratios = [plain / ours for plain, ours in pairs]
    return {
        "clock": "CPU seconds of one thread" if one_thread else f"seconds, {torch.get_num_threads()} threads",
        "plain_s": round(statistics.median(p for p, _ in pairs), 3),
        "ours_s": round(statistics.median(o for _, o in pairs), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_of_each_window": [round(ratio, 2) for ratio in ratios],
    }


# ---- language models -------------------------------------------------------------------------------------------------


class Reader:
    """A model twice: in our network, and as transformers has it; one random head on both."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        backbone = load_backbone(folder, trainable=False)
        heads = TaskHeads(backbone.hidden_size, ("click",), seed=0)
        heads.heads["click"].weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(0))
        self.ours = PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=True).eval()
        self.plain: Backbone = load_backbone(folder, trainable=False, attention="sdpa")

    @torch.inference_mode()
    def score_plain(self, rows: list[list[int]], width: int | None = None) -> FloatArray:
        found = []
        for start in range(0, len(rows), 32):
            batch = self.plain.pad(rows[start : start + 32])
            ids, mask = batch["input_ids"], batch["attention_mask"]
            missing = (width or ids.shape[1]) - ids.shape[1]
            ids, mask = functional.pad(ids, (0, missing), value=self.plain.pad_id), functional.pad(mask, (0, missing))
            found.append(self.ours.heads(self.plain.pooled(ids, mask, self.plain.default_pooling))["click"])
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def score_alone(self, tokens: TokenisedPrompts) -> FloatArray:
        """Each prompt in a row of its own under the mask of training: what a cut prompt means."""
        one = np.zeros(1, np.int64)
        found = []
        for place in range(len(tokens)):
            chosen = np.array([place])
            found.append(self.ours(pack(tokens, chosen, [one], self.plain.pad_id))["click"])
        return torch.cat(found).numpy()


def prompts_of(
    workspace: Workspace, dataset_name: str, folder: Path, prompt: PromptSpec, n_users: int, n_candidates: int
) -> list[list[RenderedPrompt]]:
    """Prompts of validation users with the longest histories, each with drawn candidates that they have not met."""
    dataset = DatasetStore(workspace).load(dataset_name)
    split = make_split(dataset, SplitSpec())
    held = split.queries("valid")
    longest = np.argsort([-len(query.history) for query in held.queries], kind="stable")[:n_users]
    renderer = PromptRenderer(prompt, dataset, TokenCounter.from_folder(folder))
    rng = np.random.default_rng(0)
    found = []
    for user in longest.tolist():
        unseen = np.setdiff1d(split.catalogue, held.exclude[user])
        items = rng.choice(unseen, n_candidates, replace=False)
        found.append(renderer.render_many([(held.queries[user], int(item)) for item in items]))
    return found


def decoder(workspace: Workspace, dataset: str) -> dict[str, Any]:
    folder = fetch_model(workspace, "smollm2-135m")
    spec = PromptSpec(template="yes-no", max_tokens=256, max_history=20)
    (prompts,) = prompts_of(workspace, dataset, folder, spec, 1, 100)
    reader = Reader(folder)
    tokens = tokenise(reader.ours.backbone, prompts, shared=True)
    rows = reader.plain.encode([prompt.text for prompt in prompts])
    scores: dict[str, Any] = {"plain": np.empty(100, np.float32)}

    def plain(window: int) -> None:
        part = slice(20 * window, 20 * window + 20)
        scores["plain"][part] = reader.score_plain(rows[part])

    def ours(window: int) -> None:
        scores["ours"] = reader.ours.predict(tokens, ("click",))["click"]

    found = alternate(plain, ours, plain_share=0.2, warm=False)
    gap = float(np.abs(scores["plain"] - scores["ours"]).max())
    return found | {
        "candidates": 100,
        "history_tokens": int(tokens.heads.lengths.max()),
        "tokens_of_a_candidate": round(float(tokens.tails.lengths[tokens.tail_of].mean()), 1),
        "largest_difference": gap,
        "spread_of_scores": float(scores["plain"].std()),
        "target": 6.0,
    }


def encoder(workspace: Workspace, dataset: str) -> dict[str, Any]:
    folder = fetch_model(workspace, "minilm")
    users = prompts_of(workspace, dataset, folder, PromptSpec(max_tokens=128, max_history=8), 200, 50)
    reader = Reader(folder)
    tokens = [
        tokenise(reader.ours.backbone, [p for user in users[start : start + 40] for p in user], shared=True)
        for start in range(0, 200, 40)
    ]
    rows = [
        reader.plain.encode([p.text for user in users[start : start + 4] for p in user]) for start in range(0, 200, 40)
    ]
    found = alternate(
        lambda window: reader.score_plain(rows[window], 128),
        lambda window: reader.ours.predict(tokens[window], ("click",)),
        plain_share=0.1,
    )
    # Order: the same weights under the mask they are trained with, one prompt at a time.
    alone = np.concatenate([reader.score_alone(part) for part in tokens]).reshape(-1, 50)
    together = np.concatenate([reader.ours.predict(part, ("click",))["click"] for part in tokens]).reshape(-1, 50)
    by_user = [spearmanr(a, b).statistic for a, b in zip(alone, together, strict=True)]
    return found | {
        "users": 200,
        "candidates": 50,
        "history_tokens": round(float(np.mean([part.heads.lengths.mean() for part in tokens])), 1),
        "tokens_of_a_candidate": round(float(np.mean([p.tails.lengths[p.tail_of].mean() for p in tokens])), 1),
        "rank_correlation_lowest_of_200_users": float(min(by_user)),
        "target": 5.0,
    }


# ---- the best of a catalogue -----------------------------------------------------------------------------------------


def top_k(n_users: int = 20_000, n_items: int = 50_000, width: int = 64, k: int = 100) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    items, users = (rng.normal(size=(n, width)).astype(np.float32) for n in (n_items, n_users))
    seen = list(rng.integers(0, n_items, (n_users, 50)))
    index = VectorIndex(items, approximate_above=n_items)
    size = n_users // WINDOWS
    lists: dict[str, np.ndarray] = {}
    # Ours for all users first: its peak of memory is the process's so far.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    index.search(users, k, seen)
    all_users_s = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def plain(window: int) -> None:
        part = slice(window * size, window * size + size // 8)
        scores = users[part] @ items.T
        for row, own in zip(scores, seen[part], strict=True):
            row[own] = -np.inf
        # Row by row into a short list: the argsort of the whole matrix at once would take another eight bytes a cell.
        lists["plain"] = np.stack([np.argsort(-row, kind="stable")[:k] for row in scores])

    def ours(window: int) -> None:
        part = slice(window * size, window * size + size)
        lists["ours"] = np.stack([ranking.items for ranking in index.search(users[part], k, seen[part])])

    found = alternate(plain, ours, plain_share=1 / 8)
    return found | {
        "users": n_users,
        "items": n_items,
        "users_a_window": size,
        "same_lists": float((lists["plain"] == lists["ours"][: size // 8]).mean()),
        "all_users_s": round(all_users_s, 2),
        "peak_memory_bytes": peak * 1024,
        "of_which_before_ranking_bytes": before * 1024,
        "target": 3.0,
    }


# ---- metrics ---------------------------------------------------------------------------------------------------------

OURS = ("hit_rate", "precision", "recall", "map", "mrr", "ndcg")
CUTS = (10, 100)


def metrics(ranx: Path, n_users: int = 100_000, n_items: int = 50_000, k: int = 100) -> dict[str, Any]:
    """Both measure the same arrays; ranx is a process that is told when to measure, and is compiled and warm."""
    rng = np.random.default_rng(0)
    ranked = np.argsort(rng.random((n_users, 4 * k), np.float32), axis=1)[:, :k].astype(np.int64)
    ranked = (ranked + rng.integers(0, n_items - 4 * k, (n_users, 1))).astype(np.int64)
    targets = ranked[:, :1] + rng.integers(-300, 300, (n_users, 10))
    targets = np.clip(targets, 0, n_items - 1)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "ranked.npy", ranked)
        np.save(Path(folder) / "targets.npy", targets)
        script = Path(__file__).parent / "_ranx_metrics.py"
        peer = subprocess.Popen(
            [str(ranx), str(script), folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdin is not None
        assert peer.stdout is not None
        ready = json.loads(peer.stdout.readline())
        mine: dict[str, float] = {}
        theirs: dict[str, Any] = {}
        given = list(targets)

        def plain(window: int) -> None:
            assert peer.stdin is not None
            assert peer.stdout is not None
            peer.stdin.write("measure\n")
            peer.stdin.flush()
            theirs.update(json.loads(peer.stdout.readline()))

        def ours(window: int) -> None:
            hits = Hits.of(ranked, given)
            mine.update({f"{m}@{cut}": float(np.nanmean(getattr(hits, m)(cut))) for cut in CUTS for m in OURS})

        found = alternate(plain, ours)
        peer.stdin.close()
        peer.wait()
    gap = {name: abs(value - theirs[name]) for name, value in mine.items()}
    return found | {
        "users": n_users,
        "metrics": sorted(mine),
        "difference": {name: round(value, 12) for name, value in gap.items()},
        "ranx": ready["version"],
        "ranx_threads": ready["threads"],
        "target": 2.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("decoder", "encoder", "top-k", "metrics"))
    parser.add_argument("--workspace")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--ranx", type=Path)
    parser.add_argument("--one-thread", action="store_true", help="CPU seconds of one thread, for a busy machine")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.one_thread:
        torch.set_num_threads(1)
    for part in given.parts:
        if part in ("decoder", "encoder"):
            workspace = Workspace.open(given.workspace)
            found = (decoder if part == "decoder" else encoder)(workspace, given.dataset)
        else:
            found = top_k() if part == "top-k" else metrics(given.ranx)
        found["machine"] = machine(numpy=np.__version__)
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(known | {part: found}, indent=2) + "\n", encoding="utf-8")
        print(part, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
