"""The cache beside what it replaces, in one run: writing, shuffled batches, cold reading, mixing. Ratios count.

    python -m bench.cache [--rows 262144] [--width 2304] [--repeats 5] [--folder DIR] [--mixing-rows 16000000]
                          [--peer PYTHON]         the Python of an environment that has sae-lens
                          [--only writing batches cold mixing]

Methods take turns, the middle of the repeats is shown, and of the rounds' ratios; one thread each. Cold means that the
files' pages were dropped. Plain files are written by the megabyte, as cp does: one call for a file of 38 MB takes three
times as long on ext4 of Linux 6.18.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.config import CacheSettings
from cache.loader import POOL_BYTES, Loader
from cache.order import EpochOrder, derive_key, permute
from cache.reader import CacheReader
from cache.tools.mixing import measure_mixing
from cache.writer import CacheWriter

BATCH_ROWS = 4096
PIECE_ROWS = 8192
PLAIN_BYTES = 1 << 20
PARTS = ("writing", "batches", "cold", "mixing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mixing-rows", type=int, default=16_000_000)
    parser.add_argument("--peer")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        compare(folder, options)
    finally:
        shutil.rmtree(folder)
    if "mixing" in options.only:
        mixing(options.mixing_rows, options.width)


def compare(folder, options):
    activations = [torch.randn(options.rows, options.width).to(torch.bfloat16) for _ in range(2)]
    gigabytes = 4 * options.rows * options.width / 1e9
    print(f"{options.rows} rows, width {options.width}, {gigabytes:.2f} GB, bfloat16")
    if "writing" in options.only:
        writing = {"plain files, fsynced": write_plain, "this cache": write_cache}
        methods = {name: (lambda path, do=do: do(path, activations)) for name, do in writing.items()}
        table("writing", methods, folder, options, before=os.sync)
    if {"batches", "cold"}.isdisjoint(options.only):
        return
    cache = folder / "kept"
    write_cache(cache, activations)
    if "batches" in options.only:
        compare_batches(cache, activations, folder, options)
    if "cold" in options.only:
        cold = {
            "plain sequential read": lambda _: read_files(cache),
            "this cache, shuffled": lambda _: drain_cold(cache),
        }
        table("reading everything, cold", cold, folder, options, before=lambda: drop_pages(cache))


def compare_batches(cache, activations, folder, options):
    reader, order = CacheReader.open(cache), torch.randperm(options.rows)
    store = zarr.open_group(cache / "rows.zarr", mode="r")["train"]
    shuffled = {
        "gather from one tensor in memory": lambda _: gather(activations, order),
        "this cache, in this thread": lambda _: drain(reader, threads=0),
        "this cache, prefetched": lambda _: drain(reader, threads=1),
        "zarr's own API, two batches": lambda _: through_zarr(store, order, batches=2),
    }
    if options.peer:
        peer = Peer(options, folder / "peer")
        shuffled["SAELens's cache, float16"] = peer.epoch
    table("shuffled batches of 4,096, warm (per epoch)", shuffled, folder, options)
    if options.peer:
        peer.close()


def table(title, methods, folder, options, *, before=lambda: None):
    """Run the methods in turn and print the middle of each, in wall and processor seconds, over the first one.

    A method may return its own (wall, processor) seconds, or a number to multiply those measured here by.
    """
    walls = {name: [] for name in methods}
    processors = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, method in methods.items():
            path = folder / "now"
            shutil.rmtree(path, ignore_errors=True)
            before()
            began, processor = time.perf_counter(), time.process_time()
            reply = method(path) or 1
            took = (time.perf_counter() - began, time.process_time() - processor)
            wall, cpu = reply if isinstance(reply, tuple) else (reply * seconds for seconds in took)
            walls[name].append(wall)
            processors[name].append(cpu)
    shutil.rmtree(folder / "now", ignore_errors=True)
    first = next(iter(methods))
    print(f"\n{title:<46}{'seconds':>9}{'ratio':>8}{'cpu s':>9}{'ratio':>8}")
    for name in methods:
        columns = [(statistics.median(taken[name]), ratio(taken[name], taken[first])) for taken in (walls, processors)]
        print(f"  {name:<44}" + "".join(f"{middle:>9.3f}{beside:>8.2f}" for middle, beside in columns))


def ratio(seconds, plain_seconds):
    """The middle of the rounds' ratios."""
    return statistics.median(own / max(1e-9, plain) for own, plain in zip(seconds, plain_seconds, strict=True))


