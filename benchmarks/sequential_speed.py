"""Seconds until our sequence model ranks as well as RecTools' SASRec does after 20 epochs: same split, same machine.

    python -m benchmarks.sequential_speed --workspace DIR --rectools PYTHON [--rounds 1] [--seed 0]

Each round trains, in turn, RecTools' SASRec (128 wide, 2 blocks, softmax loss, its defaults otherwise; in a process of
the environment of ``PYTHON``), ours on ids alone, and ours as its preset stands, with texts. All rank the whole
catalogue for all validation users, seen items left out, and are measured by our NDCG@10; the test is not looked at.
RecTools is timed over all its epochs and measured once. Ours is measured after each epoch and stopped where it first
reaches RecTools' value of that round; the seconds of measuring are not counted, those of reading the texts are.

Rounds are added to ``benchmarks/results/sequential_speed.json`` as long as nothing else in it would change, and one
that was cut short goes on where it stopped, so that they can be taken when the machine is idle; ``--table`` prints the
table of ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import machine
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query
from llmrec_core.data import DatasetStore, EvalSet, Split, make_split
from llmrec_core.evaluation.metrics import Hits
from llmrec_core.presets import preset_spec
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.specs import SequentialSpec
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "sequential_speed.json"
K, EPOCHS, WIDTH, BLOCKS, THREADS = 10, 20, 128, 2, 2
TARGET = 4.0
#: Our variants -> what is changed in the preset.
VARIANTS: dict[str, dict[str, Any]] = {"ids alone": {"model": None}, "ids and texts": {}}


class Race:
    """Trains ours until it has reached ``goal``; measuring stops the clock.

    Attributes:
        reached_s: seconds of training until the goal was first met; None: it never was.
        epochs: validations until then.
        best: highest value seen.
    """

    def __init__(self, split: Split, spec: SequentialSpec, goal: float, seed: int, models: Path) -> None:
        self.goal = goal
        self.reached_s: float | None = None
        self.epochs = 0
        self.best = 0.0
        self._measuring_s = 0.0
        self._paused: float | None = None
        ctx = FitContext(workspace_models=models, device="cpu", seed=seed, emit=self._hear, should_stop=self._enough)
        recommender = _Paused(spec, self)
        self._started = time.perf_counter()
        recommender.fit(split, ctx)

    def pause(self) -> None:
        """Measuring begins; it ends with the event that tells its outcome."""
        if self._paused is None:
            self._paused = time.perf_counter()

    def _hear(self, event: str, **values: Any) -> None:
        if event != "validation":
            return
        now = time.perf_counter()
        self._measuring_s += now - (now if self._paused is None else self._paused)
        self._paused = None
        (value,) = values["metrics"].values()
        self.best = max(self.best, value)
        print(f"  {now - self._started - self._measuring_s:.0f} s of training: {value:.4f}", flush=True)
        if self.reached_s is None:
            self.epochs += 1
            if value >= self.goal:
                self.reached_s = now - self._started - self._measuring_s

    def _enough(self) -> Any:
        return None if self.reached_s is None else "stop"


class _Paused(SequentialRecommender):
    """While it is fitted, scoring is measuring."""

    def __init__(self, spec: SequentialSpec, race: Race) -> None:
        super().__init__(spec)
        self._race = race

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        self._race.pause()
        return super().score(queries, candidates, task=task)


def export(split: Split, held_out: EvalSet, folder: Path) -> None:
    """``train.npy`` ([n, 2]: user, item, in the order of the split) and ``users.npy`` (who is asked), our numbers."""
    table = split.dataset.interactions
    columns = [table[name].to_numpy(np.int64)[split.train] for name in ("user_idx", "item_idx")]
    np.save(folder / "train.npy", np.stack(columns, axis=1))
    np.save(folder / "users.npy", held_out.users)


def ndcg(ranked: IntArray, held_out: EvalSet) -> float:
    """NDCG@10 of rows (user, item, rank from 1) over all held-out users; a user without a list counts 0."""
    lists = np.full((len(held_out), K), -1, np.int64)
    users, items, ranks = ranked.T
    lists[np.searchsorted(held_out.users, users), ranks - 1] = items
    return float(np.nanmean(Hits.of(lists, held_out.targets).ndcg(K)))


def rectools(python: Path, split: Split, held_out: EvalSet, seed: int) -> dict[str, Any]:
    """One training of RecTools: what it says of itself, and its NDCG@10."""
    task = {"epochs": EPOCHS, "width": WIDTH, "blocks": BLOCKS, "seed": seed, "threads": THREADS, "k": K}
    script = Path(__file__).parent / "_rectools_sasrec.py"
    threads = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(split, held_out, folder)
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [str(python), str(script), str(folder)],
            stdout=subprocess.PIPE, text=True, check=True, cwd=folder, env={**os.environ, **threads},
        )  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said | {"ndcg@10": ndcg(np.load(folder / "ranked.npy"), held_out)}


def go_on(
    found: dict[str, Any], python: Path, split: Split, held_out: EvalSet, spec: SequentialSpec, models: Path
) -> Iterator[None]:
    """Measures what a round (``found``, with its seed) still lacks, in turn, and hands back after each part."""
    if "rectools" not in found:
        said = rectools(python, split, held_out, found["seed"])
        found["rectools"] = said | {"seconds": round(said["seconds"], 2), "ndcg@10": round(said["ndcg@10"], 5)}
        yield
    peer = found["rectools"]
    for name, changed in VARIANTS.items():
        if name in found:
            continue
        race = Race(split, spec.model_copy(update=changed), peer["ndcg@10"], found["seed"], models)
        part: dict[str, Any] = {"seconds": None, "epochs": race.epochs, "best": round(race.best, 5), "ratio": None}
        if race.reached_s is not None:
            part |= {"seconds": round(race.reached_s, 2), "ratio": round(peer["seconds"] / race.reached_s, 2)}
        found[name] = part
        yield


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds; None for a variant that did not reach the value in every round."""
    found: dict[str, Any] = {
        "rounds": len(rounds),
        "rectools_s": statistics.median(one["rectools"]["seconds"] for one in rounds),
        "rectools_ndcg@10": statistics.median(one["rectools"]["ndcg@10"] for one in rounds),
    }
    for name in VARIANTS:
        whole = all(one[name]["ratio"] is not None for one in rounds)
        found[name] = {
            key: round(statistics.median(one[name][key] for one in rounds), 2) if whole else None
            for key in ("seconds", "epochs", "ratio")
        }
    return found


