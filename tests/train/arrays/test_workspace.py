"""The memory that a step writes into: blocks of rows if rows are independent, and weights rounded when necessary."""

import pytest
import torch

from train.arrays.parameters import random_parameters
from train.arrays.workspace import BLOCK_ROWS, Workspace
from transcoder.rules.registry import make_rule


@pytest.mark.parametrize(("rule", "rows", "block"), [
    ("topk", 2000, BLOCK_ROWS), ("topk", 100, 100), ("jumprelu", 2000, BLOCK_ROWS), ("batchtopk", 2000, 2000),
])  # fmt: skip
def test_pre_activations_are_of_a_block_unless_the_rule_needs_all_rows(rule: str, rows: int, block: int) -> None:
    weights = random_parameters(6, 5, dict_size=16)
    workspace = Workspace.like(weights, rows=rows, rule=make_rule(rule, 3))
    assert workspace.pre.shape == (block, 16)
    shapes = {name: array.shape for name, array in weights.tensors().items()}
    assert {name: array.shape for name, array in workspace.gradients.tensors().items()} == shapes


def test_in_the_same_dtype_the_weights_are_the_master_weights() -> None:
    weights = random_parameters(6, 5, dict_size=16)
    workspace = Workspace.like(weights, rows=8, rule=make_rule("topk", 3))
    assert workspace.weights is None
    assert workspace.compute_weights(weights) is weights


def test_in_another_dtype_weights_are_rounded_unless_an_update_did() -> None:
    weights = random_parameters(6, 5, dict_size=16)
    workspace = Workspace.like(weights, rows=8, rule=make_rule("topk", 3), dtype=torch.bfloat16)
    assert workspace.pre.dtype == torch.bfloat16
    assert torch.equal(workspace.compute_weights(weights).W_enc, weights.W_enc.bfloat16())
    weights.W_enc.mul_(2)
    workspace.is_current = True
    assert torch.equal(workspace.compute_weights(weights).W_enc, (weights.W_enc / 2).bfloat16())
    assert torch.equal(workspace.compute_weights(weights).W_enc, weights.W_enc.bfloat16())
