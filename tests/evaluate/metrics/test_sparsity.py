"""L0, density and dead features against dense counting."""

from typing import Any

import numpy as np
import pytest
import torch

from evaluate.metrics.metric import Replayed
from evaluate.metrics.sparsity import Sparsity
from transcoder.rules.topk import select_topk

PREFIXES = (8, 24, 64)


@pytest.fixture
def codes() -> torch.Tensor:
    pre = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) - 1
    pre[:, 60:] = -9
    pre[:, 3] = 9
    return pre


def computed(pre: torch.Tensor, *, ultralow: float = 1.0, pieces: int = 1) -> dict[str, Any]:
    metric = Sparsity(PREFIXES, ultralow)
    state = metric.start()
    for rows in pre.chunk(pieces):
        none = torch.zeros(len(rows), dtype=torch.int64)
        selection = select_topk(rows, top_k=12)
        batch = Replayed(rows, rows, none, none, selection, rows[:, None].repeat(1, 3, 1), PREFIXES)
        state = metric.combine(state, metric.measure(batch))
    return metric.compute(state).fields


def test_counts_are_those_of_the_dense_code(codes: torch.Tensor) -> None:
    result = computed(codes, pieces=4)
    fires = (codes.relu() * torch.zeros_like(codes).scatter_(1, codes.topk(12).indices, 1.0) > 0).numpy()
    for summary, end in zip(result["sparsity"]["l0_per_prefix"], PREFIXES, strict=True):
        l0 = fires[:, :end].sum(1)
        assert summary["mean"] == pytest.approx(l0.mean())
        quantiles = np.quantile(l0, [0.5, 0.05, 0.95], method="inverted_cdf")
        assert [summary["median"], summary["p5"], summary["p95"]] == list(quantiles)
        assert result["sparsity"]["l0_histogram_per_prefix"][PREFIXES.index(end)] == np.bincount(l0).tolist()
    dead = fires.sum(0) == 0
    assert result["dead_fraction_per_prefix"] == pytest.approx([dead[:end].mean() for end in PREFIXES])
    assert result["sparsity"]["dead_tokens"] == 300
    assert result["dense_fraction"] == pytest.approx((fires.mean(0) > 0.1).mean())
    groups = result["sparsity"]["density_by_group"]
    assert [group["silent"] + sum(group["histogram"]) for group in groups] == [8, 16, 40]
    assert groups[2]["silent"] == int(dead[24:].sum())


def test_no_feature_is_called_dead_after_too_few_tokens(codes: torch.Tensor) -> None:
    result = computed(codes, ultralow=1e6)
    assert result["dead_fraction"] is None
    assert "300 tokens" in result["sparsity"]["dead_reason"]


def test_a_feature_that_always_fires_is_dense_with_density_1(codes: torch.Tensor) -> None:
    group = computed(codes)["sparsity"]["density_by_group"][0]
    assert group["histogram"][-1] >= 1
