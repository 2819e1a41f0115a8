"""Who is to be forgotten, and how to find that id without touching anybody else.

In structured places (a column ``user_id``, a JSON key ``user_id``) an id is compared as a whole. In running text it is
found in the forms that this code writes (quoted, ``user X``, ``user_id=X``), and as a whole word only where it is
distinctive: an id like "1" must not take every 1 out of a log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: What stands in the place of the id.
GONE = "[forgotten]"
#: Keys and columns that hold a user's id.
USER_KEYS = ("user_id", "user")
#: Ids are cut to this length where the code quotes them in messages.
_QUOTED_CHARS = 80
_OPEN, _CLOSE = "'\"`\u2018\u201c", "'\"`\u2019\u201d"


@dataclass(frozen=True)
class Person:
    """One person's ids in one dataset: the id as given, and its pseudonym if there is one."""

    ids: tuple[str, ...]

    def matches(self, values: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Rows of this person in a column of user ids, bool [n]."""
        text = values.cast(pa.large_string())
        if isinstance(text, pa.ChunkedArray):
            text = text.combine_chunks()
        return pc.is_in(text, pa.array(self.ids, pa.large_string()))

    def redact(self, text: str) -> str:
        """``text`` with the person's id replaced wherever it stands for the person."""
        if not any(form in text for form in self._forms):
            return text
        text = self._quoted.sub(rf"\g<open>{GONE}\g<close>", text)
        text = self._called.sub(rf"\g<word>{GONE}", text)
        return self._words.sub(GONE, text) if self._words is not None else text

    def redact_column(self, values: pa.Array) -> pa.Array:
        """:meth:`redact` of a text column; only cells that hold a distinctive id are looked at."""
        forms = [form for form in self._forms if _distinctive(form)]
        if not forms or not len(values):
            return values
        text = values.cast(pa.large_string())
        held = pc.fill_null(pc.match_substring(text, forms[0]), False)
        for form in forms[1:]:
            held = pc.or_(held, pc.fill_null(pc.match_substring(text, form), False))
        if not pc.any(held).as_py():
            return values
        cleaned = pa.array([self.redact(cell) for cell in text.filter(held).to_pylist()], pa.large_string())
        return pc.replace_with_mask(text, held, cleaned).cast(values.type)

    def scrub(self, value: Any) -> Any:
        """JSON without the person: entries of lists that are about them go, ids and texts are redacted."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.scrub(entry) for entry in value if not self.owns(entry)]
        if isinstance(value, Mapping):
            return {
                self.redact(key): GONE if key in USER_KEYS and entry in self.ids else self.scrub(entry)
                for key, entry in value.items()
                if not (key in self.ids and _distinctive(key))
            }
        return value

    def owns(self, entry: Any) -> bool:
        """Whether a JSON entry is about this person."""
        return isinstance(entry, Mapping) and any(entry.get(key) in self.ids for key in USER_KEYS)

    def holds(self, data: bytes) -> bool:
        """Whether a distinctive id of theirs stands in these bytes as a word, in UTF-8 or as JSON escapes."""
        # The plain search comes first: it reads weights of gigabytes a hundred times faster than the pattern.
        held = [needle for needle in self.needles if needle in data]
        return any(re.search(rb"(?<![0-9A-Za-z_])" + re.escape(n) + rb"(?![0-9A-Za-z_])", data) for n in held)

    @cached_property
    def needles(self) -> tuple[bytes, ...]:
        """Bytes that give a distinctive id away; () where the id is not distinctive enough to search for."""
        return tuple(form.encode("utf-8", "surrogatepass") for form in self._forms if _distinctive(form))

    @cached_property
    def _forms(self) -> tuple[str, ...]:
        """The ids as they may be written: plain, cut, as Python's repr and as JSON escape them; longest first."""
        found: dict[str, None] = {}
        for one in self.ids:
            for text in (one, one[:_QUOTED_CHARS]):
                escaped = (repr(text), json.dumps(text), json.dumps(text, ensure_ascii=False))
                found |= dict.fromkeys([text, *(form[1:-1] for form in escaped)])
        return tuple(sorted(found, key=len, reverse=True))

    @cached_property
    def _any(self) -> str:
        return "|".join(map(re.escape, self._forms))

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        return re.compile(rf"(?P<open>\\?[{_OPEN}])(?:{self._any})(?P<close>\\?[{_CLOSE}])")

    @cached_property
    def _called(self) -> re.Pattern[str]:
        return re.compile(rf"(?P<word>(?i:\buser(?:[_ ]?id)?\b)(?:[ ]?[=:][ ]?|[ ]))(?:{self._any})(?!\w)")

    @cached_property
    def _words(self) -> re.Pattern[str] | None:
        forms = [re.escape(form) for form in self._forms if _distinctive(form)]
        return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)") if forms else None


def _distinctive(form: str) -> bool:
    """Whether this id as a whole word can hardly be anything else: "anna_17", "a@b.org", nine digits; not "anna"."""
    if form.isdigit():
        return len(form) >= 9
    mixed = any(c.isdigit() for c in form) or any(not c.isalnum() for c in form)
    return mixed and len(form) >= 4 and any(c.isalpha() for c in form)