def table(document: dict[str, Any]) -> str:
    middle = document["median"]
    rows = [
        "| | seconds | epochs | NDCG@10 | ratio of times |",
        "|---|---|---|---|---|",
        f"| RecTools' SASRec, whole | {middle['rectools_s']:.1f} | {EPOCHS} | {middle['rectools_ndcg@10']:.4f} | |",
    ]
    for name in VARIANTS:
        own = middle[name]
        if own["ratio"] is None:
            rows.append(f"| ours, {name} | | | not reached | |")
        else:
            told = f"{own['seconds']:.1f} | {own['epochs']:g} | reached | **{own['ratio']:.1f}**"
            rows.append(f"| ours, {name} | {told} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workspace")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rectools", type=Path, help="python of an environment that holds rectools[torch]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each later one takes the next")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="print the table of what is measured already")
    given = parser.parse_args()
    known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    if given.table:
        print(table(known))
        return
    if not given.workspace or not given.rectools:
        parser.error("--workspace and --rectools are needed to measure")
    torch.set_num_threads(THREADS)
    workspace = Workspace.open(given.workspace)
    dataset = DatasetStore(workspace).load(given.dataset)
    run = preset_spec("sequential", given.dataset, {"recommender.validation_users": 1_000_000})
    assert isinstance(run.recommender, SequentialSpec)
    split = make_split(dataset, run.split)
    held_out = split.queries("valid")
    settled = {
        "what": "seconds to RecTools' NDCG@10 after its last epoch, validation item, full ranking, one machine",
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "users": len(held_out)},
        "split": split.describe(),
        "ours": run.recommender.model_dump(mode="json"),
        "rectools": {"epochs": EPOCHS, "width": WIDTH, "blocks": BLOCKS, "loss": "softmax"},
        "target": TARGET,
        "machine": machine(),
    }
    rounds: list[dict[str, Any]] = []
    if {key: known.get(key) for key in settled} == settled:
        rounds = known.get("each_round", [])
    for seed in range(given.seed, given.seed + given.rounds):
        found: dict[str, Any] = next((one for one in rounds if one["seed"] == seed), {"seed": seed})
        for _ in go_on(found, given.rectools, split, held_out, run.recommender, workspace.models):
            print(json.dumps(found), flush=True)
            rounds = [one for one in rounds if one["seed"] != seed] + [found]
            whole = [one for one in rounds if VARIANTS.keys() <= one.keys()]
            known = settled | {"median": summary(whole) if whole else None, "each_round": rounds}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    print(table(known))


if __name__ == "__main__":
    main()
