"""Training and evaluation from every kind of cache: compressed, at a URL, and without targets."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.storage.recompute import Mlp
from cache.tools.pack import pack_cache
from cache.writer import CacheWriter
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer
from train.config import LogSettings, TrainSettings
from train.plan import plan_train
from train.run import train_layer
from transcoder.formats.native import load_transcoder

WIDTH, INNER, TRAIN, HELD_OUT = 16, 32, 1024, 256
SETTINGS = TrainSettings(prefixes=(16, 64), top_k=4, steps=20, warmup_steps=5, batch_rows=64, held_out_rows=64)


def mlp() -> Mlp:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(INNER, WIDTH, generator=generator), torch.randn(WIDTH, INNER, generator=generator)
    return Mlp("gelu_new", 0.0, up / 4, down / 4, up_bias=torch.zeros(INNER), down_bias=torch.ones(WIDTH))


def write(path: Path, *, target: str) -> Path:
    settings = CacheSettings.model_validate(
        {"chunk_rows": 16, "shard_rows": 64, "segment_rows": 256, "dtype": "float32", "target": target}
    )
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": TRAIN, "held_out_rows": HELD_OUT}
    identity = {"model": "tiny", "layer": 3, "source_site": "mlp_in", "target_site": "mlp_out", "context": 16}
    arrays = {"gain": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}
    arrays |= mlp().arrays() if target == "recompute" else {}
    source = torch.randn(TRAIN + HELD_OUT, WIDTH, generator=torch.Generator().manual_seed(1))
    index = np.arange(len(source))
    columns = (1 + index % 9).astype(np.int32), index // 32, (index % 16).astype(np.int32)
    with CacheWriter(path, identity=identity, settings=settings, special_ids=[0], arrays=arrays, **sizes) as writer:
        for held_out, rows in ((False, slice(0, TRAIN)), (True, slice(TRAIN, None))):
            given = source[rows], mlp().target(source[rows]), *(column[rows] for column in columns)
            writer.append(*given, held_out=held_out, cursor=None)
    return path


def learned(cache: Path, out: Path, cache_settings: CacheSettings | None = None) -> tuple[dict[str, Any], torch.Tensor]:
    """The evaluation of a transcoder trained on the cache, and its encoder."""
    common = {"cache": cache, "cache_settings": cache_settings, "device": "cpu"}
    assert plan_train(**common, settings=SETTINGS, out=out / "main").steps == 20
    train_layer(**common, settings=SETTINGS, out=out / "main", fresh=False, progress=Silent(), log=LogSettings())
    metrics = evaluate_layer(
        **common, transcoder=out / "main", out=out / "report", settings=EvaluateSettings(bootstrap=5), progress=Silent()
    )
    return metrics, load_transcoder(out / "main").W_enc


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stored") / "cache", target="stored")


@pytest.fixture(scope="module")
def plainly(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], torch.Tensor]:
    return learned(stored, tmp_path_factory.mktemp("plainly"))


@pytest.fixture
def kind(
    request: pytest.FixtureRequest, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, CacheSettings]:
    if request.param == "compressed":
        pack_cache(stored, tmp_path / "cache", codec="zstd")
        return tmp_path / "cache", CacheSettings()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    system, here = fsspec.filesystem("memory"), "runs/tiny/layer03/cache"
    system.put(f"{stored}/", f"/bucket/{here.removeprefix('runs/')}/", recursive=True)
    monkeypatch.chdir(tmp_path)
    return Path(here), CacheSettings(remote="memory://bucket")


@pytest.mark.parametrize("kind", ["compressed", "afar"], indirect=True)
def test_where_and_how_rows_are_stored_changes_no_number(
    kind: tuple[Path, CacheSettings], plainly: tuple[dict[str, Any], torch.Tensor], tmp_path: Path
) -> None:
    metrics, encoder = learned(kind[0], tmp_path / "out", kind[1])
    expected = plainly[0] | {"evaluated_at": metrics["evaluated_at"]}
    assert torch.equal(encoder, plainly[1])
    assert metrics == expected


def test_a_recomputed_target_is_learned_like_a_stored_one(
    plainly: tuple[dict[str, Any], torch.Tensor], tmp_path: Path
) -> None:
    metrics, encoder = learned(write(tmp_path / "cache", target="recompute"), tmp_path / "out")
    torch.testing.assert_close(encoder, plainly[1], rtol=0, atol=1e-4)
    assert metrics["fvu_per_prefix"] == pytest.approx(plainly[0]["fvu_per_prefix"], rel=1e-3)
    assert metrics["baselines"]["affine"] == pytest.approx(plainly[0]["baselines"]["affine"], rel=1e-3)


def test_checksums_of_reads_are_off_when_the_settings_say_so(stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(stored, copy)
    shard = next(copy.glob("rows.zarr/train/source/c.0.0"))
    data = bytearray(shard.read_bytes())
    data[1] ^= 1
    shard.write_bytes(data)
    learned(copy, tmp_path / "off", CacheSettings(check_reads=False))
    with pytest.raises(Exception, match="does not match its checksum"):
        learned(copy, tmp_path / "on")
