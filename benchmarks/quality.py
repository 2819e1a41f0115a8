"""Quality of the ranking families against their floors: a figure a line, three seeds, intervals over users.

    python -m benchmarks.quality --workspace DIR ranking sequential ... [--part valid] [--seeds 0 1 2] [--again]

A line is measured on the validation part unless ``--part test`` is given: settings are chosen there, and the test is
looked at once. A test figure that stands already is only measured again with ``--again``, and the file then says how
often the test was looked at. Every line writes ``benchmarks/results/quality/LINE.PART.json`` with its specs, seeds,
hashes and per-seed figures; ``--table`` prints the table of ``benchmarks/README.md`` from these files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.data import DatasetStore, EvalSet, Split, make_split
from llmrec_core.evaluation.intervals import MeanStatistic, RowMeanStatistic, paired_difference
from llmrec_core.evaluation.metrics import Hits
from llmrec_core.models.device import device_facts, resolve_device
from llmrec_core.presets import preset_spec
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.blend import BlendRecommender
from llmrec_core.recommenders.pipeline import PipelineRecommender
from llmrec_core.specs import PipelineSpec, RunSpec, canonical_json, parse_run_spec
from llmrec_core.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "quality"
K = 10
#: Name of a file -> what it holds.
Documents = dict[str, dict[str, Any]]
_FIVE_CORE = {"protocol": "leave-one-out", "min_user_interactions": 5, "min_item_interactions": 5}


@dataclass(frozen=True)
class Measured:
    """Per-user values [n_users] of one recommender, in the order of the users asked."""

    ndcg: np.ndarray
    hit_rate: np.ndarray

    def means(self) -> dict[str, float]:
        return {f"ndcg@{K}": float(np.nanmean(self.ndcg)), f"hit_rate@{K}": float(np.nanmean(self.hit_rate))}


def measure(recommender: Recommender, held_out: EvalSet) -> Measured:
    """Full ranking of the catalogue for every held-out user, seen items left out."""
    rankings = recommender.top_k(held_out.queries, K, held_out.exclude)
    ranked = np.full((len(rankings), K), -1, np.int64)
    for row, ranking in enumerate(rankings):
        ranked[row, : len(ranking.items)] = ranking.items
    hits = Hits.of(ranked, held_out.targets)
    return Measured(hits.ndcg(K), hits.hit_rate(K))


class Bench:
    """One workspace and part; says what is being done, keeps what was fitted."""

    def __init__(self, workspace: Workspace, dataset: str, part: str, seeds: Sequence[int]) -> None:
        self.workspace, self.part, self.seeds = workspace, part, list(seeds)
        self.dataset = DatasetStore(workspace).load(dataset)
        self.device = str(resolve_device("auto"))

    def spec(self, fields: Mapping[str, Any]) -> RunSpec:
        return parse_run_spec({**fields, "dataset": {"name": self.dataset.name}})

    def preset(self, name: str, seed: int, split: Mapping[str, Any] | None = None) -> RunSpec:
        overrides = {f"split.{field}": value for field, value in (split or _FIVE_CORE).items()}
        return preset_spec(name, self.dataset.name, {**overrides, "seed": seed})

    def fit(self, run: RunSpec, split: Split) -> tuple[Recommender, float]:
        """A fitted recommender and the seconds that the fit took."""
        recommender = registry.build(run, run.recommender)
        started = time.monotonic()
        recommender.fit(split, FitContext(self.workspace.models, self.device, run.seed, emit=_say))
        return recommender, time.monotonic() - started


def _say(event: str, **values: Any) -> None:
    if event == "log":
        print("   ", values["message"], flush=True)


def compare(ours: Sequence[Measured], floors: Sequence[Measured]) -> dict[str, float]:
    """Mean NDCG difference over seeds, with the interval of a bootstrap over users; seeds are averaged user by user."""
    left = np.mean([m.ndcg for m in ours], axis=0)
    right = np.mean([m.ndcg for m in floors], axis=0)
    found = paired_difference(MeanStatistic(left), MeanStatistic(right), len(left), n_resamples=2000, seed=0)
    return {"mean": found.mean, "ci_low": found.ci_low, "ci_high": found.ci_high, "n": found.n}


def against_floors(
    bench: Bench,
    runs: Mapping[int, RunSpec],
    floors: Mapping[str, RunSpec],
    fitted: Mapping[int, Recommender] | None = None,
    max_users: int | None = None,
) -> tuple[dict[int, Recommender], dict[str, Any]]:
    """One family with several seeds against floors that are fitted once, all on the same split and users.

    Args:
        max_users: at most so many users, drawn with seed 0; None: all.

    Returns:
        What was fitted (or came as ``fitted``) by seed, and the document of figures.
    """
    split = make_split(bench.dataset, next(iter(runs.values())).split)
    held_out = split.queries(bench.part, max_users=max_users, seed=0)
    found: dict[str, Any] = {"protocol": split.describe(), "n_users": len(held_out), "seeds": {}, "floors": {}}
    recommenders: dict[int, Recommender] = {}
    ours = []
    for seed, run in runs.items():
        took: dict[str, float] = {}
        if fitted is None:
            recommenders[seed], took["fit_s"] = bench.fit(run, split)
        else:
            recommenders[seed] = fitted[seed]
        started = time.monotonic()
        ours.append(measure(recommenders[seed], held_out))
        took["rank_s"] = time.monotonic() - started
        rounded = {name: round(value, 1) for name, value in took.items()}
        found["seeds"][str(seed)] = {**ours[-1].means(), **rounded, "spec_sha256": run.spec_hash()}
        print(f"  seed {seed}:", found["seeds"][str(seed)], flush=True)
    found["mean"] = {name: float(np.mean([m.means()[name] for m in ours])) for name in ours[0].means()}
    for name, run in floors.items():
        recommender, seconds = bench.fit(run, split)
        floor = measure(recommender, held_out)
        found["floors"][name] = {**floor.means(), "fit_s": round(seconds, 1), "difference": compare(ours, [floor])}
        print(f"  {name}:", found["floors"][name], flush=True)
    found["spec"] = next(iter(runs.values())).model_dump(mode="json")
    weights = {
        str(seed): {"model_weight": recommender.fusion.model_weight, "on_validation": recommender.fusion_grid}
        for seed, recommender in recommenders.items()
        if isinstance(recommender, PipelineRecommender) and recommender.fusion is not None
    }
    return recommenders, found | ({"fusion": weights} if weights else {})


def preset(name: str, bench: Bench, max_users: int | None = None) -> Documents:
    """A preset as it stands, against what is free; of pipelines also how much their model was found to be worth."""
    floors = _floors(bench, _FIVE_CORE, **{"item-knn": {"family": "item-knn"}, "popularity": {"family": "popularity"}})
    runs = {seed: bench.preset(name, seed) for seed in bench.seeds}
    retriever = next(iter(runs.values())).recommender
    if isinstance(retriever, PipelineSpec):
        floors |= _floors(bench, _FIVE_CORE, **{"its retriever alone": retriever.retriever.model_dump(mode="json")})
    return {name: against_floors(bench, runs, floors, max_users=max_users)[1]}


def rating_preset(name: str, bench: Bench) -> Documents:
    """A preset whose question is how many stars: errors on the held-out rating of each user, beside other families."""
    run = bench.preset(name, bench.seeds[0])
    split = make_split(bench.dataset, run.split)
    held_out = split.queries(bench.part, max_users=None, seed=0)
    items = np.array([targets[0] for targets in held_out.targets], np.int64)[:, None]
    truth = _ratings_of(split, bench.part, held_out, items[:, 0])
    errors: dict[str, np.ndarray] = {}
    others = {other: bench.spec({"split": _FIVE_CORE, "recommender": {"family": other}}) for other in _RATE}
    found: dict[str, Any] = {"protocol": split.describe(), "n_users": len(held_out), "rmse": {}, "seed": run.seed}
    for label, each in {name: run, **others}.items():
        recommender, seconds = bench.fit(each, split)
        expected = recommender.predict_ratings(held_out.queries, items)
        assert expected is not None
        errors[label] = expected[:, 0].astype(np.float64) - truth
        found["rmse"][label] = {"rmse": float(np.sqrt(np.mean(errors[label] ** 2))), "fit_s": round(seconds, 1)}
        if label != name:
            ours, theirs = (RowMeanStatistic(errors[who] ** 2, np.arange(len(truth)), len(truth), root=True)
                            for who in (name, label))  # fmt: skip
            gap = paired_difference(ours, theirs, len(truth), n_resamples=2000, seed=0)
            found["rmse"][label]["ours_minus_this"] = asdict(gap)
        print(f"  {label}:", found["rmse"][label], flush=True)
    return {name: found | {"spec": run.model_dump(mode="json"), "spec_sha256": run.spec_hash()}}


def _ratings_of(split: Split, part: str, held_out: EvalSet, items: np.ndarray) -> np.ndarray:
    """The rating that each held-out user gave the item."""
    rows = getattr(split, part)
    table = split.dataset.interactions
    users, had, rating = (table[name].to_numpy()[rows] for name in ("user_idx", "item_idx", "rating"))
    given = dict(zip(zip(users.tolist(), had.tolist(), strict=True), rating.astype(float).tolist(), strict=True))
    return np.array([given[pair] for pair in zip(held_out.users.tolist(), items.tolist(), strict=True)])


def ranking(bench: Bench) -> Documents:
    """Presets ``ranking`` and ``sequential``: the blend holds the other's model, so that is fitted once."""
    floors = _floors(bench, _FIVE_CORE, **{"item-knn": {"family": "item-knn"}, "popularity": {"family": "popularity"}})
    runs = {seed: bench.preset("ranking", seed) for seed in bench.seeds}
    blends, blend = against_floors(bench, runs, floors)
    alone = {seed: bench.preset("sequential", seed) for seed in bench.seeds}
    members = {}
    for seed, recommender in blends.items():
        assert isinstance(recommender, BlendRecommender)
        members[seed] = next(member for member in recommender.members if member.spec == alone[seed].recommender)
    ids = _floors(bench, _FIVE_CORE, **{"ids alone": _IDS_ALONE})
    _, sequential = against_floors(bench, alone, floors | ids, members)
    return {"ranking": blend, "sequential": sequential}


