"""``data`` and ``prompt``: bring data in, look at it, and see what a model will read of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

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
from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.presets import override_spec, parse_assignment
from llmrec_core.specs import DatasetRef, RunSpec
from llmrec_core.workspace import write_text_atomic

if TYPE_CHECKING:
    from llmrec_core.data import ImportGuess

PARTS = ("train", "valid", "test")
VersionOption = Annotated[int | None, typer.Option("--version", help="Version of the dataset; the newest unless told.")]


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


MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Correct a guess: role=column, items:title=column, rating:FILE=column, layout:FILE=matrix, zero=unrated. "
        "May be repeated.",
        metavar="WHAT=VALUE",
    ),
]
MappingOption = Annotated[
    Path | None,
    typer.Option("--mapping", help="A YAML mapping, as an import or the screen gave it; --map goes over it."),
]
PartOption = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        help="A file that is one part of a given split: train=FILE, valid=FILE, test=FILE. May be repeated.",
        metavar="PART=FILE",
    ),
]
PrivateOption = Annotated[
    bool,
    typer.Option("--allow-private-address", help="Let an address lie in this machine's own or a private network."),
]


def _places(files: list[str] | None, part: list[str] | None) -> tuple[list[str | Path], list[tuple[str, int]]]:
    """(files and addresses, which part of a split which of them is)."""
    places = [_place(file) for file in files or []]
    parts: list[tuple[str, int]] = []
    for entry in part or []:
        name, equals, file = entry.partition("=")
        if not equals or name not in PARTS or not file:
            raise InputError(
                f"{entry[:80]!r} is not of the form part=FILE.", where="part", fix=f"Parts are {', '.join(PARTS)}."
            )
        place = _place(file)
        if place not in places:
            places.append(place)
        number = places.index(place)
        if any(known != name for known, at in parts if at == number):
            raise InputError(f"{_shown(place)} was given as two parts.", where="part", fix="A file is of one part.")
        parts.append((name, number))
    if not places:
        raise InputError("no file was given.", fix="Give a file, a folder or an address.")
    return places, parts


def _place(file: str) -> str | Path:
    return file if "://" in file else Path(file)


def _shown(place: str | Path) -> str:
    """The name under which corrections know a place; "=" would end it."""
    return (place.name if isinstance(place, Path) else place).replace("=", "?")


@contextmanager
def _fetched(places: list[str | Path], allow_private: bool) -> Iterator[list[str | Path]]:
    """The same places with files of the web on this machine, each fetched once; they are removed at the end."""
    from llmrec_core.data.download import download

    with TemporaryDirectory(prefix="llmrec-") as folder:
        here: list[str | Path] = []
        for number, place in enumerate(places):
            if isinstance(place, str) and not place.lower().startswith("postgres"):
                into = Path(folder) / str(number)
                into.mkdir()
                place = download(
                    place, into, allow_private=allow_private, progress=lambda line: err.print(plain(line), style="dim")
                )
            here.append(place)
        yield here


def _corrections(
    places: list[str | Path], mapping: Path | None, said: list[str], options: list[str | None]
) -> list[str]:
    """Everything that was said, in the order in which the last word counts: mapping file, --map, options."""
    from llmrec_core.data import guess_files
    from llmrec_core.data.mapping import fitted, load_mapping

    told = [*said, *(option for option in options if option)]
    if mapping is None:
        return told
    kept = load_mapping(mapping)
    tables = {guess.file: guess.columns for guess in reversed(guess_files(places))} if kept.files else {}
    kept, unused = fitted(kept, tables)
    if unused:
        raise DataError(
            f"the mapping speaks of {', '.join(unused[:5])}, which is not among these files.",
            where=str(mapping),
            fix=f"Files are {', '.join(tables)}; a name in the mapping may be a pattern such as ratings-*.csv.",
        )
    return [*kept.entries(), *told]


@data_app.command("guess")
def data_guess(
    files: Annotated[list[str], typer.Argument(help="Files, folders or addresses.", metavar="FILE...")],
    mapping: MappingOption = None,
    said: MapOption = None,
    allow_private_address: PrivateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what files would be imported as: kind, layout, roles with reasons, open questions. Nothing is written."""
    from llmrec_core.data import guess_files

    given, _ = _places(files, None)
    with _fetched(given, allow_private_address) as places:
        guesses = guess_files(places, _corrections(places, mapping, said or [], []))
    if as_json:
        print_json([guess.as_json() for guess in guesses])
    else:
        for guess in guesses:
            _print_guess(guess)
    for guess in guesses:
        if guess.fault is not None:
            raise guess.fault


