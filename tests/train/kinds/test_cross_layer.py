"""A cross-layer training end to end, on two layers of one text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from cache.open import open_cache
from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.joint.run import Candidate, evaluate_layers
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed
from tests.helpers.training import train as train_one
from train.config import LogSettings, TrainSettings
from train.plan import plan_layers
from train.record.log import read_log
from train.record.verify import verify_run
from train.run import train_layers
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import load_transcoder


@pytest.fixture
def caches(two_layers: dict[int, Path]) -> dict[int, Path]:
    return two_layers


def settings_of(quick: TrainSettings, **values: Any) -> TrainSettings:
    return changed(quick, **{"kind": "cross-layer"} | values)


def train(
    caches: dict[int, Path], out: Path, settings: TrainSettings, progress: Silent | None = None
) -> dict[str, Any]:
    given = {"device": "cpu", "fresh": False, "log": LogSettings(), "progress": progress or Silent()}
    return train_layers(caches=list(caches.values()), out=out, settings=settings, **given)


def test_a_stopped_run_ends_like_an_undisturbed_one(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings
) -> None:
    settings = settings_of(quick, beta1=0.0, skip=True)
    train(caches, tmp_path / "whole", settings)
    with pytest.raises(StoppedError):
        train(caches, tmp_path / "cut", settings, StopAt(24))
    train(caches, tmp_path / "cut", settings)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert verify_run(tmp_path / "whole") == []


@pytest.mark.parametrize("changes", [{}, {"activation": "batchtopk"}, {"activation": "jumprelu"}, {"skip": True}])
def test_a_window_of_zero_is_the_set_of_transcoders(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings, changes: dict[str, Any]
) -> None:
    """The same features fire and the FVU is the same; activations are in other units."""
    settings = settings_of(quick, window=0, **changes)
    train(caches, tmp_path / "joint", settings)
    joint = load_cross_layer(tmp_path / "joint")
    for number, (layer, cache) in enumerate(caches.items()):
        alone = changed(quick, **changes)
        train_one(cache, tmp_path / str(layer), alone)
        single = load_transcoder(tmp_path / str(layer))
        source = open_cache(cache).split("held_out").rows(slice(1, 40)).source.float()
        ours = joint.piece(number).reconstructions(source)
        torch.testing.assert_close(ours, single.reconstructions(source), rtol=1e-4, atol=1e-4)


def test_features_learn_to_write_to_the_layer_that_needs_them(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings
) -> None:
    """Measured on the same rows as the set that it began from."""
    longer = {"steps": 120, "checkpoint_every": 120}
    for cache in caches.values():
        alone = changed(quick, **longer)
        train_one(cache, cache.parent / "transcoder" / "main", alone)
    config = train(caches, tmp_path / "clt", settings_of(quick, **longer, warm_start="main"))
    assert config["layers"] == [3, 4]
    single = {layer: cache.parent / "transcoder" / "main" for layer, cache in caches.items()}
    nowhere = tmp_path / "nowhere"
    metrics = evaluate_layers(
        caches=caches,
        candidates=[Candidate("clt", tmp_path / "clt", {}), Candidate("main", nowhere, single)],
        out=tmp_path / "report",
        settings=EvaluateSettings(bootstrap=20),
        device="cpu",
        lm=None,
        progress=Silent(),
    )
    clt, main = (metrics["dictionaries"][name] for name in ("clt", "main"))
    assert clt["fvu_per_layer_and_prefix"][1][-1] < 0.7 * main["fvu_per_layer_and_prefix"][1][-1]
    assert 0.05 < clt["crossing_per_layer"][0] < 1
    assert main["crossing_per_layer"] == [0.0, 0.0]
    assert 2 < clt["l0"] <= 4
    assert "mean FVU" in (tmp_path / "report" / "summary.txt").read_text()


def test_selection_over_layers_trains_and_is_saved(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings
) -> None:
    train(caches, tmp_path / "run", settings_of(quick, select_over="layers"))
    dictionary = load_cross_layer(tmp_path / "run")
    rows = [open_cache(cache).split("held_out").rows(slice(1, 40)).source.float() for cache in caches.values()]
    counts = torch.stack([code.offsets.diff() for code in dictionary.codes(rows)])
    assert (counts.sum(dim=0) == 8).all()
    assert counts.unique().numel() > 1


@pytest.mark.parametrize(
    "dealt",
    [
        {"shard_dictionary": True},
        {"shard_dictionary": True, "activation": "jumprelu"},
        {"shard_dictionary": True, "select_over": "layers", "skip": True},
        {},
    ],
)
def test_several_processes_train_what_one_trains(
    caches: dict[int, Path],
    tmp_path: Path,
    quick: TrainSettings,
    in_processes: Callable[..., list[int]],
    dealt: dict[str, Any],
) -> None:
    """Shared by features or by rows: the same weights, moments and metrics, up to rounding."""
    values = {"steps": 20, "checkpoint_every": 10, "lr": 2e-3, "revive": False, "dead_after_tokens": 1}
    settings = settings_of(quick, **values, **dealt)
    train(caches, tmp_path / "one", settings)
    assert in_processes(2, lambda: train(caches, tmp_path / "several", settings)) == [0, 0]
    assert_the_same(tmp_path / "one", tmp_path / "several")


def test_a_sharded_run_goes_on_with_another_number_of_processes(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings, in_processes: Callable[..., list[int]]
) -> None:
    """A checkpoint has the whole dictionary: begun by two, finished by one, which also revives dead features."""
    settings = settings_of(quick, steps=20, lr=2e-3, shard_dictionary=True)
    train(caches, tmp_path / "one", settings)
    assert in_processes(2, lambda: train(caches, tmp_path / "several", settings)) == [0, 0]
    for name in ("config.json", "transcoder.safetensors", "checkpoints/step-00000020.safetensors"):
        (tmp_path / "several" / name).unlink()
    train(caches, tmp_path / "several", settings)
    assert_the_same(tmp_path / "one", tmp_path / "several")


def assert_the_same(expected_run: Path, found_run: Path) -> None:
    name = "checkpoints/step-00000020.safetensors"
    found = load_file(found_run / name)
    for key, array in load_file(expected_run / name).items():
        torch.testing.assert_close(found[key], array, rtol=2e-3, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    lines = zip(read_log(found_run / "metrics.jsonl"), read_log(expected_run / "metrics.jsonl"), strict=True)
    for line, known in lines:
        for key, value in known.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-6), (line["step"], key)


def test_a_plan_counts_all_layers(caches: dict[int, Path], tmp_path: Path, quick: TrainSettings) -> None:
    plans = [
        plan_layers(
            caches=list(caches.values()), settings=settings_of(quick, window=window), device="cpu", out=tmp_path / "run"
        )
        for window in (0, 1)
    ]
    assert plans[0].parameters == 2 * (64 * (12 + 8 + 1) + 8)
    assert plans[1].parameters == plans[0].parameters + 64 * 8 + 8
    assert plans[1].memory_bytes > plans[0].memory_bytes
    skips = settings_of(quick, window=1, skip=True)
    plan = plan_layers(caches=list(caches.values()), settings=skips, device="cpu", out=tmp_path / "run")
    assert plan.parameters == plans[1].parameters + 2 * 12 * 8


def test_a_warm_start_begins_as_the_set_that_it_begins_from(
    caches: dict[int, Path], tmp_path: Path, quick: TrainSettings
) -> None:
    """With its skips: at a rate of nothing the cross-layer transcoder explains what its transcoders do."""
    for cache in caches.values():
        train_one(cache, cache.parent / "transcoder" / "skips", changed(quick, skip=True))
    still = {"skip": True, "warm_start": "skips", "lr": 1e-12, "revive": False, "steps": 1, "warmup_steps": 0}
    train(caches, tmp_path / "clt", settings_of(quick, **still))
    joint = load_cross_layer(tmp_path / "clt")
    sources = [open_cache(cache).split("held_out").rows(slice(1, 40)).source.float() for cache in caches.values()]
    found = joint.reconstructions(sources)
    for number, cache in enumerate(caches.values()):
        single = load_transcoder(cache.parent / "transcoder" / "skips")
        assert single.W_skip is not None
        torch.testing.assert_close(found[number], single.reconstructions(sources[number]), rtol=1e-4, atol=1e-4)


def test_caches_and_settings_that_do_not_match_are_refused(
    caches: dict[int, Path], shorter_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    """Caches of other rows, several layers for a transcoder, a warm start from other prefixes."""
    with pytest.raises(MismatchError, match="not aligned"):
        train({3: caches[3], 4: shorter_cache}, tmp_path / "run", settings_of(quick))
    with pytest.raises(UsageError, match="of one layer"):
        train(caches, tmp_path / "run", quick)
    small = changed(quick, prefixes=(16,), steps=2, warmup_steps=0)
    train_one(caches[3], caches[3].parent / "transcoder" / "small", small)
    with pytest.raises(MismatchError, match="prefixes"):
        train(caches, tmp_path / "run", settings_of(quick, warm_start="small"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"kind": "cross-layer", "select_over": "layers", "activation": "batchtopk"}, "needs activation topk"),
        ({"window": 2}, "belong to kind cross-layer"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainSettings.model_validate(values)
