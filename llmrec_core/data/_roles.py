"""Which column plays which role, judged by its name and its first values; and column names fit for templates."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from llmrec_core.data import _role_values
from llmrec_core.data._corrections import Corrections, names_file, parse_mapping
from llmrec_core.data._role_names import (
    ALL_ROLES,
    DAYS,
    KINDS,
    LAYOUTS,
    NEEDED_OF,
    ROLES,
    ROLES_OF,
    USERISH,
    Kind,
    is_event_id,
    is_role_name,
    plain,
    rank_of,
)
from llmrec_core.data._values import parse_numbers, parse_times
from llmrec_core.errors import DataError

#: Beside a user these say something about the event (a purchase, a buyer's name), not about the item.
_EVENTFUL = frozenset(("name", "displayname", "type", "class", "tag", "tags", "department"))
#: Beside these a title or a summary is that of a review.
_REVIEW = frozenset(
    ("reviewtext", "reviewbody", "reviewcontent", "review", "helpfulvote", "verifiedpurchase", "reviewername")
)
_USER_FILE = re.compile(r"(?i)user|member|customer|client|profile|用户|会员|顾客|客户|ユーザ|nutzer|kunden")
_ITEM_FILE = re.compile(
    r"(?i)item|movie|film|product|book|game|song|track|catalog|商品|物品|电影|图书|产品|artikel|produkt|^meta_"
)
_IMAGE = re.compile(r"(?i)https?://\S+|\S.*\.(jpe?g|png|gif|webp|bmp|svg|avif|tiff?)(\?\S*)?|/\S+|[\[{].*")
_PRICE = re.compile(r"[^\d]{0,6}[\d][\d.,'\s]*[^\d]{0,6}(-.*)?")
_LARGEST_RATING = 1e6
#: Roles for which a second fitting column is worth a word.
_DOUBTFUL = ("user_id", "item_id", "rating", "timestamp", "price", "image")


@dataclass(frozen=True)
class Guess:
    """What a table was taken for.

    Attributes:
        roles: role -> column.
        reasons: role -> why that column was taken; "kind" -> why the table is of that kind.
        notes: what could also be otherwise.
    """

    kind: Kind
    roles: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def guess(
    file_name: str, columns: Sequence[str], sample: pa.Table, corrections: Corrections
) -> tuple[Kind, dict[str, str]]:
    """Kind of a table and its roles (role -> column), from names, first values and corrections.

    A role that is not found is simply absent; the caller knows which ones it cannot do without.
    """
    found = judge(file_name, columns, sample, corrections)
    return found.kind, found.roles


def judge(file_name: str, columns: Sequence[str], sample: pa.Table, corrections: Corrections) -> Guess:
    """As :func:`guess`, with the reason of every role and what could also be otherwise."""
    roles: dict[str, str] = {}
    why: dict[str, str] = {}
    notes: list[str] = []
    for role in ROLES_OF_TABLES:
        fitting = by_name(role, columns, sample, roles.values())
        if fitting:
            roles[role], why[role] = fitting[0], f"the column is called {fitting[0]!r}"
            if fitting[1:] and role in _DOUBTFUL:
                others = ", ".join(repr(c[:60]) for c in fitting[1:5])
                notes.append(f"{role}: taken from {fitting[0]!r}; could also be {others}")
        elif role == "timestamp":
            _take_days(columns, sample, roles, why)
    if not {"user_id", "item_id"} <= roles.keys():
        _guess_bare_id(file_name, columns, roles, why)
    said = [(role, column) for kind, role, column in corrections.roles if kind is None]
    said_here = corrections.roles_of(file_name)
    told = corrections.option("kind", file_name)
    if told in (None, "interactions") and not {"user_id", "item_id"} <= roles.keys():
        spoken = {role for role, _ in (*said, *said_here)} | {c for _, c in (*said, *said_here)}
        free = [c for c in columns if c not in roles.values() and c not in spoken and not _means_something(c)]
        if not spoken & {"user_id", "item_id"}:
            by_value, reasons, doubts = _role_values.fill(roles, free, sample)
            roles |= by_value
            why |= reasons
            notes += doubts
    if {"user_id", "item_id"} <= roles.keys() and "rating" not in roles:
        _take_labels(columns, sample, roles, why, notes)
        _take_counts(columns, sample, roles, why, notes)
    present = set(columns)
    _apply(roles, said, present, why)
    kind, why["kind"] = _kind(file_name, roles, columns)
    if kind == "interactions":
        for role in ("title", "category", "description"):
            if (
                role in roles
                and (role, roles[role]) not in said
                and (
                    doubt := _not_of_the_item(
                        role, roles[role], columns, roles.get("user_id", ""), roles.get("item_id", "")
                    )
                )
            ):
                notes += [doubt] if "review" in doubt else []
                del roles[role]
    for option in KINDS:
        special = [(role, column) for k, role, column in corrections.roles if k == option] + said_here
        corrected, reasons = dict(roles), dict(why)
        _apply(corrected, special, present, reasons)
        needed = set(NEEDED_OF[option])
        completed = bool(special) and needed <= corrected.keys() and not needed <= roles.keys()
        if told == option or (told is None and (kind == option or completed)):
            if option != kind:
                reasons["kind"] = "you said so" if told else "the roles that were told make it so"
            kind, roles, why = option, corrected, reasons
            break
    for key, of in (("item_id", "items"), ("user_id", "users")):
        if kind == of and key not in roles and plain(columns[0]) == "id":
            roles[key], why[key] = columns[0], f"the column is called {columns[0]!r}"
    if told is not None:
        why["kind"] = "you said so"
    kept = {role: roles[role] for role in ALL_ROLES if role in roles and role in ROLES_OF[kind]}
    notes = [note for note in notes if note.partition(":")[0] in kept or note.partition(":")[0] not in ALL_ROLES]
    if kind == "interactions" and {"user_id", "item_id"} <= kept.keys():
        taken = {role for role, column in (*said, *said_here) if column == ""}
        wanted = {"rating", "timestamp"} - kept.keys() - taken - ({"rating"} if "event" in kept else set())
        free = [c for c in columns if c not in kept.values() and not _means_something(c)]
        notes += _role_values.overlooked(wanted, free, sample)
        notes += [note for role in sorted(wanted) for note in _refused(role, columns, sample, kept.values())]
    return Guess(kind, kept, {r: w for r, w in why.items() if r in kept or r == "kind"}, tuple(notes))


def _refused(role: str, columns: Sequence[str], sample: pa.Table, taken: Iterable[str]) -> Iterator[str]:
    """What is called like the role and does not play it, since its cells are something else."""
    used = set(taken)
    what = {"rating": "numbers", "timestamp": "times"}[role]
    for column in columns:
        if column not in used and rank_of(role, column) is not None and not _fits(role, sample.column(column)):
            example = next(cell for cell in sample.column(column).to_pylist() if cell.strip())
            yield f"{column!r} is called like a {role}, but its cells are no {what} ({example[:40]!r})"


def _take_days(columns: Sequence[str], sample: pa.Table, roles: dict[str, str], why: dict[str, str]) -> None:
    """A column called ``Tag`` or ``day`` whose cells are whole dates: not tags, days of a month or of a week."""
    for column in columns:
        if column in roles.values() or plain(column) not in DAYS:
            continue
        cells = [cell.strip() for cell in sample.column(column).to_pylist() if cell.strip()]
        dates = sum(_WHOLE_DATE.match(cell) is not None for cell in cells)
        if cells and 2 * dates > len(cells) and _fits("timestamp", sample.column(column)):
            roles["timestamp"], why["timestamp"] = column, f"the column is called {column!r} and holds dates"
            return


_WHOLE_DATE = re.compile(r"\d{1,4}\s?[-./年]\s?\d{1,2}\s?[-./月]\s?\d{1,4}")


def _take_labels(
    columns: Sequence[str], sample: pa.Table, roles: dict[str, str], why: dict[str, str], notes: list[str]
) -> None:
    """A column of clicks beside users and items: without it, what was not clicked would count as an interaction."""
    for column in columns:
        if column in roles.values() or rank_of("label", column) is None:
            continue
        words = {cell.strip().lower() for cell in sample.column(column).to_pylist()} - {""}
        if words in ({"0", "1"}, {"true", "false"}, {"yes", "no"}, {"0.0", "1.0"}):
            roles["rating"], why["rating"] = (
                column,
                f"the column is called {column!r} and holds {' and '.join(sorted(words))}",
            )
            notes.append(f"rating: taken from {column!r}, which tells what was chosen and what was not")
            return


def _take_counts(
    columns: Sequence[str], sample: pa.Table, roles: dict[str, str], why: dict[str, str], notes: list[str]
) -> None:
    """A column that counts plays or clicks beside users and items: how strong a choice was, though no liking."""
    for column in columns if not {"rating", "event"} & roles.keys() else ():
        if column in roles.values() or plain(column) not in _COUNTS:
            continue
        numbers, bad = parse_numbers(pa.array(sample.column(column).to_pylist(), pa.large_string()))
        known = numbers[~np.isnan(numbers)]
        if bad.any() or not len(known) or known.min() < 0 or (known != np.floor(known)).any() or known.max() > 1e7:
            continue
        roles["rating"], why["rating"] = column, f"the column is called {column!r} and holds whole numbers"
        notes.append(f"rating: {column!r} is taken as counts, not as liking; rating= leaves it out")
        return


#: Names of columns that count, in the wild. Quantities and hours count something else as often.
_COUNT_NAMES = (
    "playcount playcounts plays play numplays nplays timesplayed timeslistened listencount listens count counts cnt "
    "weight times frequency freq clicks clickcount views viewcount watchcount purchasecount timesbought scrobbles hits "
    "播放次数 次数 点击次数 浏览次数 播放量"
)
_COUNTS = frozenset(_COUNT_NAMES.split())


#: Roles that are looked for by name in every table; those of other layouts are looked for by the layouts.
ROLES_OF_TABLES = (*ROLES, "price", "image")


def by_name(role: str, columns: Sequence[str], sample: pa.Table, taken: Iterable[str] = ()) -> list[str]:
    """Columns whose name and values fit the role, best first; those without any value come last."""
    used = set(taken)
    ranked = sorted((rank, i, c) for i, c in enumerate(columns) if (rank := rank_of(role, c)) is not None)
    fitting = [c for _, _, c in ranked if c not in used and _fits(role, sample.column(c))]
    return sorted(fitting, key=lambda c: not _has_values(sample.column(c))) if len(fitting) > 1 else fitting


def _has_values(cells: pa.ChunkedArray) -> bool:
    return any(cell.strip() for cell in cells.to_pylist())


def _means_something(column: str) -> bool:
    """Whether a column's name says what it is, so that its values need not."""
    key = plain(column)
    if key == "id" or key in USERISH or is_event_id(column):
        return True
    return any(rank_of(role, column) is not None for role in _TELLING)


