"""The numbers behind the Data screen: a dataset described by plain lists and sentences, nothing drawn.

Every row enters; the one number that is estimated where it would take too long says so. Columns are scanned by
DuckDB, from the stored Parquet files where there are any, and what needs an order is sorted in NumPy.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from llmrec_core.contracts import ITEM, RATING, TIME, TITLE, IntArray
from llmrec_core.data import _portrait_numbers as numbers
from llmrec_core.data._portrait_numbers import Clock, CoVisits, Histogram, Sessions, gini
from llmrec_core.data.dataset import ITEM_IDX, USER_IDX, Dataset
from llmrec_core.workspace import write_json_atomic

#: Changes whenever the same data would give other numbers, so that kept portraits are made again.
_FORMAT = 2
_FILE = "portrait.json"
_FEW = 5
_NAMED = 20
_MAX_FIELDS = 60
_COUNT_BLOCK = 10_000
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
#: Ideographs, runs of letters and digits, and single marks: what stands in for tokens while no tokenizer is given.
_IDEOGRAPH = r"[\x{3040}-\x{30ff}\x{3400}-\x{9fff}\x{ac00}-\x{d7af}\x{f900}-\x{faff}]"
_WORD = r"[\pL\pN]+|[^\s\pL\pN]"

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class FieldCoverage:
    """How filled one text field is: ``share`` of rows not empty, distinct values, mean length of filled cells."""

    field: str
    share: float
    n_distinct: int
    mean_chars: float
    mean_tokens: float = 0.0


@dataclass(frozen=True)
class TextLengths:
    """Tokens of all text fields of an item together. ``exact``: a tokenizer counted them, not a rule of thumb."""

    exact: bool
    n_without_text: int
    mean: float
    quantiles: dict[str, float]
    histogram: Histogram


@dataclass(frozen=True)
class Portrait:
    """Every row of the dataset enters: numbers to look at. What a model may know comes from its split alone.

    Attributes:
        density: share of user-item pairs that were observed, 0 to 1 (a repeated pair counts once).
        gini: inequality of interactions over all items, 0 (equal) to 1 (one item has all).
        tail: (share of items, most popular first; share of interactions they hold), from (0, 0) to (1, 1).
        n_half_items: how many of the most popular items hold half of all interactions.
        top_items: (item_id, title, interactions), most popular first.
        clock: what the times tell: "none", "order", "days" or "moments".
        months: interactions a month ("1998-04"), gaps filled with 0; empty without usable times.
        week_hours: [7][24] interactions by weekday, Monday first, and hour (UTC); [] unless clock is "moments".
        sessions: None unless clock is "moments".
        gaps: how long users wait between two interactions; empty without a calendar.
        ratings: distribution; empty without ratings.
        history_lengths: users by number of interactions.
        history_quantiles: share -> interactions a user, for 0, .1, .25, .5, .75, .9, 1.
        item_coverage, user_coverage: fields of the two tables.
        n_cold_items: items without any interaction; ``cold_items`` names up to 20 of them as (item_id, title).
        n_cold_users: users without any interaction. n_few_items, n_few_users: those with 1 to 4.
        n_repeats: rows that repeat an earlier pair of user and item; n_exact_repeats: in rating and time too.
        first_time, last_time: seconds since 1970, None without times.
        readings: what the numbers mean, in sentences.
    """

    name: str
    version: int
    n_interactions: int
    n_users: int
    n_items: int
    density: float
    gini: float
    tail: list[tuple[float, float]]
    n_half_items: int
    top_items: list[tuple[str, str, int]]
    clock: Clock
    months: Histogram
    week_hours: list[list[int]]
    sessions: Sessions | None
    gaps: Histogram
    ratings: Histogram
    mean_rating: float | None
    history_lengths: Histogram
    history_quantiles: dict[str, float]
    item_coverage: list[FieldCoverage]
    user_coverage: list[FieldCoverage]
    item_text: TextLengths | None
    n_cold_items: int
    cold_items: list[tuple[str, str]]
    n_cold_users: int
    n_few_items: int
    n_few_users: int
    co_visits: CoVisits | None
    n_repeats: int
    n_exact_repeats: int
    first_time: float | None
    last_time: float | None
    readings: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def portrait(dataset: Dataset, count_tokens: CountTokens | None = None) -> Portrait:
    """Describes a dataset; seconds of work for tens of millions of rows.

    Args:
        count_tokens: tokens of each text by a model's tokenizer; words, marks and ideographs are counted without.
    """
    with _database(dataset) as database:
        return _measured(dataset, database, count_tokens)


def stored_portrait(dataset: Dataset, count_tokens: CountTokens | None = None) -> Portrait:
    """:func:`portrait`, kept as ``portrait.json`` beside a stored version and read from there the next time.

    One whose texts were counted in words is made again as soon as tokens can be counted.
    """
    if dataset.folder is None:
        return portrait(dataset, count_tokens)
    path = dataset.folder / _FILE
    kept = _kept(path, dataset)
    if kept is not None and (count_tokens is None or kept.item_text is None or kept.item_text.exact):
        return kept
    found = portrait(dataset, count_tokens)
    document = {"format": _FORMAT, "fingerprint": dataset.fingerprint, "portrait": found.as_json()}
    # A workspace that cannot be written to can still be looked at.
    with contextlib.suppress(OSError):
        write_json_atomic(path, document)
    return found


def _kept(path: Path, dataset: Dataset) -> Portrait | None:
    try:
        document = json.loads(path.read_bytes())
        if (document["format"], document["fingerprint"]) != (_FORMAT, dataset.fingerprint):
            return None
        found = TypeAdapter(Portrait).validate_python(document["portrait"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return found if (found.name, found.version) == (dataset.name, dataset.version) else None


@contextlib.contextmanager
def _database(dataset: Dataset) -> Iterator[duckdb.DuckDBPyConnection]:
    """Views ``interactions``, ``items`` and ``users`` (the last two with ``idx``), over files or over frames."""
    with duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": "2"}) as database:
        for table in ("interactions", "items", "users"):
            path = dataset.path(table)
            if path is not None:
                quoted = str(path).replace("'", "''")
                rows = "" if table == "interactions" else ", file_row_number = true"
                database.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{quoted}'{rows})")
                continue
            frame = getattr(dataset, table)
            if table == "interactions":
                frame = frame[[USER_IDX, ITEM_IDX, RATING, TIME]]
            arrow = pa.Table.from_pandas(frame, preserve_index=False)
            if table != "interactions":
                arrow = arrow.append_column("file_row_number", pa.array(np.arange(len(arrow))))
            database.register(table, arrow)
        yield database


def _measured(dataset: Dataset, database: duckdb.DuckDBPyConnection, count_tokens: CountTokens | None) -> Portrait:
    columns = database.sql(f"SELECT {USER_IDX}, {ITEM_IDX}, {RATING}, {TIME} FROM interactions").fetchnumpy()
    users, items = (np.asarray(columns[name]).astype(np.int64) for name in (USER_IDX, ITEM_IDX))
    ratings, times = (_floats(columns[name]) for name in (RATING, TIME))
    n_rows, n_users, n_items = len(users), dataset.n_users, dataset.n_items
    per_item, per_user = np.bincount(items, minlength=n_items), np.bincount(users, minlength=n_users)
    popular = np.lexsort((np.arange(n_items), -per_item))
    clock = numbers.clock(times)

    # Sorting lets other threads work: times are put in order beside the pairs.
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(numbers.sessions_and_gaps, users, times) if clock in ("days", "moments") else None
        pairs = numbers.Pairs.of(users, items, n_users)
        n_pairs = len(pairs.keys)
        co_visits = numbers.co_visits(pairs, per_user, n_items)
        del pairs
        n_exact = numbers.exact_repeats(users, items, ratings, times) if n_pairs < n_rows else 0
        sessions, gaps = (None, Histogram([], [])) if waiting is None else waiting.result()
    hours, hour_counts = _hours(times) if clock != "none" else (np.zeros(0, np.int64),) * 2
    rated = database.sql(
        f"SELECT {RATING}::DOUBLE AS rating, count(*) AS n FROM interactions "
        # Not isnan: DuckDB believes the statistics of Parquet, which leave NaN out, and finds none.
        f"WHERE isfinite({RATING}) GROUP BY 1 ORDER BY 1"
    ).fetchnumpy()
    values, counts = _floats(rated["rating"]), np.asarray(rated["n"]).astype(np.int64)
    active = per_user[per_user > 0]
    cold = np.flatnonzero(per_item == 0)
    titles = _titles(database, [*popular[:_NAMED].tolist(), *cold[:_NAMED].tolist()])
    found = Portrait(
        name=dataset.name,
        version=dataset.version,
        n_interactions=n_rows,
        n_users=n_users,
        n_items=n_items,
        density=n_pairs / (n_users * n_items),
        gini=gini(per_item),
        tail=numbers.tail(per_item[popular]),
        n_half_items=numbers.holding_half(per_item[popular]),
        top_items=[(*titles[i], int(per_item[i])) for i in popular[:_NAMED].tolist()],
        clock=clock,
        months=numbers.months(hours, hour_counts) if len(hours) else Histogram([], []),
        week_hours=numbers.week_hours(hours, hour_counts) if clock == "moments" else [],
        sessions=sessions if clock == "moments" else None,
        gaps=numbers.gaps_in_days(gaps) if clock == "days" else gaps,
        ratings=numbers.rating_histogram(values, counts),
        mean_rating=float(values @ counts / counts.sum()) if len(counts) else None,
        history_lengths=numbers.doubling(active),
        history_quantiles={
            f"{q:g}": float(v) for q, v in zip(_QUANTILES, np.quantile(active, _QUANTILES), strict=True)
        },
        item_coverage=_coverage(database, "items", dataset.meta.item_fields),
        user_coverage=_coverage(database, "users", dataset.meta.user_fields),
        item_text=_text_lengths(database, dataset.meta.item_fields, count_tokens),
        n_cold_items=len(cold),
        cold_items=[titles[i] for i in cold[:_NAMED].tolist()],
        n_cold_users=int((per_user == 0).sum()),
        n_few_items=int(((per_item > 0) & (per_item < _FEW)).sum()),
        n_few_users=int((active < _FEW).sum()),
        co_visits=co_visits,
        n_repeats=n_rows - n_pairs,
        n_exact_repeats=n_exact,
        first_time=float(times.min()) if clock != "none" else None,
        last_time=float(times.max()) if clock != "none" else None,
        readings=[],
    )
    found.readings.extend(_readings(found))
    return found


def _floats(values: Any) -> npt.NDArray[np.float64]:
    """DuckDB gives columns with NULL as masked arrays."""
    return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)


def _quantiles(values: npt.NDArray[Any]) -> dict[str, float]:
    return {f"{q:g}": float(v) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}


def _hours(times: npt.NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    """(hours since 1970 that occur, interactions in each)."""
    hours = np.floor(times / 3600).astype(np.int64)
    low, high = int(hours.min()), int(hours.max())
    if high - low > 4 * len(hours) + 10_000_000:
        return np.unique(hours, return_counts=True)
    counts = np.bincount(hours - low)
    at = np.flatnonzero(counts)
    return at + low, counts[at]


def _titles(database: duckdb.DuckDBPyConnection, wanted: Sequence[int]) -> dict[int, tuple[str, str]]:
    listed = ", ".join(str(int(index)) for index in wanted)
    rows = database.sql(
        f"SELECT file_row_number, {ITEM}, {TITLE} FROM items WHERE file_row_number IN ({listed})"
    ).fetchall()
    return {int(index): (str(item), str(title)) for index, item, title in rows}


def _tokens(text: str) -> str:
    """SQL for the tokens of an SQL text: each ideograph, each run of letters and digits, each mark."""
    apart = f"regexp_replace({text}, '{_IDEOGRAPH}', ' ', 'g')"
    return f"(len(regexp_extract_all({text}, '{_IDEOGRAPH}')) + len(regexp_extract_all({apart}, '{_WORD}')))"


def _cell(field: str) -> str:
    """SQL for the text of a field of an item or user; an id that stands in for a title is no text."""
    quoted = '"' + field.replace('"', '""') + '"'
    return f"(CASE WHEN {quoted} = {ITEM} THEN '' ELSE {quoted} END)" if field == TITLE else quoted


def _coverage(database: duckdb.DuckDBPyConnection, table: str, fields: Sequence[str]) -> list[FieldCoverage]:
    found = []
    for field in fields[:_MAX_FIELDS]:
        cell = _cell(field) if table == "items" else '"' + field.replace('"', '""') + '"'
        filled = f"FILTER ({cell} <> '')"
        rows = database.sql(
            f"SELECT count(*), count(*) {filled}, count(DISTINCT {cell}) {filled}, avg(length({cell})) {filled}, "
            f"avg({_tokens(cell)}) {filled} FROM {table}"
        ).fetchall()
        n_rows, n_filled, n_distinct, chars, tokens = rows[0]
        found.append(
            FieldCoverage(field, n_filled / max(1, n_rows), int(n_distinct), float(chars or 0), float(tokens or 0))
        )
    return found


def _text_lengths(
    database: duckdb.DuckDBPyConnection, fields: Sequence[str], count_tokens: CountTokens | None
) -> TextLengths | None:
    cells = [_cell(field) for field in fields[:_MAX_FIELDS]]
    if not cells:
        return None
    if count_tokens is None:
        lengths = np.asarray(
            database.sql(f"SELECT {' + '.join(_tokens(cell) for cell in cells)} AS n FROM items").fetchnumpy()["n"]
        ).astype(np.int64)
    else:
        query = f"SELECT concat_ws(' ', {', '.join(cells)}) AS text FROM items"
        reader: pa.RecordBatchReader = database.sql(query).to_arrow_reader(_COUNT_BLOCK)
        counted: list[int] = []
        for batch in reader:
            words = [str(text).strip() for text in batch.column(0).to_pylist()]
            counted += [n if word else 0 for n, word in zip(count_tokens(words), words, strict=True)]
        lengths = np.array(counted, np.int64)
    filled = lengths[lengths > 0]
    if not len(filled):
        return None
    return TextLengths(
        exact=count_tokens is not None,
        n_without_text=len(lengths) - len(filled),
        mean=float(filled.mean()),
        quantiles=_quantiles(filled),
        histogram=numbers.doubling(filled),
    )


# ------------------------------------------------------------------------------------------------ in words


def _readings(found: Portrait) -> list[str]:
    """What a person should take away, most telling first."""
    said = []
    if found.n_items > 1:
        share = found.n_half_items / found.n_items
        said.append(f"Half of all interactions go to {_percent(share)} of the items ({found.n_half_items:,}).")
    median = found.history_quantiles["0.5"]
    said.append(f"Half of the users have {median:g} interactions or fewer.")
    if found.n_few_users:
        share = found.n_few_users / max(1, found.n_users - found.n_cold_users)
        said.append(f"{_percent(share)} of the active users have fewer than {_FEW}: little to learn their taste from.")
    parts = [f"{_items_have(found.n_cold_items)} no interaction"] if found.n_cold_items else []
    parts += [f"{_items_have(found.n_few_items)} fewer than {_FEW}"] if found.n_few_items else []
    if parts:
        known = "hardly anything but their text is known of them" if found.item_text else "little is known of them"
        said.append(f"{' and '.join(parts)}: {known}.")
    if found.co_visits is not None:
        c = found.co_visits
        how = "" if not c.n_sampled else f" (estimated from {c.n_sampled:,} random pairs)"
        said.append(f"{_percent(c.density)} of all pairs of items share at least one user{how}.")
    if found.sessions is not None:
        s = found.sessions
        said.append(
            f"A session (gaps of at most {s.gap_s / 60:g} minutes) has {s.mean_events:.1f} interactions and lasts "
            f"{s.mean_minutes:.1f} minutes; {_percent(s.single_share)} of {s.n_sessions:,} sessions are a single one."
        )
    elif found.clock != "none":
        why = "days without a time of day" if found.clock == "days" else "an order without a calendar"
        said.append(f"The times are {why}, so sessions cannot be told.")
    if found.n_repeats:
        said.append(
            f"{found.n_repeats:,} rows repeat an earlier pair of user and item, {found.n_exact_repeats:,} of them with "
            "the same rating and time."
        )
    text = found.item_text
    if text is None:
        said.append("No item has any text: a language model would read ids alone.")
    else:
        how = "tokens" if text.exact else "words and marks (a model's tokenizer makes more of them)"
        rest = f"{_items_have(text.n_without_text)} none" if text.n_without_text else "every item has some"
        said.append(f"The text of an item has {text.mean:.0f} {how} on average; {rest}.")
    return said


def _items_have(n: int) -> str:
    return "1 item has" if n == 1 else f"{n:,} items have"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0.0005 <= share < 0.1 else f"{100 * share:.0f} %" if share else "0 %"
