"""The names and numbers of the log."""

import dataclasses

import pytest
import torch

from train.record.step_metrics import StepMetrics


def number(value: float) -> torch.Tensor:
    return torch.tensor(value)


METRICS = StepMetrics(
    l2_loss=number(2.0), aux_loss=number(0.5), batch_fvu=torch.tensor([0.5, 0.25]), l0=torch.tensor([3.0, 8.0]),
    dead=number(0.125), gradient_norm=number(1.5), lr=1e-3,
)  # fmt: skip


def test_the_loss_is_the_sum_of_its_terms() -> None:
    assert METRICS.as_dict()["loss"] == 2.5
    assert "sparsity_loss" not in METRICS.as_dict()
    penalised = dataclasses.replace(METRICS, sparsity_loss=number(0.25)).as_dict()
    assert (penalised["loss"], penalised["sparsity_loss"]) == (2.75, 0.25)


def test_the_last_prefix_is_the_whole_dictionary() -> None:
    found = METRICS.as_dict()
    assert (found["batch_fvu"], found["batch_fvu_min"], found["batch_fvu_max"]) == (0.25, 0.25, 0.5)
    assert found["batch_fvu_mean"] == pytest.approx(0.375)
    assert (found["l0"], found["l0_per_prefix"]) == (8.0, [3.0, 8.0])
    assert (found["dead"], found["gradient_norm"], found["lr"]) == (0.125, 1.5, 1e-3)


def test_every_one_of_several_layers_is_named() -> None:
    assert "batch_fvu_per_layer" not in METRICS.as_dict()
    joint = dataclasses.replace(METRICS, batch_fvu_per_layer=torch.tensor([0.5, 0.0]))
    assert joint.as_dict()["batch_fvu_per_layer"] == [0.5, 0.0]
