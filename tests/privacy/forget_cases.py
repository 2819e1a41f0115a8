"""A workspace in which a person has left traces everywhere that the Studio keeps anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_core.data import import_files
from llmrec_core.feedback import FeedbackStore
from llmrec_core.runs import RunStore, run_foreground
from llmrec_core.specs import parse_run_spec
from llmrec_core.workspace import Workspace

PERSON = "zoe-4711@example.org"
DATASET = "shop"


@dataclass
class Place:
    workspace: Workspace
    run_id: str


def write_files(folder: Path, person: str = PERSON, n_users: int = 18, n_items: int = 14) -> list[Path]:
    """Ratings, items and users; the person is one of the users, and one of three refused rows is theirs."""
    rng = np.random.default_rng(3)
    users = [person if u == 7 else f"u{u:02d}" for u in range(n_users)]
    rows = [
        f"{user},{item:03d},{1 + (u + item) % 5},{1_600_000_000 + u * 1000 + step * 10}"
        for u, user in enumerate(users)
        for step, item in enumerate(rng.permutation(n_items)[:8])
    ]
    # Refused: a row of the person, one of somebody called alike, and one of nobody special.
    rows[20:20] = [
        f"{person},003,not a number,1600000500",
        f"x{person[:6]}y,003,bad,1600000500",
        "u01,004,bad,1600000500",
    ]
    ratings, items, people = folder / "ratings.csv", folder / "items.csv", folder / "users.csv"
    ratings.write_text("user_id,item_id,rating,timestamp\n" + "\n".join(rows) + "\n", encoding="utf-8")
    items.write_text(
        "item_id,title,genres\n"
        + "\n".join(f"{i:03d},Film {i},{'Horror' if i % 2 else 'Comedy'}" for i in range(n_items)),
        encoding="utf-8",
    )
    clubs = ["south"] * 2 + ["east"] * 6 + ["north"] * (n_users - 8)
    profiles = [f"{user},{20 + n},{clubs[n]},{person if n == 3 else ''}" for n, user in enumerate(users)]
    people.write_text("user_id,age,club,referred_by\n" + "\n".join(profiles), encoding="utf-8")
    return [ratings, items, people]


def light_spec(**fields):
    return parse_run_spec(
        {
            "dataset": {"name": DATASET},
            "recommender": {"family": "item-knn"},
            "baselines": [{"family": "popularity"}],
            "evaluation": {"n_bootstrap": 100},
            **fields,
        }
    )


def run_light(workspace: Workspace, **fields) -> str:
    run_id = RunStore(workspace).submit(light_spec(**fields))
    status = run_foreground(workspace, run_id, on_event=lambda event: None)
    assert status.state == "done", status.error
    return run_id


def full_workspace(root: Path, files: Path, person: str = PERSON) -> Place:
    """Two versions of the data, a finished run, an evaluation, feedback, uploads, logs and kept explanations."""
    workspace = Workspace.open(root)
    paths = write_files(files, person)
    import_files(workspace, paths, DATASET)
    with open(paths[0], "a", encoding="utf-8") as stream:
        stream.write("u00,013,2,1700000000\n")
    import_files(workspace, paths, DATASET)
    run_id = run_light(workspace)
    folder = workspace.runs / run_id
    feedback = FeedbackStore(workspace)
    for user in (person, "u01"):
        feedback.add(DATASET, run_id=run_id, model="model", user_id=user, item_id="003", rank=1, verdict="up")
    with open(folder / "events.jsonl", "a", encoding="utf-8") as stream:
        event = {"n": 999, "t": 1.0, "type": "log", "level": "info", "message": f"slow prompt for user {person!r}"}
        stream.write(json.dumps(event) + "\n")
    with open(folder / "worker.log", "a", encoding="utf-8") as stream:
        stream.write(f"there is no user {person!r}.\nstep 1 of 1\n")
    # What a later room may keep: answers for one user, and prompts as they were read.
    answers = folder / "artifacts" / "explanations"
    answers.mkdir()
    (answers / "kept.jsonl").write_text(
        "".join(json.dumps({"user_id": user, "sentence": "because"}) + "\n" for user in (person, "u01"))
    )
    pq.write_table(
        pa.table({"user_id": [person, "u01"], "prompt": [f"Reader {person} liked Film 1", "Reader u01 liked Film 2"]}),
        folder / "artifacts" / "predictions.parquet",
    )
    checkpoint = folder / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    upload = workspace.root / "uploads" / "abc"
    upload.mkdir(parents=True)
    (upload / "ratings.csv").write_bytes(paths[0].read_bytes())
    (workspace.root / "serving.log").write_text(f"Traceback\nInputError: there is no user '{person}'.\n")
    return Place(workspace, run_id)


def decoded(path: Path) -> str:
    """Everything in a file as text: tables cell by cell, arrays value by value, the rest as it is."""
    if path.suffix == ".parquet":
        return path.read_bytes().decode("latin-1") + json.dumps(pq.read_table(path).to_pydict(), default=str)
    if path.suffix in (".npy", ".npz"):
        return str(np.load(path, allow_pickle=False))
    return path.read_bytes().decode("utf-8", "replace")


def places_of(workspace: Workspace, needle: str) -> list[str]:
    """Every file of the workspace that holds the text, whatever it is."""
    return [
        path.relative_to(workspace.root).as_posix()
        for path in sorted(workspace.root.rglob("*"))
        if path.is_file() and needle in decoded(path)
    ]
