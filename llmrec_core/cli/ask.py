"""``recommend`` and ``explain``: what a finished run says about one user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmrec_core.cli._shared import (
    JsonOption,
    WorkspaceOption,
    app,
    err,
    out,
    plain,
    print_json,
    table,
    workspace_of,
)


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
        print_json(answer)
        return
    shown = table("rank", "item", "title", "score", "seen by", "")
    for item in answer["items"]:
        note = "held out: a hit" if item["hit"] else ("new item" if item["cold"] else "")
        shown.add_row(
            str(item["rank"]),
            plain(item["item_id"]),
            plain(item["title"]),
            f"{item['score']:.4f}",
            str(item["popularity"]),
            note,
        )
    out.print(shown)
    _print_warnings(answer)


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
        print_json(answer)
        return
    shown = table("share", "kind", "what")
    for player in sorted(answer["players"], key=lambda p: -abs(p["value"])):
        shown.add_row(f"{player['value']:+.4f}", player["kind"], plain(player["text"]))
    out.print(shown)
    out.print(plain(answer.get("sentence", "")), soft_wrap=True)
    err.print(
        f"score {answer['target']:.4f}, without any of these {answer['base_value']:.4f}, "
        f"additivity gap {answer['additivity_gap']:.1e}"
    )
    _print_warnings(answer)


def _print_warnings(answer: dict[str, Any]) -> None:
    """What a person has to know of the run before relying on the answer."""
    for warning in answer["warnings"]:
        err.print(f"[yellow]Warning[/]: {plain(warning)}", soft_wrap=True)


def _server(option: Path | None) -> Any:
    from llmrec_core.runs import RunStore
    from llmrec_core.serving.actions import Server

    place = workspace_of(option)
    RunStore(place)  # fails early, before PyTorch loads, on a broken workspace
    return Server(place)
