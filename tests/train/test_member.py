"""What stops a training, and what it leaves: data that are damaged or not finite, a loss that diverges."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.loader import Batch, Loader
from common.errors import DamagedError, InUseError, MismatchError, NumericalError
from common.processes import locks
from common.progress import Silent
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed, train
from train.config import TrainSettings
from train.member import Member
from train.record.checkpoint import Checkpoints
from train.record.identity import RunIdentity
from train.resolved import read_record
from train.run import _why_not_finite


def test_a_loss_that_diverges_names_the_batch_and_keeps_the_checkpoint(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    settings = changed(quick, lr=1e30, warmup_steps=0, schedule="constant", checkpoint_every=1, clip_norm=None)
    with pytest.raises(NumericalError, match=r"batch \d+ is not finite\. The rows of batch \d+ are finite"):
        train(small_cache, tmp_path / "run", settings)
    index = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert all(b"NaN" not in path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl"))
    for path in index:
        from safetensors.torch import load_file

        assert all(bool(array.isfinite().all()) for array in load_file(path).values())


def test_a_batch_that_is_not_finite_stops_the_run_and_is_named(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before it is sound: a rerun with repaired data ends like an undisturbed run."""
    train(small_cache, tmp_path / "whole", quick)
    read = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, number: _spoilt(read(self, number), only=17))
    problem = r"batch 17 is not finite\. Batch 17 \(epoch 1\) has NaN or infinity in rows of document \d+\b"
    with pytest.raises(NumericalError, match=problem) as caught:
        train(small_cache, tmp_path / "run", quick)
    assert caught.value.remedy == "The checkpoint of step 10 is intact."
    monkeypatch.undo()
    train(small_cache, tmp_path / "run", quick)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _spoilt(batch: Batch, *, only: int) -> Batch:
    if batch.index == only:
        batch.source[3, 2] = torch.nan
    return batch


def test_a_stop_after_a_batch_that_was_not_finite_saves_nothing(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is not checked at every step: the stop comes before the next check."""
    looked = Member._check_finite
    read = Loader.batch
    monkeypatch.setattr(
        Member, "_check_finite", lambda self, metrics, now: looked(self, metrics, now=self.state.step % 10 == 0)
    )
    monkeypatch.setattr(Loader, "batch", lambda self, number: _spoilt(read(self, number), only=13))

    class Stopped(Silent):
        steps = 0

        def advance(self, *_: int, **__: float) -> None:
            self.steps += 1
            if self.steps == 16:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(NumericalError, match="batch 13 is not finite"):
        train(small_cache, tmp_path / "run", quick, progress=Stopped())
    assert not (tmp_path / "run" / "checkpoints" / "step-00000016.safetensors").exists()


def test_rows_that_are_not_finite_are_named_by_document() -> None:
    source, target = torch.zeros(4, 3), torch.zeros(4, 2)
    target[1, 0], source[3, 2] = torch.nan, torch.inf
    batch = Batch(source, target, np.zeros(4, np.int32), np.array([7, 8, 9, 12], np.int64), index=41, epoch=2)
    assert _why_not_finite(batch) == "Batch 41 (epoch 2) has NaN or infinity in rows of document 8, 12."


def test_a_damaged_shard_stops_training_before_its_rows_are_used(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    """The checkpoint before it is sound: with the shard repaired the run ends like an undisturbed run."""
    train(small_cache, tmp_path / "whole", quick)
    shutil.copytree(small_cache, tmp_path / "cache")
    with pytest.raises(StoppedError):
        train(tmp_path / "cache", tmp_path / "run", quick, StopAt(12))
    shard = max(path for path in (tmp_path / "cache").rglob("train/target/c.*"))
    data = bytearray(shard.read_bytes())
    sound = bytes(data)
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError):
        train(tmp_path / "cache", tmp_path / "run", quick)
    shard.write_bytes(sound)
    train(tmp_path / "cache", tmp_path / "run", quick)
    name = "transcoder.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_cache_is_refused(small_cache: Path, tmp_path: Path, quick: TrainSettings, other_cache: Path) -> None:
    train(small_cache, tmp_path / "run", quick)
    with pytest.raises(MismatchError, match="cache_fingerprint was"):
        train(other_cache, tmp_path / "run", quick)


def test_a_second_process_is_refused_naming_the_first(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    with locks.lock(tmp_path / "run" / ".lock"), pytest.raises(InUseError, match="process"):
        train(small_cache, tmp_path / "run", quick)


def test_a_sweep_is_the_same_runs_made_alone(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    """Bit for bit, from one reading, even if an interruption left its members at different steps."""
    overrides = ({"name": "k2", "top_k": 2}, {"name": "wide", "prefixes": [16, 96], "seed": 3})
    swept = changed(quick, steps=20, sweep=overrides)
    with pytest.raises(StoppedError):
        train(small_cache, tmp_path / "swept", swept, StopAt(13))
    shutil.rmtree(tmp_path / "swept" / "k2" / "checkpoints")
    config = train(small_cache, tmp_path / "swept", swept)
    assert set(config["sweep"]) == {"k2", "wide"}
    alone = {
        "": changed(quick, steps=20),
        "k2": changed(quick, steps=20, top_k=2),
        "wide": changed(quick, steps=20, prefixes=(16, 96), seed=3),
    }
    for name, settings in alone.items():
        train(small_cache, tmp_path / "alone" / f"run-{name}", settings)
        for file in ("transcoder.safetensors", "metrics.jsonl"):
            expected = (tmp_path / "alone" / f"run-{name}" / file).read_bytes()
            assert (tmp_path / "swept" / name / file).read_bytes() == expected, (name, file)


def test_bfloat16_products_are_close_to_float32(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    """The master weights are float32 nevertheless: saved values are not rounded to bfloat16."""
    settings = changed(quick, steps=100, checkpoint_every=100, lr=5e-3)
    exact = train(small_cache, tmp_path / "float32", settings)
    rough = train(small_cache, tmp_path / "bfloat16", changed(settings, compute_dtype="bfloat16"))
    assert rough["held_out_fvu"] == pytest.approx(exact["held_out_fvu"], abs=0.05)
    saved = Checkpoints(
        tmp_path / "bfloat16" / "checkpoints",
        identity=RunIdentity(
            read_record(rough["settings"], d_target=8, location="here"),
            cache_fingerprint=rough["cache_fingerprint"],
            d_target=8,
        ),
        keep=2,
        progress=Silent(),
    ).restore(device="cpu")
    assert saved is not None
    weights = saved.state.weights.W_dec
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())


def test_prefix_weights_are_scaled_to_one(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    """Only their ratios count."""
    for name, weights in (("one", (1.0, 2.0, 1.0)), ("two", (8.0, 16.0, 8.0))):
        train(small_cache, tmp_path / name, changed(quick, steps=10, warmup_steps=1, prefix_weights=weights))
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two")]
    assert logs[0] == logs[1]
