"""The values of templates, and metered operators on them that keep provenance.

Every operation charges its size to the meter of the rendering thread, so that a template can neither run long nor
grow large, whatever it combines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Undefined

from llmrec_core.prompts._meter import METER, Refused, charge
from llmrec_core.prompts._text import Number, Text, concat, show_number

#: Integers beyond this many bits are refused.
_MAX_INT_BITS = 128


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


def sized(value: Any) -> list[Any]:
    """The elements as a list, charged for."""
    values = elements(value)
    charge(1 + len(values))
    return list(values)


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
    return "something without a text or number of its own"


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


def join_texts(parts: list[str]) -> str:
    total = sum(map(len, parts))
    if total > METER.max_text:
        raise Refused(f"a text grew beyond {METER.max_text:,} characters")
    charge(len(parts) + (total >> 5))
    return concat(parts)


def joined(values: list[Any]) -> str:
    """The ``~`` operator."""
    return join_texts([output(value) for value in values])


def with_origin(result: float | int, *values: Any) -> float | int:
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
        return with_origin(_arithmetic(operator, left, right), left, right)
    if operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            return join_texts([left, right])
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            if len(left) + len(right) > METER.max_list:
                raise Refused(f"a list built in the template has more than {METER.max_list} elements")
            return built([*left, *right])
    if operator == "*" and isinstance(left, str) and isinstance(right, int):
        if len(left) * right > METER.max_text:
            raise Refused(f"a text grew beyond {METER.max_text:,} characters")
        return join_texts([left] * right)
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
