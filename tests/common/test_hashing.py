"""Checksums have the values of their definitions, and one value has one JSON text."""

import pytest
import xxhash

from common.hashing import canonical_json, chunk_hash, crc32c, hash_bytes


def test_checksums_are_those_of_their_definitions() -> None:
    # The check value of CRC-32/ISCSI, as every catalogue of checksums gives it.
    assert crc32c(b"123456789") == 0xE3069283
    assert hash_bytes(b"123456") == xxhash.xxh3_128_hexdigest(b"123456")
    assert chunk_hash(b"123456") == xxhash.xxh3_64_hexdigest(b"123456")


def test_one_value_has_one_text() -> None:
    assert canonical_json({"b": [1.5, "é"], "a": None}) == b'{"a":null,"b":[1.5,"\\u00e9"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
