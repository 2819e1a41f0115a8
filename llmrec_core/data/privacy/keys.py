"""The workspace key: made once, readable by its owner alone, never logged, exported or shown.

Everything keyed (pseudonyms, the hashes in the audit) hangs on it, so a key that was made and is gone is an error and
never silently replaced: a new one would give every person another pseudonym.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from llmrec_core.errors import DataError, LLMRecError
from llmrec_core.workspace import Workspace, write_text_atomic

KEY_BYTES = 32
_KEY, _CHECK = "key", "key.check"
_LOST = "Put the key file back from a backup; without it the pseudonyms of this workspace cannot be made again."


def privacy_folder(workspace: Workspace) -> Path:
    """Where the key, the audit and what goes with them lie; only its owner may look into it."""
    folder = workspace.root / "privacy"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def workspace_key(workspace: Workspace, *, create: bool = True) -> bytes | None:
    """The key of this workspace, 32 bytes; made at the first call, and one key however many processes call at once.

    Args:
        create: make the key where there was never one; False gives None then.

    Raises:
        DataError: the key was made and is gone, is damaged, or is not the one that was made here.
        LLMRecError: it cannot be written or read.
    """
    folder = privacy_folder(workspace)
    path, check = folder / _KEY, folder / _CHECK
    if not path.is_file():
        if check.is_file():
            raise DataError("the key of this workspace was made and is gone.", where=str(path), fix=_LOST)
        if not create:
            return None
        _make(path)
    try:
        key = path.read_bytes()
        known = check.read_text(encoding="ascii").strip() if check.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise LLMRecError(
            f"the workspace key cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}.",
            where=str(path),
            fix="Check the permissions of the folder.",
        ) from None
    if len(key) != KEY_BYTES:
        raise DataError("the workspace key is damaged.", where=str(path), fix=_LOST)
    mark = _mark(key)
    if known is None:
        write_text_atomic(check, mark + "\n")
    elif not hmac.compare_digest(known, mark):
        raise DataError("this is not the key that was made for this workspace.", where=str(path), fix=_LOST)
    return key


def keyed_hash(key: bytes, text: str) -> str:
    """What stands for a person in the audit: 32 hex digits that only the key's owner can tell from any other."""
    return hmac.digest(key, b"audit\0" + text.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]


def _make(path: Path) -> None:
    """Writes the key under another name and links it into place: the link fails where another process was first."""
    temporary = path.with_name(f".key-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(temporary, flags, 0o600)
        try:
            os.write(handle, secrets.token_bytes(KEY_BYTES))
            os.fsync(handle)
        finally:
            os.close(handle)
        with suppress(FileExistsError):
            if sys.platform == "win32":
                # Renaming never replaces a file there.
                os.rename(temporary, path)
            else:
                os.link(temporary, path)
    except OSError as error:
        hint = "Its file system has no hard links; choose another folder." if error.errno == errno.EPERM else ""
        raise LLMRecError(
            f"the workspace key cannot be written: {error.strerror or error}.", where=str(path.parent), fix=hint
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _mark(key: bytes) -> str:
    """Tells one key from another without telling the key."""
    return hashlib.sha256(b"llmrec workspace key\0" + key).hexdigest()[:16]
