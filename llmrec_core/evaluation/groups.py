"""Slices by group of users, and the rule that keeps small groups to themselves.

A mean over two people tells nearly what each of them did. So a group with fewer than k users is shown without values,
and so that its value cannot be worked out as the total minus the rest, further groups are hidden until those hidden
are at least two and hold k users together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmrec_core.errors import InputError
from llmrec_core.evaluation.intervals import MeanStatistic, bootstrap, percentile_interval

#: Column that says of each row whether its values were taken away.
HIDDEN = "hidden"


def hidden_groups(counts: npt.ArrayLike, k: int) -> npt.NDArray[np.bool_]:
    """Which groups must not be shown with values.

    Args:
        counts: users of each group, [n_groups]; together they are everybody, whose total is known.
        k: the smallest group that is shown.

    Returns:
        bool [n_groups]: those below k, and then the next smallest (the first of equal ones) until either none is
        hidden, or at least two are and they hold k users together. A single group below k stands alone.

    Raises:
        InputError: k is below 1, or a count is negative or no number.
    """
    users = np.asarray(counts, np.float64)
    if k < 1:
        raise InputError(f"the smallest group must be at least 1, not {k}.", where="min_group_users")
    if np.isnan(users).any() or (users < 0).any():
        raise InputError("group sizes must be numbers of users.", where="count", fix="Give 0 for an empty group.")
    hidden = users < k
    for group in np.argsort(users, kind="stable"):
        if not hidden.any() or (hidden.sum() >= 2 and users[hidden].sum() >= k):
            break
        hidden[group] = True
    return hidden


def suppress_small_groups(
    frame: pd.DataFrame, count: str = "n", k: int = 5, *, labels: Sequence[str] | None = None
) -> pd.DataFrame:
    """``frame`` with the values of groups that are too small taken away; the rest as it is.

    Args:
        frame: one row a group; together the rows are everybody.
        count: column with the users of each group.
        k: the smallest group that is shown.
        labels: columns that name the group and stay; None: every column that is not a number.

    Returns:
        A copy with a bool column ``hidden``; where it is True every other column but the labels, the count among
        them, is missing. Show :func:`small_group_words` there.

    Raises:
        InputError: as :func:`hidden_groups`, or there is no such column.
    """
    if count not in frame.columns:
        raise InputError(f"there is no column {count!r} with the users of a group.", where="count")
    hidden = hidden_groups(frame[count].to_numpy(), k)
    if labels is None:
        labels = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c].dtype)]
    shown = frame.copy()
    for column in frame.columns:
        if column in labels:
            continue
        values = shown[column]
        numeric = pd.api.types.is_numeric_dtype(values.dtype)
        shown[column] = (values.astype("float64") if numeric else values.astype(object)).mask(hidden)
    return shown.assign(**{HIDDEN: hidden})


def small_group_words(k: int) -> str:
    """What stands where a group is too small to be shown."""
    return f"fewer than {k} users, or hidden with such a group"


def slice_means(
    values: pd.DataFrame,
    group_of: Mapping[str, str],
    *,
    k: int = 5,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of a per-user metric in each group of users, small groups hidden.

    Args:
        values: columns user_id, value; one row a user. Undefined values (NaN) do not count.
        group_of: user_id -> group; users without one are left out.
        k: the smallest group that is shown.
        n_resamples, confidence, seed: of the bootstrap over the users of each group.

    Returns:
        Columns group, n, mean, ci_low, ci_high, hidden; groups by name.

    Raises:
        InputError: no user has a value and a group.
    """
    known = values.dropna(subset=["value"])
    known = known.assign(group=known["user_id"].astype(str).map(dict(group_of))).dropna(subset=["group"])
    if known.empty:
        raise InputError("no user has a value and a group.", where="groups", fix="Choose another metric or grouping.")
    rows = []
    for name, part in known.sort_values("user_id").groupby("group", sort=True):
        statistic = MeanStatistic(part["value"].to_numpy(np.float64))
        drawn = bootstrap({"mean": statistic}, len(part), n_resamples, seed)["mean"]
        low, high = percentile_interval(drawn, confidence)
        rows.append({"group": str(name), "n": len(part), "mean": statistic.point, "ci_low": low, "ci_high": high})
    return suppress_small_groups(pd.DataFrame(rows), "n", k, labels=["group"])
