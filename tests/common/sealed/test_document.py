"""A document with its own checksum: a changed value is found, spaces and order may change."""

import json

import pytest

from common.errors import DamagedError
from common.sealed.document import check_checksum, with_checksum

DOCUMENT = {"top_k": 16, "prefixes": [32, 64], "name": "é"}


def check(document: dict[str, object]) -> None:
    check_checksum(document, location="here", remedy="Write it again.")


def test_what_was_written_passes_in_any_order() -> None:
    sealed = with_checksum(DOCUMENT)
    check(sealed)
    check(json.loads(json.dumps(dict(reversed(sealed.items())), indent=3)))
    assert with_checksum(sealed) == sealed


@pytest.mark.parametrize("change", [{"top_k": 17}, {"prefixes": [72, 64]}, {"more": 1}, {"checksum": "0"}])
def test_every_change_is_found(change: dict[str, object]) -> None:
    with pytest.raises(DamagedError, match="does not match its checksum"):
        check(with_checksum(DOCUMENT) | change)
    with pytest.raises(DamagedError):
        check(DOCUMENT)
