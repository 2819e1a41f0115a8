"""One look for all figures: colours safe for colour-blind eyes, text that is never taken for markup.

Backgrounds are transparent and the font colour is left to the page, so that a figure fits light and dark. Every
colour keeps a contrast of about 3:1 against white and against near-black; sign and identity are always said a second
time by text, pattern, dash or marker shape.
"""

from __future__ import annotations

import html
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

#: Okabe & Ito (2008), in the order in which series take them.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
)
GREY = "#808080"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
#: What spoke for the item, what against it, and what is neither.
FOR, AGAINST = BLUE, VERMILLION

_GRID = "rgba(128,128,128,0.25)"
_AXIS = "rgba(128,128,128,0.7)"
#: Characters that reorder or join their neighbours; in a label they would scramble the words beside them.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def plain(text: object, limit: int | None = None) -> str:
    """``text`` as one line without control characters, cut with an ellipsis at ``limit`` characters."""
    kept = "".join(
        " " if char.isspace() else char
        for char in str(text)
        if char not in _BIDI and (char.isspace() or unicodedata.category(char) not in ("Cc", "Cs"))
    )
    line = " ".join(kept.split(" ")).strip()
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def escape(text: object, limit: int | None = None) -> str:
    """``text`` for any place where Plotly reads pseudo-HTML or TeX (titles, names, ticks, hover), shown literally."""
    # Plotly knows few named entities, so quotes stay; a dollar would open TeX where MathJax is loaded.
    return html.escape(plain(text, limit), quote=False).replace("$", "&#36;")


def wrapped(text: object, width: int = 60, limit: int = 400) -> str:
    """:func:`escape` of long text in lines of ``width`` characters, for hover boxes."""
    lines = textwrap.wrap(plain(text, limit), width) or [""]
    return "<br>".join(escape(line) for line in lines)


def hover(facts: Mapping[str, object]) -> str:
    """Hover text of ``label: value`` lines; both are escaped."""
    return "<br>".join(f"{escape(name)}: {wrapped(value)}" for name, value in facts.items())


def number(value: object, digits: int = 4) -> str:
    """A number as people read it: significant ``digits``, real minus, thousands apart; "–" for None and NaN."""
    try:
        as_float = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(as_float):
        return "–"
    if as_float == int(as_float) and abs(as_float) < 1e15:
        return f"{int(as_float):,}".replace("-", "−")
    return f"{as_float:,.{digits}g}".replace("-", "−")


def finite(value: object) -> float:
    """``value`` as a float; NaN for None, text and infinities, which axes cannot show."""
    try:
        as_float = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return as_float if math.isfinite(as_float) else math.nan


def finish(
    figure: go.Figure,
    title: str,
    x: str = "",
    y: str = "",
    height: int = 360,
    legend: bool | None = None,
    subtitle: str = "",
) -> go.Figure:
    """Gives a figure its title, axis titles (with units) and the common look. Texts must be escaped already.

    ``subtitle`` takes what the figure shows in numbers: a title stays short enough for a phone, and clear of the tools
    in the corner.
    """
    figure.update_layout(
        # "none" sets no font colour: the page's own text colour shows through.
        template="none",
        title={
            "text": title,
            "x": 0,
            "xanchor": "left",
            "font": {"size": 16},
            "pad": {"l": 4},
            "subtitle": {"text": subtitle, "font": {"size": 13}},
        },
        # Plotly's own box behind the tools is a grey plate on a page without a background.
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 64, "r": 24, "t": 80 if subtitle else 56, "b": 56},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1},
        hoverlabel={"align": "left"},
        bargap=0.25,
    )
    if legend is not None:
        figure.update_layout(showlegend=legend)
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_AXIS, linecolor=_AXIS, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_AXIS, linecolor=_AXIS, automargin=True)
    figure.update_xaxes(title_standoff=10)
    figure.update_yaxes(title_standoff=10)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def empty_figure(message: str, title: str = "") -> go.Figure:
    """A figure without data that says in words why there is none."""
    figure = finish(go.Figure(), escape(title), height=220)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=wrapped(message), showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5, font={"size": 14}
    )
    return figure


def text_list(texts: Iterable[object], limit: int | None = None) -> list[str]:
    """Escaped labels for ticks and legends."""
    return [escape(text, limit) for text in texts]


def rgba(colour: str, alpha: float) -> str:
    """``#rrggbb`` with an opacity from 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:.3g})"


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker shape of the index-th series, so that neither has to carry the identity alone."""
    return {"color": SERIES[index % len(SERIES)], "symbol": SYMBOLS[index % len(SYMBOLS)]}
