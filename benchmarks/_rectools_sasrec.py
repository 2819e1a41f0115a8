"""The side of RecTools in ``benchmarks.sequential_speed``, in an environment of its own: trains once, says how long.

    PYTHON _rectools_sasrec.py FOLDER

``FOLDER/task.json`` says what to do. Only ``fit`` is timed: imports, the data set as RecTools wants it, and ranking are
not. It writes ``ranked.npy`` ([n, 3]: user, item, rank) and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    rows = np.load(folder / "train.npy")
    # Rows come in the order of the split, and ties of time are part of it: their numbers stand for times.
    frame = pd.DataFrame(
        {
            Columns.User: rows[:, 0],
            Columns.Item: rows[:, 1],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(range(len(rows)), unit="s"),
        }
    )
    dataset = Dataset.construct(frame)
    seed_everything(task["seed"])
    model = SASRecModel(n_factors=task["width"], n_blocks=task["blocks"], loss="softmax", epochs=task["epochs"])
    started = time.perf_counter()
    model.fit(dataset)
    seconds = time.perf_counter() - started
    found = model.recommend(
        users=np.load(folder / "users.npy"),
        dataset=dataset,
        k=task["k"],
        filter_viewed=True,
    )
    np.save(folder / "ranked.npy", found[[Columns.User, Columns.Item, Columns.Rank]].to_numpy(np.int64))
    facts = {
        "seconds": seconds,
        "rectools": version("rectools"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "session_max_len": model.session_max_len,
        "batch_size": model.batch_size,
    }
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
