"""The cache commands, run as by a user, on a small cache."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cache.config import CacheSettings
from cache.writer import CacheWriter
from nestcoder.cli import command_line

SHARD = "rows.zarr/train/source/c.1.0"


@pytest.fixture
def cache(tmp_path):
    settings = CacheSettings(chunk_rows=4, shard_rows=8, segment_rows=16, held_out_fraction=0.25, dtype="float32")
    identity = {"model": "toy", "layer": 3, "source_site": "mlp_in", "target_site": "mlp_out"}
    sizes = {"d_source": 8, "d_target": 6, "train_rows": 40, "held_out_rows": 8}
    with CacheWriter(
        tmp_path / "cache", identity=identity, settings=settings, special_ids=[0], arrays={}, **sizes
    ) as writer:
        random = np.random.default_rng(0)
        for held_out, rows in ((False, 40), (True, 8)):
            index = np.arange(rows)
            sides = [random.standard_normal((rows, width), np.float32) for width in (8, 6)]
            writer.append(
                *sides, index.astype(np.int32), index // 5, index.astype(np.int32), held_out=held_out, cursor=0
            )
        assert writer.complete
    return tmp_path / "cache"


def run(*arguments):
    """The command's exit code as nestcoder.entry gives it, and what it printed on standard output."""
    done = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
    code = getattr(done.exception, "exit_code", done.exit_code)
    return code, done.stdout, str(done.exception or "")


def test_info_says_what_a_cache_is(cache):
    code, output, _ = run("cache", "info", cache)
    assert code == 0
    for words in (
        "toy, layer 3",
        "source mlp_in 8",
        "train 40 of 8 documents",
        "stored without loss",
        "uniform shuffle",
    ):
        assert words in output
    code, output, _ = run("--json", "cache", "info", cache)
    assert json.loads(output)["rows"] == {"train": 40, "held_out": 8}


def test_verify_says_that_a_cache_is_sound(cache):
    code, output, _ = run("cache", "verify", cache)
    assert code == 0
    assert "undamaged: every byte" in output
    code, output, _ = run("--json", "cache", "verify", "--fast", cache)
    assert json.loads(output)["faults"] == []


def test_verify_names_what_is_damaged_and_repair_restores_it(cache):
    data = bytearray((cache / SHARD).read_bytes())
    data[150] ^= 1
    (cache / SHARD).write_bytes(data)
    code, _, problem = run("cache", "verify", cache)
    assert code == 3
    assert f"{SHARD}: damaged, chunk 1 (rows 12 to 15)" in problem
    assert "nestcoder cache repair" in problem
    code, output, _ = run("cache", "repair", cache)
    assert code == 0
    assert "To harvest again: 16 rows (segments train 0)" in output
    code, output, _ = run("cache", "verify", cache)
    assert code == 0
    assert "not finished: it has 4 of 5 segments" in output
    assert "24 of 40" in run("cache", "info", cache)[1]
    assert "Nothing is damaged" in run("cache", "repair", cache)[1]


def test_without_a_cache_the_commands_say_so(tmp_path):
    for command in ("info", "verify", "repair"):
        code, _, problem = run("cache", command, tmp_path)
        assert code == 2
        assert "There is no cache here" in problem


def test_pack_and_unpack_say_the_ratio(cache, tmp_path):
    code, output, _ = run("cache", "pack", cache, tmp_path / "archive", "--codec", "blosc-zstd")
    assert code == 0
    assert "codec blosc-zstd" in output
    assert "ratio" in output
    assert "every byte of" in run("cache", "verify", tmp_path / "archive")[1]
    code, output, _ = run("--json", "cache", "unpack", tmp_path / "archive", tmp_path / "back")
    assert json.loads(output)["ratio"] > 0
    assert run("cache", "verify", tmp_path / "back")[0] == 0
    assert run("cache", "pack", cache, tmp_path / "other", "--codec", "pickle")[0] == 2
