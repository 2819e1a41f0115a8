"""Text is shown literally, colours can be told apart on white and on black."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.figures import theme


def test_escape_leaves_no_markup_and_no_tex():
    assert theme.escape(HOSTILE) == '&lt;script&gt;alert("x")&lt;/script&gt; &amp; &#36;\\alpha&#36;'


def test_plain_is_one_line_without_control_or_direction_characters():
    assert theme.plain("a\nb\tc\x00d\x1b[31m\u202eevil\u2066") == "a b cd[31mevil"
    assert theme.plain("snow \u2603 \U0001f600 שלום") == "snow \u2603 \U0001f600 שלום"
    assert theme.plain("x" * 50, 10) == "x" * 9 + "…"
    assert theme.plain(None) == "None"


@given(st.text(), st.integers(2, 30))
def test_escape_survives_any_text(text, limit):
    escaped = theme.escape(text, limit)
    assert not set(escaped) & set("<>$\n\x00\u202e")
    assert len(theme.plain(text, limit)) <= limit
    assert "<" not in theme.wrapped(text).replace("<br>", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.11053, "0.1105"),
        (-2, "−2"),
        (1234567, "1,234,567"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        ("x", "–"),
        (np.float32(0.5), "0.5"),
    ],
)
def test_numbers_as_people_read_them(value, expected):
    assert theme.number(value) == expected


def test_empty_figure_says_why():
    figure = theme.empty_figure(HOSTILE, HOSTILE)
    assert_harmless(figure)
    assert "script" in figure.layout.annotations[0].text


def _luminance(rgb: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


@pytest.mark.parametrize("background", ["#ffffff", "#0e1117"])
@pytest.mark.parametrize("colour", [theme.BLUE, theme.VERMILLION, theme.GREEN, theme.GREY])
def test_main_colours_stand_out_on_light_and_dark(colour, background):
    assert _contrast(_rgb(colour), _rgb(background)) >= 3


@pytest.mark.parametrize(("text", "background"), [("#31333f", "#ffffff"), ("#fafafa", "#0e1117")])
@pytest.mark.parametrize("tint", [theme.FOR, theme.AGAINST])
def test_words_stay_readable_under_the_strongest_tint(tint, text, background):
    from llmrec_core.figures.explanations import MAX_TINT

    mixed = tuple(
        MAX_TINT * over + (1 - MAX_TINT) * under for over, under in zip(_rgb(tint), _rgb(background), strict=True)
    )
    assert _contrast(_rgb(text), mixed) >= 7  # type: ignore[arg-type]


def test_finish_keeps_the_page_background_and_font_colour():
    figure = theme.finish(go.Figure(), "t", "x (s)", "y")
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.font.color is None
    assert figure.layout.xaxis.title.text == "x (s)"


def test_figures_load_no_heavy_library():
    code = (
        "import sys, llmrec_core.figures\n"
        "heavy = {'torch', 'transformers', 'peft', 'shap', 'numba', 'streamlit'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
