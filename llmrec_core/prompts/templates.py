"""The starter templates, and the versions of templates that people save."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmrec_core.errors import InputError, TemplateError
from llmrec_core.prompts.sandbox import Sandbox
from llmrec_core.specs import PromptSpec
from llmrec_core.workspace import Workspace, check_name, write_json_atomic

#: What every prompt template may read.
VARIABLES = ("history", "liked", "disliked", "neutral", "profile", "context", "candidate", "candidates", "n_history")


@dataclass(frozen=True)
class StarterTemplate:
    """A template that comes with the app; its name cannot be saved over."""

    name: str
    title: str
    description: str
    source: str


@dataclass(frozen=True)
class SavedTemplate:
    """One version of a template. Starters have version 0 and an empty ``created``."""

    name: str
    version: int
    source: str
    title: str = ""
    description: str = ""
    created: str = ""
    starter: bool = False


_KNOWN = """\
{% for name, value in profile.items() %}
{{ "User:" if loop.first else "," }} {{ name }} {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% for name, value in context.items() %}
{{ "Now:" if loop.first else "," }} {{ name }} {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% for item in history %}
{{ "Seen:" if loop.first else ";" }} {{ item.title }}
{%- if item.fields %} ({{ item.fields }}){% endif %}
{% if item.rating is not none %}: {{ item.rating }}{% endif %}
{% if item.time %} on {{ item.time }}{% endif %}
{{ ".\\n" if loop.last else "" }}
{%- endfor %}
"""

_ITEM = "{{ candidate.title }}{% if candidate.fields %} ({{ candidate.fields }}){% endif %}"

_QUESTION = f"{_KNOWN}Would this user like {_ITEM}?\n"

_YES_NO = f"{_KNOWN}Would this user like {_ITEM}? Answer Yes or No.\nAnswer:\n"

_STARS = f"{_KNOWN}How would this user rate {_ITEM}, as a whole number on the same scale?\nAnswer:\n"

_CANDIDATES = """\
{% for item in candidates %}
{{ item.letter }}. {{ item.title }}{% if item.fields %} ({{ item.fields }}){% endif %}
{{ "\\n" }}
{%- endfor %}
"""

_CHOICE = f"{_KNOWN}Which of these would this user choose next?\n{_CANDIDATES}Answer with the letter of one.\nAnswer:\n"

_TEXT = """\
{% for item in history %}
{{ "This person has chosen" if loop.first else " and then" if loop.last else "," }} {{ item.title }}
{%- if item.rating is not none %}, giving it {{ item.rating }}{% endif %}
{% if item.time %} on {{ item.time }}{% endif %}
{{ ".\\n" if loop.last else "" }}
{%- else %}
Nothing is known yet of what this person has chosen.
{% endfor %}
{% for name, value in profile.items() %}
{{ "The person's" if loop.first else " and the" }} {{ name }} is {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% for name, value in context.items() %}
{{ "At this moment the" if loop.first else " and the" }} {{ name }} is {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
The next choice could be {{ candidate.title }}{% if candidate.fields %}, described as {{ candidate.fields }}{% endif %}.
"""

_LIST = """\
{% for name, value in profile.items() %}
{{ name }}: {{ value }}
{% endfor %}
{% for name, value in context.items() %}
{{ name }}: {{ value }}
{% endfor %}
{% for item in history|reverse %}
{{ "History, newest first:\\n" if loop.first else "" }}- {{ item.title }}
{%- if item.fields %} | {{ item.fields }}{% endif %}
{% if item.rating is not none %} | {{ item.rating }}{% endif %}
{% if item.time %} | {{ item.time }}{% endif %}
{{ "\\n" }}
{%- endfor %}
Candidate: {{ candidate.title }}{{ " | " ~ candidate.fields if candidate.fields else "" }}
"""

_MULTI_LEVEL = """\
{% for name, value in profile.items() %}
{{ "Person:" if loop.first else "," }} {{ name }} {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% for name, value in context.items() %}
{{ "Moment:" if loop.first else "," }} {{ name }} {{ value }}{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% for label, group in [("Liked", liked), ("Disliked", disliked), ("Chosen", neutral)] %}
{% for item in group %}
{{ label ~ ":" if loop.first else ";" }} {{ item.title }}
{%- if item.fields %} ({{ item.fields }}){% endif %}
{% if item.time %} on {{ item.time }}{% endif %}
{{ ".\\n" if loop.last else "" }}
{%- endfor %}
{% endfor %}
Candidate: {{ candidate.title }}.{% for name, value in candidate.named %} {{ name }}: {{ value }}.{% endfor %}
"""

_NEXT = """\
{% for name, value in profile.items() %}
{{ name }}: {{ value }}
{% endfor %}
{% for name, value in context.items() %}
{{ name }}: {{ value }}
{% endfor %}
What one person chose, one after another:
{% for item in history %}
- {{ item.title }}
{% endfor %}
- {{ candidate.title }}
"""

STARTERS: dict[str, StarterTemplate] = {
    starter.name: starter
    for starter in (
        StarterTemplate(
            "question", "Question", "History in a line, then: would this user like the candidate?", _QUESTION
        ),
        StarterTemplate("text", "Flowing text", "Whole sentences, as a person would tell it.", _TEXT),
        StarterTemplate("list", "Lists", "Short lists, newest history first, then the candidate.", _LIST),
        StarterTemplate(
            "multi-level",
            "Multi-level",
            "Who the user is, what they liked and disliked, then the candidate field by field.",
            _MULTI_LEVEL,
        ),
        StarterTemplate("yes-no", "Yes or no", "A question that a language model answers with Yes or No.", _YES_NO),
        StarterTemplate("stars", "Stars", "A question that a language model answers with a rating.", _STARS),
        StarterTemplate(
            "choice", "Choice of letters", "A lettered list of candidates, answered with one letter.", _CHOICE
        ),
        StarterTemplate("next", "Next title", "A list of titles that a language model goes on with.", _NEXT),
    )
}

_VERSION = re.compile(r"v([1-9]\d{0,5})\.jinja")


def prompt_sandbox() -> Sandbox:
    """The sandbox of prompt templates."""
    return Sandbox(VARIABLES)


def check_template(source: str) -> None:
    """Accepts a template that can be compiled and reads known variables only.

    Raises:
        TemplateError: names the line and what was wrong.
    """
    prompt_sandbox().compile(source)


def template_source(spec: PromptSpec, store: TemplateStore | None = None) -> str:
    """The text that ``spec`` stands for: its own ``source``, a starter, or the newest saved version in ``store``.

    Raises:
        TemplateError: the name is unknown; lists the known ones.
    """
    if spec.source is not None:
        return spec.source
    if spec.template in STARTERS:
        return STARTERS[spec.template].source
    if store is not None:
        return store.get(spec.template)
    raise _unknown(spec.template, list(STARTERS))


def paraphrase_source(text: str, store: TemplateStore | None = None) -> str:
    """The text of a further wording, which is given by its name or as the text itself (a template has braces).

    Raises:
        TemplateError: as :func:`template_source`.
    """
    return template_source(PromptSpec(source=text) if "{" in text else PromptSpec(template=text), store)


def _unknown(name: str, known: Iterable[str]) -> TemplateError:
    return TemplateError(
        f"there is no template {name[:80]!r}; known are {', '.join(known)}.", fix="Choose one of these."
    )


class TemplateStore:
    """Saved templates of a workspace: ``templates/<name>/v<N>.jinja``, never overwritten, beside ``v<N>.json``."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def list(self) -> list[SavedTemplate]:
        """The starters, then the newest version of every saved template, by name."""
        return [self.load(name) for name in self._names()]

    def _names(self) -> Sequence[str]:
        saved = [path.name for path in self._workspace.templates.iterdir() if path.is_dir() and _numbers(path)]
        return [*STARTERS, *sorted(name for name in saved if not _is_starter(name))]

    def get(self, name: str, version: int | None = None) -> str:
        """The text of a template, the newest version unless told.

        Raises:
            TemplateError, InputError: as :meth:`load`.
        """
        return self.load(name, version).source

    def load(self, name: str, version: int | None = None) -> SavedTemplate:
        """One template with what is noted about it, the newest version unless told.

        Raises:
            TemplateError: there is no such template or version, or its file cannot be read.
            InputError: the name is not safe.
        """
        if name in STARTERS:
            starter = STARTERS[name]
            return SavedTemplate(name, 0, starter.source, starter.title, starter.description, starter=True)
        folder = self._folder(name)
        numbers = _numbers(folder)
        if not numbers:
            raise _unknown(name, self._names())
        chosen = numbers[-1] if version is None else version
        if chosen not in numbers:
            raise TemplateError(
                f"template {name!r} has no version {chosen}; it has {', '.join(map(str, numbers))}.",
                fix="Choose one of these.",
            )
        path = folder / f"v{chosen}.jinja"
        try:
            source = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(
                f"the file cannot be read: {error}.", where=str(path), fix="Save the template again."
            ) from None
        meta = _read_meta(folder / f"v{chosen}.json")
        return SavedTemplate(
            name, chosen, source, str(meta.get("title") or name), str(meta.get("description") or ""),
            str(meta.get("created") or ""),
        )  # fmt: skip

    def save(self, name: str, source: str, title: str = "", description: str = "") -> int:
        """Adds a version and returns its number; the text of the newest version again adds none.

        Raises:
            InputError: the name is not safe, or belongs to a starter.
            TemplateError: the template does not compile.
        """
        if _is_starter(name):
            raise InputError(f"{name!r} is a starter template and stays as it is.", fix="Save it under another name.")
        folder = self._folder(name)
        check_template(source)
        numbers = _numbers(folder)
        if numbers and self.get(name) == source:
            return numbers[-1]
        folder.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".save.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(source.encode())
                stream.flush()
                os.fsync(stream.fileno())
            number = _claim(Path(temporary), folder, numbers[-1] + 1 if numbers else 1)
        finally:
            Path(temporary).unlink(missing_ok=True)
        meta = {
            "title": title or name,
            "description": description,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": hashlib.sha256(source.encode()).hexdigest(),
        }
        write_json_atomic(folder / f"v{number}.json", meta)
        return number

    def versions(self, name: str) -> Sequence[SavedTemplate]:
        """Every version, oldest first; a starter has one.

        Raises:
            TemplateError: there is no such template.
        """
        newest = self.load(name)
        if newest.starter:
            return [newest]
        return [self.load(name, number) for number in _numbers(self._folder(name))]

    def diff(self, name: str, old: int, new: int) -> str:
        """Unified diff between two versions; empty when they are equal.

        Raises:
            TemplateError: there is no such template or version.
        """
        before, after = self.load(name, old), self.load(name, new)
        lines = difflib.unified_diff(
            before.source.splitlines(), after.source.splitlines(), f"{name} v{old}", f"{name} v{new}", lineterm=""
        )
        return "\n".join(lines)

    def delete(self, name: str) -> None:
        """Removes a saved template with all versions.

        Raises:
            InputError: it is a starter, or the name is not safe.
            TemplateError: there is no such template.
        """
        if _is_starter(name):
            raise InputError(f"{name!r} is a starter template and cannot be deleted.")
        folder = self._folder(name)
        numbers = _numbers(folder)
        if not numbers:
            raise _unknown(name, self._names())
        # Newest first: at every moment what is left is a template that can be read.
        for number in reversed(numbers):
            (folder / f"v{number}.jinja").unlink(missing_ok=True)
            (folder / f"v{number}.json").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()

    def _folder(self, name: str) -> Path:
        folder = self._workspace.templates / check_name(name, "template")
        if folder.is_symlink():
            raise InputError("a template's folder may not be a link.", where=str(folder), fix="Remove the link.")
        return folder


def _is_starter(name: str) -> bool:
    # Some file systems take names of other case for the same.
    return name.lower() in STARTERS


def _numbers(folder: Path) -> list[int]:
    """Version numbers in ``folder``, ascending; none if it is not a folder of templates."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = (_VERSION.fullmatch(path.name) for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    return sorted(int(match[1]) for match in found if match)


def _claim(temporary: Path, folder: Path, number: int) -> int:
    """Gives the written file the first free version number; a hard link cannot replace another's file."""
    while True:
        try:
            os.link(temporary, folder / f"v{number}.jinja")
        except FileExistsError:
            number += 1
        else:
            return number


def _read_meta(path: Path) -> dict[str, Any]:
    """What was noted beside a version; it is no more than decoration, so damage reads as nothing noted."""
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}
