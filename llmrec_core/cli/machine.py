"""``doctor``, ``models`` and ``studio``: the machine, what is on its disk, and the app in the browser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import llmrec_core
from llmrec_core import __version__
from llmrec_core.cli._shared import (
    JsonOption,
    WorkspaceOption,
    app,
    err,
    models_app,
    out,
    plain,
    print_json,
    table,
    workspace_of,
)
from llmrec_core.errors import NotFoundError
from llmrec_core.workspace import Workspace


@app.command()
def doctor(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Check this machine: versions, what a run chooses here, measured matrix speed and what it allows, models."""
    from importlib.metadata import PackageNotFoundError, version

    from llmrec_core.models.catalogue import list_models
    from llmrec_core.models.device import device_facts
    from llmrec_core.models.machine import allowed, choices, measured_peaks
    from llmrec_core.runs.processes import allocator_in_words
    from llmrec_core.training.token_cache import MAX_BYTES, kept_bytes

    place = workspace_of(workspace)
    packages: dict[str, str | None] = {}
    for name in ("torch", "transformers", "peft", "accelerate", "shap", "streamlit", "pandas", "plotly", "duckdb"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    peaks = measured_peaks()
    bounds = allowed(peaks)
    report: dict[str, Any] = {
        "llmrec": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "device": device_facts().as_json(),
        "choices": {**choices().as_json(), "allocator": allocator_in_words()},
        "matmul": peaks.as_json(),
        "allows": {bound.precision: bound.as_json() for bound in bounds},
        "workspace": str(place.root),
        "models": {entry.name: entry.on_disk for entry in list_models(place)},
        "kept tokens": {
            "folder": str(place.token_caches),
            "size_bytes": kept_bytes(place.token_caches),
            "at_most_bytes": MAX_BYTES,
        },
    }
    if as_json:
        print_json(report)
        return
    shown = table("what", "value")
    shown.add_row("LLMRec Studio", __version__)
    shown.add_row("Python", report["python"])
    for section in ("packages", "device", "choices", "matmul", "models", "kept tokens"):
        for key, value in report[section].items():
            shown.add_row(plain(f"{section}: {key}"), plain(value))
        if section == "matmul":
            for bound in bounds:
                shown.add_row(plain(f"what {bound.precision} allows"), plain(bound.sentence))
    shown.add_row("workspace", plain(place.root))
    out.print(shown)


@models_app.command("list")
def models_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the catalogue: kind, licence, size, and whether a model is on disk."""
    from llmrec_core.models.catalogue import list_models

    entries = list_models(workspace_of(workspace))
    if as_json:
        print_json([entry.as_json() for entry in entries])
        return
    shown = table("name", "kind", "parameters", "size", "licence", "on disk", "use")
    for entry in entries:
        shown.add_row(
            plain(entry.name),
            entry.kind or "?",
            "?" if entry.n_parameters is None else f"{entry.n_parameters / 1e6:.0f} M",
            "?" if entry.size_bytes is None else f"{entry.size_bytes / 1e6:.0f} MB",
            plain(entry.licence),
            "yes" if entry.on_disk else "no",
            plain(entry.description),
        )
    out.print(shown)


@models_app.command("get")
def models_get(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Fetch a model of the catalogue into the workspace, checked by its hash."""
    from llmrec_core.models.catalogue import fetch_model

    folder = fetch_model(workspace_of(workspace), name, progress=lambda text: err.print(plain(text)))
    if as_json:
        print_json({"model": name, "folder": str(folder)})
    else:
        out.print(f"{plain(name)} is in {plain(folder)}")


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
    place = workspace_of(workspace)
    page = Path(llmrec_core.__file__).resolve().parent.parent / "app.py"
    if not page.is_file():
        raise NotFoundError("app.py is not beside the package.", where=str(page), fix="Install from a checkout.")
    if prepare:
        _prepare(place)
    err.print(f"LLMRec Studio: http://localhost:{port} (workspace {plain(place.root)})")
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
        fetch_model(place, "minilm", progress=lambda text: err.print(plain(text)))
    if "sample" not in {meta.name for meta in DatasetStore(place).list()}:
        import_sample(place)
