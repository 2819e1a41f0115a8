"""A dataset: interactions, items and users, with ids that stay the user's own strings.

``Dataset`` is what every other room reads. Tables are read when they are first asked for, and the two id columns of the
interactions are codes into the sorted ids, so that ten million rows take some hundred megabytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from pydantic import BaseModel, ConfigDict

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, USER
from llmrec_core.data._values import detect_scale
from llmrec_core.errors import DataError, InputError

ObjectArray = npt.NDArray[np.object_]

TABLES = ("interactions", "items", "users")
USER_IDX, ITEM_IDX = "user_idx", "item_idx"
#: Further tables that a dataset may have, each a Parquet file beside the three.
EXTRA_TABLES = ("impressions", "knowledge", "links", "instructions", "vectors")
#: Columns of the interactions with a type of their own, in order; further ones are text.
CORE = (USER, ITEM, USER_IDX, ITEM_IDX, RATING, TIME)


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
    #: Ends of the scale that ratings are given on, seen or not; None without ratings, or when they are all the same or
    #: count something.
    rating_scale: tuple[float, float] | None = None
    #: none, constant, binary, thumbs, scale or counts; "" in datasets from before it was kept.
    rating_kind: str = ""
    #: Distance of neighbouring ratings; 0 for a continuous scale.
    rating_step: float = 0.0
    has_timestamps: bool = False
    #: role -> column of the source files.
    roles: dict[str, str] = {}
    item_fields: tuple[str, ...] = ()
    user_fields: tuple[str, ...] = ()
    category_fields: tuple[str, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    rows_rejected: int = 0
    #: Rows that a duplicates policy took together with another one.
    rows_merged: int = 0
    warnings: tuple[str, ...] = ()
    #: Further tables of this dataset, of :data:`EXTRA_TABLES`.
    extras: tuple[str, ...] = ()
    #: What was said against the guesses when it was imported, as ``--map`` takes it.
    mapping: tuple[str, ...] = ()
    #: Fingerprints it had before persons were removed from it; runs name the one they were trained on.
    former_fingerprints: tuple[str, ...] = ()
    n_removed_users: int = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three aligned tables. Build one with :meth:`from_frames`, an importer or :meth:`DatasetStore.load`."""

    name: str
    version: int
    folder: Path | None
    meta: DatasetMeta
    #: Tables held in memory from the start; the others are read from ``folder`` when they are first asked for.
    _frames: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @classmethod
    def from_frames(
        cls,
        name: str,
        interactions: pd.DataFrame,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        *,
        extras: Mapping[str, pd.DataFrame] | None = None,
        version: int = 1,
        roles: Mapping[str, str] | None = None,
        category_fields: Sequence[str] | None = None,
        sources: Sequence[SourceFile] = (),
        rows_rejected: int = 0,
        warnings: Sequence[str] = (),
    ) -> Dataset:
        """A dataset from canonical columns: ``user_id``, ``item_id``, optional ``rating``, ``timestamp`` (seconds).

        ``category_fields`` defaults to ``("category",)`` where items have that column. Values of further columns
        become text; missing ones become "". ``extras`` are further tables by name (:data:`EXTRA_TABLES`), as text.

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
        item_table = item_columns(_side_columns(items, ITEM, name), item_column, name)
        user_table = side_columns(_side_columns(users, USER, name), USER, user_column, name)
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
        columns: dict[str, Any] = {
            USER_IDX: pc.index_in(user_column, user_table[USER]).cast(pa.int32()),
            ITEM_IDX: pc.index_in(item_column, item_table[ITEM]).cast(pa.int32()),
            RATING: pa.array(rating),
            TIME: pa.array(timestamp),
        }
        for column in interactions.columns:
            if column not in CORE:
                columns[str(column)] = as_text(interactions[column])
        further = {
            _extra_name(extra): {str(c): as_text(frame[c]) for c in frame.columns}
            for extra, frame in (extras or {}).items()
        }
        digest = Fingerprint()
        for table, cells in {"interactions": columns, "items": item_table, "users": user_table, **further}.items():
            digest.add(table, cells)
        scale = detect_scale(*np.unique(rating[~np.isnan(rating)], return_counts=True))
        meta = DatasetMeta(
            name=name,
            version=version,
            created_at=now(),
            fingerprint=digest.hexdigest(),
            n_interactions=n_rows,
            n_users=len(user_table[USER]),
            n_items=len(item_table[ITEM]),
            rating_scale=scale.bounds,
            rating_kind=scale.kind,
            rating_step=scale.step,
            has_timestamps=timeless == 0,
            roles=dict(roles or {}),
            item_fields=tuple(c for c in item_table if c != ITEM),
            user_fields=tuple(c for c in user_table if c != USER),
            category_fields=default_categories(item_table) if category_fields is None else tuple(category_fields),
            sources=tuple(sources),
            rows_rejected=rows_rejected,
            warnings=tuple(warnings),
            extras=tuple(further),
        )
        frames = {"items": _frame(item_table), "users": _frame(user_table)}
        frames |= {extra: _frame(cells) for extra, cells in further.items()}
        frames["interactions"] = _interactions_frame(pa.table(columns), frames["users"][USER], frames["items"][ITEM])
        return cls(name, version, None, meta, frames)

    @cached_property
    def interactions(self) -> pd.DataFrame:
        """user_id, item_id (text, categorical over all ids in sorted order), user_idx, item_idx (int64), rating
        (float32, NaN: none), timestamp (float64 seconds since 1970 UTC; NaN in every row when the data has no times),
        then any further columns as text. File order.

        Raises:
            DataError: the stored table is damaged.
        """
        if "interactions" in self._frames:
            return self._frames["interactions"]
        path = self._path("interactions")
        with _reading(path):
            names = [name for name in pq.read_schema(path).names if name not in (USER, ITEM)]
            table = pq.read_table(path, columns=names)
            return _interactions_frame(table, self.users[USER], self.items[ITEM])

    @cached_property
    def items(self) -> pd.DataFrame:
        """item_id, title, then text fields; row i is item_idx i. Holds every known item, also those without
        interactions, and those known from interactions alone (title = id, other fields empty)."""
        return self._side("items")

    @cached_property
    def users(self) -> pd.DataFrame:
        """user_id, then text fields; row i is user_idx i."""
        return self._side("users")

    def extra(self, name: str) -> pd.DataFrame | None:
        """A further table of text columns by its name; None where this dataset has none of that name.

        Raises:
            InputError: there is no such kind of table at all.
        """
        if _extra_name(name) not in self.meta.extras:
            return None
        return self._side(name)

    def path(self, table: str) -> Path | None:
        """Parquet file of a table, for readers that scan instead of load; None for a dataset in memory."""
        return None if self.folder is None else self._path(table)

    def _side(self, table: str) -> pd.DataFrame:
        if table in self._frames:
            return self._frames[table]
        path = self._path(table)
        with _reading(path):
            return pq.read_table(path).to_pandas()

    def _path(self, table: str) -> Path:
        assert self.folder is not None, "a dataset without a folder holds its tables"
        return self.folder / f"{table}.parquet"

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
        return self.meta.n_items

    @property
    def n_users(self) -> int:
        return self.meta.n_users

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
        """SHA-256 (hex) of the content of all tables; name and version do not enter."""
        return self.meta.fingerprint


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


def _side_columns(frame: pd.DataFrame | None, key: str, name: str) -> dict[str, pa.Array]:
    if frame is None:
        return {}
    if key not in frame.columns:
        raise DataError(f"the table has no column {key!r}.", where=name)
    return {key: _id_column(frame, key, name), **{str(c): as_text(frame[c]) for c in frame.columns if c != key}}


def side_columns(known: Mapping[str, pa.Array], key: str, seen: pa.Array, name: str) -> dict[str, pa.Array]:
    """Columns of the items or users table: every known id, sorted by code point; "" where a field is unknown.

    Args:
        known: columns of text, ``key`` among them; {} where nothing but ids is known.
        seen: ids that the interactions hold, repeated or not.

    Raises:
        DataError: an id stands more than once in ``known``.
    """
    ids = known.get(key, pa.array([], pa.large_string()))
    if len(pc.unique(ids)) != len(ids):
        raise DataError(f"a {key} stands there more than once.", where=name, fix="Keep one row for each id.")
    both = pc.unique(pa.concat_arrays([ids, seen]))
    # The order of UTF-8 bytes is that of code points, on every machine.
    ordered = both.take(pc.sort_indices(both.cast(pa.large_binary())))
    source = pc.index_in(ordered, ids)
    table = {key: ordered}
    for column, cells in known.items():
        if column != key:
            table[column] = pc.fill_null(pc.take(cells, source), "")
    return table


def item_columns(known: Mapping[str, pa.Array], seen: pa.Array, name: str) -> dict[str, pa.Array]:
    """:func:`side_columns` of items, each with a title: its id stands in where there is none."""
    table = side_columns(known, ITEM, seen, name)
    ids, titles = table[ITEM], table.get(TITLE)
    title = ids if titles is None else pc.if_else(pc.equal(titles, ""), ids, titles)
    return {ITEM: ids, TITLE: title, **{c: cells for c, cells in table.items() if c not in (ITEM, TITLE)}}


def default_categories(item_fields: Iterable[str]) -> tuple[str, ...]:
    return ("category",) if "category" in item_fields else ()


def scale_of(low: float, high: float) -> tuple[float, float] | None:
    return (low, high) if high > low else None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _extra_name(name: str) -> str:
    if name not in EXTRA_TABLES:
        raise InputError(f"there is no table {name[:40]!r}.", fix=f"Further tables are {', '.join(EXTRA_TABLES)}.")
    return name


def _frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pa.table(dict(columns)).to_pandas()


def _interactions_frame(table: pa.Table, users: pd.Series, items: pd.Series) -> pd.DataFrame:
    """The frame of :attr:`Dataset.interactions` from its stored columns."""
    columns: dict[str, Any] = {}
    for id_column, idx_column, ids in ((USER, USER_IDX, users), (ITEM, ITEM_IDX, items)):
        codes = table.column(idx_column).to_numpy()
        columns[id_column] = pd.Categorical.from_codes(codes.astype(np.int32), categories=pd.Index(ids))
        columns[idx_column] = codes.astype(np.int64)
    columns[RATING] = table.column(RATING).to_numpy().astype(np.float32)
    columns[TIME] = table.column(TIME).to_numpy().astype(np.float64)
    frame = pd.DataFrame({column: columns[column] for column in CORE})
    further = [name for name in table.column_names if name not in CORE]
    if further:
        frame = pd.concat([frame, table.select(further).to_pandas()], axis=1)
    return frame


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"the table cannot be read ({(str(error).splitlines() or [''])[0][:200]}).",
            where=str(path),
            fix="Import the data again.",
        ) from error


def _numbers(frame: pd.DataFrame, column: str, n_rows: int, dtype: Any) -> npt.NDArray[Any]:
    if column not in frame.columns:
        return np.full(n_rows, np.nan, dtype)
    return pd.to_numeric(frame[column]).to_numpy(dtype=dtype, na_value=np.nan, copy=True)


class Fingerprint:
    """SHA-256 over the content of tables; equal content gives equal hashes on every machine.

    Every column has a digest of its own, so that tables can be added in blocks of any size. Text enters as lengths and
    UTF-8 bytes, numbers little-endian with one kind of NaN and of zero. Ids of the interactions enter as their index,
    since the sorted ids of items and users enter too.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._digests: dict[tuple[str, str], tuple[Any, Any]] = {}

    def add(self, table: str, columns: Mapping[str, pa.Array]) -> None:
        """A block of rows; every block of one table has the same columns in the same order."""
        for column, cells in columns.items():
            values, lengths = self._digests.setdefault((table, column), (hashlib.sha256(), hashlib.sha256()))
            if pa.types.is_large_string(cells.type):
                lengths.update(np.ascontiguousarray(pc.binary_length(cells).to_numpy(zero_copy_only=False), "<i8"))
                values.update(_text_bytes(cells))
            elif pa.types.is_floating(cells.type):
                numbers = cells.to_numpy(zero_copy_only=False).astype(f"<f{cells.type.bit_width // 8}")
                numbers[np.isnan(numbers)] = np.nan
                numbers += 0.0
                values.update(numbers)
            else:
                values.update(np.ascontiguousarray(cells.to_numpy(zero_copy_only=False), "<i4"))
        self._rows[table] = self._rows.get(table, 0) + len(next(iter(columns.values())))

    def drop(self, table: str, column: str) -> None:
        """Takes back a column."""
        del self._digests[table, column]

    def rename(self, table: str, old: str, new: str) -> None:
        """A column by another name, at the place it had."""
        self._digests = {(t, new if (t, c) == (table, old) else c): d for (t, c), d in self._digests.items()}

    def absorb(self, other: Fingerprint) -> None:
        """Takes in the tables of another one."""
        self._rows |= other._rows
        self._digests |= other._digests

    def hexdigest(self) -> str:
        columns = [
            [table, self._rows[table], column, values.hexdigest(), lengths.hexdigest()]
            for (table, column), (values, lengths) in sorted(self._digests.items(), key=lambda entry: entry[0][0])
        ]
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def _text_bytes(text: pa.Array) -> memoryview:
    """The UTF-8 of all cells of a large_string array without nulls, one after the other."""
    _, offsets, data = text.buffers()
    if data is None or not len(text):
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int64)[[text.offset, text.offset + len(text)]]
    return memoryview(data)[int(bounds[0]) : int(bounds[1])]


def _look_up(index: Mapping[str, int], key: str, what: str, name: str) -> int:
    found = index.get(key)
    if found is None:
        raise InputError(
            f"there is no {what} {str(key)[:80]!r}.",
            where=f"dataset {name}",
            fix=f"Ids are compared as text, so '7' is not '007'. Check the id of the {what}.",
        )
    return found
