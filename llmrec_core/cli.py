"""``llmrec``: the same specs and actions as the pages.

Progress goes to stderr; with ``--json`` stdout carries exactly one JSON document. Exit codes: 0 done, 2 the input
was refused, 3 not found, 130 cancelled, 1 anything else. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from llmrec_core import __version__
from llmrec_core.errors import InputError, LLMRecError, NotFoundError, RunCancelledError, RunFailedError, SpecError
from llmrec_core.presets import PRESETS, override_spec, parse_assignment, preset_spec
from llmrec_core.specs import DatasetRef, RunSpec, parse_run_spec
from llmrec_core.workspace import Workspace

err = Console(stderr=True)
out = Console()
#: --workspace given before the command (``llmrec -w DIR train``).
_root_workspace: ContextVar[Path | None] = ContextVar("root_workspace", default=None)


class _Group(TyperGroup):
    """Turns the error tree into words on stderr and the documented exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMRecError as error:
            err.print(f"[bold red]Error[/]: {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            err.print("Cancelled.")
            raise typer.Exit(RunCancelledError.exit_code) from None


def _app(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, cls=_Group
    )


app = _app("Fine-tune language models as recommenders, rank, measure and explain.")
models_app = _app("Pretrained models: what is known, what is on disk, fetch one.")
data_app = _app("Datasets: import files, public and sample data, list, show.")
prompt_app = _app("Prompts: see what a model will read.")
runs_app = _app("Runs: list, look into, cancel, resume.")
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")
app.add_typer(prompt_app, name="prompt")
app.add_typer(runs_app, name="runs")

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", envvar="LLMREC_WORKSPACE", help="Folder with datasets, models and runs."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the spec: a.b=value. May be repeated.", metavar="FIELD=VALUE"),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    _root_workspace.set(workspace)
    if version:
        out.print(__version__)
        raise typer.Exit


def _workspace(option: Path | None) -> Workspace:
    """The command's own --workspace, else the one given before the command."""
    return Workspace.open(option or _root_workspace.get())


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _text(value: object) -> str:
    """Anything a user may have written, safe inside Rich markup."""
    return escape(str(value))


def _table(*columns: str) -> Table:
    return Table(*columns, header_style="bold", box=None, pad_edge=False)


# ---------------------------------------------------------------------------------------------- doctor, models


