"""Files -> Dataset: what each file was taken for can be seen and corrected, good rows go in, bad rows are listed.

Nothing is written before every file has been read and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, USER
from llmrec_core.data._raw import readable_lists
from llmrec_core.data._roles import ROLES, ROLES_OF, Corrections, Kind, field_names, guess, parse_mapping
from llmrec_core.data._sources import Source, open_source
from llmrec_core.data._text_files import MAX_LISTED_REJECTS, RawTable, Rejects
from llmrec_core.data._values import parse_numbers, parse_times
from llmrec_core.data.dataset import Dataset, SourceFile
from llmrec_core.data.export import safe_csv
from llmrec_core.data.store import DatasetStore
from llmrec_core.data.wheels import file_sha256
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace, check_name

_MAX_ID_CHARS = 512
_MAX_TEXT_CHARS = 100_000
#: Item columns inside interactions are believed only where at most this share of items has contradicting values.
_MAX_CONFLICTS = 0.1


@dataclass(frozen=True)
class FileReport:
    """Rows of one file."""

    file: str
    kind: Kind
    rows_read: int
    rows_rejected: int
    roles: dict[str, str]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    ``rows_*`` count interactions; ``files`` has every file's own counts. ``rejects`` lists the first refused rows of
    all files (``{file, line, reason}``); where more were refused, a warning says so.
    """

    dataset: str
    version: int
    rows_read: int
    rows_accepted: int
    rows_rejected: int
    rejects: list[dict[str, Any]]
    n_users: int
    n_items: int
    roles: dict[str, str]
    warnings: list[str]
    files: list[FileReport] = field(default_factory=list)
    fingerprint: str = ""

    def as_json(self) -> dict[str, Any]:
        """The document that ``llmrec data import --json`` prints."""
        return {
            "dataset": self.dataset,
            "rows_read": self.rows_read,
            "rows_accepted": self.rows_accepted,
            "rows_rejected": self.rows_rejected,
            "rejects": self.rejects,
            "n_users": self.n_users,
            "n_items": self.n_items,
            "roles": self.roles,
            "warnings": self.warnings,
        }


