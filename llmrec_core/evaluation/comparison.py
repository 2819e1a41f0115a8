"""Two measured models side by side, user by user, from the per-user values that runs keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmrec_core.errors import InputError
from llmrec_core.evaluation.intervals import MeanStatistic, PairedDifference, paired_difference
from llmrec_core.specs import LOWER_IS_BETTER


@dataclass(frozen=True)
class UserComparison:
    """``left`` minus ``right`` on the users that both measured.

    ``users``: columns user_id, left, right, difference; sorted from most gained to most lost.
    ``n_gained``, ``n_lost``: users for whom left is better or worse, whichever way the metric points.
    """

    difference: PairedDifference
    users: pd.DataFrame
    n_gained: int
    n_lost: int
    n_equal: int


def compare_users(
    left: pd.DataFrame, right: pd.DataFrame, metric: str, *, n_resamples: int = 1000, seed: int = 0
) -> UserComparison:
    """Compares per-user values of one metric.

    Args:
        left, right: columns user_id, metric, value: rows of one model each.
        metric: a metric that both have, one value a user.
        n_resamples: bootstrap resamples over users.
        seed: of the bootstrap.

    Raises:
        InputError: no user has a value of this metric in both.
    """
    ours = left.loc[left["metric"] == metric, ["user_id", "value"]].rename(columns={"value": "left"})
    theirs = right.loc[right["metric"] == metric, ["user_id", "value"]].rename(columns={"value": "right"})
    users = ours.merge(theirs, on="user_id", validate="one_to_one").dropna()
    if users.empty:
        raise InputError(
            f"no user has a value of {metric!r} in both.", where="metric", fix="Choose another metric or another run."
        )
    # The order of users must not change the bootstrap's draws.
    users = users.sort_values("user_id", ignore_index=True)
    first, second = users["left"].to_numpy(np.float64), users["right"].to_numpy(np.float64)
    difference = paired_difference(
        MeanStatistic(first), MeanStatistic(second), len(users), n_resamples=n_resamples, seed=seed
    )
    sign = -1.0 if metric.partition("@")[0] in LOWER_IS_BETTER else 1.0
    users["difference"] = first - second
    gain = sign * users["difference"].to_numpy()
    ordered = users.iloc[np.argsort(-gain, kind="stable")].reset_index(drop=True)
    return UserComparison(difference, ordered, int((gain > 0).sum()), int((gain < 0).sum()), int((gain == 0).sum()))