def _runs(bench: Bench, split: Mapping[str, Any], recommender: Mapping[str, Any]) -> dict[int, RunSpec]:
    fields = {"split": split, "recommender": recommender}
    return {seed: bench.spec({**fields, "seed": seed}) for seed in bench.seeds}


def _floors(bench: Bench, split: Mapping[str, Any], **floors: Mapping[str, Any]) -> dict[str, RunSpec]:
    return {name: bench.spec({"split": split, "recommender": fields}) for name, fields in floors.items()}


_CONTENT_KNN = {"family": "content-knn"}
#: Families that say how many stars.
_RATE = ("bias-knn", "rating-factors", "ratings")
_IDS_ALONE = {"family": "sequential", "model": None}


def cold_items(bench: Bench) -> Documents:
    """A tenth of the items withheld from training, ranked among themselves. (``sequential`` has the warm figures.)"""
    split = {**_FIVE_CORE, "protocol": "cold-item", "rank_among": "withheld"}
    floors = {"content-knn": _CONTENT_KNN, "ids alone": _IDS_ALONE, "popularity": {"family": "popularity"}}
    runs = _runs(bench, split, {"family": "sequential"})
    return {"cold-items": against_floors(bench, runs, _floors(bench, split, **floors))[1]}


def cold_users(bench: Bench) -> Documents:
    """Users whose first k interactions are all that is known, and who were in no training row.

    Whoever is held out is the same for every k, and so are the training rows: the members of the blend are fitted once,
    and weighed for each k on its validation users.
    """
    splits = {}
    for known in (0, 1, 3, 5):
        fields = {**_FIVE_CORE, "protocol": "cold-user", "known_interactions": known}
        splits[known] = make_split(bench.dataset, bench.spec({"split": fields}).split)
        if not np.array_equal(splits[known].train, splits[0].train):
            raise SystemExit(f"other training rows with {known} known interactions: fit each k on its own.")
    fields = {**_FIVE_CORE, "protocol": "cold-user", "known_interactions": 3}
    ours = []
    for seed in bench.seeds:
        run = bench.preset("ranking", seed, fields)
        recommender, seconds = bench.fit(run, splits[3])
        assert isinstance(recommender, BlendRecommender)
        ours.append(recommender)
        print(f"  seed {seed}: {seconds:.0f} s", flush=True)
    floors = {
        name: bench.fit(run, splits[3])[0]
        for name, run in _floors(
            bench, fields, popularity={"family": "popularity"}, **{"content-knn": _CONTENT_KNN}
        ).items()
    }
    found: dict[str, Any] = {"spec": run.model_dump(mode="json")}
    for known, split in splits.items():
        held_out = split.queries(bench.part)
        for recommender, seed in zip(ours, bench.seeds, strict=True):
            recommender.weigh(split, FitContext(seed=seed, emit=_say))
        mine = [measure(recommender, held_out) for recommender in ours]
        point: dict[str, Any] = {
            "protocol": split.describe(),
            "n_users": len(held_out),
            "mean": {name: float(np.mean([m.means()[name] for m in mine])) for name in mine[0].means()},
            "seeds": [m.means() for m in mine],
            "floors": {},
        }
        for name, floor in floors.items():
            theirs = measure(floor, held_out)
            point["floors"][name] = {**theirs.means(), "difference": compare(mine, [theirs])}
        found[str(known)] = point
        print(f"  {known} known:", {k: v for k, v in point.items() if k in ("mean", "floors")}, flush=True)
    return {"cold-users": found}


