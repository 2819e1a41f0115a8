"""What a person said about files, as a small YAML document that can be kept and used again.

Everything that an import guesses can stand in it. :meth:`ImportMapping.entries` turns it into the corrections that
``--map`` takes, so that a document, a command and the screen mean the same thing by construction.

Scalars are read as the text they are written in: ``header: no``, ``missing: 99`` and a column called ``007`` keep
their letters, whatever YAML would make of them.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llmrec_core.data._corrections import names_file, parse_mapping
from llmrec_core.errors import DataError

if TYPE_CHECKING:
    from llmrec_core.data.guessing import ImportGuess

MAPPING_FILE = "mapping.yaml"
_MAX_BYTES = 512 * 1024
_MAX_DEPTH = 8
_MAX_NODES = 40_000
#: Columns that are kept over all tables; a table beyond is known again by its name alone.
_MAX_COLUMNS = 5000

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
Text = Annotated[str, Field(max_length=512)]
#: A role without a column ("rating:" with nothing behind it) takes the role away.
Column = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


def _one_line(text: str) -> str:
    if any(ord(character) < 32 and character != "\t" for character in text):
        raise ValueError("control characters do not belong here")
    return text


def _known_version(version: int) -> int:
    if version != 1:
        raise ValueError(f"this Studio reads version 1, not {version}")
    return version


Name = Annotated[Text, AfterValidator(_one_line)]
#: Files and columns are called whatever they are called.
FileName = Annotated[str, Field(max_length=8192)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValueMapping(_Part):
    """How numbers and times are read; None leaves it to the data."""

    decimal: Literal["auto", "point", "comma"] | None = None
    day_first: Literal["auto", "yes", "no"] | None = None
    time_unit: Name | None = None
    timezone: Name | None = None
    zero: Literal["rating", "unrated", "ask"] | None = None
    missing_time: Literal["refuse", "drop-all", "keep-order"] | None = None
    scale: Name | None = None


class FileMapping(_Part):
    """One table: a file, or a sheet, member or database table inside one."""

    kind: Name | None = None
    layout: Name | None = None
    part: Part | None = None
    leave_out: bool = False
    encoding: Name | None = None
    separator: Annotated[str, Field(max_length=32)] | None = None
    header: bool | None = None
    header_row: int | None = Field(None, ge=1, le=1_000_000)
    table: Name | None = None
    missing: Name | None = None
    pairs: Name | None = None
    #: role -> column; "" says that no column plays the role.
    roles: dict[Name, Column] = {}
    #: The columns that the table had, so that the same table is known again under another name.
    columns: tuple[str, ...] = Field((), max_length=_MAX_COLUMNS)


class PrivacyMapping(_Part):
    """What is hidden on the way in."""

    pseudonymise: bool = False
    #: text column -> what is masked there, e.g. ``[email, phone]``.
    mask: dict[str, tuple[Name, ...]] = {}


class ImportMapping(_Part):
    """Everything that was said about one import.

    Attributes:
        roles: ``role -> column`` for every file, ``items:title -> column`` for the files of one kind.
        files: by name, or by a pattern such as ``ratings-*.csv``; a table inside a file is ``shop.xlsx/Sheet2``.
    """

    version: Annotated[int, AfterValidator(_known_version)] = 1
    duplicates: Literal["last", "mean", "count", "keep"] | None = None
    values: ValueMapping = ValueMapping()
    #: event -> what it counts as a rating: ``purchase: 3``.
    event_weights: dict[str, float] = {}
    privacy: PrivacyMapping = PrivacyMapping()
    roles: dict[Name, Column] = {}
    files: dict[FileName, FileMapping] = Field({}, max_length=20_000)

    def entries(self) -> list[str]:
        """The same as corrections for :func:`import_files`; general ones first, so that those of a file win."""
        said = [f"{role}={column}" for role, column in self.roles.items()]
        if self.duplicates:
            said.append(f"duplicates={self.duplicates}")
        said += [f"{option}={value}" for option, value in self.values.model_dump(exclude_none=True).items()]
        said += [f"event_weight:{event}={weight:g}" for event, weight in self.event_weights.items()]
        if self.privacy.pseudonymise:
            said.append("pseudonymise=yes")
        said += [f"mask:{column}={'+'.join(kinds)}" for column, kinds in self.privacy.mask.items()]
        for name, file in self.files.items():
            said += file_entries(name, file)
        return said


def file_entries(name: str, file: FileMapping) -> list[str]:
    """Corrections of one table. Where the name holds "=", the pattern "?" stands for it: "=" ends a name."""
    place = name.replace("=", "?")
    plain = file.model_dump(exclude_none=True, exclude={"roles", "columns", "leave_out"})
    said = [f"{option}:{place}={_word(value)}" for option, value in plain.items()]
    if file.leave_out:
        said.append(f"leave_out:{place}=yes")
    return said + [f"{role}:{place}={column}" for role, column in file.roles.items()]


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def mapping_of(guesses: Iterable[ImportGuess], entries: Sequence[str] = ()) -> ImportMapping:
    """The document that repeats an import: what each table was taken for, and what was said beside it.

    Args:
        guesses: of all tables, with the corrections applied.
        entries: the corrections. Those of one kind of file went into the guesses; those of a file are kept.
    """
    corrections = parse_mapping(entries)
    out = {
        place for (option, place), value in dict(corrections.files).items() if (option, value) == ("leave_out", "yes")
    }
    files: dict[str, dict[str, Any]] = {place: {"leave_out": True} for place in sorted(out)}
    n_columns = 0
    for guess in guesses:
        kept = {
            option: corrections.option(option, guess.file) for option in ("header_row", "table", "missing", "pairs")
        }
        said: dict[str, Any] = {option: value for option, value in kept.items() if value}
        said |= {"part": guess.part} if guess.part else {}
        if guess.left_out:
            files[glob.escape(guess.file)] = {"leave_out": True}
            continue
        said["layout"] = guess.layout
        if guess.separator is not None:
            said |= {"separator": guess.separator, "header": guess.header}
        taken_away = {role: "" for role, column in corrections.roles_of(guess.file) if column == ""}
        # What a layout used up are columns of the file; the columns it made of them are not, and need not be said.
        roles = guess.origin if guess.origin or guess.layout == "matrix" else guess.roles
        said |= {"kind": guess.kind, "encoding": guess.encoding, "roles": taken_away | roles}
        n_columns += len(guess.columns)
        columns = tuple(guess.columns) if n_columns <= _MAX_COLUMNS else ()
        files.setdefault(glob.escape(guess.file), said | {"columns": columns})
    general = dict(corrections.options)
    document: dict[str, Any] = {
        "files": files,
        "values": {name: value for name, value in general.items() if name in ValueMapping.model_fields},
        "privacy": {
            "pseudonymise": general.get("pseudonymise", "no"),
            "mask": {left[5:]: value.split("+") for left, value in general.items() if left.startswith("mask:")},
        },
        "duplicates": general.get("duplicates"),
        "event_weights": corrections.event_weights(),
    }
    return ImportMapping.model_validate(document)


def fitted(mapping: ImportMapping, tables: Mapping[str, Sequence[str]]) -> tuple[ImportMapping, tuple[str, ...]]:
    """The mapping for files that came again, perhaps under other names.

    What was said about a file holds for the tables that its name or pattern means; else for the one that has the same
    columns and that nothing else means.

    Args:
        tables: name -> columns of what is there now.

    Returns:
        (the mapping with names of now, names in it that no table fits: what was said about them is left out).
    """
    files = {name: file for name, file in mapping.files.items() if any(names_file(name, table) for table in tables)}
    free = {table for table in tables if not any(names_file(name, table) for name in files)}
    unused = []
    for name, file in mapping.files.items():
        if name in files:
            continue
        same = [table for table in free if file.columns and sorted(tables[table]) == sorted(file.columns)]
        if len(same) == 1:
            files[glob.escape(same[0])] = file
            free.discard(same[0])
        elif not file.leave_out:
            unused.append(name)
    return mapping.model_copy(update={"files": files}), tuple(unused)


# ------------------------------------------------------------------------------------------------ YAML


def dump_mapping(mapping: ImportMapping) -> str:
    """YAML of what was said, without what was left to the data; :func:`read_mapping` gives the same mapping back."""
    document = mapping.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return yaml.safe_dump(
        {"version": mapping.version, **document},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )


def load_mapping(path: str | Path) -> ImportMapping:
    """Reads a mapping file.

    Raises:
        DataError: it cannot be read, is too large, no YAML, or says something that an import does not know; with the
            line and the key.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"the mapping cannot be read ({error.strerror}).", where=str(path)) from None
    return read_mapping(raw, path.name)


