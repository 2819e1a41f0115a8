"""``compress``: a finished run made smaller or faster, and how its children compare."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from llmrec_core.cli._shared import (
    JsonOption,
    SetOption,
    WorkspaceOption,
    app,
    out,
    plain,
    print_json,
    table,
    workspace_of,
)
from llmrec_core.cli.runs import follow, leave_queued
from llmrec_core.errors import SpecError
from llmrec_core.presets import parse_assignment
from llmrec_core.specs.compression import COMPRESSION_WORDS


@app.command(
    epilog="Methods:\n\n" + "\n\n".join(f"{name} - {when}" for name, (_, when) in COMPRESSION_WORDS.items()),
)
def compress(
    run: str,
    method: Annotated[
        str | None,
        typer.Option("--method", help=f"One of: {', '.join(COMPRESSION_WORDS)}. Without it: the table alone."),
    ] = None,
    assignments: SetOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background and return the run id.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a finished run smaller or faster as a run of its own, and compare size, speed and quality."""
    from llmrec_core.models.catalogue import usable_model
    from llmrec_core.runs import RunStore
    from llmrec_core.runs.children import compression_run, family_rows

    place = workspace_of(workspace)
    store = RunStore(place)
    parent = store.get(run)
    if method is None and (assignments or detach):
        raise SpecError("there is nothing to start.", where="--method", fix=f"One of: {', '.join(COMPRESSION_WORDS)}.")
    if method is not None:
        fields = dict(parse_assignment(text) for text in assignments or [])
        child = store.submit(compression_run(parent, method, fields, partial(usable_model, place)))
        if detach:
            leave_queued(place, child, as_json)
            return
        # What it is beside its parent says more than its metrics beside the baselines, which `runs show` prints.
        follow(place, child, as_json, quiet=True)
        if as_json:
            return
    rows = family_rows(store, run)
    if as_json:
        print_json(rows)
    else:
        _print_family(rows)


def _print_family(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("This run has no compressed children yet; start one with --method.")
        return
    metric = rows[0]["metric"]
    shown = table("what, run", "MB", "size", "speed", "order", metric, "difference to parent")
    for column in shown.columns[1:]:
        column.no_wrap, column.justify = True, "right"
    for row in rows:
        settings = f"\n[dim]({plain(row['settings'])})[/]" if row["settings"] else ""
        shown.add_row(
            f"{plain(row['title'])}{settings}\n{row['run_id']}",
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['size_share']:.0%}",
            f"{row['speed_ratio']:.2f}x",
            "-" if row["agreement"] is None else f"{row['agreement']:.3f}",
            "-" if row["value"] is None else f"{row['value']:.4f}",
            _difference(row["difference"]),
        )
    out.print(shown)
    out.print(
        "speed: child / parent, side by side. order: rank correlation of the model's own scores with its parent's. "
        "difference: over the same test users, with its interval. More (memory, AUC) with --json.",
        style="dim",
        soft_wrap=True,
    )
    for row in rows:
        if row["advice"]:
            out.print(f"{row['run_id']} ({plain(row['title'])}) lost quality. {plain(row['advice'])}", soft_wrap=True)


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:+.4f}\n\\[{found['ci_low']:+.4f}, {found['ci_high']:+.4f}]"