def import_files(
    workspace: Workspace,
    files: Sequence[str | Path],
    name: str,
    mapping: Mapping[str, str] | Sequence[str] = (),
    *,
    progress: Callable[[str], None] | None = None,
) -> ImportReport:
    """Imports files as a new version of dataset ``name``.

    Args:
        files: CSV, TSV and kin, Parquet, JSONL, JSON; one holds interactions, others may hold items and users.
        mapping: corrections of the guesses: ``role=column`` (for every file with that column),
            ``items:title=movie_title`` (for files of that kind), ``role=`` (no column plays that role),
            ``kind:FILE=items``, ``encoding:FILE=gb18030``, ``separator:FILE=;``, ``header:FILE=no``.
        progress: told what is going on, one sentence a call.

    Raises:
        DataError: a file is unreadable or no table, there is no user or item column, or no row is acceptable.
        InputError: the name or a correction is refused.
    """
    check_name(name, "dataset")
    say = progress or (lambda message: None)
    corrections = parse_mapping(mapping)
    paths = [Path(file) for file in files]
    if not paths:
        raise DataError("no file was given.", fix="Give a file of interactions.")
    _check_file_options(corrections, paths)
    planned: list[tuple[Source, Kind, dict[str, str]]] = []
    for path in paths:
        source = open_source(path, corrections)
        planned.append((source, *guess(path.name, source.columns, source.sample(), corrections)))
    _check_plan(planned, corrections)
    parts: dict[Kind, list[pd.DataFrame]] = {"interactions": [], "items": [], "users": []}
    rejects: list[Rejects] = []
    reports: list[FileReport] = []
    sources: list[SourceFile] = []
    notes: list[str] = []
    known: dict[str, set[str]] = {ITEM: set(), USER: set()}
    for source, kind, roles in planned:
        say(f"reading {source.path.name} as {kind}")
        table, refused, found_notes, rows_read = _read(source, kind, roles, known)
        parts[kind].append(table)
        rejects.append(refused)
        notes += [f"{source.path.name}: {note}" for note in (*source.notes, *found_notes)]
        if kind != "interactions" and refused.count:
            notes.append(f"{source.path.name}: {refused.count:,} of {rows_read:,} rows refused")
        reports.append(FileReport(source.path.name, kind, rows_read, refused.count, roles))
        sources.append(
            SourceFile(
                name=source.path.name, kind=kind, sha256=file_sha256(source.path), encoding=source.encoding,
                separator=source.separator, rows_read=rows_read, rows_rejected=refused.count,
            )
        )  # fmt: skip
    listed = [
        {"file": refused.file, "line": line, "reason": reason} for refused in rejects for line, reason in refused.listed
    ]
    total = sum(refused.count for refused in rejects)
    interactions = pd.concat(parts["interactions"], ignore_index=True)
    if interactions.empty:
        first = "; ".join(f"{r['file']}, line {r['line']}: {r['reason']}" for r in listed[:3])
        raise DataError(
            f"no row of interactions is acceptable. {first}".strip(),
            where=", ".join(source.path.name for source, kind, _ in planned if kind == "interactions"),
            fix="Correct the file or the roles.",
        )
    if total > len(listed[:MAX_LISTED_REJECTS]):
        notes.append(f"{total:,} rows were refused; the first {MAX_LISTED_REJECTS:,} are listed")
    say("building the dataset")
    interactions, items = _with_item_columns(interactions, parts["items"], notes)
    users = pd.concat(parts["users"], ignore_index=True).fillna("") if parts["users"] else None
    _note_content(interactions, items, notes)
    merged = _merged_roles(reports)
    counted = [r for r in reports if r.kind == "interactions"]
    dataset = Dataset.from_frames(
        name, interactions, items, users, roles=merged, sources=sources, rows_rejected=total, warnings=notes
    )
    extra = {"rejects.csv": safe_csv(pd.DataFrame(listed[:MAX_LISTED_REJECTS]))} if listed else {}
    stored = DatasetStore(workspace).save(dataset, extra)
    return ImportReport(
        dataset=name,
        version=stored.version,
        rows_read=sum(r.rows_read for r in counted),
        rows_accepted=len(interactions),
        rows_rejected=sum(r.rows_rejected for r in counted),
        rejects=listed[:MAX_LISTED_REJECTS],
        n_users=stored.n_users,
        n_items=stored.n_items,
        roles=merged,
        warnings=notes,
        files=reports,
        fingerprint=stored.fingerprint,
    )


def _check_file_options(corrections: Corrections, paths: Sequence[Path]) -> None:
    names = [path.name for path in paths]
    for option, file_name in dict(corrections.files):
        if file_name not in names:
            raise DataError(f"{option}:{file_name}: no such file in this import.", where="map", fix=f"Files: {names}.")
    if len(set(names)) != len(names):
        raise DataError("two files have the same name.", fix="Rename one, so that refused rows can be told apart.")


def _check_plan(planned: Sequence[tuple[Source, Kind, dict[str, str]]], corrections: Corrections) -> None:
    """Refuses a plan that would lose what the person meant, before anything long is read."""
    for kind, role, column in corrections.roles:
        if column and not any(
            roles.get(role) == column for _, file_kind, roles in planned if kind is None or file_kind == kind
        ):
            columns = "; ".join(f"{s.path.name} ({k}): {', '.join(s.columns[:30])}" for s, k, _ in planned)
            raise DataError(
                f"no {kind or 'file'} has a column {column[:80]!r} for the role {role}.",
                where="map",
                fix=f"Columns are: {columns}.",
            )
    needed: dict[Kind, tuple[str, ...]] = {"interactions": (USER, ITEM), "items": (ITEM,), "users": (USER,)}
    for source, kind, roles in planned:
        for role in needed[kind]:
            if role not in roles:
                word = role.removesuffix("_id")
                seen = ", ".join(source.columns[:30])
                raise DataError(
                    f"no {word} column was found (taken as {kind}; columns: {seen}).",
                    where=source.path.name,
                    fix=f"Say which it is with --map {role}=COLUMN.",
                )
    if not any(kind == "interactions" for _, kind, _ in planned):
        what = "; ".join(
            f"{s.path.name} was taken as {k} (columns: {', '.join(s.columns[:30])})" for s, k, _ in planned
        )
        missing = "user" if all(kind == "items" for _, kind, _ in planned) else "item"
        raise DataError(
            f"no file holds interactions, since none has both a user and an item column: {what}.",
            where=", ".join(source.path.name for source, _, _ in planned),
            fix=f"Say which it is with --map {missing}_id=COLUMN.",
        )


