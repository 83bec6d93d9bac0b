"""What all transcoders of one training run share."""

from dataclasses import dataclass

from cache.reader import CacheReader
from common.distributed import Ranks
from common.progress import Progress
from train.arrays.units import Units
from train.record.held_out_fvu import HeldOut
from transcoder.sharded import Shard


@dataclass(frozen=True)
class TrainingContext:
    """The cache, its units, and where the training runs. ``held_out`` is None if nothing is measured
    during training.

    ``readers`` are the caches of the single layers, if ``reader`` has the rows of several side by side.
    """

    reader: CacheReader
    readers: tuple[CacheReader, ...]
    units: Units
    held_out: HeldOut | None
    device: str
    ranks: Ranks
    shard: Shard
    progress: Progress

    @property
    def home(self) -> str:
        """The device of the whole dictionary: main memory, if its features are divided among several processes."""
        return self.device if self.shard.world == 1 else "cpu"

    @property
    def data_ranks(self) -> Ranks:
        """The processes that read different rows: only this one, if they divide the dictionary and all read the same
        rows."""
        return self.ranks if self.shard.world == 1 else Ranks()

    def epochs(self, step: int, *, batch_rows: int) -> float:
        """How often every training row has been seen after ``step`` steps."""
        batches_per_epoch = -(-len(self.reader.split("train")) // batch_rows)
        return step / batches_per_epoch
