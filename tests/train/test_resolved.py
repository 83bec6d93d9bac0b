"""What follows from settings, presets and the cache's width; records of runs; the members of a sweep."""

import json

import pytest

from common.errors import MismatchError, UsageError
from train.config import TrainSettings
from train.resolved import members, read_record, resolve


def test_auto_is_recorded_as_the_dtype_that_the_device_computes_in() -> None:
    stated = TrainSettings(compute_dtype="auto")
    assert resolve(stated, model="", d_target=96).compute_dtype == "float32"
    resolved = resolve(stated, model="", d_target=96, device_dtype="bfloat16")
    assert resolved.record()["compute_dtype"] == "bfloat16"
    assert read_record(resolved.record(), d_target=96, location="") == resolved
    for dtype in ("float32", "bfloat16"):
        assert resolve(TrainSettings(compute_dtype=dtype), model="", d_target=96).compute_dtype == dtype


def test_a_preset_of_another_width_can_be_asked_for() -> None:
    layer_run = resolve(TrainSettings(preset="layer-18432"), model="any", d_target=1152)
    assert (layer_run.prefixes, layer_run.top_k) == ((1152, 3456, 8064, 18432), 96)


def test_auto_takes_the_preset_with_the_name_of_the_model() -> None:
    gemma = resolve(TrainSettings(), model="google/gemma-2-2b", d_target=2304)
    assert (gemma.prefixes, gemma.top_k, gemma.dict_size) == ((2304, 6912, 16128, 36864), 96, 36864)
    by_path = resolve(TrainSettings(), model="models/gpt2-stdlib", d_target=96)
    assert (by_path.prefixes, by_path.top_k, by_path.dict_size) == ((96, 288, 672, 1536), 16, 1536)
    namesake = resolve(TrainSettings(), model="tiny/gpt2", d_target=96)
    assert (namesake.prefixes, namesake.top_k) == ((96, 288, 672, 1536), 16)
    stated = resolve(TrainSettings(prefixes=(32, 64), top_k=4), model="gpt2", d_target=768)
    assert (stated.prefixes, stated.top_k) == ((32, 64), 4)


def test_the_rate_follows_from_the_width() -> None:
    assert resolve(TrainSettings(), model="m", d_target=625).lr == pytest.approx(0.0032)
    assert resolve(TrainSettings(lr=0.1), model="m", d_target=400).lr == 0.1


def test_resolved_settings_resolve_to_themselves() -> None:
    stated = TrainSettings(dict_size=320, prefix_weights=(0.3, 0.1, 0.7, 0.4), top_k=4, decay_steps=50)
    once = resolve(stated, model="m", d_target=8)
    assert sum(once.prefix_weights) == pytest.approx(1)
    assert read_record(json.loads(json.dumps(once.record())), d_target=8, location="here") == once
    assert once.record()["dict_size"] == once.dict_size == 320


def test_the_record_of_an_earlier_release_is_read() -> None:
    """It states what was given, and not what followed from the width."""
    earlier = {
        "preset": "none",
        "dict_size": 64,
        "prefixes": [16, 64],
        "group_sizes": None,
        "prefix_weights": None,
        "top_k": 4,
        "lr": None,
        "warmup_steps": 6,
        "decay_steps": None,
        "aux_top_k": None,
        "dead_after_tokens": None,
        "steps": 40,
        "sweep": [],
    }
    found = read_record(earlier, d_target=8, location="here")
    assert (found.prefixes, found.prefix_weights, found.aux_top_k) == ((16, 64), (0.5, 0.5), 4)
    assert (found.decay_steps, found.dead_after_tokens, found.save_best) == (34, 1_000_000, False)
    assert found.lr == pytest.approx(0.04 / 8**0.5)
    assert (found.dimension_balance, found.source_scaling, found.revive) == (0.0, "whole", False)


def test_a_record_with_unknown_keys_is_refused() -> None:
    with pytest.raises(MismatchError, match="settings: newer: Extra inputs"):
        read_record({"prefixes": [16], "newer": 1}, d_target=8, location="here")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": 3000}, 100),
        ({"steps": 200}, 100),
        ({"steps": 60}, 30),
        ({"steps": 1}, 0),
        ({"steps": 1000, "decay_steps": 900}, 50),
        ({"steps": 60, "decay_steps": 60}, 0),
        ({"steps": 60, "warmup_steps": 60}, 60),
    ],
)
def test_the_default_warm_up_fits_every_run(values: dict[str, int], expected: int) -> None:
    assert resolve(TrainSettings(**values), model="m", d_target=96).warmup_steps == expected


def test_a_min_lr_above_the_rate_that_follows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_lr 1.0 exceeds lr 0.005"):
        resolve(TrainSettings(min_lr=1.0), model="m", d_target=96)


def test_a_size_that_has_no_default_groups_is_refused() -> None:
    with pytest.raises(UsageError, match="dict_size of 100 cannot be split"):
        resolve(TrainSettings(dict_size=100), model="m", d_target=8)


def test_resolving_refuses_a_top_k_above_the_first_prefix() -> None:
    with pytest.raises(UsageError, match="top_k 16 exceeds the first prefix, 8 features"):
        resolve(TrainSettings(), model="m", d_target=8)


@pytest.mark.parametrize(
    ("steps", "batch_rows", "expected"),
    [(3000, 2048, 1_000_000), (100_000, 1000, 5_000_000), (1_000_000, 4096, 10_000_000)],
)
def test_dead_is_counted_over_a_twentieth_of_the_run(steps: int, batch_rows: int, expected: int) -> None:
    assert (
        resolve(TrainSettings(steps=steps, batch_rows=batch_rows), model="m", d_target=96).dead_after_tokens == expected
    )


def test_sweep_members_differ_as_they_say() -> None:
    settings = TrainSettings(prefixes=(32, 64), sweep=({"name": "k8", "top_k": 8}, {"name": "wide", "dict_size": 256}))
    found = members(settings)
    assert list(found) == ["", "k8", "wide"]
    assert (found["k8"].top_k, found["k8"].prefixes, found["k8"].sweep) == (8, (32, 64), ())
    assert (found["wide"].dict_size, found["wide"].prefixes) == (256, None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"top_k": 8}, "needs a new name"),
        ({"name": "../up", "top_k": 8}, "needs a new name"),
        ({"name": "..", "top_k": 8}, "needs a new name"),
        ({"name": "metrics.jsonl", "top_k": 8}, "needs a new name"),
        ({"name": "checkpoints", "top_k": 8}, "needs a new name"),
        ({"name": "a", "batch_rows": 5}, "cannot set batch_rows"),
        ({"name": "a", "steps": 5}, "cannot set steps"),
        ({"name": "a", "topk": 5}, "topk: Extra inputs"),
    ],
)
def test_sweep_entries_that_make_no_sense_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        members(TrainSettings(sweep=(entry,)))
