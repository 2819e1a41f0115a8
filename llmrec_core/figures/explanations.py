"""An explanation drawn: a waterfall of its players, and the prompt's own words tinted by them.

Both take the plain data that ``llmrec explain --json`` prints (or an :class:`Explanation`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import plotly.graph_objects as go

from llmrec_core.contracts import Explanation
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
    plain,
    rgba,
)

_KINDS = {
    "history": "history",
    "history-group": "history",
    "profile": "profile",
    "context": "context",
    "candidate": "the item itself",
}
#: Strongest tint of a word. At this opacity black text on white and white text on black keep a contrast above 7:1.
MAX_TINT = 0.35
#: Below this share of the strongest value there is only rounding.
_NOTHING = 1e-6


def waterfall_figure(explanation: Explanation | Mapping[str, Any]) -> go.Figure:
    """From the score with nothing known (top) over each player to the score (bottom), strongest player first.

    For attention, whose shares only add up, plain bars of the shares.
    """
    data = _plain(explanation)
    players = sorted(data["players"], key=lambda player: -abs(finite(player["value"])))
    title = f"Why {escape(data.get('title') or data['item_id'], 60)}"
    if not players:
        return empty_figure("No history and no field was used, so there is nothing to show.", title)
    if data["method"] == "attention":
        return _share_bars(players, finite(data["additivity_gap"]), title)
    values = [finite(player["value"]) for player in players]
    base, target = finite(data["base_value"]), finite(data["target"])
    strongest = _strongest(values)
    labels = ["with none of these", *[escape(player["text"], 44) for player in players], "score"]
    figure = go.Figure(
        go.Waterfall(
            orientation="h",
            base=None if math.isnan(base) else base,
            # Rows are addressed by number: two players may well carry the same words.
            y=list(range(1, len(labels) - 1)),
            x=values,
            measure=["relative"] * len(values),
            text=[_signed(value, strongest) for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertext=[_player_hover(player, strongest) for player in players],
            hoverinfo="text",
            increasing={"marker": {"color": FOR}},
            decreasing={"marker": {"color": AGAINST}},
            connector={"line": {"color": rgba(GREY, 0.6), "width": 1, "dash": "dot"}},
        )
    )
    # Points, not bars from zero: a score has no natural zero, and the axis need not show it.
    figure.add_trace(
        go.Scatter(
            x=[base, target],
            y=[0, len(labels) - 1],
            mode="markers+text",
            marker={"symbol": "diamond", "size": 12, "color": GREY},
            text=[f"  {_amount(base, strongest)}", f"  {_amount(target, strongest)}"],
            textposition="middle right",
            cliponaxis=False,
            hovertext=[
                hover({"score with none of these present": number(base)}),
                hover({"score": number(target)}),
            ],
            hoverinfo="text",
        )
    )
    finish(figure, title, x="score (model's own units)", height=120 + 30 * len(labels), legend=False)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(range=_waterfall_range(base, values, target), zeroline=False)
    return figure


def _waterfall_range(base: float, values: Sequence[float], target: float) -> list[float] | None:
    """The span of all running sums with room for labels."""
    sums = [base, target]
    for value in values:
        base += value
        sums.append(base)
    if any(math.isnan(value) for value in sums):
        return None
    low, high = min(sums), max(sums)
    room = 0.18 * (high - low) or 0.5 * max(abs(high), 1.0)
    return [low - room, high + room]


def _share_bars(players: Sequence[Mapping[str, Any]], outside: float, title: str) -> go.Figure:
    values = [100 * finite(player["value"]) for player in players] + [100 * outside]
    labels = [escape(player["text"], 44) for player in players] + ["template and special tokens"]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=list(range(len(labels))),
            x=values,
            text=[f"{number(value, 3)} %" for value in values],
            textposition="outside",
            cliponaxis=False,
            marker={"color": [FOR] * len(players) + [GREY]},
            hovertext=[_player_hover(player, 1.0) for player in players]
            + [hover({"share of attention on words of no player": f"{number(values[-1], 3)} %"})],
            hoverinfo="text",
        )
    )
    finish(
        figure,
        f"{title} - where the model looked",
        x="share of attention (%)",
        height=120 + 30 * len(labels),
        legend=False,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(range=[0, 1.18 * max(*values, 1e-9)])
    return figure


def words_html(explanation: Explanation | Mapping[str, Any]) -> str:
    """The prompt as HTML, each player's words tinted by its value and labelled with it; everything escaped.

    Blue with a solid line speaks for the item, vermillion with a dashed line against it, and the signed number
    stands behind the words, so nothing hangs on colour alone. Text colour is the page's own.
    """
    data = _plain(explanation)
    prompt = data.get("prompt")
    if not prompt or not prompt.get("text"):
        return _message("This recommender reads no text, so there are no words to show.")
    values = [finite(player["value"]) for player in data["players"]]
    share = data["method"] == "attention"
    segments = _segments(len(prompt["text"]), prompt.get("spans", []), len(values))
    # A player often has several spans (title, genre, rating): its number stands behind the last.
    last = {owner: index for index, (_, _, owner) in enumerate(segments)}
    pieces = []
    for index, (start, end, owner) in enumerate(segments):
        words = _literal(prompt["text"][start:end])
        if owner is None:
            pieces.append(words)
        else:
            tinted, label = _tinted(words, data["players"][owner], values[owner], _strongest(values), share)
            pieces.append(tinted + (_label(label) if index == last[owner] else ""))
    return _frame("".join(pieces), "share of the attention" if share else "change of the score", share)


def attention_words_html(explanation: Explanation | Mapping[str, Any]) -> str:
    """The prompt as HTML, each token tinted by its rolled-out attention; the number is in the token's tooltip.

    The strongest eight tokens carry their share in per cent behind them.
    """
    data = _plain(explanation)
    prompt, tokens = data.get("prompt"), data.get("token_values") or []
    if not prompt or not prompt.get("text") or not tokens:
        return _message("No attention was recorded: ask for the method 'attention' of a language model.")
    text, at, pieces = prompt["text"], 0, []
    strongest = max((finite(value) for _, _, value in tokens), default=0.0)
    labelled = {tuple(token[:2]) for token in sorted(tokens, key=lambda token: -finite(token[2]))[:8]}
    for start, end, value in sorted(tokens, key=lambda token: (token[0], token[1])):
        start, end = max(int(start), at), min(int(end), len(text))
        if start >= end:
            continue
        pieces.append(_literal(text[at:start]))
        share = finite(value)
        alpha = MAX_TINT * share / strongest if strongest > 0 and share > 0 else 0.0
        label = _label(f"{100 * share:.1f} %") if (start, end) in labelled and share > 0 else ""
        pieces.append(
            f'<span title="{100 * share:.2f} % of the attention" style="background:{rgba(FOR, alpha)};'
            f'border-radius:2px">{_literal(text[start:end])}</span>{label}'
        )
        at = end
    pieces.append(_literal(text[at:]))
    return _frame("".join(pieces), "share of the attention", share=True)


def _plain(explanation: Explanation | Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of either form; spans of an :class:`Explanation` get the index of their player."""
    if not is_dataclass(explanation):
        return dict(explanation)
    data = asdict(explanation)
    if data["prompt"]:
        for span in data["prompt"]["spans"]:
            span["player"] = _player_of(span, data["players"])
    return data


