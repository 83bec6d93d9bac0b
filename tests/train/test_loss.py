"""The sparse step against the dense reference, in float64."""

import dataclasses

import pytest
import torch

from train.arrays.parameters import Parameters, random_parameters
from train.arrays.workspace import Workspace
from train.loss import nested_step
from train.objective import NestedLoss, dimension_scale, equal_weights
from train.reference import reference_prefixes, reference_step
from transcoder.decode import decode_prefixes
from transcoder.rules.registry import make_rule

PREFIXES = (16, 40, 41, 96, 160)


def problem(*, activation, skip, prefix_weights=None, dtype=torch.float64):
    torch.manual_seed(3)
    weights = random_parameters(12, 10, dict_size=160, skip=skip, seed=1, dtype=dtype)
    for array in weights.tensors().values():
        array.add_(torch.randn_like(array), alpha=0.1)
    source, target = torch.randn(33, 12, dtype=dtype), torch.randn(33, 10, dtype=dtype)
    source[7] *= 1e-3  # under batchtopk this row gets few features
    loss = NestedLoss(
        prefixes=PREFIXES,
        rule=make_rule(activation, 6),
        target_variance=7.5,
        prefix_weights=prefix_weights or equal_weights(PREFIXES),
    )
    return weights, source, target, loss


def relative(value, expected):
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("prefix_weights", [None, (0.4, 0.1, 0.3, 0.2, 0.0)])
def test_loss_and_gradients_equal_the_dense_reference(activation, skip, prefix_weights):
    weights, source, target, loss = problem(activation=activation, skip=skip, prefix_weights=prefix_weights)
    value, sse, gradients = reference_step(weights, source, target=target, loss=loss)
    result = nested_step(weights, source, target=target, loss=loss)
    assert float(result.loss) == pytest.approx(float(value), rel=1e-12)
    assert relative(result.sse, sse) < 1e-12
    ours = result.gradients.tensors()
    for name, expected in gradients.tensors().items():
        assert relative(ours[name], expected) < 1e-10, name


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_counts_are_those_of_the_dense_code(activation):
    weights, source, target, loss = problem(activation=activation, skip=False)
    result = nested_step(weights, source, target=target, loss=loss)
    code = loss.rule.select(source @ weights.W_enc.T + weights.b_enc).dense(160)
    assert result.l0.tolist() == [float((code[:, :p] > 0).sum()) / 33 for p in PREFIXES]
    assert torch.equal(result.fired, (code > 0).any(dim=0))


@pytest.mark.parametrize("skip", [False, True])
def test_scaled_dimensions_have_the_reference_gradient_and_a_plain_residual(skip):
    weights, source, target, loss = problem(activation="topk", skip=skip)
    scaled = dataclasses.replace(loss, dimension_scale=torch.linspace(0.1, 5, 10, dtype=torch.float64))
    value, sse, gradients = reference_step(weights, source, target=target, loss=scaled)
    result = nested_step(weights, source, target=target, loss=scaled)
    assert float(result.loss) == pytest.approx(float(value), rel=1e-12)
    assert relative(result.sse, sse) < 1e-12
    ours = result.gradients.tensors()
    for name, expected in gradients.tensors().items():
        assert relative(ours[name], expected) < 1e-10, name
    plain = nested_step(weights, source, target=target, loss=loss)
    assert relative(result.residual, plain.residual) < 1e-12
    assert relative(result.sse, plain.sse) > 0.1


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_loss_is_the_pooled_and_the_whitened_fvu_by_balance(balance):
    weights, source, target, loss = problem(activation="topk", skip=False)
    variance = torch.tensor([1e-3, 0.5, 2.0, 400.0, 1, 1, 1, 1, 1, 30], dtype=torch.float64)
    balanced = dataclasses.replace(
        loss, target_variance=float(variance.sum()), dimension_scale=dimension_scale(variance, balance)
    )
    code = loss.rule.select(source @ weights.W_enc.T + weights.b_enc).dense(160)
    errors = reference_prefixes(weights, source, code=code, prefixes=PREFIXES) - target[:, None]
    by_dimension = errors.square().mean(dim=0)
    pooled = by_dimension.sum(dim=1) / variance.sum()
    whitened = (by_dimension / variance).mean(dim=1)
    expected = ((1 - balance) * pooled + balance * whitened).mean()
    result = nested_step(weights, source, target=target, loss=balanced)
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-6)


def test_every_prefix_moves_the_gradient():
    weights, source, target, loss = problem(activation="topk", skip=False)
    last_alone = dataclasses.replace(loss, prefix_weights=(0.0, 0.0, 0.0, 0.0, 1.0))
    nested = nested_step(weights, source, target=target, loss=loss).gradients
    plain = nested_step(weights, source, target=target, loss=last_alone).gradients
    assert relative(nested.W_dec, plain.W_dec) > 0.1
    assert relative(nested.W_enc, plain.W_enc) > 0.1


