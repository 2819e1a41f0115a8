"""What every spec is made of: the frozen base, names of tasks and metrics, and text that identifies a spec."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Task = Literal["click", "rating", "rank", "similarity"]
Part = Literal["train", "valid", "test"]

#: Metric names without their cut-off; those in RANKING_METRICS are always written ``name@k``.
RANKING_METRICS = (
    *("ndcg", "hit_rate", "precision", "recall", "map", "mrr", "coverage", "novelty"),
    *("serendipity", "diversity", "arp", "aplt", "gini", "miscalibration"),
)
CLICK_METRICS = ("auc", "gauc")
RATING_METRICS = ("rmse", "mae")
#: Metrics (without cut-off) for which a smaller value is better.
LOWER_IS_BETTER = frozenset((*RATING_METRICS, "miscalibration"))


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def canonical_json(value: Any) -> str:
    """Compact JSON with sorted keys; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_metric(name: str, ks: tuple[int, ...] | None) -> None:
    """Accepts ``auc`` or ``ndcg@10``; with ``ks`` the cut-off must be one of them.

    Raises:
        ValueError: the name is unknown, or its cut-off is missing or not computed.
    """
    base, at, cut = name.partition("@")
    if base in CLICK_METRICS + RATING_METRICS and not at:
        return
    if base in RANKING_METRICS and cut.isdigit() and int(cut) >= 1:
        if ks is not None and int(cut) not in ks:
            raise ValueError(f"metric {name!r}: its cut-off is not in ks {list(ks)}")
        return
    known = [f"{m}@k" for m in RANKING_METRICS] + list(CLICK_METRICS + RATING_METRICS)
    raise ValueError(f"unknown metric {name!r}; known are {', '.join(known)}")
