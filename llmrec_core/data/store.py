"""Versions of datasets on disk. A version is a folder that is built beside its place, synced and renamed, so a reader
sees all of it or nothing, and whoever loaded an older one keeps it whole."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from llmrec_core.contracts import ITEM, USER
from llmrec_core.data.dataset import ITEM_IDX, TABLES, USER_IDX, Dataset, DatasetMeta
from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.workspace import Workspace, check_name, write_json_atomic

try:
    import fcntl
except ImportError:  # Windows has no such locks: what was left over waits until it is old.
    fcntl = None  # type: ignore[assignment]

_STALE_BUILD_S = 3600.0
#: A file in the folder of a build that its builder keeps locked; the system opens the lock when the process is gone.
_BUILDER = ".builder"
REJECTS = "rejects"


@dataclass(frozen=True)
class Build:
    """A version in the making. Nothing of it is seen before :meth:`commit`."""

    place: Path
    folder: Path

    def alive(self) -> None:
        """Says that somebody still works on it, so that it is not swept away as left over."""
        os.utime(self.folder)

    def commit(self, meta: DatasetMeta) -> DatasetMeta:
        """Gives it the next free number and its place. Returns: the description with that number."""
        while True:
            version = max(_versions(self.place), default=0) + 1
            numbered = meta.model_copy(update={"version": version})
            write_json_atomic(self.folder / "meta.json", numbered.model_dump(mode="json"))
            _sync(self.folder)
            target = self.place / f"v{version}"
            (self.folder / _BUILDER).unlink(missing_ok=True)
            try:
                # Fails on a folder that is not empty: an import beside ours took this number, so take the next.
                os.rename(self.folder, target)
            except OSError:
                if not target.exists():
                    raise
                continue
            _sync_folder(self.place)
            return numbered


class DatasetStore:
    """Datasets of a workspace: ``datasets/<name>/v<N>/`` with ``interactions``, ``items``, ``users`` and further
    tables as Parquet, ``rejects.parquet`` where rows were refused, and ``meta.json``."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def _place(self, name: str) -> Path:
        place = self._workspace.datasets / check_name(name, "dataset")
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError("this is not a dataset folder.", where=str(place), fix="Choose another name.")
        return place

    def versions(self, name: str) -> list[int]:
        """Complete versions, oldest first; [] for an unknown dataset."""
        return _versions(self._place(name))

    def list(self) -> list[DatasetMeta]:
        """The newest version of each dataset by name; folders that are not datasets are passed over."""
        metas = []
        for place in sorted(self._workspace.datasets.iterdir()):
            try:
                versions = self.versions(place.name)
                if versions:
                    metas.append(self.meta(place.name, versions[-1]))
            except InputError:
                # A foreign or damaged folder must not hide the datasets beside it; loading it by name says why.
                continue
        return metas

    def folder(self, name: str, version: int | None = None) -> Path:
        """Where a version lies, newest unless told. Raises: NotFoundError."""
        place, versions = self._place(name), self.versions(name)
        if not versions or (version is not None and version not in versions):
            asked = f"dataset {name!r}" if version is None else f"version {version} of dataset {name!r}"
            raise NotFoundError(
                f"there is no {asked} in this workspace.", fix="`llmrec data list` shows what there is."
            )
        return place / f"v{version or versions[-1]}"

    def meta(self, name: str, version: int | None = None) -> DatasetMeta:
        """Raises: NotFoundError; DataError when ``meta.json`` is damaged."""
        folder = self.folder(name, version)
        try:
            return DatasetMeta.model_validate_json((folder / "meta.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"the description of this dataset cannot be read ({type(error).__name__}).",
                where=str(folder / "meta.json"),
                fix="Import the data again.",
            ) from error

    def load(self, name: str, version: int | None = None) -> Dataset:
        """The dataset, newest version unless told. Its tables are looked at now and read when they are asked for.

        Raises:
            NotFoundError: no such dataset or version.
            DataError: its files are damaged or do not fit together.
        """
        meta, folder = self.meta(name, version), self.folder(name, version)
        rows = {}
        for table in (*TABLES, *meta.extras):
            path = folder / f"{table}.parquet"
            try:
                with pq.ParquetFile(path) as opened:
                    rows[table] = opened.metadata.num_rows
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"the table cannot be read ({str(error).splitlines()[0][:200]}).",
                    where=str(path),
                    fix="Import the data again.",
                ) from error
        if [rows[table] for table in TABLES] != [meta.n_interactions, meta.n_items, meta.n_users]:
            raise DataError("the tables do not have the recorded row counts.", where=str(folder), fix="Import again.")
        return Dataset(meta.name, meta.version, folder, meta)

    def rejects(self, name: str, version: int | None = None) -> pd.DataFrame:
        """Every row that was refused: file, line, column, reason and the raw text, clipped.

        Raises:
            NotFoundError: no such dataset or version.
            DataError: the table is damaged.
        """
        path = self.folder(name, version) / f"{REJECTS}.parquet"
        if not path.is_file():
            return pd.DataFrame({column: [] for column in ("file", "line", "column", "reason", "text")})
        try:
            return pq.read_table(path).to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"the list of refused rows cannot be read ({str(error).splitlines()[0][:200]}).", where=str(path)
            ) from error

    @contextmanager
    def building(self, name: str) -> Iterator[Build]:
        """A folder for the tables of a new version; whatever was not committed is removed at the end."""
        place = self._place(name)
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        build = Build(place, place / f".build-{secrets.token_hex(8)}")
        build.folder.mkdir(parents=True)
        try:
            with _at_work(build.folder):
                yield build
        finally:
            shutil.rmtree(build.folder, ignore_errors=True)
            if not any(place.iterdir()):
                # A first import that was refused leaves no empty dataset behind; one beside it may just have begun.
                with suppress(OSError):
                    place.rmdir()

    def save(self, dataset: Dataset, extra_files: Mapping[str, str] | None = None) -> Dataset:
        """Stores ``dataset`` as a new version of its name, all or nothing.

        Args:
            extra_files: texts kept beside the tables, by file name.

        Returns:
            The dataset as stored, with its version and folder.
        """
        with self.building(dataset.name) as build:
            frame = dataset.interactions
            coded = {USER_IDX: np.int32, ITEM_IDX: np.int32}
            narrow = frame.drop(columns=[USER, ITEM]).astype(coded)
            tables = {"interactions": narrow, "items": dataset.items, "users": dataset.users}
            tables |= {extra: more for extra in dataset.meta.extras if (more := dataset.extra(extra)) is not None}
            for table, rows in tables.items():
                plain = pa.Table.from_pandas(rows, preserve_index=False)
                pq.write_table(plain, build.folder / f"{table}.parquet", **parquet_options(plain.schema))
            for file_name, text in (extra_files or {}).items():
                (build.folder / check_name(file_name, "file")).write_text(text, encoding="utf-8")
            meta = build.commit(dataset.meta)
            return Dataset(dataset.name, meta.version, build.place / f"v{meta.version}", meta)

    def delete(self, name: str, *, in_use: Callable[[str], Sequence[str]] | None = None) -> None:
        """Removes every version, and the kept tokens of its prompts.

        Args:
            in_use: tells who still works with a dataset (runs that wait or go on), by name; such a dataset stays.

        Raises:
            NotFoundError: no such dataset.
            InputError: somebody works with it.
        """
        place = self.folder(name).parent
        users = list(in_use(name)) if in_use is not None else []
        if users:
            shown = ", ".join(users[:5]) + (" ..." if len(users) > 5 else "")
            raise InputError(
                f"dataset {name!r} is in use by {shown}.", fix="Wait until it is done, or cancel it, and delete then."
            )
        # Renamed first: a reader never meets a half-deleted dataset under its name.
        doomed = place.with_name(f".deleted-{secrets.token_hex(8)}")
        os.rename(place, doomed)
        shutil.rmtree(doomed)
        tokens = self._workspace.token_cache(name)
        if tokens.is_dir():
            shutil.rmtree(tokens)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables are written: text as words and compressed, numbers as they are.

    Indices and times hardly compress, and plain ones are read several times as fast.
    """
    texts = {field.name for field in schema if not pa.types.is_primitive(field.type)}
    return {
        "use_dictionary": sorted(texts) or False,
        "compression": {name: "snappy" if name in texts else "none" for name in schema.names},
    }


def _versions(place: Path) -> list[int]:
    found = []
    for path in place.glob("v*"):
        number = path.name[1:]
        if number.isascii() and number.isdigit() and not path.is_symlink() and (path / "meta.json").is_file():
            found.append(int(number))
    return sorted(found)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Windows cannot open folders, and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(place: Path) -> None:
    """Removes what killed imports left: at once where that is sure, else when it is old enough to belong to nobody."""
    for path in place.glob(".build-*"):
        # An import beside this one may be done with its folder just now.
        with suppress(FileNotFoundError):
            if is_abandoned(path) or time.time() - path.stat().st_mtime > _STALE_BUILD_S:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Says, for as long as this process lives, that somebody builds here; nothing where files cannot be locked.

    A lock tells more than the number of a process: that is another one in every container that shares the workspace.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder / f"{_BUILDER}.new", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        with suppress(OSError):
            # Locked before it has its name: nobody may find it open in between.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / f"{_BUILDER}.new", folder / _BUILDER)
        (folder / f"{_BUILDER}.new").unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that built in this folder is gone for sure; False where nobody can tell."""
    if fcntl is None:
        return False
    try:
        handle = os.open(folder / _BUILDER, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


__all__ = ["REJECTS", "Build", "DatasetStore", "is_abandoned", "parquet_options"]
