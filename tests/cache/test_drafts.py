"""A writer that is stopped in the middle of a segment goes on in the middle, to the bytes of one that never stopped."""

import errno
import os

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.drafts import Drafts, _Spent
from cache.partition import tidy_finished
from cache.storage.recompute import Mlp
from cache.writer import CacheWriter
from common import disk
from common.errors import NumericalError
from tests.helpers.progress import Notes

WIDTH = 8
CONTEXT = 5
SIZES = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": 50, "held_out_rows": 11}
SMALL = {"chunk_rows": 4, "shard_rows": 8, "segment_rows": 16, "held_out_fraction": 0.25}
KINDS = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "int8"},
    {"dtype": "float32", "codec": "blosc-zstd"},
    {"dtype": "int8", "codec": "zstd"},
    {"dtype": "bfloat16", "target": "recompute"},
]
GENERATOR = torch.Generator().manual_seed(0)
MLP = Mlp("gelu_new", 0.0, *(torch.randn(WIDTH, WIDTH, generator=GENERATOR) for _ in range(2)))


def open_writer(path, *, partition=0, partitions=1, progress=None, **settings):
    options = CacheSettings(**SMALL | settings)
    arrays = MLP.arrays() if options.target == "recompute" else {}
    return CacheWriter(
        path, identity={}, settings=options, special_ids=[0], arrays=arrays, partition=partition, partitions=partitions,
        progress=progress, **SIZES,
    )  # fmt: skip


def feed(writer, *, partition=0, partitions=1, stop=None):
    """Contexts of five rows from the writer's cursor, every fourth held out; how many were given."""
    number = writer.cursor or 0
    given = 0
    while not writer.complete and given != stop:
        source = torch.randn(CONTEXT, WIDTH, generator=torch.Generator().manual_seed(partitions * number + partition))
        # A bfloat16 source, so that its recomputed target is what is given.
        source = source.bfloat16().float()
        index = CONTEXT * number + np.arange(CONTEXT)
        columns = (index % 7).astype(np.int32), index // 10, (index % CONTEXT).astype(np.int32)
        writer.append(source, MLP.target(source), *columns, held_out=number % 4 == 3, cursor=number)
        number += 1
        given += 1
    return given


def write(path, **options):
    with open_writer(path, **options) as writer:
        return feed(writer)


@pytest.fixture
def every_batch(monkeypatch):
    """Drafts at every batch, however fast the machine is."""
    monkeypatch.setattr("cache.drafts._SECONDS", 0.0)
    monkeypatch.setattr("cache.drafts._SHARE", float("inf"))