def _player_of(span: Mapping[str, Any], players: Sequence[Mapping[str, Any]]) -> int | None:
    for index, player in enumerate(players):
        if str(span["kind"]).startswith("history"):
            if str(player["kind"]).startswith("history") and _holds(player["ref"], int(span["ref"].split("-")[0])):
                return index
        elif player["kind"] == span["kind"] and (
            player["ref"] == span["ref"] or span["ref"] in player["ref"].split(",")
        ):
            return index
    return None


def _holds(ref: str, position: int) -> bool:
    """Whether history positions such as ``0-4,7`` hold one position."""
    for run in ref.split(","):
        first, _, last = run.partition("-")
        if int(first) <= position <= int(last or first):
            return True
    return False


def _segments(length: int, spans: Sequence[Mapping[str, Any]], n_players: int) -> list[tuple[int, int, int | None]]:
    """The text cut into (start, end, player or None); overlapping spans give way to the one that began first."""
    cut: list[tuple[int, int, int | None]] = []
    at = 0
    for span in sorted(spans, key=lambda span: (int(span["start"]), int(span["end"]))):
        owner = span.get("player")
        start, end = max(int(span["start"]), at), min(int(span["end"]), length)
        if owner is None or not 0 <= int(owner) < n_players or start >= end:
            continue
        if start > at:
            cut.append((at, start, None))
        cut.append((start, end, int(owner)))
        at = end
    if at < length:
        cut.append((at, length, None))
    return cut


