"""The regressions satisfy the conditions that define their minimum, in float64."""

import pytest
import torch

from evaluate.absorption.logistic import f1_scores, fit_chosen, fit_dense, fit_l1, label_matrix
from transcoder.rules.topk import select_topk
from transcoder.sparse_code import SparseCode


def problem(rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    letter = (x[:, 0] + 0.5 * noise > 0.5).long() + (x[:, 1] > 1).long()
    return x, label_matrix(letter, 3)


def test_dense_probes_have_no_gradient_left() -> None:
    x, labels = problem()
    probes = fit_dense(x, labels)
    error = torch.sigmoid(probes.logits(x)) - labels.double()
    scaled = (x - x.mean(0)) / x.std()
    gradient = (scaled.T @ error + probes.weight * x.std()) / len(x)
    assert gradient.abs().max() < 1e-4
    assert error.mean(0).abs().max() < 1e-4


def test_moving_and_scaling_the_inputs_keeps_every_prediction() -> None:
    x, labels = problem()
    moved = 7.0 * x + 100.0
    torch.testing.assert_close(
        fit_dense(moved, labels).logits(moved), fit_dense(x, labels).logits(x), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("huge", [1.0, 100.0])
def test_l1_weights_satisfy_their_optimality_conditions(huge: float) -> None:
    """Also where a few rows are huge in one feature, as in layers of real models."""
    x, labels = problem()
    x[::60, 5] = huge * x[::60, 5].abs()
    code = select_topk(x, top_k=4)
    dense, share = code.dense(12), 0.2
    weight = fit_l1(code, labels, dict_size=12, share=share)
    rate = labels.double().mean(0)
    penalty = share * (dense.T @ (labels.double() - rate)).abs().amax(0) / len(x)
    for letter in range(3):
        bias = torch.zeros(1, dtype=torch.float64)
        for _ in range(200):
            bias -= 4 * (torch.sigmoid(dense @ weight[:, letter] + bias) - labels[:, letter].double()).mean()
        gradient = dense.T @ (torch.sigmoid(dense @ weight[:, letter] + bias) - labels[:, letter].double()) / len(x)
        used = weight[:, letter] != 0
        torch.testing.assert_close(gradient[used], -penalty[letter] * weight[used, letter].sign(), atol=1e-3, rtol=0)
        assert (gradient[~used].abs() <= penalty[letter] + 1e-3).all()
        assert 0 < used.sum() < 12


def test_the_l1_choice_does_not_depend_on_scale() -> None:
    x, labels = problem()
    code = select_topk(x, top_k=4)
    louder = SparseCode(code.values * 100, code.features, code.offsets)
    plain, loud = (fit_l1(each, labels, dict_size=12, share=0.2) for each in (code, louder))
    torch.testing.assert_close(loud * 100, plain, atol=1e-3, rtol=1e-3)


def test_every_class_is_fitted_on_its_own_columns() -> None:
    x, labels = problem()
    table = torch.stack([x[:, :2], x[:, 1:3], x[:, 2:4]])
    at_once = fit_chosen(table, labels.T).logits(table)
    for letter in range(3):
        alone = fit_chosen(table[letter : letter + 1], labels.T[letter : letter + 1]).logits(table[letter : letter + 1])
        torch.testing.assert_close(at_once[letter], alone[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("separable", [False, True])
def test_chosen_probes_have_no_gradient_left(separable: bool) -> None:
    """Also where a column tells the classes apart, so that the ridge alone keeps the weights finite."""
    x, labels = problem()
    table = torch.stack([x[:, :2], x[:, 1:3], x[:, 2:4]])
    wanted = table[:, :, 0] > 0.3 if separable else labels.T
    found = fit_chosen(table, wanted)
    scale = table.square().mean(1).sqrt()
    error = torch.sigmoid(found.logits(table)) - wanted.double()
    gradient = torch.einsum("crk,cr->ck", table / scale[:, None], error) + found.weight * scale
    assert gradient.abs().max() < 1e-3
    assert error.sum(dim=1).abs().max() < 1e-3


def test_f1_counts_hits_misses_and_false_alarms() -> None:
    predicted = torch.tensor([[True, False, False], [True, False, False], [False, False, False]])
    labels = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    assert f1_scores(predicted, labels).tolist() == [0.5, 0.0, 0.0]
