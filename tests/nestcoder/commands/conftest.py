"""A run of a toy model with its evidence taken, for all tests of commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache.config import CacheSettings
from cache.writer import CacheWriter
from nestcoder.cli import command_line
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


@pytest.fixture(scope="session")
def feature_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a toy model with its evidence taken."""
    runs = tmp_path_factory.mktemp("runs")
    layer = runs / "toy" / "layer03"
    rows = 320
    generator = torch.Generator().manual_seed(0)
    columns = {
        "source": torch.randn(rows, 8, generator=generator).bfloat16(),
        "target": torch.randn(rows, 6, generator=generator).bfloat16(),
        "tokens": np.tile(np.arange(1, 17, dtype=np.int32), rows // 16),
        "document": np.arange(rows, dtype=np.int64) // 40,
        "position": np.arange(rows, dtype=np.int32) % 16,
    }
    with CacheWriter(
        layer / "cache",
        identity={"model": "toy", "layer": 3, "context": 16},
        settings=CacheSettings(chunk_rows=64, shard_rows=128, segment_rows=256),
        d_source=8,
        d_target=6,
        train_rows=rows,
        held_out_rows=rows,
        special_ids=[0],
        arrays={},
    ) as writer:
        writer.append(**columns, held_out=False, cursor=0)
        writer.append(**columns, held_out=True, cursor=1)
    arrays = random_arrays(8, 6, dict_size=32, seed=5)
    save_transcoder(Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32)), layer / "transcoder" / "main", config={})
    arguments = ["--model", "toy", "--set", f"runs={runs}", "features", "--layer", "3"]
    assert CliRunner().invoke(command_line, arguments).exit_code == 0
    return runs
