"""Keyed pseudonyms: a person has the same name in every file and version, and only the key leads from id to name.

A pseudonym is ``u_`` and the first 100 bits of HMAC-SHA256(key, kind, id) in base 32. Without the key neither the id
can be found by trying all ids, nor two workspaces be joined.
"""

from __future__ import annotations

import base64
import hmac
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data.privacy.keys import keyed_hash
from llmrec_core.errors import DataError, InputError

N_CHARS = 20
_N_BYTES = 13
_BLOCK = 100_000
_ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)
_BIT_VALUES = np.array([16, 8, 4, 2, 1], np.uint8)
_PREFIX = {"user": "u_", "item": "i_"}
_USER_PSEUDONYM = re.compile(rf"u_[a-z2-7]{{{N_CHARS}}}")
#: Roles of the importer and what they name.
_KIND_OF_ROLE = {"user_id": "user", "item_id": "item"}


def pseudonym(kind: str, id: str, key: bytes) -> str:
    """The pseudonym of one id: a prefix and 20 characters of ``a-z2-7``.

    Args:
        kind: "user" or "item" (also "user_id", "item_id"); any other word is a text column of its own, with prefix
            ``p_``. Equal ids of different kinds have unrelated pseudonyms.
        id: exactly as it stands in the data; "007" and "7" are two ids.
        key: the workspace key.

    Raises:
        InputError: the id is empty.
    """
    if not id:
        raise InputError("an empty id has no pseudonym.", fix="Give the id as it stands in the data.")
    kind = _KIND_OF_ROLE.get(kind, kind)
    message = kind.encode() + b"\0" + id.encode("utf-8", "surrogatepass")
    letters = base64.b32encode(hmac.digest(key, message, "sha256")[:15])[:N_CHARS]
    return _PREFIX.get(kind, "p_") + letters.decode("ascii").lower()


def person_hash(key: bytes, user_id: str) -> str:
    """What stands for a user in the audit, the same for an id and for its pseudonym."""
    is_pseudonym = _USER_PSEUDONYM.fullmatch(user_id) is not None
    return keyed_hash(key, user_id if is_pseudonym else pseudonym("user", user_id, key))


def transform_ids(values: pa.Array | pa.ChunkedArray, kind: str, key: bytes) -> pa.Array:
    """Pseudonyms of a whole column; each distinct value is hashed once.

    Args:
        values: text of any Arrow type [n]; null and "" stay as they are.
        kind, key: as in :func:`pseudonym`.

    Returns:
        ``large_string`` [n].

    Raises:
        DataError: two ids have the same pseudonym, which 100 bits make all but impossible.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    text = values.cast(pa.large_string())
    coded = pc.dictionary_encode(text)
    ids = coded.dictionary.to_pylist()
    names = pa.concat_arrays(
        [_names(ids[start : start + _BLOCK], kind, key) for start in range(0, max(1, len(ids)), _BLOCK)]
    )
    if len(pc.unique(names)) != len(names):
        raise DataError(
            "two different ids have the same pseudonym.",
            where=f"kind {kind}",
            fix="Import without pseudonyms, or in another workspace, which has another key.",
        )
    return pc.take(names, coded.indices)


def _names(ids: list[str], kind: str, key: bytes) -> pa.Array:
    """:func:`pseudonym` of distinct ids, with the base 32 of all at once; "" stays."""
    kind = _KIND_OF_ROLE.get(kind, kind)
    head = kind.encode() + b"\0"
    digests = b"".join(
        [hmac.digest(key, head + one.encode("utf-8", "surrogatepass"), "sha256")[:_N_BYTES] for one in ids]
    )
    bits = np.unpackbits(np.frombuffer(digests, np.uint8).reshape(len(ids), _N_BYTES), axis=1)[:, : 5 * N_CHARS]
    letters = _ALPHABET[bits.reshape(len(ids), N_CHARS, 5) @ _BIT_VALUES]
    prefix = _PREFIX.get(kind, "p_")
    text = np.ascontiguousarray(letters).view(f"S{N_CHARS}").ravel().astype(f"U{N_CHARS}").tolist()
    return pa.array([prefix + name if one else one for one, name in zip(ids, text, strict=True)], pa.large_string())
