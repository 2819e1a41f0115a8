"""One import at work: tables are read where they wait, ids settled, and all of it written as one version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, USER
from llmrec_core.data._checking import CheckedBlock, ReadAgain, TableReader
from llmrec_core.data._engine import MAX_LISTED, Plan, RejectLog, Spill, Written, clear, write_interactions, write_side
from llmrec_core.data._item_columns import beside
from llmrec_core.data._layouts import PlannedTable
from llmrec_core.data._roles import NEEDED_OF, ROLES, Corrections, Kind
from llmrec_core.data._values import RatingScale, ValueOptions, ask_about_marker, detect_scale, refuse_unanswered
from llmrec_core.data.companions import coverage_notes
from llmrec_core.data.dataset import DatasetMeta, Fingerprint, SourceFile, default_categories, now
from llmrec_core.data.guessing import ImportGuess
from llmrec_core.data.mapping import MAPPING_FILE, dump_mapping, mapping_of
from llmrec_core.data.privacy.detect import mask_text
from llmrec_core.data.privacy.keys import workspace_key
from llmrec_core.data.privacy.pseudonyms import transform_ids
from llmrec_core.data.privacy.removals import forgotten_among
from llmrec_core.data.store import Build, DatasetStore
from llmrec_core.data.wheels import file_sha256
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

#: Text columns of interactions that may belong to the items.
_OF_ITEMS = (TITLE, "description", "category", "price", "image")


@dataclass(frozen=True)
class FileReport:
    """Rows of one table."""

    file: str
    kind: Kind
    rows_read: int
    rows_rejected: int
    roles: dict[str, str]
    part: str | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    ``rows_*`` count interactions; ``files`` has every table's own counts. ``rejects`` lists the first refused rows of
    all tables (``{file, line, column, reason}``); :meth:`DatasetStore.rejects` has every one.

    Attributes:
        rows_merged: accepted rows that the duplicates policy took together with others.
        unchanged: the data and what was said of it equal the newest version, which stays as it is.
        mapping: what was said, as ``--map`` takes it.
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
    rows_merged: int = 0
    unchanged: bool = False
    mapping: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Table:
    planned: PlannedTable
    part: str | None

    @property
    def name(self) -> str:
        return self.planned.source.name


def _alike(readers: Sequence[TableReader], key: str) -> list[list[TableReader]]:
    """Readers in groups that share a column beside the id."""
    groups: list[tuple[set[str], list[TableReader]]] = []
    for reader in readers:
        names = set(reader.texts) - {key}
        fitting = next((group for group in groups if not names or not group[0] or names & group[0]), None)
        if fitting is None:
            groups.append((names, [reader]))
        else:
            fitting[0].update(names)
            fitting[1].append(reader)
    return [group for _, group in groups]


@dataclass
class Import:
    """One import, from checked plan to report."""

    workspace: Workspace
    name: str
    build: Build
    tables: Sequence[Table]
    corrections: Corrections
    options: ValueOptions
    said: tuple[str, ...]
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    reports: list[FileReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = self.build.folder / "waiting"
        self.waiting.mkdir()
        self.log = RejectLog(self.waiting)
        hidden = dict(self.corrections.options)
        self.key = workspace_key(self.workspace) if hidden.get("pseudonymise") == "yes" else None
        self.masks = {
            option.removeprefix("mask:"): partial(mask_text, kinds=tuple(kinds.replace(",", "+").split("+")))
            for option, kinds in hidden.items()
            if option.startswith("mask:")
        }

    def run(self) -> ImportReport:
        with ThreadPoolExecutor(1) as hasher:
            hashes = {path: hasher.submit(_hash, path) for path in {t.planned.source.path for t in self.tables}}
            readers = [self._reader(table) for table in self.tables]
            spills = [self._spill(reader) for reader in readers if reader.planned.kind == "interactions"]
            self._refuse_nothing(spills)
            items, users = self._side(readers, "items"), self._side(readers, "users")
            digest = Fingerprint()
            extras = self._extras(readers, digest)
            self._check_masks(readers)
            scale = self._scale(readers)
            written = self._write(readers, spills, items, users)
            if extras:
                paths = {kind: self.build.folder / f"{kind}.parquet" for kind in extras}
                self.notes += coverage_notes(written.items[ITEM], paths)
            written.digest.absorb(digest)
            return self._finish(written, extras, scale, hashes)

    def _reader(self, table: Table) -> TableReader:
        return TableReader(table.planned, self.options, self.masks, self.key is not None)

    # ------------------------------------------------------------------------------------------------ reading

    def _read(self, reader: TableReader, begin: Callable[[], Callable[[CheckedBlock], None]]) -> None:
        """All blocks of a table to where they go; ``begin`` makes a fresh place, and is called again to begin anew."""
        self.say(f"reading {reader.name} as {reader.planned.kind}")
        while True:
            log, take, n_read, n_again = self.log.table(), begin(), 0, 0
            try:
                with closing(reader.blocks()) as blocks:
                    for block in blocks:
                        take(block)
                        log.add(reader.name, block.refused)
                        n_read += block.n_read
                        self.build.alive()
                        if n_read - n_again >= 1_000_000:
                            n_again = n_read
                            self.say(f"reading {reader.name} as {reader.planned.kind}: {n_read:,} rows")
                break
            except ReadAgain:
                log.forget()
                self.say(f"reading {reader.name} again: later rows say more about its columns")
        self.log.keep(log)
        source = reader.planned.source
        told = [*source.notes, *reader.planned.notes, *reader.notes]
        self.notes += [note for text in told if (note := f"{reader.name}: {text}") not in self.notes]
        if reader.planned.kind != "interactions" and log.count:
            self.notes.append(f"{reader.name}: {log.count:,} of {n_read:,} rows refused")
        part = next(table.part for table in self.tables if table.planned is reader.planned)
        self.reports.append(FileReport(reader.name, reader.planned.kind, n_read, log.count, reader.planned.roles, part))

    def _spill(self, reader: TableReader) -> Spill:
        number = len(self.reports)
        part = next(table.part for table in self.tables if table.planned is reader.planned)
        made: list[Spill] = []

        def begin() -> Callable[[CheckedBlock], None]:
            for old in made:
                old.close()
            made.append(Spill(self.waiting, number, part))
            return made[-1].add

        self._read(reader, begin)
        made[-1].close()
        return made[-1]

    def _side(self, readers: Sequence[TableReader], kind: str) -> dict[str, pa.Array]:
        """Columns of all tables of items, or of users; {} where there is none.

        Tables with a column in common continue each other; one with columns of its own is set beside them by id.
        """
        key = ITEM if kind == "items" else USER
        columns: dict[str, pa.Array] = {}
        for group in _alike([reader for reader in readers if reader.planned.kind == kind], key):
            tables: list[pa.Table] = []
            known: set[str] = set()
            for reader in group:
                reader.known = known
                blocks: list[pa.Table] = []

                def begin(blocks: list[pa.Table] = blocks) -> Callable[[CheckedBlock], None]:
                    blocks.clear()
                    return lambda block: blocks.append(_plain(block.table))

                self._read(reader, begin)
                tables += blocks
            table = pa.concat_tables(tables, promote_options="default").combine_chunks()
            found = {name: pc.fill_null(_array(table.column(name)), "") for name in table.column_names}
            columns = beside(columns, found, key) if columns else found
        if kind == "users" and columns:
            columns[USER] = self._named(columns[USER])
        return columns

    def _extras(self, readers: Sequence[TableReader], digest: Fingerprint) -> tuple[str, ...]:
        """Further tables, each written as it is read."""
        kinds = [r.planned.kind for r in readers if r.planned.kind not in ("interactions", "items", "users")]
        for kind in dict.fromkeys(kinds):
            mine = [reader for reader in readers if reader.planned.kind == kind]
            path, parts = self.build.folder / f"{kind}.parquet", self.waiting / kind
            parts.mkdir()
            columns: dict[str, pa.DataType] = {}
            for reader in mine:
                columns |= dict.fromkeys([*reader.ids, *reader.texts], pa.large_string())
                if TIME in reader.planned.roles:
                    columns[TIME] = pa.float64()
            schema = pa.schema(list(columns.items()))
            for number, reader in enumerate(mine):
                self._stream(reader, parts / f"{number}.parquet", schema)
            with pq.ParquetWriter(path, schema) as writer:
                for number in range(len(mine)):
                    with pq.ParquetFile(parts / f"{number}.parquet") as opened:
                        for batch in opened.iter_batches(100_000):
                            rows = {name: batch.column(name) for name in schema.names}
                            digest.add(kind, rows)
                            writer.write_batch(batch)
        return tuple(dict.fromkeys(kinds))

    def _stream(self, reader: TableReader, path: Path, schema: pa.Schema) -> None:
        writers: list[pq.ParquetWriter] = []

        def begin() -> Callable[[CheckedBlock], None]:
            for old in writers:
                old.close()
            writers.append(pq.ParquetWriter(path, schema))

            def take(block: CheckedBlock) -> None:
                table, n_rows = _plain(block.table), len(block.table)
                cells = {name: _array(table.column(name)) for name in table.column_names}
                if USER in cells:
                    cells[USER] = self._named(cells[USER])
                empty = {pa.large_string(): "", pa.float64(): float("nan")}
                full = [cells.get(f.name, pa.repeat(pa.scalar(empty[f.type], f.type), n_rows)) for f in schema]
                writers[-1].write_table(pa.table(full, schema=schema))

            return take

        self._read(reader, begin)
        writers[-1].close()

    # ------------------------------------------------------------------------------------------------ settling

    def _named(self, users: pa.Array) -> pa.Array:
        """Users by the names that they have in the dataset."""
        return users if self.key is None else transform_ids(users, "user", self.key)

    def _refuse_nothing(self, spills: Sequence[Spill]) -> None:
        if any(spill.n_rows for spill in spills):
            return
        first = "; ".join(f"{r['file']}, line {r['line']}: {r['reason']}" for r in self.log.listed[:3])
        raise DataError(
            f"no row of interactions is acceptable. {first}".strip(),
            where=", ".join(t.name for t in self.tables if t.planned.kind == "interactions"),
            fix="Correct the file or the roles.",
        )

    def _check_masks(self, readers: Sequence[TableReader]) -> None:
        for column in self.masks:
            if not any(column in (*reader.texts, *reader.texts.values()) for reader in readers):
                raise DataError(
                    f"there is no text column {column[:80]!r} to mask.",
                    where="map",
                    fix=f"Text columns: {', '.join(dict.fromkeys(c for r in readers for c in r.texts))}.",
                )

    def _scale(self, readers: Sequence[TableReader]) -> RatingScale:
        rated = [r for r in readers if r.planned.kind == "interactions" and RATING in r.planned.roles]
        for reader in rated:
            if reader.planned.layout == "rows" and self.corrections.option("missing", reader.name) is None:
                found = reader.rating_counts
                asked = ask_about_marker(list(found), list(found.values()), reader.planned.roles[RATING], reader.name)
                refuse_unanswered([asked] if asked else [], reader.name)
        counts: Counter[float] = sum((reader.rating_counts for reader in rated), Counter())
        column = rated[0].planned.roles[RATING] if rated else RATING
        tops = {reader.out_of for reader in rated if reader.out_of is not None}
        scale = detect_scale(
            list(counts), list(counts.values()), column=column, options=self.options, out_of=max(tops, default=None)
        )
        if scale.question is not None:
            refuse_unanswered([scale.question], ", ".join(reader.name for reader in rated))
        if scale.note:
            self.notes.append(scale.note)
        return scale

    def _timed(self, readers: Sequence[TableReader], spills: Sequence[Spill]) -> bool:
        """Whether rows have times: all of them, or none."""
        mine = [r for r in readers if r.planned.kind == "interactions"]
        timed = [reader.has_times for reader, spill in zip(mine, spills, strict=True) if spill.n_rows]
        missing = sum(reader.missing_times for reader in mine)
        if any(timed) and not all(timed):
            if self.options.missing_time != "drop-all":
                without = ", ".join(r.name for r, s in zip(mine, spills, strict=True) if s.n_rows and not r.has_times)
                raise DataError(
                    "some files have times and others have none, so that their rows have no common order.",
                    where=without,
                    fix="Give every file a time column, or import all without: --map missing_time=drop-all.",
                )
            missing += 1
        if any(timed) and missing and self.options.missing_time == "drop-all":
            self.notes.append("some rows have no time, so all were imported without: file order stands for time")
            return False
        if any(timed) and missing and self.options.missing_time == "keep-order":
            self.notes.append(f"{missing:,} rows without a time took that of the row before them")
        return any(timed)

    def _write(
        self,
        readers: Sequence[TableReader],
        spills: Sequence[Spill],
        items: Mapping[str, pa.Array],
        users: Mapping[str, pa.Array],
    ) -> Written:
        self.say("building the dataset")
        mine = [r for r in readers if r.planned.kind == "interactions"]
        roles = {role for reader in mine for role in reader.planned.roles}
        rename = None if self.key is None else self._named
        timed = self._timed(readers, spills)
        carried = [column for column in _OF_ITEMS if column in roles and column in ROLES]
        written = write_interactions(
            self.build, spills, items, users, Plan(self.name, timed, self.options.duplicates, carried, rename)
        )
        for table, columns in (("items", written.items), ("users", written.users)):
            write_side(self.build, table, columns, written.digest)
        self.notes += written.notes
        if not timed:
            self.notes.append("no timestamps: file order stands for time, and there is no temporal split")
        if all(
            written.items[TITLE].to_numpy(zero_copy_only=False) == written.items[ITEM].to_numpy(zero_copy_only=False)
        ):
            self.notes.append("items have no title: their ids stand in")
        gone = forgotten_among(self.workspace, self.name, written.users[USER])
        if gone:
            self.notes.append(
                f"{len(gone):,} users who were removed from this dataset are in it again: remove them once more"
            )
        return written

    def _finish(
        self, written: Written, extras: tuple[str, ...], scale: RatingScale, hashes: Mapping[Path, Future[str]]
    ) -> ImportReport:
        if self.log.count > MAX_LISTED:
            self.notes.append(
                f"{self.log.count:,} rows were refused; the first {MAX_LISTED:,} are listed, and all are kept"
            )
        counted = [r for r in self.reports if r.kind == "interactions"]
        roles = _merged_roles(self.reports)
        by_name = {table.name: table.planned.source for table in self.tables}
        sources = tuple(
            SourceFile(
                name=r.file, kind=r.kind, sha256=hashes[by_name[r.file].path].result(), rows_read=r.rows_read,
                encoding=by_name[r.file].encoding, separator=by_name[r.file].separator, rows_rejected=r.rows_rejected,
            )
            for r in self.reports
        )  # fmt: skip
        meta = DatasetMeta(
            name=self.name,
            created_at=now(),
            fingerprint=written.digest.hexdigest(),
            n_interactions=written.n_rows,
            n_users=len(written.users[USER]),
            n_items=len(written.items[ITEM]),
            rating_scale=None if self.options.duplicates == "count" else scale.bounds,
            rating_kind="counts" if self.options.duplicates == "count" else scale.kind,
            rating_step=scale.step,
            has_timestamps=written.has_timestamps,
            roles=roles,
            item_fields=tuple(c for c in written.items if c != ITEM),
            user_fields=tuple(c for c in written.users if c != USER),
            category_fields=default_categories(written.items),
            sources=sources,
            rows_rejected=self.log.count,
            rows_merged=written.n_merged,
            warnings=tuple(self.notes),
            extras=extras,
            mapping=self.said,
        )
        stored, unchanged = self._stored(meta)
        return ImportReport(
            dataset=self.name,
            version=stored.version,
            rows_read=sum(r.rows_read for r in counted),
            rows_accepted=written.n_rows + written.n_merged,
            rows_rejected=sum(r.rows_rejected for r in counted),
            rejects=self.log.listed,
            n_users=stored.n_users,
            n_items=stored.n_items,
            roles=roles,
            warnings=self.notes,
            files=self.reports,
            fingerprint=stored.fingerprint,
            rows_merged=written.n_merged,
            unchanged=unchanged,
            mapping=self.said,
        )

    def _stored(self, meta: DatasetMeta) -> tuple[DatasetMeta, bool]:
        """The new version; or the newest one, where nothing differs from it."""
        store = DatasetStore(self.workspace)
        if store.versions(self.name):
            newest = store.meta(self.name)
            same = ("fingerprint", "mapping", "roles", "rating_scale", "rows_rejected", "rows_merged", "extras")
            if all(getattr(newest, field) == getattr(meta, field) for field in same):
                self.notes.append(f"the data equals version {newest.version}, which stays as it is")
                return newest, True
        self.log.write(self.build.folder)
        clear(self.waiting)
        clear(self.build.folder / "scratch")
        clear(self.build.folder / "overflow")
        mapping = mapping_of([_guess(table) for table in self.tables], self.said)
        (self.build.folder / MAPPING_FILE).write_text(dump_mapping(mapping), encoding="utf-8")
        return self.build.commit(meta), False


def _guess(table: Table) -> ImportGuess:
    source = table.planned.source
    return ImportGuess(
        file=source.name,
        kind=table.planned.kind,
        format=source.format,
        encoding=source.encoding,
        separator=source.separator,
        header=source.header,
        columns=source.columns,
        roles=table.planned.roles,
        layout=table.planned.layout,
        part=table.part,
    )


def _hash(path: Path) -> str:
    """SHA-256 of a source; "" for what is no file, such as a database server."""
    return file_sha256(path) if path.is_file() else ""


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary columns as the text they stand for."""
    cells = [_array(column) for column in table.columns]
    return pa.table(
        [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in cells], names=table.column_names
    )


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _merged_roles(reports: Sequence[FileReport]) -> dict[str, str]:
    """role -> column over all tables; interactions speak first."""
    merged: dict[str, str] = {}
    for kind in NEEDED_OF:
        for report in reports:
            if report.kind == kind:
                for role, column in report.roles.items():
                    merged.setdefault(role, column)
    return merged


__all__ = ["FileReport", "Import", "ImportReport", "Table"]
