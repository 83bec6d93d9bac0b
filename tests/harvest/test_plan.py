"""The plan: it agrees with what is written then, and refuses what will not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.config import CacheSettings
from cache.reader import CacheReader
from common.device import choose_device, free_memory
from common.errors import CapacityError, UsageError
from common.known_models import KNOWN_MODELS
from harvest.config import HarvestSettings
from harvest.plan import count_held_out, plan_harvest, which_fit
from harvest.prepare import prepare
from harvest.request import HarvestRequest
from harvest.run import harvest_layers

CACHE = CacheSettings(chunk_rows=16, shard_rows=512, segment_rows=1024, held_out_fraction=0.3)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}: " + "a fox " * 20}) + "\n" for n in range(300)))
    return path


def request_for(model, text, folders, **changes):
    settings = {"dataset": str(text), "context": 32, "train_tokens": 20_000, "held_out_tokens": 2000, **changes}
    return HarvestRequest(str(model), folders, settings=HarvestSettings(**settings), cache=CACHE, device="cpu")


def test_the_plan_is_within_a_hundredth_of_what_is_written(model_folder, text, tmp_path):
    given = request_for(model_folder, text, {1: tmp_path / "c1", 2: tmp_path / "c2"})
    plan = plan_harvest(given)
    assert not (tmp_path / "c1").exists()
    harvest_layers(given)
    for name in ("c1", "c2"):
        rows = sum(p.stat().st_size for p in (tmp_path / name / "rows.zarr").rglob("c.*") if "parameters" not in str(p))
        assert rows == pytest.approx(plan.bytes_per_layer, rel=0.01)
    assert plan.unembedding_bytes == 320 * 64 * 2
    assert plan.bytes_to_write == 2 * (plan.bytes_per_layer + plan.unembedding_bytes)
    assert plan.tokens_per_second > 0
    assert plan.contexts_begin_with.endswith("> (harvest.bos: auto)")  # <bos> or <|endoftext|>
    # Torch alone takes 200 MB; the rows of both layers wait in memory, 22,000 of two times 16 numbers in bfloat16.
    assert plan.peak_memory_bytes is not None
    assert plan.peak_memory_bytes > 2e8
    assert plan.seconds == pytest.approx(22_000 / plan.tokens_per_second)
    again = plan_harvest(given)
    assert (again.finished_layers, again.bytes_to_write, again.seconds) == ([1, 2], 0, 0)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(model_folders, text, tmp_path):
    given = request_for(model_folders["gpt2"], text, {1: tmp_path / "c"}, train_tokens=2 * 10**9)
    large = CacheSettings(chunk_rows=1 << 14, shard_rows=1 << 20, segment_rows=1 << 20)
    given = replace(given, cache=large)
    with pytest.raises(CapacityError, match="B are free"):
        plan_harvest(given)
    with pytest.raises(CapacityError, match="B are free"):
        harvest_layers(given)
    assert not (tmp_path / "c").exists()


def test_a_plan_refuses_what_the_harvest_would_refuse(model_folders, text, tmp_path):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        plan_harvest(request_for(model_folders["gpt2"], text, {9: tmp_path / "c"}))


def test_which_models_fit_is_arithmetic():
    table = which_fit(20 * 10**9)
    assert table["gemma-2-9b"]["bfloat16"] == {"bytes": 2 * KNOWN_MODELS["gemma-2-9b"].parameters, "fits": True}
    assert not table["gemma-2-9b"]["float32"]["fits"]
    assert not table["gemma-2-27b"]["bfloat16"]["fits"]
    assert free_memory(choose_device("cpu")) > 10**8


def test_the_plan_counts_the_documents_of_the_held_out_rows_and_asks_for_more(model_folders, text, tmp_path):
    given = request_for(model_folders["gpt2"], text, {1: tmp_path / "c"})
    plan = plan_harvest(given)
    harvest_layers(given)
    view = CacheReader.open(tmp_path / "c").split("held_out")
    assert abs(plan.held_out_documents - len(np.unique(view.document))) <= 1
    (advice,) = plan.advice
    assert "at least 100" in advice
    capped = replace(given, settings=given.settings.model_copy(update={"held_out_document_tokens": 20}))
    assert plan_harvest(replace(capped, folders={1: tmp_path / "d"})).held_out_documents > 2 * plan.held_out_documents


def test_documents_that_are_cut_too_short_for_the_rows_are_refused(model_folders, text, tmp_path):
    given = request_for(model_folders["gpt2"], text, {1: tmp_path / "c"})
    capped = replace(given, settings=given.settings.model_copy(update={"held_out_document_tokens": 1}))
    with pytest.raises(UsageError, match=r"too short: its \d+ held-out documents"):
        count_held_out(prepare(capped))
    repeated = replace(capped, settings=capped.settings.model_copy(update={"repeat": True}))
    assert count_held_out(prepare(repeated)) > 0


def test_a_count_that_takes_too_long_is_extrapolated(model_folders, text, tmp_path):
    prepared = prepare(request_for(model_folders["gpt2"], text, {1: tmp_path / "c"}))
    exact = count_held_out(prepared)
    assert count_held_out(prepared, seconds=0.0) == pytest.approx(exact, rel=0.3)
