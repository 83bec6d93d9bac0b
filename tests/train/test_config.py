"""Settings: what is stated, what follows, and what is refused with its arithmetic."""

import json

import pytest
from pydantic import ValidationError

from common.errors import UsageError
from train.config import PRESETS, TrainSettings, dead_after_tokens, members


def test_groups_and_prefixes_are_two_keys() -> None:
    numbers = (768, 1536, 3072, 6912)
    assert TrainSettings(group_sizes=numbers).boundaries == (768, 2304, 5376, 12288)
    assert TrainSettings(prefixes=numbers).boundaries == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefixes": [768, 1536, 3072, 6912], "dict_size": 12288}, "as group_sizes they would add up to 12288"),
        ({"group_sizes": [1, 2, 4], "dict_size": 8}, r"1 \+ 2 \+ 4 = 7, but dict_size is 8"),
        ({"prefixes": [64, 32]}, "must increase strictly"),
        ({"prefixes": [64, 64]}, "must increase strictly"),
        ({"prefixes": [8, 16], "group_sizes": [8, 8]}, "two ways to say the same"),
        ({"prefixes": [8, 16], "top_k": 9}, "top_k 9 exceeds the first prefix, 8 features"),
        ({"prefixes": [8, 16], "prefix_weights": [1.0]}, "1 prefix_weights for 2 prefixes"),
        ({"steps": 10, "warmup_steps": 6, "decay_steps": 5}, r"6 \+ decay_steps 5 = 11"),
        ({"steps": 200, "lr": 1e-4, "min_lr": 1e-3}, "min_lr 0.001 exceeds lr 0.0001"),
        ({"preset": "gpt3"}, "preset 'gpt3' is unknown"),
        ({"group_size": [1]}, "Extra inputs"),
        ({"prefixes": []}, "prefixes is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate_json(json.dumps(values))


def test_presets_are_sixteen_times_the_width_or_the_layer_run() -> None:
    sizes = {name: sum(preset["group_sizes"]) for name, preset in PRESETS.items()}
    widths = {"gpt2": 768, "gpt2-medium": 1024, "gpt2-large": 1280, "gpt2-xl": 1600}
    widths |= {"gemma-2-2b": 2304, "gemma-2-9b": 3584, "gemma-2-27b": 4608}
    assert {name: sizes[name] for name in widths} == {name: 16 * width for name, width in widths.items()}
    assert sizes["layer-18432"] == sizes["layer-18432-five-groups"] == 18432
    layer_run = TrainSettings(preset="layer-18432").resolved(model="any", d_target=1152)
    assert (layer_run.prefixes, layer_run.top_k) == ((1152, 3456, 8064, 18432), 96)


def test_auto_takes_the_preset_named_like_the_model() -> None:
    gemma = TrainSettings().resolved(model="google/gemma-2-2b", d_target=2304)
    assert (gemma.prefixes, gemma.top_k, gemma.dict_size) == ((2304, 6912, 16128, 36864), 96, 36864)
    other = TrainSettings().resolved(model="models/gpt2-stdlib", d_target=96)
    assert (other.prefixes, other.top_k, other.dict_size) == ((96, 288, 672, 1536), 16, 1536)
    namesake = TrainSettings().resolved(model="tiny/gpt2", d_target=96)
    assert (namesake.prefixes, namesake.top_k) == ((96, 288, 672, 1536), 16)
    stated = TrainSettings(prefixes=(32, 64), top_k=4).resolved(model="gpt2", d_target=768)
    assert (stated.prefixes, stated.top_k) == ((32, 64), 4)


def test_the_rate_follows_from_the_width() -> None:
    assert TrainSettings().resolved(model="m", d_target=400).lr == pytest.approx(0.002)
    assert TrainSettings(lr=0.1).resolved(model="m", d_target=400).lr == 0.1


def test_resolved_settings_resolve_to_themselves() -> None:
    once = TrainSettings(dict_size=320).resolved(model="m", d_target=8)
    assert once.resolved(model="gpt2", d_target=768) == once


def test_a_size_that_has_no_default_groups_is_refused() -> None:
    with pytest.raises(UsageError, match="dict_size 100 does not divide"):
        TrainSettings(dict_size=100).resolved(model="m", d_target=8)


def test_resolving_refuses_a_top_k_above_the_first_prefix() -> None:
    with pytest.raises(UsageError, match="top_k 16 exceeds the first prefix, 8 features"):
        TrainSettings().resolved(model="m", d_target=8)


@pytest.mark.parametrize(
    ("steps", "batch_rows", "expected"),
    [(3000, 2048, 1_000_000), (100_000, 1000, 5_000_000), (1_000_000, 4096, 10_000_000)],
)
def test_dead_is_counted_over_a_twentieth_of_the_run(steps: int, batch_rows: int, expected: int) -> None:
    assert dead_after_tokens(TrainSettings(steps=steps, batch_rows=batch_rows)) == expected


def test_sweep_members_differ_as_they_say() -> None:
    settings = TrainSettings(prefixes=(32, 64), sweep=({"name": "k8", "top_k": 8}, {"name": "wide", "dict_size": 256}))
    found = members(settings)
    assert list(found) == ["", "k8", "wide"]
    assert (found["k8"].top_k, found["k8"].prefixes, found["k8"].sweep) == (8, (32, 64), ())
    assert (found["wide"].dict_size, found["wide"].prefixes) == (256, None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"top_k": 8}, "needs a name"),
        ({"name": "../up", "top_k": 8}, "needs a name"),
        ({"name": "..", "top_k": 8}, "needs a name"),
        ({"name": "metrics.jsonl", "top_k": 8}, "needs a name"),
        ({"name": "checkpoints", "top_k": 8}, "needs a name"),
        ({"name": "a", "batch_rows": 5}, "cannot set batch_rows"),
        ({"name": "a", "steps": 5}, "cannot set steps"),
        ({"name": "a", "topk": 5}, "Extra inputs"),
    ],
)
def test_sweep_entries_that_make_no_sense_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        members(TrainSettings(sweep=(entry,)))
