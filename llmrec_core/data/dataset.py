"""A dataset: interactions, items and users, with ids that stay the user's own strings.

``Dataset`` is what every other room reads; ``DatasetStore`` keeps versions of it on disk. A version is a folder that is
built beside its place, synced and renamed, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, USER
from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.workspace import Workspace, check_name, write_json_atomic

ObjectArray = npt.NDArray[np.object_]

TABLES = ("interactions", "items", "users")
_STALE_BUILD_S = 3600.0


class SourceFile(BaseModel):
    """One imported file: what it was taken for, and its hash, so that an import can be traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    sha256: str
    encoding: str | None = None
    separator: str | None = None
    rows_read: int = 0
    rows_rejected: int = 0


class DatasetMeta(BaseModel):
    """What is known about one version of a dataset without opening its tables (``meta.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = 1
    created_at: str
    fingerprint: str
    n_interactions: int
    n_users: int
    n_items: int
    #: (lowest, highest) rating seen; None without ratings or when all are the same.
    rating_scale: tuple[float, float] | None = None
    has_timestamps: bool = False
    #: role -> column of the source files.
    roles: dict[str, str] = {}
    item_fields: tuple[str, ...] = ()
    user_fields: tuple[str, ...] = ()
    category_fields: tuple[str, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    rows_rejected: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three aligned tables. Build one with :meth:`from_frames`, an importer or :meth:`DatasetStore.load`.

    Attributes:
        interactions: user_id, item_id (text), user_idx, item_idx (int64), rating (float32, NaN: none), timestamp
            (float64 seconds since 1970 UTC; NaN in every row when the data has no times), then any further columns
            as text. File order.
        items: item_id, title, then text fields; row i is item_idx i. Holds every known item, also those without
            interactions, and those known from interactions alone (title = id, other fields empty).
        users: user_id, then text fields; row i is user_idx i.
    """

    name: str
    version: int
    folder: Path | None
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    meta: DatasetMeta

    @classmethod
    def from_frames(
        cls,
        name: str,
        interactions: pd.DataFrame,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        *,
        version: int = 1,
        roles: Mapping[str, str] | None = None,
        category_fields: Sequence[str] | None = None,
        sources: Sequence[SourceFile] = (),
        rows_rejected: int = 0,
        warnings: Sequence[str] = (),
    ) -> Dataset:
        """A dataset from canonical columns: ``user_id``, ``item_id``, optional ``rating``, ``timestamp`` (seconds).

        ``category_fields`` defaults to ``("category",)`` where items have that column. Values of further columns
        become text; missing ones become "".

        Raises:
            DataError: a needed column is missing, an id is empty or repeated in ``items`` or ``users``, there is no
                row, or only some rows have a time (such rows could not be placed before or after others).
        """
        for column in (USER, ITEM):
            if column not in interactions.columns:
                raise DataError(f"the interactions have no column {column!r}.", where=name)
        if interactions.empty:
            raise DataError("the dataset has no interactions.", where=name, fix="Import at least one valid row.")
        n_rows = len(interactions)
        user_column, item_column = _id_column(interactions, USER, name), _id_column(interactions, ITEM, name)
        item_table = _side_table(items, ITEM, item_column, name)
        user_table = _side_table(users, USER, user_column, name)
        if TITLE not in item_table:
            item_table[TITLE] = item_table[ITEM]
        else:
            titles = item_table[TITLE]
            item_table[TITLE] = pc.if_else(pc.equal(titles, ""), item_table[ITEM], titles)
        item_frame = _frame({ITEM: item_table[ITEM], TITLE: item_table[TITLE], **item_table})
        user_frame = _frame(user_table)

        columns: dict[str, Any] = {USER: user_column, ITEM: item_column}
        columns["user_idx"] = pc.index_in(user_column, user_table[USER]).cast(pa.int64())
        columns["item_idx"] = pc.index_in(item_column, item_table[ITEM]).cast(pa.int64())
        rating = _numbers(interactions, RATING, n_rows, np.float32)
        timestamp = _numbers(interactions, TIME, n_rows, np.float64)
        if np.isinf(rating).any() or np.isinf(timestamp).any():
            raise DataError("ratings and timestamps must be finite numbers.", where=name)
        timeless = int(np.isnan(timestamp).sum())
        if 0 < timeless < n_rows:
            raise DataError(
                f"{timeless} of {n_rows} interactions have no timestamp.",
                where=name,
                fix="Give every row a time, or import without the timestamp column.",
            )
        columns[RATING], columns[TIME] = pa.array(rating), pa.array(timestamp)
        known = {USER, ITEM, "user_idx", "item_idx", RATING, TIME}
        for column in interactions.columns:
            if column not in known:
                columns[str(column)] = as_text(interactions[column])
        frame = _frame(columns)

        if category_fields is None:
            category_fields = [f for f in ("category",) if f in item_frame.columns]
        low, high = (float(np.nanmin(rating)), float(np.nanmax(rating))) if (~np.isnan(rating)).any() else (0.0, 0.0)
        meta = DatasetMeta(
            name=name,
            version=version,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=_fingerprint(frame, item_frame, user_frame),
            n_interactions=n_rows,
            n_users=len(user_frame),
            n_items=len(item_frame),
            rating_scale=(low, high) if high > low else None,
            has_timestamps=timeless == 0,
            roles=dict(roles or {}),
            item_fields=tuple(c for c in item_frame.columns if c != ITEM),
            user_fields=tuple(c for c in user_frame.columns if c != USER),
            category_fields=tuple(category_fields),
            sources=tuple(sources),
            rows_rejected=rows_rejected,
            warnings=tuple(warnings),
        )
        return cls(name, version, None, frame, item_frame, user_frame, meta)

    @cached_property
    def item_ids(self) -> ObjectArray:
        """[n_items], sorted by code point (never by time)."""
        return np.asarray(self.items[ITEM].to_numpy(), dtype=object)

    @cached_property
    def user_ids(self) -> ObjectArray:
        """[n_users], sorted by code point."""
        return np.asarray(self.users[USER].to_numpy(), dtype=object)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def n_users(self) -> int:
        return len(self.users)

    @cached_property
    def item_index(self) -> dict[str, int]:
        return {item: index for index, item in enumerate(self.item_ids)}

    @cached_property
    def user_index(self) -> dict[str, int]:
        return {user: index for index, user in enumerate(self.user_ids)}

    def item_idx(self, item_id: str) -> int:
        """Raises: InputError when the item is unknown."""
        return _look_up(self.item_index, item_id, "item", self.name)

    def user_idx(self, user_id: str) -> int:
        """Raises: InputError when the user is unknown."""
        return _look_up(self.user_index, user_id, "user", self.name)

    @cached_property
    def _item_texts(self) -> dict[str, list[str]]:
        return {str(column): self.items[column].tolist() for column in self.items.columns}

    @cached_property
    def _user_texts(self) -> dict[str, list[str]]:
        return {str(column): self.users[column].tolist() for column in self.users.columns if column != USER}

    def item_text(self, idx: int, field: str) -> str:
        """One field of one item, "" where it is empty.

        Raises:
            InputError: there is no such field.
        """
        texts = self._item_texts.get(field)
        if texts is None:
            raise InputError(
                f"items have no field {field[:80]!r}.",
                where=f"dataset {self.name}",
                fix=f"Fields are: {', '.join(self._item_texts)}.",
            )
        return texts[idx]

    def profile(self, user_id: str) -> dict[str, str]:
        """The user's non-empty fields; {} for an unknown user."""
        index = self.user_index.get(user_id)
        if index is None:
            return {}
        return {field: texts[index] for field, texts in self._user_texts.items() if texts[index]}

    @property
    def category_fields(self) -> tuple[str, ...]:
        return self.meta.category_fields

    @property
    def rating_scale(self) -> tuple[float, float] | None:
        return self.meta.rating_scale

    @property
    def like_threshold(self) -> float | None:
        """Ratings above the middle of the scale are likes; None: there is no scale, every interaction counts."""
        scale = self.meta.rating_scale
        return None if scale is None else (scale[0] + scale[1]) / 2

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content of all three tables; name and version do not enter."""
        return self.meta.fingerprint


class DatasetStore:
    """Datasets of a workspace: ``datasets/<name>/v<N>/{interactions,items,users}.parquet + meta.json``."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def _place(self, name: str) -> Path:
        place = self._workspace.datasets / check_name(name, "dataset")
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError("this is not a dataset folder.", where=str(place), fix="Choose another name.")
        return place

    def versions(self, name: str) -> list[int]:
        """Complete versions, oldest first; [] for an unknown dataset."""
        place = self._place(name)
        found = []
        for path in place.glob("v*"):
            number = path.name[1:]
            if number.isascii() and number.isdigit() and not path.is_symlink() and (path / "meta.json").is_file():
                found.append(int(number))
        return sorted(found)

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

    def _folder(self, name: str, version: int | None) -> Path:
        place, versions = self._place(name), self.versions(name)
        if not versions or (version is not None and version not in versions):
            asked = f"dataset {name!r}" if version is None else f"version {version} of dataset {name!r}"
            raise NotFoundError(
                f"there is no {asked} in this workspace.", fix="`llmrec data list` shows what there is."
            )
        return place / f"v{version or versions[-1]}"

    def meta(self, name: str, version: int | None = None) -> DatasetMeta:
        """Raises: NotFoundError; DataError when ``meta.json`` is damaged."""
        folder = self._folder(name, version)
        try:
            return DatasetMeta.model_validate_json((folder / "meta.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"the description of this dataset cannot be read ({type(error).__name__}).",
                where=str(folder / "meta.json"),
                fix="Import the data again.",
            ) from error

    def load(self, name: str, version: int | None = None) -> Dataset:
        """The dataset, newest version unless told.

        Raises:
            NotFoundError: no such dataset or version.
            DataError: its files are damaged or do not fit together.
        """
        meta, folder = self.meta(name, version), self._folder(name, version)
        frames = []
        for table in TABLES:
            path = folder / f"{table}.parquet"
            try:
                frames.append(pq.read_table(path).to_pandas())
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"the table cannot be read ({str(error).splitlines()[0][:200]}).",
                    where=str(path),
                    fix="Import the data again.",
                ) from error
        rows = tuple(len(frame) for frame in frames)
        if rows != (meta.n_interactions, meta.n_items, meta.n_users):
            raise DataError("the tables do not have the recorded row counts.", where=str(folder), fix="Import again.")
        return Dataset(meta.name, meta.version, folder, frames[0], frames[1], frames[2], meta)

    def save(self, dataset: Dataset, extra_files: Mapping[str, str] | None = None) -> Dataset:
        """Stores ``dataset`` as a new version of its name, all or nothing.

        Args:
            extra_files: texts kept beside the tables, by file name.

        Returns:
            The dataset as stored, with its version and folder.
        """
        place = self._place(dataset.name)
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        build = place / f".build-{secrets.token_hex(8)}"
        build.mkdir()
        try:
            for table, frame in zip(TABLES, (dataset.interactions, dataset.items, dataset.users), strict=True):
                pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), build / f"{table}.parquet")
            for file_name, text in (extra_files or {}).items():
                (build / check_name(file_name, "file")).write_text(text, encoding="utf-8")
            while True:
                version = max(self.versions(dataset.name), default=0) + 1
                meta = dataset.meta.model_copy(update={"version": version})
                write_json_atomic(build / "meta.json", meta.model_dump(mode="json"))
                _sync(build)
                target = place / f"v{version}"
                try:
                    # Fails on a folder that is not empty: an import beside ours took this number, so take the next.
                    os.rename(build, target)
                except OSError:
                    if not target.exists():
                        raise
                    continue
                _sync_folder(place)
                break
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        return Dataset(dataset.name, version, target, dataset.interactions, dataset.items, dataset.users, meta)

    def delete(self, name: str) -> None:
        """Removes every version.

        Raises:
            NotFoundError: no such dataset.
        """
        place = self._folder(name, None).parent
        # Renamed first: a reader never meets a half-deleted dataset under its name.
        doomed = place.with_name(f".deleted-{secrets.token_hex(8)}")
        os.rename(place, doomed)
        shutil.rmtree(doomed)


