"""Explanations of every recommender family, tiny language models included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conformance.families import FAMILIES, tiny_split

from llmrec_core.contracts import HistoryItem, Query, Recommender
from llmrec_core.errors import InputError
from llmrec_core.explanation.explain import explain, explanation_json
from llmrec_core.explanation.players import find_players

SPLIT = tiny_split()
#: Six items, of which prompts show the last four.
QUERY = Query("u1", tuple(HistoryItem(f"i0{i}", float(1 + i % 5), 1_000.0 + i) for i in range(6)))
ITEM = 8


@pytest.fixture(scope="module", params=list(FAMILIES))
def family_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def recommender(family_name, fitted_family) -> Recommender:
    return fitted_family(family_name)[0]


def test_shap_values_add_up_to_the_recommenders_own_score(recommender):
    result = explain(recommender, SPLIT.dataset, QUERY, ITEM)
    score = recommender.score([QUERY], np.array([[ITEM]]))[0, 0]
    assert result.target == pytest.approx(score, abs=1e-4)
    assert result.base_value + sum(player.value for player in result.players) == pytest.approx(score, abs=1e-4)
    assert result.additivity_gap <= 1e-4
    assert result.budget == 2 ** len(result.players)
    assert explain(recommender, SPLIT.dataset, QUERY, ITEM) == result
    expected = {
        "cross-encoder": ["5", "4", "3", "2", "title", "category"],
        # It is told the titles of what was chosen, and nothing else of an item.
        "generative": ["5", "4", "3", "2", "title"],
        # The retriever reads what the prompt leaves out.
        "pipeline": ["5", "4", "3", "2", "0-1", "title", "category"],
    }
    # A family that reads no prompts has the history alone.
    wanted = expected.get(recommender.family, ["5", "4", "3", "2", "1", "0"])
    assert [player.ref for player in result.players] == wanted
    if recommender.family == "popularity":
        assert all(abs(player.value) < 1e-9 for player in result.players)
    else:
        assert any(abs(player.value) > 1e-6 for player in result.players)


def test_attention_or_a_clear_refusal(recommender):
    if not recommender.capabilities.attention:
        with pytest.raises(InputError, match="no attention"):
            explain(recommender, SPLIT.dataset, QUERY, ITEM, method="attention")
        return
    result = explain(recommender, SPLIT.dataset, QUERY, ITEM, method="attention")
    shares = [player.value for player in result.players]
    assert all(share >= 0 for share in shares)
    assert sum(shares) + result.additivity_gap == pytest.approx(1)
    assert sum(share > 0 for share in shares) >= 5
    document = explanation_json(result, SPLIT.dataset)
    for start, end, value in document["token_values"]:
        assert document["prompt"]["text"][start:end].strip()
        assert 0 <= value <= 1


def test_hiding_fields_keeps_the_place_where_the_candidate_begins(recommender):
    if not recommender.capabilities.text:
        pytest.skip("reads no prompts")
    game = find_players(recommender, SPLIT.dataset, QUERY, ITEM)
    renderer = getattr(recommender, "ranker", recommender).renderer
    n_fields = sum(seat.kind == "candidate" for seat in game.seats)
    for history in itertools.product([False, True], repeat=len(game.seats) - n_fields):
        heads = set()
        for fields in itertools.product([False, True], repeat=n_fields):
            prompt = renderer.render(game.coalition([*history, *fields]), ITEM)
            heads.add(prompt.text[: min(span.start for span in prompt.spans if span.kind == "candidate")])
        assert len(heads) == 1


def test_an_empty_history_and_an_unknown_user(recommender):
    result = explain(recommender, SPLIT.dataset, Query("nobody"), ITEM)
    kinds = {player.kind for player in result.players}
    assert kinds <= {"candidate"}
    assert bool(kinds) == recommender.capabilities.text
    assert explanation_json(result, SPLIT.dataset)["sentence"]