LINES: dict[str, Callable[[Bench], Documents]] = {
    "ranking": ranking,
    "cold-items": cold_items,
    "cold-users": cold_users,
    "two-tower": partial(preset, "two-tower"),
    "bert-click": partial(preset, "bert-click"),
    "bert-rating": partial(rating_preset, "bert-rating"),
    "bert-rank": partial(preset, "bert-rank"),
    "multitask": partial(preset, "multitask"),
    # A decoder reads some ten candidates a second here.
    **{name: partial(preset, name, max_users=300) for name in ("yes-no", "listwise", "generate", "zero-shot")},
}


def run_line(name: str, bench: Bench, again: bool) -> list[Path]:
    """Measures a line and writes its files.

    Raises:
        SystemExit: the test was looked at before and ``again`` is not set.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.{bench.part}.json"
    looks = json.loads(path.read_text())["looks"] if path.exists() else 0
    if looks and bench.part == "test" and not again:
        raise SystemExit(f"{path.name} stands: the test of {name!r} was looked at. Measure it again with --again.")
    started = time.monotonic()
    written = []
    for title, found in LINES[name](bench).items():
        document = {
            "line": title,
            "part": bench.part,
            "looks": looks + 1,
            "dataset": {"name": bench.dataset.name, "fingerprint": bench.dataset.fingerprint},
            **found,
            "total_s": round(time.monotonic() - started, 1),
            "machine": {**asdict(device_facts()), "python": platform.python_version()},
        }
        document["sha256"] = hashlib.sha256(canonical_json(document).encode()).hexdigest()
        written.append(RESULTS / f"{title}.{bench.part}.json")
        written[-1].write_text(json.dumps(document, indent=1) + "\n")
    return written


def table() -> str:
    """What the committed files say, as Markdown; test figures where they stand, else validation, and said so."""
    lines = [
        "| on | users | seeds | NDCG@10 | HR@10 | floor: NDCG@10 | difference [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(("ranking", "sequential", *LINES)):
        paths = [RESULTS / f"{name}.{part}.json" for part in ("test", "valid")]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            continue
        document = json.loads(path.read_text())
        for title, found in _measurements(document):
            label = f"{name}{title}" + ("" if document["part"] == "test" else " (validation)")
            for floor, values in found["floors"].items():
                gap = values["difference"]
                lines.append(
                    f"| {label} | {found['n_users']} | {len(found['seeds'])} | {found['mean'][f'ndcg@{K}']:.4f} | "
                    f"{found['mean'][f'hit_rate@{K}']:.3f} | {floor}: {values[f'ndcg@{K}']:.4f} | "
                    f"{gap['mean']:+.4f} [{gap['ci_low']:+.4f}, {gap['ci_high']:+.4f}] |"
                )
    return "\n".join(lines)


def _measurements(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(what it is called within its line, figures): a line has one, or one for each case."""
    if "floors" in document:
        return [("", document)]
    return [(f", {case}", found) for case, found in document.items() if isinstance(found, dict) and "floors" in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", help=f"what to measure: {', '.join(LINES)}")
    parser.add_argument("--workspace", type=Path, help="where the data set and the models are")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and nothing else")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="look at the test once more")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    unknown = set(arguments.lines) - set(LINES)
    if unknown or not arguments.lines or arguments.workspace is None:
        parser.error(f"name a workspace and lines among {', '.join(LINES)}")
    bench = Bench(Workspace.open(arguments.workspace), arguments.dataset, arguments.part, arguments.seeds)
    for name in arguments.lines:
        print(name, flush=True)
        print(*run_line(name, bench, arguments.again))


if __name__ == "__main__":
    main()
