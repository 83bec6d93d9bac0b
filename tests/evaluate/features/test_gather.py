"""Blocks are shared evenly, and one process keeps its own; ``tests/evaluate/test_distributed.py`` runs several."""

from common.distributed import Ranks
from evaluate.features.gather import gathered, share_of


def test_every_block_is_encoded_by_one_process() -> None:
    starts = list(range(0, 70, 10))
    shares = [share_of(starts, Ranks(rank, 3)) for rank in range(3)]
    assert sorted(start for share in shares for start in share) == starts
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_alone_keeps_its_blocks(toy) -> None:
    assert gathered(toy.blocks, Ranks(), device="cpu") is toy.blocks
