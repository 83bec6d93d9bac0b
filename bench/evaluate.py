"""Rows a second of evaluation against a dense replay, in one run, on rows held in memory.

The dense replay is what evaluation commonly is: a dense code, a dense decode for every prefix, comparisons of dense
arrays for L0 and density. It computes FVU, L0 and density and nothing else. Ours is timed twice: with the same
metrics, and whole (cosine, 1,000 bootstrap replicates, top contexts, the ridge-regression baseline).

    python -m bench.evaluate [--rows 8192] [--batch-rows 1024] [--repeats 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cache.progress import Silent
from cache.reader import Rows
from evaluate.config import EvaluateSettings
from evaluate.dictionary import Dictionary
from evaluate.fvu import Fit
from evaluate.judge import streamed_metrics
from evaluate.replay import HeldOut, Replay
from evaluate.sparsity import Sparsity
from train.topk import select_topk
from train.weights import random_weights

SHAPES = {
    "gpt2: 768 wide, 12,288 features, k 64": (768, 64, (768, 2304, 5376, 12288)),
    "gemma-2-2b: 2,304 wide, 18,432 features, k 96": (2304, 96, (1152, 3456, 8064, 18432)),
}


@dataclass
class InMemory:
    """Rows of a cache that lie in memory, in bfloat16 as they do in a cache."""

    source: torch.Tensor
    target: torch.Tensor
    document: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, which: slice, *, view: str) -> Rows:  # noqa: ARG002
        position = self.document[which].astype(np.int32)
        return Rows(self.source[which], self.target[which], self.tokens[which], self.document[which], position)


def in_memory(rows: int, width: int) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(rows, width, generator=generator).bfloat16() for _ in range(2))
    return InMemory(source, target, np.arange(rows, dtype=np.int64) // 300, np.ones(rows, dtype=np.int32))


@torch.inference_mode()
def dense_replay(view: InMemory, dictionary: Dictionary, batch_rows: int) -> list[float]:
    weights, prefixes = dictionary.weights, dictionary.prefixes
    mean = view.target.double().mean(0)
    errors, total = torch.zeros(len(prefixes), dtype=torch.float64), 0.0
    l0, fired = torch.zeros(len(prefixes)), torch.zeros(dictionary.dict_size)
    for start in range(0, len(view), batch_rows):
        rows = view.rows(slice(start, start + batch_rows), view="mlp_in")
        source, target = rows.source.float(), rows.target.float()
        pre = source @ weights.W_enc + weights.b_enc
        values, indices = pre.topk(dictionary.top_k or 1, dim=1)
        code = torch.zeros_like(pre).scatter_(1, indices, values.relu())
        for place, prefix in enumerate(prefixes):
            predicted = code[:, :prefix] @ weights.W_dec[:prefix] + weights.b_dec
            errors[place] += (predicted - target).double().square().sum()
            l0[place] += (code[:, :prefix] > 0).sum()
        fired += (code > 0).sum(0)
        total += float((target.double() - mean).square().sum())
    return (errors / total).tolist()


def sparse_replay(view: InMemory, dictionary: Dictionary, batch_rows: int, *, whole: bool) -> list[float]:
    replay = Replay(HeldOut(view, ()), batch_rows, "cpu", Silent())  # type: ignore[arg-type]
    width = view.target.shape[1]
    fit = Fit(torch.zeros(width), dictionary.prefixes, 0)
    metrics: dict[str, Any] = {"fit": fit, "sparsity": Sparsity(dictionary.prefixes, 1.0)}
    if whole:
        side = SimpleNamespace(mean=np.zeros(width))
        reader: Any = SimpleNamespace(statistics=SimpleNamespace(source=side, target=side))
        metrics = streamed_metrics(dictionary, reader, settings=EvaluateSettings(), device="cpu", baselines=True)
    states = replay.run(dictionary, metrics)
    return metrics["fit"].compute(states["fit"])["fvu_per_prefix"]


def seconds(call: Callable[[], list[float]], expected: list[float]) -> float:
    start = time.perf_counter()
    found = call()
    taken = time.perf_counter() - start
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    return taken


def compare(width: int, top_k: int, prefixes: tuple[int, ...], *, asked: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each way; every way must find the same FVU."""
    weights = random_weights(width, width, dict_size=prefixes[-1])
    dictionary = Dictionary("bench", weights, partial(select_topk, top_k=top_k), prefixes, top_k=top_k)
    view = in_memory(asked.rows, width)
    calls = {
        "dense": partial(dense_replay, view, dictionary, asked.batch_rows),
        "same metrics": partial(sparse_replay, view, dictionary, asked.batch_rows, whole=False),
        "whole": partial(sparse_replay, view, dictionary, asked.batch_rows, whole=True),
    }
    expected = calls["dense"]()
    rounds = [{kind: seconds(call, expected) for kind, call in calls.items()} for _ in range(asked.repeats)]
    return {kind: statistics.median(taken[kind] for taken in rounds) for kind in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for name, shape in SHAPES.items():
        middle = compare(*shape, asked=asked)
        print(name)
        for kind, taken in middle.items():
            print(f"  {kind:<13}{asked.rows / taken:9,.0f} rows/s  {middle['dense'] / taken:5.2f} x dense", flush=True)


if __name__ == "__main__":
    main()