def test_residual_is_the_whole_dictionarys_error():
    weights, source, target, loss = problem(activation="topk", skip=True)
    result = nested_step(weights, source, target=target, loss=loss)
    code = result.code.dense(160)
    expected = reference_prefixes(weights, source, code=code, prefixes=PREFIXES)[:, -1] - target
    assert relative(result.residual, expected) < 1e-12


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_watched_pre_activations_are_those_of_their_features(activation):
    weights, source, target, loss = problem(activation=activation, skip=False)
    watch = torch.tensor([3, 50, 159])
    result = nested_step(weights, source, target=target, loss=loss, watch=watch)
    assert relative(result.watched, (source @ weights.W_enc.T + weights.b_enc)[:, watch]) < 1e-12
    assert nested_step(weights, source, target=target, loss=loss).watched.shape == (33, 0)


def test_decode_prefixes_equals_a_product_for_each_prefix():
    weights, source, _, loss = problem(activation="batchtopk", skip=False)
    selection = loss.rule.select(source @ weights.W_enc.T + weights.b_enc)
    decoded = decode_prefixes(selection, weights.W_dec, weights.b_dec, prefixes=PREFIXES)
    expected = reference_prefixes(weights, source, code=selection.dense(160), prefixes=PREFIXES)
    assert relative(decoded, expected) < 1e-12


def test_sums_of_squares_are_exact_in_float32():
    # One float32 sum over half a million squares would be off in the fourth digit.
    weights = random_parameters(4, 64, dict_size=16)
    target = torch.full((8192, 64), 1.1)
    loss = NestedLoss(prefixes=(16,), rule=make_rule("topk", 1), target_variance=1.0, prefix_weights=(1.0,))
    result = nested_step(weights, torch.zeros(8192, 4), target=target, loss=loss)
    assert float(result.sse[0]) == pytest.approx(float(target.double().square().sum()), rel=1e-6)


def test_the_step_is_the_same_every_time():
    weights, source, target, loss = problem(activation="topk", skip=True, dtype=torch.float32)
    first = nested_step(weights, source, target=target, loss=loss).gradients.tensors()
    second = nested_step(weights, source, target=target, loss=loss).gradients.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_workspace_changes_nothing(activation):
    weights, source, target, loss = problem(activation=activation, skip=True)
    workspace = Workspace.like(weights, rows=40, rule=loss.rule)
    nested_step(
        weights,
        torch.randn(40, 12, dtype=torch.float64),
        target=torch.ones(40, 10).double(),
        loss=loss,
        workspace=workspace,
    )
    fresh = nested_step(weights, source, target=target, loss=loss).gradients.tensors()
    reused = nested_step(weights, source, target=target, loss=loss, workspace=workspace).gradients
    assert reused is workspace.gradients
    assert all(torch.equal(fresh[name], array) for name, array in reused.tensors().items())


def test_blocks_of_rows_and_features_change_nothing():
    weights = random_parameters(6, 5, dict_size=1200, dtype=torch.float64)
    source, target = torch.randn(1100, 6, dtype=torch.float64), torch.randn(1100, 5, dtype=torch.float64)
    loss = NestedLoss(prefixes=(100, 1200), rule=make_rule("topk", 4), target_variance=1.0, prefix_weights=(0.5, 0.5))
    value, _, gradients = reference_step(weights, source, target=target, loss=loss)
    result = nested_step(weights, source, target=target, loss=loss)
    assert float(result.loss) == pytest.approx(float(value), rel=1e-12)
    assert relative(result.gradients.W_enc, gradients.W_enc) < 1e-10
    assert relative(result.gradients.W_dec, gradients.W_dec) < 1e-10


def test_projection_leaves_nothing_along_unit_rows():
    weights, source, target, loss = problem(activation="topk", skip=False)
    weights.W_dec.div_(weights.W_dec.norm(dim=1, keepdim=True))
    gradient = nested_step(weights, source, target=target, loss=loss).gradients.W_dec
    projected = nested_step(weights, source, target=target, loss=loss, project=True).gradients.W_dec
    along = (gradient * weights.W_dec).sum(dim=1, keepdim=True)
    assert relative(projected, gradient - along * weights.W_dec) < 1e-12


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_bfloat16_compute_is_as_close_as_its_rounding(activation):
    weights, source, target, loss = problem(activation=activation, skip=True, dtype=torch.float32)
    rounded = {name: array.bfloat16().float() for name, array in weights.tensors().items()}
    weights, source = Parameters(**rounded), source.bfloat16().float()
    exact = nested_step(weights, source, target=target, loss=loss)
    workspace = Workspace.like(weights, rows=33, rule=loss.rule, dtype=torch.bfloat16)
    result = nested_step(weights, source.bfloat16(), target=target, loss=loss, workspace=workspace)
    assert relative(result.sse, exact.sse) < 0.01
    for name, array in result.gradients.tensors().items():
        assert array.dtype == torch.float32
        assert relative(array, exact.gradients.tensors()[name]) < 0.1, name  # a few selections flip