def drafts(path):
    return sorted(file.name for file in (path / "drafts").glob("*"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_writer_stopped_at_any_batch_goes_on_there_and_ends_with_the_same_bytes(folder, tree, monkeypatch, kind):
    total = write(folder / "whole", **kind)
    monkeypatch.setattr("cache.drafts._SECONDS", 0.0)
    monkeypatch.setattr("cache.drafts._SHARE", float("inf"))
    path = folder / "cut"
    given = 0
    while given < 3 * total:
        with open_writer(path, **kind) as writer:
            # Two batches each time: the rows of the second are lost, those of the first are kept.
            given += feed(writer, stop=2)
            if writer.complete:
                break
    assert given < 2 * total + 2
    assert tree(path) == tree(folder / "whole")
    assert drafts(path) == []


def test_no_row_of_a_draft_is_given_again(folder, every_batch):
    with open_writer(folder) as writer:
        feed(writer, stop=3)
    assert drafts(folder) == ["part-00000.held_out.0", "part-00000.train.0"]
    notes = Notes()
    with open_writer(folder, progress=notes) as writer:
        assert writer.cursor == 2
    assert notes.texts == [f"Kept 10 rows of segments that were not full in {folder}."]


def test_processes_keep_drafts_of_their_own(folder, tree, every_batch):
    for partition in (0, 1):
        with open_writer(folder / "whole", partition=partition, partitions=2) as writer:
            feed(writer, partition=partition, partitions=2)
        with open_writer(folder / "cut", partition=partition, partitions=2) as writer:
            feed(writer, partition=partition, partitions=2, stop=3)
    assert len(drafts(folder / "cut")) == 4
    for partition in (1, 0):
        with open_writer(folder / "cut", partition=partition, partitions=2) as writer:
            assert writer.cursor == 2
            feed(writer, partition=partition, partitions=2)
    assert tree(folder / "cut") == tree(folder / "whole")


def test_a_fast_machine_writes_nothing_twice(folder):
    operations = []
    with disk.watch(lambda when, operation, path: operations.append(path)):
        write(folder)
    assert not any("drafts" in path.parts for path in operations)


def test_an_interrupted_writer_keeps_what_it_has(folder, tree, monkeypatch):
    write(folder / "whole")
    monkeypatch.setattr("cache.drafts._SECONDS_AT_END", 0.0)
    with open_writer(folder / "cut") as writer:
        feed(writer, stop=3)
    with open_writer(folder / "cut") as writer:
        assert writer.cursor == 2
        feed(writer)
    assert tree(folder / "cut") == tree(folder / "whole")


def test_rows_that_were_quantised_when_the_interrupt_came_are_not_kept(folder, tree, monkeypatch):
    """A segment's rows become what will be read just before they are written; a draft is of rows as they came."""
    write(folder / "whole", dtype="int8")
    monkeypatch.setattr("cache.drafts._SECONDS_AT_END", 0.0)

    def interrupt(when, operation, path):
        if operation == "write" and path.match("held_out/source/.c.*"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), disk.watch(interrupt), open_writer(folder / "cut", dtype="int8") as writer:
        feed(writer)
    notes = Notes()
    write(folder / "cut", dtype="int8", progress=notes)
    assert notes.texts == [f"Kept 15 rows of segments that were not full in {folder / 'cut'}."]
    assert tree(folder / "cut") == tree(folder / "whole")


def test_rows_before_a_bad_one_are_kept(folder, monkeypatch):
    monkeypatch.setattr("cache.drafts._SECONDS_AT_END", 0.0)
    bad = np.full((1, WIDTH), np.nan, np.float32)
    number = np.ones(1, np.int32)

    def stumble():
        with open_writer(folder) as writer:
            feed(writer, stop=2)
            writer.append(bad, bad, number, number, number, held_out=False, cursor=2)

    with pytest.raises(NumericalError):
        stumble()
    with open_writer(folder) as writer:
        assert writer.cursor == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_drafts_is_reported_once_and_the_cache_is_written(folder, tree, every_batch, number):
    write(folder / "whole")

    def refuse(when, operation, path):
        if "drafts" in path.parts and operation in {"append", "write"}:
            raise OSError(number, os.strerror(number), path)

    notes = Notes()
    with disk.watch(refuse):
        write(folder / "cut", progress=notes)
    assert len(notes.texts) == 1
    assert os.strerror(number) in notes.texts[0]
    assert tree(folder / "cut") == tree(folder / "whole")


def test_drafts_leave_the_cache_its_disk_space(folder, every_batch, monkeypatch):
    with open_writer(folder / "sized") as writer:
        needed = writer.manifest.geometry.size_bytes
    monkeypatch.setattr(disk, "free_bytes", lambda _: needed)
    notes = Notes()
    with open_writer(folder / "cut", progress=notes) as writer:
        feed(writer, stop=3)
    assert drafts(folder / "cut") == []
    assert notes.texts == ["From now on rows are saved only when their segment is full. The disk has no room for them."]


def test_drafts_take_a_twentieth_of_the_time_at_most(monkeypatch):
    spent = _Spent()
    now = spent.began
    monkeypatch.setattr("cache.drafts.time.monotonic", lambda: now)
    assert spent.may_spend()
    spent.seconds = 3.0
    now += 59
    assert not spent.may_spend()
    now += 1
    assert spent.may_spend()


def test_a_draft_that_a_kill_left_beside_a_finished_partition_is_removed(folder, every_batch, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Drafts, "drop", lambda self, group: self._drafts.pop(group, None))
        write(folder)
    assert drafts(folder)
    tidy_finished(folder, 0)
    assert drafts(folder) == []


def test_a_draft_of_a_segment_that_was_committed_meanwhile_is_not_used(folder, tree, every_batch, monkeypatch):
    write(folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Drafts, "drop", lambda self, group: self._drafts.pop(group, None))
        with open_writer(folder / "cut") as writer:
            feed(writer, stop=9)
    assert "part-00000.train.0" in drafts(folder / "cut")
    write(folder / "cut")
    assert tree(folder / "cut") == tree(folder / "whole")
