"""Settings: what is given, what follows from it, and what is refused with its arithmetic."""

import json

import pytest
from pydantic import ValidationError

from train.config import TrainSettings, presets


def test_groups_and_prefixes_are_two_keys() -> None:
    numbers = (768, 1536, 3072, 6912)
    assert TrainSettings(group_sizes=numbers).boundaries == (768, 2304, 5376, 12288)
    assert TrainSettings(prefixes=numbers).boundaries == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefixes": [64, 32]}, "must increase strictly"),
        ({"prefixes": [8, 16], "top_k": 9}, "top_k 9 exceeds the first prefix, 8 features"),
        ({"prefixes": [8, 16], "prefix_weights": [1.0]}, "1 prefix_weights for 2 prefixes"),
        ({"steps": 10, "warmup_steps": 6, "decay_steps": 5}, r"6 \+ decay_steps 5 = 11"),
        ({"steps": 200, "lr": 1e-4, "min_lr": 1e-3}, "min_lr 0.001 exceeds lr 0.0001"),
        ({"preset": "gpt3"}, "preset 'gpt3' is unknown"),
        ({"group_size": [1]}, "Extra inputs"),
        ({"prefixes": []}, "prefixes is empty"),
        ({"group_sizes": []}, "group_sizes is empty"),
        ({"prefix_weights": []}, "prefix_weights is empty"),
        ({"save_best": True, "held_out_rows": 0}, "save_best needs held_out_rows"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate_json(json.dumps(values))


@pytest.mark.parametrize("key", ["lr", "min_lr", "weight_decay", "clip_norm", "aux_alpha", "beta1"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_rate_or_weight_that_is_no_number_is_refused_by_its_key(key: str, number: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainSettings.model_validate_json(f'{{"{key}": {number}}}')
    assert [problem["loc"] for problem in caught.value.errors()] == [(key,)]


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("seed", 2**70),
        ("order_seed", 2**63),
        ("steps", 10**12),
        ("batch_rows", 10**12),
        ("dict_size", 2**31),
        ("keep", 10**12),
        ("held_out_rows", 10**12),
        ("dead_after_tokens", 10**20),
        ("warmup_steps", 10**12),
    ],
)
def test_an_impossibly_large_count_is_refused_by_its_key(key: str, number: int) -> None:
    with pytest.raises(ValidationError, match="less than") as caught:
        TrainSettings.model_validate_json(json.dumps({key: number}))
    assert [problem["loc"] for problem in caught.value.errors()] == [(key,)]


def test_a_weight_that_is_infinite_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        TrainSettings.model_validate_json('{"prefixes": [8, 16], "prefix_weights": [1.0, Infinity]}')


@pytest.mark.parametrize("steps", [1, 2, 60, 99])
def test_a_short_run_needs_no_setting_of_its_warm_up(steps: int) -> None:
    assert TrainSettings(steps=steps).steps == steps
    assert TrainSettings(steps=steps, decay_steps=steps).decay_steps == steps


def test_presets_are_sixteen_times_the_width_or_the_layer_run() -> None:
    sizes = {name: sum(preset["group_sizes"]) for name, preset in presets().items()}
    widths = {"gpt2": 768, "gpt2-medium": 1024, "gpt2-large": 1280, "gpt2-xl": 1600}
    widths |= {"gemma-2-2b": 2304, "gemma-2-9b": 3584, "gemma-2-27b": 4608}
    assert {name: sizes[name] for name in widths} == {name: 16 * width for name, width in widths.items()}
    assert sizes["layer-18432"] == sizes["layer-18432-five-groups"] == 18432
