"""The tables of a dataset, their first rows: read from disk as far as they are shown, however long they are."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import streamlit as st

from llmrec_core.data import Dataset
from llmrec_core.errors import DataError
from pages._studio.table_card import KIND_WORDS

_SHOWN = 500
_MAX_CELL = 2000


def show_tables(dataset: Dataset) -> None:
    """Interactions, items, users and what further tables the dataset has."""
    names = ("interactions", "items", "users", *dataset.meta.extras)
    shown = st.segmented_control(
        "Table",
        names,
        default="interactions",
        required=True,
        key="data_table",
        format_func=lambda name: str(KIND_WORDS.get(name, name)).partition(" (")[0].capitalize(),
    )
    table, n_rows = first_rows(dataset, str(shown))
    st.dataframe(table, hide_index=True, height=380)
    if n_rows > len(table):
        st.caption(f"The first {len(table):,} of {n_rows:,} rows.")


def first_rows(dataset: Dataset, table: str, limit: int = _SHOWN) -> tuple[pd.DataFrame, int]:
    """(the first rows with ids and dates as people read them, number of all rows).

    Raises:
        DataError: the stored table is damaged.
    """
    path = dataset.path(table)
    if path is None:
        raise DataError("the dataset is not stored.", where=dataset.name)
    try:
        with pq.ParquetFile(path) as stored:
            batch = next(stored.iter_batches(batch_size=limit), None)
            rows = pa.Table.from_batches([] if batch is None else [batch], stored.schema_arrow).to_pandas()
            n_rows = stored.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the table cannot be read ({str(error).splitlines()[0][:200]}).", where=str(path)) from None
    if table == "interactions":
        for place, (code, key, ids) in enumerate(
            (("user_idx", "user_id", dataset.user_ids), ("item_idx", "item_id", dataset.item_ids))
        ):
            values = ids[rows.pop(code).to_numpy()]
            if key not in rows:
                rows.insert(place, key, values)
    if "timestamp" in rows and pd.api.types.is_float_dtype(rows["timestamp"]):
        rows["timestamp"] = pd.to_datetime(rows["timestamp"], unit="s")
    texts = rows.select_dtypes(include=["object", "string"]).columns
    return rows.assign(**{column: rows[column].astype(str).str.slice(0, _MAX_CELL) for column in texts}), n_rows
