"""Small real caches to train from, and the settings that train quickly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.writer import CacheWriter
from train.config import TrainSettings

D_SOURCE, D_TARGET, SPECIAL = 12, 8, 0
IDENTITY = {"model": "tiny", "model_revision": "r1", "layer": 3, "source_site": "mlp_in", "target_site": "mlp_out"}


def sparse_rows(rows: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of a few of 40 directions in the source, and of as many others in the target."""
    generator = torch.Generator().manual_seed(7)
    inward, outward = (torch.randn(40, width, generator=generator) for width in (D_SOURCE, D_TARGET))
    generator.manual_seed(seed)
    code = torch.rand(rows, 40, generator=generator) * (torch.rand(rows, 40, generator=generator) < 0.05)
    return (code @ inward + 0.5).bfloat16(), (code @ outward - 0.3).bfloat16()


def write_cache(path: Path, *, train_rows: int = 1000, held_out_rows: int = 128, **overrides: Any) -> Path:
    """A cache of documents of 50 rows, the first token of each special, with a very large row."""
    settings = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=256)
    widths = {"d_source": D_SOURCE, "d_target": D_TARGET}
    sizes = {"train_rows": train_rows, "held_out_rows": held_out_rows, "special_ids": [SPECIAL]}
    arrays = {"gain": np.linspace(0.5, 1.5, D_SOURCE, dtype=np.float32), "bias": np.ones(D_SOURCE, np.float32)}
    identity = IDENTITY | overrides.pop("identity", {})
    with CacheWriter(path, identity=identity, settings=settings, **widths, **sizes, arrays=arrays) as writer:
        for held_out, rows in ((False, train_rows), (True, held_out_rows)):
            source, target = overrides.get("rows") or sparse_rows(rows, seed=int(held_out))
            if seed := overrides.get("other_source"):
                source = sparse_rows(rows, seed=seed + held_out)[0]
            number = np.arange(rows)
            tokens = np.where(number % 50 == 0, SPECIAL, 1 + number % 7).astype(np.int32)
            source[number % 50 == 0] = 30.0
            columns = (tokens, number // 50, (number % 50).astype(np.int32))
            writer.append(source[:rows], target[:rows], *columns, held_out=held_out, cursor=None)
    return path


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 training and 128 held-out rows of width 12 and 8."""
    return write_cache(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture
def quick() -> TrainSettings:
    """40 steps of 64 rows on 64 features: saved every 10, warm-up, decay, aux events and epoch ends on the way.

    The loss is the pooled FVU, so that training and evaluation state the same FVU of held-out rows.
    """
    return TrainSettings(
        prefixes=(16, 32, 64),
        top_k=4,
        steps=40,
        batch_rows=64,
        lr=1e-2,
        warmup_steps=6,
        dead_after_tokens=300,
        dimension_balance=0.0,
        log_every=5,
        checkpoint_every=10,
        held_out_rows=128,
    )


@pytest.fixture(scope="session")
def other_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows of another model."""
    return write_cache(tmp_path_factory.mktemp("other") / "cache", identity={"model": "another"})


@pytest.fixture
def special_cache(tmp_path: Path) -> Path:
    """Its one training row is of a special token."""
    return write_cache(tmp_path / "special", train_rows=1)


@pytest.fixture
def residual_cache(tmp_path: Path) -> Path:
    """The same rows, labelled as the residual stream."""
    return write_cache(tmp_path / "residual", identity={"source_site": "resid_post"})


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Layers 3 and 4 of one text; the target of the second follows from the source of the first."""
    folder = tmp_path_factory.mktemp("layers")
    caches: dict[int, Path] = {}
    for layer, other_source in ((3, 0), (4, 10)):
        path = folder / f"layer{layer:02d}" / "cache"
        caches[layer] = write_cache(path, other_source=other_source, identity={"layer": layer})
    return caches


@pytest.fixture
def shorter_cache(tmp_path: Path) -> Path:
    """Other rows than those of ``two_layers``."""
    return write_cache(tmp_path / "shorter", train_rows=900)
