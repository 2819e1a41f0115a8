"""Rating prediction in five random folds, beside SVD++ of scikit-surprise on the same rows.

    python -m benchmarks.ratings --workspace DIR --surprise PYTHON [--part valid] [--again]

``PYTHON`` is the interpreter of an environment that holds scikit-surprise. Rows are dealt to five folds by a seeded
permutation. Four folds are learnt from, whole; the fifth is asked, every row for a query that holds all training rows
of its user, as SVD++ has them too. Settings were chosen on ``--part valid``: a tenth of the training rows of fold 1,
cut out of them. The test folds are looked at once; ``--again`` looks once more, and the file says how often.
Figures are pooled RMSE, by fold and in all, and over rows whose item or user is thin in training; intervals are those
of a bootstrap over users.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from llmrec_core.contracts import FitContext, HistoryItem, Query, Recommender
from llmrec_core.data import Dataset, DatasetStore, Split, make_split
from llmrec_core.evaluation.intervals import RowMeanStatistic, paired_difference
from llmrec_core.models.device import device_facts
from llmrec_core.models.text_vectors import embed_texts
from llmrec_core.recommenders import registry
from llmrec_core.specs import RunSpec, SplitSpec, canonical_json, parse_run_spec
from llmrec_core.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "ratings"
N_FOLDS = 5
SEED = 0
#: What we call ours; differences are taken from it.
OURS = "ratings"
FAMILIES: dict[str, dict[str, Any]] = {
    OURS: {"family": "ratings"},
    "rating-factors (no text)": {"family": "rating-factors"},
    "bias-knn": {"family": "bias-knn"},
}
#: Rows of the groups: at most so many training ratings of the item, or of the user.
FEW_OF_ITEM, FEW_OF_USER = 5, 20


def folds(n_rows: int) -> list[np.ndarray]:
    """Row positions of each fold."""
    return np.array_split(np.random.default_rng(SEED).permutation(n_rows), N_FOLDS)


def fold_split(dataset: Dataset, number: int, part: str) -> tuple[Split, np.ndarray]:
    """A split whose training rows are learnt from, and the rows that are asked; ``number`` from 1."""
    dealt = folds(len(dataset.interactions))
    asked = np.sort(dealt[number - 1])
    train = np.concatenate([rows for fold, rows in enumerate(dealt, start=1) if fold != number])
    if part == "valid":
        drawn = np.random.default_rng(SEED + 1).permutation(train)
        n_valid = len(drawn) // 10
        asked, train = np.sort(drawn[:n_valid]), drawn[n_valid:]
    whole = make_split(dataset, SplitSpec(protocol="random"))
    users = dataset.interactions["user_idx"].to_numpy()
    times = dataset.interactions["timestamp"].to_numpy()
    train = train[np.lexsort((train, times[train], users[train]))]
    return replace(whole, train=train, valid=asked[:0], test=asked), asked


def predict(recommender: Recommender, split: Split, asked: np.ndarray) -> np.ndarray:
    """Ratings of the asked rows, each from all training rows of its user."""
    table = split.dataset.interactions
    users, items = (table[name].to_numpy(np.int64) for name in ("user_idx", "item_idx"))
    ids, ratings, times = split.dataset.item_ids, table["rating"].to_numpy(float), table["timestamp"].to_numpy(float)
    known: dict[int, list[HistoryItem]] = {}
    for row in split.train.tolist():
        known.setdefault(int(users[row]), []).append(HistoryItem(ids[items[row]], ratings[row], times[row]))
    found = np.empty(len(asked))
    for user in np.unique(users[asked]).tolist():
        rows = np.flatnonzero(users[asked] == user)
        user_id = str(split.dataset.user_ids[user])
        query = Query(user_id, tuple(known.get(user, ())), split.dataset.profile(user_id))
        predicted = recommender.predict_ratings([query], items[asked[rows]][None])
        assert predicted is not None
        found[rows] = predicted[0]
    return found


def surprise_svdpp(python: Path, split: Split, asked: np.ndarray) -> tuple[np.ndarray, str]:
    """What SVD++ of scikit-surprise expects of the asked rows, and the version of the library."""
    table = split.dataset.interactions
    columns = {name: table[name].to_numpy() for name in ("user_idx", "item_idx", "rating")}
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "fold.npz", Path(folder) / "expected.npz"
        np.savez(
            given,
            users=columns["user_idx"][split.train],
            items=columns["item_idx"][split.train],
            ratings=columns["rating"][split.train].astype(float),
            asked_users=columns["user_idx"][asked],
            asked_items=columns["item_idx"][asked],
            scale=np.array(split.dataset.rating_scale),
        )
        script = Path(__file__).with_name("_surprise_ratings.py")
        subprocess.run([python, script, given, answer, str(SEED)], check=True)
        with np.load(answer, allow_pickle=False) as found:
            return found["expected"], str(found["version"])


def measure(dataset: Dataset, workspace: Workspace, part: str, python: Path | None) -> dict[str, Any]:
    """All recommenders on all folds (validation: on fold 1 alone)."""
    runs: dict[str, RunSpec] = {
        name: parse_run_spec({"dataset": {"name": dataset.name}, "recommender": fields, "seed": SEED})
        for name, fields in FAMILIES.items()
    }
    expected: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, list[float]] = {}
    rows: list[np.ndarray] = []
    thin: dict[str, list[np.ndarray]] = {}
    version = None
    users, items = (dataset.interactions[name].to_numpy(np.int64) for name in ("user_idx", "item_idx"))
    numbers = [1] if part == "valid" else list(range(1, N_FOLDS + 1))
    for number in numbers:
        split, asked = fold_split(dataset, number, part)
        rows.append(asked)
        of_item = split.train_item_counts[items[asked]]
        of_user = np.bincount(users[split.train], minlength=dataset.n_users)[users[asked]]
        for name, group in {
            "item never rated in training": of_item == 0,
            f"item rated at most {FEW_OF_ITEM} times": of_item <= FEW_OF_ITEM,
            f"user with at most {FEW_OF_USER} ratings": of_user <= FEW_OF_USER,
        }.items():
            thin.setdefault(name, []).append(group)
        for name, run in runs.items():
            recommender = registry.build(run, run.recommender)
            started = time.process_time()
            recommender.fit(split, FitContext(workspace.models, "cpu", SEED))
            seconds.setdefault(name, []).append(round(time.process_time() - started, 1))
            expected.setdefault(name, []).append(predict(recommender, split, asked))
        if python is not None:
            started = time.monotonic()
            found, version = surprise_svdpp(python, split, asked)
            seconds.setdefault("SVD++ (wall)", []).append(round(time.monotonic() - started, 1))
            expected.setdefault("SVD++", []).append(found)
        errors = {name: round(_rmse(dataset, asked, values[-1]), 4) for name, values in expected.items()}
        print(f"fold {number}:", errors, flush=True)
    return {
        "protocol": f"{N_FOLDS} folds of all rows by default_rng({SEED}).permutation; "
        + ("fold 1: a tenth of its training rows asked, the rest learnt" if part == "valid" else "each asked once"),
        "scikit-surprise": version,
        "models": _figures(dataset, rows, expected, thin),
        "fit_cpu_s": seconds,
        "specs": {name: run.recommender.model_dump(mode="json") for name, run in runs.items()},
        "spec_sha256": {name: run.spec_hash() for name, run in runs.items()},
        "rows_sha256": hashlib.sha256(np.concatenate(rows).astype("<i8").tobytes()).hexdigest(),
    }


def _rmse(dataset: Dataset, rows: np.ndarray, expected: np.ndarray) -> float:
    truth = dataset.interactions["rating"].to_numpy(float)[rows]
    return float(np.sqrt(np.mean((expected - truth) ** 2))) if len(rows) else float("nan")


def _figures(
    dataset: Dataset,
    rows: list[np.ndarray],
    expected: Mapping[str, list[np.ndarray]],
    thin: Mapping[str, list[np.ndarray]],
) -> dict[str, Any]:
    """RMSE by fold, their mean, over the thin groups, and the difference of the others from ours."""
    asked = np.concatenate(rows)
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[asked]
    truth = dataset.interactions["rating"].to_numpy(float)[asked]
    statistics = {
        name: RowMeanStatistic((np.concatenate(values) - truth) ** 2, users, dataset.n_users, root=True)
        for name, values in expected.items()
    }
    document: dict[str, Any] = {}
    for name, values in expected.items():
        by_fold = [_rmse(dataset, own, found) for own, found in zip(rows, values, strict=True)]
        groups = {}
        for group, masks in thin.items():
            mask = np.concatenate(masks)
            groups[group] = {
                "rmse": _rmse(dataset, asked[mask], np.concatenate(values)[mask]),
                "n_rows": int(mask.sum()),
            }
        document[name] = {"rmse": float(np.mean(by_fold)), "by_fold": by_fold, "groups": groups}
        if name != OURS:
            gap = paired_difference(statistics[OURS], statistics[name], dataset.n_users, n_resamples=2000, seed=SEED)
            document[name]["ours_minus_this"] = asdict(gap)
    return document


def table(document: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    groups = list(document["models"][OURS]["groups"])
    sizes = [document["models"][OURS]["groups"][group]["n_rows"] for group in groups]
    head = " | ".join(f"{group} ({size} rows)" for group, size in zip(groups, sizes, strict=True))
    lines = [f"| {document['part']} | RMSE | ours minus this [95 %] | {head} |", "|---|---|---|" + "---|" * len(groups)]
    for name, found in sorted(document["models"].items(), key=lambda entry: entry[1]["rmse"]):
        gap = found.get("ours_minus_this")
        told = f"{gap['mean']:+.4f} [{gap['ci_low']:+.4f}, {gap['ci_high']:+.4f}]" if gap else ""
        own = " | ".join(f"{found['groups'][group]['rmse']:.3f}" for group in groups)
        lines.append(f"| {name} | {found['rmse']:.4f} | {told} | {own} |")
    return "\n".join(lines)


def texts_read_once() -> Any:
    """A context in which equal lists of texts are read by the language model once: all folds have the same items."""
    read: dict[tuple[str, ...], Any] = {}

    def remembered(backbone: Any, texts: list[str], **how: Any) -> Any:
        key = tuple(texts)
        if key not in read:
            read[key] = embed_texts(backbone, texts, **how)
        return read[key]

    return mock.patch("llmrec_core.recommenders.content_knn.embed_texts", remembered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="where the data set and the models are")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--surprise", type=Path, help="python of an environment with scikit-surprise")
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--again", action="store_true", help="look at the test folds once more")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and nothing else")
    arguments = parser.parse_args()
    path = RESULTS / f"{arguments.part}.json"
    looks = json.loads(path.read_text())["looks"] if path.exists() else 0
    if arguments.table:
        print(table(json.loads(path.read_text())))
        return
    if arguments.workspace is None:
        parser.error("name a workspace")
    if arguments.part == "test":
        if arguments.surprise is None:
            parser.error("the test is measured beside SVD++: name --surprise")
        if looks and not arguments.again:
            raise SystemExit(f"{path.name} stands: the test was looked at. Measure it again with --again.")
    workspace = Workspace.open(arguments.workspace)
    dataset = DatasetStore(workspace).load(arguments.dataset)
    with texts_read_once():
        measured = measure(dataset, workspace, arguments.part, arguments.surprise)
    document = {
        "part": arguments.part,
        "looks": looks + 1,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        **measured,
        "machine": {**asdict(device_facts()), "python": platform.python_version()},
    }
    document["sha256"] = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
