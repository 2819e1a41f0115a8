"""The portrait of a dataset drawn: long tail, activity, ratings, history lengths, filled fields, best-known items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import plotly.graph_objects as go

from llmrec_core.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    empty_figure,
    escape,
    finish,
    finite,
    hover,
    number,
    rgba,
    text_list,
)

_HEIGHT = 340


def portrait_figures(portrait: Any) -> dict[str, go.Figure]:
    """name -> figure, in reading order: tail, months, ratings, history_lengths, coverage, top_items.

    Args:
        portrait: a :class:`llmrec_core.data.Portrait` or its ``as_json()``.
    """
    data: Mapping[str, Any] = asdict(portrait) if is_dataclass(portrait) else portrait  # type: ignore[arg-type]
    return {
        "tail": long_tail_figure(data),
        "months": _histogram_figure(
            data["months"], "Activity", "month (UTC)", "interactions", BLUE, "This data has no times."
        ),
        "ratings": _histogram_figure(
            data["ratings"], _ratings_title(data), "rating", "interactions", GREEN, "No ratings."
        ),
        "history_lengths": _histogram_figure(
            data["history_lengths"],
            _lengths_title(data),
            "interactions of one user",
            "users",
            PURPLE,
            "No user has interactions.",
        ),
        "coverage": coverage_figure(data),
        "top_items": top_items_figure(data),
    }


def long_tail_figure(data: Mapping[str, Any]) -> go.Figure:
    """Share of interactions held by the most popular share of items, against equality."""
    points = [(100 * finite(x), 100 * finite(y)) for x, y in data["tail"]]
    if len(points) < 2:
        return empty_figure("No interactions to count.", "Long tail")
    # The point nearest to a fifth of the items: the figure people know the long tail by.
    share, held = min(points, key=lambda point: abs(point[0] - 20))
    figure = go.Figure(
        [
            go.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="lines",
                line={"color": BLUE, "width": 2},
                fill="tozeroy",
                fillcolor=rgba(BLUE, 0.15),
                name="this data",
                hovertext=[
                    hover({"most popular items": f"{number(x, 3)} %", "their interactions": f"{number(y, 3)} %"})
                    for x, y in points
                ],
                hoverinfo="text",
            ),
            go.Scatter(
                x=[0, 100],
                y=[0, 100],
                mode="lines",
                line={"color": GREY, "dash": "dash"},
                name="if all items were equal",
                hoverinfo="skip",
            ),
        ]
    )
    title = f"Long tail: {number(share, 2)} % of items hold {number(held, 2)} % of interactions"
    finish(figure, title, "items, most popular first (%)", "interactions held (%)", _HEIGHT, legend=True)
    figure.update_yaxes(range=[0, 104])
    figure.update_xaxes(range=[0, 100])
    figure.update_layout(legend={"yanchor": "bottom", "y": 0.05, "xanchor": "right", "x": 0.98})
    return figure


def coverage_figure(data: Mapping[str, Any]) -> go.Figure:
    """How many rows of each text field are filled."""
    fields = [("item", field) for field in data["item_coverage"]] + [("user", field) for field in data["user_coverage"]]
    if not fields:
        return empty_figure("Items and users have no further fields.", "Filled fields")
    shares = [100 * finite(field["share"]) for _, field in fields]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=shares,
            y=list(range(len(fields))),
            marker={
                "color": [BLUE if kind == "item" else GREEN for kind, _ in fields],
                "pattern": {"shape": ["" if kind == "item" else "/" for kind, _ in fields], "fillmode": "overlay"},
            },
            text=[f"{number(share, 3)} %" for share in shares],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                hover(
                    {
                        f"{kind} field": field["field"],
                        "filled": f"{number(share, 3)} %",
                        "distinct values": number(field["n_distinct"]),
                        "mean length": f"{number(field['mean_chars'], 3)} characters",
                    }
                )
                for (kind, field), share in zip(fields, shares, strict=True)
            ],
            hoverinfo="text",
        )
    )
    labels = [f"{kind}: {escape(field['field'], 24)}" for kind, field in fields]
    finish(figure, "Filled fields", "rows with text (%)", height=max(_HEIGHT, 110 + 24 * len(fields)), legend=False)
    _rows(figure, labels)
    figure.update_xaxes(range=[0, 118], tickvals=[0, 25, 50, 75, 100])
    return figure


def top_items_figure(data: Mapping[str, Any], n_items: int = 10) -> go.Figure:
    """The best-known items by interactions."""
    top: Sequence[Any] = data["top_items"][:n_items]
    if not top:
        return empty_figure("No items.", "Best-known items")
    counts = [int(count) for _, _, count in top]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=counts,
            y=list(range(len(top))),
            marker={"color": BLUE},
            text=[f"{count:,}" for count in counts],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                hover({"item": title, "id": item_id, "interactions": f"{count:,}"}) for item_id, title, count in top
            ],
            hoverinfo="text",
        )
    )
    finish(figure, "Best-known items", "interactions", height=_HEIGHT, legend=False)
    _rows(figure, text_list((title for _, title, _ in top), 32))
    figure.update_xaxes(range=[0, 1.15 * max(*counts, 1)])
    return figure


def _rows(figure: go.Figure, labels: list[str]) -> None:
    """Names rows that are addressed by number, the first on top."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )


def _histogram_figure(
    histogram: Mapping[str, Any], title: str, x: str, y: str, colour: str, if_empty: str
) -> go.Figure:
    labels, counts = [str(label) for label in histogram["labels"]], [int(count) for count in histogram["counts"]]
    if not labels:
        return empty_figure(if_empty, title)
    figure = go.Figure(
        go.Bar(
            x=list(range(len(labels))),
            y=counts,
            marker={"color": colour},
            hovertext=[hover({x: label, y: f"{count:,}"}) for label, count in zip(labels, counts, strict=True)],
            hoverinfo="text",
        )
    )
    finish(figure, title, x, y, _HEIGHT, legend=False)
    # Months are many and ratings few: name about a dozen bars, whatever the labels look like.
    step = max(1, -(-len(labels) // 12))
    shown = list(range(0, len(labels), step))
    figure.update_xaxes(
        tickmode="array",
        tickvals=shown,
        ticktext=text_list((labels[i] for i in shown), 20),
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def _ratings_title(data: Mapping[str, Any]) -> str:
    mean = data.get("mean_rating")
    return "Ratings" if mean is None else f"Ratings, mean {number(mean, 3)}"


def _lengths_title(data: Mapping[str, Any]) -> str:
    median = (data.get("history_quantiles") or {}).get("0.5")
    return "History lengths" if median is None else f"History lengths, median {number(median, 3)}"
