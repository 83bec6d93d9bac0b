"""Rows a second of evaluation against dense replays, in one run, on rows held in memory.

    dense           what evaluation commonly is: a dense code and a dense decode for every prefix. FVU, L0 and density.
    dense by group  the same, where each feature is decoded once and prefixes are running sums: the least that is dense
    same metrics    ours, FVU in all its forms, L0, density and cosine
    everything      ours with all it reports: 1,000 bootstrap replicates, top contexts, the sums of the best affine map
    encoder alone   the encoder's product in float32: what no exact replay is faster than, on a CPU without a product in
                    bfloat16 (transcoder/prefilter.py says what becomes of it on one that has it)

The dense ones keep their large arrays from batch to batch, count firings from the selection alone, and take a row's
squared error in float32. Rounds alternate; every way must find the same FVU. CPU time is of all threads. What is
computed once, when every row has been seen, is no part of a row's cost: its seconds stand below.

    python -m bench.evaluate [--shapes gpt2 gemma-2-2b] [--rows 8192] [--batch-rows 2048] [--repeats 5] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cache.reader import Rows
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.held_out import HeldOut
from evaluate.metrics.baselines import Baselines
from evaluate.metrics.concentration import Concentration
from evaluate.metrics.fvu import Fvu
from evaluate.metrics.metric import Metric, State
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts
from evaluate.replay import Replay
from transcoder.prefilter import BLOCK_ROWS
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

SHAPES = {
    "gpt2": (768, 64, (768, 2304, 5376, 12288)),
    "gemma-2-2b": (2304, 96, (1152, 3456, 8064, 18432)),
}
AFTERWARDS = "once, after the rows"


@dataclass
class InMemory:
    """Rows of a cache that lie in memory, in bfloat16 as they do in a cache."""

    source: torch.Tensor
    target: torch.Tensor
    document: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def position(self) -> np.ndarray:
        return self.document.astype(np.int32)

    def rows(self, which: slice, *, view: str) -> Rows:  # noqa: ARG002
        columns = self.source, self.target, self.tokens, self.document, self.position
        return Rows(*(column[which] for column in columns))

    def is_ordinary(self, tokens: np.ndarray) -> np.ndarray:
        return np.ones(len(tokens), dtype=bool)


def in_memory(rows: int, width: int) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(rows, width, generator=generator).bfloat16() for _ in range(2))
    return InMemory(source, target, np.arange(rows, dtype=np.int64) // 300, np.ones(rows, dtype=np.int32))


@torch.inference_mode()
def dense_replay(view: InMemory, dictionary: Transcoder, batch_rows: int, *, by_group: bool) -> list[float]:
    prefixes = dictionary.prefixes
    mean = view.target.float().mean(0)
    errors, total = torch.zeros(len(prefixes), dtype=torch.float64), 0.0
    pre, code = (torch.zeros(batch_rows, dictionary.dict_size) for _ in range(2))
    fired = torch.zeros(dictionary.dict_size, dtype=torch.int64)
    for start in range(0, len(view), batch_rows):
        rows = view.rows(slice(start, start + batch_rows), view="mlp_in")
        source, target = rows.source.float(), rows.target.float()
        torch.addmm(dictionary.b_enc, source, dictionary.W_enc.T, out=pre[: len(source)])
        values, indices = pre[: len(source)].topk(dictionary.top_k or 1, dim=1, sorted=False)
        code.scatter_(1, indices, values.relu_())
        fired += indices[values > 0].bincount(minlength=dictionary.dict_size)
        predicted, begin = dictionary.b_dec.repeat(len(source), 1), 0
        for number, prefix in enumerate(prefixes):
            if by_group:
                predicted.addmm_(code[: len(source), begin:prefix], dictionary.W_dec[begin:prefix])
            else:
                torch.addmm(dictionary.b_dec, code[: len(source), :prefix], dictionary.W_dec[:prefix], out=predicted)
            errors[number] += squares(predicted - target)
            begin = prefix
        code.scatter_(1, indices, 0.0)
        total += squares(target - mean)
    assert [float(fired[:prefix].sum()) / len(view) for prefix in prefixes][-1] > 0
    return (errors / total).tolist()


def squares(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=1).double().square().sum()


@torch.inference_mode()
def encoder_alone(view: InMemory, dictionary: Transcoder) -> None:
    pre = torch.empty(BLOCK_ROWS, dictionary.dict_size)
    for rows in view.source.split(BLOCK_ROWS):
        torch.addmm(dictionary.b_enc, rows.float(), dictionary.W_enc.T, out=pre[: len(rows)])


class SparseReplay:
    """Ours: the rows, then what is found from their sums. ``everything``: all metrics, not only those of the dense."""

    def __init__(self, view: InMemory, dictionary: Transcoder, *, everything: bool, device: str = "cpu") -> None:
        self._held_out = HeldOut(view)  # type: ignore[arg-type]
        self._dictionary = dictionary
        self._device = device
        centre = torch.zeros(view.target.shape[1], dtype=torch.float64, device=device)
        replicates = EvaluateSettings().bootstrap if everything else 0
        prefixes = dictionary.prefixes
        self._metrics: dict[str, Metric] = {
            "fvu": Fvu(centre, prefixes, replicates, rows=len(view)),
            "sparsity": Sparsity(prefixes, 1.0, replicates, device=device),
        }
        if everything:
            self._metrics |= {
                "contexts": TopContexts(dictionary.dict_size, EvaluateSettings().sample_contexts, device),
                "baselines": Baselines(centre, centre, dictionary.b_dec),
                "concentration": Concentration(centre, self._held_out, spell=str),
            }
        self._states: dict[str, State] = {}

    def rows(self, batch_rows: int) -> None:
        self._states = Replay(self._held_out, batch_rows, self._device, Silent()).run(self._dictionary, self._metrics)

    def findings(self) -> list[float]:
        """The FVU of every prefix; all else is computed too."""
        found = {name: metric.compute(self._states[name]) for name, metric in self._metrics.items()}
        return found["fvu"].fields["fvu_per_prefix"]


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(width: int, top_k: int, prefixes: tuple[int, ...], *, args: argparse.Namespace) -> dict[str, list[float]]:
    """Median wall and CPU seconds of each way, and of what comes after the rows."""
    arrays = random_arrays(width, width, dict_size=prefixes[-1])
    dictionary = Transcoder(**arrays, rule=TopK(top_k), prefixes=prefixes)
    view = in_memory(args.rows, width)
    same, everything = (SparseReplay(view, dictionary, everything=wanted) for wanted in (False, True))
    calls: dict[str, Callable[[], object]] = {
        "dense": partial(dense_replay, view, dictionary, args.batch_rows, by_group=False),
        "dense by group": partial(dense_replay, view, dictionary, args.batch_rows, by_group=True),
        "same metrics": partial(same.rows, args.batch_rows),
        "everything": partial(everything.rows, args.batch_rows),
        "encoder alone": partial(encoder_alone, view, dictionary),
        AFTERWARDS: everything.findings,
    }
    expected, by_group, *_ = (call() for call in calls.values())
    for found in (by_group, same.findings(), everything.findings()):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    rounds = [{kind: seconds(call) for kind, call in calls.items()} for _ in range(args.repeats)]
    return {kind: [statistics.median(taken[kind][clock] for taken in rounds) for clock in (0, 1)] for kind in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.shapes:
        width, top_k, prefixes = SHAPES[name]
        middle = compare(width, top_k, prefixes, args=args)
        afterwards = middle.pop(AFTERWARDS)
        print(f"{name}: {width:,} wide, {prefixes[-1]:,} features, k {top_k}, {args.threads} thread(s)")
        print("times a dense replay's rows a second, in wall and CPU time")
        for kind, (wall, cpu) in middle.items():
            ratios = "  ".join(
                f"{middle[against][clock] / (wall, cpu)[clock]:5.2f} x {against}"
                for against in ("dense", "dense by group")
                for clock in (0, 1)
            )
            print(
                f"  {kind:<15}{args.rows / wall:8,.0f} rows/s  {cpu / args.rows * 1e6:6,.0f} us  {ratios}",
                flush=True,
            )
        print(f"  {AFTERWARDS}: {afterwards[0]:.2f} s, {afterwards[1]:.2f} s of CPU time")


if __name__ == "__main__":
    main()
