"""Serves batches in a seeded order; background threads gather them in advance.

    with Loader(reader, batch_rows=4096, seed=0, epochs=1) as batches:
        for batch in batches:
            step(batch.source, batch.target)

A batch is a pure function of (cache, seed, number). So threads, prefetching and ranks change nothing, and a loader that
starts at batch n goes on exactly where one that served n batches stopped.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from cache.order import EpochOrder
from cache.reader import CacheReader, SplitView, View
from cache.storage.buffers import Buffers
from common.errors import UsageError

POOL_BYTES = 1_000_000_000
"""A pool is the set of chunks from which batches are drawn at one time. It is read in the order of the files, so a
larger one is faster on a disk. Two are in memory at once (this one, and the next while it is read), so a smaller one
takes less memory."""
_POOLS_REMEMBERED = 8
"""Threads that gather batches of an earlier pool may still ask for it; they are never more than two pools apart."""


@dataclass(frozen=True)
class Batch:
    """The rows of one step, without masked rows. ``index`` counts batches over all epochs, from 0."""

    source: Float[Tensor, "batch d_source"]
    target: Float[Tensor, "batch d_target"]
    tokens: Int32[np.ndarray, " batch"]
    document: Int64[np.ndarray, " batch"]
    index: int
    epoch: int


class Loader:
    """Batches of ``batch_rows`` rows, counted over all ranks (fewer once special tokens are masked).

    An iterator; use it in a ``with`` block. Every row comes once in an epoch, and an epoch's last batch may be short.
    ``epochs`` None never ends. Rank ``rank`` of ``world`` gets its share of each batch; all shares together are the
    batch that one process would get. ``consumed`` counts the batches that were served, from batch 0 on.
    Raises UsageError for a split without rows and for sizes that are not possible.
    """

    def __init__(
        self,
        reader: CacheReader,
        *,
        batch_rows: int,
        seed: int,
        split: Literal["train", "held_out"] = "train",
        start_batch: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        prefetch: int = 4,
        pin_memory: bool = False,
        view: View = "mlp_in",
        mask_special: bool = True,
    ) -> None:
        if batch_rows < 1 or not 0 <= rank < world or threads < 1 or prefetch < 1:
            raise UsageError(f"A loader cannot have {batch_rows=}, {rank=}, {world=}, {threads=}, {prefetch=}.")
        self._rows = reader.split(split)
        if not len(self._rows):
            raise UsageError(f"The cache has no {split} rows.", where=reader.path)
        self._view: View = view
        self._batch_rows = batch_rows
        self._seed = seed
        self._rank = rank
        self._world = world
        self._prefetch = prefetch
        self._pinned = pin_memory
        self._mask_special = mask_special and bool(reader.special_ids)
        self._buffers = Buffers(rows=-(-batch_rows // world), pinned=pin_memory)

        self.batches_per_epoch = -(-len(self._rows) // batch_rows)
        self._end = None if epochs is None else epochs * self.batches_per_epoch
        self.consumed = start_batch
        self._submitted = start_batch
        self.waited_seconds = 0.0
        self._futures: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._pools = _Pools(self._rows)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads."""
        self._pools.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._futures) < self._prefetch and self._submitted != self._end:
            self._futures.append(self._threads.submit(self.batch, self._submitted))
            self._submitted += 1
        if not self._futures:
            raise StopIteration
        began = time.perf_counter()
        batch = self._futures.popleft().result()
        self.waited_seconds += time.perf_counter() - began
        self.consumed += 1
        return batch

    def batch(self, number: int) -> Batch:
        """Batch ``number``, or this rank's share of it, gathered now. Raises DamagedError."""
        epoch, number_in_epoch = divmod(number, self.batches_per_epoch)
        order = self._order(epoch)
        last = self._end is not None and epoch + 1 >= self._end // self.batches_per_epoch
        self._pools.enter(
            order, order.pool_at(number_in_epoch * self._batch_rows), following=None if last else self._order(epoch + 1)
        )
        index = self.rows_of(epoch, number_in_epoch)
        tokens = self._rows.tokens[index]
        if self._mask_special:
            ordinary = self._rows.is_ordinary(tokens)
            index = index[ordinary]
            tokens = tokens[ordinary]
        activations = self._rows.activations(index, view=self._view, buffers=self._buffers)
        source, target = (
            rows.pin_memory() if self._pinned and rows.device.type == "cpu" else rows for rows in activations
        )
        return Batch(source, target, tokens, self._rows.document[index], number, epoch)

    def rows_of(self, epoch: int, number_in_epoch: int) -> Int64[np.ndarray, " batch"]:
        """Row numbers of this rank's share of a batch, before masking; reads nothing."""
        start = number_in_epoch * self._batch_rows
        count = min(self._batch_rows, len(self._rows) - start)
        first, last = (start + count * (self._rank + step) // self._world for step in (0, 1))
        return self._order(epoch).rows_at(first, last)

    def _order(self, epoch: int) -> EpochOrder:
        group = self._rows.group
        return EpochOrder(
            rows=len(self._rows),
            chunk_rows=group.chunk_rows,
            segment_rows=group.segment_rows,
            pool_rows=POOL_BYTES // sum(column.array.row_bytes for column in self._rows.read_columns),
            seed=self._seed,
            epoch=epoch,
        )


class _Pools:
    """Reads a pool's chunks in the order of the files before a batch is drawn from it, then those of the next pool."""

    def __init__(self, rows: SplitView) -> None:
        self._rows = rows
        self._reading: dict[tuple[int, int], Future[None]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def enter(self, order: EpochOrder, pool: int, *, following: EpochOrder | None) -> None:
        """Return when the pool is in memory. Raises DamagedError for the first chunk that does not match."""
        after = (order, pool + 1) if pool + 1 < order.pools else (following, 0)
        with self._lock:
            for epoch_order, number in ((order, pool), after):
                if epoch_order and (epoch_order.epoch, number) not in self._reading:
                    self._reading[epoch_order.epoch, number] = self._thread.submit(self._read, epoch_order, number)
            reading = self._reading[order.epoch, pool]
            for done in list(self._reading)[:-_POOLS_REMEMBERED]:
                del self._reading[done]
        reading.result()

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, order: EpochOrder, pool: int) -> None:
        chunks = np.sort(order.chunks_of_pool(pool))
        for column in self._rows.read_columns:
            column.read_through(chunks, stopped=self._closed.is_set)
