"""Who likes the next film, after the ten before it: behaviour and text against what is free.

    python -m benchmarks.click_films --workspace DIR [--windows 8000|64|256 ...] [--arms behaviour joined ...]
        [--part valid] [--seeds 0 1 2] [--again]

Protocol (that of TALLRec's film data): MovieLens-100K, users in order of first appearance in the file, each user's
ratings by time (ties in file order), windows of ten ratings with the eleventh as target, liked = rating above 3. The
last 10,000 windows are cut 8,000 / 1,000 / 1,000 for training, validation and test. A query knows its window of ten and
nothing else of its user.

``--windows 8000``: all training windows, and the ratings of users who are neither in validation nor in the test.
``--windows 64`` or ``256``: that many training windows drawn by the seed, and nothing else: no other rating is seen.
Validation windows choose when to stop and what weighs how much.

The test is only looked at with ``--part test``; a test figure that stands already is measured again with ``--again``
alone, and the file says how often the test was looked at. A window belongs to a user and there are few of those, so AUC
is given with intervals over resampled users, and as the mean of the users' own AUC beside it. Every setting writes
``benchmarks/results/click_films/WINDOWS.PART.json`` with specs, hashes, floors and figures of each seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.baselines import BiasKNNRecommender
from llmrec_core.contracts import FitContext, HistoryItem, IntArray, Query
from llmrec_core.data import Dataset, DatasetStore, Split, make_split
from llmrec_core.evaluation.metrics import auc, gauc
from llmrec_core.models.device import device_facts
from llmrec_core.recommenders import registry
from llmrec_core.specs import BiasKNNSpec, RunSpec, SplitSpec
from llmrec_core.training.behaviour import Behaviour
from llmrec_core.training.samples import validation_lists
from llmrec_core.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "click_films"
LENGTH, N_TRAIN, N_VALID, N_TEST = 10, 8000, 1000, 1000
ARMS = ("behaviour", "joined", "text")
LIKED = 3.0


@dataclass(frozen=True, eq=False)
class Windows(Split):
    """A split whose rows know the window before them.

    Attributes:
        order: all rows of the dataset, by user in order of first appearance and by time within a user.
        rank: place of each row in ``order``, [n_rows].
        shown: rows that training may look at, bool [n_rows].
    """

    order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    rank: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    shown: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def history_before(self, row: int, limit: int | None = None) -> tuple[HistoryItem, ...]:
        """The up to ten rows of the user before ``row``; before a training row, those that training may look at."""
        table = self.dataset.interactions
        place = int(self.rank[row])
        before = self.order[max(0, place - LENGTH) : place]
        users = table["user_idx"].to_numpy()
        before = before[users[before] == users[row]]
        if self.shown[row]:
            before = before[self.shown[before]]
        if limit is not None:
            before = before[max(0, len(before) - limit) :]
        items, ratings, times = (table[name].to_numpy()[before] for name in ("item_idx", "rating", "timestamp"))
        return tuple(
            HistoryItem(str(self.dataset.item_ids[item]), float(rating), float(second))
            for item, rating, second in zip(items, ratings, times, strict=True)
        )

    def ask(self, rows: IntArray) -> list[Query]:
        """One query for each row."""
        ids = self.dataset.interactions["user_id"].to_numpy()
        return [Query(str(ids[row]), self.history_before(int(row))) for row in rows]


def windows(dataset: Dataset, n_windows: int, seed: int) -> Windows:
    """The protocol's cut; fewer than all training windows are drawn by ``seed``."""
    table = dataset.interactions
    users = table["user_idx"].to_numpy(np.int64)
    _, first = np.unique(users, return_index=True)
    appeared = first[users]
    order = np.lexsort((np.arange(len(users)), table["timestamp"].to_numpy(), appeared)).astype(np.int64)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    starts = np.searchsorted(appeared[order], appeared[order])
    targets = order[np.arange(len(order)) - starts >= LENGTH][-(N_TRAIN + N_VALID + N_TEST) :]
    train, valid, test = np.split(targets, [N_TRAIN, N_TRAIN + N_VALID])
    if n_windows < N_TRAIN:
        train = np.sort(np.random.default_rng([seed, 31]).permutation(train)[:n_windows])
    inside = np.zeros(len(users), bool)
    inside[order[np.unique(rank[train][:, None] - np.arange(LENGTH + 1))]] = True
    if n_windows >= N_TRAIN:
        held = np.zeros(dataset.n_users, bool)
        held[users[np.concatenate([valid, test])]] = True
        inside |= ~held[users]
    inside[np.concatenate([valid, test])] = False
    base = make_split(dataset, SplitSpec(protocol="leave-one-out"))
    own = {f.name: getattr(base, f.name) for f in fields(Split)}
    rows = order[inside[order]]
    own |= {"train": rows, "valid": valid, "test": test, "catalogue": np.arange(dataset.n_items, dtype=np.int64)}
    return Windows(**own, order=order, rank=rank, shown=inside)


