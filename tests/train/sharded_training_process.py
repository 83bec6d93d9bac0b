"""One process of a sharded training run that is interrupted once: RANK WORLD MEETING_POINT CACHE OUT SETTINGS"""

import sys
from pathlib import Path

from torch import distributed

from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.run import train_layer


class Interrupting(Silent):
    """Fails after so many steps, on every process alike."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def advance(self, amount: int, **metrics: float) -> None:
        self._left -= 1
        if not self._left:
            raise InterruptedError


def main() -> None:
    rank, world, meeting_point, cache, out, text = sys.argv[1:]
    distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=int(rank), world_size=int(world))
    settings = TrainSettings.model_validate_json(text)
    given = {"cache": Path(cache), "out": Path(out), "settings": settings, "device": "cpu", "log": LogSettings()}
    try:
        train_layer(**given, fresh=False, progress=Interrupting(25))
    except InterruptedError:
        distributed.barrier()
        train_layer(**given, fresh=False, progress=Silent())
        print("trained")
    distributed.destroy_process_group()


main()
