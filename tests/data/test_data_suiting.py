"""What a preset takes over from the data: filters that leave something, and instruction records as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_models import write_tiny_bert

from llmrec_core.contracts import FitContext
from llmrec_core.data import Dataset, DatasetStore, import_files, make_split
from llmrec_core.data.suiting import record_use
from llmrec_core.presets import PRESETS, preset_reasons, preset_spec
from llmrec_core.recommenders.leakage import leakage_report
from llmrec_core.recommenders.registry import build
from llmrec_core.specs import BlendSpec
from llmrec_core.workspace import Workspace

TITLES = [f"{first} {second}" for first in ("Red", "Blue", "Old", "New") for second in ("Road", "Hour", "Rain", "Town")]


def judged(n: int) -> list[dict[str, str]]:
    """Records that like half of the titles and dislike the other; the answer is whether the asked one is liked."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(n):
        names = rng.permutation(TITLES).tolist()
        target, yes = (names[0], "Yes.") if number % 2 else (names[1], "No.")
        liked, disliked = (", ".join(f'"{name}"' for name in part) for part in (names[2:4], names[4:6]))
        records.append(
            {
                "instruction": "Will they like the target? Answer Yes. or No.",
                "input": f'Preference: {liked}\nUnpreference: {disliked}\nWhether they like the target "{target}"?',
                "output": yes,
            }
        )
    return records


def answers(n: int) -> list[dict[str, str]]:
    asked = "Would this reader open it? Answer Yes. or No."
    return [
        {"instruction": asked, "input": f"{TITLES[k % 16]}, part {k}", "output": ["Yes", "No"][k % 2]} for k in range(n)
    ]


def following(n: int) -> list[dict[str, str]]:
    asked = "Name the next film."
    return [
        {
            "instruction": asked,
            "input": f'They watched "{TITLES[k % 16]}", "{TITLES[(k + 1) % 16]}".',
            "output": TITLES[(k + 2) % 16],
        }
        for k in range(n)
    ]


def brought(folder: Path, **files: list[dict[str, str]]) -> Dataset:
    paths = []
    for name, records in files.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(records), encoding="utf-8")
    workspace = Workspace.open(folder / "ws")
    parts = {name: [path] for name, path in zip(files, paths, strict=True)} if len(files) > 1 else None
    import_files(workspace, [] if parts else paths, "records", parts=parts)
    return DatasetStore(workspace).load("records")


def test_a_preset_learns_from_the_answers_of_records_in_one_press(tmp_path: Path) -> None:
    dataset = brought(tmp_path, train=judged(40))
    assert record_use(dataset) == "judged"
    spec = preset_spec(
        "quick", dataset, {"recommender.ranker.model": str(tmp_path / "tiny"), "training.validation_every": 5}
    )
    assert (spec.split.protocol, spec.split.min_user_interactions, spec.split.min_item_interactions) == (
        "records",
        0,
        0,
    )
    assert [o.task for o in spec.objectives] == ["click"]
    # A record is its text: numbers about users and items stay out.
    assert getattr(preset_spec("bert-click", dataset).recommender.ranker, "behaviour", None) is None  # type: ignore[union-attr]
    assert (spec.prompt.max_history, spec.evaluation.primary_metric) == (4, "auc")
    split = make_split(dataset, spec.split)
    assert (len(split.train), len(split.valid), len(split.test)) == (28, 6, 6)
    assert leakage_report(split, spec.baselines).ok
    write_tiny_bert(tmp_path / "tiny")
    events: list[dict[str, object]] = []
    model = build(spec, spec.recommender)
    model.fit(
        split,
        FitContext(
            workspace_models=tmp_path, device="cpu", emit=lambda kind, **facts: events.append({"type": kind, **facts})
        ),
    )
    watched = [event["metrics"] for event in events if event["type"] == "validation"]
    assert watched
    assert all("auc" in metrics for metrics in watched)  # type: ignore[operator]
    (told,) = [str(event["message"]) for event in events if "prompts in" in str(event.get("message"))]
    # Each record is one prompt: nothing is drawn beside it, and its history is not learned.
    assert told.startswith("28 prompts in 28 lists")
    ranked = model.top_k(split.queries("test").queries[:1], 3)
    assert len(ranked[0].items) == 3


