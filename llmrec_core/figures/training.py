"""The learning curve of a run: training loss, and the validation metric against the best baseline's line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmrec_core.figures.theme import (
    BLUE,
    GREY,
    SERIES,
    SYMBOLS,
    VERMILLION,
    empty_figure,
    escape,
    finish,
    finite,
    hover,
    number,
)
from llmrec_core.specs import LOWER_IS_BETTER
from llmrec_core.specs.titles import SHORT_FAMILY_TITLES


def training_figure(events: Sequence[Mapping[str, Any]], metric: str | None = None) -> go.Figure:
    """Loss (above) and validation metric (below) over optimizer steps.

    Args:
        events: a run's events; those of type ``train``, ``validation`` and ``baseline`` are drawn, torn or
            unfinished ones are passed over.
        metric: validation metric to draw; None: the first one that was measured.
    """
    losses = _points(events, "train", lambda event: event.get("loss"))
    metric = metric or _first_metric(events)
    values = _points(events, "validation", lambda event: _metrics(event).get(metric or ""))
    if not losses and not values:
        return empty_figure("No training step yet: the curve appears with the first one.", "Learning curve")

    weights = _moving_weights(events)
    n_rows = bool(losses) + bool(values and metric) + bool(weights)
    figure = make_subplots(rows=n_rows, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    finish(figure, "Learning curve", height=180 + 140 * n_rows, legend=False)
    if losses:
        _add_line(figure, losses, "training loss", BLUE, "circle", row=1)
        figure.update_yaxes(title_text="training loss", row=1, col=1)
        broken = [step for step, value in losses if math.isnan(value)]
        if broken:
            figure.add_annotation(
                text=f"loss not finite at step {number(broken[0])}",
                showarrow=False,
                xref="x domain",
                yref="y domain",
                x=1,
                y=1,
                xanchor="right",
                font={"color": VERMILLION},
            )
    if values and metric:
        row = 2 if losses else 1
        _add_line(figure, values, f"validation {metric}", VERMILLION, "diamond", row=row)
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        figure.update_yaxes(title_text=f"validation {escape(metric)}<br>({better} is better)", row=row, col=1)
        _add_floor(figure, events, metric, row)
    for (task, points), (colour, symbol) in zip(weights.items(), zip(SERIES, SYMBOLS, strict=True), strict=False):
        _add_line(figure, points, f"weight of {task}", colour, symbol, row=n_rows)
        # Named at the line's end: a legend would speak of the other panels too.
        figure.add_annotation(
            text=escape(task), x=points[-1][0], y=points[-1][1], xanchor="right", yanchor="bottom", showarrow=False,
            font={"color": colour}, row=n_rows, col=1,
        )  # fmt: skip
    if weights:
        figure.update_yaxes(title_text="weight of the loss", row=n_rows, col=1)
    figure.update_xaxes(title_text="optimizer step", row=n_rows, col=1)
    return figure


def _moving_weights(events: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Task -> (step, weight of its loss) where the weights of several objectives follow the training; else {}."""
    tasks = {str(task) for event in events if event.get("type") == "train" for task in event.get("weights") or {}}
    found = {
        task: _points(events, "train", lambda event, task=task: (event.get("weights") or {}).get(task))
        for task in sorted(tasks)
    }
    moved = any(len({round(weight, 6) for _, weight in points}) > 1 for points in found.values())
    return found if moved else {}


def _metrics(event: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = event.get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}


def _first_metric(events: Sequence[Mapping[str, Any]]) -> str | None:
    for event in events:
        if event.get("type") == "validation":
            for name in _metrics(event):
                return str(name)
    return None


def _points(events: Sequence[Mapping[str, Any]], kind: str, value: Any) -> list[tuple[float, float]]:
    """(step, value or NaN) of all events of one kind that have a step; a resumed step replaces the earlier one."""
    found: dict[float, float] = {}
    for event in events:
        if event.get("type") != kind or value(event) is None:
            continue
        step = finite(event.get("step"))
        if not math.isnan(step):
            found[step] = finite(value(event))
    return sorted(found.items())


def _add_line(
    figure: go.Figure, points: list[tuple[float, float]], name: str, colour: str, symbol: str, row: int
) -> None:
    # Markers show single points and gaps; many of them would hide the line.
    few = len(points) <= 60
    figure.add_trace(
        go.Scatter(
            x=[step for step, _ in points],
            y=[None if math.isnan(value) else value for _, value in points],
            name=escape(name),
            mode="lines+markers" if few else "lines",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 7},
            hovertext=[hover({"step": number(step), name: number(value)}) for step, value in points],
            hoverinfo="text",
        ),
        row=row,
        col=1,
    )


def _add_floor(figure: go.Figure, events: Sequence[Mapping[str, Any]], metric: str, row: int) -> None:
    """A dashed line at the best baseline's validation value, named in words."""
    floors = [
        (finite(_metrics(event).get(metric)), str(event.get("name", "baseline")))
        for event in events
        if event.get("type") == "baseline"
    ]
    floors = [floor for floor in floors if not math.isnan(floor[0])]
    if not floors:
        return
    value, name = min(floors) if metric in LOWER_IS_BETTER else max(floors)
    figure.add_hline(
        y=value,
        row=row,
        col=1,
        line={"dash": "dash", "color": GREY, "width": 2},
        annotation_text=f"best baseline: {escape(SHORT_FAMILY_TITLES.get(name, name), 40)} {number(value, 3)}",
        annotation_position="bottom right",
    )
