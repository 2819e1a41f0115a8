"""Tables that leave the app as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import pandas as pd

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


def safe_csv(frame: pd.DataFrame) -> str:
    """CSV text in which no cell is a formula.

    A text cell or column name that starts with ``= + - @``, tab or carriage return gets a leading apostrophe, unless
    it is a plain number: -3.5 stays -3.5. Carriage returns become line feeds. Numeric columns are left alone.
    """
    safe = pd.DataFrame(
        {i: _neutral(frame.iloc[:, i]) for i in range(frame.shape[1])}, index=frame.index, columns=range(frame.shape[1])
    )
    safe.columns = pd.Index([_neutral(pd.Series([str(c)], dtype=object)).iloc[0] for c in frame.columns])
    return safe.to_csv(index=False, lineterminator="\n")


def _neutral(values: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values
    text = values.astype(object).where(values.notna(), "").map(str)
    # A bare carriage return is not quoted by the writer, yet readers start a new row at it.
    text = text.str.replace(r"\r\n?", "\n", regex=True)
    # Spreadsheets skip blanks in front of a formula, so they are looked through.
    risky = text.str.match(r"(?s)\t|\s*[=+\-@＝＋－＠]") & ~text.str.fullmatch(rf"\s*{_NUMBER}\s*")
    return text.where(~risky, "'" + text)
