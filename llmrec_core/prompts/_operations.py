"""What a template may do with values: metered operators, filters, methods and functions that keep provenance.

Every operation charges its size to the meter of the rendering thread, so that a template can neither run long nor
grow large, whatever it combines.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Environment, Undefined, pass_environment

from llmrec_core.prompts._text import Number, Text, concat, mapped, show_number

#: Integers beyond this many bits are refused.
_MAX_INT_BITS = 128


class Refused(Exception):
    """A template went over a limit or combined things that do not go together; becomes a TemplateError."""


class Record:
    """Something with named fields that a template reads as ``thing.field``. Subclasses define ``lookup``.

    ``ready`` holds what ``thing.field`` gave before, since templates ask again and again.
    """

    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready: dict[str, Any] = {}

    def lookup(self, name: str) -> Any:
        """The field's value, or MISSING."""
        raise NotImplementedError

    def known_fields(self) -> Iterable[str]:
        """Names for the message about a missing one."""
        raise NotImplementedError


class Fields(Record):
    """A read-only mapping of named values; false when empty; fields in ``optional`` read as empty text if absent."""

    __slots__ = ("_optional", "_values")

    def __init__(self, values: Mapping[str, Any], optional: Iterable[str] = ()) -> None:
        super().__init__()
        self._values = dict(values)
        self._optional = tuple(optional)

    def lookup(self, name: str) -> Any:
        found = self._values.get(name, MISSING)
        return "" if found is MISSING and name in self._optional else found

    def known_fields(self) -> Iterable[str]:
        return dict.fromkeys((*self._optional, *self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def mapping(self) -> dict[str, Any]:
        return self._values


#: Stands for "no such field"; None is a value.
MISSING: Any = object()


class Meter(threading.local):
    """What the render of this thread may still spend."""

    fuel: int = 0
    max_text: int = 0
    max_list: int = 0


METER = Meter()


def charge(amount: int) -> None:
    """Takes ``amount`` from the meter.

    Raises:
        Refused: nothing is left.
    """
    left = METER.fuel - amount
    METER.fuel = left
    if left < 0:
        raise Refused("the template does too much work (loops, lists or texts are too long)")


def weigh(value: Any) -> Any:
    """``value`` itself, after charging its size: called where a native operation would walk through it."""
    if isinstance(value, str):
        if len(value) > 256:
            charge(len(value) >> 6)
    elif isinstance(value, (list, tuple, dict, Fields, range)):
        pending: list[Any] = [value]
        while pending:
            thing = pending.pop()
            if isinstance(thing, str):
                charge(1 + (len(thing) >> 6))
            elif isinstance(thing, (list, tuple, range)):
                charge(1 + len(thing))
                if not isinstance(thing, range):
                    pending.extend(thing)
            elif isinstance(thing, (dict, Fields)):
                charge(1 + 2 * len(thing))
                pending.extend((thing if isinstance(thing, dict) else thing.mapping()).values())
    return value


def built(value: Any) -> Any:
    """A list, tuple or mapping made by the template, if it is small all the way down.

    Raises:
        Refused: with everything nested in it, it has too many elements.
    """
    count, pending = 0, [value]
    while pending:
        thing = pending.pop()
        if isinstance(thing, (list, tuple, dict)):
            count += len(thing)
            if count > METER.max_list:
                raise Refused(f"a list built in the template has more than {METER.max_list} elements")
            pending.extend(thing.values() if isinstance(thing, dict) else thing)
    charge(1 + count)
    return value


def looped(value: Any, weight: int) -> Any:
    """What a ``for`` may run over, after charging every pass through a body of ``weight`` steps."""
    values = elements(value)
    charge(len(values) * weight)
    return values


def elements(value: Any) -> Any:
    """``value`` as something with a length to iterate over.

    Raises:
        Refused: it is not a list, mapping, text or range.
    """
    if isinstance(value, (list, tuple, range, dict, Fields)):
        return value
    if isinstance(value, str):
        # Letter by letter, with marks.
        charge(len(value))
        return [value[i] for i in range(len(value))]
    require(value)
    raise Refused(f"{describe(value)} is not a list")


def require(value: Any) -> Any:
    """``value``; an undefined one raises its own message."""
    if isinstance(value, Undefined):
        str(value)
    return value


def describe(value: Any) -> str:
    """The kind of a value in words."""
    if value is None:
        return "nothing (none)"
    if isinstance(value, bool):
        return "a yes/no value"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, (list, tuple, range)):
        return "a list"
    if isinstance(value, (dict, Fields)):
        return "a mapping"
    if isinstance(value, Record):
        return "an item"
    return "something that is no value"


def text_of(value: Any) -> str:
    """A text or number as text.

    Raises:
        Refused: anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Number):
        return Text.of(show_number(value), value.origin)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return show_number(value)
    require(value)
    raise Refused(f"a text is needed here, not {describe(value)}")


def number_of(value: Any) -> float | int:
    """A number, or a text that is one.

    Raises:
        Refused: anything else.
    """
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, str) and len(value) <= 30:
        try:
            return float(value)
        except ValueError:
            pass
    require(value)
    raise Refused(f"a number is needed here, not {describe(value)}")


def output(value: Any) -> str:
    """What ``{{ value }}`` prints: texts and numbers; nothing for none.

    Raises:
        Refused: lists, mappings, items and functions, which have no text of their own.
    """
    if isinstance(value, str):
        # A short one is covered by the step that prints it.
        if len(value) > 256:
            charge(len(value) >> 6)
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return text_of(value)
    require(value)
    raise Refused(f"{{{{ }}}} cannot print {describe(value)}; name one of its fields, loop over it or use |join")


def _join_texts(parts: list[str]) -> str:
    total = sum(map(len, parts))
    if total > METER.max_text:
        raise Refused(f"a text grew beyond {METER.max_text:,} characters")
    charge(len(parts) + (total >> 5))
    return concat(parts)


def joined(values: list[Any]) -> str:
    """The ``~`` operator."""
    return _join_texts([output(value) for value in values])


def _with_origin(result: float | int, *values: Any) -> float | int:
    for value in values:
        if isinstance(value, Number):
            return Number(result, value.origin)
    return result


def binary(operator: str, left: Any, right: Any) -> Any:
    """The arithmetic operators.

    Raises:
        Refused: operands that do not go together, or a result that is too large.
    """
    charge(1)
    require(left)
    require(right)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return _with_origin(_arithmetic(operator, left, right), left, right)
    if operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            return _join_texts([left, right])
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            if len(left) + len(right) > METER.max_list:
                raise Refused(f"a list built in the template has more than {METER.max_list} elements")
            return built([*left, *right])
    if operator == "*" and isinstance(left, str) and isinstance(right, int):
        if len(left) * right > METER.max_text:
            raise Refused(f"a text grew beyond {METER.max_text:,} characters")
        return _join_texts([left] * right)
    hint = "; use ~ to put texts together" if operator in {"+", "%"} else ""
    raise Refused(f"{operator!r} cannot combine {describe(left)} and {describe(right)}{hint}")


def _arithmetic(operator: str, left: float, right: float) -> float | int:
    result: float | int
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int) and right > 0:
            if left.bit_length() * right > _MAX_INT_BITS:
                raise Refused("a number grew too large")
            return int(left**right)
        result = left**right
        if isinstance(result, complex):
            raise Refused("a root of a negative number")
    elif operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif operator == "/":
        result = left / right
    elif operator == "//":
        result = left // right
    else:
        result = left % right
    if isinstance(result, int) and result.bit_length() > _MAX_INT_BITS:
        raise Refused("a number grew too large")
    return result


# ---- filters ---------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[str], str]) -> Callable[[Any], str]:
    def apply(value: Any) -> str:
        text = text_of(value)
        charge(1 + (len(text) >> 4))
        changed = mapped(text, change)
        # One letter can become three in another case.
        if len(changed) > METER.max_text:
            raise Refused(f"a text grew beyond {METER.max_text:,} characters")
        return changed

    return apply


upper, lower, title = _changed(str.upper), _changed(str.lower), _changed(str.title)


def capitalize(value: Any) -> str:
    text = text_of(value)
    return concat([upper(text[:1]), lower(text[1:])])


def strip(value: Any, chars: str | None = None, *, left: bool = True, right: bool = True) -> str:
    text = text_of(value)
    chars = None if chars is None else short(chars)
    charge(1 + (len(text) >> 5))
    start = len(text) - len(text.lstrip(chars)) if left else 0
    end = len(text.rstrip(chars)) if right else len(text)
    return text[start : max(start, end)]


def truncate(value: Any, length: int = 60, killwords: bool = False, end: str = "…", leeway: int = 0) -> str:
    """At most ``length`` characters with ``end`` as the last; whole words unless ``killwords``."""
    text = text_of(value)
    length = max(0, int(number_of(length)))
    charge(1 + (len(text) >> 5))
    if len(text) <= length + int(number_of(leeway)):
        return text
    end = text_of(end)[:length]
    kept = text[: length - len(end)]
    if not killwords and (space := kept.rfind(" ")) > 0:
        kept = kept[:space]
    return _join_texts([kept, end])


def replace(value: Any, old: str, new: str, count: int = -1) -> str:
    """``old`` becomes ``new`` within each stretch of one origin."""
    text, old, new = text_of(value), short(old), text_of(new)
    if not old:
        raise Refused("replace needs a text to look for")
    if len(text) + text.count(old) * len(new) > METER.max_text:
        raise Refused(f"a text grew beyond {METER.max_text:,} characters")
    charge(1 + (len(text) >> 4))
    left = int(number_of(count))

    def change(piece: str) -> str:
        nonlocal left
        found = piece.count(old)
        changed = piece.replace(old, new, left)
        if left >= 0:
            left -= min(found, left)
        return changed

    return mapped(text, change)


def split(value: Any, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    text = text_of(value)
    limit = int(number_of(maxsplit))
    pieces: list[str] = []
    done = 0
    if sep is None:
        text = strip(text)
        gaps: Iterable[tuple[int, int]] = (found.span() for found in re.finditer(r"\s+", text))
    else:
        gaps = _places(text, short(sep))
    for start, end in gaps:
        if 0 <= limit <= len(pieces):
            break
        charge(1)
        pieces.append(text[done:start])
        done = end
    if sep is not None or done < len(text):
        pieces.append(text[done:])
    return built(pieces)


def _places(text: str, sep: str) -> Iterator[tuple[int, int]]:
    if not sep:
        raise Refused("split needs a separator that is not empty")
    at = text.find(sep)
    while at >= 0:
        yield at, at + len(sep)
        at = text.find(sep, at + len(sep))


def short(value: Any) -> str:
    """A text to look for; searching with long ones can take the product of both lengths."""
    text = text_of(value)
    if len(text) > 200:
        raise Refused("a text to look for may have at most 200 characters")
    return text


def default(value: Any, other: Any = "", boolean: bool = False) -> Any:
    if isinstance(value, Undefined) or (boolean and not value):
        return other
    return value


def _field(environment: Environment, value: Any, attribute: Any) -> Any:
    charge(1)
    return require(environment.getitem(value, attribute))


@pass_environment
def join(environment: Environment, value: Any, sep: Any = "", attribute: Any = None) -> str:
    parts: list[str] = []
    separator = text_of(sep)
    for position, element in enumerate(sized(value)):
        if position and separator:
            parts.append(separator)
        parts.append(output(element if attribute is None else _field(environment, element, attribute)))
    return _join_texts(parts)


def sized(value: Any) -> list[Any]:
    """The elements as a list, charged for."""
    values = elements(value)
    charge(1 + len(values))
    return list(values)


@pass_environment
def map_attribute(environment: Environment, value: Any, *, attribute: Any, default: Any = MISSING) -> list[Any]:
    found = []
    for element in sized(value):
        field = environment.getitem(element, attribute)
        found.append(require(field) if default is MISSING or not isinstance(field, Undefined) else default)
    return found


def _select(keep: bool) -> Any:
    @pass_environment
    def select(environment: Environment, value: Any, attribute: Any, test: str = "", other: Any = None) -> list[Any]:
        found = []
        for element in sized(value):
            field = _field(environment, element, attribute)
            if not test:
                passed = bool(field)
            elif test in environment.tests:
                weigh(field)
                weigh(other)
                passed = bool(environment.call_test(test, field, None if other is None else [other]))
            else:
                raise Refused(f"unknown test {test[:40]!r}; known are {', '.join(sorted(environment.tests))}")
            if passed is keep:
                found.append(element)
        return found

    return select


@pass_environment
def sort(environment: Environment, value: Any, reverse: bool = False, attribute: Any = None) -> list[Any]:
    def key(element: Any) -> Any:
        field = element if attribute is None else _field(environment, element, attribute)
        if not isinstance(field, (str, int, float)):
            raise Refused(f"sort cannot compare {describe(require(field))}")
        return weigh(field)

    return sorted(sized(value), key=key, reverse=bool(reverse))


def unique(value: Any) -> list[Any]:
    found: dict[Any, Any] = {}
    for element in sized(value):
        if not isinstance(element, (str, int, float, type(None))):
            raise Refused(f"unique cannot compare {describe(require(element))}")
        found.setdefault(weigh(element), element)
    return list(found.values())


def length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(elements(value))


def first(value: Any) -> Any:
    values = sized(value)
    return values[0] if values else None


def last(value: Any) -> Any:
    values = sized(value)
    return values[-1] if values else None


def reverse(value: Any) -> Any:
    if isinstance(value, str):
        charge(1 + len(value))
        return value[::-1]
    return sized(value)[::-1]


def _extreme(choose: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    def extreme(value: Any) -> Any:
        values = [number_of(element) for element in sized(value)]
        return choose(values) if values else None

    return extreme


def total(value: Any) -> float | int:
    return sum(number_of(element) for element in sized(value))


def to_int(value: Any, other: int = 0) -> float | int:
    try:
        number = number_of(value)
        return _with_origin(int(number), value)
    except (Refused, OverflowError, ValueError):
        return other


def to_float(value: Any, other: float = 0.0) -> float | int:
    try:
        return _with_origin(float(number_of(value)), value)
    except (Refused, OverflowError):
        return other


def rounded(value: Any, precision: int = 0) -> float | int:
    # round() with a large negative precision computes that power of ten.
    digits = int(max(-15, min(15, number_of(precision))))
    number = float(number_of(value))
    return _with_origin(round(number, digits), value)


def absolute(value: Any) -> float | int:
    return _with_origin(abs(number_of(value)), value)


def items(value: Any) -> list[tuple[str, Any]]:
    pairs = list(_mapping(value).items())
    charge(1 + len(pairs))
    return pairs


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Fields):
        return value.mapping()
    if isinstance(value, dict):
        return value
    require(value)
    raise Refused(f"a mapping is needed here, not {describe(value)}")


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": absolute,
    "capitalize": capitalize,
    "count": length,
    "d": default,
    "default": default,
    "first": first,
    "float": to_float,
    "int": to_int,
    "items": items,
    "join": join,
    "last": last,
    "length": length,
    "list": sized,
    "lower": lower,
    "map": map_attribute,
    "max": _extreme(max),
    "min": _extreme(min),
    "rejectattr": _select(False),
    "replace": replace,
    "reverse": reverse,
    "round": rounded,
    "selectattr": _select(True),
    "sort": sort,
    "string": text_of,
    "sum": total,
    "title": title,
    "trim": strip,
    "truncate": truncate,
    "unique": unique,
    "upper": upper,
}

#: Names of Jinja's own tests that are harmless on our values.
TESTS = frozenset(
    (
        *("boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "greaterthan", "gt"),
        *("in", "integer", "iterable", "le", "lessthan", "lower", "lt", "mapping", "ne", "none", "number", "odd"),
        *("sequence", "string", "true", "undefined", "upper", "==", "!=", "<", "<=", ">", ">="),
    )
)


class Function:
    """A call that templates may make; nothing else can be called. ``bound`` come first among its arguments."""

    __slots__ = ("_bound", "_run")

    def __init__(self, run: Callable[..., Any], *bound: Any) -> None:
        self._run = run
        self._bound = bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        charge(1)
        return self._run(*self._bound, *args, **kwargs)


def _starts(text: str, prefix: str) -> bool:
    return text.startswith(text_of(prefix))


def _ends(text: str, suffix: str) -> bool:
    return text.endswith(text_of(suffix))


TEXT_METHODS: dict[str, Callable[..., Any]] = {
    "capitalize": capitalize,
    "endswith": _ends,
    "lower": lower,
    "lstrip": lambda text, chars=None: strip(text, chars, right=False),
    "replace": replace,
    "rstrip": lambda text, chars=None: strip(text, chars, left=False),
    "split": split,
    "startswith": _starts,
    "strip": strip,
    "title": title,
    "upper": upper,
}

MAPPING_METHODS: dict[str, Callable[..., Any]] = {
    "get": lambda mapping, name, other=None: _mapping(mapping).get(name, other),
    "items": items,
    "keys": lambda mapping: [name for name, _ in items(mapping)],
    "values": lambda mapping: [value for _, value in items(mapping)],
}

#: What a loop tells about itself.
LOOP_FIELDS = frozenset(["index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"])


def bounded_range(*args: Any) -> range:
    """``range`` of at most as many numbers as a list may have."""
    found = range(*[int(number_of(argument)) for argument in args])
    # len() of a range beyond the machine's word overflows; its ends do not.
    if abs(found.stop - found.start) > METER.max_list * abs(found.step):
        raise Refused(f"range() gives at most {METER.max_list} numbers")
    return found
