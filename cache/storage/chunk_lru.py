"""Chunks that are in memory or on this disk: the least recently used is released first, a chunk in use never."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from common.errors import CapacityError
from common.units import in_bytes

Key = tuple[str, int]
"""An array's path and the number of a chunk."""


class ChunkLru:
    """At most ``limit_bytes`` of chunks, and ``limit`` of them (no limit by default); errors name ``location``."""

    def __init__(self, limit_bytes: int, *, location: object, limit: int = 1 << 62) -> None:
        self._limit_bytes = limit_bytes
        self._limit = limit
        self._location = location
        self._chunks: OrderedDict[Key, tuple[int, Callable[[], None]]] = OrderedDict()
        self._bytes = 0
        self._uses: Counter[Key] = Counter()
        self._bytes_in_use = 0
        self._changed = threading.Condition()

    @contextmanager
    def in_use(self, keys: Sequence[Key], *, chunk_bytes: int) -> Generator[None]:
        """While the block runs, none of these chunks is released. It begins when there is room for all of them.

        A thread in such a block may not enter another: two threads could wait for each other. Raises CapacityError when
        the limit is too small for these chunks alone.
        """
        with self._changed:
            while self._bytes_in_use + self._unused(keys) * chunk_bytes > self._limit_bytes:
                if not self._bytes_in_use:
                    raise self._too_small(len(keys) * chunk_bytes)
                self._changed.wait()
            self._bytes_in_use += self._unused(keys) * chunk_bytes
            self._uses.update(keys)
        try:
            yield
        finally:
            with self._changed:
                self._uses.subtract(keys)
                self._bytes_in_use -= self._unused(keys) * chunk_bytes
                for key in keys:
                    if key in self._chunks:
                        self._chunks.move_to_end(key)
                self._changed.notify_all()

    def _too_small(self, size_bytes: int) -> CapacityError:
        limit = in_bytes(self._limit_bytes)
        what = f"The rows of a batch take {in_bytes(size_bytes)}, but the limit is {limit}."
        remedy = "Raise cache.remote_bytes for a remote cache, or use smaller batches."
        return CapacityError(what, where=self._location, remedy=remedy)

    def _unused(self, keys: Sequence[Key]) -> int:
        return sum(not self._uses[key] for key in keys)

    def add(self, key: Key, size: int, release: Callable[[], None]) -> None:
        """Count a new chunk, and make room for it by calling ``release`` of the least recently used ones."""
        with self._changed:
            size_before, _ = self._chunks.pop(key, (0, release))
            self._chunks[key] = size, release
            self._bytes += size - size_before
            if not self._is_full():
                return
            for oldest in [known for known in self._chunks if not self._uses[known]]:
                if not self._is_full():
                    return
                freed, release_oldest = self._chunks.pop(oldest)
                release_oldest()
                self._bytes -= freed

    def _is_full(self) -> bool:
        return self._bytes > self._limit_bytes or len(self._chunks) > self._limit
