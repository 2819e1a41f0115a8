"""All the text that a figure shows, and values to feed figures with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

HOSTILE = '<script>alert("x")</script> & $\\alpha$'
_TEXT_KEYS = {"text", "hovertext", "hovertemplate", "texttemplate", "name", "ticktext", "title", "annotations"}


def shown_texts(figure: go.Figure) -> list[str]:
    """Every string under a key whose content Plotly draws."""

    def walk(value: Any, shown: bool) -> Iterator[str]:
        if isinstance(value, str):
            if shown:
                yield value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, shown or key in _TEXT_KEYS)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, shown)

    return list(walk(json.loads(figure.to_json()), False))


def assert_harmless(figure: go.Figure) -> None:
    """No text opens a tag of its own, or TeX; line breaks are ours."""
    for text in shown_texts(figure):
        assert "<" not in text.replace("<br>", ""), text
        assert "$" not in text, text


def metric(mean: float | None, width: float | None = 0.01, n: int = 400) -> dict[str, Any]:
    if mean is None or width is None:
        return {"mean": mean, "ci_low": None, "ci_high": None, "n": n}
    return {"mean": mean, "ci_low": mean - width, "ci_high": mean + width, "n": n}