def run_spec(n_windows: int, seed: int, *, behaviour: bool) -> RunSpec:
    """What is trained; few windows get more passes and gentler steps."""
    few = n_windows < N_TRAIN
    return RunSpec.model_validate(
        {
            "dataset": {"name": "ml-100k"},
            "seed": seed,
            "objectives": [{"task": "click"}],
            "prompt": {
                "max_history": LENGTH,
                "max_tokens": 224 if few else 160,
                "item_fields": ["category", "release_year"],
            },
            "recommender": {
                "family": "cross-encoder",
                "behaviour": {"max_history": LENGTH, "max_samples": 100_000} if behaviour else None,
            },
            "training": {
                "like_threshold": LIKED,
                "negatives_per_positive": 0,
                "max_samples": None if few else N_TRAIN,
                "epochs": 3 if few else 1,
                "learning_rate": 5e-5,
                "validation_metric": "auc",
                "validation_samples": N_VALID,
                "validation_every": 20 if few else 50,
                "early_stopping_patience": 3,
            },
        }
    )  # fmt: skip


def floors(split: Windows, queries: list[Query], items: IntArray) -> dict[str, npt.NDArray[np.float64]]:
    """Scores that need no training: share liked, offsets of user and item, and those with item-kNN residuals."""
    liked = [np.mean([(entry.rating or 0.0) > LIKED for entry in query.history]) for query in queries]
    found = {"share liked": np.array(liked)}
    for name, spec in (
        ("user + item offsets", BiasKNNSpec(shrink=1e9)),
        ("user + item offsets + item-kNN residuals", BiasKNNSpec()),
    ):
        recommender = BiasKNNRecommender(spec)
        recommender.fit(split, FitContext())
        found[name] = recommender.score(queries, items[:, None])[:, 0].astype(np.float64)
    return found


def arm_scores(
    arm: str, split: Windows, n_windows: int, seed: int, queries: list[Query], items: IntArray, ctx: FitContext
) -> npt.NDArray[np.float64]:
    """Scores of one arm, [n_windows]."""
    spec = run_spec(n_windows, seed, behaviour=arm != "text")
    if arm == "behaviour":
        asked = spec.recommender.behaviour  # type: ignore[union-attr]
        assert asked is not None
        found = Behaviour.fit(split, spec, asked, validation_lists(split, spec, seed), None, ctx)
        return found.scores(queries, np.arange(len(queries)), items, "click").astype(np.float64)
    recommender = registry.build(spec, spec.recommender)
    recommender.fit(split, ctx)
    return recommender.score(queries, items[:, None])[:, 0].astype(np.float64)


def figures(
    liked: npt.NDArray[np.bool_], users: IntArray, scores: dict[str, npt.NDArray[np.float64]], floor: str, seed: int
) -> dict[str, Any]:
    """AUC and per-user AUC of each, and of each minus the floor, with 95 % intervals over resampled users."""
    names = np.unique(users)
    rows_of = [np.flatnonzero(users == name) for name in names]
    rng = np.random.default_rng([seed, 32])
    draws = [rng.integers(len(names), size=len(names)) for _ in range(1000)]
    chosen = [np.concatenate([rows_of[i] for i in drawn]) for drawn in draws]
    apart = [np.concatenate([np.full(len(rows_of[i]), k) for k, i in enumerate(drawn)]) for drawn in draws]
    metrics = {
        "auc": lambda s, rows, who: auc(liked[rows], s[rows]),
        "per_user_auc": lambda s, rows, who: gauc(liked[rows], s[rows], who),
    }
    found: dict[str, Any] = {}
    everything = np.arange(len(liked))
    for metric, measure in metrics.items():
        sampled = {
            name: np.array([measure(values, rows, who) for rows, who in zip(chosen, apart, strict=True)])
            for name, values in scores.items()
        }
        for name, values in scores.items():
            point = measure(values, everything, users)
            gain = point - measure(scores[floor], everything, users)
            found.setdefault(name, {})[metric] = {
                "value": point, "interval": _interval(sampled[name]),
                "over_floor": gain, "over_floor_interval": _interval(sampled[name] - sampled[floor]),
            }  # fmt: skip
    return found


