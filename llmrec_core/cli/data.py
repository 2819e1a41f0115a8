"""``data`` and ``prompt``: bring data in, look at it, and see what a model will read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmrec_core.cli._shared import (
    JsonOption,
    SetOption,
    WorkspaceOption,
    data_app,
    err,
    out,
    plain,
    print_json,
    prompt_app,
    table,
    workspace_of,
)
from llmrec_core.errors import NotFoundError
from llmrec_core.presets import override_spec, parse_assignment
from llmrec_core.specs import DatasetRef, RunSpec


def _print_report(report: Any, as_json: bool) -> None:
    document = report.as_json()
    if as_json:
        print_json(document)
        return
    out.print(
        f"[bold]{plain(document['dataset'])}[/]: {document['rows_accepted']:,} of {document['rows_read']:,} rows "
        f"accepted, {document['n_users']:,} users, {document['n_items']:,} items"
    )
    for column, role in document["roles"].items():
        out.print(f"  {plain(column)}: {plain(role)}")
    for warning in document["warnings"]:
        err.print(f"[yellow]Note[/]: {plain(warning)}")
    if document["rejects"]:
        err.print(f"[yellow]{max(document['rows_rejected'], len(document['rejects'])):,} rows refused[/]; the first:")
        for reject in document["rejects"][:10]:
            err.print(f"  {plain(reject['file'])}, line {reject['line']}: {plain(reject['reason'])}")


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

    _print_report(import_files(workspace_of(workspace), files, name, mapping or []), as_json)


@data_app.command("public")
def data_public(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Fetch and import a public dataset, checked by its hash: ml-100k."""
    from llmrec_core.data import import_public

    _print_report(import_public(workspace_of(workspace), name), as_json)


@data_app.command("sample")
def data_sample(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Import the bundled invented catalogue as dataset "sample"."""
    from llmrec_core.data import import_sample

    _print_report(import_sample(workspace_of(workspace)), as_json)


@data_app.command("list")
def data_list(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the datasets of the workspace."""
    from llmrec_core.data import DatasetStore

    metas = DatasetStore(workspace_of(workspace)).list()
    if as_json:
        print_json([meta.model_dump(mode="json") for meta in metas])
        return
    shown = table("name", "version", "interactions", "users", "items", "imported")
    for meta in metas:
        shown.add_row(
            plain(meta.name),
            str(meta.version),
            f"{meta.n_interactions:,}",
            f"{meta.n_users:,}",
            f"{meta.n_items:,}",
            plain(meta.created_at),
        )
    out.print(shown)


@data_app.command("show")
def data_show(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show one dataset: roles, sizes, fingerprint, warnings."""
    from llmrec_core.data import DatasetStore, portrait

    dataset = DatasetStore(workspace_of(workspace)).load(name)
    meta = dataset.meta.model_dump(mode="json")
    if as_json:
        print_json({**meta, "portrait": portrait(dataset).as_json()})
        return
    shown = table("what", "value")
    for key, value in meta.items():
        shown.add_row(plain(key), plain(value))
    out.print(shown)


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

    place = workspace_of(workspace)
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
        print_json(
            {
                "text": rendered.text,
                "n_tokens": rendered.n_tokens,
                "dropped_history": rendered.dropped_history,
                "clipped_fields": list(rendered.clipped_fields),
                "spans": [{"start": s.start, "end": s.end, "kind": s.kind, "ref": s.ref} for s in rendered.spans],
            }
        )
        return
    out.print(plain(rendered.text))
    err.print(f"{rendered.n_tokens} tokens; {rendered.dropped_history} oldest history items dropped")
