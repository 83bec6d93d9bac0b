"""Redundancy against the full cosine matrix."""

import pytest
import torch

from evaluate.metrics.redundancy import redundancy


@pytest.mark.parametrize("block", [7, 16, 1000])
def test_blocks_give_what_the_full_matrix_gives(block: int) -> None:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[50:] = rows[10:20] * 3
    rows[5] = rows[4] + 0.01
    cosine = torch.nn.functional.normalize(rows, dim=1)
    cosine = (cosine @ cosine.T).fill_diagonal_(-1)
    result = redundancy(rows, (6, 20, 60), block=block)
    for found, end in zip(result["per_prefix"], (6, 20, 60), strict=True):
        block = cosine[:end, :end]
        assert found["mean_max_cosine"] == pytest.approx(float(block.amax(1).mean()), abs=1e-6)
        assert found["twin_share"] == pytest.approx(float((block.amax(1) > 0.9).float().mean()))
        assert found["pair_share"] == pytest.approx(int((block > 0.9).sum()) / end / (end - 1))
    assert result["twin_share"] == result["per_prefix"][-1]["twin_share"]


def test_duplicating_half_the_rows_moves_the_twin_share_and_hardly_the_pair_share() -> None:
    rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    result = redundancy(torch.cat([rows, rows]), (400,), block=64)
    assert result["twin_share"] == 1
    assert result["pair_share"] < 0.003


def test_a_single_feature_has_no_twin() -> None:
    alone = redundancy(torch.ones(1, 4), (1,), block=8)
    assert alone["twin_share"] == 0
    assert alone["mean_max_cosine"] is None