#: Names of facts are single letters, too: they tell nothing by themselves.
_TELLING = tuple(role for role in ALL_ROLES if role not in ("head", "relation", "tail", "input"))


def _not_of_the_item(role: str, column: str, columns: Sequence[str], user: str, item: str) -> str:
    """Why a column beside users does not describe the item; "" where it may."""
    inside = column.rpartition(".")[0]
    if inside and inside == user.rpartition(".")[0] and inside != item.rpartition(".")[0]:
        return "it stands beside the user in one object"
    names = {plain(c) for c in columns}
    if role in ("title", "category") and plain(column) in _EVENTFUL:
        return "it says something about the event"
    if role in ("title", "description") and names & _REVIEW and plain(column) in ("title", "summary", "text"):
        return f"{column!r} was taken for that of the review, not of the item"
    return ""


def _apply(roles: dict[str, str], entries: Sequence[tuple[str, str]], present: set[str], why: dict[str, str]) -> None:
    for role, column in entries:
        if column == "":
            roles.pop(role, None)
        elif column in present:
            for other in [r for r, c in roles.items() if c == column]:
                del roles[other]
            roles[role], why[role] = column, "you said so"


def _kind(file_name: str, roles: Mapping[str, str], columns: Sequence[str]) -> tuple[Kind, str]:
    bare = file_name.rpartition("/")[2]
    if {"user_id", "item_id"} <= roles.keys():
        return "interactions", "it has both users and items"
    if "item_id" in roles:
        return "items", "it has items and no users"
    if "user_id" in roles:
        # A table with ratings by users is about interactions, even where the item column was not recognised.
        if "rating" in roles:
            return "interactions", "it has users and ratings"
        return "users", "it has users and no items"
    if _USER_FILE.search(bare):
        return "users", f"the file is called {bare!r}"
    if _ITEM_FILE.search(bare) and "rating" not in roles:
        return "items", f"the file is called {bare!r}"
    return "interactions", "nothing says that it is anything else"


