"""What a split cuts where: the rows of each part over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmrec_core.figures.theme import empty_figure, finish, hover, number, series_style

_N_BINS = 60
_PARTS = {"train": "training", "valid": "validation", "test": "test"}


def split_figure(timestamps: Any, parts: Mapping[str, Any]) -> go.Figure:
    """A panel for each part, under one axis of time: where its rows lie.

    Args:
        timestamps: seconds since 1970 UTC of every interaction, [n_rows]; all NaN when the data has no times, and
            then rows are shown in file order.
        parts: "train", "valid", "test" -> row positions.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    rows = {name: np.asarray(parts.get(name, ()), dtype=np.int64) for name in _PARTS}
    n_rows = sum(len(positions) for positions in rows.values())
    if not len(times) or not n_rows:
        return empty_figure("No rows: the split keeps nothing of this data.", "What is cut where")
    timed = bool(np.isfinite(times).any())
    places = times if timed else np.arange(len(times), dtype=np.float64)
    shown = np.concatenate(list(rows.values()))
    kept = places[shown][np.isfinite(places[shown])]
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, _N_BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    titles = [f"{words}: {len(rows[name]):,} rows ({len(rows[name]) / n_rows:.1%})" for name, words in _PARTS.items()]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=titles)
    finish(figure, "What is cut where", height=460, legend=False)
    for index, positions in enumerate(rows.values()):
        counts, _ = np.histogram(places[positions], edges)
        figure.add_trace(
            go.Bar(
                x=_dates(middles) if timed else middles,
                y=counts,
                marker={"color": series_style(index)["color"]},
                hovertext=[
                    hover(
                        {
                            "rows": f"{count:,}",
                            "from": _day(start) if timed else number(np.ceil(start)),
                            "to": _day(end) if timed else number(np.floor(end)),
                        }
                    )
                    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True)
                ],
                hoverinfo="text",
            ),
            row=index + 1,
            col=1,
        )
        figure.update_yaxes(title_text="rows", rangemode="tozero", row=index + 1, col=1)
    figure.update_layout(bargap=0.05, margin={"t": 84})
    figure.update_xaxes(title_text="time (UTC)" if timed else "place in the file (no times in this data)", row=3, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def _dates(seconds: np.ndarray) -> np.ndarray:
    return (np.asarray(seconds) * 1000).astype("int64").astype("datetime64[ms]")


def _day(seconds: float) -> str:
    return str(_dates(np.array([seconds]))[0])[:16].replace("T", " ")
