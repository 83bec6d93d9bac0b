"""What the doctor says follows from what it measured."""

from pathlib import Path

from common.device import choose_device
from nestcoder.doctor import examine, model_facts


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


def test_a_model_that_fits_no_card_may_fit_all_of_them_together() -> None:
    devices = [{"device": name, "free_bytes": 24_000_000_000} for name in ("cpu", "cuda:0", "cuda:1", "cuda:2")]
    fits = model_facts(devices)["gemma-2-27b"]["fits"]
    assert fits == {"bfloat16": ["all cards together"], "float32": []}
    assert model_facts(devices[:2])["gemma-2-9b"]["fits"]["bfloat16"] == ["cpu", "cuda:0"]
    assert model_facts(devices[:2])["gemma-2-27b"]["fits"]["bfloat16"] == []