def _guess_bare_id(file_name: str, columns: Sequence[str], roles: dict[str, str], why: dict[str, str]) -> None:
    """A column called just "id" names users or items, by the company it keeps."""
    bare = next((c for c in columns if plain(c) == "id"), None)
    if bare is None or "user_id" in roles or "item_id" in roles:
        return
    file_name = file_name.rpartition("/")[2]
    if _USER_FILE.search(file_name) or any(plain(c) in USERISH for c in columns):
        roles["user_id"], why["user_id"] = bare, f"{bare!r} stands beside what people have, such as an age"
    elif "title" in roles or _ITEM_FILE.search(file_name):
        roles["item_id"], why["item_id"] = bare, f"{bare!r} stands in a table of items"


def _fits(role: str, values: pa.ChunkedArray) -> bool:
    """Whether the first values can play the role: a film's "PG-13" is no rating, however its column is called."""
    if role not in ("rating", "timestamp", "event", "image", "price"):
        return True
    filled = [v for v in values.to_pylist() if v.strip()]
    if not filled:
        return True
    if role == "event":
        # A few words that come again and again; a text of its own in every row tells no kind of event.
        return len(set(filled)) <= max(8, len(filled) // 10) and max(map(len, filled)) <= 60
    if role in ("image", "price"):
        shape = _IMAGE if role == "image" else _PRICE
        return sum(shape.fullmatch(v.strip()) is not None for v in filled) * 2 > len(filled)
    text = pa.array(filled, pa.large_string())
    if role == "timestamp":
        return bool(parse_times(text, "timestamp", strict=False)[1].mean() <= 0.5)
    numbers, bad = parse_numbers(text)
    # Numbers of that size are ids or times; a column called "note" may hold anything.
    known = np.abs(numbers[~np.isnan(numbers)])
    return bool(bad.mean() <= 0.5) and (not len(known) or bool(np.median(known) <= _LARGEST_RATING))


def check_headers(columns: Sequence[str], where: str) -> None:
    """Raises: DataError for a header that is empty or stands there twice."""
    seen: set[str] = set()
    for number, column in enumerate(columns, start=1):
        if not column:
            raise DataError(f"column {number} has no name.", where=where, fix="Give every column a name of its own.")
        if column in seen:
            raise DataError(
                f"the column name {column[:80]!r} stands there twice.", where=where, fix="Rename one of the columns."
            )
        seen.add(column)


#: Words that a template would not read as a column: Jinja2's own, and the methods of a mapping.
_UNUSABLE = frozenset(
    [
        "true",
        "false",
        "none",
        "not",
        "and",
        "or",
        "if",
        "else",
        "elif",
        "endif",
        "for",
        "endfor",
        "in",
        "is",
        "recursive",
        "loop",
        "self",
        "caller",
        "varargs",
        "kwargs",
        "item",
        "items",
        "keys",
        "values",
        "get",
        "pop",
        "popitem",
        "update",
        "copy",
        "clear",
        "setdefault",
        "fromkeys",
    ]
) | {word for word in keyword.kwlist if word not in {"class"}}


def field_names(columns: Sequence[str], reserved: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Identifiers for template use: ``Release Year`` -> ``release_year``.

    Args:
        columns: names as they stand in the file.
        reserved: names that are taken already.

    Returns:
        (file's name -> identifier, notes about collisions and unusable names).
    """
    taken, names, notes = set(reserved), {}, []
    for column in columns:
        base = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", column).lower()).strip("_")[:60] or "field"
        if not base.isidentifier():
            base = f"field_{base}" if f"field_{base}".isidentifier() else "field"
        if base in _UNUSABLE:
            base += "_"
        name, number = base, 2
        while name in taken:
            name, number = f"{base.rstrip('_')}_{number}", number + 1
        if name not in (base, base.rstrip("_")) or base.endswith("_"):
            notes.append(f"column {column[:60]!r} is called {name!r} in this dataset")
        taken.add(name)
        names[column] = name
    return names, notes


__all__ = [
    "ALL_ROLES",
    "KINDS",
    "LAYOUTS",
    "NEEDED_OF",
    "ROLES",
    "ROLES_OF",
    "Corrections",
    "Guess",
    "Kind",
    "by_name",
    "check_headers",
    "field_names",
    "guess",
    "is_role_name",
    "judge",
    "names_file",
    "parse_mapping",
    "plain",
]
