"""What a row must hold to be accepted, said once: pandera schemas over blocks of columns.

Every path of an import asks :func:`broken`, so a row is judged alike however it was read. Ids are judged by their
distinct values, numbers and times once they are numbers. pandera is slow to import, so it waits for the first import.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.contracts import RATING, TIME

if TYPE_CHECKING:
    import pandera.pandas as pandera

MAX_ID_CHARS = 512
MAX_TEXT_CHARS = 100_000
MAX_RATING = 1e30
#: Years 1900 to 2200: outside, a time is a typing error or in another unit.
EARLIEST_S, LATEST_S = -2_208_988_800.0, 7_258_118_400.0


_LOADING = threading.Lock()


def _pandera() -> Any:
    """The library, without what its import leaves in the environment for Spark.

    ``PYARROW_IGNORE_TIMEZONE`` would make pyarrow drop the zones of Python's datetimes in the whole process. One
    thread at a time: another one would take what the import is just setting for what was there before.
    """
    with _LOADING:
        before = {name: os.environ.get(name) for name in ("PYARROW_IGNORE_TIMEZONE", "SPARK_LOCAL_IP")}
        import pandera.pandas as library

        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return library


Positions = npt.NDArray[np.int64]
#: So few values are judged at once; of more, one quick pass tells whether any of them could break a rule.
_FEW = 1000
_CONTROL = r"[\x00-\x1f\x7f]"
#: What a list or an object of JSON begins with; "{3F25-04E0}" and "[a]" are ids.
_NESTED = ('["', "[[", "[{", "[]", '{"', "{}")


@lru_cache(maxsize=64)
def id_rules(column: str) -> pandera.DataFrameSchema:
    """Ids are the user's own strings: any text but the empty one, control characters and whole paragraphs."""
    pandera = _pandera()
    checks = [
        pandera.Check(lambda ids: ids != "", error=f"{column} is empty"),
        pandera.Check(lambda ids: ~ids.str.contains(_CONTROL), error=f"{column} holds control characters"),
        pandera.Check(lambda ids: ~ids.str.startswith(_NESTED), error=f"{column} is a list or an object, not one id"),
        pandera.Check(lambda ids: ids.str.len() <= MAX_ID_CHARS, error=f"{column} is too long: {{cell}}"),
    ]
    return pandera.DataFrameSchema({column: pandera.Column(None, checks)})


@lru_cache(maxsize=64)
def text_rules(column: str) -> pandera.DataFrameSchema:
    """Text may be anything of a length that a screen and a prompt can hold."""
    pandera = _pandera()
    error = f"{column} is longer than {MAX_TEXT_CHARS:,} characters"
    check = pandera.Check(lambda cells: cells.str.len() <= MAX_TEXT_CHARS, error=error)
    return pandera.DataFrameSchema({column: pandera.Column(None, check)})


@lru_cache(maxsize=2)
def rating_rules() -> pandera.DataFrameSchema:
    """A rating is any finite number, or none: the row then counts as an interaction."""
    pandera = _pandera()
    check = pandera.Check.in_range(-MAX_RATING, MAX_RATING, error="rating {cell} is not a number")
    return pandera.DataFrameSchema({RATING: pandera.Column(float, check, nullable=True)})


@lru_cache(maxsize=2)
def time_rules(*, needed: bool) -> pandera.DataFrameSchema:
    """Where rows have times, each has one: a row without could not be placed before or after others."""
    pandera = _pandera()
    check = pandera.Check.in_range(EARLIEST_S, LATEST_S, error="time {cell} cannot be read")
    column = pandera.Column(float, check, nullable=not needed)
    return pandera.DataFrameSchema({TIME: column})


_NO_TIME = "the time is empty"


def broken(schema: pandera.DataFrameSchema, values: pa.Array | npt.NDArray[np.float64]) -> dict[str, Positions]:
    """Rule in words -> positions of the values that break it; {} where all is well.

    Args:
        schema: one of this module, of one column.
        values: the column [n]. Words may hold ``{cell}``, where the refused cell is shown.
    """
    if isinstance(values, np.ndarray) and len(values) > _FEW and _surely_kept(schema, values):
        return {}
    return _broken(schema, values)


def broken_ids(column: str, words: pa.Array) -> dict[str, Positions]:
    """:func:`broken` for distinct ids: only those that could break a rule are judged, which one quick pass finds."""
    if len(words) <= _FEW:
        return _broken(id_rules(column), words)
    lengths = pc.binary_length(words)
    doubtful = pc.or_(pc.equal(lengths, 0), pc.greater(lengths, MAX_ID_CHARS))
    if not is_plain(words):
        doubtful = pc.or_(doubtful, pc.match_substring_regex(words, rf"{_CONTROL}|^[\[{{]"))
    positions = np.flatnonzero(doubtful.to_numpy(zero_copy_only=False))
    if not len(positions):
        return {}
    found = _broken(id_rules(column), words.take(pa.array(positions)))
    return {rule: positions[at] for rule, at in found.items()}


def is_plain(words: pa.Array) -> bool:
    """Whether all these words are of visible ASCII without "[" and "{": nothing to trim, no control characters."""
    _, offsets, data = words.buffers()
    if data is None or not len(words):
        return True
    start, end = np.frombuffer(offsets, np.int64)[[words.offset, words.offset + len(words)]]
    text = np.frombuffer(data, np.uint8)[start:end]
    return not len(text) or bool(text.min() > ord(" ") and text.max() < ord("{") and not (text == ord("[")).any())


def _surely_kept(schema: pandera.DataFrameSchema, values: npt.NDArray[np.float64]) -> bool:
    """Whether all rules are ranges that hold for the lowest and the highest value, and with that for all of them."""
    (column,) = schema.columns.values()
    if any(check.name != "in_range" for check in column.checks):
        return False
    if not column.nullable and np.isnan(values.min()):
        return False
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    ranges = [check.statistics for check in column.checks]
    return all(within["min_value"] < low and high < within["max_value"] for within in ranges)


def _broken(schema: pandera.DataFrameSchema, values: pa.Array | npt.NDArray[np.float64]) -> dict[str, Positions]:
    from pandera.errors import SchemaErrors

    column = next(iter(schema.columns))
    series = values.to_pandas() if isinstance(values, pa.Array) else pd.Series(values)
    try:
        schema.validate(pd.DataFrame({column: series}), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
    else:
        return {}
    found: dict[str, Positions] = {}
    for check, rows in cases.groupby("check", sort=False)["index"]:
        words = _NO_TIME if check == "not_nullable" else str(check)
        found[words] = np.sort(rows.to_numpy(np.int64))
    return found


def may_be_long(cells: pa.Array) -> bool:
    """Whether some text could be over the limit, which costs a look at lengths in bytes only."""
    return bool((pc.max(pc.binary_length(cells)).as_py() or 0) > MAX_TEXT_CHARS)


def warm() -> None:
    """Loads pandera, which takes half a second of its own; an import begins to read while it does."""
    broken(rating_rules(), np.array([np.inf]))
