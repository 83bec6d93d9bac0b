"""What all transcoders of one training share."""

from dataclasses import dataclass

from cache.reader import CacheReader
from common.distributed import Ranks
from common.progress import Progress
from train.arrays.units import Units
from train.record.held_out_fvu import HeldOut
from transcoder.sharded import Shard


@dataclass(frozen=True)
class TrainingContext:
    """The cache, its units, and where the training runs. ``held_out`` is None where nothing is measured on the way.

    ``readers`` are the caches of the single layers, where ``reader`` has the rows of several side by side.
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
        """Where whole dictionaries are kept: not on the device where they are dealt over several."""
        return self.device if self.shard.world == 1 else "cpu"

    @property
    def data_ranks(self) -> Ranks:
        """The processes that read different rows. Where the dictionary is dealt over them, all read the same."""
        return self.ranks if self.shard.world == 1 else Ranks()

    def epochs(self, step: int, *, batch_rows: int) -> float:
        """How often every training row has been seen after ``step`` steps."""
        batches_per_epoch = -(-len(self.reader.split("train")) // batch_rows)
        return step / batches_per_epoch
