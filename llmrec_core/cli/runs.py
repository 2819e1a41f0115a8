"""``train``, ``evaluate`` and ``runs``: start runs, follow them live, look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from llmrec_core.cli._shared import (
    JsonOption,
    PolicyOption,
    SetOption,
    WorkspaceOption,
    app,
    err,
    out,
    plain,
    print_json,
    runs_app,
    table,
    workspace_of,
)
from llmrec_core.errors import InputError, NotFoundError, RunCancelledError, RunFailedError, SpecError
from llmrec_core.presets import PRESETS, override_spec, parse_assignment, preset_spec
from llmrec_core.specs import RunSpec, parse_policies, parse_run_spec, ranker_of
from llmrec_core.workspace import Workspace

#: What a policy is shown to change, step by step.
_POLICY_METRICS = ("ndcg", "novelty", "diversity", "miscalibration", "gini")


def _read_spec(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError("the spec file does not exist.", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the spec cannot be read: {error}.", where=str(path), fix="Save it as UTF-8 text.") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"this is not YAML: {error}.", where=str(path), fix="Correct it.") from None
    if not isinstance(raw, dict):
        raise SpecError("a spec is a mapping of fields.", where=str(path), fix="See the README for an example.")
    return raw


@app.command(
    # Blank lines keep each preset a paragraph of its own.
    epilog="Presets:\n\n" + "\n\n".join(f"{p.name} - {p.when} Needs: {p.needs}." for p in PRESETS.values()),
)
def train(
    spec_file: Annotated[Path | None, typer.Argument(help="A run spec in YAML.", metavar="[SPEC.yaml]")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help=f"One of: {', '.join(PRESETS)}.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Dataset to train on.")] = None,
    assignments: SetOption = None,
    policies: PolicyOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background and return the run id.")] = False,
    continue_from: Annotated[
        str | None,
        typer.Option(
            "--continue-from",
            help="Second stage: the spec and the weights of a finished run, with what --set changes, for example "
            "'objectives=[{task: rank}]'.",
        ),
    ] = None,
    going_on: Annotated[
        str | None,
        typer.Option(
            "--continue",
            help="Goes on with newer data: a finished run's spec and weights, on the newest version of its dataset (or "
            "on --dataset). Old interactions are mixed in (--set continual.replay=0.3); what is forgotten is told.",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune and measure: a spec file, a preset on a dataset, or what goes on from a finished run."""
    place = workspace_of(workspace)
    overrides = _overrides(assignments, policies)
    if sum(given is not None for given in (spec_file, preset, continue_from, going_on)) != 1:
        fix = f"Presets: {', '.join(PRESETS)}."
        raise SpecError("give either a spec file, --preset, --continue-from or --continue.", fix=fix)
    if going_on is not None:
        from llmrec_core.runs import RunStore

        first = RunStore(place).get(going_on).spec
        newer = {"name": dataset or first.dataset.name, "version": None}
        again = {"kind": "train", "parent_run": None, "continue_from": going_on, "continual": {}, "dataset": newer}
        spec = override_spec(override_spec(first, again), overrides)
    elif continue_from is not None:
        from llmrec_core.runs import RunStore

        first = RunStore(place).get(continue_from).spec
        again = {"kind": "train", "parent_run": None, "continue_from": continue_from, "continual": None}
        again["compression"] = None
        spec = override_spec(first, {**again, **overrides})
    elif preset is not None:
        if dataset is None:
            raise SpecError("--preset needs --dataset.", where="--dataset", fix="See `llmrec data list`.")
        from llmrec_core.data import DatasetStore

        spec = preset_spec(preset, DatasetStore(place).load(dataset), overrides)
    else:
        assert spec_file is not None
        raw = _read_spec(spec_file)
        if dataset is not None:
            raw["dataset"] = {"name": dataset}
        spec = override_spec(parse_run_spec(raw, where=str(spec_file)), overrides)
    _run(place, spec, detach=detach, as_json=as_json)