@app.command()
def doctor(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Check this machine: versions, processors, precision, measured matrix speed, models on disk."""
    from importlib.metadata import PackageNotFoundError, version

    from llmrec_core.models.catalogue import list_models
    from llmrec_core.models.device import device_facts, matmul_peaks

    place = _workspace(workspace)
    packages: dict[str, str | None] = {}
    for name in ("torch", "transformers", "peft", "accelerate", "shap", "streamlit", "pandas", "plotly", "duckdb"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    report: dict[str, Any] = {
        "llmrec": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "device": device_facts().as_json(),
        "matmul": matmul_peaks().as_json(),
        "workspace": str(place.root),
        "models": {entry.name: entry.on_disk for entry in list_models(place)},
    }
    if as_json:
        _print_json(report)
        return
    table = _table("what", "value")
    table.add_row("LLMRec Studio", __version__)
    table.add_row("Python", report["python"])
    for section in ("packages", "device", "matmul", "models"):
        for key, value in report[section].items():
            table.add_row(_text(f"{section}: {key}"), _text(value))
    table.add_row("workspace", _text(place.root))
    out.print(table)


@models_app.command("list")
def models_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the catalogue: kind, licence, size, and whether a model is on disk."""
    from llmrec_core.models.catalogue import list_models

    entries = list_models(_workspace(workspace))
    if as_json:
        _print_json([entry.as_json() for entry in entries])
        return
    table = _table("name", "kind", "parameters", "size", "licence", "on disk", "use")
    for entry in entries:
        table.add_row(
            _text(entry.name),
            entry.kind or "?",
            "?" if entry.n_parameters is None else f"{entry.n_parameters / 1e6:.0f} M",
            "?" if entry.size_bytes is None else f"{entry.size_bytes / 1e6:.0f} MB",
            _text(entry.licence),
            "yes" if entry.on_disk else "no",
            _text(entry.description),
        )
    out.print(table)


@models_app.command("get")
def models_get(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Fetch a model of the catalogue into the workspace, checked by its hash."""
    from llmrec_core.models.catalogue import fetch_model

    folder = fetch_model(_workspace(workspace), name, progress=lambda text: err.print(_text(text)))
    if as_json:
        _print_json({"model": name, "folder": str(folder)})
    else:
        out.print(f"{_text(name)} is in {_text(folder)}")


# ---------------------------------------------------------------------------------------------- data


def _print_report(report: Any, as_json: bool) -> None:
    document = report.as_json()
    if as_json:
        _print_json(document)
        return
    out.print(
        f"[bold]{_text(document['dataset'])}[/]: {document['rows_accepted']:,} of {document['rows_read']:,} rows "
        f"accepted, {document['n_users']:,} users, {document['n_items']:,} items"
    )
    for column, role in document["roles"].items():
        out.print(f"  {_text(column)}: {_text(role)}")
    for warning in document["warnings"]:
        err.print(f"[yellow]Note[/]: {_text(warning)}")
    if document["rejects"]:
        err.print(f"[yellow]{max(document['rows_rejected'], len(document['rejects'])):,} rows refused[/]; the first:")
        for reject in document["rejects"][:10]:
            err.print(f"  {_text(reject['file'])}, line {reject['line']}: {_text(reject['reason'])}")


@data_app.command("import")
def data_import(
    files: Annotated[list[Path], typer.Argument(help="CSV, TSV, Parquet or JSONL files.")],
    name: Annotated[str, typer.Option("--name", help="Name of the dataset.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="Correct a guess: role=column, or items:title=movie_title.", metavar="ROLE=COLUMN"),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import interactions, and items and users beside them; the kind and the roles are guessed and can be corrected."""
    from llmrec_core.data import import_files

    _print_report(import_files(_workspace(workspace), files, name, mapping or []), as_json)


@data_app.command("public")
def data_public(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Fetch and import a public dataset, checked by its hash: ml-100k."""
    from llmrec_core.data import import_public

    _print_report(import_public(_workspace(workspace), name), as_json)


@data_app.command("sample")
def data_sample(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Import the bundled invented catalogue as dataset "sample"."""
    from llmrec_core.data import import_sample

    _print_report(import_sample(_workspace(workspace)), as_json)


@data_app.command("list")
def data_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the datasets of the workspace."""
    from llmrec_core.data import DatasetStore

    metas = DatasetStore(_workspace(workspace)).list()
    if as_json:
        _print_json([meta.model_dump(mode="json") for meta in metas])
        return
    table = _table("name", "version", "interactions", "users", "items", "imported")
    for meta in metas:
        table.add_row(
            _text(meta.name),
            str(meta.version),
            f"{meta.n_interactions:,}",
            f"{meta.n_users:,}",
            f"{meta.n_items:,}",
            _text(meta.created_at),
        )
    out.print(table)


@data_app.command("show")
def data_show(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show one dataset: roles, sizes, fingerprint, warnings."""
    from llmrec_core.data import DatasetStore, portrait

    dataset = DatasetStore(_workspace(workspace)).load(name)
    meta = dataset.meta.model_dump(mode="json")
    if as_json:
        _print_json({**meta, "portrait": portrait(dataset).as_json()})
        return
    table = _table("what", "value")
    for key, value in meta.items():
        table.add_row(_text(key), _text(value))
    out.print(table)


# ---------------------------------------------------------------------------------------------- prompts


@prompt_app.command("preview")
def prompt_preview(
    dataset: Annotated[str, typer.Option("--dataset", help="Dataset.")],
    user: Annotated[str, typer.Option("--user", help="User whose history is shown.")],
    item: Annotated[str, typer.Option("--item", help="Candidate item.")],
    template: Annotated[
        str, typer.Option("--template", help="A starter, a saved template, or a file ending in .jinja.")
    ] = "question",
    model: Annotated[str, typer.Option("--model", help="Model whose tokenizer counts.")] = "minilm",
    assignments: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a template on a real user and candidate: the text, its tokens, what fell off the end."""
    from llmrec_core.data import DatasetStore, make_split
    from llmrec_core.models.catalogue import fetch_model, model_folder
    from llmrec_core.prompts import PromptRenderer, TemplateStore, TokenCounter, template_source
    from llmrec_core.specs import PromptSpec, SplitSpec

    place = _workspace(workspace)
    loaded = DatasetStore(place).load(dataset)
    raw: dict[str, Any] = {"template": template}
    if template.endswith(".jinja"):
        path = Path(template)
        if not path.is_file():
            raise NotFoundError("the template file does not exist.", where=str(path))
        raw = {"template": "file", "source": path.read_text(encoding="utf-8")}
    base = RunSpec(dataset=DatasetRef(name=dataset), prompt=PromptSpec.model_validate(raw))
    spec = override_spec(base, {f"prompt.{k}": v for k, v in map(parse_assignment, assignments or [])}).prompt
    source = template_source(spec, TemplateStore(place))
    folder = model_folder(place, model) or fetch_model(place, model)
    renderer = PromptRenderer(spec, loaded, TokenCounter.from_folder(folder), source)
    loaded.user_idx(user)  # an unknown user is an error here, not an empty history
    rendered = renderer.render(make_split(loaded, SplitSpec()).query(user, "test"), loaded.item_idx(item))
    if as_json:
        _print_json(
            {
                "text": rendered.text,
                "n_tokens": rendered.n_tokens,
                "dropped_history": rendered.dropped_history,
                "clipped_fields": list(rendered.clipped_fields),
                "spans": [{"start": s.start, "end": s.end, "kind": s.kind, "ref": s.ref} for s in rendered.spans],
            }
        )
        return
    out.print(_text(rendered.text))
    err.print(f"{rendered.n_tokens} tokens; {rendered.dropped_history} oldest history items dropped")


# ---------------------------------------------------------------------------------------------- train and runs


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
    epilog="Presets: " + "; ".join(f"{p.name} - {p.when} Needs {p.needs}." for p in PRESETS.values()),
)
def train(
    spec_file: Annotated[Path | None, typer.Argument(help="A run spec in YAML.", metavar="[SPEC.yaml]")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help=f"One of: {', '.join(PRESETS)}.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Dataset to train on.")] = None,
    assignments: SetOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background and return the run id.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune and measure: a spec file, or a preset on a dataset."""
    place = _workspace(workspace)
    overrides = dict(parse_assignment(a) for a in assignments or [])
    if (spec_file is None) == (preset is None):
        raise SpecError("give either a spec file or --preset.", fix=f"Presets: {', '.join(PRESETS)}.")
    if preset is not None:
        if dataset is None:
            raise SpecError("--preset needs --dataset.", where="--dataset", fix="See `llmrec data list`.")
        spec = preset_spec(preset, dataset, overrides)
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
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run again, for example with --set evaluation.max_users=null."""
    from llmrec_core.runs import RunStore

    place = _workspace(workspace)
    base = RunStore(place).get(run).spec
    overrides = dict(parse_assignment(a) for a in assignments or [])
    _run(place, override_spec(base, {"kind": "evaluate", "parent_run": run, **overrides}), as_json=as_json)


def _run(place: Workspace, spec: RunSpec, *, as_json: bool, detach: bool = False) -> None:
    """Submits ``spec``; waits with live progress unless detached; prints the result."""
    from llmrec_core.models.catalogue import fetch_model, find_model, model_folder
    from llmrec_core.runs import RunStore
    from llmrec_core.runs import detach as start_detached
    from llmrec_core.runs.store import resolve_dataset

    store = RunStore(place)
    resolve_dataset(place, spec.dataset)  # an unknown dataset is refused before anything is fetched
    part = getattr(spec.recommender, "ranker", spec.recommender)
    name = getattr(part, "model", None)
    if name is not None:
        entry = find_model(place, name)
        if entry.source == "hub" and model_folder(place, name) is None:
            # Workers do not reach out to hubs; what they need is brought before.
            fetch_model(place, name, progress=lambda text: err.print(_text(text)))
    run_id = store.submit(spec)
    if detach:
        start_detached(place)
        if as_json:
            _print_json({"run_id": run_id, "state": "queued"})
        else:
            out.print(f"{run_id} is queued; follow it with: llmrec runs show {run_id}")
        return
    _follow(place, run_id, as_json)


def _follow(place: Workspace, run_id: str, as_json: bool) -> None:
    """Runs a queued run here with live progress on stderr, then prints its result."""
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
                progress.reset(bar, total=None, description=f"{run_id} {_text(event['stage'])}", note="")
            elif kind in ("progress", "train"):
                note = f"loss {event['loss']:.4f}" if event.get("loss") is not None else ""
                progress.update(bar, completed=event.get("step", 0), total=event.get("total"), note=note)
            elif kind == "validation":
                figures = ", ".join(f"{k} {v:.4f}" for k, v in event["metrics"].items() if v is not None)
                progress.console.print(f"validation at step {event['step']}: {figures}", highlight=False)
            elif kind == "log":
                progress.console.print(_text(event["message"]), highlight=False, soft_wrap=True)

        status = run_foreground(place, run_id, on_event)
    if status.state == "cancelled":
        raise RunCancelledError(f"run {run_id} was cancelled.", fix=f"Go on with: llmrec runs resume {run_id}")
    if status.state != "done":
        # Input that only the worker could judge (a template, a model folder) keeps its own exit code.
        kind = InputError if status.exit_code == InputError.exit_code else RunFailedError
        raise kind(status.error or f"the run is {status.state}.", where=run_id, fix=f"See: llmrec runs logs {run_id}")
    result = store.result(run_id)
    if as_json:
        _print_json(result)
    else:
        _print_result(result)


def _print_result(result: dict[str, Any]) -> None:
    table = _table("metric", "model", *result["baselines"])

    def cell(value: dict[str, Any] | None) -> str:
        if not value or value["mean"] is None:
            return "-"
        return f"{value['mean']:.4f} [{value['ci_low']:.4f}, {value['ci_high']:.4f}]".replace("[", r"\[")

    for name, value in result["metrics"].items():
        table.add_row(name, cell(value), *(cell(floor.get(name)) for floor in result["baselines"].values()))
    out.print(table)
    out.print(_text(result["verdict"]), soft_wrap=True)
    err.print(f"Protocol: {_text(result['protocol'])}", soft_wrap=True)
    out.print(f"{result['run_id']} done in {result['elapsed_s']:.0f} s")


@runs_app.command("list")
def runs_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List runs, newest first."""
    from llmrec_core.runs import RunStore, reconcile

    place = _workspace(workspace)
    reconcile(place)
    runs = RunStore(place).list()
    if as_json:
        _print_json(
            [
                {
                    "run_id": run.run_id,
                    "state": run.status.state,
                    "stage": run.status.stage,
                    "dataset": run.spec.dataset.name,
                    "preset": run.spec.preset,
                    "name": run.spec.name,
                    "error": run.status.error,
                }
                for run in runs
            ]
        )
        return
    table = _table("run", "state", "stage", "dataset", "preset", "name")
    for run in runs:
        spec = run.spec
        cells = (spec.dataset.name, spec.preset or "", spec.name)
        table.add_row(run.run_id, run.status.state, _text(run.status.stage or ""), *map(_text, cells))
    out.print(table)


@runs_app.command("show")
def runs_show(run: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show one run: state, spec, result."""
    from llmrec_core.runs import RunStore, reconcile

    place = _workspace(workspace)
    store = RunStore(place)
    store.get(run)
    reconcile(place)
    found = store.get(run)
    result = store.result(run) if found.status.state == "done" else None
    status = found.status.model_dump(mode="json")
    if as_json:
        _print_json({"run_id": run, "status": status, "spec": found.spec.model_dump(mode="json"), "result": result})
        return
    for key, value in status.items():
        if value is not None:
            out.print(f"{key}: {_text(value)}", soft_wrap=True)
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

    store = RunStore(_workspace(workspace))
    store.get(run)
    text = store.log(run, lines)
    if as_json:
        _print_json({"run_id": run, "events": store.events(run), "log": text})
        return
    for event in store.events(run):
        if event.get("type") == "log":
            out.print(_text(event.get("message", "")), soft_wrap=True, highlight=False)
    out.print(_text(text), soft_wrap=True, highlight=False)


@runs_app.command("cancel")
def runs_cancel(run: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Cancel a queued or running run, and wait until it has ended."""
    from llmrec_core.runs import cancel_run

    state = cancel_run(_workspace(workspace), run).state
    if as_json:
        _print_json({"run_id": run, "state": state})
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
    from llmrec_core.runs import detach as start_detached

    place = _workspace(workspace)
    run_id = RunStore(place).resume(run)
    if detach:
        start_detached(place)
        if as_json:
            _print_json({"run_id": run_id, "state": "queued"})
        else:
            out.print(f"{run_id} is queued")
        return
    _follow(place, run_id, as_json)


# ---------------------------------------------------------------------------------------------- rank and explain


@app.command()
def recommend(
    run: str,
    user: Annotated[str, typer.Option("--user", help="User to rank for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Length of the list.")] = 10,
    model: Annotated[str, typer.Option("--model", help='"model", or a baseline of the run.')] = "model",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the items a user has not seen."""
    answer = _server(workspace).recommend(run, user, k=k, model=model)
    if as_json:
        _print_json(answer)
        return
    table = _table("rank", "item", "title", "score", "seen by", "")
    for item in answer["items"]:
        note = "held out: a hit" if item["hit"] else ("new item" if item["cold"] else "")
        table.add_row(
            str(item["rank"]),
            _text(item["item_id"]),
            _text(item["title"]),
            f"{item['score']:.4f}",
            str(item["popularity"]),
            note,
        )
    out.print(table)


@app.command()
def explain(
    run: str,
    user: Annotated[str, typer.Option("--user", help="User.")],
    item: Annotated[str, typer.Option("--item", help="Item to explain.")],
    method: Annotated[str, typer.Option("--method", help="shap or attention.")] = "shap",
    model: Annotated[str, typer.Option("--model", help='"model", or a baseline of the run.')] = "model",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why an item suits a user: exact Shapley values, or attention roll-out."""
    answer = _server(workspace).explain(run, user, item, method=method, model=model)
    if as_json:
        _print_json(answer)
        return
    table = _table("share", "kind", "what")
    for player in sorted(answer["players"], key=lambda p: -abs(p["value"])):
        table.add_row(f"{player['value']:+.4f}", player["kind"], _text(player["text"]))
    out.print(table)
    out.print(_text(answer.get("sentence", "")), soft_wrap=True)
    err.print(
        f"score {answer['target']:.4f}, without any of these {answer['base_value']:.4f}, "
        f"additivity gap {answer['additivity_gap']:.1e}"
    )


def _server(option: Path | None) -> Any:
    from llmrec_core.runs import RunStore
    from llmrec_core.serving.actions import Server

    place = _workspace(option)
    RunStore(place)  # fails early, before PyTorch loads, on a broken workspace
    return Server(place)


# ---------------------------------------------------------------------------------------------- studio


@app.command()
def studio(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on localhost.")] = 8501,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="First fetch the default encoder and import the sample data.")
    ] = False,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser window.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Open the Studio in the browser, bound to localhost."""
    place = _workspace(workspace)
    page = Path(__file__).resolve().parent.parent / "app.py"
    if not page.is_file():
        raise NotFoundError("app.py is not beside the package.", where=str(page), fix="Install from a checkout.")
    if prepare:
        _prepare(place)
    err.print(f"LLMRec Studio: http://localhost:{port} (workspace {_text(place.root)})")
    argv = [sys.executable, "-m", "streamlit", "run", str(page), "--server.port", str(port)]
    argv += ["--server.address", "localhost", "--browser.gatherUsageStats", "false"]
    argv += ["--server.headless", str(headless or not _has_display()).lower()]
    code = subprocess.call(argv, cwd=page.parent, env={**os.environ, "LLMREC_WORKSPACE": str(place.root)})
    raise typer.Exit(code)


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _prepare(place: Workspace) -> None:
    from llmrec_core.data import DatasetStore, import_sample
    from llmrec_core.models.catalogue import fetch_model, model_folder

    if model_folder(place, "minilm") is None:
        fetch_model(place, "minilm", progress=lambda text: err.print(_text(text)))
    if "sample" not in {meta.name for meta in DatasetStore(place).list()}:
        import_sample(place)


def main() -> None:
    """Entry point of ``llmrec``."""
    app()


if __name__ == "__main__":
    main()