def _interval(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(edge) for edge in np.nanpercentile(values, [2.5, 97.5])]


def measure(workspace: Workspace, n_windows: int, arms: list[str], seeds: list[int], part: str) -> dict[str, Any]:
    """Figures of one setting, for each seed and for the mean of the seeds' figures."""
    dataset = DatasetStore(workspace).load("ml-100k")
    per_seed = []
    for seed in seeds:
        split = windows(dataset, n_windows, seed)
        rows = split.valid if part == "valid" else split.test
        table = dataset.interactions
        users, items = (table[name].to_numpy(np.int64)[rows] for name in ("user_idx", "item_idx"))
        liked = table["rating"].to_numpy()[rows] > LIKED
        queries = split.ask(rows)
        scores = floors(split, queries, items)
        log: list[str] = []
        took = {}
        for arm in arms:
            started = time.monotonic()

            ctx = FitContext(workspace_models=workspace.models, seed=seed, emit=partial(_note, log))
            scores[arm] = arm_scores(arm, split, n_windows, seed, queries, items, ctx)
            took[arm] = round(time.monotonic() - started, 1)
        free = ["share liked"] if n_windows < N_TRAIN else [name for name in scores if name not in ARMS]
        floor = max(free, key=lambda name: auc(liked, scores[name]))
        found = figures(liked, users, scores, floor, seed)
        per_seed.append({"seed": seed, "floor": floor, "elapsed_s": took, "figures": found, "log": log})
        for name, values in found.items():
            both = ", ".join(f"{metric} {value['value']:.4f}" for metric, value in values.items())
            print(f"{part} {n_windows} windows, seed {seed}: {name}: {both}", flush=True)
    mean = {
        name: {metric: float(np.mean([one["figures"][name][metric]["value"] for one in per_seed])) for metric in values}
        for name, values in per_seed[0]["figures"].items()
    }
    return {
        "protocol": f"last 10,000 windows of {LENGTH} + 1, cut {N_TRAIN}/{N_VALID}/{N_TEST}; liked: above {LIKED:g}",
        "part": part,
        "n_windows": n_windows,
        "n_rows": len(rows),
        "n_users": len(np.unique(users)),
        "dataset": {"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint},
        "specs": {
            arm: {"spec": spec.model_dump(mode="json"), "hash": spec.spec_hash()}
            for arm in arms
            for spec in [run_spec(n_windows, seeds[0], behaviour=arm != "text")]
        },
        "machine": {"python": platform.python_version(), **asdict(device_facts("auto"))},
        "mean_of_seeds": mean,
        "seeds": per_seed,
    }


def _note(log: list[str], event: str, **values: Any) -> None:
    if event == "log":
        log.append(values["message"])
        print("   ", values["message"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--windows", type=int, nargs="+", default=[N_TRAIN, 256, 64])
    parser.add_argument("--arms", nargs="+", default=["behaviour", "joined"], choices=ARMS)
    parser.add_argument("--part", default="valid", choices=["valid", "test"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="measure a test figure that stands already once more")
    parser.add_argument("--dry", action="store_true", help="write nothing (validation only)")
    given = parser.parse_args()
    if given.dry and given.part == "test":
        parser.error("--dry is for validation: a look at the test is written down")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for n_windows in given.windows:
        place = RESULTS / f"{n_windows}.{given.part}.json"
        looks = 0
        if given.part == "test" and place.exists():
            if not given.again:
                parser.error(f"{place.name} stands already; --again looks at the test once more")
            looks = json.loads(place.read_text(encoding="utf-8"))["looks_at_test"]
        result = measure(Workspace(given.workspace), n_windows, given.arms, given.seeds, given.part)
        if given.part == "test":
            result["looks_at_test"] = looks + 1
        if not given.dry:
            place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
