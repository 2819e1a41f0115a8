"""What a split cuts where: lines of a few users or items, shares of each part, rows over time, folds and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmrec_core.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    escape,
    finish,
    hover,
    number,
)

if TYPE_CHECKING:
    from llmrec_core.data import SplitPicture

_N_BINS = 60
#: Part -> words, colour, marker and pattern: a part is told by more than its colour.
_LOOKS: dict[str, tuple[str, str, str, str]] = {
    "train": ("training", BLUE, "circle", ""),
    "known": ("known, not trained on", GREEN, "square", "."),
    "valid": ("validation", ORANGE, "diamond", "/"),
    "test": ("test", VERMILLION, "star", "x"),
    "out": ("left out", GREY, "circle-open", ""),
}
_OWNERS = {"rows": "rows", "users": "users", "items": "items"}


def split_figures(picture: SplitPicture) -> dict[str, go.Figure]:
    """The pictures of one split by name: "lines", "shares", "time", and "folds" or "groups" where there are such."""
    figures = {"lines": _lines(picture), "shares": _shares(picture)}
    if picture.folds:
        figures["folds"] = _folds(picture)
    if picture.groups:
        figures["groups"] = _groups(picture)
    counts = {name: np.asarray(values) for name, values in picture.counts.items()}
    figures["time"] = _panels(
        np.asarray(picture.bins), counts, picture.timed, picture.marks, {n: int(c.sum()) for n, c in counts.items()}
    )
    return figures


def _panels(
    edges: np.ndarray,
    counts: Mapping[str, np.ndarray],
    timed: bool,
    marks: list[tuple[float, str]],
    sizes: Mapping[str, int],
) -> go.Figure:
    n_rows = max(1, sum(sizes.values()))
    names = [name for name in _LOOKS if name in counts]
    titles = [f"{_LOOKS[name][0]}: {sizes[name]:,} rows ({sizes[name] / n_rows:.1%})" for name in names]
    figure = make_subplots(
        rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.3 / len(names), subplot_titles=titles
    )
    title = "When the rows of each part happened" if timed else "Where the rows of each part stand in the file"
    finish(figure, title, legend=False)
    middles = (edges[:-1] + edges[1:]) / 2
    for index, name in enumerate(names, start=1):
        figure.add_trace(
            go.Bar(
                x=_dates(middles) if timed else middles,
                y=counts[name],
                marker={"color": _LOOKS[name][1]},
                hovertext=[
                    hover(
                        {
                            "rows": f"{count:,}",
                            "from": _day(start) if timed else number(np.ceil(start)),
                            "to": _day(end) if timed else number(np.floor(end)),
                        }
                    )
                    for count, start, end in zip(counts[name], edges[:-1], edges[1:], strict=True)
                ],
                hoverinfo="text",
            ),
            row=index,
            col=1,
        )
        figure.update_yaxes(title_text="rows", rangemode="tozero", nticks=4, row=index, col=1)
        for place, _ in marks:
            figure.add_vline(
                x=_dates(np.array([place]))[0] if timed else place,
                line={"dash": "dot", "width": 1.5, "color": GREY},
                row=index,
                col=1,
            )
    figure.update_layout(bargap=0.05, margin={"t": 84}, height=140 + 110 * len(names))
    axis = "time (UTC)" if timed else "place in the file (no times in this data)"
    if marks:
        axis += f"; dotted: {', '.join(f'{escape(words)} {_day(place)[:10]}' for place, words in marks)}"
    figure.update_xaxes(title_text=axis, row=len(names), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def _lines(picture: SplitPicture) -> go.Figure:
    """One line for each drawn user or item, a mark for each interaction."""
    figure = go.Figure()
    timed = picture.axis == "time"
    names = [f"{escape(line.name, 24)}" for line in picture.lines]
    # Two items may be cut to the same words; lines are told apart by their place.
    for part, (words, colour, symbol, _) in _LOOKS.items():
        marked = [
            (place, row)
            for row, line in enumerate(picture.lines)
            for place, one in zip(line.places, line.parts, strict=True)
            if one == part
        ]
        if not marked:
            continue
        x = np.array([place for place, _ in marked])
        figure.add_trace(
            go.Scatter(
                x=_dates(x) if timed else x,
                y=[row for _, row in marked],
                mode="markers",
                name=words,
                marker={"color": colour, "symbol": symbol, "size": 8 if part in ("train", "out") else 10},
                hovertext=[
                    hover(
                        {
                            picture.lines_of[:-1]: picture.lines[row].name,
                            "part": words,
                            ("at" if timed else "interaction"): _day(place) if timed else number(place),
                        }
                    )
                    for place, row in marked
                ],
                hoverinfo="text",
            )
        )
    axis = "time (UTC)" if timed else "the user's interactions, first to last"
    title = f"What is cut where: {len(picture.lines)} {picture.lines_of}, drawn at random"
    finish(figure, title, axis, "", height=120 + 18 * max(8, len(picture.lines)), legend=True)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=True)
    figure.update_layout(legend={"y": -0.16, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"t": 48})
    return figure


def _shares(picture: SplitPicture) -> go.Figure:
    """How many of all rows, users and items each part holds; users and items may be in several."""
    figure = go.Figure()
    totals = {"rows": sum(picture.shares["rows"].values()), "users": picture.n_users, "items": picture.n_items}
    owners = [owner for owner in _OWNERS if totals[owner]]
    for part, (words, colour, _, pattern) in _LOOKS.items():
        found = [picture.shares[owner].get(part, 0) for owner in owners]
        if not any(found):
            continue
        figure.add_trace(
            go.Bar(
                y=[_OWNERS[owner] for owner in owners],
                x=[n / totals[owner] for n, owner in zip(found, owners, strict=True)],
                orientation="h",
                name="no interaction, or left out" if part == "out" else words,
                marker={"color": colour, "pattern": _pattern(pattern)},
                hovertext=[
                    hover({"part": words, owner: f"{n:,} of {totals[owner]:,}"})
                    for n, owner in zip(found, owners, strict=True)
                ],
                hoverinfo="text",
                text=[f" {n:,}" for n in found],
                textposition="outside",
                cliponaxis=False,
            )
        )
    finish(figure, "How much is in each part", "share of all rows, users, items", "", legend=True)
    figure.update_layout(
        barmode="group",
        height=170 + 22 * len(figure.data) * len(owners),
        legend={"y": -0.35, "yanchor": "top", "x": 0, "xanchor": "left", "traceorder": "normal"},
        margin={"t": 48, "b": 96},
    )
    figure.update_xaxes(tickformat=".0%", range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(autorange="reversed")
    return figure


def _folds(picture: SplitPicture) -> go.Figure:
    """Every fold as a bar of its windows over time; the chosen one is full, the others are pale."""
    figure = go.Figure()
    for part in ("train", "valid", "test"):
        words, colour, _, pattern = _LOOKS[part]
        spans = [getattr(fold, part) for fold in picture.folds]
        figure.add_trace(
            go.Bar(
                y=[_fold_name(fold) for fold in picture.folds],
                x=[max(0.0, stop - start) * 1000 for start, stop in spans],
                base=_dates(np.array([start for start, _ in spans])),
                orientation="h",
                name=words,
                marker={
                    "color": colour,
                    "opacity": [1.0 if fold.chosen else 0.4 for fold in picture.folds],
                    "pattern": _pattern(pattern),
                },
                hovertext=[
                    hover({"fold": fold.number, "part": words, "from": _day(start), "to": _day(stop)})
                    for fold, (start, stop) in zip(picture.folds, spans, strict=True)
                ],
                hoverinfo="text",
            )
        )
    finish(figure, "All folds; this split tests the one in full colour", "time (UTC)", "", legend=True)
    figure.update_layout(
        barmode="overlay",
        height=170 + 34 * len(picture.folds),
        legend={"y": -0.3, "yanchor": "top", "x": 0, "xanchor": "left", "traceorder": "normal"},
        margin={"t": 48, "b": 96},
    )
    figure.update_xaxes(type="date")
    figure.update_yaxes(autorange="reversed")
    return figure


def _fold_name(fold: Any) -> str:
    return f"fold {fold.number}{' (tested)' if fold.chosen else ''}"


def _groups(picture: SplitPicture) -> go.Figure:
    """Each group's rows by part: the shares are alike, the sizes need not be."""
    figure = go.Figure()
    names = [escape(name, 32) for name in picture.groups]
    totals = [sum(parts.values()) for parts in picture.groups.values()]
    for part in ("train", "valid", "test"):
        words, colour, _, pattern = _LOOKS[part]
        found = [parts.get(part, 0) for parts in picture.groups.values()]
        figure.add_trace(
            go.Bar(
                y=list(range(len(names))),
                x=[n / max(1, total) for n, total in zip(found, totals, strict=True)],
                orientation="h",
                name=words,
                marker={"color": colour, "pattern": _pattern(pattern)},
                hovertext=[
                    hover({"group": name, "part": words, "rows": f"{n:,} of {total:,}"})
                    for name, n, total in zip(picture.groups, found, totals, strict=True)
                ],
                hoverinfo="text",
            )
        )
    finish(figure, "Each group gives the same share", "share of the group's rows", "", legend=True)
    figure.update_layout(
        barmode="stack",
        height=170 + 30 * len(names),
        legend={"y": -0.3, "yanchor": "top", "x": 0, "xanchor": "left", "traceorder": "normal"},
        margin={"t": 48, "b": 96},
    )
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    ticks = [f"{name}<br>({total:,} rows)" for name, total in zip(names, totals, strict=True)]
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(names))), ticktext=ticks)
    return figure


def _pattern(shape: str) -> dict[str, Any]:
    """Laid over the colour; plotly's default would take the colour away."""
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.55)", "size": 8, "solidity": 0.12}


def _dates(seconds: np.ndarray) -> np.ndarray:
    return (np.asarray(seconds) * 1000).astype("int64").astype("datetime64[ms]")


def _day(seconds: float) -> str:
    return str(_dates(np.array([seconds]))[0])[:16].replace("T", " ")
