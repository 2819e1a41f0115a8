"""Ranking policies: what is done to a finished ranking before anybody sees it, and how one is written in a line.

A policy decides who stands in a list; inside the list the recommender's own order stays. Blocklists act first, then
the policies that choose (diversity, novelty, calibration) in their order, and caps last: what rules promise holds for
the finished list, wherever they are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from llmrec_core.errors import SpecError
from llmrec_core.specs.base import Spec


class DiversitySpec(Spec):
    policy: Literal["diversity"] = "diversity"
    strength: float = Field(
        0.3, ge=0, le=1, description="weight of unlikeness beside score (1 - lambda of MMR); 0: no change"
    )
    similarity: Literal["auto", "categories", "vectors", "both"] = Field(
        "auto",
        description="what makes items alike: categories, vectors of the recommender, both; auto: categories if any",
    )


class NoveltySpec(Spec):
    policy: Literal["novelty"] = "novelty"
    strength: float | None = Field(
        None, ge=0, le=100, description="deviations of score that one bit of novelty is worth; empty: found by raise_by"
    )
    raise_by: float | None = Field(
        None, gt=0, le=10, description="the smallest strength that raises novelty by this share on validation users"
    )
    validation_users: int = Field(1000, ge=10, description="validation users on which raise_by is reached")

    @model_validator(mode="after")
    def _says_how_much(self) -> NoveltySpec:
        if self.strength is None and self.raise_by is None:
            raise ValueError("strength: give a strength, or raise_by to have it found")
        return self


class CalibrationSpec(Spec):
    policy: Literal["calibration"] = "calibration"
    strength: float = Field(
        0.5, ge=0, le=1, description="weight of the category mix of the history beside score (lambda); 0: no change"
    )


class CategoryCapSpec(Spec):
    policy: Literal["category-cap"] = "category-cap"
    max_items: int = Field(3, ge=1, le=10_000, description="most items of one category in a list")
    field: str | None = Field(
        None, max_length=200, description="item column with the categories; empty: the category columns of the dataset"
    )


class ExposureSpec(Spec):
    policy: Literal["exposure"] = "exposure"
    max_share: float = Field(
        0.1, gt=0, le=1, description="an item stands in at most this share of the lists made together"
    )


class BlocklistSpec(Spec):
    policy: Literal["blocklist"] = "blocklist"
    items: tuple[str, ...] = Field((), max_length=100_000, description="item ids that never appear")
    rules: tuple[str, ...] = Field(
        (), max_length=1000, description="field=value: items with this value (or single category) never appear"
    )
    reason: str = Field(
        "blocked", min_length=1, max_length=80, description="reason code that is reported for each item taken out"
    )

    @model_validator(mode="after")
    def _rules_are_rules(self) -> BlocklistSpec:
        for rule in self.rules:
            field, equals, value = rule.partition("=")
            if not (equals and field.strip() and value.strip()):
                raise ValueError(f"rules: {rule[:80]!r} is not field=value")
        return self


_Policy = DiversitySpec | NoveltySpec | CalibrationSpec | CategoryCapSpec | ExposureSpec | BlocklistSpec
PolicySpec = Annotated[_Policy, Field(discriminator="policy")]
#: Name -> spec class.
POLICIES: dict[str, type[Spec]] = {part.model_fields["policy"].default: part for part in get_args(_Policy)}
_ONE = TypeAdapter[_Policy](PolicySpec)
#: Policies that may stand several times: with other fields, or other reasons.
_REPEATABLE = frozenset({"category-cap", "blocklist"})
#: Rules about who may be in at all, choices, rules about the finished list.
_PHASES = {"blocklist": 0, "category-cap": 2, "exposure": 2}


def check_policies(policies: Sequence[_Policy]) -> None:
    """Raises: ValueError: a policy that may stand once stands there twice."""
    for name, count in Counter(policy.policy for policy in policies).items():
        if count > 1 and name not in _REPEATABLE:
            raise ValueError(f"policies: {name} may stand there once")


def in_order(policies: Sequence[_Policy]) -> tuple[_Policy, ...]:
    """Blocklists, then choices, then caps; among themselves as they were written."""
    return tuple(sorted(policies, key=lambda policy: _PHASES.get(policy.policy, 1)))


def parse_policies(raw: Sequence[Any]) -> tuple[_Policy, ...]:
    """Checked policies from plain data: mappings with ``policy`` and its fields, or lines for :func:`read_policy`.

    Raises:
        SpecError: names the place and field that is wrong.
    """
    found = tuple(
        read_policy(one) if isinstance(one, str) else _parse(one, f"policies.{i}") for i, one in enumerate(raw)
    )
    try:
        check_policies(found)
    except ValueError as error:
        raise SpecError(f"{error}.", where="policies", fix="Remove the second one.") from None
    return found


def read_policy(line: str) -> _Policy:
    """``novelty:raise_by=0.15`` or ``blocklist:items=[i1, i2],reason=sold out``: a name, then fields with commas.

    Values are taken as they stand: no quotes, and ids keep their leading zeros.

    Raises:
        SpecError: an unknown policy or field, or a value that the field refuses.
    """
    name, _, rest = line.partition(":")
    values: dict[str, Any] = {"policy": name.strip()}
    for part in _parts(rest):
        field, equals, value = part.partition("=")
        if not equals:
            raise SpecError(f"{part[:80]!r} is not field=value.", where="--policy", fix=_FIX)
        value = value.strip()
        listed = value.startswith("[") and value.endswith("]")
        values[field.strip()] = [v.strip() for v in value[1:-1].split(",") if v.strip()] if listed else value
    return _parse(values, "--policy")


_FIX = "Write for example novelty:raise_by=0.15 or blocklist:rules=[category=Horror],reason=family."


def _parts(text: str) -> list[str]:
    """Pieces between commas that stand in no brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += {"[": 1, "]": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part for part in parts if part.strip()]


def _parse(raw: Any, where: str) -> _Policy:
    if not isinstance(raw, dict) or raw.get("policy") not in POLICIES:
        name = raw.get("policy") if isinstance(raw, dict) else raw
        raise SpecError(f"there is no policy {str(name)[:80]!r}.", where=where, fix=f"Known: {', '.join(POLICIES)}.")
    try:
        return _ONE.validate_python(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        words = [
            ".".join(str(p) for p in fault["loc"][1:])
            + ": "
            + ("unknown field" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "))
            for fault in faults
        ]
        raise SpecError("; ".join(words) + ".", where=where, fix=_FIX) from None
