"""JSON documents with their own checksum, so that a changed digit is found before it changes a result."""

from collections.abc import Mapping
from typing import Any

from common.errors import DamagedError
from common.hashing import canonical_json, hash_bytes

_CHECKSUM = "checksum"


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a checksum of the values of all other fields; it does not depend on spaces and order."""
    fields = {name: value for name, value in document.items() if name != _CHECKSUM}
    return fields | {_CHECKSUM: hash_bytes(canonical_json(fields))}


def check_checksum(document: Mapping[str, Any], *, location: object, remedy: str) -> None:
    """Raises DamagedError when the checksum is missing or does not match."""
    if document.get(_CHECKSUM) != with_checksum(document)[_CHECKSUM]:
        raise DamagedError("The file does not match its checksum.", where=location, remedy=remedy)
