"""Runs folders of the toy model: a trained and evaluated transcoder, one of a sweep, one that is in training; and
what belongs to two layers."""

import shutil
from pathlib import Path

import pytest

from cache.reader import CacheReader
from cache.stacked import stacked
from common import disk
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from evaluate.joint.run import Candidate, evaluate_layers
from tests.helpers.evaluation import evaluate
from tests.helpers.training import train
from train.config import TrainSettings
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


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
    # The files of a training that was killed before its end.
    shutil.copytree(transcoder, layer / "transcoder" / "later")
    (layer / "transcoder" / "later" / "config.json").unlink()
    shutil.rmtree(layer / "transcoder" / "later" / "k2")
    return runs


@pytest.fixture(scope="session")
def several(toy_cache: Path, toy_transcoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-layer transcoder ``clt`` of layers 3 and 4, measured beside the set ``main``; copy it to change it.

    Both layers have the same rows, and pages of ``clt``.
    """
    runs = tmp_path_factory.mktemp("several") / "runs"
    caches = {layer: runs / "toy" / f"layer{layer:02d}" / "cache" for layer in (3, 4)}
    for cache in caches.values():
        shutil.copytree(toy_cache, cache)
        shutil.copytree(toy_transcoder, cache.parent / "transcoder" / "main")
        disk.write_file(cache.parent / "features" / "clt" / "index.html", b"<!doctype html>")
    joint = runs / "toy" / "layers03-04"
    readers = [CacheReader.open(cache) for cache in caches.values()]
    pieces = [
        Transcoder(**random_arrays(12, width, dict_size=32, seed=width), rule=TopK(4), prefixes=(8, 32))
        for width in (20, 10)
    ]
    config = {"cache_fingerprint": stacked(readers).fingerprint, "tokens_trained": 512, "steps": 9}
    made = CrossLayerTranscoder(pieces, layers=(3, 4), window=1)
    save_cross_layer(made, joint / "transcoder" / "clt", config=config)
    disk.write_file(joint / "features" / "clt" / "index.html", b"<!doctype html>")
    evaluate_layers(
        caches=caches,
        candidates=[
            Candidate(
                name,
                joint / "transcoder" / name,
                {layer: cache.parent / "transcoder" / name for layer, cache in caches.items()},
            )
            for name in ("clt", "main")
        ],
        out=joint / "report" / "clt",
        settings=EvaluateSettings(bootstrap=0),
        device="cpu",
        lm=None,
        progress=Silent(),
    )
    return runs
