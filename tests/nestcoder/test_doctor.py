"""What the doctor says follows from what it measured."""

from pathlib import Path

from nestcoder.doctor import examine


def test_facts_and_text_agree_with_the_arithmetic(tmp_path: Path) -> None:
    facts, text = examine(tmp_path)
    cpu = facts["devices"][0]
    assert 0 < cpu["free_bytes"] <= cpu["all_bytes"]
    for name, model in facts["models"].items():
        weights = model["weights_bytes"]
        assert weights["float32"] == 2 * weights["bfloat16"]
        for dtype, size in weights.items():
            assert ("cpu" in model["fits"][dtype]) == (size < int(cpu["free_bytes"] / 1.2)), (name, dtype)
        assert name in text
    assert facts["models"]["gemma-2-2b"]["cache_bytes_per_million_tokens"] == 9_216_000_000
    assert facts["chosen"]["device"] in {device["device"] for device in facts["devices"]}
