"""The portrait of a dataset drawn: long tail, histories, cold ends, repeats, activity, sessions, ratings, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import plotly.graph_objects as go

from llmrec_core.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
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
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def portrait_figures(portrait: Any) -> dict[str, go.Figure]:
    """name -> figure, in reading order: tail, history_lengths, cold, shares, months, week_hours, sessions, gaps,
    ratings, text_lengths, coverage, top_items.

    Args:
        portrait: a :class:`llmrec_core.data.Portrait` or its ``as_json()``.
    """
    data: Mapping[str, Any] = asdict(portrait) if is_dataclass(portrait) else portrait  # type: ignore[arg-type]
    return {
        "tail": long_tail_figure(data),
        "history_lengths": _histogram_figure(
            data["history_lengths"],
            _lengths_title(data),
            "interactions of one user",
            "users",
            PURPLE,
            "No user has interactions.",
        ),
        "cold": cold_figure(data),
        "shares": shares_figure(data),
        "months": _histogram_figure(
            data["months"], "Activity", "month (UTC)", "interactions", BLUE, "This data has no times."
        ),
        "week_hours": week_hours_figure(data),
        "sessions": _sessions_figure(data),
        "gaps": _histogram_figure(
            data["gaps"], "Waiting for the next interaction", "gap of one user", "gaps", SKY, _timeless(data)
        ),
        "ratings": _histogram_figure(
            data["ratings"], _ratings_title(data), "rating", "interactions", GREEN, "No ratings."
        ),
        "text_lengths": _text_figure(data),
        "coverage": coverage_figure(data),
        "top_items": top_items_figure(data),
    }


def drift_figure(drift: Any) -> go.Figure:
    """Shares of training and test rows that fall on groups of items, from the most popular to the rarest.

    Args:
        drift: a :class:`llmrec_core.data.Drift` or its ``as_json()``.
    """
    data: Mapping[str, Any] = asdict(drift) if is_dataclass(drift) else drift  # type: ignore[arg-type]
    groups = data["groups"]
    if not groups:
        return empty_figure("No item of the test part was in training.", "Drift")
    figure = go.Figure()
    for at, (name, colour, pattern) in enumerate((("training", BLUE, ""), ("test", VERMILLION, "/")), start=1):
        shares = [100 * finite(group[at]) for group in groups]
        figure.add_bar(
            x=list(range(len(groups))),
            y=shares,
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            hovertext=[
                hover({"part": name, "items in this group": number(group[0]), "its rows": f"{number(share, 3)} %"})
                for group, share in zip(groups, shares, strict=True)
            ],
            hoverinfo="text",
        )
    found = f"{number(data['item_divergence'], 3)} bits from training to test"
    chance = finite(data["item_divergence_chance"])
    if chance > 0:
        found += f", {number(data['item_divergence'] / chance, 2)} times chance"
    axes = ("items by popularity in training (number in the group)", "rows of the part (%)")
    finish(figure, "Interest in popular and rare items", *axes, _HEIGHT + 24, subtitle=found)
    figure.update_layout(showlegend=True, barmode="group")
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(groups))),
        ticktext=[number(group[0]) for group in groups],
        showgrid=False,
        zeroline=False,
    )
    return figure


def long_tail_figure(data: Mapping[str, Any]) -> go.Figure:
    """Share of interactions held by the most popular share of items, against equality."""
    points = [(100 * finite(x), 100 * finite(y)) for x, y in data["tail"]]
    if len(points) < 2:
        return empty_figure("No interactions to count.", "Long tail")
    # The point nearest to a fifth of the items: the figure people know the long tail by.
    share, held = min(points[1:], key=lambda point: abs(point[0] - 20))
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
    found = f"{number(share, 2)} % of items hold {number(held, 2)} % of interactions"
    if "gini" in data:
        found += f"; Gini {number(data['gini'], 2)}"
    axes = ("items, most popular first (%)", "interactions held (%)")
    finish(figure, "Long tail", *axes, _HEIGHT, legend=True, subtitle=found)
    figure.update_yaxes(range=[0, 104])
    figure.update_xaxes(range=[0, 100])
    figure.update_layout(legend={"yanchor": "bottom", "y": 0.05, "xanchor": "right", "x": 0.98})
    return figure


def cold_figure(data: Mapping[str, Any]) -> go.Figure:
    """Users and items without interactions, with a few, and with enough."""
    figure = go.Figure()
    rows = [("items", data["n_items"], data["n_cold_items"], data["n_few_items"])]
    rows.append(("users", data["n_users"], data["n_cold_users"], data["n_few_users"]))
    # Patterns fill two of the steps, so only the plain one carries its number.
    steps = (("none", VERMILLION, "x"), ("1 to 4", ORANGE, "/"), ("5 or more", BLUE, ""))
    for at, (name, colour, pattern) in enumerate(steps):
        counts = [(cold, few, total - cold - few)[at] for _, total, cold, few in rows]
        shares = [100 * count / max(1, total) for count, (_, total, _, _) in zip(counts, rows, strict=True)]
        figure.add_bar(
            orientation="h",
            x=shares,
            y=[kind for kind, _, _, _ in rows],
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            text=[f"{n:,}" if share >= 8 and not pattern else "" for n, share in zip(counts, shares, strict=True)],
            textposition="inside",
            insidetextfont={"color": "white"},
            hovertext=[
                hover({f"{kind} with interactions": name, "how many": f"{count:,}", "share": f"{number(share, 3)} %"})
                for (kind, _, _, _), count, share in zip(rows, counts, shares, strict=True)
            ],
            hoverinfo="text",
        )
    finish(figure, "Cold users and items, by interactions", "share (%)", height=260, legend=True)
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def shares_figure(data: Mapping[str, Any]) -> go.Figure:
    """Density, co-visits and repeated rows, in percent; an estimate has its interval."""
    rows = max(1, data["n_interactions"])
    bars: list[tuple[str, float, float, float, str]] = []
    density = 100 * finite(data["density"])
    bars.append(("user and item met", density, 0, 0, "share of all pairs of a user and an item"))
    c = data["co_visits"]
    if c is not None:
        share, low, high = (100 * finite(c[key]) for key in ("density", "low", "high"))
        how = f"estimated from {c['n_sampled']:,} random pairs, with its 95 % interval" if c["n_sampled"] else "exact"
        bars.append(("items share a user", share, high - share, share - low, f"share of all pairs of items; {how}"))
    repeats, exact = data["n_repeats"], data["n_exact_repeats"]
    bars.append(("rows repeat a pair", 100 * repeats / rows, 0, 0, f"{repeats:,} rows"))
    bars.append(("rows repeat exactly", 100 * exact / rows, 0, 0, f"{exact:,} rows, with equal rating and time"))
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[value for _, value, _, _, _ in bars],
            y=list(range(len(bars))),
            marker={"color": [BLUE, PURPLE, ORANGE, VERMILLION] if len(bars) == 4 else [BLUE, ORANGE, VERMILLION]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [up for _, _, up, _, _ in bars],
                "arrayminus": [down for _, _, _, down, _ in bars],
                "visible": any(up for _, _, up, _, _ in bars),
                "color": GREY,
            },
            text=[f" {number(value, 3)} %" for _, value, _, _, _ in bars],
            textposition="outside",
            cliponaxis=False,
            hovertext=[hover({name: f"{number(value, 4)} %", "what": words}) for name, value, _, _, words in bars],
            hoverinfo="text",
        )
    )
    finish(figure, "Density, co-visits and duplicates", "share (%)", height=260, legend=False)
    _rows(figure, [name for name, _, _, _, _ in bars])
    figure.update_xaxes(range=[0, 1.25 * max(1.0, *(value + up for _, value, up, _, _ in bars))])
    return figure


def week_hours_figure(data: Mapping[str, Any]) -> go.Figure:
    """Interactions by weekday and hour."""
    counts = data["week_hours"]
    if not counts:
        return empty_figure(_timeless(data), "Weekdays and hours")
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            x=list(range(24)),
            y=list(_DAYS),
            # From the page's own background to the colour, so that it reads in light and dark.
            colorscale=[[0, rgba(BLUE, 0.04)], [1, rgba(BLUE, 1)]],
            zmin=0,
            colorbar={"title": {"text": "interactions"}, "thickness": 12, "outlinewidth": 0},
            hovertext=[
                [hover({"when": f"{day}, {hour}:00", "interactions": f"{n:,}"}) for hour, n in enumerate(row)]
                for day, row in zip(_DAYS, counts, strict=True)
            ],
            hoverinfo="text",
            xgap=1,
            ygap=1,
        )
    )
    finish(figure, "Weekdays and hours", "hour (UTC)", height=_HEIGHT, legend=False)
    figure.update_xaxes(showgrid=False, zeroline=False, tickvals=list(range(0, 24, 3)))
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    return figure


def _sessions_figure(data: Mapping[str, Any]) -> go.Figure:
    s = data["sessions"]
    if s is None:
        return empty_figure(_timeless(data), "Sessions")
    found = f"{number(s['mean_events'], 3)} interactions in {number(s['mean_minutes'], 3)} minutes on average"
    axes = ("interactions of one session", "sessions")
    return _histogram_figure(s["lengths"], "Sessions", *axes, GREEN, "No session.", found)


def _text_figure(data: Mapping[str, Any]) -> go.Figure:
    text = data["item_text"]
    if text is None:
        return empty_figure("No item has text.", "Text of an item")
    unit = "tokens" if text["exact"] else "words and marks"
    found = f"median {number(text['quantiles']['0.5'], 3)} {unit}"
    axes = (f"{unit} of one item", "items")
    return _histogram_figure(text["histogram"], "Text of an item", *axes, ORANGE, "No item has text.", found)


def _timeless(data: Mapping[str, Any]) -> str:
    return {
        "none": "This data has no times.",
        "order": "The times are an order without a calendar.",
        "days": "The times are days without an hour.",
    }.get(data["clock"], "No user has two interactions.")


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
                        "mean length": f"{number(field['mean_chars'], 3)} characters, "
                        f"{number(field['mean_tokens'], 3)} words and marks",
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
    histogram: Mapping[str, Any], title: str, x: str, y: str, colour: str, if_empty: str, found: str = ""
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
    finish(figure, title, x, y, _HEIGHT, legend=False, subtitle=found)
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
