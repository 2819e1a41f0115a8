"""What a person says against the guesses of an import, one entry each: ``rating=stars``, ``layout:FILE=matrix``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmrec_core.data._role_names import ALL_ROLES, KINDS, LAYOUTS, ROLES_OF, Kind
from llmrec_core.errors import InputError


@dataclass(frozen=True)
class Corrections:
    """What a person said against the guesses.

    ``roles``: (kind or None, role, column; "" takes the role away). ``files``: (option, file name) -> value, where an
    option may be a role and the value its column. ``options``: what holds for the whole import; ``mask:COLUMN`` names
    what is masked in a text column, ``event_weight:EVENT`` what an event counts.
    """

    roles: tuple[tuple[Kind | None, str, str], ...] = ()
    files: Mapping[tuple[str, str], str] = ()  # type: ignore[assignment]
    options: Mapping[str, str] = ()  # type: ignore[assignment]

    def option(self, option: str, file_name: str) -> str | None:
        """What was said about one table.

        Its whole name speaks first, then its bare name, then a pattern, then the archive or workbook that it lies in.
        """
        said = {place: value for (known, place), value in dict(self.files).items() if known == option}
        bare = file_name.rpartition("/")[2]
        for name in (file_name, bare):
            if name in said:
                return said[name]
        fitting = [said[place] for place in reversed(list(said)) if names_file(place, file_name)]
        if fitting:
            return fitting[0]
        return next((said[place] for place in _containers(file_name) if place in said), None)

    def with_file(self, option: str, file_name: str, value: str) -> Corrections:
        """The same, with one more thing said about one table."""
        return replace(self, files={**dict(self.files), (option, file_name): value})

    def roles_of(self, file_name: str) -> list[tuple[str, str]]:
        """(role, column) said about this one table."""
        found = ((role, self.option(role, file_name)) for role in dict.fromkeys(o for o, _ in dict(self.files)))
        return [(role, column) for role, column in found if role in ALL_ROLES and column is not None]

    def event_weights(self) -> dict[str, str]:
        """What each event counts, by its name in lower case; {} unless somebody asked for weights."""
        prefix = "event_weight:"
        return {
            option.removeprefix(prefix).lower(): value
            for option, value in dict(self.options).items()
            if option.startswith(prefix)
        }


def _containers(file_name: str) -> Iterator[str]:
    """ "a.zip/b/c.csv" lies in "a.zip/b" and in "a.zip"."""
    while "/" in file_name:
        file_name = file_name.rpartition("/")[0]
        yield file_name


def names_file(pattern: str, file_name: str) -> bool:
    """Whether a name or a pattern such as ``ratings-*.csv`` means this table, by its whole or its bare name."""
    bare = file_name.rpartition("/")[2]
    return any(pattern == name or fnmatch.fnmatchcase(name, pattern) for name in (file_name, bare))


_FILE_OPTIONS = (
    "kind",
    "encoding",
    "separator",
    "header",
    "header_row",
    "layout",
    "missing",
    "pairs",
    "table",
    "leave_out",
    "part",
)
#: Options of the whole import and the words they take; () where the reader of the option judges.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "duplicates": ("last", "mean", "count", "keep"),
    "decimal": ("auto", "point", "comma"),
    "day_first": ("auto", "yes", "no"),
    "time_unit": (),
    "timezone": (),
    "zero": ("rating", "unrated", "ask"),
    "missing_time": ("refuse", "drop-all", "keep-order"),
    "scale": (),
    "pseudonymise": ("yes", "no"),
}
_FILE_WORDS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "layout": LAYOUTS,
    "header": ("yes", "no"),
    "leave_out": ("yes", "no"),
    "part": ("train", "valid", "test"),
    "pairs": ("no", "rating", "time", "rating:time", "time:rating"),
}


def parse_mapping(mapping: Mapping[str, str] | Sequence[str]) -> Corrections:
    """Reads ``role=column``, ``items:title=movie_title``, ``rating:FILE=mark``, ``kind:FILE=items``,
    ``separator:FILE=;``, ``duplicates=last``, ``event_weight:purchase=3`` and the like. FILE may be a pattern; "?" in
    it stands for "=".

    Raises:
        InputError: an entry has no "=", or an unknown role, kind or option.
    """
    entries = [f"{key}={value}" for key, value in mapping.items()] if isinstance(mapping, Mapping) else list(mapping)
    roles: list[tuple[Kind | None, str, str]] = []
    files: dict[tuple[str, str], str] = {}
    options: dict[str, str] = {}
    for entry in entries:
        left, equals, column = entry.partition("=")
        prefix, colon, rest = left.partition(":")
        prefix = prefix.strip().lower()
        if colon and prefix in _FILE_OPTIONS:
            # A file name may hold "=", a column name too: each side is cut where it cannot hurt.
            left, equals, column = entry.rpartition("=")
            rest = left.partition(":")[2]
        if not equals:
            raise InputError(f"{entry[:80]!r} is not of the form role=column.", where="map", fix=_MAP_HELP)
        if colon and prefix in _FILE_OPTIONS:
            if prefix in _FILE_WORDS and column.strip().lower() not in _FILE_WORDS[prefix]:
                fix = f"Use {' or '.join(_FILE_WORDS[prefix])}."
                raise InputError(f"unknown {prefix} {column[:40]!r}.", where="map", fix=fix)
            files[prefix, rest.strip()] = column if prefix == "separator" else column.strip()
            continue
        if colon and prefix in ALL_ROLES:
            files[prefix, rest.strip()] = column.strip()
            continue
        if colon and prefix in ("mask", "event_weight"):
            left, _, column = entry.rpartition("=")
            name = left.partition(":")[2].strip()
            if prefix == "event_weight":
                _check_weight(name, column.strip())
            options[f"{prefix}:{name}"] = column.strip()
            continue
        if not colon and prefix in _OPTIONS:
            words, value = _OPTIONS[prefix], column.strip()
            if not value or (words and value.lower() not in words):
                fix = f"Use {', '.join(words)}." if words else "Say which."
                raise InputError(f"{prefix} cannot be {value[:40]!r}.", where="map", fix=fix)
            options[prefix] = value.lower() if words else value
            continue
        kind = next((k for k in KINDS if k == prefix), None) if colon else None
        role = (rest if colon else left).strip().lower()
        if (colon and kind is None) or role not in ALL_ROLES:
            raise InputError(f"unknown role in {entry[:80]!r}.", where="map", fix=_MAP_HELP)
        if kind is not None and role not in ROLES_OF[kind]:
            raise InputError(f"{kind} have no role {role!r}.", where="map", fix=_MAP_HELP)
        roles.append((kind, role, column.strip()))
    return Corrections(tuple(roles), files, options)


def _check_weight(event: str, weight: str) -> None:
    try:
        good = bool(event) and abs(float(weight)) < 1e6
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"event_weight:{event[:40]}={weight[:40]} is not a weight.",
            where="map",
            fix="Write a number, as in event_weight:purchase=3.",
        )


_MAP_HELP = (
    f"Roles are {', '.join(ALL_ROLES)}; write role=column, items:title=column, or rating:FILE=column for one file. "
    f"Options of a file are {', '.join(_FILE_OPTIONS)}, as in kind:FILE=items; of the import {', '.join(_OPTIONS)}, as "
    "in zero=unrated; event_weight:purchase=3 weighs events."
)
