"""Where everything lives: one folder with datasets, runs, models and templates.

All names that become path parts go through :func:`check_name`; nothing else builds paths from user text.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from llmrec_core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def check_name(name: str, what: str) -> str:
    """``name`` if it is safe as one path part on every system.

    Raises:
        InputError: anything but 1-64 letters, digits, ``.``, ``_`` and ``-``, starting with a letter or digit.
    """
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
        raise InputError(
            f"{name[:80]!r} cannot be used as a {what} name.",
            fix="Use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit.",
        )
    return name


@dataclass(frozen=True)
class Workspace:
    """Paths of one workspace; folders are made on first use."""

    root: Path

    @classmethod
    def open(cls, root: str | Path | None = None) -> Workspace:
        """``root``, else ``LLMREC_WORKSPACE``, else the user's data folder.

        Raises:
            InputError: the path exists and is not a folder, or cannot be made.
        """
        chosen = root or os.environ.get("LLMREC_WORKSPACE") or user_data_path("llmrec-studio", appauthor=False)
        path = Path(chosen).expanduser().resolve()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the workspace cannot be made: {error.strerror or error}.",
                where=str(path),
                fix="Choose another folder with --workspace or LLMREC_WORKSPACE.",
            ) from error
        return cls(path)

    def _folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def datasets(self) -> Path:
        return self._folder("datasets")

    @property
    def runs(self) -> Path:
        return self._folder("runs")

    @property
    def models(self) -> Path:
        return self._folder("models")

    @property
    def templates(self) -> Path:
        return self._folder("templates")

    @property
    def downloads(self) -> Path:
        return self._folder("downloads")

    def token_cache(self, dataset: str) -> Path:
        """Where tokens of a dataset's prompts are kept; may be deleted at any time, and is made when first written to.

        Raises:
            InputError: the name is not safe.
        """
        return self.token_caches / check_name(dataset, "dataset")

    @property
    def token_caches(self) -> Path:
        """Where :meth:`token_cache` of every dataset lies."""
        return self.root / "cache" / "tokens"


def write_text_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes beside ``path`` and renames over it: readers see the old or the new file, never a part.

    ``durable=False`` skips the flush to disk: for files replaced every second, where a power cut may cost the last one.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value: Any) -> None:
    """:func:`write_text_atomic` of indented JSON; NaN is refused, since other readers would choke on it."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