def _print_guess(guess: ImportGuess) -> None:
    if guess.left_out:
        out.print(f"[bold]{plain(guess.file)}[/]: left out")
        return
    if guess.fault is not None:
        out.print(f"[bold]{plain(guess.file)}[/]: cannot be read")
        return
    facts = [guess.format, guess.encoding, guess.separator and f"separator {guess.separator!r}"]
    facts += [] if guess.header else ["no header"]
    out.print(f"[bold]{plain(guess.file)}[/]: {guess.kind} ({plain(', '.join(str(fact) for fact in facts if fact))})")
    for what in ("kind", "layout"):
        word = getattr(guess, what)
        out.print(f"  {what}: {word}" + (f" ({plain(guess.reasons[what])})" if what in guess.reasons else ""))
    for role, column in guess.roles.items():
        reason = f" ({plain(guess.reasons[role])})" if role in guess.reasons else ""
        out.print(f"  {plain(role)}: {plain(column)}{reason}")
    for note in guess.notes:
        out.print(f"  Note: {plain(note)}")
    for question in guess.questions:
        answers = " or ".join(f"--map {question.id}={option}" for option in question.options)
        state = "Open" if question.default is None else f"Taken as {question.default}"
        out.print(f"  [yellow]{state}[/]: {plain(question.text)} Say {plain(answers)}.")
    shown = table(*guess.columns[:8])
    for row in guess.preview.head(5).astype(str).to_numpy().tolist():
        shown.add_row(*(plain(cell[:30]) for cell in row[:8]))
    out.print(shown)


