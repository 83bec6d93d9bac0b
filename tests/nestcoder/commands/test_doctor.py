"""What the doctor says follows from what it measured."""

from pathlib import Path

import pytest

from common.device import choose_device
from common.errors import UsageError
from nestcoder.commands.doctor import examine, folder_facts, model_facts


def test_facts_and_text_agree_with_the_arithmetic(tmp_path: Path) -> None:
    result = examine(tmp_path)
    facts = result.data
    text = result.text
    cpu = facts["devices"][0]
    assert 0 < cpu["free_bytes"] <= cpu["all_bytes"]
    for name, model in facts["models"].items():
        weights = model["weights_bytes"]
        assert weights["float32"] == 2 * weights["bfloat16"]
        for dtype, size in weights.items():
            assert ("cpu" in model["fits"][dtype]) == (size < int(cpu["free_bytes"] / 1.2)), (name, dtype)
        assert name in text
    assert facts["models"]["gemma-2-2b"]["cache_bytes_per_million_tokens"] == 9_216_000_000
    assert facts["chosen"]["device"] == str(choose_device("auto"))


def test_one_model_can_be_named(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[3] / "models" / "gpt2-stdlib"
    result = examine(tmp_path, model=str(folder))
    model = result.data["model"]
    assert (model["layers"], model["width"], model["longest_context"]) == (12, 96, 256)
    assert model["weights_bytes"]["float32"] == 4 * model["parameters"]
    assert model["deepest_layer"]["cpu"] == {"bfloat16": 11, "float32": 11}
    assert "12 layers, width 96" in result.text
    assert "gemma-2-2b" not in result.text
    assert list(examine(tmp_path, model="gpt2").data["models"]) == ["gpt2"]
    with pytest.raises(UsageError, match="neither a folder"):
        examine(tmp_path, model="absent")


def test_a_card_that_is_too_small_for_all_layers_is_told_how_many_fit() -> None:
    folder = Path(__file__).resolve().parents[3] / "models" / "gpt2-stdlib"
    facts = folder_facts(str(folder), [{"device": "cuda:0", "free_bytes": 10**12}])
    half = facts["weights_bytes"]["float32"] * 6 // 10
    deepest = folder_facts(str(folder), [{"device": "cuda:0", "free_bytes": half}])["deepest_layer"]["cuda:0"]
    assert 0 < deepest["float32"] < deepest["bfloat16"] <= 11
    assert (
        folder_facts(str(folder), [{"device": "cuda:0", "free_bytes": 1}])["deepest_layer"]["cuda:0"]["float32"] is None
    )


def test_a_model_that_fits_no_single_card_may_fit_all_cards() -> None:
    devices = [{"device": name, "free_bytes": 24_000_000_000} for name in ("cpu", "cuda:0", "cuda:1", "cuda:2")]
    fits = model_facts(devices)["gemma-2-27b"]["fits"]
    assert fits == {"bfloat16": ["all cards together"], "float32": []}
    assert model_facts(devices[:2])["gemma-2-9b"]["fits"]["bfloat16"] == ["cpu", "cuda:0"]
    assert model_facts(devices[:2])["gemma-2-27b"]["fits"]["bfloat16"] == []
