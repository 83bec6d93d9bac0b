"""Several processes train what one trains: by rows (data parallel) and by features (a sharded dictionary)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.training import changed, train
from train.config import TrainSettings
from train.record.log import read_log


def assert_the_same(expected_run: Path, found_run: Path) -> None:
    """The same weights, moments, counters and metrics, up to rounding; the last batch of an epoch has 40 rows of 64."""
    name = "checkpoints/step-00000020.safetensors"
    expected, found = load_file(expected_run / name), load_file(found_run / name)
    for key, array in expected.items():
        torch.testing.assert_close(found[key], array, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    lines = [json.loads(json.dumps(line)) for line in read_log(found_run / "metrics.jsonl")]
    for line, known in zip(lines, read_log(expected_run / "metrics.jsonl"), strict=True):
        assert line.keys() == known.keys()
        for key, value in known.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-6), (line["step"], key)
    assert any(line.get("aux_loss", 0) > 0 for line in lines)


@pytest.mark.parametrize(
    ("world", "activation", "shard"), [(2, "topk", False), (3, "batchtopk", False), (3, "topk", True)]
)
def test_several_processes_train_what_one_trains(
    small_cache: Path,
    tmp_path: Path,
    quick: TrainSettings,
    in_processes: Callable[..., list[int]],
    world: int,
    activation: str,
    shard: bool,
) -> None:
    settings = changed(quick, steps=20, skip=True, activation=activation, shard_dictionary=shard)
    # Revival at every step, of nearly all features, makes rounding grow; test_batch_share has one step with it.
    settings = changed(settings, lr=2e-3, dead_after_tokens=1, revive=False)
    train(small_cache, tmp_path / "one", settings)
    assert in_processes(world, lambda: train(small_cache, tmp_path / "several", settings)) == [0] * world
    assert_the_same(tmp_path / "one", tmp_path / "several")
    left = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*"))
    assert sorted(str(path.relative_to(tmp_path / "several")) for path in (tmp_path / "several").rglob("*")) == left


def test_a_sharded_run_goes_on_with_another_number_of_processes(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, in_processes: Callable[..., list[int]]
) -> None:
    """A checkpoint has the whole dictionary: begun by two processes, finished by one."""
    settings = changed(quick, steps=20, shard_dictionary=True, lr=2e-3)
    train(small_cache, tmp_path / "one", settings)
    assert in_processes(2, lambda: train(small_cache, tmp_path / "several", settings)) == [0, 0]
    for name in ("config.json", "transcoder.safetensors"):
        (tmp_path / "several" / name).unlink()
    index = tmp_path / "several" / "checkpoints" / "step-00000020.safetensors"
    index.unlink()
    train(small_cache, tmp_path / "several", settings)
    assert_the_same(tmp_path / "one", tmp_path / "several")
