"""The similarity objective: closeness of candidate and history as training rows have it."""

from pathlib import Path

import numpy as np
import pandas as pd
from training.training_cases import Events, fit, planted_run, planted_split

from llmrec_core.contracts import Query
from llmrec_core.data import Dataset, make_split
from llmrec_core.specs import RunSpec, SplitSpec
from llmrec_core.training.samples import training_lists


def _run(**training: object) -> RunSpec:
    return RunSpec.model_validate(
        {"dataset": {"name": "t"}, "objectives": [{"task": "click"}, {"task": "similarity"}], "training": training}
    )


def test_what_comes_together_is_close_and_what_nobody_has_is_unknown() -> None:
    # Two worlds that never meet; "lone" is a known item of no training row.
    rows = [(f"u{u}", f"{'ab'[u % 2]}{step}", 10.0 * step) for u in range(10) for step in range(6)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": [f"{w}{s}" for w in "ab" for s in range(6)] + ["lone"]})
    split = make_split(Dataset.from_frames("worlds", frame, items), SplitSpec())
    lists = training_lists(split, _run(negatives_per_positive=5), 0)
    ids = split.dataset.item_ids[lists.items]
    world = np.array([query.history[-1].item_id[0] if query.history else "" for query in lists.queries])[lists.list_of]
    same = np.array([item[0] == own for item, own in zip(ids, world, strict=True)])
    values = lists.labels["similarity"]
    lone = (ids == "lone") | (split.train_item_counts[lists.items] == 0)
    assert lone.any()
    assert np.isnan(values[lone]).all()
    told = ~np.isnan(values)
    assert (values[told & ~same] == 0).all()
    assert (values[told & same] > 0).all()
    assert values[told].max() < 1


def test_the_head_learns_which_texts_go_together(tmp_path: Path) -> None:
    events = Events()
    settings = {"negatives_per_positive": 2, "max_samples": 360}
    run = planted_run(tmp_path, objectives=[{"task": "click"}, {"task": "similarity"}], **settings)
    recommender = fit(run, planted_split(), tmp_path, events=events)
    assert "similarity" in events.of("train")[-1]["losses"]
    found = recommender.score([Query("nobody")], np.arange(4), task="similarity")
    assert np.isfinite(found).all()
