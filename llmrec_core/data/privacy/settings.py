"""The smallest group of users that a workspace shows with values: a floor under what runs ask for."""

from __future__ import annotations

import json

from llmrec_core.data.privacy.keys import privacy_folder
from llmrec_core.errors import InputError
from llmrec_core.workspace import Workspace, write_json_atomic

DEFAULT_MIN_GROUP = 5
_FILE = "settings.json"


def min_group_users(workspace: Workspace) -> int:
    """5 unless somebody chose otherwise. A file that cannot be read means the default, never less."""
    try:
        value = json.loads((workspace.root / "privacy" / _FILE).read_bytes())["min_group_users"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_MIN_GROUP
    return value if isinstance(value, int) and value >= 1 else DEFAULT_MIN_GROUP


def set_min_group_users(workspace: Workspace, k: int) -> None:
    """Raises: InputError: not between 1 and 1000."""
    if not 1 <= k <= 1000:
        raise InputError(f"the smallest group shown must have 1 to 1,000 users, not {k}.", where="min_group_users")
    write_json_atomic(privacy_folder(workspace) / _FILE, {"min_group_users": k})
