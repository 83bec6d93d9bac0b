"""Autoencoders: one site of a cache, read and reconstructed; b_dec in the encoder, against autograd."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cache.open import open_cache
from common.progress import Silent
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from tests.helpers.evaluation import evaluate
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import train
from train.arrays.parameters import Parameters, random_parameters
from train.config import TrainSettings
from train.loss import nested_step
from train.objective import NestedLoss, equal_weights
from train.step import add_gradient_through_source_
from transcoder.formats.native import load_transcoder
from transcoder.rules.registry import make_rule
from transcoder.sharded import UNSHARDED


def changed(settings: TrainSettings, **values: Any) -> TrainSettings:
    return TrainSettings.model_validate(settings.model_dump() | {"kind": "sae"} | values)


@pytest.mark.parametrize("column", ["source", "target"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("subtract_b_dec", [False, True])
def test_the_saved_file_reconstructs_its_site(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, column: str, activation: str, subtract_b_dec: bool
) -> None:
    """With every convention of training, pre = W_enc source + b_enc; FVU as training stated, in the cache's units."""
    nesting = {"activation": activation, "subtract_b_dec": subtract_b_dec}
    config = train(small_cache, tmp_path / "run", changed(quick, side=column, **nesting))
    transcoder = load_transcoder(tmp_path / "run")
    assert (transcoder.kind, transcoder.column) == ("sae", column)
    assert config["source_site"] == config["target_site"] == {"source": "mlp_in", "target": "mlp_out"}[column]
    rows = open_cache(small_cache).split("held_out").rows(slice(0, 128))
    values = getattr(rows, column)[torch.from_numpy(rows.tokens != 0)].float()
    with torch.no_grad():
        # The training rule: batchtopk over these rows, which the threshold approximates.
        code = make_rule(activation, 4).select(transcoder.pre_activations(values))
        errors = (transcoder.reconstruct(code, values)[:, -1] - values).double().square().sum()
    fvu = errors / (values - values.mean(dim=0)).double().square().sum()
    assert float(fvu) == pytest.approx(config["held_out_fvu"], rel=1e-4)
    assert float(fvu) < 0.5


def test_a_stopped_run_ends_like_an_undisturbed_one(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    settings = changed(quick, subtract_b_dec=True)
    train(small_cache, tmp_path / "whole", settings)
    with pytest.raises(StoppedError):
        train(small_cache, tmp_path / "cut", settings, StopAt(24))
    train(small_cache, tmp_path / "cut", settings)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_is_evaluated_and_shown_on_its_own_site(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    config = train(small_cache, tmp_path / "run", changed(quick, side="target"))
    metrics = evaluate(small_cache, tmp_path / "run", tmp_path / "report")
    assert metrics["fvu"] == pytest.approx(config["held_out_fvu"], rel=1e-4)
    assert metrics["transcoder"]["kind"] == "sae"
    baselines = metrics["baselines"]
    assert baselines["affine"] is None
    assert len(baselines["pca_per_prefix"]) == 3
    assert metrics["fvu"] < baselines["pca_per_prefix"][-1] < 1
    summary = (tmp_path / "report" / "summary.txt").read_text()
    assert "beats as many principal axes" in summary
    assert "the best affine map." not in summary
    given = {"settings": FeatureSettings(), "device": "cpu", "progress": Silent()}
    head = features_of_layer(cache=small_cache, transcoder=tmp_path / "run", out=tmp_path / "features", **given)
    assert head["fvu_per_prefix"] == pytest.approx(metrics["fvu_per_prefix"], rel=1e-4)


def test_b_dec_in_the_encoder_gets_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = random_parameters(6, 6, dict_size=32, seed=1, dtype=torch.float64)
    for array in (weights.b_enc, weights.b_dec):
        array.copy_(torch.randn(array.shape, generator=generator, dtype=torch.float64))
    source = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    prefixes = (8, 32)
    rule = make_rule("topk", 4)
    loss = NestedLoss(prefixes, rule, target_variance=2.0, prefix_weights=equal_weights(prefixes))
    found = nested_step(weights, source - weights.b_dec, target=source, loss=loss).gradients
    add_gradient_through_source_(found, weights, shard=UNSHARDED)

    leaves = {name: array.clone().requires_grad_() for name, array in weights.tensors().items()}
    traced = Parameters(**leaves)
    pre = (source - traced.b_dec) @ traced.W_enc.T + traced.b_enc
    code = rule.select(pre).dense(32)
    value = sum(
        weight * (traced.b_dec + code[:, :end] @ traced.W_dec[:end] - source).square().sum()
        for weight, end in zip(loss.weight_of(20), prefixes, strict=True)
    )
    expected = torch.autograd.grad(value, list(leaves.values()))
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found.tensors()[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"kind": "sae", "skip": True}, "skip cannot be used with kind sae"),
        ({"kind": "sae", "source": "ln2_normalized"}, "as they are stored"),
        ({"side": "target"}, "belongs to kind sae"),
        ({"subtract_b_dec": True}, "are in different spaces"),
    ],
)
def test_what_only_makes_sense_for_another_kind_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainSettings.model_validate(values)
