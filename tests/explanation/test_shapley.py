"""Exact Shapley values against games solved by hand and against the permutation formula."""

from __future__ import annotations

import numpy as np
import pytest
from explanation.explanation_doubles import GameRecommender, brute_force_shapley, catalogue, query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.contracts import Query
from llmrec_core.errors import LLMRecError
from llmrec_core.explanation.players import find_players
from llmrec_core.explanation.shapley import exact_shapley, shapley_values


def test_additive_game_gives_each_player_its_own_worth():
    worth = np.array([2.0, -1.0, 0.5])
    values, base = exact_shapley(lambda masks: 10 + masks @ worth, 3)
    assert base == 10
    assert values == pytest.approx([2.0, -1.0, 0.5])


def test_and_game_shares_the_prize_among_those_who_are_needed():
    # v = 1 only with both of the first two; the third is a dummy.
    values, base = exact_shapley(lambda masks: (masks[:, 0] & masks[:, 1]).astype(float), 3)
    assert base == 0
    assert values == pytest.approx([0.5, 0.5, 0.0], abs=1e-12)


def test_xor_game_cancels_out():
    # Alone each brings 1, joined they lose it: half of +1 and half of -1.
    values, _ = exact_shapley(lambda masks: (masks[:, 0] ^ masks[:, 1]).astype(float), 2)
    assert values == pytest.approx([0.0, 0.0], abs=1e-12)


def test_glove_game():
    # One left glove (player 0), two right gloves: 2/3, 1/6, 1/6 in every textbook.
    values, _ = exact_shapley(lambda masks: (masks[:, 0] & (masks[:, 1] | masks[:, 2])).astype(float), 3)
    assert values == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize(("n_players", "expected"), [(0, []), (1, [3.0])])
def test_tiny_games(n_players, expected):
    values, base = exact_shapley(lambda masks: 1.0 + 3.0 * masks.sum(axis=1), n_players)
    assert base == 1.0
    assert values.tolist() == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=32, max_size=32))
def test_any_game_of_five_agrees_with_the_permutation_formula(table):
    def value(present: frozenset[int]) -> float:
        return table[sum(1 << player for player in present)]

    def by_mask(masks):
        return np.array([value(frozenset(np.flatnonzero(mask).tolist())) for mask in masks])

    values, base = exact_shapley(by_mask, 5)
    assert base == table[0]
    assert values == pytest.approx(brute_force_shapley(value, 5), abs=1e-9)
    assert values.sum() + base == pytest.approx(table[31], abs=1e-9)


def _ids(query: Query) -> set[str]:
    return {item.item_id for item in query.history}


def test_each_coalition_is_scored_once_and_in_one_call():
    recommender = GameRecommender(lambda query: float(len(query.history)))
    game = find_players(recommender, catalogue(), query_of(4), 9)
    result = shapley_values(recommender, game)
    assert result.n_scored == 16
    coalitions = [frozenset(_ids(query)) for query in recommender.asked]
    # 16 different coalitions, and the full one again on its own as an independent check.
    assert len(set(coalitions)) == 16
    assert len(coalitions) == 17
    assert recommender.n_calls == 2
    assert result.values == pytest.approx([1, 1, 1, 1])
    assert (result.base_value, result.target) == (0, 4)
    assert result.additivity_gap <= 1e-4


class _Unsteady(GameRecommender):
    """The second call, of the full query alone, is off."""

    def __init__(self, error: float) -> None:
        super().__init__(lambda query: float(len(query.history)))
        self.error = error

    def score(self, queries, candidates, *, task=None):
        return super().score(queries, candidates, task=task) + np.float32(self.error * (self.n_calls - 1))


def test_rounding_between_calls_is_reported_and_more_is_refused():
    game = find_players(_Unsteady(0), catalogue(), query_of(3), 9)
    assert shapley_values(_Unsteady(0), game).score_noise == 0
    rounded = shapley_values(_Unsteady(0.01), game)
    assert rounded.score_noise == pytest.approx(0.01, abs=1e-6)
    assert rounded.target == 3
    assert rounded.additivity_gap <= 1e-4
    with pytest.raises(LLMRecError, match=r"scored the same query 3 and then 3\.1"):
        shapley_values(_Unsteady(0.1), game)


def test_values_that_do_not_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(
        "llmrec_core.explanation.shapley.exact_shapley",
        lambda value, n: (value(np.ones((1, n), dtype=bool)).repeat(n), 0.0),
    )
    recommender = GameRecommender(lambda query: float(len(query.history)))
    game = find_players(recommender, catalogue(), query_of(3), 9)
    with pytest.raises(LLMRecError, match="miss the score by 6"):
        shapley_values(recommender, game)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(broken):
    recommender = GameRecommender(lambda query: broken if len(query.history) == 2 else 0.0)
    game = find_players(recommender, catalogue(), query_of(3), 9)
    with pytest.raises(LLMRecError, match="not a finite number"):
        shapley_values(recommender, game)
