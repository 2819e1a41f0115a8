"""Exact Shapley values of a score over players, computed by shap over all 2**n coalitions.

The value of a coalition is the recommender's own score of the query with every other player taken away. Each
coalition is scored once, and shap's exact explainer weighs the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import Recommender
from llmrec_core.errors import LLMRecError
from llmrec_core.explanation.players import Game

#: How far base + values may be from the score, relative to max(1, |score|): what float32 scores leave room for.
ADDITIVITY_TOLERANCE = 1e-4
#: How far two scorings of one query may be apart, relative to max(1, |score|): what bfloat16 (8 bits) leaves room for
#: when batches differ. A model that drops out or draws is further off.
REPEAT_TOLERANCE = 0.02
#: Coalitions handed to the recommender at once; it batches them further by itself.
_BLOCK = 4096

BoolArray = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShapleyResult:
    """``values`` [n_players], in units of the score; ``n_scored``: distinct coalitions scored; ``score_noise``: how
    far a second scoring of the full coalition was off."""

    values: Values
    base_value: float
    target: float
    additivity_gap: float
    n_scored: int
    score_noise: float


def exact_shapley(value: Callable[[BoolArray], Values], n_players: int) -> tuple[Values, float]:
    """Shapley values [n_players] and the value of the empty coalition, by enumeration.

    phi_i = sum over S without i of |S|! (n-|S|-1)! / n! * (v(S + i) - v(S))  (Shapley 1953), as
    ``shap.explainers.ExactExplainer`` computes it over binary player masks against a zero background.

    Args:
        value: masks [n_coalitions, n_players] -> values [n_coalitions]; called once with all 2**n_players masks.
    """
    if n_players == 0:
        return np.zeros(0), float(value(np.zeros((1, 0), dtype=bool))[0])
    exact_explainer = _exact_explainer()

    def model(rows: npt.NDArray[np.float64]) -> Values:
        return value(rows > 0.5)

    n_coalitions = 2**n_players
    explainer = exact_explainer(model, np.zeros((1, n_players)))
    result = explainer(np.ones((1, n_players)), max_evals=n_coalitions, batch_size=n_coalitions, silent=True)
    return np.asarray(result.values[0], dtype=np.float64), float(np.ravel(result.base_values)[0])


def _exact_explainer() -> Any:
    """shap's class, imported late (seconds) and with its loops left uncompiled.

    shap compiles them anew in every process, which takes longer (some 7 s) than they ever run here: at 2**12
    coalitions they take 0.1 s as plain Python.
    """
    import numba

    config: Any = numba.config
    before, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        from shap.explainers import ExactExplainer
    finally:
        config.DISABLE_JIT = before
    return ExactExplainer


def shapley_values(recommender: Recommender, game: Game, task: str | None = None) -> ShapleyResult:
    """Why ``game.item_idx`` got its score for ``game.query``.

    Raises:
        LLMRecError: a score is not finite; base + values miss the score by more than
            :data:`ADDITIVITY_TOLERANCE`; or the recommender does not give the same score twice
            (:data:`REPEAT_TOLERANCE`), so that no attribution of it can be trusted.
    """
    scored: dict[str, float] = {}

    def value(masks: BoolArray) -> Values:
        scores = score_coalitions(recommender, game, masks, task)
        scored["n"] = len(masks)
        scored["target"] = float(scores[masks.all(axis=1)][0])
        return scores

    values, base_value = exact_shapley(value, len(game.seats))
    target = scored["target"]
    where = f"explanation of item number {game.item_idx}"
    gap = abs(base_value + float(values.sum()) - target)
    if not gap <= ADDITIVITY_TOLERANCE * max(1.0, abs(target)):
        raise LLMRecError(
            f"the parts of this explanation miss the score by {gap:.2g}.",
            where=where,
            fix="This is a fault of the explainer; please report it with the run's spec.",
        )
    # Scored once more, alone: within one batch everything may agree by accident.
    again = score_coalitions(recommender, game, np.ones((1, len(game.seats)), dtype=bool), task)
    noise = abs(float(again[0]) - target)
    if noise > REPEAT_TOLERANCE * max(1.0, abs(target)):
        raise LLMRecError(
            f"the recommender scored the same query {target:.4g} and then {float(again[0]):.4g}.",
            where=where,
            fix="Scores that do not repeat cannot be explained; train with precision fp32, or explain another run.",
        )
    return ShapleyResult(values, base_value, target, gap, int(scored["n"]), noise)


def score_coalitions(recommender: Recommender, game: Game, masks: BoolArray, task: str | None) -> Values:
    """Scores of coalitions [n], each row of ``masks`` [n, n_seats] a coalition.

    Raises:
        LLMRecError: a score is not finite.
    """
    parts = []
    for start in range(0, len(masks), _BLOCK):
        queries = [game.coalition([bool(m) for m in mask]) for mask in masks[start : start + _BLOCK]]
        candidates = np.full((len(queries), 1), game.item_idx, dtype=np.int64)
        parts.append(recommender.score(queries, candidates, task=task)[:, 0])
    scores = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(scores).all():
        raise LLMRecError(
            "the recommender's score is not a finite number for part of this query.",
            where=f"explanation of item number {game.item_idx}",
            fix="The model may have diverged: look at its loss curve, or explain another run.",
        )
    return scores
