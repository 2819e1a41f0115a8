"""Rows that say what a user saw and did: a history in order, then candidates with labels -> one row per event.

A history list, a growing history with its next item, an impression log and a record with liked and disliked titles are
all of this form. What is told again is not imported again: the histories of one user's rows overlap.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from llmrec_core.data._layouts.adapters import Converter, Long, Rows, adapted, blocks, cells_of, text_table
from llmrec_core.data._sources import Source
from llmrec_core.data._values import TimeFormat, ValueOptions, decide_times


@dataclass(frozen=True)
class Record:
    """One row: who, when, what before, what was shown.

    Attributes:
        line: of the file.
        user: "" where nobody is named: the record is then a user of its own.
        history_labels, labels: as many as items, or () where none were given; "" where one is unknown.
        history_times: times of the history, or ().
        fault: why the row cannot be used; "" where it can.
    """

    line: int
    user: str = ""
    time: str = ""
    number: str = ""
    history: Sequence[str] = ()
    history_labels: Sequence[str] = ()
    history_times: Sequence[str] = ()
    candidates: Sequence[str] = ()
    labels: Sequence[str] = ()
    fault: str = ""


class Names:
    """Names of records that have none, in one pass: their file, the line where they begin and their place in it.

    The file is part of it: line 1 of a training file and line 1 of a test file are two records.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._line = self._place = 0

    def of(self, line: int) -> str:
        """ "a.json:17" for the first record of line 17, then "a.json:17.2". To be asked once a record, in order."""
        self._place = self._place + 1 if line == self._line else 1
        self._line = line
        return f"{self._file}:{line}" if self._place == 1 else f"{self._file}:{line}.{self._place}"


#: Reads a block: one record per row of the table, in order.
Reader = Callable[[pa.Table, Rows], Iterator[Record]]


@dataclass(frozen=True)
class StreamForm:
    """What the records of a file say.

    Attributes:
        read: a block -> its records.
        timed: records have a time.
        rated: labels tell liking (histories hold disliked items too), so candidates that are not liked count as well.
        merged: rows of one user tell overlapping histories; False: every row is new.
        titles: items are given by their titles; ids are made from these.
        earliest: first time of each user, filled before the first pass, for histories whose items have no times.
        values: how times are to be read, as somebody said.
    """

    read: Reader
    timed: bool = False
    timed_history: bool = False
    rated: bool = False
    merged: bool = True
    titles: bool = False
    time_column: str = ""
    user_column: str = ""
    earliest: dict[str, str] = field(default_factory=dict)
    values: ValueOptions = field(default_factory=ValueOptions)


def title_id(title: str) -> str:
    """A stable id of an item that is known by its title alone: 16 hexadecimal digits of its SHA-256."""
    return "t" + hashlib.sha256(" ".join(title.split()).encode()).hexdigest()[:16]


def is_yes(label: str) -> bool | None:
    """Whether a label says liked or clicked; None where it says nothing of the kind."""
    word = label.strip().strip("\"'.!").lower()
    if word in ("1", "1.0", "yes", "true", "y", "like", "liked", "click", "clicked", "positive", "是", "喜欢", "点击"):
        return True
    if word in ("0", "0.0", "-1", "no", "false", "n", "dislike", "disliked", "negative", "否", "不喜欢"):
        return False
    return None


def interactions_of(source: Source, form: StreamForm, notes: Sequence[str] = ()) -> Source:
    """user_id, item_id, then rating and timestamp where the records tell them."""
    columns = ["user_id", "item_id"]
    columns += ["rating"] if form.rated else []
    columns += ["timestamp"] if form.timed or form.timed_history else []

    def make() -> Converter:
        ready = form
        if form.timed and not form.timed_history and form.merged and form.user_column:
            ready = replace(form, earliest=_earliest(source, form))
        return _Events(source.name, ready)

    return adapted(source, columns, make, notes=notes)


def impressions_of(source: Source, form: StreamForm) -> Source:
    """One row per shown candidate: impression_id, user_id, time, item_id, label, position (from 1)."""
    columns = [c for c in _SHOWN if c != "time" or form.timed or form.timed_history]
    return adapted(source, columns, lambda: _Shown(source.name, form), tells_rejects=False)


def titles_of(source: Source, form: StreamForm) -> Source:
    """One row per distinct title: item_id, title."""
    return adapted(source, ("item_id", "title"), lambda: _Titles(form), tells_rejects=False)


