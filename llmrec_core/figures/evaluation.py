"""Metrics drawn: models beside baselines with their intervals, paired differences, and trade-offs.

``result`` is a run's ``result.json`` or ``metrics.json`` (keys ``model``, ``metrics``, ``baselines``), or a plain
mapping model -> metric -> ``{mean, ci_low, ci_high, n}`` when several runs stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmrec_core.figures.theme import (
    AGAINST,
    FOR,
    GREY,
    empty_figure,
    escape,
    finish,
    finite,
    hover,
    number,
    rgba,
    series_style,
    text_list,
)
from llmrec_core.specs import LOWER_IS_BETTER
from llmrec_core.specs.titles import METRIC_WORDS, metric_title

Metrics = Mapping[str, Mapping[str, Any]]

_PER_ROW = 3
#: Metrics of which neither end is better as such, with their units.
_UNITS = {
    "novelty": "novelty (bits)",
    "coverage": "coverage (share of the catalogue)",
    "diversity": "diversity (1 - cosine of categories)",
    "arp": "average popularity (people)",
    "aplt": "long tail (share of the list)",
    "gini": "Gini of exposure (0 even, 1 a single item)",
}


def models_of(result: Mapping[str, Any]) -> dict[str, Metrics]:
    """model -> its metrics, the fine-tuned model first, from either form of ``result``."""
    if isinstance(result.get("baselines"), Mapping) and isinstance(result.get("metrics"), Mapping):
        return {str(result.get("model") or "model"): result["metrics"], **result["baselines"]}
    return {str(name): metrics for name, metrics in result.items() if isinstance(metrics, Mapping)}


def metrics_figure(result: Mapping[str, Any], metrics: Sequence[str] | None = None) -> go.Figure:
    """A small panel for each metric: a bar a model, with its bootstrap interval; each panel has its own scale.

    Args:
        result: see the module.
        metrics: which, in order; None: all that any model has. Those that nobody has are left out.
    """
    models = models_of(result)
    known = list(dict.fromkeys(metric for values in models.values() for metric in values))
    chosen = [metric for metric in (known if metrics is None else metrics) if metric in known]
    if not chosen:
        return empty_figure("No metric to show: nothing was measured, or none of those asked for.", "Metrics")
    n_columns = min(_PER_ROW, len(chosen))
    n_rows = math.ceil(len(chosen) / n_columns)
    panel = 26 + 34 * len(models)
    height = 96 + n_rows * (panel + 84)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes=True,
        subplot_titles=[_metric_title(metric) for metric in chosen],
        vertical_spacing=84 / (height - 96) if n_rows > 1 else 0,
        horizontal_spacing=0.06,
    )
    finish(figure, "Metrics, with bootstrap intervals over users", height=height, legend=False)
    figure.update_layout(margin={"t": 80})
    names = text_list(models, 30)
    for index, metric in enumerate(chosen):
        row, column = index // n_columns + 1, index % n_columns + 1
        found = [models[name].get(metric) or {} for name in models]
        for place, (name, value) in enumerate(zip(models, found, strict=True)):
            _add_bar(figure, place, name, metric, value, row, column)
        ends = [finite(value.get(key)) for value in found for key in ("mean", "ci_high")]
        low = min([0.0, *(finite(value.get("ci_low")) for value in found if finite(value.get("ci_low")) < 0)])
        high = max([end for end in ends if not math.isnan(end)], default=1.0)
        figure.update_xaxes(range=[low, 1.3 * high or 1.0], nticks=5, row=row, col=column)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _add_bar(
    figure: go.Figure, place: int, name: str, metric: str, value: Mapping[str, Any], row: int, column: int
) -> None:
    mean, low, high = (finite(value.get(key)) for key in ("mean", "ci_low", "ci_high"))
    if math.isnan(mean):
        figure.add_trace(
            go.Scatter(
                x=[0], y=[place], mode="text", text=["not measured"], textposition="middle right", hoverinfo="skip"
            ),
            row=row,
            col=column,
        )
        return
    # The label stands behind the interval, where neither covers the other.
    end = mean if math.isnan(high) else high
    figure.add_trace(
        go.Bar(
            orientation="h",
            x=[mean],
            y=[place],
            width=0.55,
            marker={"color": rgba(series_style(place)["color"], 0.75)},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [0 if math.isnan(high) else high - mean],
                "arrayminus": [0 if math.isnan(low) else mean - low],
                "color": GREY,
                "thickness": 2,
                "width": 5,
            },
            hovertext=[_value_hover(name, metric, value)],
            hoverinfo="text",
        ),
        row=row,
        col=column,
    )
    figure.add_trace(
        go.Scatter(
            x=[end],
            y=[place],
            mode="text",
            text=[f" {number(mean, 3)}"],
            textposition="middle right",
            cliponaxis=False,
            hoverinfo="skip",
        ),
        row=row,
        col=column,
    )


def difference_figure(
    per_user: pd.DataFrame,
    metric: str,
    model: str,
    floor: str,
    difference: Mapping[str, Any] | None = None,
) -> go.Figure:
    """How each user's metric changed from ``floor`` to ``model``: a histogram of paired differences.

    Args:
        per_user: columns model, user_id, metric, value (``per_user.parquet``).
        metric: such as ``ndcg@10``. Where less is better, the sign is turned: right is always a gain.
        model: compared one.
        floor: compared with.
        difference: ``{mean, ci_low, ci_high}`` (model minus floor) to mark; None: no mark.
    """
    title = f"{escape(_words(metric), 30)} for each user: {escape(model, 30)} against {escape(floor, 30)}"
    chosen = per_user[(per_user["metric"] == metric) & per_user["model"].isin([model, floor])]
    wide = chosen.pivot_table(index="user_id", columns="model", values="value", aggfunc="last")
    if model not in wide or floor not in wide or model == floor:
        return empty_figure("Both models need values of this metric for the same users.", title)
    sign = -1.0 if metric.partition("@")[0] in LOWER_IS_BETTER else 1.0
    changes = (sign * (wide[model] - wide[floor])).dropna().to_numpy(dtype=np.float64)
    changes = changes[np.isfinite(changes)]
    if not len(changes):
        return empty_figure("No user has a value of this metric from both models.", title)
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    equal = len(changes) - gained - lost
    reach = float(np.abs(changes).max()) or 1.0
    edges = np.linspace(-reach, reach, 22)
    figure = go.Figure()
    for words, mask, colour, pattern in (
        (f"{lost:,} lost", changes < 0, AGAINST, "/"),
        (f"{equal:,} equal", changes == 0, GREY, ""),
        (f"{gained:,} gained", changes > 0, FOR, ""),
    ):
        counts, _ = np.histogram(changes[mask], edges)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=np.diff(edges) * 0.92,
                name=words,
                marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay", "size": 6}},
                hovertext=[
                    hover({"change": f"{number(low, 3)} to {number(high, 3)}", "users": f"{count:,}"})
                    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
                ],
                hoverinfo="text",
            )
        )
    better = "left turned right: lower is better" if sign < 0 else "right of zero: the model is better"
    finish(figure, title, x=f"change of {escape(_words(metric), 30)} ({better})", y="users", height=380, legend=True)
    # The label of the mean needs the place above the plot.
    legend = {"yanchor": "top", "y": -0.2, "xanchor": "center", "x": 0.5}
    figure.update_layout(barmode="stack", bargap=0, legend=legend, margin={"t": 72, "b": 84})
    _mark_mean(figure, difference, sign)
    return figure


def _mark_mean(figure: go.Figure, difference: Mapping[str, Any] | None, sign: float) -> None:
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    mean = finite((difference or {}).get("mean")) * sign
    if math.isnan(mean):
        return
    low, high = sorted(finite((difference or {}).get(key)) * sign for key in ("ci_low", "ci_high"))
    if not (math.isnan(low) or math.isnan(high)):
        figure.add_vrect(x0=low, x1=high, fillcolor=rgba(FOR, 0.18), line_width=0)
    interval = "" if math.isnan(low) or math.isnan(high) else f" ({number(low, 3)} to {number(high, 3)})"
    figure.add_vline(
        x=mean,
        line={"color": FOR, "width": 2, "dash": "dash"},
        annotation_text=f"mean {number(mean, 3)}{interval}",
        annotation_position="top left" if mean < 0 else "top right",
        # Above the plot, where no bar stands behind it.
        annotation_yshift=20,
    )


def tradeoff_figure(result: Mapping[str, Any], x: str = "novelty@10", y: str = "ndcg@10") -> go.Figure:
    """Each model as a point with both intervals: accuracy (``y``) against what it may cost (``x``)."""
    title = f"Trade-off: {escape(_words(y), 30)} against {escape(_words(x), 30)}"
    figure = go.Figure()
    for index, (name, metrics) in enumerate(models_of(result).items()):
        across, up = metrics.get(x) or {}, metrics.get(y) or {}
        if math.isnan(finite(across.get("mean"))) or math.isnan(finite(up.get("mean"))):
            continue
        style = series_style(index)
        figure.add_trace(
            go.Scatter(
                x=[finite(across["mean"])],
                y=[finite(up["mean"])],
                error_x=_error(across, style["color"]),
                error_y=_error(up, style["color"]),
                mode="markers+text",
                text=[escape(name, 30)],
                textposition="top right",
                cliponaxis=False,
                marker={**style, "size": 13},
                name=escape(name, 30),
                hovertext=[f"{_value_hover(name, x, across)}<br>{_value_hover(name, y, up)}"],
                hoverinfo="text",
            )
        )
    if not figure.data:
        return empty_figure("No model has both metrics.", title)
    return finish(figure, title, x=_axis(x), y=_axis(y), height=400, legend=False)


def _error(value: Mapping[str, Any], colour: str) -> dict[str, Any] | None:
    mean, low, high = (finite(value.get(key)) for key in ("mean", "ci_low", "ci_high"))
    if math.isnan(low) or math.isnan(high):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - mean],
        "arrayminus": [mean - low],
        "color": rgba(colour, 0.6),
        "thickness": 1.5,
    }


def _value_hover(name: str, metric: str, value: Mapping[str, Any]) -> str:
    facts: dict[str, object] = {"model": name, metric: number(value.get("mean"))}
    if value.get("ci_low") is not None and value.get("ci_high") is not None:
        facts["interval"] = f"{number(value['ci_low'])} to {number(value['ci_high'])}"
    if value.get("n") is not None:
        facts["users"] = number(value["n"])
    return hover(facts)


def _metric_title(metric: str) -> str:
    base = metric.partition("@")[0]
    if base in _UNITS:
        # Neither end of coverage and novelty is better as such.
        return escape(_words(metric), 30)
    return f"{escape(_words(metric), 30)} ({'lower' if base in LOWER_IS_BETTER else 'higher'} is better)"


def _words(metric: str) -> str:
    """As tables write it; a metric that they do not know keeps its name."""
    return metric_title(metric) if metric.partition("@")[0] in METRIC_WORDS else metric


def _axis(metric: str) -> str:
    base, at, cut = metric.partition("@")
    return escape(_UNITS.get(base, _words(base)) + (f" of the first {cut}" if at else ""), 60)