def _read(
    source: Source, kind: Kind, roles: dict[str, str], known: dict[str, set[str]]
) -> tuple[pd.DataFrame, Rejects, list[str], int]:
    """(accepted rows, refused rows, notes, rows read) of one file."""
    raw = source.fast()
    checked = None if raw is None else _check(raw, kind, roles, known)
    if checked is None or (checked.bad.any() and checked.raw.lines is None):
        # Something is wrong somewhere: read again, slower, knowing the line of every row.
        checked = _check(source.careful(None), kind, roles, known)
    raw, rejects = checked.raw, checked.raw.rejects
    rows_read = len(raw.table) + rejects.count
    if checked.bad.any() and raw.lines is not None:
        positions = np.flatnonzero(checked.bad)
        rejects.add_many(raw.lines[positions], checked.reasons(positions))
        rejects.listed.sort(key=lambda entry: entry[0])
    frame = checked.frame[~checked.bad].reset_index(drop=True)
    if kind != "interactions":
        key = ITEM if kind == "items" else USER
        known[key].update(frame[key])
    return frame, rejects, checked.notes, rows_read


@dataclass(frozen=True)
class _Checked:
    raw: RawTable
    frame: pd.DataFrame
    bad: npt.NDArray[np.bool_]
    #: (mask, how to say it with the cell in hand, the cells)
    faults: list[tuple[npt.NDArray[np.bool_], str, Any]]
    notes: list[str]

    def reasons(self, positions: npt.NDArray[np.int64]) -> Iterator[str]:
        for position in positions.tolist():
            said = []
            for mask, words, cells in self.faults:
                if mask[position]:
                    said.append(words.format(cell=repr(cells[position].as_py()[:60])))
            yield "; ".join(said)


def _check(raw: RawTable, kind: Kind, roles: dict[str, str], known: dict[str, set[str]]) -> _Checked:
    """Cells -> canonical columns, with a mask of the rows that cannot be accepted and why."""
    table, n_rows = raw.table, len(raw.table)
    faults: list[tuple[npt.NDArray[np.bool_], str, Any]] = []
    notes: list[str] = []
    columns: dict[str, Any] = {}

    def cells_of(column: str) -> pa.Array:
        cells = table.column(column)
        return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells

    for role in (USER, ITEM):
        if role in roles:
            ids = pc.utf8_trim_whitespace(cells_of(roles[role]))
            trimmed = n_rows - int(pc.sum(pc.equal(ids, cells_of(roles[role]))).as_py() or 0)
            if trimmed:
                notes.append(f"spaces around {trimmed:,} values of {role} were left out")
            faults.append((_mask(pc.equal(ids, "")), f"{role} is empty", ids))
            faults.append(
                (_mask(pc.match_substring_regex(ids, r"[\x00-\x1f\x7f]")), f"{role} holds control characters", ids)
            )
            faults.append((_mask(pc.greater(pc.utf8_length(ids), _MAX_ID_CHARS)), f"{role} is too long: {{cell}}", ids))
            columns[role] = ids
    if kind == "interactions" and RATING in roles:
        cells = cells_of(roles[RATING])
        ratings, bad = parse_numbers(cells)
        bad |= np.abs(np.nan_to_num(ratings)) > 1e30
        faults.append((bad, "rating {cell} is not a number", cells))
        columns[RATING] = pa.array(ratings)
        blank = int(np.isnan(ratings[~bad]).sum())
        if blank:
            notes.append(f"{blank:,} rows have no rating; they count as interactions")
    if kind == "interactions" and TIME in roles:
        cells = cells_of(roles[TIME])
        seconds, bad, time_notes = parse_times(cells, roles[TIME])
        notes += time_notes
        blank_mask = np.isnan(seconds) & ~bad
        if n_rows and blank_mask.all():
            notes.append(f"column {roles[TIME]!r} is empty: imported without times")
        else:
            faults.append((bad, "time {cell} cannot be read", cells))
            faults.append((blank_mask, "the time is empty", cells))
            columns[TIME] = pa.array(seconds)
    for role in (TITLE, "description", "category"):
        if role in roles:
            columns[role] = _tidy(cells_of(roles[role]), role)
    others = [c for c in table.column_names if c not in roles.values()]
    reserved = [*ROLES, "user_idx", "item_idx"] if kind == "interactions" else ROLES_OF[kind]
    named, name_notes = field_names(others, reserved)
    notes += name_notes
    for column in others:
        columns[named[column]] = _tidy(cells_of(column), "")
        long = _mask(pc.greater(pc.utf8_length(columns[named[column]]), _MAX_TEXT_CHARS))
        faults.append((long, f"{named[column]} is longer than {_MAX_TEXT_CHARS:,} characters", columns[named[column]]))
    if kind != "interactions":
        key = ITEM if kind == "items" else USER
        repeated = pd.Series(columns[key].to_pandas()).duplicated().to_numpy(bool)
        if known[key]:
            repeated |= np.array([value in known[key] for value in columns[key].to_pylist()], bool)
        faults.append(
            (
                repeated & ~_mask(pc.equal(columns[key], "")),
                f"{key} {{cell}} came before",
                columns[key],
            )
        )
    bad = np.zeros(n_rows, bool)
    for mask, _, _ in faults:
        bad |= mask
    return _Checked(raw, pa.table(columns).to_pandas(), bad, faults, notes)


