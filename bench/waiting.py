"""The share of training's time that is spent waiting for data: python -m bench.waiting [--cache DIR] [--steps N]

Trains for so many steps through the whole loop, with the settings of GPT-2 small (12,288 features), from a cache on
disk that has just been read once: DIR, or one of random rows that is made for it, 768 wide as GPT-2's. The first step,
which fills the queue, is left out, and the last, which saves. Goal: under 3 %.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.step import processor
from cache.config import CacheSettings
from cache.loader import Loader
from cache.reader import CacheReader
from cache.writer import CacheWriter
from common.progress import Silent
from train import run as loop
from train.config import LogSettings, TrainSettings

WIDTH, ROWS = 768, 131_072


class Watch(Silent):
    """Wall time, and the part of it spent waiting, after every step."""

    def __init__(self) -> None:
        self.loader: Loader | None = None
        self.marks: list[tuple[float, float]] = []

    def make_loader(self, *given: object, **named: object) -> Loader:
        self.loader = Loader(*given, **named)
        return self.loader

    def advance(self, *_: int, **__: float) -> None:
        self.marks.append((time.perf_counter(), self.loader.waited_seconds))

    def seconds_and_share(self) -> tuple[float, float]:
        """Seconds a step, and the share of them spent waiting."""
        first, *_, last, _ = self.marks
        wall, waited = last[0] - first[0], last[1] - first[1]
        return wall / (len(self.marks) - 2), waited / wall


def make_cache(path: Path) -> Path:
    """Random rows, as a harvest of GPT-2 small would store them."""
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": ROWS, "held_out_rows": 256}
    identity = {"model": "gpt2", "layer": 0, "source_site": "mlp_in", "target_site": "mlp_out"}
    generator = torch.Generator().manual_seed(0)
    with CacheWriter(path, identity=identity, settings=CacheSettings(), special_ids=[], arrays={}, **sizes) as writer:
        for held_out, rows in ((False, ROWS), (True, 256)):
            for first in range(0, rows, 8192):
                count = min(8192, rows - first)
                source, target = torch.randn(2, count, WIDTH, generator=generator).bfloat16()
                columns = (np.ones(count, np.int32), np.arange(count) // 512, np.arange(count, dtype=np.int32))
                writer.append(source, target, *columns, held_out=held_out, cursor=None)
    return path


def warm(cache: Path) -> None:
    """Read every row once, so that the disk is out of it."""
    rows = CacheReader.open(cache).split("train")
    for first in range(0, len(rows), 8192):
        rows.rows(slice(first, min(first + 8192, len(rows))))


def measure(cache: Path, out: Path, *, steps: int) -> tuple[float, float]:
    """Seconds a step and the share waited, of a run into ``out``."""
    watch = Watch()
    loop.Loader = watch.make_loader
    settings = TrainSettings(preset="gpt2", steps=steps, warmup_steps=1, held_out_rows=0, checkpoint_every=steps)
    given = {"settings": settings, "device": "cpu", "fresh": True, "log": LogSettings()}
    loop.train_layer(cache=cache, out=out, progress=watch, **given)
    return watch.seconds_and_share()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a finished cache; one of random rows where not given")
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    print(f"{processor()}; {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.cache or make_cache(Path(scratch) / "cache")
        warm(cache)
        seconds, share = measure(cache, Path(scratch) / "run", steps=arguments.steps)
    print(
        f"{arguments.steps} steps of 2,048 rows, {seconds * 1e3:.0f} ms each; waiting for data: {share:.2%} of the time"
    )


if __name__ == "__main__":
    main()
