"""What feature evidence costs: processor time, memory and bytes a feature, by part, for a dictionary of any size.

A cache of drawn rows is written first, which is not counted: sources are Gaussian about a few hundred directions, so
that some features fire often and most seldom, tokens follow Zipf's law, documents have 1,000 tokens. The dictionary's
rows are such sources. Processor time is of all threads: on a machine that others use, wall time says how much of it
was had.

    python -m bench.features [--features 18432] [--width 2304] [--rows 120000] [--top-k 96] [--threads 2] [--folder DIR]
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.writer import CacheWriter
from common.progress import Silent
from evaluate.dashboard.write import write_dashboard
from evaluate.features.collect import block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import write_evidence
from evaluate.features.self_check import check_evidence
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

CONTEXT, DOCUMENT, VOCABULARY, DIRECTIONS = 256, 1000, 50_000, 512


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        _measure(arguments, folder)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("features", 18432), ("width", 2304), ("rows", 120_000), ("top-k", 96), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--folder", type=Path)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(DIRECTIONS, arguments.width, generator=generator)
    reader = _cache(folder / "cache", arguments, directions, generator)
    transcoder = _dictionary(arguments, directions, generator)
    settings = FeatureSettings(rows=arguments.rows)
    print(f"{arguments.features:,} features, width {arguments.width:,}, {arguments.rows:,} rows, k {arguments.top_k}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n\n{'':<22}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}")
    starts = block_starts(reader, settings)
    total = time.process_time(), time.perf_counter()
    blocks = _timed("replay", lambda: encode_part(reader, transcoder, settings, starts, progress=Silent()))
    evidence = _timed("everything else", lambda: evidence_of(blocks, reader, transcoder, settings))
    del blocks
    _timed("encode again, compare", lambda: check_evidence(evidence, reader, transcoder))
    _timed("write evidence", lambda: write_evidence(folder / "out", evidence))
    _timed("write pages", lambda: write_dashboard(folder / "out", evidence, progress=Silent()))
    print(f"{'in all':<22}{time.process_time() - total[0]:8.0f}{time.perf_counter() - total[1]:8.0f}")
    pages = sum(path.stat().st_size for path in (folder / "out" / "data").iterdir())
    arrays = (folder / "out" / "evidence.safetensors").stat().st_size
    # Base64 is three quarters bytes: that much is the size of what gzip made.
    as_files, of_arrays = pages / arguments.features, arrays / arguments.features
    print(f"\na feature: {as_files:,.0f} bytes of pages as files, {0.75 * as_files:,.0f} compressed")
    print(f"           {of_arrays:,.0f} bytes of arrays")


def _timed(name: str, work: Callable[[], Any]) -> Any:
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<22}{time.process_time() - cpu:8.1f}{time.perf_counter() - wall:8.1f}{peak:9.0f}", flush=True)
    return result


def _cache(
    path: Path, arguments: argparse.Namespace, directions: torch.Tensor, generator: torch.Generator
) -> CacheReader:
    train = 1024
    with CacheWriter(
        path,
        identity={"model": "drawn", "layer": 8, "context": CONTEXT},
        settings=CacheSettings(),
        d_source=arguments.width,
        d_target=arguments.width,
        train_rows=train,
        held_out_rows=arguments.rows,
        special_ids=[0],
        arrays={},
    ) as writer:
        writer.append(**_rows(0, train, directions, generator), held_out=False, cursor=0)
        for cursor, start in enumerate(range(0, arguments.rows, 8192), start=1):
            rows = _rows(start, min(8192, arguments.rows - start), directions, generator)
            writer.append(**rows, held_out=True, cursor=cursor)
    return CacheReader.open(path)


def _rows(start: int, count: int, directions: torch.Tensor, generator: torch.Generator) -> dict[str, Any]:
    row = np.arange(start, start + count)
    source = _drawn(count, directions, generator)
    tokens = np.minimum(np.random.default_rng(start).zipf(1.2, count), VOCABULARY).astype(np.int32)
    tokens[row % CONTEXT == 0] = 0
    position = (row % CONTEXT).astype(np.int32)
    target = source.roll(1, dims=1)
    return {"source": source.bfloat16(), "target": target.bfloat16(), "tokens": tokens, "position": position} | {
        "document": (row // DOCUMENT).astype(np.int64)
    }


def _drawn(count: int, directions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A few directions a row, the first ones much more often than the last, and noise."""
    likely = 1 / (torch.arange(DIRECTIONS) + 10.0)
    chosen = torch.multinomial(likely.expand(count, -1), 8, generator=generator)
    mixed = torch.nn.functional.embedding_bag(chosen, directions, mode="sum")
    return mixed + 0.5 * torch.randn(count, directions.shape[1], generator=generator)


def _dictionary(arguments: argparse.Namespace, directions: torch.Tensor, generator: torch.Generator) -> Transcoder:
    source = torch.nn.functional.normalize(_drawn(arguments.features, directions, generator), dim=1)
    prefixes = tuple(share * arguments.features // 16 for share in (1, 3, 7, 16))
    return Transcoder.from_arrays(
        {
            "W_enc": source,
            "b_enc": torch.zeros(arguments.features),
            "W_dec": source.roll(1, dims=1).contiguous(),
            "b_dec": torch.zeros(arguments.width),
        },
        rule=TopK(arguments.top_k),
        prefixes=prefixes,
    )


if __name__ == "__main__":
    main()
