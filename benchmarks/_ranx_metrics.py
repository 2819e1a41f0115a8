"""The side of ranx in ``benchmarks.scoring``: runs in an environment of its own, measures when it is told to.

Building its objects is not timed; lists are given to it as it wants them. It answers each line it reads with its means.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import pandas as pd
from ranx import Qrels, Run, evaluate

NAMES = ("hit_rate", "precision", "recall", "map", "mrr", "ndcg")


def long_frame(table: np.ndarray, value: np.ndarray, column: str) -> pd.DataFrame:
    users = np.repeat(np.arange(len(table)), table.shape[1]).astype(str)
    found = pd.DataFrame({"q_id": users, "doc_id": table.ravel().astype(str), column: value.ravel()})
    # It asks for columns of objects; newer pandas make texts of them.
    return found.astype({"q_id": object, "doc_id": object})


def main() -> None:
    folder = Path(sys.argv[1])
    ranked, targets = np.load(folder / "ranked.npy"), np.load(folder / "targets.npy")
    relevant = long_frame(targets, np.ones(targets.shape, np.int64), "score").drop_duplicates(["q_id", "doc_id"])
    scores = np.broadcast_to(np.arange(ranked.shape[1], 0, -1, dtype=np.float64), ranked.shape)
    qrels = Qrels.from_df(relevant, q_id_col="q_id", doc_id_col="doc_id", score_col="score")
    run = Run.from_df(long_frame(ranked, scores, "score"), q_id_col="q_id", doc_id_col="doc_id", score_col="score")
    asked = [f"{name}@{cut}" for cut in (10, 100) for name in NAMES]
    print(json.dumps({"version": version("ranx"), "threads": numba.get_num_threads()}), flush=True)
    for _ in sys.stdin:
        found = evaluate(qrels, run, asked)
        print(json.dumps({name: float(value) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
