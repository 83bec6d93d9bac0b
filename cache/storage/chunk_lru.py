"""Chunks that are near only for a while: the least recently used is given up first, one in use never."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from common.errors import CapacityError

Key = tuple[str, int]
"""An array's path and a chunk of it."""


class Held:
    """At most ``limit_bytes`` of chunks, and ``limit`` of them; ``where`` says in an error who holds them."""

    def __init__(self, limit_bytes: int, *, where: object, limit: int = 1 << 62) -> None:
        self._limit_bytes, self._limit, self._where = limit_bytes, limit, where
        self._chunks: OrderedDict[Key, tuple[int, Callable[[], None]]] = OrderedDict()
        self._bytes = 0
        self._uses: Counter[Key] = Counter()
        self._bytes_in_use = 0
        self._changed = threading.Condition()

    @contextmanager
    def in_use(self, keys: Sequence[Key], *, chunk_bytes: int) -> Generator[None]:
        """While the block runs, none of these chunks is given up; it begins when others leave room for them.

        A thread that is in such a block may not enter another. Raises CapacityError when the limit is too small for
        these alone.
        """
        with self._changed:
            while self._bytes_in_use + self._unused(keys) * chunk_bytes > self._limit_bytes:
                if not self._bytes_in_use:
                    size = len(keys) * chunk_bytes
                    what = f"The rows of a batch take {size} bytes, but only {self._limit_bytes} may be kept here."
                    remedy = "Allow more bytes, or use smaller batches."
                    raise CapacityError(what, where=self._where, remedy=remedy)
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

    def _unused(self, keys: Sequence[Key]) -> int:
        return sum(not self._uses[key] for key in keys)

    def add(self, key: Key, size: int, give_up: Callable[[], None]) -> None:
        """Count a chunk that is now near, and make room for it by calling ``give_up`` of others."""
        with self._changed:
            before, _ = self._chunks.pop(key, (0, give_up))
            self._chunks[key] = size, give_up
            self._bytes += size - before
            if not self._too_many():
                return
            for other in [other for other in self._chunks if not self._uses[other]]:
                if not self._too_many():
                    return
                freed, release = self._chunks.pop(other)
                release()
                self._bytes -= freed

    def _too_many(self) -> bool:
        return self._bytes > self._limit_bytes or len(self._chunks) > self._limit
