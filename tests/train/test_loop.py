"""Training from a cache end to end: what it leaves, what it refuses, and that it learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.reader import CacheReader
from common.errors import MismatchError, UsageError
from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.log import read_log
from train.run import train_layer
from transcoder.formats.native import load_transcoder


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.figures: list[dict[str, float]] = []
        self.began: list[int] = []

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.began.append(done)

    def advance(self, amount: int, **figures: float) -> None:
        if figures:
            self.figures.append(figures)

    def note(self, text: str) -> None:
        self.notes.append(text)


def train(cache: Path, out: Path, settings: TrainSettings, *, fresh: bool = False, **others: Any) -> dict[str, Any]:
    chosen = {"progress": Silent(), "log": LogSettings(), "device": "cpu"} | others
    return train_layer(cache=cache, out=out, settings=settings, fresh=fresh, **chosen)


def changed(settings: TrainSettings, **values: Any) -> TrainSettings:
    return TrainSettings.model_validate(settings.model_dump() | values)


VECTORS = {f"{name}_per_prefix/{number}" for name in ("fvu", "l0") for number in range(3)}
NAMES = {"loss", "l2_loss", "aux_loss", "fvu", "fvu_min", "fvu_max", "fvu_mean", "l0", "dead", "gradient_norm", "lr"}


def test_a_run_leaves_what_it_says(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    heard = Heard()
    config = train(small_cache, tmp_path / "run", quick, progress=heard)
    assert set(heard.figures[-1]) == NAMES | VECTORS
    lines = read_log(tmp_path / "run" / "metrics.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in lines if "held_out_fvu" in line] == [10, 20, 30, 40]
    last = lines[-2]
    assert set(last) == NAMES | {"step", "tokens", "fvu_per_prefix", "l0_per_prefix"}
    assert last["loss"] == last["l2_loss"] + last["aux_loss"]
    assert last["l2_loss"] == pytest.approx(last["fvu_mean"]) == pytest.approx(sum(last["fvu_per_prefix"]) / 3)
    assert (last["fvu_min"], last["fvu"]) == (min(last["fvu_per_prefix"]), last["fvu_per_prefix"][-1])
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


def test_it_learns_and_every_prefix_does(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    train(small_cache, tmp_path / "run", changed(quick, steps=150, checkpoint_every=150))
    lines = read_log(tmp_path / "run" / "metrics.jsonl")
    first, second, third = lines[-1]["held_out_fvu_per_prefix"]
    assert 0.98 > first > second > third
    assert third < 0.6


@pytest.mark.parametrize("view", ["mlp_in", "ln2_normalized"])
def test_the_saved_file_is_in_the_units_of_the_cache(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, view: str
) -> None:
    """Its FVU on the held-out rows as they are stored is what training said in its own units."""
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


def test_a_view_that_the_source_does_not_have_is_refused(
    residual_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    with pytest.raises(UsageError, match="the source of this cache is resid_post, which has no ln2_normalized view"):
        train(residual_cache, tmp_path / "run", changed(quick, source="ln2_normalized"))


def test_batchtopk_is_saved_with_a_threshold_that_keeps_the_l0(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    config = train(small_cache, tmp_path / "run", changed(quick, activation="batchtopk"))
    transcoder = load_transcoder(tmp_path / "run")
    assert transcoder.threshold == config["threshold"] > 0
    rows = CacheReader.open(small_cache).split("train").rows(slice(0, 1000))
    selection = transcoder.select(rows.source[torch.from_numpy(rows.tokens != 0)])
    assert selection.values.numel() / selection.row_count == pytest.approx(4, abs=0.01)


def test_a_complete_run_is_left_alone(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    first = train(small_cache, tmp_path / "run", quick)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    heard = Heard()
    assert train(small_cache, tmp_path / "run", quick, progress=heard) == first
    assert heard.began == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_fresh_starts_again(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    train(small_cache, tmp_path / "run", quick)
    config = train(small_cache, tmp_path / "run", changed(quick, lr=1e-3), fresh=True)
    assert config["settings"]["lr"] == 1e-3


@pytest.mark.parametrize("steps_before", [40, 20])
def test_other_settings_are_refused_naming_the_difference(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, steps_before: int
) -> None:
    interrupted = StopAt(steps_before)
    if steps_before < 40:
        with pytest.raises(RuntimeError):
            train(small_cache, tmp_path / "run", quick, progress=interrupted)
    else:
        train(small_cache, tmp_path / "run", quick)
    with pytest.raises(MismatchError, match=r"settings.lr was 0.01, is now 0.02"):
        train(small_cache, tmp_path / "run", changed(quick, lr=2e-2))


class StopAt(Silent):
    """Ends a run from within, after so many steps, as an error elsewhere would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, amount: int, **figures: float) -> None:
        self.left -= amount
        if self.left < 0:
            raise RuntimeError("stopped")
