"""The numbers behind the picture of a split: who and what is in which part, on a few lines and in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import TIME, IntArray
from llmrec_core.data.splitting.cutting import kept_rows, make_split
from llmrec_core.data.splitting.protocols import KNOWN, NONE, TEST, TRAIN, VALID, Rows, row_groups, window_bounds
from llmrec_core.data.splitting.split import Split
from llmrec_core.data.splitting.words import PROTOCOLS

#: Lines drawn, and marks on one line at most.
N_LINES, MAX_MARKS = 24, 60
#: Bars of the picture over time.
_N_BINS = 60
_MAX_GROUPS = 20
NAMES = {TRAIN: "train", KNOWN: "known", VALID: "valid", TEST: "test"}
_IN_TIME = ("temporal", "rolling-temporal")


@dataclass(frozen=True)
class Line:
    """One user's (or item's) interactions: where each lies, and in which part; "out" for rows in no part."""

    name: str
    places: list[float]
    parts: list[str]


@dataclass(frozen=True)
class Fold:
    """One fold of rolling-temporal in seconds; ``chosen``: the one that this split tests."""

    number: int
    train: tuple[float, float]
    valid: tuple[float, float]
    test: tuple[float, float]
    chosen: bool


@dataclass(frozen=True)
class SplitPicture:
    """``as_json()`` is what the command line prints.

    Attributes:
        title: the protocol in a few words.
        shares: "rows", "users", "items" -> part -> count. A user or an item counts in every part that it has a row in,
            so these may add up to more than there are; "out": those without a row in any part.
        lines: drawn users, or items for cold-item.
        lines_of: "users" or "items".
        axis: what ``Line.places`` are: "time" (seconds since 1970 UTC) or "place" (n-th interaction, from 1).
        bins: edges of the bars over time (or file order), and part -> rows in each bar.
        timed: the data has times. n_users, n_items: of the whole dataset.
        marks: (place on the axis of ``bins``, words) of cuts.
        folds: all folds of rolling-temporal.
        groups: group -> part -> rows, for group-stratified; at most 20 groups, the largest first.
    """

    protocol: str
    title: str
    shares: dict[str, dict[str, int]]
    lines: list[Line]
    lines_of: str
    axis: str
    bins: list[float]
    counts: dict[str, list[int]]
    timed: bool
    n_users: int
    n_items: int
    marks: list[tuple[float, str]]
    folds: list[Fold]
    groups: dict[str, dict[str, int]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def split_picture(split: Split, seed: int = 0) -> SplitPicture:
    """What is cut where; ``seed`` draws the lines. Seconds for millions of rows."""
    dataset, table = split.dataset, split.dataset.interactions
    users, items = table["user_idx"].to_numpy(np.int64), table["item_idx"].to_numpy(np.int64)
    timed = dataset.meta.has_timestamps
    times = table[TIME].to_numpy(np.float64) if timed else np.arange(len(table), dtype=np.float64)
    part = split._part
    by_items = split.spec.protocol == "cold-item"
    axis = "time" if timed and (split.spec.protocol in (*_IN_TIME, "given") or by_items) else "place"
    lines = _lines(split, items if by_items else users, times, axis, seed, dataset.item_ids if by_items else None)
    edges, counts = _over_time(times, part)
    return SplitPicture(
        split.spec.protocol,
        PROTOCOLS[split.spec.protocol].title,
        {
            "rows": _count(part),
            "users": _present(users, part, dataset.n_users),
            "items": _present(items, part, dataset.n_items),
        },
        lines,
        "items" if by_items else "users",
        axis,
        edges,
        counts,
        timed,
        dataset.n_users,
        dataset.n_items,
        _marks(split),
        _folds(split, times),
        _groups(split, users, items),
    )


def _count(codes: npt.NDArray[np.int8]) -> dict[str, int]:
    found = {name: int((codes == code).sum()) for code, name in NAMES.items()}
    return {name: n for name, n in found.items() if n} | {"out": int((codes == NONE).sum())}


def _present(owner: IntArray, part: npt.NDArray[np.int8], n: int) -> dict[str, int]:
    """How many of ``n`` users or items have a row in each part, and in none."""
    found = {name: len(np.unique(owner[part == code])) for code, name in NAMES.items()}
    return {name: count for name, count in found.items() if count} | {"out": n - len(np.unique(owner[part != NONE]))}


def _foremost(owner: IntArray, part: npt.NDArray[np.int8], n: int) -> npt.NDArray[np.int8]:
    """The latest part that each user or item has a row in; NONE without any."""
    found = np.full(n, NONE, np.int8)
    np.maximum.at(found, owner, part)
    return found


def _lines(
    split: Split, owner: IntArray, times: npt.NDArray[np.float64], axis: str, seed: int, names: Any
) -> list[Line]:
    """A few owners of each foremost part, so that the held-out ones are to be seen."""
    n_owners = split.dataset.n_users if names is None else split.dataset.n_items
    part = split._part
    foremost = _foremost(owner, part, n_owners)
    sizes = np.bincount(owner, minlength=n_owners)
    rng = np.random.default_rng([seed, 3])
    chosen: list[int] = []
    codes = [code for code in (TRAIN, KNOWN, VALID, TEST) if (foremost == code).any()]
    for code in codes:
        able = np.flatnonzero(foremost == code)
        # Long lines would be cut short; they are drawn where there are no others.
        short = able[sizes[able] <= MAX_MARKS]
        able = short if len(short) >= N_LINES // len(codes) else able
        chosen += rng.permutation(able)[: -(-N_LINES // len(codes))].tolist()
    drawn = np.zeros(n_owners, bool)
    drawn[chosen] = True
    rows = np.flatnonzero(drawn[owner])
    rows = rows[np.lexsort((rows, times[rows], owner[rows]))]
    lines = []
    for number, one in enumerate(chosen, start=1):
        mine = rows[owner[rows] == one]
        offset = max(0, len(mine) - MAX_MARKS)
        mine = mine[offset:]
        places = times[mine].tolist() if axis == "time" else (offset + 1 + np.arange(len(mine))).astype(float).tolist()
        # Users are numbered: a picture is to show a protocol, not persons.
        name = f"user {number}" if names is None else str(names[one])
        lines.append(Line(name, places, [NAMES.get(code, "out") for code in part[mine].tolist()]))
    return lines


def _over_time(times: npt.NDArray[np.float64], part: npt.NDArray[np.int8]) -> tuple[list[float], dict[str, list[int]]]:
    low, high = float(times.min()), float(times.max())
    edges = np.linspace(low, high if high > low else low + 1, _N_BINS + 1)
    counts = {}
    for code, name in {**NAMES, NONE: "out"}.items():
        chosen = times[part == code]
        if len(chosen) or name in ("train", "valid", "test"):
            counts[name] = np.histogram(chosen, edges)[0].tolist()
    return edges.tolist(), counts


def _marks(split: Split) -> list[tuple[float, str]]:
    if split.cut_times is None:
        return []
    marks = [(split.cut_times[0], "validation starts"), (split.cut_times[1], "test starts")]
    if split.window is not None:
        ends = ((split.window[0], "training starts"), (split.window[1], "test ends"))
        marks += [(place, words) for place, words in ends if np.isfinite(place)]
    return marks


def _folds(split: Split, times: npt.NDArray[np.float64]) -> list[Fold]:
    """All folds are cut again: each is a split of its own."""
    spec = split.spec
    if spec.protocol != "rolling-temporal":
        return []
    kept = np.sort(times[kept_rows(split.dataset, spec)])
    first, last, bounds = float(kept[0]), float(kept[-1]), window_bounds(kept, spec)
    found = []
    for number in range(1, spec.n_folds + 1):
        chosen = number == spec.fold
        one = split if chosen else make_split(split.dataset, spec.model_copy(update={"fold": number}))
        assert one.cut_times is not None  # every fold has both
        assert one.window is not None
        start = first if np.isinf(one.window[0]) else one.window[0]
        end = last if np.isinf(bounds[number]) else bounds[number]
        valid_start, test_start = one.cut_times
        found.append(Fold(number, (start, valid_start), (valid_start, test_start), (test_start, end), chosen))
    return found


def _groups(split: Split, users: IntArray, items: IntArray) -> dict[str, dict[str, int]]:
    spec = split.spec
    if spec.protocol != "group-stratified":
        return {}
    group = row_groups(Rows(split.dataset, users, items, split._order, split._starts), spec)
    kept = split._order
    names = _group_names(split, group, users, items)
    sizes = np.bincount(group[kept], minlength=len(names))
    shown = np.argsort(-sizes, kind="stable")[:_MAX_GROUPS] if len(names) > _MAX_GROUPS else np.arange(len(names))
    return {names[one]: _count(split._part[kept[group[kept] == one]]) for one in shown.tolist() if sizes[one]}


def _group_names(split: Split, group: IntArray, users: IntArray, items: IntArray) -> list[str]:
    """Names of the groups: the value of the field, or from how many to how many interactions."""
    spec, kept = split.spec, split._order
    if spec.group_by in ("activity", "popularity"):
        owner = users if spec.group_by == "activity" else items
        counts = np.bincount(owner[kept])
        return [
            f"{counts[mine].min()} to {counts[mine].max()} interactions" if len(mine) else "none"
            for number in range(int(group[kept].max()) + 1)
            for mine in [np.unique(owner[kept[group[kept] == number]])]
        ]
    kind, _, field = spec.group_by.partition(":")
    table = split.dataset.users if kind == "user" else split.dataset.items
    return [str(value) or "(empty)" for value in np.unique(table[field].to_numpy(dtype=object).astype(str))]


__all__ = ["Fold", "Line", "SplitPicture", "split_picture"]
