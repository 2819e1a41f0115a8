"""What every command shares: consoles, options, the workspace, and errors turned into words and exit codes."""

from __future__ import annotations

import json
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from llmrec_core import __version__
from llmrec_core.errors import LLMRecError, RunCancelledError
from llmrec_core.workspace import Workspace

# Without emoji: ":x:" in a file is ":x:" on the screen.
err = Console(stderr=True, emoji=False)
out = Console(emoji=False)
#: --workspace given before the command (``llmrec -w DIR train``).
root_workspace: ContextVar[Path | None] = ContextVar("root_workspace", default=None)


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
data_app = _app("Datasets: look at files, import them, see what came in and what changed; splits and privacy.")
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

PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="A ranking policy: name, then fields, as in novelty:raise_by=0.15, diversity:strength=0.3, calibration, "
        "exposure:max_share=0.1, category-cap:max_items=3 or blocklist:items=[a, b],rules=[category=Horror],"
        "reason=taste. May be repeated.",
        metavar="NAME[:FIELD=VALUE,...]",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    root_workspace.set(workspace)
    if version:
        out.print(__version__)
        raise typer.Exit


def workspace_of(option: Path | None) -> Workspace:
    """The command's own --workspace, else the one given before the command."""
    return Workspace.open(option or root_workspace.get())


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: object) -> str:
    """Anything a user may have written, safe inside Rich markup."""
    return escape(str(value))


def table(*columns: str) -> Table:
    return Table(*columns, header_style="bold", box=None, pad_edge=False)
