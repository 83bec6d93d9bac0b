"""A runs folder of the toy model: a trained and evaluated transcoder, one of a sweep, one that is in training."""

import shutil
from pathlib import Path

import pytest

from common.progress import Silent
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from tests.helpers.evaluation import evaluate
from tests.helpers.training import train
from train.config import TrainSettings


@pytest.fixture(scope="session")
def runs(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy it before you change it."""
    runs = tmp_path_factory.mktemp("browse") / "runs"
    layer = runs / "toy" / "layer03"
    shutil.copytree(toy_cache, layer / "cache")
    shutil.copytree(toy_cache, runs / "bare" / "layer11" / "cache")
    settings = TrainSettings(
        steps=12,
        warmup_steps=2,
        batch_rows=64,
        prefixes=(8, 24, 64),
        top_k=4,
        held_out_rows=128,
        checkpoint_every=4,
        log_every=2,
        sweep=({"name": "k2", "top_k": 2},),
    )
    transcoder = layer / "transcoder" / "main"
    train(layer / "cache", transcoder, settings)
    for _ in range(2):
        evaluate(layer / "cache", transcoder, layer / "report" / "main")
    features_of_layer(
        cache=layer / "cache",
        transcoder=transcoder,
        out=layer / "features" / "main",
        settings=FeatureSettings(context_tokens=3),
        device="cpu",
        progress=Silent(),
    )
    # What a training has left that was killed before its end.
    shutil.copytree(transcoder, layer / "transcoder" / "later")
    (layer / "transcoder" / "later" / "config.json").unlink()
    shutil.rmtree(layer / "transcoder" / "later" / "k2")
    return runs
