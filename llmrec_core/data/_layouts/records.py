"""History lists, impression logs and their records in JSON lines: which columns are what, and how a row is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from llmrec_core.data._layouts.adapters import Rows, cells_of
from llmrec_core.data._layouts.lists import ListForm, find_form, find_paired, unfold
from llmrec_core.data._layouts.streams import Record, StreamForm, is_number, is_yes
from llmrec_core.data._role_names import plain, rank_of
from llmrec_core.data._sources import Source

#: A candidate of MIND: an id, then whether it was clicked.
_SHOWN = re.compile(r"\S+-[01](\s+\S+-[01])*")
_MIND = ("impression_id", "user_id", "timestamp", "history", "candidates")
#: Tables with more columns are no lists of lists; whoever knows better can tell the column.
_MAX_COLUMNS = 60
_PLURALS = ("s", "ids", "list", "idlist", "seq", "idseq", "sequence", "history")


@dataclass(frozen=True)
class RecordForm:
    """Columns of a file of records, and how its lists are written.

    ``columns``: part -> column; parts are user_id, timestamp, impression_id, history, history_labels, history_ratings,
    history_times, candidates, labels. ``lists``: part -> form of its cells.
    """

    columns: Mapping[str, str]
    lists: Mapping[str, ListForm | None]
    titles: bool
    merged: bool
    #: candidates carry their labels, as "N1-1 N2-0".
    labelled: bool
    target: bool
    notes: tuple[str, ...]
    reasons: Mapping[str, str]


def find_records(
    source: Source,
    sample: pa.Table,
    said: Mapping[str, str],
    roles: Mapping[str, str],
    told: str | None,
    pairs: str | None = None,
) -> RecordForm | None:
    """How a file tells histories or impressions; None where it does not.

    Args:
        said: role -> column, as a person told.
        roles: what the columns are as a table of rows.
        told: the layout that somebody told, or None.
        pairs: whether values of histories are pairs, as somebody told: "no", "rating", "rating:time" and the like.
    """
    cells = _Cells(sample)
    columns: dict[str, str] = {}
    reasons: dict[str, str] = {}
    if _is_mind(source, cells):
        columns = dict(zip(_MIND[-len(source.columns) :], source.columns, strict=True))
        reasons = dict.fromkeys(columns, "the file is laid out like MIND's behaviors.tsv")
    else:
        for part in ("candidates", "history_labels", "history_ratings", "history_times", "history", "labels"):
            names = (c for c in source.columns if rank_of(part, c) is not None and c not in columns.values())
            found = next(iter(sorted(names, key=lambda c: rank_of(part, c) or 0)), None)
            if found is not None:
                columns[part], reasons[part] = found, f"the column is called {found!r}"
        for part in ("history_ratings", "history_labels", "history_times"):
            if "history" not in columns and part in columns and find_paired(cells[columns[part]], pairs):
                columns["history"], reasons["history"] = columns.pop(part), "its cells are lists of items and numbers"
        if "history" not in columns and "candidates" not in columns:
            listed = _listed_ids(source, cells, roles, told, pairs, columns.values())
            if listed is not None:
                columns["history"], reasons["history"] = listed, "its cells are lists of ids"
        for part in ("user_id", "timestamp", "impression_id"):
            named = [c for c in source.columns if rank_of(part, c) is not None]
            column = roles.get(part) or min(named, key=lambda c: rank_of(part, c) or 0, default=None)
            if column is not None and column not in columns.values():
                columns[part], reasons[part] = column, f"the column is called {column!r}"
    for part, column in said.items():
        if column in source.columns:
            columns = {p: c for p, c in columns.items() if c != column}
            columns[part], reasons[part] = column, "you said so"
        elif column == "":
            columns.pop(part, None)
    if "history" not in columns and "candidates" not in columns:
        return None
    bare_pair = len(source.columns) == 2 and (told == "histories" or not source.header)
    if bare_pair and "user_id" not in columns and said.get("user_id") != "":
        other = next(c for c in source.columns if c != columns.get("history"))
        columns["user_id"], reasons["user_id"] = other, "the other one of two columns"
    following = None if "candidates" in columns else _target(source, cells, columns, roles)
    if following is not None:
        columns["candidates"], reasons["candidates"] = following, "one more item beside the history"
    # With a label beside it the item was shown; without one it is what came next.
    target = following is not None and "labels" not in columns
    shown = columns.get("candidates")
    labelled = shown is not None and "labels" not in columns and _all_match(cells[shown], _SHOWN)
    lists = {
        part: find_form(cells[column], named=True)
        for part, column in columns.items()
        if part not in ("user_id", "timestamp", "impression_id")
    }
    if "history" in columns:
        lists["history"] = find_paired(cells[columns["history"]], pairs) or lists["history"]
    if labelled:
        lists["candidates"] = ListForm("split", " ")
    if following is not None:
        lists["candidates"] = None
    if told is None and not _believable(source, cells, columns, lists, roles, reasons, following is not None):
        return None
    titles = _are_titles(cells, columns, lists)
    merged, repeat_note = _overlap(cells, columns, lists)
    notes = [f"{columns[p]!r} holds {form.words}" for p, form in lists.items() if form is not None]
    notes += _pair_notes(cells, columns, lists, pairs)
    notes += [repeat_note] if repeat_note else []
    notes += _notes(columns, titles, labelled, target, merged)
    left = [column for column in source.columns if column not in columns.values()]
    if left:
        more = ", ..." if left[8:] else ""
        notes.append(f"columns that are left out: {', '.join(repr(column[:40]) for column in left[:8])}{more}")
    return RecordForm(columns, lists, titles, merged, labelled, target, tuple(notes), reasons)


def _pair_notes(
    cells: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    lists: Mapping[str, ListForm | None],
    told: str | None,
) -> list[str]:
    """How pairs are read otherwise, and what could be some."""
    form = lists.get("history")
    if form is None or told is not None:
        return []
    if form.pairs is not None:
        return [f"values in {columns['history']!r} are taken apart; pairs:FILE=no takes them whole"]
    values = unfold(pa.array(cells[columns["history"]][:200], pa.large_string()), form).values.to_pylist()
    if values and all(_NUMBERED.fullmatch(value) for value in values):
        return [f"items are called {values[0]!r} as a whole; pairs:FILE=rating takes the number for a rating"]
    return []


_NUMBERED = re.compile(r".+[:=]\d+")


class _Cells(dict[str, list[str]]):
    """column -> its first cells, taken when asked for: a matrix has thousands of columns."""

    def __init__(self, sample: pa.Table) -> None:
        super().__init__()
        self._sample = sample

    def __missing__(self, column: str) -> list[str]:
        self[column] = cells_of(self._sample, column).to_pylist()
        return self[column]


def _is_mind(source: Source, cells: Mapping[str, Sequence[str]]) -> bool:
    """Four or five columns without a header, the last one with clicked and unclicked candidates."""
    if source.header or len(source.columns) not in (4, 5):
        return False
    columns = list(source.columns)
    named = source.name.rpartition("/")[2].lower().startswith("behaviors")
    return _all_match(cells[columns[-1]], _SHOWN) or (named and find_form(cells[columns[-1]], named=True) is not None)


def _all_match(cells: Sequence[str], shape: re.Pattern[str]) -> bool:
    filled = [cell.strip() for cell in cells if cell.strip()]
    return bool(filled) and sum(shape.fullmatch(cell) is not None for cell in filled) >= 0.95 * len(filled)


def _listed_ids(
    source: Source,
    cells: Mapping[str, Sequence[str]],
    roles: Mapping[str, str],
    told: str | None,
    pairs: str | None,
    taken: Collection[str],
) -> str | None:
    """A column whose name is that of items ("movie_ids") or says nothing, and whose cells are lists of ids."""
    users = roles.get("user_id")
    for column in source.columns if len(source.columns) <= _MAX_COLUMNS else ():
        if column == users or (roles.get("item_id") != column and column in roles.values()):
            continue
        key = plain(column)
        plural = any(key.endswith(end) and (rank_of("item_id", key.removesuffix(end)) is not None) for end in _PLURALS)
        named = plural or roles.get("item_id") == column
        form = find_paired(cells[column], pairs) or find_form(cells[column], named=False)
        if form is None or column in taken:
            continue
        if form.style == "array" and form.pairs is None and not named and not _id_values(cells[column], form):
            continue
        if not source.header and list(source.columns)[1:] == [column] and _once(cells[source.columns[0]]):
            return column
        alone = users is not None and "item_id" not in roles
        things = form.pairs is not None or (
            form.style == "objects" and any(rank_of("item_id", key) is not None for _, key in form.keys)
        )
        if named or told == "histories" or (alone and (things or _once(cells[users or ""]))):
            return column
    if told == "histories" and len(source.columns) == 2:
        # Whoever says that there are lists means the column that is no user.
        return next(c for c in reversed(source.columns) if c != users)
    return None


def _id_values(cells: Sequence[str], form: ListForm) -> bool:
    values = unfold(pa.array(cells, pa.large_string()), form).values.to_pylist()
    return bool(values) and sum(any(c.isdigit() for c in v) and " " not in v for v in values) >= 0.9 * len(values)


def _once(cells: Sequence[str]) -> bool:
    return len(set(cells)) >= 0.9 * len(cells)


def _target(
    source: Source, cells: Mapping[str, Sequence[str]], columns: Mapping[str, str], roles: Mapping[str, str]
) -> str | None:
    """The column of the item that came after a history."""
    for column in source.columns:
        key = plain(column)
        if column in columns.values():
            continue
        if key in (
            "nextitem",
            "target",
            "targetitem",
            "targetid",
            "targetitemid",
            "nextitemid",
            "positem",
            "groundtruth",
        ):
            return column
        # Beside a history an item has to be called one: the id of an order looks like an item's.
        if (
            roles.get("item_id") == column
            and rank_of("item_id", column) is not None
            and find_form(cells[column], named=False) is None
        ):
            return column
    return None


def _believable(
    source: Source,
    cells: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    lists: Mapping[str, ListForm | None],
    roles: Mapping[str, str],
    reasons: Mapping[str, str],
    target: bool,
) -> bool:
    """A column called "sequence" or "items" is a history only where its cells are lists."""
    if "you said so" in reasons.values():
        return True
    if "candidates" in columns and not target:
        return "history" in columns or lists.get("candidates") is not None
    if lists.get("history") is None:
        return False
    form = lists["history"]
    assert form is not None
    # Words separated by commas may be anything; lists beside a user, or of ids, are histories.
    if form.style == "objects" or "user_id" in columns:
        return target or "item_id" not in roles or roles["item_id"] == columns["history"]
    return plain(columns["history"]) not in ("items", "orders", "sequence", "cart", "basket") and "title" not in roles


def _are_titles(
    cells: Mapping[str, Sequence[str]], columns: Mapping[str, str], lists: Mapping[str, ListForm | None]
) -> bool:
    """Whether the items are titles in words: most values hold a space."""
    values: list[str] = []
    for part in ("history", "candidates"):
        if part not in columns:
            continue
        form = lists.get(part)
        if form is not None and form.style == "objects" and "item_id" not in dict(form.keys):
            return True
        if "title" in plain(columns[part]):
            return True
        values += unfold(pa.array(cells[columns[part]][:200], pa.large_string()), form).values.to_pylist()
    return bool(values) and sum(" " in value for value in values) >= 0.3 * len(values)


def _overlap(
    cells: Mapping[str, Sequence[str]], columns: Mapping[str, str], lists: Mapping[str, ListForm | None]
) -> tuple[bool, str]:
    """Whether several rows of one user tell the same past again."""
    if "candidates" in columns:
        return True, ""
    if "user_id" not in columns:
        return False, ""
    block = unfold(pa.array(cells[columns["history"]], pa.large_string()), lists.get("history"))
    ends = block.counts.cumsum()
    values = block.values.to_pylist()
    before: dict[str, list[str]] = {}
    repeats = growing = 0
    for row, user in enumerate(cells[columns["user_id"]]):
        own = values[ends[row] - block.counts[row] : ends[row]]
        if user in before and own:
            repeats += 1
            growing += own[: len(before[user])] == before[user]
        before[user] = own
    if not repeats:
        return False, ""
    if growing == repeats:
        return True, "users come again with longer histories: each item is taken once"
    return False, "users come again with other items: every row is taken as new (baskets)"


def _notes(columns: Mapping[str, str], titles: bool, labelled: bool, target: bool, merged: bool) -> list[str]:
    notes = []
    if "user_id" not in columns:
        notes.append("no column of users: each record is a user of its own, called by the number of its line")
    if titles:
        notes.append("items are given by their titles: ids are made from these")
    if "candidates" in columns and not target:
        if "labels" not in columns and not labelled:
            notes.append("candidates have no labels: only the history gives interactions")
        elif "history_labels" in columns:
            notes.append(
                "labels tell liked (1) and disliked (0): they become ratings of the history, and of a candidate that "
                "stands alone; of several candidates only the chosen ones are interactions"
            )
        else:
            notes.append("the history and the chosen candidates are interactions; all that was shown is kept beside")
    if merged and "user_id" in columns and "history" in columns:
        notes.append("items that an earlier row of the same user told are not taken again")
        if "timestamp" in columns and "history_times" not in columns:
            notes.append("items of a history have no time of their own: they carry the user's first time")
    return notes


def stream_form(form: RecordForm) -> StreamForm:
    """The records of a file, as its columns tell them."""
    columns, lists = form.columns, form.lists
    rated = bool({"history_labels", "history_ratings"} & columns.keys()) or "rating" in _keys(lists)
    rated = rated or ("rating" in columns)
    timed_history = "history_times" in columns or "timestamp" in _keys(lists)

    def read(table: pa.Table, lines: Rows) -> Iterator[Record]:
        def plain_cells(part: str) -> list[str]:
            return [cell.strip() for cell in cells_of(table, columns[part]).to_pylist()] if part in columns else []

        users, times, numbers = (plain_cells(part) for part in ("user_id", "timestamp", "impression_id"))
        parts = {part: _Lists(cells_of(table, columns[part]), lists[part]) for part in lists}
        for row, line in enumerate(lines.tolist()):
            found = {part: cut.values(row) for part, cut in parts.items()}
            fault = next((reason for cut in parts.values() if (reason := cut.faults.get(row))), "")
            history = found.get("history", [])
            further = parts["history"].further(row) if "history" in parts else {}
            labels = found.get("history_labels") or found.get("history_ratings") or further.get("rating", [])
            stamps = found.get("history_times") or further.get("timestamp", [])
            shown, marks = found.get("candidates", []), found.get("labels", [])
            if form.labelled:
                shown, marks = [c[:-2] for c in shown], [c[-1] for c in shown]
            elif form.target:
                marks = ["1"] * len(shown)
            elif len(marks) == 1 and len(shown) > 1 and not _is_label(marks[0]) and marks[0] in shown:
                # The label is the chosen one itself.
                marks = [str(int(c == marks[0])) for c in shown]
            elif len(marks) == 1 and len(shown) > 1 and marks[0].isdigit() and lists.get("labels") is None:
                chosen = int(marks[0])
                marks = [str(int(place == chosen)) for place in range(len(shown))] if chosen < len(shown) else marks
            for what, values, against in (
                ("ratings or labels", labels, history), ("times", stamps, history), ("labels", marks, shown)
            ):  # fmt: skip
                if values and len(values) != len(against) and not fault:
                    of = "candidates" if against is shown else "items in the history"
                    fault = f"{len(values)} {what} for {len(against)} {of}"
            if users and not users[row]:
                fault = "user_id is empty"
            if not history and not shown and not fault:
                fault = "the row tells no item"
            yield Record(
                line, users[row] if users else "", times[row] if times else "", numbers[row] if numbers else "",
                history, labels, stamps, shown, marks, fault,
            )  # fmt: skip

    return StreamForm(
        read, "timestamp" in columns and not timed_history, timed_history, rated, form.merged, form.titles,
        columns.get("timestamp", ""), columns.get("user_id", ""),
    )  # fmt: skip


def _is_label(word: str) -> bool:
    return is_yes(word) is not None or is_number(word)


def _keys(lists: Mapping[str, ListForm | None]) -> set[str]:
    form = lists.get("history")
    return set() if form is None else form.roles


class _Lists:
    """The lists of one column in a block, row by row."""

    def __init__(self, cells: pa.Array, form: ListForm | None) -> None:
        block = unfold(cells, form)
        self.faults = block.faults
        self._values = block.values.to_pylist()
        self._further = {role: values.to_pylist() for role, values in block.further.items()}
        self._ends = block.counts.cumsum()
        self._counts = block.counts

    def values(self, row: int) -> list[str]:
        end = int(self._ends[row])
        return self._values[end - int(self._counts[row]) : end]

    def further(self, row: int) -> dict[str, list[str]]:
        end = int(self._ends[row])
        return {role: values[end - int(self._counts[row]) : end] for role, values in self._further.items()}
