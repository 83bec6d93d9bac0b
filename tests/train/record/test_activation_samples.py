"""Samples of what features fire on: what is in them, when they are written, and that they do not change a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.reader import CacheReader
from common.progress import Silent
from common.sealed.document import check_checksum
from common.sealed.tensors import FileSeal, read_tensors
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed, train
from train.config import LogSettings, SampleSettings, TrainSettings
from train.record.activation_samples import SAMPLES_FOLDER, sample_firings, samples_folder
from train.run import train_layers
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import load_transcoder


def _train(cache: Path, out: Path, settings: TrainSettings, progress: Silent | None = None, **samples: Any) -> None:
    train(cache, out, settings, progress, log=LogSettings(activation_samples=SampleSettings(**samples)))


def _files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / SAMPLES_FOLDER).iterdir())}


@pytest.fixture(scope="module")
def trained(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("samples") / "run"
    settings = TrainSettings(prefixes=(16, 32, 64), top_k=4, steps=20, warmup_steps=2, batch_rows=64, lr=0.01)
    _train(small_cache, run, settings, every=10, samples_saved=3, samples_per_feature=1000, threshold=0.0)
    return run


def test_samples_are_the_strongest_firings_of_the_dense_code(trained: Path, small_cache: Path) -> None:
    about = json.loads((trained / SAMPLES_FOLDER / "step-0000020.json").read_text())
    check_checksum(about, location="", remedy="")
    seal = FileSeal.parse(about["arrays"], location="")
    arrays = read_tensors(trained / SAMPLES_FOLDER / "step-0000020.safetensors", seal)
    transcoder = load_transcoder(trained)
    split = CacheReader.open(small_cache).split("held_out")
    rows = split.rows(slice(0, len(split)))
    dense = transcoder.encode(rows.source.float()).numpy()
    dense[rows.tokens == 0] = 0
    assert np.array_equal(arrays["firings"], (dense > 0).sum(axis=0))
    assert arrays["largest"].numpy() == pytest.approx(dense.max(axis=0), rel=1e-5)
    for feature in range(64):
        expected = np.sort(dense[:, feature])[::-1][:3]
        assert arrays["sample_value"][feature].numpy() == pytest.approx(expected, rel=1e-5)
        for row, value in zip(arrays["sample_row"][feature], arrays["sample_value"][feature], strict=True):
            assert row == -1 or dense[row, feature] == pytest.approx(float(value), rel=1e-5)


def test_threshold_features_and_drawn_samples_limit_what_is_kept(trained: Path, small_cache: Path) -> None:
    transcoder, reader = load_transcoder(trained), CacheReader.open(small_cache)
    everything = sample_firings(transcoder, reader, SampleSettings(threshold=0.0, samples_saved=200))
    feature = int(np.argmax(everything["firings"]))
    limited = SampleSettings(threshold=0.0, samples_saved=200, samples_per_feature=5, features=(feature,))
    limited_found = sample_firings(transcoder, reader, limited)
    assert (limited_found["sample_row"] >= 0).sum(axis=1).tolist() == [5 * (number == feature) for number in range(64)]
    assert set(limited_found["sample_row"][feature][:5]) <= set(everything["sample_row"][feature])
    assert np.array_equal(limited_found["firings"], everything["firings"])
    values = everything["sample_value"]
    above = sample_firings(transcoder, reader, SampleSettings(threshold=float(np.median(values[values > 0]))))
    assert above["sample_value"][above["sample_row"] >= 0].min() > np.median(values[values > 0])


def test_samples_do_not_change_a_training_and_a_resume_writes_the_same(
    small_cache: Path, tmp_path: Path, quick
) -> None:
    _train(small_cache, tmp_path / "with", quick, every=7)
    _train(small_cache, tmp_path / "without", quick, every=0)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert not (tmp_path / "without" / SAMPLES_FOLDER).exists()
    with pytest.raises(StoppedError):
        _train(small_cache, tmp_path / "resumed", quick, StopAt(23), every=7)
    _train(small_cache, tmp_path / "resumed", quick, every=7)
    assert _files(tmp_path / "resumed") == _files(tmp_path / "with")
    assert [name for name in _files(tmp_path / "with") if name.endswith(".json")] == [
        f"step-{step:07d}.json" for step in (7, 14, 21, 28, 35)
    ]


@pytest.mark.parametrize("select_over", ["layer", "layers"])
def test_a_cross_layer_training_samples_the_features_of_every_layer(
    two_layers: dict[int, Path], quick: TrainSettings, tmp_path: Path, select_over: str
) -> None:
    """Those of its last step are of what it saved; one that was stopped writes the same files."""
    settings = changed(quick, kind="cross-layer", select_over=select_over)
    log = LogSettings(activation_samples=SampleSettings(every=settings.steps // 2, threshold=0.0))
    given = {"caches": list(two_layers.values()), "settings": settings, "device": "cpu", "fresh": False, "log": log}
    train_layers(out=tmp_path / "run", progress=Silent(), **given)
    with pytest.raises(StoppedError):
        train_layers(out=tmp_path / "cut", progress=StopAt(settings.steps // 2 + 3), **given)
    train_layers(out=tmp_path / "cut", progress=Silent(), **given)

    dictionary = load_cross_layer(tmp_path / "run")
    splits = [CacheReader.open(cache).split("held_out") for cache in two_layers.values()]
    rows = [split.rows(slice(0, len(split))) for split in splits]
    codes = dictionary.codes([layer.source.float() for layer in rows])
    for number, layer in enumerate(two_layers):
        folder = samples_folder(tmp_path / "run", layer)
        names = [path.name for path in sorted(folder.iterdir())]
        assert len(names) == 4
        for name in names:
            assert (samples_folder(tmp_path / "cut", layer) / name).read_bytes() == (folder / name).read_bytes()
        about = json.loads((folder / names[2]).read_text())
        arrays = read_tensors(folder / names[3], FileSeal.parse(about["arrays"], location=""))
        dense = codes[number].dense(dictionary.dict_size).numpy()
        dense[rows[0].tokens == 0] = 0
        assert dense.any()
        assert np.array_equal(arrays["firings"], (dense > 0).sum(axis=0))
        assert arrays["largest"].numpy() == pytest.approx(dense.max(axis=0), rel=1e-5)
        strongest = arrays["sample_value"][:, 0].numpy()
        assert strongest == pytest.approx(dense.max(axis=0), rel=1e-5)