def _tinted(words: str, player: Mapping[str, Any], value: float, strongest: float, share: bool) -> tuple[str, str]:
    """(the words in their tint, the label of the value)."""
    label = f"{100 * value:.1f} %" if share else _signed(value, strongest)
    tip = html.escape(f"{_KINDS.get(str(player['kind']), '')}: {plain(player['text'], 200)}, {label}")
    if not abs(value) > _NOTHING * strongest:
        style = f"border-bottom:2px dotted {GREY}"
    else:
        colour, line = (AGAINST, "dashed") if value < 0 else (FOR, "solid")
        tint = rgba(colour, MAX_TINT * abs(value) / strongest)
        style = f"background:{tint};border-bottom:2px {line} {colour};border-radius:2px"
    return f'<span title="{tip}" style="{style};padding:0 2px">{words}</span>', label


def _label(text: str) -> str:
    return (
        '<sup style="font-size:.72em;font-variant-numeric:tabular-nums;padding:0 3px;white-space:nowrap">'
        f"{html.escape(text)}</sup>"
    )


def _literal(text: str) -> str:
    # Line ends are kept by white-space: pre-wrap; NUL is no character of HTML.
    return html.escape(text.replace("\x00", "\ufffd"))


def _frame(body: str, unit: str, share: bool) -> str:
    def key(colour: str, line: str, words: str) -> str:
        return (
            f'<span style="background:{rgba(colour, MAX_TINT)};border-bottom:2px {line} {colour};'
            f'padding:0 6px;border-radius:2px">{words}</span>'
        )

    keys = [key(FOR, "solid", "read more" if share else "speaks for the item")]
    if not share:
        keys.append(key(AGAINST, "dashed", "speaks against it"))
    return (
        '<div style="line-height:2.1;color:inherit">'
        f'<div style="font-size:.85em;margin-bottom:.6em">{" ".join(keys)} '
        f"<span>small numbers: {unit}; stronger tint: larger share</span></div>"
        f'<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">{body}</div></div>'
    )


def _message(text: str) -> str:
    return f'<p style="color:inherit">{html.escape(text)}</p>'


def _player_hover(player: Mapping[str, Any], strongest: float) -> str:
    kind = _KINDS.get(str(player["kind"]), str(player["kind"]))
    return hover({kind: player["text"], "value": _signed(finite(player["value"]), strongest)})


def _strongest(values: Sequence[float]) -> float:
    return max((abs(value) for value in values if not math.isnan(value)), default=0.0)


def _amount(value: float, strongest: float) -> str:
    """Three digits; what is nothing beside the strongest value is 0, not 1.7e-17."""
    return "0" if abs(value) <= _NOTHING * strongest else number(value, 3)


def _signed(value: float, strongest: float) -> str:
    return ("+" if value > _NOTHING * strongest else "") + _amount(value, strongest)