def write_plain(path, activations):
    path.mkdir()
    for number, rows in enumerate(activations):
        data = rows.view(torch.int16).numpy()
        for start in range(0, len(data), PIECE_ROWS):
            with (path / f"{number}.{start}").open("wb", buffering=0) as file:
                left = memoryview(data[start : start + PIECE_ROWS]).cast("B")
                while left:
                    left = left[file.write(left[:PLAIN_BYTES]) :]
                os.fsync(file.fileno())


def write_cache(path, activations):
    rows, width = activations[0].shape
    sizes = {"d_source": width, "d_target": width, "train_rows": rows, "held_out_rows": 0}
    number = np.arange(rows)
    with CacheWriter(path, identity={}, settings=CacheSettings(), special_ids=[0], arrays={}, **sizes) as writer:
        for start in range(0, rows, PIECE_ROWS):
            here = slice(start, start + PIECE_ROWS)
            columns = (
                (number[here] % 5000).astype(np.int32),
                number[here] // 500,
                (number[here] % 256).astype(np.int32),
            )
            writer.append(*(values[here] for values in activations), *columns, held_out=False, cursor=start)
        assert writer.complete


def gather(activations, order):
    for start in range(0, len(order), BATCH_ROWS):
        for rows in activations:
            rows.index_select(0, order[start : start + BATCH_ROWS])


def drain(reader, *, threads):
    with Loader(reader, batch_rows=BATCH_ROWS, seed=1, epochs=1, mask_special=False) as loader:
        if threads:
            assert sum(len(batch.source) for batch in loader) == len(reader.split("train"))
        else:
            for number in range(loader.batches_per_epoch):
                loader.batch(number)


def drain_cold(cache):
    drain(CacheReader.open(cache), threads=1)


def through_zarr(store, order, *, batches):
    for number in range(batches):
        rows = np.sort(order[number * BATCH_ROWS : (number + 1) * BATCH_ROWS].numpy())
        for name in ("source", "target"):
            store[name].oindex[rows]
    return len(order) / BATCH_ROWS / batches


class Peer:
    """SAELens reading a cache of its own, in a process of its own."""

    def __init__(self, options, folder):
        script = Path(__file__).with_name("support") / "read_saelens.py"
        command = [options.peer, str(script), str(folder), str(options.rows), str(options.width)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(command, **pipes)
        assert json.loads(self._process.stdout.readline())["ready"]

    def epoch(self, _):
        self._process.stdin.write("epoch\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return reply["wall"], reply["cpu"]

    def close(self):
        self._process.communicate()


def row_files(cache):
    return [file for name in ("source", "target") for file in sorted((cache / "rows.zarr/train" / name).glob("c.*"))]


def read_files(cache):
    buffer = bytearray(1 << 22)
    for path in row_files(cache):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_pages(cache):
    # Mapped pages cannot be dropped, and a reader and its views hold each other.
    gc.collect()
    for path in row_files(cache):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mixing(rows, width):
    """Distinct documents of a batch over those of a uniform shuffle, for the default settings; documents as in text."""
    generator = np.random.default_rng(0)
    lengths = np.maximum(1, generator.lognormal(5.9, 0.9, rows // 200)).astype(np.int64)
    text = np.repeat(np.arange(len(lengths)), lengths)[:rows]
    settings, laid = CacheSettings(), np.empty(len(text), np.int64)
    for number, start in enumerate(range(0, len(text), settings.segment_rows)):
        segment = text[start : start + settings.segment_rows]
        slots = permute(np.arange(len(segment)), len(segment), key=derive_key(settings.shuffle_seed, number))
        laid[start + slots] = segment
    print(f"\nmixing of {len(text)} rows in batches of {BATCH_ROWS}, {POOL_BYTES / 1e9:.1f} GB in the reader")
    print(
        f"  {'width':<8}{'pool rows':>10}{'documents':>11}{'ideal':>9}{'score':>8}{'same-document pairs / ideal':>30}"
    )
    for wide in sorted({96, 768, width, 3584, 4608}):
        pool_rows = POOL_BYTES // (4 * wide)
        chunk_rows, segment_rows = settings.chunk_rows_of(2 * wide), settings.segment_rows
        sizes = {"chunk_rows": chunk_rows, "segment_rows": segment_rows, "pool_rows": pool_rows}
        order = EpochOrder(rows=len(text), seed=1, epoch=0, **sizes)
        starts = generator.integers(0, len(text) // BATCH_ROWS, 40) * BATCH_ROWS
        found = measure_mixing(laid, (order.rows_at(start, start + BATCH_ROWS) for start in starts.tolist()))
        columns = f"{found.distinct:>11.0f}{found.distinct_ideal:>9.0f}{found.score:>8.3f}"
        print(f"  {wide:<8}{min(pool_rows, len(text)):>10}{columns}{found.pairs / found.pairs_ideal:>30.2f}")


if __name__ == "__main__":
    main()
