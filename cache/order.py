"""The order in which rows are written and served: pure functions of seeds, with nothing to store.

A permutation of [0, n) is a Feistel network of six rounds on the smallest even number of bits that can hold n, applied
again until the result is below n. With it

    slot in segment = permute(stream index)                     once, when a segment is written
    chunk           = rounds over all segments, one chunk of each in a round
    row             = permute(position in pool), where a pool is a run of chunks in that order

An epoch visits every row once. The chunks of a pool come from as many segments as there are. So a batch is drawn from
all of the cache although only a pool of it is in memory, and each chunk is read from the disk in one piece.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

Indices = Int64[np.ndarray, " n"]

_ROUNDS = 6
"""Four rounds are a pseudorandom permutation if the round function is pseudorandom (Luby and Rackoff 1988). Ours is a
cheap mixer; with two more rounds the tests of correlation pass at every size."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: the increment of SplitMix64 (Steele, Lea and Flood 2014), as are ``_mix``'s
factors."""
_MASK = (1 << 64) - 1


def derive_key(*numbers: int) -> int:
    """A 64-bit key from integers; another tuple gives an unrelated key."""
    key = len(numbers)
    for number in numbers:
        key = _mix(key ^ _mix((number + _GOLDEN) & _MASK))
    return key


def permute(index: Indices, size: int, *, key: int) -> Indices:
    """Images of ``index`` under the permutation of [0, size) that ``key`` names.

    The Feistel network permutes a power of four that is at least ``size``. An image beyond ``size`` is mapped again
    until it is below ("cycle walking", Black and Rogaway 2002), fewer than four times on average.
    """
    half = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
    rounds = _rounds(key, half)
    found = _feistel(index, half, rounds)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = _feistel(found[outside], half, rounds)
        outside = outside[found[outside] >= size]
    return found


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _feistel(value: Indices, half: int, rounds: Int64[np.ndarray, "rounds half"]) -> Indices:
    left = value >> half
    right = value & ((1 << half) - 1)
    for scrambled in rounds:
        left, right = right, left ^ scrambled[right]
    return (left << half) | right


# A batch needs the tables of its pool and of five keys for chunks; 32 serve two pools of several loaders.
@lru_cache(maxsize=32)
def _rounds(key: int, half: int) -> Int64[np.ndarray, "rounds half"]:
    """The round function of each round for every half of a number: few enough values for a table."""
    keys = np.array([[derive_key(key, number)] for number in range(_ROUNDS)], np.uint64)
    value = (np.arange(1 << half, dtype=np.uint64) ^ keys) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(32)
    return (value & np.uint64((1 << half) - 1)).astype(np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over ``rows`` rows in chunks, and chunks in segments.

    ``pool_rows`` is how many rows of a pool are in memory at most (a short last chunk comes in addition). There is no
    state: any position takes the same time.
    """

    rows: int
    chunk_rows: int
    segment_rows: int
    pool_rows: int
    seed: int
    epoch: int

    @property
    def chunks(self) -> int:
        """The number of full chunks; rows after the last one are served in the epoch's last pool."""
        return self.rows // self.chunk_rows

    @property
    def pools(self) -> int:
        """How many pools serve an epoch."""
        return max(1, -(-self.chunks // max(1, self.pool_rows // self.chunk_rows)))

    def pool_start(self, pool: int) -> int:
        """The position in the epoch of the first row of ``pool``; for ``pools`` the number of rows."""
        return self.rows if pool >= self.pools else pool * self.chunks // self.pools * self.chunk_rows

    def pool_at(self, position: int) -> int:
        """The pool that serves ``position``."""
        pool = min(self.pools - 1, position // self.chunk_rows * self.pools // max(1, self.chunks))
        while self.pool_start(pool + 1) <= position:
            pool += 1
        return pool

    def rows_at(self, start: int, stop: int) -> Indices:
        """Row numbers served at positions ``start`` to ``stop`` of the epoch."""
        stop = min(stop, self.rows)
        pieces = [np.empty(0, np.int64)]
        while start < stop:
            pool = self.pool_at(start)
            end = min(stop, self.pool_start(pool + 1))
            pieces.append(self._rows_of_pool(pool, start, end))
            start = end
        return np.concatenate(pieces)

    def _rows_of_pool(self, pool: int, start: int, stop: int) -> Indices:
        first = self.pool_start(pool)
        end = self.pool_start(pool + 1)
        positions = np.arange(start - first, stop - first, dtype=np.int64)
        positions = permute(positions, end - first, key=derive_key(self.seed, self.epoch, 1, pool))
        chunk, inside = np.divmod(positions, self.chunk_rows)
        return _pool_chunks(self, pool)[chunk] * self.chunk_rows + inside

    def chunks_of_pool(self, pool: int) -> Indices:
        """Chunks that ``pool`` serves, in the order of the epoch; the last pool may end with a short chunk."""
        first, end = (-(-self.pool_start(number) // self.chunk_rows) for number in (pool, pool + 1))
        chunks = np.arange(first, end, dtype=np.int64)
        full = chunks < self.chunks
        chunks[full] = self.chunk_at(chunks[full])
        return chunks

    def chunk_at(self, position: Indices) -> Indices:
        """The chunk at a position of the epoch's order of full chunks.

        Each round takes one chunk of every full segment; the chunks of a shorter last segment are spread evenly.
        """
        per_segment = self.segment_rows // self.chunk_rows
        full, short = divmod(self.chunks, per_segment)
        dealt = position * short // max(1, self.chunks)
        is_short = (position + 1) * short // max(1, self.chunks) > dealt
        chunk = np.empty_like(position)
        last = permute(dealt[is_short], short, key=derive_key(self.seed, self.epoch, 2)) if short else dealt[is_short]
        chunk[is_short] = full * per_segment + last
        chunk[~is_short] = self._full_chunk((position - dealt)[~is_short], full, per_segment)
        return chunk

    def _full_chunk(self, position: Indices, full: int, per_segment: int) -> Indices:
        if not position.size:
            return position
        turn, seat = np.divmod(position, full)
        segment = np.empty_like(position)
        for number in np.unique(turn):
            here = turn == number
            segment[here] = permute(seat[here], full, key=derive_key(self.seed, self.epoch, 3, int(number)))
        # A segment's chunks are all alike (its rows are shuffled), so a rotation of them is as good as a permutation.
        shift = permute(segment, full, key=derive_key(self.seed, self.epoch, 4))
        turn = permute(turn, per_segment, key=derive_key(self.seed, self.epoch, 5))
        return segment * per_segment + (turn + shift) % per_segment


# Threads draw batches from at most two pools of an epoch at a time; 8 serve several loaders.
@lru_cache(maxsize=8)
def _pool_chunks(order: EpochOrder, pool: int) -> Indices:
    return order.chunks_of_pool(pool)