def _mask(values: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _tidy(cells: pa.Array, role: str) -> pa.Array:
    text = readable_lists(pc.utf8_trim_whitespace(cells))
    if role == "category":
        text = pc.replace_substring_regex(text, r"\s*\|\s*", ", ")
    return text


def _with_item_columns(
    interactions: pd.DataFrame, item_parts: Sequence[pd.DataFrame], notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Moves titles, descriptions and categories that stood in the interactions to the items."""
    items = pd.concat(item_parts, ignore_index=True).fillna("") if item_parts else None
    carried = [c for c in (TITLE, "description", "category") if c in interactions.columns]
    for column in carried:
        filled = interactions.loc[interactions[column].fillna("") != "", [ITEM, column]].drop_duplicates()
        n_items = filled[ITEM].nunique()
        n_conflicting = filled.loc[filled[ITEM].duplicated(), ITEM].nunique()
        taken = items is not None and column in items.columns
        if taken or n_conflicting > _MAX_CONFLICTS * max(1, n_items):
            name = f"interaction_{column}"
            interactions = interactions.rename(columns={column: name})
            why = "items have their own" if taken else "it differs within one item"
            notes.append(f"column {column!r} of the interactions is kept as {name!r}: {why}")
            continue
        if n_conflicting:
            notes.append(f"{n_conflicting:,} items had more than one {column}; the first is kept")
        first = filled.drop_duplicates(ITEM)
        items = first if items is None else items.merge(first, on=ITEM, how="outer").fillna("")
        interactions = interactions.drop(columns=column)
    return interactions, items


def _note_content(interactions: pd.DataFrame, items: pd.DataFrame | None, notes: list[str]) -> None:
    """Things a person should know before trusting results."""
    keys = [c for c in (USER, ITEM, RATING, TIME) if c in interactions.columns]
    repeats = int(interactions.duplicated(keys).sum())
    if repeats:
        notes.append(f"{repeats:,} interactions repeat an earlier row exactly; they are kept")
    if RATING in interactions.columns and interactions[RATING].nunique() == 1:
        notes.append("all ratings are the same: treated as likes without a scale")
    if TIME not in interactions.columns:
        notes.append("no timestamps: file order stands for time, and there is no temporal split")
    if items is None or TITLE not in items.columns:
        notes.append("items have no title: their ids stand in")


def _merged_roles(reports: Sequence[FileReport]) -> dict[str, str]:
    """role -> column over all files; interactions speak first."""
    merged: dict[str, str] = {}
    for kind in ("interactions", "items", "users"):
        for report in reports:
            if report.kind == kind:
                for role, column in report.roles.items():
                    merged.setdefault(role, column)
    return merged
