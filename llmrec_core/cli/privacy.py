"""``data forget``, ``audit``, ``pseudonym`` and ``personal``: what concerns persons."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from llmrec_core.cli._shared import (
    JsonOption,
    WorkspaceOption,
    data_app,
    err,
    out,
    plain,
    print_json,
    table,
    workspace_of,
)
from llmrec_core.errors import InputError

UserOption = Annotated[str, typer.Option("--user", help="Id of the user, as in the data or as before pseudonyms.")]


@data_app.command("forget")
def data_forget(
    name: str,
    user: UserOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be touched and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a person from a dataset in every version, runs, logs, feedback, uploads and kept tokens; flag models."""
    from llmrec_core.forgetting import forget_user

    place = workspace_of(workspace)
    say = (lambda message: None) if as_json else (lambda message: err.print(plain(message)))
    # Only a person at a terminal is asked; a script that calls this has decided.
    ask = sys.stdin.isatty() and not (dry_run or yes or as_json)
    if ask:
        look = forget_user(place, name, user, dry_run=True)
        for line in look.lines():
            err.print(f"  {plain(line)}", soft_wrap=True)
        if not look.already:
            typer.confirm("Remove all of this? It cannot be undone.", abort=True, err=True)
    report = forget_user(place, name, user, dry_run=dry_run, progress=say)
    if as_json:
        print_json(report.as_json())
        return
    if report.already:
        out.print("This user was forgotten before; nothing was left to do.")
        return
    if not ask:
        for line in report.lines():
            out.print(plain(line), soft_wrap=True)
    if dry_run:
        out.print("Nothing was changed.")
        return
    out.print(f"Forgotten. In the audit the person is {report.person}.", soft_wrap=True)
    for run_id in report.flagged:
        out.print(f"{run_id}: its model was trained on this person; train it again.", soft_wrap=True)
    for place_left in report.elsewhere:
        err.print(f"[yellow]Note[/]: the id also stands in {plain(place_left)}, which is not of this dataset.")


@data_app.command("audit")
def data_audit(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show what was done to personal data, and whether the record is intact. Persons stand there as keyed hashes."""
    from llmrec_core.data.privacy import pending_removals, read_audit

    place = workspace_of(workspace)
    audit, pending = read_audit(place), pending_removals(place)
    if as_json:
        print_json({**audit.as_json(), "unfinished": [{"dataset": p.dataset, "person": p.person} for p in pending]})
        return
    shown = table("when", "what", "dataset", "person", "counts", "note")
    for line in audit.lines:
        counts = ", ".join(f"{key} {value:,}" for key, value in line.counts.items() if value)
        when = datetime.fromtimestamp(line.t, UTC).strftime("%Y-%m-%d %H:%M:%S")
        shown.add_row(when, *map(plain, (line.action, line.dataset, line.person, counts, line.note)))
    out.print(shown)
    if audit.broken_at is not None:
        err.print(f"[bold red]Line {audit.broken_at} was changed, or one before it is missing.[/]")
    for removal in pending:
        err.print(f"[yellow]A removal from {plain(removal.dataset)} was cut short[/]; forget the same user again.")


@data_app.command("pseudonym")
def data_pseudonym(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The id as it was before.")],
    item: Annotated[bool, typer.Option("--item", help="The id is of an item, not of a user.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the pseudonym that an id has in this workspace."""
    from llmrec_core.data.privacy import pseudonym, workspace_key

    key = workspace_key(workspace_of(workspace), create=False)
    if key is None:
        raise InputError(
            "this workspace has no key yet, so nobody has a pseudonym.",
            fix="Import with `--map pseudonymise=yes` first.",
        )
    found = pseudonym("item" if item else "user", identifier, key)
    if as_json:
        print_json({"id": identifier, "pseudonym": found})
    else:
        out.print(found)


@data_app.command("personal")
def data_personal(
    name: str,
    version: Annotated[int | None, typer.Option("--version", help="Version of the dataset; empty: the newest.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find personal data in the text columns of a dataset: e-mail, phone, names, addresses, cards, identity numbers."""
    from llmrec_core.data import DatasetStore
    from llmrec_core.data.privacy.dataset import personal_in_dataset

    found = personal_in_dataset(DatasetStore(workspace_of(workspace)), name, version)
    if as_json:
        print_json([{"table": table_name, **vars(finding)} for table_name, finding in found])
        return
    if not found:
        out.print("No personal data was found in the text columns.")
        return
    shown = table("table", "column", "what", "cells", "share", "for example")
    for table_name, finding in found:
        cells = (table_name, finding.column, finding.kind, f"{finding.n_cells:,}", f"{100 * finding.share:.1f} %")
        shown.add_row(*map(plain, cells), plain("; ".join(finding.examples)))
    out.print(shown)
    err.print("Nothing is masked unasked. Import again with --map mask:COLUMN=KIND (kinds joined by +, or cell).")
