"""``compress``: a finished run made smaller or faster, and how its children compare."""

from __future__ import annotations

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
    from llmrec_core.runs import RunStore
    from llmrec_core.runs.children import compression_run, family_rows

    place = workspace_of(workspace)
    store = RunStore(place)
    parent = store.get(run)
    if method is None and (assignments or detach):
        raise SpecError("there is nothing to start.", where="--method", fix=f"One of: {', '.join(COMPRESSION_WORDS)}.")
    if method is not None:
        fields = dict(parse_assignment(text) for text in assignments or [])
        child = store.submit(compression_run(parent, method, fields))
        if detach:
            leave_queued(place, child, as_json)
            return
        follow(place, child, as_json)
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
    shown = table(
        "run", "what", "size MB", "share", "memory MB", "candidates/s", "speed", metric, "difference to parent"
    )
    for column in shown.columns[:2]:
        # A run id is there to be copied.
        column.no_wrap = True
    for row in rows:
        shown.add_row(
            row["run_id"],
            plain(row["title"]),
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['size_share']:.0%}",
            f"{row['memory_bytes'] / 1e6:.1f}",
            f"{row['candidates_per_s']:,.0f}",
            f"{row['speed_ratio']:.2f}x",
            "-" if row["value"] is None else f"{row['value']:.4f}",
            _difference(row["difference"]),
        )
    out.print(shown)


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:+.4f} [{found['ci_low']:+.4f}, {found['ci_high']:+.4f}]".replace("[", r"\[")
