"""Tokens of training and validation prompts, kept on disk for the next run that asks for the same ones.

A resumed run, a second stage, other hyperparameters, a compressed child: they read the same prompts. A file holds the
tokens of one set of prompts as Arrow, named by a hash of everything that decides them, and is mapped into memory, not
read: processes share its pages. What a file says is checked before it is used; one that is damaged or of something
else is left aside and written anew. Files lie by dataset, so that whoever is forgotten there, or deletes it, takes them
along; deleting them at any time costs nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers

import llmrec_core
from llmrec_core.contracts import FitContext, IntArray, Query
from llmrec_core.models.loading import Backbone
from llmrec_core.specs import PromptSpec
from llmrec_core.training.packing import Ragged, TokenisedPrompts

#: All files of all datasets together; the ones that were longest not used go first.
MAX_BYTES = 1 << 30
_ENDING = ".arrow"
#: What a writer that was killed left behind goes after this long.
_ABANDONED_S = 3600.0
_NOTE = b"llmrec"
_COLUMNS = {
    "heads": pa.int32(),
    "head_starts": pa.int64(),
    "tails": pa.int32(),
    "tail_starts": pa.int64(),
    "head_of": pa.int64(),
    "tail_of": pa.int64(),
}
_SCHEMA = pa.schema([pa.field(name, pa.large_list(kind)) for name, kind in _COLUMNS.items()])


class Words(Protocol):
    """What makes prompts: a renderer, or several."""

    @property
    def spec(self) -> PromptSpec: ...

    def identity(self) -> str:
        """Text that is the same for another maker only if both make the same prompts."""


@dataclass(frozen=True)
class Question:
    """Which prompts are wanted.

    Attributes:
        layout: a prompt for each of ``items``, one for each query with its items as a list, or one for each query
            without items.
        words: what makes them.
        queries: [n_queries].
        query_of: the query of each item, [n_items], ascending.
        items: item_idx, [n_items], in the order in which a list shows them.
        shared: whether prompts are cut where the candidate begins.
    """

    layout: Literal["pairs", "lists", "histories"]
    words: Words
    queries: Sequence[Query]
    query_of: IntArray
    items: IntArray
    shared: bool

    @property
    def n_prompts(self) -> int:
        return len(self.items) if self.layout == "pairs" else len(self.queries)

    def key(self, backbone: Backbone) -> str:
        """SHA-256 (hex) of everything that decides the tokens."""
        digest = hashlib.sha256()
        tokenizer = hashlib.sha256(backbone.tokenizer.to_str().encode()).hexdigest()
        makers = [_code(), tokenizers.__version__, tokenizer, backbone.max_tokens, self.words.identity()]
        digest.update(json.dumps([*makers, self.layout, self.shared, len(self.queries)]).encode())
        for array in (self.query_of, self.items):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        most = self.words.spec.max_history
        for query in self.queries:
            # Of what is older than a prompt may show, it can tell no more than how much there is.
            shown = [(e.item_id, e.rating, e.timestamp) for e in query.history[max(0, len(query.history) - most) :]]
            person = [sorted(query.profile.items()), list(query.context.items()), sorted(query.hidden_fields)]
            digest.update(repr((len(query.history), shown, person)).encode() + b"\0")
        return digest.hexdigest()


class TokenCache:
    """The files of one dataset.

    Args:
        folder: theirs (``Workspace.token_cache``); made when something is written.
        max_bytes: of the files of all datasets beside it.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def read(self, key: str, n_prompts: int, backbone: Backbone) -> TokenisedPrompts | None:
        """The tokens kept under ``key``, mapped into memory and read-only; None: there are none.

        Raises:
            ValueError: the file is damaged, or of something else.
        """
        path = self._path(key)
        if path.is_symlink() or not path.is_file():
            return None
        try:
            with pa.memory_map(str(path)) as source:
                columns, digest = _columns(source, key)
        except (OSError, pa.ArrowException, MemoryError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        tokens = TokenisedPrompts(
            Ragged(columns["heads"], columns["head_starts"]),
            Ragged(columns["tails"], columns["tail_starts"]),
            columns["head_of"],
            columns["tail_of"],
        )
        _check(tokens, n_prompts, backbone)
        if digest != _digest(columns):
            raise ValueError("its contents are not those that were written")
        # Another process may have removed it just now; what is mapped stays.
        with suppress(OSError):
            os.utime(path)
        return tokens

    def write(self, key: str, tokens: TokenisedPrompts) -> int:
        """Keeps tokens, whole or not at all, and makes room. Returns: bytes; 0: too many to be kept.

        Raises:
            OSError: the folder cannot be written to.
        """
        columns: dict[str, npt.NDArray[Any]] = {
            "heads": tokens.heads.flat,
            "head_starts": tokens.heads.starts,
            "tails": tokens.tails.flat,
            "tail_starts": tokens.tails.starts,
            "head_of": tokens.head_of,
            "tail_of": tokens.tail_of,
        }
        size = sum(array.nbytes for array in columns.values())
        if size > self.max_bytes:
            return 0
        arrays = []
        for name, array in columns.items():
            values = pa.array(np.ascontiguousarray(array), _COLUMNS[name])
            arrays.append(pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values))
        note = json.dumps({"key": key, "sha256": _digest(columns)}).encode()
        schema = _SCHEMA.with_metadata({_NOTE: note})
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".tokens.")
        try:
            with os.fdopen(handle, "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
                writer.write_batch(pa.record_batch(arrays, schema=schema))
            # No flush to disk: what a power cut costs is told by the hash, and made again.
            os.replace(temporary, self._path(key))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._make_room(self._path(key))
        return size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"

    def _make_room(self, newest: Path) -> None:
        """Removes what was longest not used, of whatever dataset, until the rest fits; never ``newest``."""
        found = []
        for path in self.folder.parent.glob("*/*"):
            # Another process makes room at the same time.
            with suppress(OSError):
                facts = path.lstat()
                if path.suffix == _ENDING:
                    found.append((facts.st_mtime, facts.st_size, path))
                elif path.name.startswith(".tokens.") and time.time() - facts.st_mtime > _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path != newest:
                # Who has it mapped goes on reading it; where a system forbids that, it stays until next time.
                with suppress(OSError):
                    path.unlink()
                total -= size


def kept_bytes(folder: Path) -> int:
    """What the files of all datasets under ``folder`` (``Workspace.token_caches``) take."""
    total = 0
    for path in folder.glob(f"*/*{_ENDING}"):
        # One may go at this moment.
        with suppress(OSError):
            total += path.stat().st_size
    return total


def kept_tokens(
    question: Question,
    make: Callable[[], TokenisedPrompts],
    backbone: Backbone,
    ctx: FitContext | None,
    what: str,
) -> TokenisedPrompts:
    """``make()``, or what it gave when the same was asked before.

    Args:
        ctx: says where tokens are kept, and hears whether they were read or made; None, or without a
            ``token_cache``: nothing is kept.
        what: the prompts are, for the log ("training").
    """
    if ctx is None or ctx.token_cache is None:
        return make()

    def say(message: str, level: str = "info") -> None:
        ctx.emit("log", level=level, message=message)

    started = time.perf_counter()
    cache = TokenCache(ctx.token_cache)
    key = question.key(backbone)
    named = f"Tokens of {question.n_prompts:,} {what} prompts"
    try:
        found = cache.read(key, question.n_prompts, backbone)
    except ValueError as error:
        found = None
        say(f"{named}: the kept file {key[:12]} cannot be used ({error}); they are made anew.", "warning")
    if found is not None:
        say(f"{named}: read from the cache in {time.perf_counter() - started:.2f} s.")
        return found
    tokens = make()
    elapsed = time.perf_counter() - started
    try:
        size = cache.write(key, tokens)
    except OSError as error:
        say(f"{named}: made in {elapsed:.2f} s; they cannot be kept ({error.strerror or error}).", "warning")
        return tokens
    kept = f"and kept for runs that ask for the same ({size / 1e6:.1f} MB)" if size else "and too many to be kept"
    say(f"{named}: made in {elapsed:.2f} s {kept}.")
    return tokens


# ---- checking --------------------------------------------------------------------------------------------------------


def _columns(source: pa.MemoryMappedFile, key: str) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """The arrays of a file without a copy, and the hash it notes.

    Raises:
        ValueError: it is of something else.
    """
    with pa.ipc.open_file(source) as reader:
        if not reader.schema.equals(_SCHEMA, check_metadata=False) or reader.num_record_batches != 1:
            raise ValueError("it does not hold what it should")
        note = json.loads((reader.schema.metadata or {})[_NOTE])
        if note["key"] != key:
            raise ValueError("it holds the tokens of other prompts")
        batch = reader.get_batch(0)
    # Offsets are as the file says, until this has looked at them.
    batch.validate(full=True)
    if batch.num_rows != 1 or any(column.null_count or column.values.null_count for column in batch.columns):
        raise ValueError("it does not hold what it should")
    return {name: batch.column(name).flatten().to_numpy() for name in _COLUMNS}, str(note["sha256"])


def _check(tokens: TokenisedPrompts, n_prompts: int, backbone: Backbone) -> None:
    """Raises: ValueError: the arrays do not fit each other, the prompts or the model."""
    words = backbone.facts.config.get("vocab_size")
    n_words = words if type(words) is int else max(backbone.tokenizer.get_vocab().values(), default=0) + 1
    for part in (tokens.heads, tokens.tails):
        starts = part.starts
        if not len(starts) or starts[0] != 0 or starts[-1] != len(part.flat) or (np.diff(starts) < 0).any():
            raise ValueError("its rows do not lie end to end")
        if len(part.flat) and not 0 <= part.flat.min() <= part.flat.max() < n_words:
            raise ValueError("it has tokens that the model does not know")
    for which, part in ((tokens.head_of, tokens.heads), (tokens.tail_of, tokens.tails)):
        if len(which) != n_prompts or (n_prompts and not 0 <= which.min() <= which.max() < len(part)):
            raise ValueError("it does not hold the tokens of every prompt")
    if (tokens.tails.lengths < 1).any() or (tokens.n_tokens > backbone.max_tokens).any():
        raise ValueError("its prompts are not of a length that the model reads")


def _digest(columns: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in _COLUMNS:
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """SHA-256 (hex) of the code that makes tokens: another version of it makes others."""
    root = Path(llmrec_core.__file__).parent
    digest = hashlib.sha256(llmrec_core.__version__.encode())
    for path in sorted((root / "prompts").glob("*.py")):
        digest.update(path.read_bytes())
    names = ("packing.py", "token_cache.py", "augmentation.py")
    for name in (*(f"training/{name}" for name in names), "recommenders/_titles.py", "data/dataset.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()
