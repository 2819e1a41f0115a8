"""The whole answer: values, JSON keys and the sentence, with honest numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from explanation.explanation_doubles import GameRecommender, TextGameRecommender, catalogue, query_of

from llmrec_core.contracts import Explanation, Player, Query
from llmrec_core.errors import InputError
from llmrec_core.explanation.explain import explain, explanation_json, sentence

FIXED_KEYS = ["user_id", "item_id", "method", "target", "base_value", "players", "additivity_gap"]


def _worth(query: Query) -> float:
    """Film 5 is worth 2, the genre takes 0.5, age and scene are worth 1 only together."""
    score = 2.0 * any(item.item_id == "i5" for item in query.history) - 0.5 * ("genre" not in query.hidden_fields)
    return score + 1.0 * (query.profile.get("age", "") != "" and query.context.get("scene", "") != "")


def _text_case():
    dataset = catalogue()
    query = query_of(8, profile={"age": "24"}, context={"scene": "evening"})
    return TextGameRecommender(_worth, dataset, n_shown=4), dataset, query


def test_shap_of_a_text_recommender():
    recommender, dataset, query = _text_case()
    result = explain(recommender, dataset, query, 10)
    values = {(player.kind, player.ref): player.value for player in result.players}
    assert values == pytest.approx(
        {
            ("history", "7"): 0,
            ("history", "6"): 0,
            ("history", "5"): 2,
            ("history", "4"): 0,
            ("profile", "age"): 0.5,
            ("context", "scene"): 0.5,
            ("candidate", "title"): 0,
            ("candidate", "genre"): -0.5,
        },
        abs=1e-9,
    )
    assert result.target == recommender.score([query], np.array([[10]]))[0, 0] == 2.5
    assert (result.base_value, result.budget) == (0, 2**8)
    assert result.prompt is not None
    assert result.prompt.dropped_history == 4
    assert explain(recommender, dataset, query, 10) == result


def test_json_has_the_fixed_keys_and_is_json():
    recommender, dataset, query = _text_case()
    for method in ("shap", "attention"):
        document = explanation_json(explain(recommender, dataset, query, 10, method=method), dataset)
        assert list(document)[:7] == FIXED_KEYS
        assert list(document["players"][0]) == ["kind", "ref", "text", "value"]
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        for span in document["prompt"]["spans"]:
            player = document["players"][span["player"]]
            assert (player["kind"], player["ref"]) == (span["kind"], span["ref"])
        assert document["title"] == "Film 10"


def test_attention_shares_and_their_rest_sum_to_one():
    recommender, dataset, query = _text_case()
    result = explain(recommender, dataset, query, 10, method="attention")
    assert sum(player.value for player in result.players) + result.additivity_gap == pytest.approx(1)
    assert (result.base_value, result.budget) == (0, 1)
    assert result.target == 2.5
    assert "not a reason" in sentence(result)


def test_plain_recommender_and_empty_history():
    recommender = GameRecommender(lambda query: 0.25)
    result = explain(recommender, catalogue(), Query("nobody"), 3)
    assert result.players == ()
    assert (result.target, result.base_value, result.additivity_gap) == (0.25, 0.25, 0)
    assert "nothing to name" in sentence(result)
    assert explanation_json(result, catalogue())["prompt"] is None
    still = explain(recommender, catalogue(), query_of(3), 3)
    assert "None of the 3 possible reasons moves it" in sentence(still)


def test_unknown_method_is_refused():
    recommender, dataset, query = _text_case()
    with pytest.raises(InputError, match="unknown explanation method 'magic'"):
        explain(recommender, dataset, query, 10, method="magic")
    with pytest.raises(InputError, match="no attention"):
        explain(GameRecommender(_worth), dataset, query, 10, method="attention")


def _explanation(*players: Player, base: float = 1.0) -> Explanation:
    target = base + sum(player.value for player in players)
    return Explanation("u", "i1", "shap", target, base, players, 0.0, None, 8, 0)


def test_sentence_names_the_strongest_and_sums_the_rest():
    text = sentence(
        _explanation(
            Player("history", "3", "Alien, rated 5", 0.8),
            Player("candidate", "genre", "genre: Horror", 0.4),
            Player("history", "2", "Bambi, rated 1", -0.3),
            Player("profile", "age", "age: 24", 0.01),
            Player("context", "scene", "scene: evening", 0.02),
        )
    )
    assert text == (
        "Score 1.93; with none of the reasons below it would be 1. "
        "Raised most by “Alien, rated 5” in the history (+0.8) and the item's own “genre: Horror” (+0.4). "
        "Lowered most by “Bambi, rated 1” in the history (−0.3). "
        "The other 2 reasons together add +0.03."
    )


def test_sentence_warns_of_rounding_and_writes_nothing_as_zero():
    player = Player("history", "0", "Bambi", 0.05)
    explanation = Explanation("u", "i1", "shap", 0.05, 8e-14, (player,), 0.0, None, 2, 0, score_noise=0.01)
    assert sentence(explanation) == (
        "Score 0.05; with none of the reasons below it would be 0. Raised most by “Bambi” in the history (+0.05). "
        "Differences below 0.01 are rounding."
    )


def test_sentence_without_anything_that_raised_it():
    text = sentence(_explanation(Player("history", "0", "Bambi", -2.0)))
    assert text == (
        "Score −1; with none of the reasons below it would be 1. Lowered most by “Bambi” in the history (−2)."
    )
