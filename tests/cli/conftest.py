"""A small workspace made through the command line itself, with a tiny random BERT as a local model folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from llmrec_core.cli import app


@dataclass
class Answer:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout)


@dataclass
class Llmrec:
    """Calls ``llmrec`` in this process on one workspace."""

    workspace: Path

    def __call__(self, *args: object) -> Answer:
        result = CliRunner().invoke(app, [str(a) for a in args], env={"LLMREC_WORKSPACE": str(self.workspace)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)


def write_csvs(folder: Path, n_users: int = 24, n_items: int = 20, seed: int = 0) -> tuple[Path, Path]:
    """Ratings of two taste groups over two genres, and the items' titles; ids look like numbers with zeros."""
    rng = np.random.default_rng(seed)
    items = folder / "movies.csv"
    rows = [f"{i:03d},Film number {i},{'Horror' if i % 2 else 'Comedy'}" for i in range(n_items)]
    items.write_text("movieId,title,genres\n" + "\n".join(rows) + "\n", encoding="utf-8")
    ratings = folder / "ratings.csv"
    lines = []
    for user in range(n_users):
        for step, item in enumerate(rng.permutation(n_items)[:10]):
            rating = 5 if item % 2 == user % 2 else 1 + int(rng.integers(2))
            lines.append(f"u{user:02d},{item:03d},{rating},{1_600_000_000 + user * 1000 + step * 10}")
    ratings.write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return ratings, items


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    from tiny_models import write_tiny_bert

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    write_tiny_bert(folder)
    return folder


@pytest.fixture(scope="session")
def llmrec(tmp_path_factory):
    """A workspace holding dataset "mini"; tests that change it use names of their own."""
    call = Llmrec(tmp_path_factory.mktemp("workspace"))
    ratings, items = write_csvs(tmp_path_factory.mktemp("files"))
    answer = call("data", "import", ratings, items, "--name", "mini", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["rows_accepted"] == 240
    return call


#: Settings that make a real fine-tuning of the tiny model last seconds.
SMALL = [
    "--set=split.min_user_interactions=0",
    "--set=split.min_item_interactions=0",
    "--set=training.max_samples=120",
    "--set=training.batch_size=16",
    "--set=training.validation_every=4",
    "--set=training.validation_samples=32",
    "--set=training.precision=fp32",
    "--set=recommender.n_candidates=6",
    "--set=recommender.fusion_users=10",
    "--set=evaluation.max_users=12",
    "--set=evaluation.n_bootstrap=100",
]


@pytest.fixture(scope="session")
def trained(llmrec, tiny_model):
    """The result document of a finished run of the tiny cross-encoder pipeline."""
    model = f"--set=recommender.ranker.model={tiny_model}"
    answer = llmrec(
        "train",
        "--preset",
        "bert-click",
        "--dataset",
        "mini",
        model,
        "--set=recommender.retriever.family=item-knn",
        *SMALL,
        "--json",
    )
    assert answer.exit_code == 0, answer.stderr
    return answer.json