@app.command()
def evaluate(
    run: str,
    assignments: SetOption = None,
    policies: PolicyOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run again, for example with --set evaluation.max_users=null or --policy diversity."""
    from llmrec_core.runs import RunStore

    place = workspace_of(workspace)
    base = RunStore(place).get(run).spec
    overrides = _overrides(assignments, policies)
    _run(place, override_spec(base, {"kind": "evaluate", "parent_run": run, **overrides}), as_json=as_json)


def _overrides(assignments: list[str] | None, policies: list[str] | None) -> dict[str, Any]:
    """Dotted paths and their values from ``--set`` and ``--policy``."""
    found = dict(parse_assignment(a) for a in assignments or [])
    if policies:
        found["policies"] = [policy.model_dump(mode="json") for policy in parse_policies(policies)]
    return found


def _run(place: Workspace, spec: RunSpec, *, as_json: bool, detach: bool = False) -> None:
    """Submits ``spec``; waits with live progress unless detached; prints the result."""
    from llmrec_core.models.catalogue import fetch_model, find_model, model_folder
    from llmrec_core.runs import RunStore
    from llmrec_core.runs.store import resolve_dataset

    store = RunStore(place)
    resolve_dataset(place, spec.dataset)  # an unknown dataset is refused before anything is fetched
    name = getattr(ranker_of(spec.recommender), "model", None)
    if name is not None:
        entry = find_model(place, name)
        if entry.source == "hub" and model_folder(place, name) is None:
            # Workers do not reach out to hubs; what they need is brought before.
            fetch_model(place, name, progress=lambda text: err.print(plain(text)))
    run_id = store.submit(spec)
    if detach:
        leave_queued(place, run_id, as_json)
    else:
        follow(place, run_id, as_json)


def leave_queued(place: Workspace, run_id: str, as_json: bool) -> None:
    """Lets another process serve the queue, and says how a queued run is followed."""
    from llmrec_core.runs import detach as start_detached

    start_detached(place)
    if as_json:
        print_json({"run_id": run_id, "state": "queued"})
    else:
        out.print(f"{run_id} is queued; follow it with: llmrec runs show {run_id}")


def follow(place: Workspace, run_id: str, as_json: bool, *, quiet: bool = False) -> None:
    """Runs a queued run here with live progress on stderr, then prints its result; ``quiet``: only that it is done."""
    from llmrec_core.runs import RunStore, run_foreground

    store = RunStore(place)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=True,
    ) as progress:
        bar = progress.add_task(f"{run_id} queued", total=None, note="")

        def on_event(event: dict[str, Any]) -> None:
            kind = event.get("type")
            if kind == "stage":
                progress.reset(bar, total=None, description=f"{run_id} {plain(event['stage'])}", note="")
            elif kind in ("progress", "train"):
                note = f"loss {event['loss']:.4f}" if event.get("loss") is not None else ""
                progress.update(bar, completed=event.get("step", 0), total=event.get("total"), note=note)
            elif kind == "validation":
                figures = ", ".join(f"{k} {v:.4f}" for k, v in event["metrics"].items() if v is not None)
                progress.console.print(f"validation at step {event['step']}: {figures}", highlight=False)
            elif kind == "log":
                progress.console.print(plain(event["message"]), highlight=False, soft_wrap=True)

        status = run_foreground(place, run_id, on_event)
    if status.state == "cancelled":
        raise RunCancelledError(f"run {run_id} was cancelled.", fix=f"Go on with: llmrec runs resume {run_id}")
    if status.state != "done":
        # Input that only the worker could judge (a template, a model folder) keeps its own exit code.
        kind = InputError if status.exit_code == InputError.exit_code else RunFailedError
        raise kind(status.error or f"the run is {status.state}.", where=run_id, fix=f"See: llmrec runs logs {run_id}")
    result = store.result(run_id)
    if as_json:
        print_json(result)
    elif not quiet:
        _print_result(result)
    else:
        out.print(f"{run_id} done in {result['elapsed_s']:.0f} s")


def _print_result(result: dict[str, Any]) -> None:
    shown = table("metric", "model", *result["baselines"])

    def cell(value: dict[str, Any] | None) -> str:
        if not value or value["mean"] is None:
            return "-"
        return f"{value['mean']:.4f} [{value['ci_low']:.4f}, {value['ci_high']:.4f}]".replace("[", r"\[")

    for name, value in result["metrics"].items():
        shown.add_row(name, cell(value), *(cell(floor.get(name)) for floor in result["baselines"].values()))
    out.print(shown)
    out.print(plain(result["verdict"]), soft_wrap=True)
    _print_policies(result.get("policies"))
    _print_continual(result.get("continual"))
    err.print(f"Protocol: {plain(result['protocol'])}", soft_wrap=True)
    out.print(f"{result['run_id']} done in {result['elapsed_s']:.0f} s")


def _print_continual(found: dict[str, Any] | None) -> None:
    """What is known and forgotten after going on with newer data."""
    if found is None:
        return
    shown = table("asked", "metric", "users", "before", "after", "difference")
    for part in found["parts"].values():
        for metric, values in (part or {"metrics": {}})["metrics"].items():
            apart = values["difference"]
            shown.add_row(
                plain(part["title"]),
                metric,
                str(part["n_users"]),
                f"{values['before']['mean']:.4f}",
                f"{values['after']['mean']:.4f}",
                f"{apart['mean']:+.4f} \\[{apart['ci_low']:+.4f}, {apart['ci_high']:+.4f}]",
            )
    out.print(shown)
    out.print(plain(found["sentence"]), soft_wrap=True)


def _print_policies(found: dict[str, Any] | None) -> None:
    """What policies cost, one by one, and what they gained."""
    if found is None:
        return
    k = found["k"]
    shown = table("policy", *(f"{name}@{k}" for name in _POLICY_METRICS))
    for step in found["steps"]:
        cost = step["cost"]
        cells = [cost.get(f"{name}@{k}") for name in _POLICY_METRICS]
        shown.add_row(step["policy"]["policy"], *("-" if c is None else f"{c['mean']:+.4f}" for c in cells))
    out.print(shown)
    out.print(plain(found["sentence"]), soft_wrap=True)
    for note in found["notes"]:
        err.print(plain(note), soft_wrap=True)


@runs_app.command("list")
def runs_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List runs, newest first."""
    from llmrec_core.runs import RunStore, reconcile

    place = workspace_of(workspace)
    reconcile(place)
    runs = RunStore(place).list()
    if as_json:
        print_json(
            [
                {
                    "run_id": run.run_id,
                    "state": run.status.state,
                    "stage": run.status.stage,
                    "dataset": run.spec.dataset.name,
                    "preset": run.spec.preset,
                    "name": run.spec.name,
                    "error": run.status.error,
                    "warning": run.warning,
                }
                for run in runs
            ]
        )
        return
    shown = table("run", "state", "stage", "dataset", "preset", "name")
    for run in runs:
        spec = run.spec
        cells = (spec.dataset.name, spec.preset or "", spec.name)
        shown.add_row(run.run_id, run.status.state, plain(run.status.stage or ""), *map(plain, cells))
    out.print(shown)
    for run in runs:
        if run.warning:
            err.print(f"[yellow]{run.run_id}[/]: {run.warning}", soft_wrap=True)


@runs_app.command("show")
def runs_show(run: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show one run: state, spec, result."""
    from llmrec_core.runs import RunStore, reconcile

    place = workspace_of(workspace)
    store = RunStore(place)
    store.get(run)
    reconcile(place)
    found = store.get(run)
    result = store.result(run) if found.status.state == "done" else None
    status = found.status.model_dump(mode="json")
    if as_json:
        spec = found.spec.model_dump(mode="json")
        print_json({"run_id": run, "status": status, "spec": spec, "result": result, "warning": found.warning})
        return
    if found.warning:
        err.print(f"[yellow]Warning[/]: {found.warning}", soft_wrap=True)
    for key, value in status.items():
        if value is not None:
            out.print(f"{key}: {plain(value)}", soft_wrap=True)
    if result is not None:
        _print_result(result)


@runs_app.command("logs")
def runs_logs(
    run: str,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Last lines shown.")] = 100,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the worker of a run wrote."""
    from llmrec_core.runs import RunStore

    store = RunStore(workspace_of(workspace))
    store.get(run)
    text = store.log(run, lines)
    if as_json:
        print_json({"run_id": run, "events": store.events(run), "log": text})
        return
    for event in store.events(run):
        if event.get("type") == "log":
            out.print(plain(event.get("message", "")), soft_wrap=True, highlight=False)
    out.print(plain(text), soft_wrap=True, highlight=False)


@runs_app.command("cancel")
def runs_cancel(run: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Cancel a queued or running run, and wait until it has ended."""
    from llmrec_core.runs import cancel_run

    state = cancel_run(workspace_of(workspace), run).state
    if as_json:
        print_json({"run_id": run, "state": state})
    else:
        out.print(f"{run} is {state}")


@runs_app.command("resume")
def runs_resume(
    run: str,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a failed, cancelled or interrupted run from its last checkpoint, as a new run."""
    from llmrec_core.runs import RunStore

    place = workspace_of(workspace)
    run_id = RunStore(place).resume(run)
    if detach:
        leave_queued(place, run_id, as_json)
    else:
        follow(place, run_id, as_json)
