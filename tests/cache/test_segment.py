"""Rows of a segment are where the permutation says and come back on the host, whichever device they waited on."""

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.format.dtypes import to_array
from cache.format.manifest import Manifest, make_geometry
from cache.order import derive_key, permute
from cache.storage import segment as module
from cache.storage.segment import SegmentBuffer, lay
from tests.helpers.devices import a_mark

ROWS, WIDTH = 48, 6
DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]


def filled(device, *, dtype="bfloat16", pieces=(5, 20, 23)):
    """A buffer that was given a segment's rows in some pieces, and these rows in the order of the text."""
    settings = CacheSettings(chunk_rows=8, shard_rows=16, segment_rows=ROWS, dtype=dtype)
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": ROWS, "held_out_rows": 0}
    geometry = make_geometry(settings, **sizes, partitions=1)
    given = {"identity": {}, "held_out_fraction": 0.1, "split_seed": 0, "special_ids": (3,)}
    manifest = Manifest(geometry=geometry, shuffle_seed=7, files={}, written_with={}, **given)
    buffer = SegmentBuffer(geometry.groups["train"], manifest, device=device)
    rows = torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    number = np.arange(ROWS)
    first = 0
    for count in pieces:
        here = slice(first, first + count)
        block = {"tokens": number[here] % 5, "document": number[here], "position": number[here]}
        block |= dict.fromkeys(("source_error", "target_error"), np.ones(count))
        block |= {name: rows[here].to(device) for name, rows in zip(("source", "target"), rows, strict=True)}
        buffer.put(0, first, block)
        first += count
    return buffer, rows


def bytes_of(buffer):
    """What goes to the disk, by path."""
    return {file.path: b"".join(bytes(piece) for piece in file.pieces()) for file in buffer.files(0)}


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_where_the_permutation_says(device):
    buffer, activations = filled(device)
    files = bytes_of(buffer)
    slots = torch.from_numpy(permute(np.arange(ROWS), ROWS, key=derive_key(7, 0)))
    for name, rows in zip(("source", "target"), activations, strict=True):
        shards = [files[f"rows.zarr/train/{name}/c.{number}.0"] for number in range(3)]
        placed = torch.empty_like(rows).index_copy_(0, slots, rows)
        assert b"".join(shard[: 16 * WIDTH * 2] for shard in shards) == to_array(placed).tobytes()


@pytest.mark.parametrize("device", DEVICES)
def test_the_pieces_in_which_rows_came_change_no_byte(device):
    assert bytes_of(filled(device)[0]) == bytes_of(filled(device, pieces=(48,))[0])


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_have_no_room_there_wait_on_the_host_with_the_same_bytes(device, monkeypatch):
    buffer, _ = filled(device)
    assert {rows.device.type for rows in buffer._activations.values()} == {device}
    monkeypatch.setattr(module, "free_memory", lambda _: 0)
    elsewhere, _ = filled(device)
    assert {rows.device.type for rows in elsewhere._activations.values()} == {"cpu"}
    assert bytes_of(elsewhere) == bytes_of(buffer)


def test_copies_and_statistics_begin_after_the_last_row_was_laid(monkeypatch):
    """On a GPU they run on streams of their own, which know nothing of the work on others."""
    began = []
    full = a_mark()
    copied, on_stream = module.in_pieces, module.on_stream

    def in_pieces(array, *, rows, after):
        began.append(after)
        return copied(array, rows=rows, after=None)

    def on_another(device, name, *, after):
        began.append((name, after))
        return on_stream(device, name, after=None)

    monkeypatch.setattr(module, "mark", lambda device: full)
    monkeypatch.setattr(module, "in_pieces", in_pieces)
    monkeypatch.setattr(module, "on_stream", on_another)
    buffer, _ = filled("cpu")
    assert not began
    bytes_of(buffer)
    assert began.count(full) == 6, "three files of source and three of target"
    assert began.count(("statistics", full)) == 2
    assert len(began) == 8


def test_files_that_are_copied_in_pieces_have_the_same_bytes(monkeypatch):
    expected = bytes_of(filled("cpu")[0])

    def one_by_one(column, *, rows, after):
        """As from a GPU: every piece is in the same memory as the one before."""
        shared = torch.empty(rows, WIDTH, dtype=column.dtype)
        for piece in column.split(rows):
            yield shared[: len(piece)].copy_(piece)

    monkeypatch.setattr(module, "in_pieces", one_by_one)
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)  # less than a chunk: then a piece is one chunk
    assert bytes_of(filled("cpu")[0]) == expected


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_put_at_their_positions(device):
    column = torch.zeros(5, 3, dtype=torch.bfloat16, device=device)
    lay(column, np.array([4, 0]), torch.tensor([[1.0, 2, 3], [4, 5, 6]], device=device).bfloat16())
    assert column.tolist() == [[4, 5, 6], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 2, 3]]
