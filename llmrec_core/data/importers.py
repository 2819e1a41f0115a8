"""Files -> Dataset: what each file was taken for can be seen and corrected, good rows go in, bad rows are kept apart.

Everything is read and written beside the dataset's place; a version appears whole, once all is checked, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import starmap
from pathlib import Path

from llmrec_core.data._databases import shown_place
from llmrec_core.data._importing import FileReport, Import, ImportReport, Table
from llmrec_core.data._roles import NEEDED_OF, Corrections, parse_mapping
from llmrec_core.data._rules import warm
from llmrec_core.data._values import ValueOptions, refuse_unanswered
from llmrec_core.data.guessing import part_hint, plan
from llmrec_core.data.store import DatasetStore
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace, check_name

_PARTS = ("train", "valid", "test")


def import_files(
    workspace: Workspace,
    files: Sequence[str | Path],
    name: str,
    mapping: Mapping[str, str] | Sequence[str] = (),
    *,
    parts: Mapping[str, Sequence[str | Path]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> ImportReport:
    """Imports files as a new version of dataset ``name``; equal data leaves the newest version as it is.

    Args:
        files: files, folders, archives, workbooks, databases and addresses; one holds interactions, others may hold
            items, users and further tables.
        mapping: corrections of the guesses: ``role=column`` (for every file with that column),
            ``items:title=movie_title`` (for files of that kind), ``title:FILE=name`` (for one file), ``role=`` (no
            column plays that role), ``kind:FILE=items``, ``encoding:FILE=gb18030``, ``duplicates=last`` and the like.
        parts: files of a dataset that comes already split, by ``train``, ``valid`` and ``test``; their rows keep the
            part in the column ``part``.
        progress: told what is going on, one sentence a call.

    Raises:
        DataError: a file is unreadable or no table, there is no user or item column, no row is acceptable, or the data
            leaves open how it is to be read and nobody said.
        InputError: the name or a correction is refused.
    """
    check_name(name, "dataset")
    said = tuple(f"{key}={value}" for key, value in mapping.items()) if isinstance(mapping, Mapping) else tuple(mapping)
    corrections = parse_mapping(said)
    options = ValueOptions.of(corrections.options)
    by_part = _checked_parts(files, parts)
    with DatasetStore(workspace).building(name) as build:
        scratch = build.folder / "scratch"
        scratch.mkdir()
        with ThreadPoolExecutor(1) as beside:
            beside.submit(warm)
            places = [place for _, place in by_part]
            tables = list(starmap(Table, plan(places, corrections, scratch, [part for part, _ in by_part])))
            _check_plan(tables, corrections)
            say = progress or (lambda message: None)
            work = Import(workspace, name, build, tables, corrections, options, said, say)
            work.notes += _mixed_parts(tables)
            return work.run()


def _mixed_parts(tables: Sequence[Table]) -> list[str]:
    """A note where files speak of a given split by their names, and nobody said that they are one."""
    events = {table.name: table.part for table in tables if table.planned.kind == "interactions"}
    hints = {name: part_hint(name) for name in events}
    if any(events.values()) or len({part for part in hints.values() if part}) < 2:
        return []
    how = " ".join(f"--part {part}={name}" for name, part in hints.items() if part)
    return [f"names of files speak of a given split; their rows are mixed, since nobody said so ({how} keeps it)"]


def _checked_parts(
    files: Sequence[str | Path], parts: Mapping[str, Sequence[str | Path]] | None
) -> list[tuple[str | None, str | Path]]:
    """(the part that was told, place) of every place."""
    parts = parts or {}
    for part in parts:
        if part not in _PARTS:
            raise DataError(f"unknown part {part[:40]!r}.", where="parts", fix=f"Use {', '.join(_PARTS)}.")
    by_part: list[tuple[str | None, str | Path]] = [(part, place) for part in _PARTS for place in parts.get(part, ())]
    by_part += [(None, place) for place in files]
    places = [str(place) for _, place in by_part]
    if not places:
        raise DataError("no file was given.", fix="Give a file of interactions.")
    if len(set(places)) != len(places):
        raise DataError(
            "a file was given twice.", where=shown_place(max(places, key=places.count)), fix="Give it once."
        )
    return by_part


def _check_plan(tables: Sequence[Table], corrections: Corrections) -> None:
    """Refuses a plan that would lose what the person meant, before anything long is read."""
    for table in tables:
        asked = table.planned.questions
        told = [question for question in asked if corrections.option(question.id.partition(":")[0], table.name)]
        refuse_unanswered([question for question in asked if question not in told], table.name)
    names = list(dict.fromkeys(table.name for table in tables))
    _check_names(tables, corrections, names)
    for kind, role, column in corrections.roles:
        if column and not any(
            column in (table.planned.roles.get(role), table.planned.origin.get(role))
            for table in tables
            if kind is None or table.planned.kind == kind
        ):
            columns = "; ".join(_described(table) for table in tables)
            raise DataError(
                f"no {kind or 'file'} has a column {column[:80]!r} for the role {role}.",
                where="map",
                fix=f"Columns are: {columns}.",
            )
    for table in tables:
        for role in NEEDED_OF[table.planned.kind]:
            if role not in table.planned.roles:
                word = role.removesuffix("_id")
                seen = ", ".join(table.planned.source.columns[:30])
                raise DataError(
                    f"no {word} column was found (taken as {table.planned.kind}; columns: {seen}).",
                    where=table.name,
                    fix=f"Say which it is with --map {role}=COLUMN.",
                )
    if not any(table.planned.kind == "interactions" for table in tables):
        what = "; ".join(f"{t.name} was taken as {t.planned.kind}" for t in tables) or "all were left out"
        missing = "user" if all(table.planned.kind == "items" for table in tables) else "item"
        columns = "; ".join(_described(table) for table in tables)
        otherwise = [f"{t.name}: {note}." for t in tables for note in t.planned.notes if "layout:FILE=" in note]
        raise DataError(
            f"no file holds interactions, since none has both a user and an item column: {what}. Columns: {columns}.",
            where=", ".join(names),
            fix=" ".join([f"Say which it is with --map {missing}_id=COLUMN.", *otherwise[:1]]),
        )


def _described(table: Table) -> str:
    return f"{table.name} ({table.planned.kind}): {', '.join(table.planned.source.columns[:30])}"


def _check_names(tables: Sequence[Table], corrections: Corrections, names: Sequence[str]) -> None:
    for option, place in dict(corrections.files):
        one = replace(corrections, files={(option, place): "x"})
        if option == "leave_out" or corrections.option("leave_out", place) == "yes":
            continue
        if not any(one.option(option, known) for known in names):
            raise DataError(f"{option}:{place}: no such file in this import.", where="map", fix=f"Files: {names}.")
    paths: dict[str, Path] = {}
    for table in tables:
        source = table.planned.source
        if paths.setdefault(source.name, source.path) != source.path:
            raise DataError(
                f"two files have the name {source.name!r}.",
                fix="Rename one: refused rows are named by their file.",
            )


__all__ = ["FileReport", "ImportReport", "import_files"]