@data_app.command("import")
def data_import(
    name: Annotated[str, typer.Option("--name", help="Name of the dataset; a known name gets a new version.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="CSV and its kin, Excel, JSON, Parquet, SQLite, DuckDB, .gz, .zip, folders; https:// and "
            "postgresql:// addresses.",
            metavar="FILE...",
        ),
    ] = None,
    mapping: MappingOption = None,
    said: MapOption = None,
    part: PartOption = None,
    duplicates: Annotated[
        str | None, typer.Option(help="Rows of the same user and item: keep, last, mean or count.")
    ] = None,
    zero: Annotated[str | None, typer.Option(help="A rating of zero: rating (the lowest one) or unrated.")] = None,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="Replace user ids by keyed pseudonyms of this workspace.")
    ] = False,
    allow_private_address: PrivateOption = False,
    save_mapping: Annotated[
        Path | None, typer.Option("--save-mapping", help="Write what the files were read as to this YAML file.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import interactions, and items and users beside them. Guesses can be seen with `data guess` and corrected."""
    from llmrec_core.data import DatasetStore, import_files
    from llmrec_core.data.mapping import MAPPING_FILE

    given, parts = _places(files, part)
    options = [
        f"duplicates={duplicates}" if duplicates is not None else None,
        f"zero={zero}" if zero is not None else None,
        "pseudonymise=yes" if pseudonymise else None,
    ]
    place = workspace_of(workspace)
    progress = None if as_json else lambda line: err.print(plain(line), style="dim")
    with _fetched(given, allow_private_address) as places:
        told = [*(said or []), *(f"part:{_shown(places[number])}={part}" for part, number in parts)]
        corrections = _corrections(places, mapping, told, options)
        report = import_files(place, places, name, corrections, progress=progress)
    if save_mapping is not None:
        text = (DatasetStore(place).folder(name, report.version) / MAPPING_FILE).read_text(encoding="utf-8")
        write_text_atomic(save_mapping, text)
    _print_report(report, as_json)


@data_app.command("rejects")
def data_rejects(
    name: str,
    version: VersionOption = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write all of them to this CSV file.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the rows that an import refused: file, line, column, reason and what stood there."""
    from llmrec_core.data import DatasetStore, safe_csv

    rejects = DatasetStore(workspace_of(workspace)).rejects(name, version)
    if to is not None:
        write_text_atomic(to, safe_csv(rejects))
        err.print(f"{len(rejects):,} refused rows written to {plain(to)}")
    if as_json:
        print_json(json.loads(rejects.to_json(orient="records")))
    elif to is None:
        for row in rejects.head(200).to_dict(orient="records"):
            column = f", column {row['column']}" if row.get("column") else ""
            out.print(f"{plain(row['file'])}, line {row['line']}{plain(column)}: {plain(row['reason'])}")
        if len(rejects) > 200:
            err.print(f"{len(rejects) - 200:,} more; --out FILE writes them all")


@data_app.command("versions")
def data_versions(name: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the versions of a dataset: when, how large, what changed, which runs use each."""
    from llmrec_core.data import DatasetStore
    from llmrec_core.data.versions import compare_versions
    from llmrec_core.runs import RunStore

    place = workspace_of(workspace)
    store = DatasetStore(place)
    store.meta(name)  # an unknown name is an error here, not an empty list
    runs = [run for run in RunStore(place).list() if not run.problem and run.spec.dataset.name == name]
    rows: list[dict[str, Any]] = []
    before: int | None = None
    for meta in (store.meta(name, version) for version in store.versions(name)):
        change = None if before is None else compare_versions(store, name, before, meta.version)
        rows.append(
            {
                "version": meta.version,
                "created_at": meta.created_at,
                "n_interactions": meta.n_interactions,
                "n_users": meta.n_users,
                "n_items": meta.n_items,
                "rows_rejected": meta.rows_rejected,
                "fingerprint": meta.fingerprint,
                "change": None if change is None else change.as_json(),
                "changed": "first version" if change is None else change.sentence,
                "runs": [run.run_id for run in runs if run.spec.dataset.version == meta.version],
            }
        )
        before = meta.version
    if as_json:
        print_json(rows)
        return
    shown = table("version", "imported", "interactions", "users", "items", "refused", "changed", "runs")
    for row in rows:
        cells = [row["version"], row["created_at"]]
        cells += [f"{row[key]:,}" for key in ("n_interactions", "n_users", "n_items", "rows_rejected")]
        shown.add_row(*(plain(cell) for cell in cells), plain(row["changed"]), plain(", ".join(row["runs"]) or "-"))
    out.print(shown)


@data_app.command("portrait")
def data_portrait(
    name: str, version: VersionOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Show what a dataset looks like: long tail, histories, activity, ratings, text, cold users and items."""
    from llmrec_core.data import DatasetStore
    from llmrec_core.data.portrait import stored_portrait
    from llmrec_core.models.catalogue import token_counter

    place = workspace_of(workspace)
    found = stored_portrait(DatasetStore(place).load(name, version), token_counter(place)).as_json()
    if as_json:
        print_json(found)
        return
    for sentence in found["readings"]:
        out.print(plain(sentence))
    shown = table("what", "value")
    for key, value in found.items():
        if not isinstance(value, dict | list):
            shown.add_row(plain(key.replace("_", " ")), plain(f"{value:,}" if isinstance(value, int) else value))
    out.print(shown)


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
    from llmrec_core.data import DatasetStore
    from llmrec_core.data.portrait import stored_portrait
    from llmrec_core.models.catalogue import token_counter

    place = workspace_of(workspace)
    dataset = DatasetStore(place).load(name)
    meta = dataset.meta.model_dump(mode="json")
    if as_json:
        print_json({**meta, "portrait": stored_portrait(dataset, token_counter(place)).as_json()})
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
