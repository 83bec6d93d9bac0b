"""What nesting costs: FVU of every prefix of one nested transcoder, beside dictionaries of those sizes trained alone.

python -m bench.nesting CACHE OUT [--steps N] [--top-k K]: all from one reading of the cache, by ``train.sweep``; a
rerun goes on. FVU, L0 and dead features as a report says them, on all held-out rows.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cache.reader import CacheReader
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer
from train.config import LogSettings, TrainSettings
from train.run import train_layer


class Steps(Silent):
    """A line every 500 steps."""

    done = 0

    def advance(self, amount: int, **metrics: float) -> None:
        self.done += amount
        if self.done % 500 == 0:
            print(f"step {self.done}: batch FVU {metrics['batch_fvu']:.4f}", file=sys.stderr, flush=True)


def compare(cache: Path, out: Path, *, steps: int, top_k: int) -> list[tuple[int, float, float, float, float, float]]:
    """Per prefix: size, nested FVU, L0, FVU alone, L0 alone, dead share alone."""
    d_target = CacheReader.open(cache).manifest.geometry.d_target
    ends = tuple(share * d_target for share in (1, 3, 7, 16))
    alone = tuple({"name": f"alone-{end}", "prefixes": [end]} for end in ends)
    settings = TrainSettings(
        prefixes=ends, top_k=top_k, steps=steps, batch_rows=1024, dead_after_tokens=200_000, sweep=alone
    )
    train_layer(cache=cache, out=out, settings=settings, device="cpu", fresh=False, progress=Steps(), log=LogSettings())
    nested = measured(cache, out)
    rows: list[tuple[int, float, float, float, float, float]] = []
    for number, end in enumerate(ends):
        single = measured(cache, out / f"alone-{end}")
        beside = (nested["fvu_per_prefix"][number], nested["l0_per_prefix"][number])
        rows.append((end, *beside, single["fvu"], single["l0"], single["dead_fraction"]))
    print(f"dead share of the nested one: {nested['dead_fraction']:.3f}")
    return rows


def measured(cache: Path, transcoder: Path) -> dict[str, Any]:
    """What a report says of it."""
    return evaluate_layer(
        cache=cache,
        transcoder=transcoder,
        out=transcoder / "report",
        settings=EvaluateSettings(bootstrap=0),
        device="cpu",
        progress=Silent(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--top-k", type=int, default=16)
    arguments = parser.parse_args()
    print(f"{'features':>8} {'nested FVU':>11} {'its L0':>7} {'alone FVU':>10} {'its L0':>7} {'dead alone':>10}")
    for end, fvu, l0, single, single_l0, dead in compare(
        arguments.cache, arguments.out, steps=arguments.steps, top_k=arguments.top_k
    ):
        print(f"{end:8d} {fvu:11.4f} {l0:7.2f} {single:10.4f} {single_l0:7.2f} {dead:10.3f}")


if __name__ == "__main__":
    main()
