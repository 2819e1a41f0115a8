"""Each policy on lists small enough to work out by hand, and laws that hold for any scores."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.policy_cases import A, B, C, D, E, F, apply, candidates, chain, features, listed, query

from llmrec_core.data import Dataset
from llmrec_core.data.item_features import kl_divergence
from llmrec_core.errors import InputError
from llmrec_core.policies import changes_of, check_data
from llmrec_core.policies.target import smallest
from llmrec_core.specs import parse_policies

FALLING = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
SCORES = st.lists(st.lists(st.integers(-20, 20), min_size=6, max_size=6), min_size=1, max_size=5)


# ---------------------------------------------------------------------------------------------------- novelty


def test_novelty_adds_bits_to_standardised_scores():
    # Scores 6..1 have mean 3.5 and deviation 1.708: standardised +-1.464, +-.878, +-.293. Surprise: 1 2 3 4 4 4.
    # At .5: 1.964 1.878 1.793 1.707 1.122 .536; at .7: 2.164 2.278 2.393 2.507 1.922 1.336.
    assert listed(apply(["novelty:strength=0.5"], [FALLING], 2)) == ["ab"]
    assert listed(apply(["novelty:strength=0.7"], [FALLING], 2)) == ["cd"]
    # Inside the list the recommender's order stays, and so do the scores.
    final = apply(["novelty:strength=0.7"], [FALLING], 3).final
    assert final.items.tolist() == [[B, C, D]]
    assert final.scores.tolist() == [[5.0, 4.0, 3.0]]


def test_novelty_chooses_from_the_depth_alone():
    assert listed(apply(["novelty:strength=50"], [FALLING], 2)) == ["de"]
    assert listed(apply(["novelty:strength=50"], [FALLING], 2, depth=3)) == ["bc"]
    # A list is never cut by a depth below its length.
    assert listed(apply(["novelty:strength=50"], [FALLING], 5, depth=3)) == ["abcde"]


@given(SCORES, st.integers(1, 6), st.floats(0, 5), st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_more_strength_never_lowers_novelty(scores, k, one, other):
    weak, strong = sorted((one, other))
    surprise = features().surprise
    sums = [
        surprise[apply([{"policy": "novelty", "strength": s}], scores, k).final.items].sum(axis=1)
        for s in (weak, strong)
    ]
    assert (sums[1] >= sums[0] - 1e-9).all()


def test_the_smallest_strength_is_found():
    assert smallest(lambda value: value >= 0.37, 100) == pytest.approx(0.37, rel=2e-3)
    assert smallest(lambda value: value >= 63, 100) == pytest.approx(63, rel=2e-3)
    assert smallest(lambda value: True, 100) == 0.0
    assert smallest(lambda value: False, 100) is None


# ---------------------------------------------------------------------------------------------------- diversity


def test_diversity_by_categories_by_hand():
    # Scaled scores 1 .8 .6 .4 .2 0. After a (Drama): b is 1 alike, c .707, d, e and f 0.
    # s = .3: b .56 - .3 = .26, c .42 - .21 = .21, d .28, e .14: d comes in. Then c is .707 like a, b 1: c .21, b .26.
    assert listed(apply(["diversity:strength=0.3"], [FALLING], 2)) == ["ad"]
    assert listed(apply(["diversity:strength=0.3"], [FALLING], 3)) == ["abd"]
    # With likeness alone: a, then the first that shares nothing with it, and so on.
    assert listed(apply(["diversity:strength=1"], [FALLING], 4)) == ["adef"]


def test_items_without_category_are_alike_to_one_another_only():
    made = chain("diversity:strength=1")
    space = made.item_space.toarray()
    assert space[F] @ space[F] == 1.0
    assert (space[:F] @ space[F] == 0).all()


def test_diversity_by_vectors():
    vectors = np.array([[1, 0], [9, 0], [0, 1], [0, 0], [np.nan, 0], [-1, 0]], np.float32)
    lists = apply(["diversity:strength=1,similarity=vectors"], [FALLING], 3, vectors=vectors)
    # b points where a does; c does not; d has no vector; f points the other way.
    assert listed(lists) == ["acd"]
    with pytest.raises(InputError, match="no item vectors"):
        chain("diversity:similarity=vectors")
    both = chain("diversity:similarity=both", vectors=vectors).item_space
    # a and b: the same category and the same direction; a and c: categories .707 alike, vectors not at all.
    assert both[A] @ both[B] == pytest.approx(1.0)
    assert both[A] @ both[C] == pytest.approx(0.5 / np.sqrt(2))


def test_what_the_data_lacks_is_known_before_anything_is_trained():
    bare = Dataset.from_frames("bare", pd.DataFrame({"user_id": ["u"], "item_id": ["a"]}))
    for line in ("calibration", "category-cap", "diversity:similarity=categories", "diversity:similarity=both"):
        with pytest.raises(InputError, match="no categories"):
            check_data(parse_policies([line]), bare)
    for line in ("category-cap:field=colour", "blocklist:rules=[colour=red]"):
        with pytest.raises(InputError, match="no field 'colour'"):
            check_data(parse_policies([line]), bare)
    check_data(parse_policies(["diversity", "novelty:strength=1", "exposure", "blocklist:items=[zz]"]), bare)


@given(SCORES, st.integers(1, 3), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_greedy_diversity_is_best_where_it_must_be(scores, k, strength):
    """For one item it is the best of all; each further one is the best addition to those before."""
    made = chain({"policy": "diversity", "strength": strength})
    found = candidates(made, scores)
    space = made.item_space.toarray()
    for row in range(len(scores)):
        order, values = found.items[row], found.scores[row].astype(float)
        spread = values.max() - values.min()
        scaled = (values - values.min()) / spread if spread else values * 0
        chosen: list[int] = []
        for _ in range(k):
            worth = [
                -np.inf
                if p in chosen
                else (1 - strength) * scaled[p]
                - strength * max([space[order[p]] @ space[order[q]] for q in chosen], default=0.0)
                for p in range(6)
            ]
            best = max(worth)
            chosen.append(next(p for p in range(6) if worth[p] >= best - 1e-12))
        assert made.apply(found, k).final.items[row].tolist() == order[sorted(chosen)].tolist()


# ---------------------------------------------------------------------------------------------------- calibration


def test_calibration_follows_the_history():
    # History: d (Comedy) and e (Horror), so half and half. Scores alone give a and b; with strength 1 the first is
    # the better of d and e, the second the other one.
    assert listed(apply(["calibration:strength=1"], [FALLING], 2, ["de"])) == ["de"]
    assert listed(apply(["calibration:strength=0.5"], [FALLING], 2, ["aa"])) == ["ab"]


@pytest.mark.parametrize("history", ["", "f", "unknown"])
def test_nothing_to_calibrate_to_changes_nothing(history):
    assert listed(apply(["calibration:strength=1"], [FALLING], 3, [history])) == ["abc"]


@given(SCORES, st.floats(0, 1), st.text("abcdef", max_size=4))
@settings(max_examples=40, deadline=None)
def test_greedy_calibration_equals_brute_force_for_one_item(scores, strength, history):
    made = chain({"policy": "calibration", "strength": strength})
    found = candidates(made, scores, [history] * len(scores))
    shares = made.features.categories.shares.toarray()
    for row in range(len(scores)):
        order, values = found.items[row], found.scores[row].astype(float)
        spread = values.max() - values.min()
        scaled = (values - values.min()) / spread if spread else values * 0
        weight = strength if found.wanted[row].any() else 0.0
        worth = (1 - strength) * scaled - weight * kl_divergence(found.wanted[row], shares[order])
        assert made.apply(found, 1).final.items[row, 0] in order[worth >= worth.max() - 1e-9]


def test_calibration_needs_categories():
    made = chain()
    bare = type(made.features)(made.features.item_users, 16, type(made.features.categories).of(made.dataset, []))
    with pytest.raises(InputError, match="no categories"):
        type(made)(chain("calibration").policies, 10, made.dataset, bare)


# ---------------------------------------------------------------------------------------------------- caps


def test_category_cap_by_hand():
    # Drama: a, b, c. At most one: a, then neither b nor c, then d, e, f.
    assert listed(apply(["category-cap:max_items=1"], [FALLING], 4)) == ["adef"]
    assert listed(apply(["category-cap:max_items=2"], [FALLING], 4)) == ["abde"]
    # b and c are both of 1991.
    assert listed(apply(["category-cap:max_items=1,field=year"], [FALLING], 4)) == ["abde"]
    assert listed(apply(["category-cap:max_items=1", "category-cap:max_items=1,field=year"], [FALLING], 9)) == ["adef"]
    # Fewer are left than asked for.
    assert listed(apply(["category-cap:max_items=1", "blocklist:items=[f]"], [FALLING], 6)) == ["ade"]


def test_exposure_cap_by_hand():
    # Four lists, at most half of them: a stands first in all. It stays where it is highest, ties by line.
    scores = [FALLING, FALLING, [5, 6, 4, 3, 2, 1], FALLING]
    assert listed(apply(["exposure:max_share=0.5"], scores, 1)) == ["a", "a", "b", "b"]
    # One list alone is never capped.
    assert listed(apply(["exposure:max_share=0.01"], [FALLING], 6)) == ["abcdef"]


@given(SCORES, st.integers(1, 6), st.floats(0.01, 1), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_caps_hold_on_the_finished_lists_wherever_they_are_written(scores, k, share, most):
    policies = [
        {"policy": "exposure", "max_share": share},
        {"policy": "category-cap", "max_items": most},
        {"policy": "diversity", "strength": 0.6},
        {"policy": "novelty", "strength": 1},
    ]
    applied = apply(policies, scores, k)
    items = applied.final.items
    times = np.bincount(items[items >= 0], minlength=6)
    assert times.max(initial=0) <= max(1, int(share * len(scores) + 1e-9))
    for row in items:
        shown = row[row >= 0]
        for group in ({A, B, C}, {C, D}, {E}):
            assert sum(int(i) in group for i in shown) <= most
        assert len(set(shown.tolist())) == len(shown)


@given(SCORES, st.integers(1, 6), st.floats(0.1, 0.9))
@settings(max_examples=40, deadline=None)
def test_no_list_envies_another_under_the_exposure_cap(scores, k, share):
    """Stable: whoever lacks an item that stands higher for them than what they got finds it kept by lists that rank
    it at least as high."""
    made = chain({"policy": "exposure", "max_share": share})
    found = candidates(made, scores)
    lists = made.apply(found, k).final.items
    place = np.argsort(found.items, axis=1)
    cap = max(1, int(share * len(scores) + 1e-9))
    for user, item in itertools.product(range(len(scores)), range(6)):
        own = lists[user][lists[user] >= 0]
        missed = item not in own and (len(own) < k or place[user, item] < place[user, own].max())
        if missed:
            holders = [v for v in range(len(scores)) if item in lists[v]]
            assert len(holders) == cap
            assert max(place[v, item] for v in holders) <= place[user, item]


# ---------------------------------------------------------------------------------------------------- blocklists


def test_blocked_items_are_gone_and_replaced_from_below():
    rules = "blocklist:items=[a, nowhere],rules=[category=comedy, year=1991],reason=taste"
    made = chain(rules, depth=2)
    assert {made.dataset.item_ids[i]: why for i, (_, why) in made.blocked.items()} == {
        "a": "listed",
        "b": "year=1991",
        "c": "category=comedy",
        "d": "category=comedy",
    }
    assert {code for code, _ in made.blocked.values()} == {"taste"}
    assert any("nowhere" in note for note in made.notes)
    assert listed(made.apply(candidates(made, [FALLING]), 2)) == ["ef"]
    with pytest.raises(InputError, match="no field"):
        chain("blocklist:rules=[colour=red]")


@given(SCORES, st.integers(1, 6), st.sets(st.sampled_from("abcdef")))
@settings(max_examples=40, deadline=None)
def test_blocked_items_never_appear(scores, k, blocked):
    policies = [
        {"policy": "novelty", "strength": 2},
        {"policy": "diversity", "strength": 0.5},
        {"policy": "blocklist", "items": sorted(blocked)},
        {"policy": "calibration", "strength": 0.5},
    ]
    lists = listed(apply(policies, scores, k, ["ad"] * len(scores)))
    assert not blocked & set("".join(lists))
    assert all(len(shown) == min(k, 6 - len(blocked)) for shown in lists)


# ---------------------------------------------------------------------------------------------------- the chain


@given(SCORES, st.integers(1, 8), st.sampled_from(["novelty", "diversity", "calibration"]))
@settings(max_examples=60, deadline=None)
def test_strength_zero_changes_nothing(scores, k, name):
    applied = apply([{"policy": name, "strength": 0}], scores, k, ["ad"] * len(scores))
    assert np.array_equal(applied.final.items, applied.without.items)
    assert np.array_equal(applied.final.scores, applied.without.scores)


def test_blocklists_act_first_and_caps_last():
    names = [p.policy for p in chain("exposure", "novelty:strength=1", "blocklist:items=[a]", "diversity").policies]
    assert names == ["blocklist", "novelty", "diversity", "exposure"]


def test_a_second_choice_builds_on_the_first():
    # Novelty alone brings in d for a; diversity then sees b, c, d as the best three.
    both = apply(["novelty:strength=0.7", "diversity:strength=0.9"], [FALLING], 2)
    assert ["".join("abcdef"[i] for i in row) for row in both.stages[0].items] == ["cd"]
    assert listed(both) == ["ce"]


def test_the_finished_list_is_in_the_order_of_the_recommender():
    # Novelty puts d and e in front of a and b; calibration keeps d and lets a in again, which was ranked above it.
    policies = ["blocklist:items=[c, f]", "novelty:strength=50", "calibration:strength=0.9"]
    applied = apply(policies, [FALLING], 2, ["ad"])
    assert applied.stages[1].items.tolist() == [[D, E]]
    assert listed(applied) == ["ad"]
    assert applied.final.scores.tolist() == [[6.0, 3.0]]


def test_padding_and_empty_lists():
    minus = -np.inf
    scores = [[1, minus, minus, 2, minus, minus], [minus] * 6]
    for line in ("novelty:strength=1", "diversity:strength=0.5", "calibration", "category-cap", "exposure"):
        applied = apply([line], scores, 4, ["ad", "ad"])
        assert listed(applied) == ["da", ""], line
        assert np.isnan(applied.final.scores[1]).all()


def test_equal_scores_keep_their_order():
    for line in ("novelty:strength=0", "diversity:strength=0.5", "calibration:strength=0"):
        assert listed(apply([line], [[1.0] * 6], 1)) == ["a"], line


# ---------------------------------------------------------------------------------------------------- reasons


def reasons(policies, k, history="", scores=(FALLING,)):
    made = chain(*policies)
    found = candidates(made, scores, [history] * len(scores))
    applied = made.apply(found, k)
    return {
        ("in " if c.entered else "out ") + str(made.dataset.item_ids[c.item_idx]): (c.code, c.text)
        for c in changes_of(made, found, applied, 0)
    }


def test_every_change_has_its_reason():
    assert reasons(["novelty:strength=0.5"], 2) == {}
    found = reasons(["novelty:strength=0.7"], 2)
    assert found["out a"] == (
        "novelty",
        "known to 8 of 16 people; half of the list before was known to more than 6",
    )
    assert set(found) == {"out a", "out b", "in c", "in d"}
    assert reasons(["diversity:strength=0.3"], 2)["out b"] == ("diversity", "100% like Film a, which stays in the list")
    assert "at most 0% like" in reasons(["diversity:strength=0.3"], 2)["in d"][1]
    found = reasons(["calibration:strength=1"], 2, "de")
    assert found["out a"][1] == "Drama: 0% of the history, 100% of the list before"
    assert found["in e"][1] == "Horror: 50% of the history, 0% of the list before"
    found = reasons(["category-cap:max_items=1"], 2)
    assert found["out b"] == ("category-cap", "the list holds 1 of Drama already")
    assert found["in d"][1] == "takes a place that became free"
    assert reasons(["blocklist:items=[a],reason=sold out"], 1)["out a"] == ("sold out", "blocked (sold out): listed")
    scores = [[5, 6, 4, 3, 2, 1], FALLING, FALLING]
    found = reasons(["exposure:max_share=0.4"], 2, scores=scores)
    # The first list keeps b, which stands first there alone; a stays in the second.
    assert found["out a"] == ("exposure", "stands in 1 of 3 lists already, where it is ranked higher")


def test_out_and_in_again_is_no_change():
    # Novelty takes a and b out for c and d; the blocklist has already taken c, so only d comes in.
    found = reasons(["blocklist:items=[c]", "novelty:strength=0.7"], 2)
    assert "in c" not in found
    assert found["in d"][0] == "novelty"


def test_histories_of_strangers_have_no_mix():
    made = chain()
    mix = made.wanted([query("ab"), query(""), query("c"), query("f")])
    # Categories by frequency: Drama (3), Comedy (2), Horror (1).
    assert made.features.categories.names == ("Drama", "Comedy", "Horror")
    assert mix.tolist() == [[1, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]
    assert made.wanted([]).shape == (0, 3)
