"""What ranking policies cost: the same ranking with and without each, on the same users.

    python -m benchmarks.policies WORKSPACE [--part valid|test] [--json FILE] [--seeds 0 1 2]

WORKSPACE holds dataset ml-100k (``llmrec data import --public ml-100k``). Leave-one-out, 5-core, full ranking, lists
of ten from the 100 best items. Strengths of targets are found on validation users, whichever part is measured; for
``--part valid`` the target is also found on one half of the validation users and measured on the other. Nothing was
chosen on the test part: measure it once. ``--seeds`` measures the novelty target alone, on the blend fitted with each
seed (item-kNN draws nothing); each user's NDCG is averaged over the seeds before the bootstrap.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_core.baselines import ItemKNNRecommender
from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.data import DatasetStore, EvalSet, Split, make_split
from llmrec_core.evaluation.beyond import gini, intra_list_diversity, miscalibration
from llmrec_core.evaluation.intervals import MeanStatistic, paired_difference
from llmrec_core.evaluation.metrics import Hits, Values, novelty
from llmrec_core.policies import PolicyChain, build_chain
from llmrec_core.recommenders.blend import BlendRecommender
from llmrec_core.specs import BlendSpec, BPRSpec, ItemKNNSpec, SplitSpec, parse_policies
from llmrec_core.workspace import Workspace

K, DEPTH = 10, 100
TARGET = "novelty:raise_by=0.15"
POLICIES = (
    TARGET,
    "diversity:strength=0.1",
    "diversity:strength=0.3",
    "calibration:strength=0.3",
    "calibration:strength=0.5",
    "exposure:max_share=0.1",
    "category-cap:max_items=3",
)


def recommenders() -> dict[str, Recommender]:
    knn = ItemKNNSpec(direction="both")
    return {"item-knn": ItemKNNRecommender(knn), "blend": BlendRecommender(BlendSpec(members=(knn, BPRSpec())))}


def part_of(users: EvalSet, chosen: np.ndarray) -> EvalSet:
    """The users of ``users`` at these positions."""
    return EvalSet(
        users.users[chosen],
        [users.queries[i] for i in chosen],
        [users.targets[i] for i in chosen],
        [users.exclude[i] for i in chosen],
    )


def measure(chain: PolicyChain, recommender: Recommender, users: EvalSet, n_catalogue: int) -> dict[str, Any]:
    """Metrics of the lists without and with the chain, and the paired difference of NDCG."""
    return measured(chain, recommender, users, n_catalogue)[0]


def measured(
    chain: PolicyChain, recommender: Recommender, users: EvalSet, n_catalogue: int
) -> tuple[dict[str, Any], dict[str, Values]]:
    """As :func:`measure`, and NDCG [n_users] without and with the chain."""
    features = chain.features
    found = chain.candidates(recommender, users.queries, K, users.exclude)
    started = time.perf_counter()
    applied = chain.apply(found, K)
    elapsed_s = time.perf_counter() - started
    lists = {"without": applied.without.items, "with": applied.final.items}
    ndcg = {name: Hits.of(items, users.targets).ndcg(K) for name, items in lists.items()}
    price = paired_difference(MeanStatistic(ndcg["with"]), MeanStatistic(ndcg["without"]), len(users))
    rows: dict[str, Any] = {
        name: {
            "ndcg": mean(ndcg[name]),
            "hit_rate": mean(Hits.of(items, users.targets).hit_rate(K)),
            "novelty": mean(novelty(items, features.item_users, features.n_users, K)),
            "diversity": mean(intra_list_diversity(items, features.categories, K)),
            "miscalibration": mean(miscalibration(items, found.wanted, features.categories, K)),
            "gini": float(gini(np.unique(items[items >= 0], return_counts=True)[1], n_catalogue)),
        }
        for name, items in lists.items()
    }
    base = rows["without"]["ndcg"]
    rows["ndcg_loss"] = [-price.mean / base, -price.ci_high / base, -price.ci_low / base]
    rows["n_users"], rows["elapsed_s"] = len(users), round(elapsed_s, 3)
    rows["settings"] = [policy.model_dump(mode="json") for policy in chain.policies]
    return rows, ndcg


def over_seeds(split: Split, users: EvalSet, seeds: list[int], n_catalogue: int) -> dict[str, Any]:
    """The novelty target on the blend of each seed, and all of them together with one interval over users."""
    found: dict[str, Any] = {"seeds": {}}
    ndcg: dict[str, list[Values]] = {"without": [], "with": []}
    raised = []
    for seed in seeds:
        recommender = recommenders()["blend"]
        recommender.fit(split, FitContext(seed=seed))
        chain = build_chain(parse_policies([TARGET]), DEPTH, recommender, split, K, seed)
        row, by_user = measured(chain, recommender, users, n_catalogue)
        found["seeds"][str(seed)] = row
        show(f"blend {seed}", TARGET, row)
        for name, values in by_user.items():
            ndcg[name].append(values)
        raised.append(row["with"]["novelty"] / row["without"]["novelty"] - 1)
    pooled = {name: np.mean(values, axis=0) for name, values in ndcg.items()}
    price = paired_difference(MeanStatistic(pooled["with"]), MeanStatistic(pooled["without"]), len(users))
    base = mean(pooled["without"])
    found["ndcg"] = {name: mean(values) for name, values in pooled.items()}
    found["ndcg_loss"] = [-price.mean / base, -price.ci_high / base, -price.ci_low / base]
    found["novelty_raised"] = float(np.mean(raised))
    print("together:", {name: found[name] for name in ("ndcg", "ndcg_loss", "novelty_raised")}, flush=True)
    return found


def mean(values: Values) -> float:
    return float(np.nanmean(values))


def other_half(recommender: Recommender, split: Split, seed: int) -> dict[str, Any]:
    """The target found on half of the validation users, measured on the others."""
    everybody = split.queries("valid")
    n = len(everybody) // 2
    chain = build_chain(parse_policies([f"{TARGET},validation_users={n}"]), DEPTH, recommender, split, K, seed)
    used = split.queries("valid", n, seed).users
    others = part_of(everybody, np.flatnonzero(~np.isin(everybody.users, used)))
    return measure(chain, recommender, others, len(split.offered("valid")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", help="the novelty target alone, with these seeds")
    options = parser.parse_args()
    dataset = DatasetStore(Workspace.open(options.workspace)).load("ml-100k")
    split = make_split(dataset, SplitSpec(min_user_interactions=5, min_item_interactions=5))
    users, n_catalogue = split.queries(options.part), len(split.offered(options.part))
    report: dict[str, Any] = {
        "protocol": split.describe(),
        "fingerprint": dataset.fingerprint,
        "part": options.part,
        "k": K,
        "depth": DEPTH,
        "seed": 0,
        "specs": {name: recommender.spec.model_dump(mode="json") for name, recommender in recommenders().items()},
        "models": {},
    }
    if options.seeds:
        del report["seed"]
        report["models"]["blend"] = {TARGET: over_seeds(split, users, options.seeds, n_catalogue)}
    for name, recommender in ({} if options.seeds else recommenders()).items():
        recommender.fit(split, FitContext(seed=0))
        found = report["models"][name] = {}
        for line in POLICIES:
            chain = build_chain(parse_policies([line]), DEPTH, recommender, split, K)
            found[line] = measure(chain, recommender, users, n_catalogue)
            show(name, line, found[line])
        if options.part == "valid":
            for seed in range(3):
                line = f"{TARGET}, other half {seed}"
                found[line] = other_half(recommender, split, seed)
                show(name, line, found[line])
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def show(name: str, line: str, row: dict[str, Any]) -> None:
    loss, low, high = (f"{100 * value:+.2f} %" for value in row["ndcg_loss"])
    gains = ", ".join(f"{m} {row['without'][m]:.3f} to {row['with'][m]:.3f}" for m in row["with"] if m != "ndcg")
    ndcg = f"{row['without']['ndcg']:.4f} to {row['with']['ndcg']:.4f}"
    raised = row["with"]["novelty"] / row["without"]["novelty"] - 1
    print(f"{name:9} {line:38} NDCG {ndcg}, loss {loss} ({low} to {high}), novelty {raised:+.1%}; {gains}", flush=True)


if __name__ == "__main__":
    main()