def as_text(values: pd.Series) -> pa.Array:
    """Text of any column, never null: "" for missing, "1995" for 1995.0 (a whole number beside a blank)."""
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = values.astype(object)
        return pa.array(
            ["" if pd.isna(v) else str(int(v)) if float(v).is_integer() else repr(float(v)) for v in numbers],
            pa.large_string(),
        )
    array = pa.array(values, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    try:
        text = array.cast(pa.large_string())
    except pa.ArrowException:
        text = pa.array(["" if v is None else str(v) for v in array.to_pylist()], pa.large_string())
    return pc.fill_null(text, "")


def _id_column(frame: pd.DataFrame, column: str, name: str) -> pa.Array:
    text = as_text(frame[column])
    if pc.any(pc.equal(text, "")).as_py():
        raise DataError(f"an empty {column} is not an id.", where=name)
    return text


def _side_table(frame: pd.DataFrame | None, key: str, seen: pa.Array, name: str) -> dict[str, pa.Array]:
    """Columns of the items or users table: every known id, sorted; "" where a field is unknown."""
    if frame is None:
        frame = pd.DataFrame({key: pd.Series([], dtype=object)})
    if key not in frame.columns:
        raise DataError(f"the table has no column {key!r}.", where=name)
    known = _id_column(frame, key, name)
    if len(pc.unique(known)) != len(known):
        raise DataError(f"a {key} stands there more than once.", where=name, fix="Keep one row for each id.")
    both = pc.unique(pa.concat_arrays([known, seen])).to_pylist()
    # Python's own sort, so that the order is the same with every version of the libraries.
    ids = pa.array(sorted(both), pa.large_string())
    source = pc.index_in(ids, known)
    table = {key: ids}
    for column in frame.columns:
        if column != key:
            table[str(column)] = pc.fill_null(pc.take(as_text(frame[column]), source), "")
    return table


def _frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pa.table(dict(columns)).to_pandas()


def _numbers(frame: pd.DataFrame, column: str, n_rows: int, dtype: Any) -> npt.NDArray[Any]:
    if column not in frame.columns:
        return np.full(n_rows, np.nan, dtype)
    return pd.to_numeric(frame[column]).to_numpy(dtype=dtype, na_value=np.nan, copy=True)


def _fingerprint(*frames: pd.DataFrame) -> str:
    """SHA-256 over column names and values; equal content gives equal hashes on every machine.

    Text enters as lengths and UTF-8 bytes, numbers little-endian with one kind of NaN and zero.
    """
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(json.dumps([len(frame), [str(c) for c in frame.columns]]).encode())
        for column in frame.columns:
            values = frame[column]
            if pd.api.types.is_numeric_dtype(values.dtype):
                kind = "<f8" if pd.api.types.is_float_dtype(values.dtype) else "<i8"
                numbers = values.to_numpy(dtype=kind, copy=True)
                if kind == "<f8":
                    numbers[np.isnan(numbers)] = np.nan
                    numbers += 0.0
                digest.update(numbers.tobytes())
            else:
                text = as_text(values)
                digest.update(pc.binary_length(text).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
                for start in range(0, len(text), 100_000):
                    digest.update("".join(text[start : start + 100_000].to_pylist()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _look_up(index: Mapping[str, int], key: str, what: str, name: str) -> int:
    found = index.get(key)
    if found is None:
        raise InputError(
            f"there is no {what} {str(key)[:80]!r}.",
            where=f"dataset {name}",
            fix=f"Ids are compared as text, so '7' is not '007'. Check the id of the {what}.",
        )
    return found


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
    """Removes what killed imports left, once it is old enough to belong to nobody."""
    for path in place.glob(".build-*"):
        if time.time() - path.stat().st_mtime > _STALE_BUILD_S:
            shutil.rmtree(path, ignore_errors=True)
