"""JSON that holds a table by columns, or by keys, where rows are wanted: told apart before it is read as one row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from llmrec_core.errors import DataError

_FEW = 2
_AS_ROWS = "Write one object a row: in pandas, to_json(path, orient='records')."


def refuse_columns(elements: Iterable[tuple[int, Any]], where: str) -> None:
    """Looks at the first two elements of a file, for one object that is itself the table.

    Raises:
        DataError: the only object holds nothing but objects, or nothing but lists of one length.
    """
    found = [value for _, value in itertools.islice(elements, 2)]
    if len(found) != 1 or not isinstance(found[0], dict) or len(found[0]) < _FEW:
        return
    values = list(found[0].values())
    keys = ", ".join(repr(key[:40]) for key in list(found[0])[:4])
    if all(isinstance(value, dict) for value in values):
        raise DataError(f"one object whose fields ({keys} ...) are objects: no rows.", where=where, fix=_AS_ROWS)
    flat = all(isinstance(value, list) and not any(isinstance(v, dict | list) for v in value) for value in values)
    if flat and len(values[0]) >= _FEW and len({len(value) for value in values}) == 1:
        raise DataError(
            f"one object whose fields ({keys} ...) are columns of {len(values[0]):,} values: no rows.",
            where=where,
            fix=_AS_ROWS,
        )
