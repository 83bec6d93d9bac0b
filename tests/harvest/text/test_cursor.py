"""Cursors: JSON that reads back, and one of another version is refused."""

import json

import numpy as np
import pytest

from common.errors import MismatchError
from harvest.text.cursor import BEGINNING, cursor_to_json, read_cursor
from harvest.text.packing import Packer


def test_no_cursor_is_the_beginning():
    assert read_cursor(None) == (BEGINNING, [0, 0], 0)


def test_a_cursor_reads_back_from_json():
    packer = Packer(context=8, bos=0, alone=False)
    list(packer.add(3, np.array([5, 6], dtype=np.int32)))
    cursor = cursor_to_json(BEGINNING, [4, 1], rows=40, batch_contexts=4)
    cursor = json.loads(json.dumps(cursor | {"pending": [[[3, True, [0]], [3, False, [5, 6]]], []]}))
    snapshot, emitted, rows = read_cursor(cursor)
    assert (emitted, rows) == ([4, 1], 40)
    for found, expected in zip(snapshot.pending[0], packer.pending, strict=True):
        assert (found.document, found.begins, found.tokens.tolist()) == (
            expected.document, expected.begins, expected.tokens.tolist(),
        )  # fmt: skip


def test_a_cursor_of_another_version_is_refused():
    with pytest.raises(MismatchError, match="version 99"):
        read_cursor(cursor_to_json(BEGINNING, [0, 0], rows=0, batch_contexts=1) | {"version": 99})
