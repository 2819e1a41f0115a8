"""``data split``: how a dataset would be cut, in words and numbers, with the leakage check."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError

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
from llmrec_core.errors import DataError, SpecError
from llmrec_core.presets import parse_assignment
from llmrec_core.specs import SplitSpec, spec_errors

_COLOURS = {"passed": "green", "violated": "bold red", "note": "yellow"}


@data_app.command("split")
def data_split(
    name: str,
    protocol: Annotated[
        str,
        typer.Option(
            help="auto, given, leave-one-out, temporal, rolling-temporal, random, random-users, cold-user, cold-item, "
            "group-stratified, records."
        ),
    ] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the split: known_interactions=3. Repeat it.", metavar="FIELD=VALUE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the dataset; the newest unless told.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a protocol cuts a dataset: its sizes, its words, and whether held-out rows leak. Trains nothing."""
    from llmrec_core.data import PROTOCOLS, DatasetStore, make_split, split_picture
    from llmrec_core.recommenders.leakage import leakage_report

    raw = {"protocol": protocol, **dict(map(parse_assignment, assignments or []))}
    try:
        spec = SplitSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(
            "; ".join(": ".join(filter(None, fault)) for fault in spec_errors(error)) + ".",
            where="split",
            fix=f"Protocols are: {', '.join(PROTOCOLS)}. Fields are: {', '.join(SplitSpec.model_fields)}.",
        ) from None
    dataset = DatasetStore(workspace_of(workspace)).load(name, version)
    split = make_split(dataset, spec)
    report, shares = leakage_report(split), split_picture(split).shares
    if as_json:
        print_json(
            {
                "dataset": dataset.name,
                "version": dataset.version,
                "spec": split.spec.model_dump(mode="json"),
                "protocol": split.describe(),
                "sizes": shares,
                "leakage": report.as_json(),
            }
        )
    else:
        out.print(plain(split.describe()), soft_wrap=True)
        sizes = table("part", "rows", "users", "items")
        for part in ("train", "known", "valid", "test", "out"):
            if any(part in counts for counts in shares.values()):
                sizes.add_row(part, *(f"{shares[owner].get(part, 0):,}" for owner in ("rows", "users", "items")))
        out.print(sizes)
        for check in report.checks:
            colour = _COLOURS[check.verdict]
            found = "" if check.ok else f": {check.n_violations:,} of {check.n_checked:,}"
            examples = f" ({', '.join(check.examples)})" if check.examples else ""
            out.print(f"[{colour}]{check.verdict:8}[/] {plain(check.title)}{found}{plain(examples)}", soft_wrap=True)
            if not check.ok:
                out.print(f"         {plain(check.words)}", soft_wrap=True)
        err.print(plain(report.summary()), soft_wrap=True)
    if not report.ok:
        raise DataError("held-out rows leak into training.", where=f"split of dataset {name}")
