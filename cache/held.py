"""Chunks that are near only for a while: the least recently used is given up first, one in use never."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from cache.errors import CapacityError

Key = tuple[str, int]
"""An array's path and a chunk of it."""


class Held:
    """At most ``limit_bytes`` of chunks; ``where`` says in an error who holds them."""

    def __init__(self, limit_bytes: int, *, where: object) -> None:
        self._limit, self._where = limit_bytes, where
        self._chunks: OrderedDict[Key, tuple[int, Callable[[], None]]] = OrderedDict()
        self._bytes = 0
        self._pins: Counter[Key] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def in_use(self, keys: Sequence[Key]) -> Generator[None]:
        """While the block runs, none of these chunks is given up."""
        with self._lock:
            self._pins.update(keys)
        try:
            yield
        finally:
            with self._lock:
                self._pins.subtract(keys)
                for key in keys:
                    if key in self._chunks:
                        self._chunks.move_to_end(key)

    def add(self, key: Key, size: int, give_up: Callable[[], None]) -> None:
        """Count a chunk that is now near, and make room for it by calling ``give_up`` of others.

        Raises CapacityError when what is in use takes more than the limit.
        """
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = size, give_up
                self._bytes += size
            for other in [other for other in self._chunks if not self._pins[other]]:
                if self._bytes <= self._limit:
                    return
                freed, release = self._chunks.pop(other)
                release()
                self._bytes -= freed
            if self._bytes > self._limit:
                what = f"The rows in use take {self._bytes} bytes, but only {self._limit} may be kept here."
                raise CapacityError(what, where=self._where, remedy="Allow more bytes, or use smaller batches.")
