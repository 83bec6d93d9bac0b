"""The plan: what the stage then does, and nothing written."""

from pathlib import Path

import pytest

from common.errors import CapacityError, MismatchError, UsageError
from common.progress import Silent
from evaluate.features.config import FeatureSettings
from evaluate.features.plan import FeaturesPlan, bytes_at_most, plan_features
from evaluate.features.run import features_of_layer


def _plan(cache: Path, transcoder: Path, out: Path, settings: FeatureSettings | None = None) -> FeaturesPlan:
    return plan_features(
        cache=cache,
        transcoder=transcoder,
        out=out,
        settings=settings or FeatureSettings(),
        device="cpu",
        lm=None,
        force=False,
    )


def test_the_plan_states_what_the_stage_then_reads(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features" / "main"
    plan = _plan(toy_cache, toy_transcoder, out)
    assert not any(tmp_path.iterdir())
    head = features_of_layer(
        cache=toy_cache,
        transcoder=toy_transcoder,
        out=out,
        settings=FeatureSettings(),
        device="cpu",
        progress=Silent(),
    )
    assert (plan.folder, plan.rows, plan.features) == (str(out), head["rows"], head["transcoder"]["dict_size"])
    assert plan.l0 == pytest.approx(head["l0"])
    assert plan.seconds > 0
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert written < plan.bytes_at_most < 4 * written


def test_fewer_rows_and_contexts_take_less(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    full = _plan(toy_cache, toy_transcoder, tmp_path / "out")
    small = _plan(toy_cache, toy_transcoder, tmp_path / "out", FeatureSettings(rows=100, top_contexts=1))
    assert small.rows == 100
    assert small.bytes_at_most < full.bytes_at_most


def test_bytes_grow_with_what_is_shown() -> None:
    settings = FeatureSettings(top_contexts=1, interval_contexts=0, uniform_contexts=0, silent_contexts=0)
    single = bytes_at_most(settings, features=1000, rows=0, l0=0.0)
    double = bytes_at_most(settings.model_copy(update={"top_contexts": 2}), features=1000, rows=0, l0=0.0)
    assert double - single == 1000 * (3 * 41 + 2 * 8)


def test_what_the_stage_refuses_and_a_full_disk_are_refused(
    write_toy_cache, toy_cache: Path, toy_transcoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no trained transcoder"):
        _plan(toy_cache, tmp_path, tmp_path / "out")
    wide = write_toy_cache(tmp_path / "wide", d_source=16)
    with pytest.raises(MismatchError, match="16"):
        _plan(wide, toy_transcoder, tmp_path / "out")
    monkeypatch.setattr("common.disk.free_bytes", lambda _: 1000)
    with pytest.raises(CapacityError, match="1 kB are free"):
        _plan(toy_cache, toy_transcoder, tmp_path / "out")
