"""JSON documents that carry their own checksum, so that a changed digit is found before it changes a number."""

from collections.abc import Mapping
from typing import Any

from common.errors import DamagedError
from common.hashing import canonical_json, hash_bytes

_CHECKSUM = "checksum"


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a checksum of all its other fields, by their values: spaces and order are free."""
    fields = {name: value for name, value in document.items() if name != _CHECKSUM}
    return fields | {_CHECKSUM: hash_bytes(canonical_json(fields))}


def check_checksum(document: Mapping[str, Any], *, where: object, remedy: str) -> None:
    """Raises DamagedError where the checksum is missing or another."""
    if document.get(_CHECKSUM) != with_checksum(document)[_CHECKSUM]:
        raise DamagedError("The file is not what was written (its checksum differs).", where=where, remedy=remedy)