def read_mapping(raw: bytes | str, where: str = "mapping") -> ImportMapping:
    """A mapping from the text of a document; errors as in :func:`load_mapping`."""
    text = raw if isinstance(raw, str) else _decoded(raw, where)
    if len(text) > _MAX_BYTES:
        raise DataError("this is too large for a mapping.", where=where, fix=f"Keep it under {_MAX_BYTES // 1024} KB.")
    lines: dict[tuple[str, ...], int] = {}
    try:
        _refuse_tricks(text, where)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = {} if root is None else _plain(root, (), lines, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise DataError(
            f"this is not YAML: {problem}.",
            where=f"{where}, line {mark.line + 1}" if mark else where,
            fix="Put names with odd characters in quotes.",
        ) from None
    if not isinstance(document, dict):
        raise DataError("a mapping is a list of `key: value`.", where=where, fix=f"Keys are {_keys(ImportMapping)}.")
    try:
        return ImportMapping.model_validate(document)
    except ValidationError as error:
        raise _located(error, lines, where) from None


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("the mapping is not UTF-8 text.", where=where, fix="Save it as UTF-8.") from None


def _refuse_tricks(text: str, where: str) -> None:
    """Reads the events one by one, before anything is built of them: aliases, tags and deep nesting end it early."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        place = f"{where}, line {event.start_mark.line + 1}" if event.start_mark else where
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DataError("anchors and aliases are not used here.", where=place, fix="Write it out.")
        if tag := getattr(event, "tag", None):
            raise DataError(f"the tag {str(tag)[:40]!r} is not used here.", where=place)
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or count > _MAX_NODES or documents > 1:
            raise DataError("this is nested or long beyond any mapping.", where=place)


def _plain(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], where: str) -> Any:
    """Dicts, lists and the text of scalars; None where nothing stands. Remembers the line of every key."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DataError("a key is one word.", where=f"{where}, line {line}")
            key = str(key_node.value)
            if key in found:
                raise DataError(f"{key[:60]!r} stands there twice.", where=f"{where}, line {line}", fix="Keep one.")
            lines[(*path, key)] = line
            found[key] = _plain(value_node, (*path, key), lines, where)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, str(i)), lines, where) for i, child in enumerate(node.value)]
    nothing = getattr(node, "style", None) is None and node.value in ("", "~", "null")
    return None if nothing else str(node.value)


def _located(error: ValidationError, lines: dict[tuple[str, ...], int], where: str) -> DataError:
    """The first fault, with its line, its key, and the known key or word that is nearest."""
    fault = error.errors(include_url=False)[0]
    path = tuple(str(part) for part in fault["loc"])
    near = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 1)
    place = f"{where}, line {near}"
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        alike = difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"Did you mean {alike[0]!r}?" if alike else f"Known are {', '.join(known)}."
        return DataError(f"unknown key {key[:120]!r}.", where=place, fix=hint)
    message = fault["msg"].removeprefix("Value error, ")
    got = "" if isinstance(fault["input"], dict | list) else f" (it says {str(fault['input'])[:60]!r})"
    return DataError(f"{key[:120]}: {message[:1].lower()}{message[1:]}{got}.", where=place)


def _fields_at(path: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = ImportMapping
    if path[:1] == ("files",):
        model = FileMapping
    elif path[:1] == ("values",):
        model = ValueMapping
    elif path[:1] == ("privacy",):
        model = PrivacyMapping
    return list(model.model_fields)


def _keys(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
