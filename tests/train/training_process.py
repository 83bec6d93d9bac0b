"""One of several processes that train together; arguments: rank, world, meeting file, cache, out, settings."""

import sys
from pathlib import Path

import torch
from torch import distributed

from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.run import train_layer


def main() -> None:
    rank, world, meeting, cache, out, settings = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(world))
    train_layer(
        cache=Path(cache),
        out=Path(out),
        settings=TrainSettings.model_validate_json(settings),
        device="cpu",
        fresh=False,
        progress=Silent(),
        log=LogSettings(),
    )
    distributed.destroy_process_group()


main()
