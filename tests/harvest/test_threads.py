"""The threads beside the model: order, errors, and how they end."""

import threading

import pytest

from harvest.threads import BackgroundWriter, Later, Prefetcher


class PlantedError(Exception):
    """Raised by the work of a thread."""


def failing(items, bad_item):
    for item in items:
        if item == bad_item:
            raise PlantedError
        yield item


def test_a_prefetcher_gives_the_same_items_and_raises_the_error_of_its_thread_after_them():
    with Prefetcher(range(1, 100), depth=3) as items:
        assert list(items) == list(range(1, 100))
    seen = []
    with Prefetcher(failing(range(1, 100), bad_item=7), depth=2) as items, pytest.raises(PlantedError):
        seen.extend(items)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_prefetcher_ends_its_thread_when_it_is_left_early():
    with Prefetcher(iter(range(1, 10_000)), depth=2) as items:
        assert next(iter(items)) == 1
    assert not items._thread.is_alive()


def test_a_background_writer_works_in_order():
    seen = []
    with BackgroundWriter(seen.append, depth=2) as writer:
        for item in range(50):
            writer.put(item)
    assert seen == list(range(50))


def test_a_background_writers_error_is_raised_and_nothing_after_it_is_written():
    seen = []

    def work(item):
        if item == 3:
            raise PlantedError
        seen.append(item)

    def write_all():
        with BackgroundWriter(work, depth=1) as writer:
            for item in range(50):
                writer.put(item)

    with pytest.raises(PlantedError):
        write_all()
    assert seen == [0, 1, 2]


def test_what_is_done_later_gives_its_result_or_its_error():
    assert Later(lambda: 3).result() == 3

    def fail():
        raise PlantedError

    with pytest.raises(PlantedError):
        Later(fail).result()


def test_nobody_waits_for_what_nobody_asks_for():
    answered = threading.Event()
    later = Later(answered.wait)
    threads = [thread for thread in threading.enumerate() if thread.name == "later"]
    assert all(thread.daemon for thread in threads)
    answered.set()
    assert later.result() is True
