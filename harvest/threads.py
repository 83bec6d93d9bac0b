"""Threads of a harvest.

A ``Prefetcher`` reads and tokenises text, a ``BackgroundWriter`` writes rows, and ``Later`` does one thing meanwhile.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``depth`` items in advance. The thread's error is raised instead of
    the item that it could not make.

    ``waited_seconds`` is how long the consumer waited, ``cpu_seconds`` how long the thread computed, after it has
    ended. Leaving the context ends the thread.
    """

    def __init__(self, items: Iterable[T], *, depth: int) -> None:
        self.waited_seconds = 0.0
        self.cpu_seconds = 0.0
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetcher[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            started = time.perf_counter()
            item, error = self._queue.get()
            self.waited_seconds += time.perf_counter() - started
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))
        finally:
            self.cpu_seconds = time.thread_time()

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                # With a timeout: a consumer that has left takes no more items and sets ``_stop``.
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class BackgroundWriter(Generic[T]):
    """Calls ``work`` for items in a thread, in order, with at most ``depth`` items waiting.

    After an error of ``work`` the next ``put``, or the end of the context, raises it, so that the caller does not go
    on. ``waited_seconds`` is how long ``put`` waited, ``cpu_seconds`` how long the thread computed, after it has ended.
    """

    def __init__(self, work: Callable[[T], None], *, depth: int) -> None:
        self.waited_seconds = 0.0
        self.cpu_seconds = 0.0
        self._work = work
        self._queue: queue.Queue[T | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)

    def __enter__(self) -> "BackgroundWriter[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop()
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, item: T) -> None:
        """Queue an item. Raises the thread's error, if there was one."""
        started = time.perf_counter()
        self._queue.put(item)
        self.waited_seconds += time.perf_counter() - started
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            # After an error the thread still empties the queue, so that ``put`` never waits for ever.
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error
        self.cpu_seconds = time.thread_time()

    def _drop(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return


class Later(Generic[T]):
    """Calls ``work`` in a thread. If nobody takes the result, nothing waits for the thread, not even the end of the
    process: it may read from a network that does not answer."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(work,), name="later", daemon=True).start()

    def result(self) -> T:
        """What ``work`` returned, once it is there. Raises what it raised."""
        return self._future.result()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:
            self._future.set_exception(error)
