"""Values of a list that tell more than an item: "p1:4", "p1=4:1612137600", ["p1", 4], {"p1": 4}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: What parts the two where JSON does it.
JOINT = "\x1f"
_MARKS = (JOINT, ":", "=", ",", " ")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(T\d\S*)?")
_EPOCHS = ((5e8, 4.2e9), (5e11, 4.2e12), (5e14, 4.2e15), (5e17, 4.2e18))
#: Values that may be something else; their rows are refused.
_FEW_OTHERS = 0.02
_MAX_STEPS = 11
_ROLES = {"rating": "rating", "time": "timestamp"}


@dataclass(frozen=True)
class Pairs:
    """How a value is taken apart, from its end: an item may hold the mark itself.

    ``roles``: of the parts behind the item: "rating", "timestamp", or "" for one that is left out.
    """

    mark: str
    roles: tuple[str, ...]

    @property
    def words(self) -> str:
        parts = {"rating": "rating", "timestamp": "time", "": "a number that is left out"}
        named = ", ".join(["item", *(parts[role] for role in self.roles)])
        return f"each value as {named}" + ("" if self.mark == JOINT else f", parted by {self.mark!r}")

    def part(self, value: str) -> list[str] | None:
        """The item and what stands behind it; None where the value is no such pair."""
        parts = [part.strip() for part in value.rsplit(self.mark, len(self.roles))]
        return parts if len(parts) == len(self.roles) + 1 and parts[0] else None


def find_pairs(lists: Sequence[Sequence[str]], told: str | None = None) -> Pairs | None:
    """How the values of the first lists are pairs; None where each is an item.

    A number behind a mark makes a pair only where it is there throughout, and is no part of the id: the items of a list
    differ and their ratings are few, while in "shop:17, shop:29" it is the other way round.

    Args:
        told: "no", or what the parts behind the item are: "rating", "time", "rating:time", "time:rating".
    """
    values = [value for values in lists for value in values]
    if told == "no" or not values:
        return None
    if told:
        n = told.count(":") + 1
        shares = {mark: sum(len(v.rsplit(mark, n)) == n + 1 for v in values) / len(values) for mark in _MARKS}
        best = max(shares, key=lambda mark: shares[mark])
        return Pairs(best, tuple(_ROLES[word] for word in told.split(":"))) if shares[best] else None
    for mark in _MARKS:
        for n in (2, 1):
            pairs = _fitting(lists, values, mark, n)
            if pairs is not None:
                return pairs
    return None


def _fitting(lists: Sequence[Sequence[str]], values: Sequence[str], mark: str, n: int) -> Pairs | None:
    parts = [tuple(part.strip() for part in value.rsplit(mark, n)) for value in values]
    good = [p for p in parts if len(p) == n + 1 and p[0] and all(_is_value(part) for part in p[1:])]
    if len(good) < (1 - _FEW_OTHERS) * len(parts):
        return None
    items, *columns = zip(*good, strict=True)
    if not all(any(column) for column in columns):
        return None
    if mark in (",", " ") and not all(any(c.isdigit() for c in item) for item in items):
        return None
    n_items, numbers = len(set(items)), set(columns[0])
    # Items of one list differ; what is said of each is a time, one of a few numbers, or repeats more than the items.
    heads = [[value.rsplit(mark, n)[0] for value in values] for values in lists]
    repeated = sum(len(set(head)) < len(head) for head in heads)
    few = len(numbers) <= _MAX_STEPS and repeated <= _FEW_OTHERS * len(heads)
    if n_items < 2 or not (n_items >= len(numbers) or few or _is_time(columns[0])):
        return None
    roles: list[str] = []
    for column in columns:
        role = "timestamp" if _is_time(column) else "rating"
        roles.append("" if role in roles else role)
    return Pairs(mark, tuple(roles))


def _is_value(part: str) -> bool:
    return not part or _NUMBER.fullmatch(part) is not None or _DAY.fullmatch(part) is not None


def _is_time(column: Sequence[str]) -> bool:
    filled = [part for part in column if part]
    if all(_DAY.fullmatch(part) for part in filled):
        return True
    if any(_DAY.fullmatch(part) for part in filled):
        return False
    return any(all(low <= float(part) <= high for part in filled) for low, high in _EPOCHS)
