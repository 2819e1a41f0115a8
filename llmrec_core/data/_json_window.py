"""JSON values read one after another from a file that is decoded as far as needed."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec_core.data._encodings import MAX_LINE_BYTES, utf8_blocks

_SPACE = re.compile(r"[\s,]*")


class Refused(str):
    """Why a row is refused, where a value stood that may be text itself; ``text``: what stood there, clipped."""

    text = ""


class Twice(ValueError):
    """An object that says two things about one field."""


def _decoder() -> json.JSONDecoder:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise Twice("a field stands there twice")
        return fields

    return json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=refuse, object_pairs_hook=once)


_DECODER = _decoder()
_LOOSE = json.JSONDecoder()


def decoded(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        return Refused(f"not valid JSON ({short(error)})")


def short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


class Broken(ValueError):
    """No value can be read from here on."""


class Window:
    """Text that is read as far as needed, and the values in it one after another."""

    def __init__(self, path: Path, codec: str, name: str) -> None:
        self._texts = _texts(path, codec, name)
        self.text, self.position = "", 0
        #: No value ended within what a row may be long.
        self.too_long = False
        self._line, self._counted = 1, 0

    def _more(self) -> bool:
        following = next(self._texts, None)
        if following is None:
            return False
        self.line()
        self.text = self.text[self.position :] + following
        self.position = self._counted = 0
        return True

    def line(self) -> int:
        """The line on which the position stands."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def ahead(self) -> str:
        """The character at the position; "" at the end of the file."""
        return self.text[self.position : self.position + 1]

    def skip_space(self) -> None:
        while True:
            self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or not self._more():
                return

    def value(self) -> Any:
        """The value at the position.

        Raises:
            Twice: an object has a field twice; the next value can be read.
            Broken: it is not valid JSON, or longer than any row.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except Twice:
                self.position = _LOOSE.raw_decode(self.text, self.position)[1]
                raise
            except (ValueError, RecursionError) as error:
                self.too_long = len(self.text) - self.position > MAX_LINE_BYTES
                if isinstance(error, RecursionError) or self.too_long or not self._more():
                    raise Broken(short(error)) from None
                continue
            # A number at the end of what was read may go on.
            if end == len(self.text) and not isinstance(value, dict | list) and self._more():
                continue
            self.position = end
            return value

    def lists(self) -> Iterator[str]:
        """Fields of the object at the start that hold lists of objects, with the position at each list."""
        self.skip_space()
        self.position += 1
        while True:
            self.skip_space()
            if self.ahead() == "}":
                self.position += 1
                return
            key = self.value()
            self.skip_space()
            if not isinstance(key, str) or self.ahead() != ":":
                raise Broken("a field without a name")
            self.position += 1
            self.skip_space()
            if self.ahead() != "[":
                self.value()
                continue
            line, start = self.line(), self.position
            self.position += 1
            self.skip_space()
            if self.ahead() == "{" and self.position - start < 1000 and self.text[start : start + 1] == "[":
                self.position, self._line, self._counted = start, line, start
                yield key
                self.position += 1
                self.skip_space()
            while self.ahead() != "]":
                self.value()
                self.skip_space()
            self.position += 1


def _texts(path: Path, codec: str, name: str) -> Iterator[str]:
    """The file in blocks of text with "\\n" for every line end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    for block in utf8_blocks(path, codec, name):
        yield ends.decode(decoder.decode(block))
    yield ends.decode(decoder.decode(b"", final=True), final=True)