def test_what_somebody_set_stays_and_is_not_called_a_choice(tmp_path: Path) -> None:
    dataset = brought(tmp_path, train=judged(10))
    set_by_hand = {"split.min_user_interactions": 5, "split.protocol": "random-users", "prompt.max_history": 2}
    spec = preset_spec("bert-click", dataset, set_by_hand)
    assert (spec.split.protocol, spec.split.min_user_interactions, spec.prompt.max_history) == ("random-users", 5, 2)
    (reason,) = preset_reasons(spec, dataset)
    assert "own yes and no" in reason
    assert len(preset_reasons(preset_spec("bert-click", dataset), dataset)) == 3


def test_records_that_came_in_parts_stay_there(tmp_path: Path) -> None:
    dataset = brought(tmp_path, train=judged(20), test=judged(8))
    spec = preset_spec("bert-click", dataset)
    split = make_split(dataset, spec.split)
    users = dataset.interactions["user_id"].astype(str)
    assert {user.split(":")[0] for user in users.iloc[split.test]} == {"test.json"}
    assert (len(split.train), len(split.valid), len(split.test)) == (17, 3, 8)
    assert "as the data came split" in split.describe()
    assert any("say which are held out" in reason for reason in preset_reasons(spec, dataset))


def test_texts_with_an_answer_are_read_whole_and_without_what_all_share(tmp_path: Path) -> None:
    dataset = brought(tmp_path, train=answers(60))
    assert record_use(dataset) == "answers"
    spec = preset_spec("bert-click", dataset)
    assert spec.prompt.item_fields == ("input",)
    split = make_split(dataset, spec.split)
    assert (len(split.train), len(split.known)) == (42, 0)
    assert any("the text of the record itself" in reason for reason in preset_reasons(spec, dataset))


def test_titles_and_the_next_one_are_histories_like_others(tmp_path: Path) -> None:
    dataset = brought(tmp_path, train=following(60))
    assert record_use(dataset) == "next"
    spec = preset_spec("bert-click", dataset)
    assert (spec.split.protocol, spec.split.min_user_interactions) == ("auto", 0)
    assert len(make_split(dataset, spec.split).test) == 60


def log(n_users: int, n_each: int) -> Dataset:
    rows = [(f"u{u}", f"i{(u + n) % 20}", float(n)) for u in range(n_users) for n in range(n_each)]
    return Dataset.from_frames("log", pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_data_that_the_filters_leave_whole_changes_no_preset(preset: str) -> None:
    dataset = log(40, 6)
    assert preset_spec(preset, dataset) == preset_spec(preset, "log")
    assert preset_reasons(preset_spec(preset, dataset), dataset) == []


@pytest.mark.parametrize(("n_each", "protocol"), [(4, "auto"), (1, "random")])
def test_filters_that_would_leave_nobody_are_dropped_with_a_reason(n_each: int, protocol: str) -> None:
    dataset = log(40, n_each)
    spec = preset_spec("ranking", dataset)
    assert (spec.split.protocol, spec.split.min_user_interactions, spec.split.min_item_interactions) == (protocol, 0, 0)
    assert len(make_split(dataset, spec.split).test) == (40 if n_each == 4 else 4)
    (reason,) = preset_reasons(spec, dataset)
    assert "would leave 0 users" in reason
    kept = preset_spec("ranking", dataset, {"split.min_user_interactions": 5})
    assert kept.split.min_user_interactions == 5
    assert preset_reasons(kept, dataset) == []


def test_a_blend_goes_without_a_trend_where_there_are_no_times() -> None:
    rows = [(f"u{user}", f"i{(user + step) % 40}") for user in range(40) for step in range(8)]
    untimed = Dataset.from_frames("w", pd.DataFrame(rows, columns=["user_id", "item_id"]))
    spec = preset_spec("ranking", untimed)
    assert isinstance(spec.recommender, BlendSpec)
    assert "trend" not in [member.family for member in spec.recommender.members]
    assert any("no times" in reason for reason in preset_reasons(spec, untimed))
    timed = pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(timestamp=range(320))
    kept = preset_spec("ranking", Dataset.from_frames("w", timed))
    assert isinstance(kept.recommender, BlendSpec)
    assert "trend" in [member.family for member in kept.recommender.members]
