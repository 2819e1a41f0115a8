"""Prompts as coloured words: which part came from the history, the profile, the context or the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

#: Colour of a player's kind; each is readable as a tint on light and on dark ground and differs in brightness.
KIND_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "history": (0, 114, 178),
    "history-group": (86, 180, 233),
    "profile": (0, 158, 115),
    "context": (204, 121, 167),
    "candidate": (230, 159, 0),
}
KIND_TITLES: Mapping[str, str] = {
    "history": "history",
    "history-group": "older history",
    "profile": "profile",
    "context": "context",
    "candidate": "candidate",
}
_BOX = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;font-size:0.95rem;"
    "border:1px solid rgba(128,140,150,.35);border-radius:.5rem;padding:.9rem 1rem"
)


def _rgba(colour: tuple[int, int, int], strength: float) -> str:
    return f"rgba({colour[0]},{colour[1]},{colour[2]},{strength:.3f})"


def spans_html(text: str, spans: Iterable[Mapping[str, object]]) -> str:
    """``text`` with each span tinted by its kind; everything is escaped. Overlaps: the span that starts first wins."""
    pieces = []
    for start, end, span in _cut(text, spans):
        shown = escape(text[start:end])
        if span is None:
            pieces.append(shown)
        else:
            kind = str(span["kind"])
            colour = KIND_COLOURS.get(kind, (128, 128, 128))
            hint = escape(f"{KIND_TITLES.get(kind, kind)}: {span['ref']}", quote=True)
            pieces.append(
                f'<span title="{hint}" style="background:{_rgba(colour, 0.2)};'
                f'border-bottom:2px solid {_rgba(colour, 0.85)};border-radius:3px">{shown}</span>'
            )
    return f'<div style="{_BOX}">{"".join(pieces)}</div>'


def legend_html(kinds: Sequence[str]) -> str:
    """One tinted word for each kind."""
    marks = "".join(
        f'<span style="background:{_rgba(KIND_COLOURS[k], 0.2)};border-bottom:2px solid {_rgba(KIND_COLOURS[k], 0.85)};'
        f'border-radius:3px;padding:0 .4rem;margin-right:.6rem">{escape(KIND_TITLES[k])}</span>'
        for k in kinds
        if k in KIND_COLOURS
    )
    return f'<div style="font-size:.85rem">{marks}</div>'


def _cut(text: str, spans: Iterable[Mapping[str, object]]) -> Iterable[tuple[int, int, Mapping[str, object] | None]]:
    """Consecutive pieces of ``text``, each with its span or None; spans outside the text are cut to it."""
    at = 0
    for span in sorted(spans, key=lambda s: (int(str(s["start"])), -int(str(s["end"])))):
        start, end = max(at, int(str(span["start"]))), min(len(text), int(str(span["end"])))
        if end <= start:
            continue
        if start > at:
            yield at, start, None
        yield start, end, span
        at = end
    if at < len(text):
        yield at, len(text), None
