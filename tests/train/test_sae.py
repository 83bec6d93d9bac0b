"""Autoencoders: one side of a cache, read and reconstructed; b_dec in the encoder, against autograd."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cache.open import open_cache
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from evaluate.run import evaluate_layer
from train.arrays.parameters import Parameters, random_parameters
from train.config import LogSettings, TrainSettings
from train.loss import nested_step
from train.objective import NestedLoss, equal_weights
from train.run import train_layer
from train.step import add_gradient_through_source_
from transcoder.formats.native import load_transcoder
from transcoder.rules.registry import make_rule
from transcoder.sharded import UNSHARDED


def changed(settings: TrainSettings, **values: Any) -> TrainSettings:
    return TrainSettings.model_validate(settings.model_dump() | {"kind": "sae"} | values)


def train(cache: Path, out: Path, settings: TrainSettings, progress: Silent | None = None) -> dict[str, Any]:
    given = {"device": "cpu", "fresh": False, "log": LogSettings(), "progress": progress or Silent()}
    return train_layer(cache=cache, out=out, settings=settings, **given)


class Stop(Silent):
    """Ends a run from within after 23 steps."""

    left = 23

    def advance(self, amount: int, **figures: float) -> None:
        self.left -= amount
        if self.left < 0:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("subtract_b_dec", [False, True])
def test_the_saved_file_reconstructs_its_side(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, side: str, activation: str, subtract_b_dec: bool
) -> None:
    """Whatever the convention of training, pre = W_enc source + b_enc; FVU as training said, in the cache's units."""
    nesting = {"activation": activation, "subtract_b_dec": subtract_b_dec}
    config = train(small_cache, tmp_path / "run", changed(quick, side=side, **nesting))
    transcoder = load_transcoder(tmp_path / "run")
    assert (transcoder.kind, transcoder.column) == ("sae", side)
    assert config["source_site"] == config["target_site"] == {"source": "mlp_in", "target": "mlp_out"}[side]
    rows = open_cache(small_cache).split("held_out").rows(slice(0, 128))
    values = getattr(rows, side)[torch.from_numpy(rows.tokens != 0)].float()
    with torch.no_grad():
        # The training rule: batchtopk's over these rows, which its threshold stands in for.
        code = make_rule(activation, 4).select(transcoder.pre_activations(values))
        errors = (transcoder.reconstruct(code, values)[:, -1] - values).double().square().sum()
    fvu = errors / (values - values.mean(dim=0)).double().square().sum()
    assert float(fvu) == pytest.approx(config["held_out_fvu"], rel=1e-4)
    assert float(fvu) < 0.5


def test_a_stopped_run_ends_as_one_that_was_not(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    settings = changed(quick, subtract_b_dec=True)
    train(small_cache, tmp_path / "whole", settings)
    with pytest.raises(RuntimeError, match="stopped"):
        train(small_cache, tmp_path / "cut", settings, Stop())
    train(small_cache, tmp_path / "cut", settings)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_is_evaluated_and_shown_on_its_own_side(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    config = train(small_cache, tmp_path / "run", changed(quick, side="target"))
    given = {"cache": small_cache, "transcoder": tmp_path / "run", "device": "cpu", "progress": Silent()}
    metrics = evaluate_layer(**given, out=tmp_path / "report", settings=EvaluateSettings())
    assert metrics["fvu"] == pytest.approx(config["held_out_fvu"], rel=1e-4)
    assert metrics["transcoder"]["kind"] == "sae"
    baselines = metrics["baselines"]
    assert baselines["affine"] is None
    assert len(baselines["pca_per_prefix"]) == 3
    assert metrics["fvu"] < baselines["pca_per_prefix"][-1] < 1
    summary = (tmp_path / "report" / "summary.txt").read_text()
    assert "beats as many principal axes" in summary
    assert "the best affine map." not in summary
    head = features_of_layer(**given, out=tmp_path / "features", settings=FeatureSettings())
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
        ({"kind": "sae", "skip": True}, "skip with kind sae"),
        ({"kind": "sae", "source": "ln2_normalized"}, "as it is stored"),
        ({"side": "target"}, "set kind to sae"),
        ({"subtract_b_dec": True}, "lives in another space"),
    ],
)
def test_what_only_makes_sense_for_another_kind_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainSettings.model_validate(values)
