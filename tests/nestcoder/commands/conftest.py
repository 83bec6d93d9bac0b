"""Runs of a toy model with evidence taken, for all tests of commands: of one transcoder, and of a cross-layer one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache.reader import CacheReader
from cache.stacked import stacked
from nestcoder.cli import command_line
from tests.helpers.caches import write_cache as write_rows
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def write_cache(folder: Path, *, layer: int) -> Path:
    """Rows of any layer, the same tokens in each."""
    rows = 320
    generator = torch.Generator().manual_seed(layer - 3)
    columns = {
        "source": torch.randn(rows, 8, generator=generator).bfloat16(),
        "target": torch.randn(rows, 6, generator=generator).bfloat16(),
        "tokens": np.tile(np.arange(1, 17, dtype=np.int32), rows // 16),
        "document": np.arange(rows, dtype=np.int64) // 40,
        "position": np.arange(rows, dtype=np.int32) % 16,
    }
    identity = {"model": "toy", "layer": layer, "context": 16, "source_site": "mlp_in", "target_site": "mlp_out"}
    return write_rows(folder, columns, columns, identity=identity, chunk_rows=64, shard_rows=128, segment_rows=256)


def run(runs: Path, *arguments: str) -> None:
    """A command on the toy model, which must succeed."""
    done = CliRunner().invoke(command_line, ["--model", "toy", "--set", f"runs={runs}", *arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)


@pytest.fixture(scope="session")
def feature_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a toy model with its feature evidence."""
    runs = tmp_path_factory.mktemp("runs")
    layer = runs / "toy" / "layer03"
    write_cache(layer / "cache", layer=3)
    arrays = random_arrays(8, 6, dict_size=32, seed=5)
    save_transcoder(Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32)), layer / "transcoder" / "main", config={})
    run(runs, "features", "--layer", "3")
    return runs


@pytest.fixture(scope="session")
def joint_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-layer transcoder ``clt`` of layers 3 and 5 of a toy model, evaluated, with its evidence taken."""
    runs = tmp_path_factory.mktemp("joint")
    caches = [write_cache(runs / "toy" / f"layer{layer:02d}" / "cache", layer=layer) for layer in (3, 5)]
    readers = [CacheReader.open(cache) for cache in caches]
    pieces: list[Transcoder] = []
    for number, width in enumerate((12, 6)):
        arrays = random_arrays(8, width, dict_size=32, seed=number)
        arrays["b_dec"][6:] = 0
        pieces.append(Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32)))
    config = {
        "model": "toy",
        "source_site": "mlp_in",
        "target_scales": [1.0, 2.0],
        "tokens_trained": 320,
        "cache_fingerprint": stacked(readers).fingerprint,
        "cache_fingerprints": [reader.fingerprint for reader in readers],
    }
    made = CrossLayerTranscoder(pieces, layers=(3, 5), window=1)
    save_cross_layer(made, runs / "toy" / "layers03_05" / "transcoder" / "clt", config=config)
    layers = ("--layer", "3", "--layer", "5", "--name", "clt")
    run(runs, "features", *layers)
    run(runs, "--set", "evaluate.bootstrap=0", "evaluate", *layers)
    return runs
