"""Waterfall and words: numbers as given, text of users literal, sign never by colour alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from figures.figure_helpers import HOSTILE, assert_harmless

from llmrec_core.contracts import Explanation, Player, RenderedPrompt, Span
from llmrec_core.figures import attention_words_html, waterfall_figure, words_html

TEXT = f"Likes {HOSTILE}. Age 24. Candidate Alien."


def _span(words, kind, ref):
    start = TEXT.index(words)
    return Span(start, start + len(words), kind, ref)


def _explanation(method="shap", values=(0.5, -0.25, 0.0), **changes):
    refs = (("history", "3", HOSTILE), ("profile", "age", "age: 24"), ("candidate", "title", "title: Alien"))
    spans = (_span(HOSTILE, "history", "3"), _span("24", "profile", "age"), _span("Alien", "candidate", "title"))
    fields = {
        "user_id": "u",
        "item_id": "i1",
        "method": method,
        "target": 1.25,
        "base_value": 1.0,
        "players": tuple(Player(*ref, value) for ref, value in zip(refs, values, strict=True)),
        "additivity_gap": 0.0,
        "prompt": RenderedPrompt(TEXT, spans, 12),
        "budget": 8,
        "seed": 0,
    }
    return Explanation(**{**fields, **changes})


class _Text(HTMLParser):
    """Collects the text a browser would show, and every tag and attribute name."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.labels, self.tags, self.names = "", [], set(), set()
        self._open = []

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        self.tags.add(tag)
        self.names.update(name for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "sup" in self._open:
            self.labels.append(data)
        else:
            self.text += data


def _parsed(html):
    parser = _Text()
    parser.feed(html)
    parser.close()
    return parser


def test_waterfall_goes_from_base_over_players_to_the_score():
    figure = waterfall_figure(_explanation())
    steps, ends = figure.data
    assert (steps.base, list(steps.x), list(steps.y)) == (1.0, [0.5, -0.25, 0.0], [1, 2, 3])
    assert list(steps.text) == ["+0.5", "−0.25", "0"]
    assert (list(ends.x), list(ends.y)) == ([1.0, 1.25], [0, 4])
    assert [text.strip() for text in ends.text] == ["1", "1.25"]
    assert_harmless(figure)


def test_two_players_with_the_same_words_keep_two_rows():
    players = (Player("history", "0", "Alien", 0.1), Player("history", "1", "Alien", 0.2))
    figure = waterfall_figure(_explanation(players=players, prompt=None))
    assert list(figure.data[0].y) == [1, 2]
    assert list(figure.layout.yaxis.ticktext) == ["with none of these", "Alien", "Alien", "score"]


@pytest.mark.parametrize("base", [-3.0, 0.0, float("nan")])
def test_waterfall_of_odd_scores(base):
    assert waterfall_figure(_explanation(values=(0.0, 0.0, 0.0), base_value=base, target=base)).data


def test_nothing_to_explain():
    figure = waterfall_figure(_explanation(players=(), values=(0, 0, 0)))
    assert not figure.data
    assert "no field was used" in figure.layout.annotations[0].text
    assert "reads no text" in words_html(_explanation(prompt=None))
    assert "No attention was recorded" in attention_words_html(_explanation())


def test_words_show_the_prompt_literally_with_signed_numbers():
    page = words_html(_explanation())
    parsed = _parsed(page)
    assert parsed.tags <= {"div", "span", "sup"}
    assert parsed.names <= {"style", "title", "dir"}
    assert parsed.text.endswith(TEXT)
    assert parsed.labels == ["+0.5", "−0.25", "0"]
    # Solid for, dashed against, once each in the legend; dotted for what moved nothing.
    assert (page.count("2px solid"), page.count("2px dashed"), page.count("2px dotted")) == (2, 2, 1)
    assert "speaks against it" in parsed.text


def test_plain_json_and_explanation_give_the_same_words():
    explanation = _explanation()
    data = {
        "item_id": "i1",
        "method": "shap",
        "target": 1.25,
        "base_value": 1.0,
        "additivity_gap": 0.0,
        "players": [vars(player) for player in explanation.players],
        "prompt": {
            "text": TEXT,
            "spans": [{**vars(span), "player": i} for i, span in enumerate(explanation.prompt.spans)],
        },
    }
    assert words_html(data) == words_html(explanation)
    assert waterfall_figure({**data, "title": HOSTILE}).data[0] == waterfall_figure(explanation).data[0]


def test_damaged_spans_lose_no_text():
    spans = (
        Span(0, 9, "history", "3"),
        Span(5, 12, "profile", "age"),
        Span(30, 9999, "history", "3"),
        Span(4, 2, "history", "3"),
    )
    page = words_html(_explanation(prompt=RenderedPrompt(TEXT, spans, 12)))
    assert _parsed(page).text.endswith(TEXT)


def test_a_player_of_several_spans_is_labelled_once_and_rounding_is_zero():
    players = (Player("history", "3", "Alien, rated 5", 0.7), Player("candidate", "title", "title: Alien", 1.7e-17))
    spans = (Span(0, 5, "history", "3"), _span("24", "history", "3"), _span("Alien", "candidate", "title"))
    explanation = _explanation(players=players, prompt=RenderedPrompt(TEXT, spans, 12))
    assert _parsed(words_html(explanation)).labels == ["+0.7", "0"]
    assert list(waterfall_figure(explanation).data[0].text) == ["+0.7", "0"]


def test_groups_are_found_by_their_range():
    players = (Player("history-group", "0-2,4", "4 older items", 0.7),)
    span = _span("24", "history", "4")
    assert "+0.7" in words_html(_explanation(players=players, prompt=RenderedPrompt(TEXT, (span,), 12)))


def test_attention_words_and_shares():
    tokens = tuple((m.start(), m.end(), 0.5 if m.group() == "24." else 0.01) for m in re.finditer(r"\S+", TEXT))
    explanation = _explanation("attention", (0.2, 0.5, 0.1), token_values=((0, 0, 0.1), *tokens), additivity_gap=0.2)
    parsed = _parsed(attention_words_html(explanation))
    assert parsed.tags <= {"div", "span", "sup"}
    assert parsed.text.endswith(TEXT)
    assert sorted(parsed.labels) == ["1.0 %"] * (len(parsed.labels) - 1) + ["50.0 %"]
    bars = waterfall_figure(explanation).data[0]
    assert list(bars.x) == pytest.approx([50, 20, 10, 20])
    assert "against" not in words_html(explanation)
    assert_harmless(waterfall_figure(explanation))
