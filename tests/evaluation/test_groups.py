"""Small groups of users keep their values to themselves, and nobody can work them out from the rest."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.errors import InputError
from llmrec_core.evaluation import hidden_groups, slice_means, suppress_small_groups


@pytest.mark.parametrize(
    ("counts", "k", "hidden"),
    [
        ([10, 20, 30], 5, [False, False, False]),
        # One below k: the next smallest goes with it, else the total gives it away.
        ([3, 20, 10], 5, [True, False, True]),
        # Two below k that together are k or more need no third.
        ([3, 4, 30], 5, [True, True, False]),
        # Two that together are still fewer than k do.
        ([1, 2, 30, 9], 5, [True, True, False, True]),
        ([5, 5], 5, [False, False]),
        ([4, 50], 5, [True, True]),
        ([4], 5, [True]),
        ([0, 9, 9], 5, [True, True, False]),
        ([7, 7, 2], 5, [True, False, True]),
        ([1, 2], 1, [False, False]),
        ([], 5, []),
    ],
)
def test_groups_below_k_and_their_cover_are_hidden(counts, k, hidden):
    assert hidden_groups(counts, k).tolist() == hidden


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 15))
def test_what_is_hidden_cannot_be_worked_out(counts, k):
    hidden = hidden_groups(counts, k)
    sizes = np.array(counts, int)
    assert hidden[sizes < k].all()
    if not (sizes < k).any():
        assert not hidden.any()
    elif not hidden.all():
        # The total minus what is shown is never one group, nor fewer than k people.
        assert hidden.sum() >= 2
        assert sizes[hidden].sum() >= k
        # Not more than needed: without the largest of the covering ones the rule would be broken.
        cover = sizes[hidden & (sizes >= k)]
        if len(cover):
            rest = sorted(sizes[hidden])[:-1]
            assert len(rest) < 2 or sum(rest) < k


def test_values_and_counts_of_hidden_groups_are_gone_from_the_frame():
    frame = pd.DataFrame({"group": ["a", "b", "c"], "n": [3, 20, 10], "mean": [0.9, 0.5, 0.4], "who": ["x", "y", "z"]})
    shown = suppress_small_groups(frame, "n", 5, labels=["group"])
    assert shown["group"].tolist() == ["a", "b", "c"]
    assert shown["hidden"].tolist() == [True, False, True]
    assert shown.loc[shown["hidden"], ["n", "mean", "who"]].isna().all(axis=None)
    assert shown.loc[1, ["n", "mean", "who"]].tolist() == [20, 0.5, "y"]
    assert frame["n"].tolist() == [3, 20, 10]
    with pytest.raises(InputError, match="no column"):
        suppress_small_groups(frame, "users", 5)
    with pytest.raises(InputError, match="at least 1"):
        suppress_small_groups(frame, "n", 0)


def test_means_by_group_are_those_of_its_users_with_an_interval():
    rng = np.random.default_rng(1)
    users = [f"u{i}" for i in range(40)]
    values = pd.DataFrame({"user_id": users, "value": rng.random(40)})
    values.loc[0, "value"] = np.nan
    group_of = {user: "old" if i < 20 else "young" if i < 37 else "none" for i, user in enumerate(users)}
    del group_of["u5"]
    found = slice_means(values, group_of, k=2, n_resamples=200).set_index("group")
    assert found.index.tolist() == ["none", "old", "young"]
    assert found.loc["old", "n"] == 18
    expected = values["value"][[i for i in range(1, 20) if i != 5]].mean()
    assert found.loc["old", "mean"] == pytest.approx(expected)
    assert found.loc["old", "ci_low"] < expected < found.loc["old", "ci_high"]
    hidden = slice_means(values, group_of, k=5, n_resamples=200).set_index("group")["hidden"]
    # Three people in "none": the next smallest, "young" with 17, is hidden along.
    assert hidden.to_dict() == {"none": True, "old": False, "young": True}
    with pytest.raises(InputError, match="no user"):
        slice_means(values, {}, k=5)
