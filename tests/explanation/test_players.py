"""Who plays: the history that was really used, the fields that were really shown, never too many."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from explanation.explanation_doubles import GameRecommender, TextGameRecommender, catalogue, query_of

from llmrec_core.contracts import HistoryItem, Query
from llmrec_core.errors import InputError
from llmrec_core.explanation.players import expand_ref, find_players, seat_of


def _constant(query: Query) -> float:
    return 1.0


def test_plain_recommender_plays_with_its_whole_history():
    game = find_players(GameRecommender(_constant), catalogue(), query_of(3, profile={"age": "24"}), 9)
    assert [(seat.kind, seat.ref, seat.text) for seat in game.seats] == [
        ("history", "2", "Film 2, rated 3"),
        ("history", "1", "Film 1, rated 2"),
        ("history", "0", "Film 0, rated 1"),
    ]
    assert game.prompt is None


def test_oldest_items_become_one_group():
    game = find_players(GameRecommender(_constant), catalogue(), query_of(20), 25, max_players=12)
    assert len(game.seats) == 12
    assert game.seats[0].ref == "19"
    assert (game.seats[-1].kind, game.seats[-1].ref) == ("history-group", "0-8")
    assert game.seats[-1].text == "9 older items"
    without_group = game.coalition([True] * 11 + [False])
    assert [item.item_id for item in without_group.history] == [f"i{i}" for i in range(9, 20)]


def test_a_decoder_is_asked_less_often():
    class Dear(GameRecommender):
        @property
        def capabilities(self):
            return replace(super().capabilities, decoder=True)

    assert len(find_players(GameRecommender(_constant), catalogue(), query_of(20), 25).seats) == 12
    assert len(find_players(Dear(_constant), catalogue(), query_of(20), 25).seats) == 8
    assert len(find_players(Dear(_constant), catalogue(), query_of(20), 25, max_players=12).seats) == 12


def test_text_recommender_plays_with_what_its_prompt_shows():
    dataset = catalogue()
    recommender = TextGameRecommender(lambda query: float(len(query.history)), dataset, n_shown=3)
    query = query_of(8, profile={"age": "24"}, context={"scene": "evening"})
    game = find_players(recommender, dataset, query, 10)
    assert [(seat.kind, seat.ref, seat.text) for seat in game.seats] == [
        ("history", "7", "Film 7, rated 3"),
        ("history", "6", "Film 6, rated 2"),
        ("history", "5", "Film 5, rated 1"),
        ("profile", "age", "age: 24"),
        ("context", "scene", "scene: evening"),
        ("candidate", "title", "title: Film 10"),
        ("candidate", "genre", "genre: genre 1"),
    ]
    # Dropped items must not slip in when newer ones are taken away.
    only_newest = game.coalition([True, False, False, False, False, False, False])
    assert only_newest.history == (query.history[7],)
    assert (dict(only_newest.profile), dict(only_newest.context)) == ({"age": ""}, {"scene": ""})
    assert only_newest.hidden_fields == {"title", "genre"}
    full = game.coalition([True] * 7)
    assert full == query.with_history(query.history[5:])


def test_dropped_items_play_as_a_group_where_the_score_hangs_on_them():
    dataset = catalogue()
    recommender = TextGameRecommender(
        lambda query: float(len(query.history)), dataset, n_shown=3, reads_prompt_only=False
    )
    query = query_of(8)
    game = find_players(recommender, dataset, query, 10)
    group = next(seat for seat in game.seats if seat.kind == "history-group")
    assert (group.ref, group.text) == ("0-4", "5 older items")
    assert game.query == query
    crowded = find_players(recommender, dataset, query, 10, max_players=5)
    assert [seat.ref for seat in crowded.seats] == ["7", "6", "0-5", "title", "genre"]


def test_fields_are_merged_when_there_are_too_many():
    dataset = catalogue()
    recommender = TextGameRecommender(_constant, dataset, n_shown=3)
    query = query_of(3, profile={f"p{i}": str(i) for i in range(9)}, context={"scene": "evening", "device": "tv"})
    game = find_players(recommender, dataset, query, 10, max_players=6)
    assert [(seat.kind, seat.ref) for seat in game.seats] == [
        ("history-group", "0-2"),
        ("profile", "p0,p1,p2,p3,p4,p5,p6,p7,p8"),
        ("context", "scene"),
        ("context", "device"),
        ("candidate", "title"),
        ("candidate", "genre"),
    ]
    assert set(game.coalition([True, False, True, True, True, True]).profile.values()) == {""}
    tightest = find_players(recommender, dataset, query, 10, max_players=5)
    assert [seat.ref for seat in tightest.seats][2] == "scene,device"


def test_fields_hidden_from_the_start_do_not_play():
    dataset = catalogue()
    recommender = TextGameRecommender(_constant, dataset, n_shown=1)
    game = find_players(recommender, dataset, query_of(1, hidden_fields=frozenset({"title"})), 10)
    assert [seat.ref for seat in game.seats] == ["0", "genre"]
    assert game.coalition([True, False]).hidden_fields == {"title", "genre"}


def test_every_coalition_is_a_different_query():
    dataset = catalogue()
    recommender = TextGameRecommender(_constant, dataset, n_shown=3)
    game = find_players(recommender, dataset, query_of(3, profile={"age": "24"}), 10)
    seen = []
    for mask in itertools.product([False, True], repeat=len(game.seats)):
        query = game.coalition(mask)
        assert query not in seen
        seen.append(query)


def test_unknown_history_items_keep_their_id_as_name():
    query = Query("u", (HistoryItem("<b>gone</b>"),))
    game = find_players(GameRecommender(_constant), catalogue(), query, 0)
    assert game.seats[0].text == "<b>gone</b>"


@pytest.mark.parametrize("max_players", [4, 15])
def test_max_players_has_limits(max_players):
    with pytest.raises(InputError, match="5 to 14"):
        find_players(GameRecommender(_constant), catalogue(), query_of(1), 0, max_players=max_players)


@pytest.mark.parametrize("item_idx", [-1, 30])
def test_items_outside_the_catalogue_are_refused(item_idx):
    with pytest.raises(InputError, match="outside the catalogue"):
        find_players(GameRecommender(_constant), catalogue(), query_of(1), item_idx)


def test_refs_expand_and_find_their_seat():
    assert expand_ref("0-2,5") == [0, 1, 2, 5]
    game = find_players(GameRecommender(_constant), catalogue(), query_of(20), 25, max_players=5)
    assert game.seats[-1].ref == "0-15"
    assert seat_of("history", "7", game.seats) == 4
    assert seat_of("history", "19", game.seats) == 0
    assert seat_of("profile", "19", game.seats) == -1
