"""Size, speed and quality of a run and its compressed children, line by line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmrec_core.figures.theme import BLUE, GREEN, GREY, VERMILLION, empty_figure, escape, finish
from llmrec_core.specs.titles import metric_title

#: Speeds that are marked where they are in sight.
_MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_MOST_MARKS = 7
_PANELS = ("Size, % of its parent", "Speed, parent = 1")


def compression_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One line a child: its size, its speed, and the difference of its primary metric with the interval.

    Points beside each other on one plane would cover each other: children are alike in two of the three.

    Args:
        rows: of :func:`llmrec_core.runs.children.family_rows`.
    """
    children = [row for row in rows if row["method"] != "parent"]
    if not children:
        return empty_figure("Nothing was compressed from this run yet.")
    titles = [row["title"] for row in children]
    # Two children of one name are told apart by the ends of their ids, which the table shows too.
    names = [
        escape(row["title"] if titles.count(row["title"]) == 1 else f"{row['title']} · {row['run_id'][-5:]}")
        for row in children
    ]
    panels = [*_PANELS, f"{metric_title(children[0]['metric'])}, difference"]
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.04)
    sizes = go.Bar(
        x=[100 * row["size_share"] for row in children],
        y=names,
        orientation="h",
        marker_color=BLUE,
        text=[f"{row['size_share']:.0%}" for row in children],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    speeds = go.Scatter(
        x=[row["speed_ratio"] for row in children],
        y=names,
        mode="markers+text",
        marker={"size": 11, "color": GREEN, "symbol": "diamond"},
        text=[f"{row['speed_ratio']:.2f}x" for row in children],
        # Under the point: beside it the words run into the marker and into the line of the parent.
        textposition="bottom center",
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    figure.add_trace(sizes, row=1, col=1)
    figure.add_trace(speeds, row=1, col=2)
    figure.add_vline(x=100, line={"color": GREY, "dash": "dot"}, row=1, col=1)
    figure.add_vline(x=1, line={"color": GREY, "dash": "dot"}, row=1, col=2)
    compared = [(name, row["difference"]) for name, row in zip(names, children, strict=True) if row["difference"]]
    figure.add_trace(
        go.Scatter(
            x=[found["mean"] for _, found in compared],
            y=[name for name, _ in compared],
            error_x={
                "array": [found["ci_high"] - found["mean"] for _, found in compared],
                "arrayminus": [found["mean"] - found["ci_low"] for _, found in compared],
                "symmetric": False,
            },
            mode="markers",
            marker={"size": 11, "color": VERMILLION},
            customdata=[(found["ci_low"], found["ci_high"]) for _, found in compared],
            hovertemplate="%{y}: %{x:+.4f} [%{customdata[0]:+.4f}, %{customdata[1]:+.4f}]<extra></extra>",
        ),
        row=1,
        col=3,
    )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"}, row=1, col=3)
    finish(
        figure,
        "Size, speed and quality",
        height=150 + 44 * len(children),
        legend=False,
        subtitle="Dotted: the parent. Bars beside the points: interval over the same test users.",
    )
    for column, panel in enumerate(panels, 1):
        figure.update_xaxes(title_text=escape(panel), row=1, col=column)
    figure.update_xaxes(rangemode="tozero", row=1, col=1)
    # Towers are some fifty times as fast; on an even scale nothing else could be told apart.
    ends = [1.0, *(row["speed_ratio"] for row in children)]
    span = [math.log10(min(ends)) - 0.15, math.log10(max(ends)) + 0.15]
    # Plotly's own marks between powers of ten are bare digits: "5" for a half.
    marks = [value for value in _MARKS if span[0] <= math.log10(value) <= span[1]]
    if len(marks) > _MOST_MARKS:
        marks = [value for value in marks if float(math.log10(value)).is_integer()]
    shown = [f"{value:g}x" for value in marks]
    figure.update_xaxes(type="log", range=span, tickvals=marks, ticktext=shown, row=1, col=2)
    figure.update_yaxes(autorange="reversed")
    return figure
