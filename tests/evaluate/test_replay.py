"""Replaying in pieces, on several ranks, and within a bound of memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.errors import CapacityError
from common.progress import Silent
from evaluate.absorption.first_letter import absorption_scorer
from evaluate.config import EvaluateSettings
from evaluate.held_out import open_held_out
from evaluate.measure import Measurement, measure
from evaluate.metrics.inputs import MetricInputs
from evaluate.replay import Replay
from tests.helpers.progress import Notes
from transcoder.formats.native import load_transcoder
from transcoder.rules.rule import Rule
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("NESTCODER_FULL") == "1"

FENCED = """
import socket, sys
from pathlib import Path
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer

def no_network(*_):
    raise AssertionError("evaluation reached for the network")
socket.socket.connect = no_network
cache, transcoder, out = map(Path, sys.argv[1:])
evaluate_layer(
    cache=cache, transcoder=transcoder, out=out, settings=EvaluateSettings(bootstrap=20), device="cpu",
    against=transcoder, progress=Silent(),
)
assert not {"transformers", "transformer_lens", "datasets", "wandb", "huggingface_hub"} & set(sys.modules)
"""

BOUND = """
import sys
from pathlib import Path
from common.progress import Silent
from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from transcoder.transcoder import Transcoder
from evaluate.held_out import open_held_out
from evaluate.measure import measure
from evaluate.metrics.inputs import MetricInputs
from evaluate.replay import Replay
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

def megabytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

class Watching(Silent):
    def __init__(self):
        self.own = []
    def advance(self, amount, **metrics):
        self.own.append(megabytes("RssAnon"))

path, width, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reader, watching = CacheReader.open(Path(path)), Watching()
dictionary = Transcoder(
    **random_arrays(width, width, dict_size=18_432), rule=TopK(96), prefixes=(1152, 3456, 8064, 18432)
)
held_out = open_held_out(reader)
nothing = {"score": None, "reason": "not asked for"}
inputs = MetricInputs(dictionary, held_out, reader, EvaluateSettings(), "cpu", absorption=lambda _: nothing)
measure(Replay(held_out, rows, "cpu", watching), inputs)
half = len(watching.own) // 2
print(len(watching.own), max(watching.own[:half]), max(watching.own[half:]), megabytes("VmHWM"))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def dictionary(toy_transcoder: Path) -> Transcoder:
    return load_transcoder(toy_transcoder)


def measured(cache: Path, dictionary: Transcoder, progress: Silent, *, batch_rows: int = 256) -> Measurement:
    reader = CacheReader.open(cache)
    held_out = open_held_out(reader)
    inputs = MetricInputs(
        dictionary, held_out, reader, EvaluateSettings(bootstrap=10), "cpu", absorption_scorer(reader, cache / "none")
    )
    return measure(Replay(held_out, batch_rows, "cpu", progress), inputs)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError("Unable to allocate"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 42 bytes"),
)


def limited_to(rows: int, dictionary: Transcoder, error: Exception = OUT_OF_MEMORY[0]) -> Transcoder:
    """The same dictionary on a device with memory for this number of rows."""

    class Limited(Rule):
        """The same rule, if there is memory."""

        name = "limited"
        scope = "row"

        def select(self, pre: torch.Tensor) -> SparseCode:
            if len(pre) > rows:
                raise error
            return dictionary.rule(pre)

    return dictionary.replaced(rule=Limited())


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_changes_no_number(
    toy_cache: Path, dictionary: Transcoder, error: Exception
) -> None:
    notes = Notes()
    at_once = measured(toy_cache, dictionary, Silent()).metrics
    halved = measured(toy_cache, limited_to(40, dictionary, error), notes).metrics
    assert notes.texts == [f"Out of memory: going on with {rows} rows at a time." for rows in (128, 64, 32)]
    assert halved["sparsity"] == at_once["sparsity"]
    np.testing.assert_allclose(halved["fvu_per_prefix"], at_once["fvu_per_prefix"], rtol=1e-6)


def test_another_error_is_not_mistaken_for_lack_of_memory(toy_cache: Path, dictionary: Transcoder) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        measured(toy_cache, limited_to(40, dictionary, RuntimeError("shapes cannot be multiplied")), Silent())


def test_a_batch_of_special_tokens_only_is_skipped(
    write_toy_cache: Any, dictionary: Transcoder, tmp_path: Path
) -> None:
    cache = write_toy_cache(tmp_path / "cache", held_out_rows=48)
    single, at_once = (measured(cache, dictionary, Silent(), batch_rows=rows) for rows in (1, 48))
    assert single.metrics["tokens_used"] == 45
    for name, values in at_once.replicates.items():
        np.testing.assert_allclose(single.replicates[name], values, rtol=1e-5)


def test_a_device_without_memory_for_a_row_is_refused(toy_cache: Path, dictionary: Transcoder) -> None:
    with pytest.raises(CapacityError, match="too small for one row"):
        measured(toy_cache, limited_to(0, dictionary), Silent())


def test_no_network_and_no_model_library_is_needed(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    process = start(FENCED, toy_cache, toy_transcoder, tmp_path / "out")
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert (tmp_path / "out" / "comparison.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600 if FULL else 300)
def test_memory_stays_under_four_gigabytes_and_does_not_grow_with_the_rows(
    write_toy_cache: Any, tmp_path: Path
) -> None:
    """18,432 features; with NESTCODER_FULL=1: 1,000 batches of 512 rows of width 2,304."""
    width, batches, batch_rows = (2304, 1000, 512) if FULL else (32, 40, 64)
    rows = batches * batch_rows
    cache = write_toy_cache(tmp_path / "cache", held_out_rows=rows, d_source=width, d_target=width)
    process = start(BOUND, cache, width, batch_rows)
    output, _ = process.communicate()
    assert process.returncode == 0
    measured, first_half, second_half, with_files = map(float, output.split())
    print(f"{measured:.0f} batches: {first_half:,.0f} MB, then {second_half:,.0f}; with mapped files {with_files:,.0f}")
    assert measured == batches
    assert max(first_half, second_half) < 4e9 / 2**20
    assert second_half < 1.05 * first_half
