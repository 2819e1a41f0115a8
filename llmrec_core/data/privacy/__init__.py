"""Privacy: keyed pseudonyms, personal data found in text and masked, and the audit.

Removing a person from a whole workspace concerns runs as well; see :mod:`llmrec_core.forgetting`.
"""

from llmrec_core.data.privacy.audit import Audit, AuditLine, append_audit, read_audit
from llmrec_core.data.privacy.detect import KINDS, WHOLE_CELL, PersonalFinding, find_personal, mask_text
from llmrec_core.data.privacy.keys import keyed_hash, workspace_key
from llmrec_core.data.privacy.pseudonyms import person_hash, pseudonym, transform_ids
from llmrec_core.data.privacy.removals import forgotten_among, pending_removals, removal_count
from llmrec_core.data.privacy.settings import min_group_users, set_min_group_users

__all__ = [
    "KINDS",
    "WHOLE_CELL",
    "Audit",
    "AuditLine",
    "PersonalFinding",
    "append_audit",
    "find_personal",
    "forgotten_among",
    "keyed_hash",
    "mask_text",
    "min_group_users",
    "pending_removals",
    "person_hash",
    "pseudonym",
    "read_audit",
    "removal_count",
    "set_min_group_users",
    "transform_ids",
    "workspace_key",
]
