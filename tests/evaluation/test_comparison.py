"""Who gained and who lost, by hand."""

import pandas as pd
import pytest

from llmrec_core.errors import InputError
from llmrec_core.evaluation.comparison import compare_users


def _values(metric: str, **values: float) -> pd.DataFrame:
    return pd.DataFrame({"user_id": list(values), "metric": metric, "value": list(values.values())})


def test_only_common_users_count_and_gainers_come_first():
    left = _values("ndcg@10", a=1.0, b=0.0, c=0.5, x=1.0)
    right = _values("ndcg@10", c=0.5, b=0.5, a=0.25, y=1.0)
    found = compare_users(left, right, "ndcg@10")
    assert list(found.users["user_id"]) == ["a", "c", "b"]
    assert found.difference.mean == pytest.approx((0.75 + 0.0 - 0.5) / 3)
    assert found.difference.n == 3
    assert (found.n_gained, found.n_lost, found.n_equal) == (1, 1, 1)
    assert found.difference.ci_low <= found.difference.mean <= found.difference.ci_high


def test_for_errors_less_is_a_gain():
    found = compare_users(_values("rmse", a=0.5, b=2.0), _values("rmse", a=1.0, b=1.0), "rmse")
    assert list(found.users["user_id"]) == ["a", "b"]
    assert (found.n_gained, found.n_lost) == (1, 1)


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no user"):
        compare_users(_values("auc", a=1.0), _values("auc", b=1.0), "auc")
