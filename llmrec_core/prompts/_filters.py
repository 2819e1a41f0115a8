"""The filters, tests, methods and functions that templates may use: metered, and keeping provenance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Environment, Undefined, pass_environment

from llmrec_core.prompts._meter import METER, Refused, charge
from llmrec_core.prompts._operations import (
    MISSING,
    Fields,
    built,
    describe,
    elements,
    join_texts,
    number_of,
    output,
    require,
    sized,
    text_of,
    weigh,
    with_origin,
)
from llmrec_core.prompts._text import concat, mapped


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
    return join_texts([kept, end])


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
    return join_texts(parts)


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
        return with_origin(int(number), value)
    except (Refused, OverflowError, ValueError):
        return other


def to_float(value: Any, other: float = 0.0) -> float | int:
    try:
        return with_origin(float(number_of(value)), value)
    except (Refused, OverflowError):
        return other


def rounded(value: Any, precision: int = 0) -> float | int:
    # round() with a large negative precision computes that power of ten.
    digits = int(max(-15, min(15, number_of(precision))))
    number = float(number_of(value))
    return with_origin(round(number, digits), value)


def absolute(value: Any) -> float | int:
    return with_origin(abs(number_of(value)), value)


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
