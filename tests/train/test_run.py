"""Training from a cache end to end: what it leaves, what it refuses, and that it learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache.reader import CacheReader
from common.errors import DiskError, MismatchError, UsageError
from common.processes import locks
from common.progress import Silent
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed, train
from train.config import TrainSettings
from train.record.log import read_log
from transcoder.formats.native import load_transcoder


class Heard(Silent):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.metrics: list[dict[str, float]] = []
        self.began: list[int] = []

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.began.append(done)

    def advance(self, amount: int, **metrics: float) -> None:
        if metrics:
            self.metrics.append(metrics)

    def note(self, text: str) -> None:
        self.notes.append(text)


OF_THE_BATCH = {f"batch_fvu{form}" for form in ("", "_min", "_max", "_mean", "_per_prefix")}
NAMES = {"loss", "l2_loss", "aux_loss", "l0", "l0_per_prefix", "dead", "gradient_norm", "lr"} | OF_THE_BATCH


def test_a_run_leaves_the_files_that_are_documented(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    heard = Heard()
    config = train(small_cache, tmp_path / "run", quick, progress=heard)
    assert list(heard.metrics[-1]) == ["epoch", "batch_fvu", "held_out_fvu", "l0", "dead", "loss"]
    assert heard.metrics[-1]["epoch"] == 40 / 16
    lines = read_log(tmp_path / "run" / "metrics.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in lines if "held_out_fvu" in line] == [10, 20, 30, 40]
    last = lines[-2]
    assert set(last) == NAMES | {"step", "tokens"}
    assert last["loss"] == last["l2_loss"] + last["aux_loss"]
    assert (
        last["l2_loss"] == pytest.approx(last["batch_fvu_mean"]) == pytest.approx(sum(last["batch_fvu_per_prefix"]) / 3)
    )
    assert (last["batch_fvu_min"], last["batch_fvu"]) == (
        min(last["batch_fvu_per_prefix"]),
        last["batch_fvu_per_prefix"][-1],
    )
    assert last["lr"] == 0.0
    assert last["tokens"] == config["tokens_trained"] < 40 * 64
    assert config == json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"], config["layer"], config["prefixes"]) == ("tiny", 3, [16, 32, 64])
    assert len(config["gain"]) == len(config["bias"]) == 12
    assert config["cache_fingerprint"] == CacheReader.open(small_cache).fingerprint
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert "step-00000040.safetensors" in kept
    assert "step-00000030.json" in kept
    assert "step-00000010.json" not in kept


def test_every_prefix_learns(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    train(small_cache, tmp_path / "run", changed(quick, steps=150, checkpoint_every=150))
    lines = read_log(tmp_path / "run" / "metrics.jsonl")
    first, second, third = lines[-1]["held_out_fvu_per_prefix"]
    assert 0.98 > first > second > third
    assert third < 0.6


@pytest.mark.parametrize("view", ["mlp_in", "ln2_normalized"])
def test_the_saved_file_is_in_the_units_of_the_cache(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, view: str
) -> None:
    """Its FVU on the stored held-out rows is the one that training stated in its own units."""
    config = train(small_cache, tmp_path / "run", changed(quick, source=view, skip=True))
    transcoder = load_transcoder(tmp_path / "run")
    assert transcoder.source_view == view
    torch.testing.assert_close(transcoder.W_dec.norm(dim=1), torch.ones(64))
    rows = CacheReader.open(small_cache, view=view).split("held_out").rows(slice(0, 128))
    ordinary = torch.from_numpy(rows.tokens != 0)
    source, target = rows.source[ordinary].float(), rows.target[ordinary].double()
    errors = (transcoder.forward(source).double() - target).square().sum()
    fvu = errors / (target - target.mean(dim=0)).square().sum()
    assert float(fvu) == pytest.approx(config["held_out_fvu"], rel=1e-4)


@pytest.mark.parametrize("scaling", ["dimension", "whole"])
def test_a_balanced_training_states_the_balanced_fvu_of_its_saved_file(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, scaling: str
) -> None:
    """(1 - balance) x pooled + balance x whitened, with the training rows' variances as unit, in the cache's units."""
    config = train(small_cache, tmp_path / "run", changed(quick, dimension_balance=0.25, source_scaling=scaling))
    transcoder = load_transcoder(tmp_path / "run")
    torch.testing.assert_close(transcoder.W_dec.norm(dim=1), torch.ones(64))
    reader = CacheReader.open(small_cache)
    assert reader.statistics.target is not None
    variance = torch.from_numpy(reader.statistics.target.variance)
    weight = 0.75 / variance.mean() + 0.25 / variance
    rows = reader.split("held_out").rows(slice(0, 128))
    ordinary = torch.from_numpy(rows.tokens != 0)
    target = rows.target[ordinary].double()
    errors = (transcoder.forward(rows.source[ordinary].float()).double() - target).square() @ weight
    fvu = errors.sum() / ((target - target.mean(dim=0)).square() @ weight).sum()
    assert float(fvu) == pytest.approx(config["held_out_fvu"], rel=1e-4)


def test_a_view_that_the_source_does_not_have_is_refused(
    residual_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    with pytest.raises(UsageError, match="The source of this cache is resid_post, which has no ln2_normalized view"):
        train(residual_cache, tmp_path / "run", changed(quick, source="ln2_normalized"))


def test_batchtopk_is_saved_with_a_threshold_that_keeps_the_l0(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    config = train(small_cache, tmp_path / "run", changed(quick, activation="batchtopk"))
    transcoder = load_transcoder(tmp_path / "run")
    assert transcoder.rule.threshold == config["threshold"] > 0
    rows = CacheReader.open(small_cache).split("train").rows(slice(0, 1000))
    selection = transcoder.select(rows.source[torch.from_numpy(rows.tokens != 0)])
    assert selection.values.numel() / selection.row_count == pytest.approx(4, abs=0.01)


def test_a_complete_run_needs_no_lock(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train(small_cache, tmp_path / "run", quick)

    def read_only(path: Path) -> None:
        raise DiskError("The disk refused to open a lock: Read-only file system.", where=path)

    monkeypatch.setattr(locks, "lock", read_only)
    assert train(small_cache, tmp_path / "run", quick) == config
    for path, fresh in ((tmp_path / "run", True), (tmp_path / "other", False)):
        with pytest.raises(DiskError, match="Read-only"):
            train(small_cache, path, quick, fresh=fresh)
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "run" / "config.json").exists()


def test_a_complete_run_is_not_changed(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    first = train(small_cache, tmp_path / "run", quick)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    heard = Heard()
    assert train(small_cache, tmp_path / "run", quick, progress=heard) == first
    assert heard.began == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_weights_that_were_removed_are_written_again(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    train(small_cache, tmp_path / "run", quick)
    weights = tmp_path / "run" / "transcoder.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    train(small_cache, tmp_path / "run", quick)
    assert weights.read_bytes() == before


def test_fresh_starts_again(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    train(small_cache, tmp_path / "run", quick)
    config = train(small_cache, tmp_path / "run", changed(quick, lr=1e-3), fresh=True)
    assert config["settings"]["lr"] == 1e-3


@pytest.mark.parametrize("steps_before", [40, 20])
def test_other_settings_are_refused_naming_the_difference(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, steps_before: int
) -> None:
    if steps_before < 40:
        with pytest.raises(StoppedError):
            train(small_cache, tmp_path / "run", quick, StopAt(steps_before + 1))
    else:
        train(small_cache, tmp_path / "run", quick)
    with pytest.raises(MismatchError, match=r"settings.lr was 0.01, is now 0.02"):
        train(small_cache, tmp_path / "run", changed(quick, lr=2e-2))


def test_more_steps_at_a_constant_rate_give_the_run_that_had_them_from_the_start(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    short = changed(quick, schedule="constant", steps=20)
    long = changed(quick, steps=40, decay_steps=15)
    train(small_cache, tmp_path / "extended", short)
    heard = Heard()
    train(small_cache, tmp_path / "extended", long, progress=heard)
    assert heard.began == [20]
    train(small_cache, tmp_path / "whole", long)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "extended" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_best_checkpoint_can_be_the_one_that_is_saved(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.5, 0.2, 0.3, 0.4, 0.5, 0.2])
    monkeypatch.setattr("train.kinds.single.held_out_fvu", lambda *_, **__: [next(measured)])
    config = train(small_cache, tmp_path / "best", changed(quick, save_best=True))
    assert (config["saved_step"], config["best_step"], config["held_out_fvu"], config["steps"]) == (20, 20, 0.2, 40)
    with pytest.raises(StoppedError):
        train(small_cache, tmp_path / "stopped", changed(quick, held_out_rows=128), progress=StopAt(21))
    checkpoint = load_file(tmp_path / "stopped" / "checkpoints" / "step-00000020.safetensors")
    saved = load_file(tmp_path / "best" / "transcoder.safetensors")
    assert torch.equal(saved["W_dec"], checkpoint["W_dec"])


def test_over_fitting_is_noted_once(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr("train.kinds.single.held_out_fvu", lambda *_, **__: [next(measured)])
    heard = Heard()
    train(small_cache, tmp_path / "run", quick, progress=heard)
    assert len(heard.notes) == 1
    assert heard.notes[0].startswith("Over-fitting: from step 10 to 30 held-out FVU rose from 0.5000 to 0.7000 while")
