"""The formation of a feature is shown with the text of the cache; changed or missing samples are named."""

import json
import shutil
from pathlib import Path

import pytest

from cache.reader import CacheReader
from common.errors import DamagedError, UsageError
from common.progress import Silent
from common.sealed.document import with_checksum
from evaluate.dashboard.packs import index, pack
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import read_evidence
from evaluate.features.history import as_data, formation_of, history_of
from evaluate.features.run import features_of_layer
from evaluate.features.text.page import feature_page
from evaluate.features.tokens import NO_TOKEN
from tests.helpers.training import train
from train.config import LogSettings, SampleSettings, TrainSettings
from train.record.activation_samples import SAMPLES_FOLDER, sample_name


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("formed") / "run"
    settings = TrainSettings(prefixes=(8, 64), top_k=4, steps=8, warmup_steps=1, batch_rows=64, held_out_rows=0)
    samples = SampleSettings(every=4, context_size=3, threshold=0.0)
    train(toy_cache, run, settings, log=LogSettings(activation_samples=samples))
    return run


def test_every_step_has_its_samples_with_their_text(run: Path, toy_cache: Path) -> None:
    reader = CacheReader.open(toy_cache)
    feature = next(number for number in range(64) if len(history_of(run, reader, number)[-1].samples) > 1)
    history = history_of(run, reader, feature)
    assert [snapshot.step for snapshot in history] == [4, 8]
    split = reader.split("held_out")
    for snapshot in history:
        values = [sample["value"] for sample in snapshot.samples]
        assert values == sorted(values, reverse=True)
        assert len(values) == min(10, snapshot.firings)
        for sample in snapshot.samples:
            row = sample["row"]
            assert sample["tokens"][sample["at"]] == f"[{split.tokens[row]}]"
            assert sample["document"] == split.document[row]
            assert len(sample["tokens"]) <= 7
    assert history[-1].largest == pytest.approx(history[-1].samples[0]["value"])
    assert as_data(history)[0]["step"] == 4


def test_missing_samples_are_named(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    reader = CacheReader.open(toy_cache)
    with pytest.raises(UsageError, match="no activation samples"):
        history_of(tmp_path, reader, 0)
    with pytest.raises(UsageError, match="no feature 64"):
        history_of(run, reader, 64)


def test_changed_samples_are_refused(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    about = copy / SAMPLES_FOLDER / "step-0000004.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"step": 5}))
    with pytest.raises(DamagedError, match="checksum"):
        history_of(copy, CacheReader.open(toy_cache), 0)


def test_the_formation_of_all_features_is_that_of_their_histories(run: Path, toy_cache: Path) -> None:
    reader = CacheReader.open(toy_cache)
    found = formation_of(run, reader)
    assert found is not None
    assert (found.rows, found.threshold) == (1600, 0.0)
    assert found.arrays["formed_step"].tolist() == [4, 8]
    for feature in (0, 21, 63):
        history = history_of(run, reader, feature)
        assert found.arrays["formed_firings"][feature].tolist() == [step.firings for step in history]
        assert found.arrays["formed_largest"][feature] == pytest.approx([step.largest for step in history])
        for column, step in enumerate(history):
            tokens = found.arrays["formed_token"][feature, column]
            strongest = [sample["tokens"][sample["at"]] for sample in step.samples[:3]]
            assert [f"[{token}]" for token in tokens[tokens != NO_TOKEN]] == strongest


def test_of_many_steps_only_some_are_shown_with_the_first_and_the_last(
    run: Path, toy_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    about, arrays = sorted((run / SAMPLES_FOLDER).glob("step-0000008.*"))
    for step in range(12, 84, 4):
        sample = tmp_path / "run" / SAMPLES_FOLDER / sample_name(step)
        shutil.copy(arrays, sample.with_suffix(".safetensors"))
        stated = json.loads(about.read_text())
        del stated["checksum"]
        sample.with_suffix(".json").write_text(json.dumps(with_checksum(stated | {"step": step})))
    found = formation_of(tmp_path / "run", CacheReader.open(toy_cache))
    assert found is not None
    steps = found.arrays["formed_step"].tolist()
    assert len(steps) == 8
    assert steps[0] == 4
    assert steps[-1] == 80
    assert formation_of(tmp_path, CacheReader.open(toy_cache)) is None


def test_the_evidence_of_a_run_with_samples_has_its_formation(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    options = {"settings": FeatureSettings(context_tokens=4), "device": "cpu", "lm": None, "force": True}
    features_of_layer(cache=toy_cache, transcoder=run, out=tmp_path / "features", progress=Silent(), **options)
    evidence = read_evidence(tmp_path / "features")
    page = feature_page(evidence, 21)
    assert [step["step"] for step in page["formed"]] == [4, 8]
    packed = pack(evidence, range(64))
    for stated, (firings, largest, places) in zip(page["formed"], packed["pages"][21]["formed"], strict=True):
        assert [firings, largest] == [stated["firings"], stated["largest"]]
        assert [packed["vocabulary"][token] for token in places] == stated["tokens"]
    assert index(evidence)["head"]["formed"] == {"rows": 1600, "threshold": 0.0, "steps": [4, 8]}
