"""Roll-out against products worked out by hand, and its sums per player."""

from __future__ import annotations

import numpy as np
import pytest
from explanation.explanation_doubles import GameRecommender, TextGameRecommender, catalogue, query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.contracts import RenderedPrompt, Span
from llmrec_core.errors import InputError, LLMRecError
from llmrec_core.explanation.attention import attention_shares, pool_to_seats, rollout
from llmrec_core.explanation.players import Seat, find_players


def test_two_layers_by_hand():
    # Heads of layer 1 average to [[1, 0], [.5, .5]], layer 2 is [[0, 1], [0, 1]]; with half identity:
    # A1 = [[1, 0], [.25, .75]], A2 = [[.5, .5], [0, 1]].  A2 A1, row 0 = .5*[1, 0] + .5*[.25, .75].
    layer1 = [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]
    layer2 = [[[0, 1], [0, 1]], [[0, 1], [0, 1]]]
    attentions = np.array([layer1, layer2], dtype=np.float32)
    assert rollout(attentions, np.array([1.0, 0.0])) == pytest.approx([0.625, 0.375])
    # Mean pooling: half of row 0, half of row 1 = [.25, .75].
    assert rollout(attentions, np.array([1.0, 1.0])) == pytest.approx([0.4375, 0.5625])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000))
def test_shares_sum_to_one(n_layers, n_heads, n_tokens, seed):
    rng = np.random.default_rng(seed)
    raw = rng.random((n_layers, n_heads, n_tokens, n_tokens)) + 1e-3
    attentions = raw / raw.sum(axis=-1, keepdims=True)
    shares = rollout(attentions, rng.random(n_tokens) + 0.01)
    assert shares.sum() == pytest.approx(1.0)
    assert (shares >= 0).all()


@pytest.mark.parametrize(
    "attentions",
    [
        np.ones((1, 1, 3, 2)),
        np.ones((1, 3, 3)),
        np.ones((0, 1, 3, 3)),
        np.full((1, 1, 3, 3), np.nan),
        -np.ones((1, 1, 3, 3)),
    ],
)
def test_what_is_no_attention_is_refused(attentions):
    with pytest.raises(LLMRecError):
        rollout(attentions, np.ones(3))


def test_tokens_go_to_the_span_they_overlap_most():
    prompt = RenderedPrompt("abcdef ghij", (Span(0, 4, "history", "0"), Span(4, 9, "candidate", "title")), 4)
    seats = (Seat("history", ("0",), "x"), Seat("candidate", ("title",), "y"))
    offsets = np.array([(0, 0), (0, 3), (3, 6), (7, 11), (9, 11)])
    per_seat, outside = pool_to_seats(prompt, offsets, np.array([0.1, 0.2, 0.3, 0.25, 0.15]), seats)
    # (3, 6): one letter of the first span, two of the second. (7, 11): two letters of the second. (9, 11): none.
    assert per_seat == pytest.approx([0.2, 0.55])
    assert outside == pytest.approx(0.25)


def test_pooled_to_the_same_players_as_shap():
    dataset = catalogue()
    recommender = TextGameRecommender(lambda query: 0.0, dataset, n_shown=2)
    game = find_players(recommender, dataset, query_of(6), 10)
    result = attention_shares(recommender, game)
    # Tokens: special, "User:", "Film", "4", "Film", "5", "|", "", "Film", "10", "genre", "1"; each reads all evenly.
    n = 12
    assert [seat.ref for seat in game.seats] == ["5", "4", "title", "genre"]
    assert result.shares == pytest.approx([2 / n] * 4)
    assert result.outside == pytest.approx(4 / n)
    # The special token and the empty word have no place in the text.
    assert len(result.token_values) == n - 2
    start, end, value = result.token_values[1]
    assert result.prompt.text[start:end] == "Film"
    assert value == pytest.approx(1 / n)


def test_recommenders_without_attention_are_told_so():
    recommender = GameRecommender(lambda query: 0.0)
    game = find_players(recommender, catalogue(), query_of(2), 0)
    with pytest.raises(InputError, match="no attention"):
        attention_shares(recommender, game)
