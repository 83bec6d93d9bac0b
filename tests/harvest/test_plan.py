"""The plan: true to what is then written, and a refusal where it will not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cache.config import CacheSettings
from common.device import choose_device, free_memory
from common.errors import CapacityError, UsageError
from common.known_models import KNOWN_MODELS
from harvest.config import HarvestSettings
from harvest.plan import plan_harvest, which_fit
from harvest.request import HarvestRequest
from harvest.run import harvest_layers

CACHE = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=1024, held_out_fraction=0.3)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}: " + "a fox " * 20}) + "\n" for n in range(300)))
    return path


def asked(model, text, folders, **changes):
    settings = {"dataset": str(text), "context": 32, "train_tokens": 20_000, "held_out_tokens": 2000, **changes}
    return HarvestRequest(str(model), folders, settings=HarvestSettings(**settings), cache=CACHE, device="cpu")


def test_the_plan_is_within_a_hundredth_of_what_is_written(model_folder, text, tmp_path):
    given = asked(model_folder, text, {1: tmp_path / "c1", 2: tmp_path / "c2"})
    plan = plan_harvest(given)
    assert not (tmp_path / "c1").exists()
    harvest_layers(given)
    for name in ("c1", "c2"):
        rows = sum(p.stat().st_size for p in (tmp_path / name / "rows.zarr").rglob("c.*") if "parameters" not in str(p))
        assert rows == pytest.approx(plan.bytes_per_layer, rel=0.01)
    assert plan.bytes_to_write == 2 * plan.bytes_per_layer
    assert plan.tokens_per_second > 0
    assert plan.seconds == pytest.approx(22_000 / plan.tokens_per_second)
    again = plan_harvest(given)
    assert (again.finished_layers, again.bytes_to_write, again.seconds) == ([1, 2], 0, 0)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(model_folders, text, tmp_path):
    given = asked(model_folders["gpt2"], text, {1: tmp_path / "c"}, train_tokens=2 * 10**9)
    large = CacheSettings(chunk_rows=1 << 14, shard_rows=1 << 20, segment_rows=1 << 20)
    given = replace(given, cache=large)
    with pytest.raises(CapacityError, match="GB are free"):
        plan_harvest(given)
    with pytest.raises(CapacityError, match="GB are free"):
        harvest_layers(given)
    assert not (tmp_path / "c").exists()


def test_a_plan_refuses_what_the_harvest_would(model_folders, text, tmp_path):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        plan_harvest(asked(model_folders["gpt2"], text, {9: tmp_path / "c"}))


def test_which_models_fit_is_arithmetic():
    table = which_fit(20 * 10**9)
    assert table["gemma-2-9b"]["bfloat16"] == {"bytes": 2 * KNOWN_MODELS["gemma-2-9b"].parameters, "fits": True}
    assert not table["gemma-2-9b"]["float32"]["fits"]
    assert not table["gemma-2-27b"]["bfloat16"]["fits"]
    assert free_memory(choose_device("cpu")) > 10**8
