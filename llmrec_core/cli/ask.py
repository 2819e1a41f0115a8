"""``recommend``, ``similar`` and ``explain``: what a finished run says about one user or item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmrec_core.cli._shared import (
    JsonOption,
    PolicyOption,
    WorkspaceOption,
    app,
    err,
    out,
    plain,
    print_json,
    table,
    workspace_of,
)
from llmrec_core.errors import InputError


@app.command()
def recommend(
    run: str,
    user: Annotated[str, typer.Option("--user", help="User to rank for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Length of the list.")] = 10,
    model: Annotated[str, typer.Option("--model", help='"model", or a baseline of the run.')] = "model",
    policies: PolicyOption = None,
    no_policies: Annotated[
        bool, typer.Option("--no-policies", help="The list without the run's own policies.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the items a user has not seen; with policies, what they took out and let in, and why."""
    if policies and no_policies:
        raise InputError(
            "--policy and --no-policies exclude each other.", where="--no-policies", fix="Give one of them."
        )
    chosen = [] if no_policies else policies
    answer = _server(workspace).recommend(run, user, k=k, model=model, policies=chosen)
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
    _print_changes(answer)
    _print_warnings(answer)


@app.command()
def similar(
    run: str,
    item: Annotated[str, typer.Option("--item", help="Item to start from.")],
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Length of the list.")] = 10,
    model: Annotated[str, typer.Option("--model", help='"model", or a baseline of the run.')] = "model",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most like one, by the vectors of a recommender that has some."""
    answer = _server(workspace).similar(run, item, k=k, model=model)
    if as_json:
        print_json(answer)
        return
    shown = table("rank", "item", "title", "cosine", "seen by", "")
    for other in answer["items"]:
        shown.add_row(
            str(other["rank"]),
            plain(other["item_id"]),
            plain(other["title"]),
            f"{other['similarity']:.4f}",
            str(other["popularity"]),
            "new item" if other["cold"] else "",
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
    max_players: Annotated[
        int | None,
        typer.Option("--max-players", help="Reasons told apart, 5 to 14; each doubles the scorings. 12, decoders 8."),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why an item suits a user: exact Shapley values, or attention roll-out."""
    answer = _server(workspace).explain(run, user, item, method=method, model=model, max_players=max_players)
    if as_json:
        print_json(answer)
        return
    shown = table("share", "kind", "what")
    for player in sorted(answer["players"], key=lambda p: -abs(p["value"])):
        shown.add_row(f"{player['value']:+.4f}", player["kind"], plain(player["text"]))
    out.print(shown)
    out.print(plain(answer.get("sentence", "")), soft_wrap=True)
    if answer.get("parts"):
        made = "; ".join(f"{plain(part['name'])} {part['value']:+.4f}" for part in answer["parts"])
        out.print(f"The same score as a sum: {made}.", soft_wrap=True)
    err.print(
        f"score {answer['target']:.4f}, without any of these {answer['base_value']:.4f}, "
        f"additivity gap {answer['additivity_gap']:.1e}"
    )
    _print_warnings(answer)


def _print_changes(answer: dict[str, Any]) -> None:
    """What policies took out and let in, with reasons."""
    if "policies" not in answer:
        return
    shown = table("", "item", "title", "rank without", "why")
    came = [item for item in answer["items"] if item["reason"]]
    for word, items in (("out", answer["removed"]), ("in", came)):
        for item in items:
            reason = item["reason"] or {"text": ""}
            cells = (item["item_id"], item["title"], item["rank_without"], reason["text"])
            shown.add_row(word, *map(plain, cells))
    if shown.row_count:
        out.print(shown)
    else:
        out.print("The policies change nothing in this list.")
    for note in answer["policies"]["notes"]:
        err.print(plain(note), soft_wrap=True)


@app.command()
def say(
    run: str,
    user: Annotated[str, typer.Option("--user", help="User to write for.")],
    item: Annotated[str, typer.Option("--item", help="Item to write about.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")] = 0,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a short text about an item, checked against its fields (runs of the generative family)."""
    answer = _server(workspace).say(run, user, item, seed=seed)
    if as_json:
        print_json(answer)
        return
    out.print(plain(answer["text"]), soft_wrap=True, highlight=False)
    shown = table("says", "what", "backed by")
    for claim in answer["claims"]:
        shown.add_row(plain(claim["text"]), claim["kind"], plain(", ".join(claim["backed_by"])))
    if answer["claims"]:
        out.print(shown)
    for attempt in answer["rejected"]:
        wrong = ", ".join(claim["text"] for claim in attempt["unbacked"])
        nothing = "it does not name the item" if attempt["text"] else "nothing was written"
        err.print(f"Put aside: {f'nothing backs {plain(wrong)}' if wrong else nothing}", soft_wrap=True)
    if answer["source"] == "fields":
        err.print("The model wrote nothing that could stand, so the item's fields speak for themselves.")
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
