"""The code of the rows, and what a row loses without a feature, against leaving the feature out."""

import numpy as np
import pytest
import torch

from common.errors import UsageError
from common.progress import Silent
from evaluate.features.code import encode_blocks, join


def test_entries_are_the_dense_code_of_the_rows_that_count(toy) -> None:
    code = toy.code
    rebuilt = np.zeros_like(toy.dense)
    rebuilt[code.row, code.feature] = code.value
    np.testing.assert_allclose(rebuilt, toy.dense, atol=1e-5)
    assert code.tokens == len(toy.kept)
    assert not np.isin(code.row, np.setdiff1d(np.arange(len(toy.dense)), toy.kept)).any()
    assert (np.diff(code.row) >= 0).all()


@pytest.mark.parametrize("feature", [3, 17, 40])
def test_the_loss_of_a_feature_is_that_of_leaving_it_out(toy, feature: int) -> None:
    prefix = next(end for end in toy.trained.prefixes if feature < end)
    dense = torch.from_numpy(toy.dense[toy.kept]).double()
    without = dense.clone()
    without[:, feature] = 0
    target = toy.target[toy.kept].double()
    centre = target.mean(dim=0)

    def fvu(code: torch.Tensor, end: int) -> float:
        made = toy.trained.b_dec.double() + code[:, :end] @ toy.trained.W_dec[:end].double()
        return float((target - made).square().sum() / (target - centre).square().sum())

    for name, end in (("fvu_lost", toy.trained.dict_size), ("fvu_lost_prefix", prefix)):
        expected = fvu(without, end) - fvu(dense, end)
        assert toy.evidence.arrays[name][feature] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    stated = toy.evidence.head["fvu_per_prefix"]
    assert stated == pytest.approx([fvu(dense, end) for end in toy.trained.prefixes], rel=1e-5)


def test_blocks_in_any_order_join_to_the_same_bytes(toy) -> None:
    starts = [block.start for block in toy.blocks]
    parts = [
        encode_blocks(
            toy.reader.split("held_out"),
            toy.trained,
            starts[first::3],
            rows=len(toy.dense),
            block_rows=toy.settings.block_rows,
            special_ids=(0,),
            progress=Silent(),
        )
        for first in (2, 0, 1)
    ]
    joined = join(block for blocks in parts for block in blocks)
    for name, column in vars(toy.code).items():
        assert np.array_equal(column, getattr(joined, name)), name


def test_rows_of_special_tokens_alone_are_refused(toy) -> None:
    with pytest.raises(UsageError, match="no rows here"):
        join([])
