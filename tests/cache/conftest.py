"""A small text that a cache can be written from, the same every time, and ways to break what was written."""

import os
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.writer import CacheWriter

CONTEXT = 5


class Toy:
    """Contexts of five rows, every fourth held out; the cursor counts contexts. Sizes give seven segments."""

    def __init__(self, *, train_rows=50, held_out_rows=11, d_source=8, d_target=6, partitions=1, **settings):
        self.train_rows, self.held_out_rows, self.partitions = train_rows, held_out_rows, partitions
        self.d_source, self.d_target = d_source, d_target
        small = {"chunk_rows": 4, "shard_rows": 8, "segment_rows": 16, "held_out_fraction": 0.25, "dtype": "float32"}
        self.settings = CacheSettings(**small | settings)

    @classmethod
    def paged(cls, **settings):
        """A toy whose chunks fill whole memory pages, so that its files are mapped."""
        sizes = {"train_rows": 2000, "held_out_rows": 200, "d_source": 64, "d_target": 32}
        return cls(**sizes, **{"chunk_rows": 64, "shard_rows": 128, "segment_rows": 512} | settings)

    @cached_property
    def text(self):
        """More rows than any part is asked for, in the order of the text."""
        rows = CONTEXT * self.partitions * 4 * (max(self.train_rows // 3, self.held_out_rows) // CONTEXT + 16)
        random = np.random.default_rng(0)
        sides = [random.standard_normal((rows, width), np.float32) for width in (self.d_source, self.d_target)]
        index = np.arange(rows)
        tokens = random.integers(1, 50, rows, dtype=np.int32)
        tokens[::CONTEXT] = 0
        return *sides, tokens, index // (2 * CONTEXT), (index % CONTEXT).astype(np.int32)

    def writer(self, path, *, partition=0, **options):
        return CacheWriter(
            path,
            identity={"model": "toy", "layer": 3, "dataset": {"name": "counted"}},
            settings=self.settings,
            d_source=self.d_source,
            d_target=self.d_target,
            train_rows=self.train_rows,
            held_out_rows=self.held_out_rows,
            special_ids=[0],
            arrays={"gain": np.linspace(0.5, 2, self.d_source, dtype=np.float32)},
            partition=partition,
            partitions=self.partitions,
            **options,
        )

    def feed(self, writer, *, partition=0, stop=None):
        """Append contexts from the writer's cursor until it is complete, or ``stop`` contexts; how many it took."""
        number = writer.cursor or 0
        given = 0
        while not writer.complete and given != stop:
            first = (number * self.partitions + partition) * CONTEXT
            rows = [column[first : first + CONTEXT] for column in self.text]
            assert len(rows[0]) == CONTEXT, "the text is too short"
            writer.append(*rows, held_out=number % 4 == 3, cursor=number)
            number, given = number + 1, given + 1
        return given

    def write(self, path, *, stop=None):
        """Write the cache, or go on with it; how many contexts that took."""
        given = 0
        for partition in range(self.partitions):
            with self.writer(path, partition=partition) as writer:
                given += self.feed(writer, partition=partition, stop=stop)
        return given


@pytest.fixture
def folder(tmp_path):
    """A folder for many caches, in memory where the system has such a place: flushing costs nothing there."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir=memory))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def make_toy():
    return Toy


@pytest.fixture
def toy():
    return Toy()


def tree(path):
    """Every file below ``path`` but the locks, with its bytes."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files if file.parent.name != "locks"}


@pytest.fixture(name="tree")
def tree_of():
    return tree


@pytest.fixture(scope="session")
def whole_cache(tmp_path_factory):
    """A toy cache that is complete; tests read it or copy it."""
    path = tmp_path_factory.mktemp("whole")
    Toy().write(path)
    return path


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A complete toy cache of whole memory pages; tests read it or copy it."""
    path = tmp_path_factory.mktemp("pages")
    Toy.paged().write(path)
    return path


@pytest.fixture
def cache(whole_cache, tmp_path):
    """A complete toy cache of the test's own, to break."""
    shutil.copytree(whole_cache, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def bucket(whole_cache):
    """The URL of the toy cache in a bucket of this process's memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.put(f"{whole_cache}/", "/bucket/toy/layer03/cache/", recursive=True)
    yield "memory://bucket/toy/layer03/cache"
    system.store.clear()


def flip(path, bit):
    """Flip one bit of a file, counted from its start."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(name="flip")
def flip_bit():
    return flip


SMALL = {"chunk_rows": 4, "shard_rows": 8, "segment_rows": 16, "held_out_fraction": 0.25}
SPECIAL = 0


class Text:
    """A deterministic stream of contexts of 5 rows, every fourth of them held out; the cursor counts contexts."""

    def __init__(self, d_source=8, d_target=6, dtype=torch.bfloat16, context=5):
        self.shape, self.dtype, self.context = (d_source, d_target), dtype, context

    def rows(self, number):
        generator = torch.Generator().manual_seed(number)
        source, target = (torch.randn(self.context, width, generator=generator).to(self.dtype) for width in self.shape)
        tokens = torch.randint(1, 50, (self.context,), generator=generator).numpy().astype(np.int32)
        tokens[0] = SPECIAL
        document = np.full(self.context, number // 2, np.int64)
        return source, target, tokens, document, np.arange(self.context, dtype=np.int32)

    @staticmethod
    def held_out(number):
        return number % 4 == 3


def open_writer(
    path, *, train_rows=50, held_out_rows=11, text=None, partition=0, partitions=1, identity=None, **settings
):
    text = text or Text()
    return CacheWriter(
        path,
        identity=identity or {"model": "toy", "layer": 3, "proof": {"error": 0.0}},
        settings=CacheSettings(**SMALL | settings),
        d_source=text.shape[0],
        d_target=text.shape[1],
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        special_ids=[SPECIAL],
        arrays={
            "gain": np.linspace(0.5, 2, text.shape[0], dtype=np.float32),
            "bias": np.ones(text.shape[0], np.float32),
        },
        partition=partition,
        partitions=partitions,
    )


def feed(writer, text=None, *, batch=1, stop=None, stride=1, offset=0):
    """Append batches of contexts from the writer's cursor until it is complete, or ``stop`` contexts were given."""
    text, number = text or Text(), writer.cursor or 0
    given = 0
    while not writer.complete and (stop is None or given < stop):
        cursor, contexts = number, range(number, number + batch)
        for held_out in (False, True):
            for context in contexts:
                if text.held_out(context) == held_out:
                    writer.append(*text.rows(context * stride + offset), held_out=held_out, cursor=cursor)
        number, given = number + batch, given + batch


def write(path, **options):
    text, batch = options.get("text"), options.pop("batch", 1)
    with open_writer(path, **options) as writer:
        feed(writer, text, batch=batch)
        assert writer.complete


def expected(text, rows, *, held_out):
    contexts = [number for number in range(1000) if text.held_out(number) == held_out]
    columns = [
        np.concatenate([np.asarray(text.rows(c)[i].float() if i < 2 else text.rows(c)[i]) for c in contexts[:60]])
        for i in range(5)
    ]
    return [column[:rows] for column in columns]


@pytest.fixture(scope="session")
def stream():
    """``Text`` and what is done with it: ``open_writer``, ``feed``, ``write``, ``tree`` and the rows ``expected``."""
    return SimpleNamespace(
        Text=Text, open_writer=open_writer, feed=feed, write=write, tree=tree, expected=expected, special=SPECIAL
    )