def _earliest(source: Source, form: StreamForm) -> dict[str, str]:
    """The earliest time of each user, as it is written: the items of a history were met before that, at the latest."""
    reading: TimeFormat | None = None
    while True:
        better, best = reading, dict[str, tuple[float, str]]()
        for raw in blocks(source, None):
            users = cells_of(raw.table, form.user_column).to_pylist()
            times = cells_of(raw.table, form.time_column)
            if reading is None or reading.kind == "nothing":
                reading = better = decide_times(times, form.time_column, form.values)
            seconds, bad = reading.times(times)
            better = (better or reading).reconsider(times.filter(pa.array(bad)))
            for user, second, text in zip(users, seconds.tolist(), times.to_pylist(), strict=True):
                known = best.get(user)
                if second == second and (known is None or second < known[0]):
                    best[user] = (second, text)
        if better == reading:
            return {user.strip(): text for user, (_, text) in best.items()}
        # A later block showed how the dates of all are to be read, such as which number is the month.
        reading = better


class _Events(Converter):
    def __init__(self, file: str, form: StreamForm) -> None:
        self._form, self._names = form, Names(file)
        self._told: dict[str, array[int]] = {}
        self._last: dict[str, int] = {}

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        form = self._form
        users: list[str] = []
        items: list[str] = []
        ratings: list[str] = []
        times: list[str] = []
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        for row, record in enumerate(form.read(table, lines)):
            own = self._names.of(record.line)
            if record.fault:
                faults.append((row, record.fault))
                continue
            name = title_id if form.titles else str
            user = record.user or own
            skip = self._known(user, record.history) if form.merged and record.user else 0
            before = form.earliest.get(record.user, record.time)
            for place in range(skip, len(record.history)):
                users.append(user)
                items.append(name(record.history[place]))
                ratings.append(_rating(record.history_labels[place] if record.history_labels else "1"))
                times.append(record.history_times[place] if record.history_times else before)
                rows.append(row)
            for place, item in enumerate(record.candidates):
                label = record.labels[place] if record.labels else ""
                liked = is_yes(label)
                # One labelled item is liked or disliked; of many that were shown, the others were only not clicked.
                judged = form.rated and len(record.candidates) == 1 and (liked is not None or is_number(label))
                if liked or judged:
                    users.append(user)
                    items.append(name(item))
                    ratings.append(_rating(label))
                    times.append(record.time)
                    rows.append(row)
                    if form.merged and record.user:
                        self._remember(user, [item])
        columns = {"user_id": users, "item_id": items}
        if form.rated:
            columns["rating"] = ratings
        if form.timed or form.timed_history:
            columns["timestamp"] = times
        return Long(text_table(dict(columns)), np.array(rows, np.int64), faults)

    def _known(self, user: str, history: Sequence[str]) -> int:
        """How many of the first items of a history were told before, in that order."""
        whole = hash(tuple(history))
        if self._last.get(user) == whole:
            return len(history)
        self._last[user] = whole
        told = self._told.get(user, _NOTHING)
        place = known = 0
        for item in history:
            try:
                place = told.index(hash(item), place) + 1
            except ValueError:
                break
            known += 1
        self._remember(user, history[known:])
        return known

    def _remember(self, user: str, items: Sequence[str]) -> None:
        self._told.setdefault(user, array("q")).extend(hash(item) for item in items)


_NOTHING = array("q")


def _rating(label: str) -> str:
    liked = is_yes(label)
    return label if liked is None or label.strip() == "-1" else str(int(liked))


def is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


_SHOWN = ("impression_id", "user_id", "time", "item_id", "label", "position")


class _Shown(Converter):
    def __init__(self, file: str, form: StreamForm) -> None:
        self._form, self._names = form, Names(file)

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        cells: dict[str, list[str]] = {name: [] for name in _SHOWN}
        rows: list[int] = []
        for row, record in enumerate(self._form.read(table, lines)):
            own = self._names.of(record.line)
            if record.fault:
                continue
            n_shown = len(record.candidates)
            liked = [is_yes(label) for label in record.labels]
            cells["impression_id"] += [record.number or own] * n_shown
            cells["user_id"] += [record.user or own] * n_shown
            cells["time"] += [record.time] * n_shown
            cells["item_id"] += [title_id(c) for c in record.candidates] if self._form.titles else record.candidates
            cells["label"] += [
                raw if known is None else str(int(known)) for raw, known in zip(record.labels, liked, strict=True)
            ] or [""] * n_shown
            cells["position"] += [str(position) for position in range(1, n_shown + 1)]
            rows += [row] * n_shown
        return Long(text_table(dict(cells)), np.array(rows, np.int64))


class _Titles(Converter):
    def __init__(self, form: StreamForm) -> None:
        self._form = form
        self._known: set[str] = set()

    def __call__(self, table: pa.Table, lines: Rows) -> Long:
        ids: list[str] = []
        titles: list[str] = []
        rows: list[int] = []
        for row, record in enumerate(self._form.read(table, lines)):
            if record.fault:
                continue
            for title in (*record.history, *record.candidates):
                item = title_id(title)
                if item not in self._known:
                    self._known.add(item)
                    ids.append(item)
                    titles.append(" ".join(title.split()))
                    rows.append(row)
        return Long(text_table({"item_id": ids, "title": titles}), np.array(rows, np.int64))
