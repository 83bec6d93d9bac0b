"""Replaying in pieces, on several ranks, and within a bound of memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import CapacityError, UsageError
from cache.progress import Silent
from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.dictionary import Dictionary
from evaluate.judge import judge
from evaluate.memory import batch_rows_for, bytes_a_row
from evaluate.replay import Replay, open_held_out
from evaluate.run import of_transcoder
from train.topk import Selection
from train.transcoder import load_transcoder

ROOT = Path(__file__).parents[2]

RANK = """
import socket, sys
from pathlib import Path
import torch.distributed as distributed
from cache.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer

cache, transcoder, out, rank, world = *map(Path, sys.argv[1:4]), *map(int, sys.argv[4:])
if world == 1:
    def no_network(*_):
        raise AssertionError("evaluation reached for the network")
    socket.socket.connect = no_network
if world > 1:
    distributed.init_process_group("gloo", init_method=f"file://{out.parent}/meet", rank=rank, world_size=world)
evaluate_layer(
    cache=cache, transcoder=transcoder, out=out, settings=EvaluateSettings(bootstrap=20, batch_rows=96), device="cpu",
    lm=None, gemma_scope=None, against=None, force=False, progress=Silent(),
)
if world > 1:
    distributed.destroy_process_group()
assert not {"transformers", "transformer_lens", "datasets", "wandb"} & set(sys.modules)
"""

BOUND = """
import resource, sys
from functools import partial
from pathlib import Path
from cache.progress import Silent
from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.dictionary import Dictionary
from evaluate.judge import judge
from evaluate.replay import Replay, open_held_out
from train.topk import select_topk
from train.weights import random_weights

reader = CacheReader.open(Path(sys.argv[1]))
weights = random_weights(32, 32, dict_size=18_432)
dictionary = Dictionary("large", weights, partial(select_topk, top_k=96), (1152, 3456, 8064, 18432))
judge(Replay(open_held_out(reader), 64, "cpu", Silent()), dictionary, reader=reader, settings=EvaluateSettings())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Heard(Silent):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def dictionary(toy_transcoder: Path) -> Dictionary:
    return of_transcoder(load_transcoder(toy_transcoder), name="toy")


def judged(cache: Path, dictionary: Dictionary, progress: Silent) -> dict[str, Any]:
    reader = CacheReader.open(cache)
    replay = Replay(open_held_out(reader), 256, "cpu", progress)
    return judge(replay, dictionary, reader=reader, settings=EvaluateSettings(bootstrap=10)).metrics


def limited_to(rows: int, dictionary: Dictionary) -> Dictionary:
    """The same dictionary on a device that has room for so many rows."""

    def rule(pre: torch.Tensor) -> Selection:
        if len(pre) > rows:
            raise torch.OutOfMemoryError(f"{len(pre)} rows")
        return dictionary.rule(pre)

    return replace(dictionary, rule=rule)


def test_out_of_memory_halves_the_batch_and_changes_no_number(toy_cache: Path, dictionary: Dictionary) -> None:
    heard = Heard()
    whole, halved = judged(toy_cache, dictionary, Silent()), judged(toy_cache, limited_to(40, dictionary), heard)
    assert heard.notes == [f"out of memory: going on with {rows} rows at a time" for rows in (128, 64, 32)]
    assert halved["sparsity"] == whole["sparsity"]
    np.testing.assert_allclose(halved["fvu_per_prefix"], whole["fvu_per_prefix"], rtol=1e-6)


def test_a_batch_of_special_tokens_alone_is_passed_over(
    write_toy_cache: Any, dictionary: Dictionary, tmp_path: Path
) -> None:
    reader = CacheReader.open(write_toy_cache(tmp_path / "cache", held_out_rows=48))
    found = [
        judge(
            Replay(open_held_out(reader), rows, "cpu", Silent()), dictionary, reader=reader, settings=EvaluateSettings()
        )
        for rows in (1, 48)
    ]
    assert found[0].metrics["tokens_used"] == 45
    np.testing.assert_allclose(found[0].fvu, found[1].fvu, rtol=1e-6)


def test_a_device_without_room_for_a_row_is_said(toy_cache: Path, dictionary: Dictionary) -> None:
    with pytest.raises(CapacityError, match="not even one row"):
        judged(toy_cache, limited_to(0, dictionary), Silent())


def test_ranks_merge_to_the_same_numbers_with_no_network_and_no_model_library(
    toy_cache: Path, toy_transcoder: Path, tmp_path: Path
) -> None:
    ranks = [start(RANK, toy_cache, toy_transcoder, tmp_path / "ranks", rank, 2) for rank in range(2)]
    alone = start(RANK, toy_cache, toy_transcoder, tmp_path / "alone", 0, 1)
    for process in (*ranks, alone):
        process.communicate(timeout=200)
    assert [process.returncode for process in (*ranks, alone)] == [0, 0, 0]
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("ranks", "alone"))
    ours.pop("evaluated_at"), theirs.pop("evaluated_at")
    assert_same(ours, theirs)
    assert (tmp_path / "ranks/samples.json").read_bytes() == (tmp_path / "alone/samples.json").read_bytes()


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-10, abs=1e-12) if isinstance(theirs, float) else theirs)


@pytest.mark.slow
def test_a_thousand_batches_of_a_large_dictionary_stay_under_four_gigabytes(
    write_toy_cache: Any, tmp_path: Path
) -> None:
    cache = write_toy_cache(tmp_path / "cache", train_rows=512, held_out_rows=64_000, d_source=32, d_target=32)
    process = start(BOUND, cache)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert int(output) * 1024 < 4e9


def test_no_held_out_rows_is_said(write_toy_cache: Any, tmp_path: Path) -> None:
    cache = write_toy_cache(tmp_path / "cache", held_out_rows=0)
    with pytest.raises(UsageError, match="no held-out rows"):
        open_held_out(CacheReader.open(cache))


def test_the_batch_fits_in_free_memory(dictionary: Dictionary) -> None:
    rows = batch_rows_for(dictionary, "cpu")
    assert rows & (rows - 1) == 0
    assert bytes_a_row(dictionary) > 4 * dictionary.dict_size
