"""How a feature formed is told with the text of the cache, and altered or missing samples are named."""

import json
import shutil
from pathlib import Path

import pytest

from cache.reader import CacheReader
from common.errors import DamagedError, UsageError
from common.progress import Silent
from evaluate.features.history import as_data, history_of
from train.config import LogSettings, SampleSettings, TrainSettings
from train.record.activation_samples import SAMPLES_FOLDER
from train.run import train_layer


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("formed") / "run"
    train_layer(
        cache=toy_cache,
        out=run,
        settings=TrainSettings(prefixes=(8, 64), top_k=4, steps=8, warmup_steps=1, batch_rows=64, held_out_rows=0),
        device="cpu",
        fresh=False,
        progress=Silent(),
        log=LogSettings(activation_samples=SampleSettings(every=4, context_size=3, threshold=0.0)),
    )
    return run


def test_every_step_has_its_samples_with_their_text(run: Path, toy_cache: Path) -> None:
    reader = CacheReader.open(toy_cache)
    feature = next(number for number in range(64) if len(history_of(run, reader, number)[-1].samples) > 1)
    history = history_of(run, reader, feature)
    assert [one.step for one in history] == [4, 8]
    split = reader.split("held_out")
    for one in history:
        values = [sample["value"] for sample in one.samples]
        assert values == sorted(values, reverse=True)
        assert len(values) == min(10, one.firings)
        for sample in one.samples:
            row = sample["row"]
            assert sample["tokens"][sample["at"]] == f"[{split.tokens[row]}]"
            assert sample["document"] == split.document[row]
            assert len(sample["tokens"]) <= 7
    assert history[-1].largest == pytest.approx(history[-1].samples[0]["value"])
    assert as_data(history)[0]["step"] == 4


def test_what_is_not_there_is_said(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    reader = CacheReader.open(toy_cache)
    with pytest.raises(UsageError, match="no activation samples"):
        history_of(tmp_path, reader, 0)
    with pytest.raises(UsageError, match="no feature 64"):
        history_of(run, reader, 64)


def test_altered_samples_are_refused(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    about = copy / SAMPLES_FOLDER / "step-0000004.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"step": 5}))
    with pytest.raises(DamagedError, match="checksum"):
        history_of(copy, CacheReader.open(toy_cache), 0)
