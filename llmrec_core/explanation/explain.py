"""One question, one answer: why this item for this user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from llmrec_core.contracts import TITLE, Explanation, Player, Query, Recommender
from llmrec_core.errors import InputError
from llmrec_core.explanation.attention import attention_shares
from llmrec_core.explanation.players import find_players, seat_of
from llmrec_core.explanation.shapley import shapley_values

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

Method = Literal["shap", "attention"]
METHODS: tuple[str, ...] = get_args(Method)

#: Reasons weaker than this share of the strongest are counted together in the sentence, not named.
_NAMED_SHARE = 0.1


def explain(
    recommender: Recommender,
    dataset: Dataset,
    query: Query,
    item_idx: int,
    method: str = "shap",
    max_players: int | None = None,
    seed: int = 0,
    task: str | None = None,
) -> Explanation:
    """Why ``item_idx`` gets its score for ``query``.

    Args:
        recommender: any fitted recommender; "attention" needs ``capabilities.attention``.
        dataset: the one it was fitted on; gives players their names.
        method: "shap": exact Shapley values, 2**players scorings; "attention": roll-out, one forward pass.
        max_players: 5-14; more players than this are merged (see :func:`find_players`); None: 12, for decoders 8.
        seed: recorded with the explanation; both methods are deterministic and draw nothing.
        task: head to explain; None: the recommender's main one.

    Raises:
        InputError: unknown method or item, ``max_players`` out of range, or no attention to show.
        LLMRecError: scores that are not finite or not repeatable.
    """
    if method not in METHODS:
        raise InputError(
            f"unknown explanation method {method!r}.", where="method", fix=f"Use one of: {', '.join(METHODS)}."
        )
    game = find_players(recommender, dataset, query, item_idx, max_players, task)
    item_id = str(dataset.item_ids[item_idx])
    if method == "attention":
        shown = attention_shares(recommender, game)
        score = recommender.score([query], np.array([[item_idx]], dtype=np.int64), task=task)[0, 0]
        return Explanation(
            user_id=query.user_id,
            item_id=item_id,
            method=method,
            target=float(score),
            base_value=0.0,
            players=tuple(seat.with_value(share) for seat, share in zip(game.seats, shown.shares, strict=True)),
            additivity_gap=shown.outside,
            prompt=shown.prompt,
            budget=1,
            seed=seed,
            token_values=shown.token_values,
        )
    result = shapley_values(recommender, game, task)
    return Explanation(
        user_id=query.user_id,
        item_id=item_id,
        method=method,
        target=result.target,
        base_value=result.base_value,
        players=tuple(seat.with_value(value) for seat, value in zip(game.seats, result.values, strict=True)),
        additivity_gap=result.additivity_gap,
        prompt=game.prompt,
        budget=result.n_scored,
        seed=seed,
        score_noise=result.score_noise,
    )


def explanation_json(explanation: Explanation, dataset: Dataset) -> dict[str, Any]:
    """The explanation as plain JSON data, as ``llmrec explain --json`` prints it.

    The first seven keys are fixed; ``title``, ``sentence``, ``budget``, ``seed``, ``score_noise``, ``prompt`` and
    ``token_values`` come on top. Each span of ``prompt`` names its player by index (None: of no player). Texts are as
    users wrote them: escape before showing.
    """
    prompt = explanation.prompt
    spans = [] if prompt is None else prompt.spans
    owners = [seat_of(span.kind, span.ref, explanation.players) for span in spans]
    title = dataset.item_text(dataset.item_idx(explanation.item_id), TITLE) or explanation.item_id
    return {
        "user_id": explanation.user_id,
        "item_id": explanation.item_id,
        "method": explanation.method,
        "target": explanation.target,
        "base_value": explanation.base_value,
        "players": [
            {"kind": player.kind, "ref": player.ref, "text": player.text, "value": player.value}
            for player in explanation.players
        ],
        "additivity_gap": explanation.additivity_gap,
        "title": title,
        "sentence": sentence(explanation),
        "budget": explanation.budget,
        "seed": explanation.seed,
        "score_noise": explanation.score_noise,
        "prompt": None
        if prompt is None
        else {
            "text": prompt.text,
            "n_tokens": prompt.n_tokens,
            "dropped_history": prompt.dropped_history,
            "spans": [
                {
                    "start": span.start,
                    "end": span.end,
                    "kind": span.kind,
                    "ref": span.ref,
                    "player": None if owner < 0 else owner,
                }
                for span, owner in zip(spans, owners, strict=True)
            ],
        },
        "token_values": [list(token) for token in explanation.token_values],
    }


def sentence(explanation: Explanation) -> str:
    """The explanation in words for somebody who knows no Shapley values; every number is one of its numbers."""
    return _attention_sentence(explanation) if explanation.method == "attention" else _shap_sentence(explanation)


def _shap_sentence(explanation: Explanation) -> str:
    players = sorted(explanation.players, key=lambda player: -abs(player.value))
    if not players:
        return f"Score {_number(explanation.target)}. No history and no fields were used, so there is nothing to name."
    strongest = abs(players[0].value)
    # Below what float32 scores can tell apart there is no reason to name.
    if strongest <= 1e-6 * max(1.0, abs(explanation.target)):
        return f"Score {_number(explanation.target)}. None of the {len(players)} possible reasons moves it."
    named = [player for player in players if abs(player.value) >= _NAMED_SHARE * strongest]
    raised = [player for player in named if player.value > 0][:3]
    lowered = [player for player in named if player.value < 0][:2]
    # What is nothing beside the score is written as nothing.
    base = _number(explanation.base_value if abs(explanation.base_value) > 1e-6 * strongest else 0.0)
    parts = [f"Score {_number(explanation.target)}; with none of the reasons below it would be {base}."]
    if raised:
        parts.append(f"Raised most by {_listed(raised)}.")
    if lowered:
        parts.append(f"Lowered most by {_listed(lowered)}.")
    others = [player for player in players if player not in raised and player not in lowered]
    if others:
        who = "The other reason adds" if len(others) == 1 else f"The other {len(others)} reasons together add"
        parts.append(f"{who} {_signed(sum(player.value for player in others))}.")
    if explanation.score_noise > _NAMED_SHARE * strongest:
        parts.append(f"Differences below {_number(explanation.score_noise)} are rounding.")
    return " ".join(parts)


def _attention_sentence(explanation: Explanation) -> str:
    players = sorted(explanation.players, key=lambda player: -player.value)[:3]
    caveat = "Attention is a view of the model, not a reason: it shows what was read, not what moved the score."
    outside = f"{explanation.additivity_gap:.0%} went to words that belong to no reason."
    if not players or players[0].value <= 0:
        return f"{outside} {caveat}"
    read = _join([f"{_phrase(player)} ({player.value:.0%})" for player in players if player.value > 0])
    return f"The model's attention went most to {read}; {outside} {caveat}"


def _listed(players: list[Player]) -> str:
    return _join([f"{_phrase(player)} ({_signed(player.value)})" for player in players])


def _phrase(player: Player) -> str:
    if player.kind in ("history", "history-group"):
        return f"“{player.text}” in the history"
    if player.kind == "candidate":
        return f"the item's own “{player.text}”"
    return f"“{player.text}” ({player.kind})"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + _number(value)


def _number(value: float) -> str:
    """Three digits with a real minus sign, as people read it."""
    return f"{value:.3g}".replace("-", "−")


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
