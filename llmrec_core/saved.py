"""What every saved recommender shares on disk: its JSON head, and the hash that ties it to a catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmrec_core.errors import ModelError
from llmrec_core.specs import canonical_json

HEAD_FILE = "recommender.json"
FORMAT = 1
#: What to do about a saved recommender that cannot be used.
FIX = "Run the training again, or choose another run."


def catalogue_sha256(item_ids: Iterable[object]) -> str:
    """SHA-256 (hex) of the ordered item ids: equal hashes mean that ``item_idx`` names the same items."""
    return hashlib.sha256(canonical_json([str(item) for item in item_ids]).encode()).hexdigest()


def read_head(folder: Path) -> dict[str, Any]:
    """The head of any saved recommender.

    Raises:
        ModelError: it is missing or is no JSON object with a family.
    """
    path = folder / HEAD_FILE
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror or error}.", where=str(path), fix=FIX) from None
    except (ValueError, RecursionError):
        raise ModelError("it is not valid JSON.", where=str(path), fix=FIX) from None
    if not isinstance(head, dict) or not isinstance(head.get("family"), str):
        raise ModelError("it is not the head of a saved recommender.", where=str(path), fix=FIX)
    return head
