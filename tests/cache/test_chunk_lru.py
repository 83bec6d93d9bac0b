"""Chunks kept within a limit: chunks in use stay, others are given up, and a request that finds no room waits."""

import threading

import pytest

from cache.storage.chunk_lru import ChunkLru
from common.errors import CapacityError

KEYS = [("source", number) for number in range(6)]


def add_all(lru, keys, given_up):
    for key in keys:
        lru.add(key, 10, lambda key=key: given_up.append(key))


def test_the_least_recently_used_is_given_up_first():
    lru, given_up = ChunkLru(30, location="here"), []
    add_all(lru, KEYS[:3], given_up)
    with lru.in_use(KEYS[:1], chunk_bytes=10):
        add_all(lru, KEYS[3:5], given_up)
    assert given_up == KEYS[1:3]
    add_all(lru, KEYS[5:], given_up)
    assert given_up == [KEYS[1], KEYS[2], KEYS[3]]


def test_a_chunk_in_two_blocks_counts_once():
    lru = ChunkLru(20, location="here")
    with lru.in_use(KEYS[:2], chunk_bytes=10), lru.in_use(KEYS[1:2], chunk_bytes=10):
        pass


def test_more_than_the_limit_at_once_is_refused():
    with pytest.raises(CapacityError, match=r"take 30 B, but the limit is 20 B"):
        ChunkLru(20, location="here").in_use(KEYS[:3], chunk_bytes=10).__enter__()


def test_a_request_that_finds_no_room_waits():
    lru, given_up, done = ChunkLru(30, location="here"), [], threading.Event()

    def use_more():
        with lru.in_use(KEYS[2:5], chunk_bytes=10):
            add_all(lru, KEYS[2:5], given_up)
            done.set()

    thread = threading.Thread(target=use_more)
    with lru.in_use(KEYS[:2], chunk_bytes=10):
        add_all(lru, KEYS[:2], given_up)
        thread.start()
        assert not done.wait(0.2)
        assert given_up == []
    thread.join(10)
    assert done.is_set()
    assert given_up == KEYS[:2]
