"""Size, speed and quality of a run and its compressed children in one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from llmrec_core.figures.theme import SERIES, empty_figure, escape, finish
from llmrec_core.specs.titles import metric_title


def compression_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Quality over candidates a second (as a ratio to the parent); the area of a point is its size on disk.

    Args:
        rows: of :func:`llmrec_core.runs.children.family_rows`.
    """
    shown = [row for row in rows if row["value"] is not None]
    if not shown:
        return empty_figure("The primary metric could not be measured.")
    metric = metric_title(shown[0]["metric"])
    figure = go.Figure()
    largest = max(row["size_bytes"] for row in shown)
    for number, row in enumerate(shown):
        found = row["difference"]
        error = None
        if found is not None:
            error = {
                "array": [found["ci_high"] - found["mean"]],
                "arrayminus": [found["mean"] - found["ci_low"]],
                "symmetric": False,
            }
        figure.add_trace(
            go.Scatter(
                x=[row["speed_ratio"]],
                y=[row["value"]],
                error_y=error,
                mode="markers+text",
                name=escape(f"{row['title']} ({row['size_bytes'] / 1e6:.1f} MB)"),
                text=[escape(row["title"])],
                textposition="top center",
                marker={
                    "size": 12 + 36 * (row["size_bytes"] / largest) ** 0.5,
                    "color": SERIES[number % len(SERIES)],
                    "opacity": 0.8,
                },
                hovertemplate=f"%{{x:.2f}}x as fast, {escape(metric)} %{{y:.4f}}<extra></extra>",
            )
        )
    finish(
        figure,
        "Quality, speed and size",
        "Candidates a second, parent = 1",
        escape(metric),
        height=460,
        subtitle="Area of a point: size on disk. Bars: interval of the difference to the parent.",
    )
    figure.update_xaxes(rangemode="tozero")
    return figure
