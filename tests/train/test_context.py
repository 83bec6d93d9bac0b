"""On which device whole dictionaries are, which process reads which rows, and how many epochs steps are."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache.reader import CacheReader
from common.distributed import Ranks
from common.progress import Silent
from train.arrays.units import units_of
from train.context import TrainingContext
from transcoder.sharded import UNSHARDED, Shard


@pytest.fixture
def context(small_cache: Path) -> TrainingContext:
    reader = CacheReader.open(small_cache)
    return TrainingContext(
        reader=reader,
        readers=(reader,),
        units=units_of(reader, "mlp_in"),
        held_out=None,
        device="cuda:1",
        ranks=Ranks(1, 2),
        shard=UNSHARDED,
        progress=Silent(),
    )


def test_processes_with_whole_dictionaries_read_different_rows(context: TrainingContext) -> None:
    assert context.home == "cuda:1"
    assert context.data_ranks == Ranks(1, 2)


def test_a_sharded_dictionary_is_kept_in_main_memory_and_all_read_the_same_rows(context: TrainingContext) -> None:
    dealt = replace(context, shard=Shard(1, 2))
    assert dealt.home == "cpu"
    assert dealt.data_ranks == Ranks()


def test_an_epoch_ends_with_its_last_batch_however_short(context: TrainingContext) -> None:
    rows = len(context.reader.split("train"))
    assert context.epochs(7, batch_rows=rows) == 7
    assert context.epochs(1, batch_rows=rows - 1) == 0.5
    assert context.epochs(32, batch_rows=64) == 32 / -(-rows // 64)
