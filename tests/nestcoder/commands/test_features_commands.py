"""The ``features`` commands on a toy run: what they print, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cache.config import CacheSettings
from cache.writer import CacheWriter
from common.errors import UsageError
from nestcoder.cli import command_line
from nestcoder.commands.features_commands import parse_feature
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    assert _call(runs, "features", "--layer", "3").exit_code == 0
    return runs


def _call(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["--model", "toy", "--set", f"runs={runs}", *arguments])


def _data(runs: Path, *arguments: str) -> object:
    return json.loads(_call(runs, "--json", *arguments).stdout)


def test_show_prints_the_feature_and_its_contexts(runs: Path) -> None:
    text = _call(runs, "features", "show", "3/4").stdout
    assert text.startswith("feature 3/4  fires on")
    assert "⟦" in text
    page = _data(runs, "features", "show", "3/4")
    assert page["prefix"] == 8
    assert f"{page['firings']:,} (" in text


def test_compare_has_a_column_for_each(runs: Path) -> None:
    lines = _call(runs, "features", "compare", "3/4", "3/20").stdout.splitlines()
    assert lines[0].split() == ["3/4", "3/20"]
    assert [page["feature"] for page in _data(runs, "features", "compare", "3/4", "3/20")] == [4, 20]


def test_similar_lists_relatives_of_every_kind(runs: Path) -> None:
    found = _data(runs, "features", "similar", "3/20")
    assert found["decoder"][0]["cosine"] >= found["decoder"][1]["cosine"]
    text = _call(runs, "features", "similar", "3/20").stdout
    assert "Nearest by decoder" in text
    assert f"3/{found['decoder'][0]['feature']}" in text


def test_find_looks_in_tokens(runs: Path) -> None:
    found = _data(runs, "features", "find", "[7]")
    assert found
    assert all(hit["id"].startswith("3/") for hit in found)
    assert "No feature" in _call(runs, "features", "find", "zebra").stdout


@pytest.mark.parametrize("text", ["8", "8/", "/3", "a/b", "8/-1", "8/1/2", "８/1", "8/" + "9" * 5000])
def test_what_is_no_feature_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no feature"):
        parse_feature(text)


def test_a_feature_beyond_the_dictionary_and_a_layer_without_evidence_are_refused(runs: Path) -> None:
    beyond = _call(runs, "features", "show", "3/32")
    assert isinstance(beyond.exception, UsageError)
    assert "no feature 32" in str(beyond.exception)
    without = _call(runs, "features", "show", "4/1")
    assert "nestcoder features" in str(without.exception)
    assert _call(runs, "features").exit_code == 2


def test_several_processes_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    refused = _call(runs, "features", "--layer", "3")
    assert "one process" in str(refused.exception)
