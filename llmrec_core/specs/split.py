"""How rows are cut into training, validation and test."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmrec_core.specs.base import Spec

Protocol = Literal[
    "auto",
    "given",
    "leave-one-out",
    "temporal",
    "rolling-temporal",
    "random",
    "random-users",
    "cold-user",
    "cold-item",
    "group-stratified",
    "records",
]


class SplitSpec(Spec):
    """How rows are cut. A field that the protocol does not use (the brackets say who uses it) is ignored."""

    protocol: Protocol = Field(
        "auto",
        description="auto: the data's own parts, kept whole, else leave-one-out; given: the data's own parts; "
        "leave-one-out: each user's last interaction; temporal: one cut in time; rolling-temporal: several cuts in "
        "time; random: rows; random-users: whole users; cold-user: users with k known interactions; cold-item: items "
        "withheld from training; group-stratified: rows, the same share of every group; records: the last row of each "
        "user is the question, learned or asked, what stands before it is known",
    )
    valid_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="share for validation, of rows (temporal, rolling-temporal, random, group-stratified), users "
        "(random-users, cold-user, records) or items (cold-item)",
    )
    test_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="share for the test, of rows (temporal, random; of each window in rolling-temporal), users "
        "(random-users, cold-user, records) or items (cold-item)",
    )
    n_folds: int = Field(
        5,
        ge=1,
        le=50,
        description="test windows in time (rolling-temporal), or parts that take turns as the test (group-stratified)",
    )
    fold: int = Field(
        1,
        ge=1,
        description="which fold is the test, from 1 (rolling-temporal: the earliest) to n_folds (rolling-temporal, "
        "group-stratified)",
    )
    train_window: Literal["expanding", "sliding"] = Field(
        "expanding",
        description="expanding: train on everything before; sliding: on as many rows as the first fold has, older "
        "ones are left out (rolling-temporal)",
    )
    known_interactions: int = Field(
        0, ge=0, le=1000, description="k: first interactions of a held-out user that are known when asked (cold-user)"
    )
    fold_in: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="share of a held-out user's interactions, the earliest ones, that is known when asked "
        "(random-users)",
    )
    rank_among: Literal["all", "withheld"] = Field(
        "all", description="rank withheld items among all items or among the withheld ones alone (cold-item)"
    )
    group_by: str = Field(
        "activity",
        max_length=200,
        description="groups of rows: activity (users by number of interactions), popularity (items by it), user:FIELD "
        "or item:FIELD (group-stratified)",
    )
    n_groups: int = Field(
        4,
        ge=2,
        le=100,
        description="equally large groups of users or items for activity and popularity (group-stratified)",
    )
    min_user_interactions: int = Field(0, ge=0, description="k-core: drop users with fewer interactions")
    min_item_interactions: int = Field(0, ge=0, description="k-core: drop items with fewer interactions")
    time_from: str | None = Field(
        None, max_length=40, description="leave out interactions before this ISO date or time (UTC unless it says so)"
    )
    time_to: str | None = Field(
        None, max_length=40, description="leave out interactions after this ISO date (the day itself stays) or time"
    )
    tie_order: Literal["file", "item_id"] = Field(
        "file", description="which of two interactions with the same time is the later one"
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the draw (random, random-users, cold-user, cold-item, group-stratified, records)",
    )

    @field_validator("time_from", "time_to", mode="before")
    @classmethod
    def _no_empty_time(cls, value: Any) -> Any:
        # YAML reads 2024-05-01 as a date; forms give "" for an empty field.
        if isinstance(value, date):
            return value.isoformat()
        return None if value == "" else value

    @model_validator(mode="after")
    def _possible(self) -> SplitSpec:
        low, high = self.seconds_from, self.seconds_to
        if low is not None and high is not None and low > high:
            raise ValueError(f"time_from: {self.time_from} lies after time_to, {self.time_to}")
        if self.protocol in ("rolling-temporal", "group-stratified") and self.fold > self.n_folds:
            raise ValueError(f"fold: there are {self.n_folds} folds, so there is no fold {self.fold}")
        if self.protocol == "rolling-temporal" and self.n_folds * self.test_fraction + self.valid_fraction >= 1:
            raise ValueError(
                f"n_folds: {self.n_folds} windows of {self.test_fraction:.0%} and {self.valid_fraction:.0%} for "
                "validation leave nothing to train on; use fewer or smaller windows"
            )
        if self.protocol == "group-stratified":
            if self.n_folds < 2 or 1 / self.n_folds + self.valid_fraction >= 1:
                raise ValueError("n_folds: with fewer folds nothing is left to train on; use 3 or more")
            kind, colon, name = self.group_by.partition(":")
            if self.group_by not in ("activity", "popularity") and not (kind in ("user", "item") and colon and name):
                raise ValueError("group_by: write activity, popularity, user:FIELD or item:FIELD")
        return self

    @property
    def seconds_from(self) -> float | None:
        """``time_from`` in seconds since 1970 UTC: rows at or after it stay."""
        return None if self.time_from is None else _seconds(self.time_from, "time_from")

    @property
    def seconds_to(self) -> float | None:
        """``time_to`` in seconds since 1970 UTC: rows at or before it stay; a date stands for its last moment."""
        if self.time_to is None:
            return None
        start = _seconds(self.time_to, "time_to")
        whole_day = len(self.time_to.strip()) <= len("2024-05-01") and "T" not in self.time_to
        return math.nextafter(start + 86_400.0, 0.0) if whole_day else start


def _seconds(text: str, field: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{field}: {text!r} is no ISO date or time; write 2024-05-01 or 2024-05-01T12:30") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
