"""The sparse code against its dense matrix."""

import pytest
import torch

from transcoder.sparse_code import (
    SparseCode,
    columns_of,
    entries_of,
    firing_below,
    largest_sums,
    rows_of,
    stacked,
)

DENSE = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.5, 4.0]])


def code_of(dense: torch.Tensor) -> SparseCode:
    rows, features = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(dense))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    return SparseCode(dense[rows, features], features.int(), offsets)


@pytest.fixture
def code() -> SparseCode:
    return code_of(DENSE)


def test_dense_writes_the_zeros_out(code: SparseCode) -> None:
    assert code.row_count == 3
    assert code.rows().tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(code.dense(4), DENSE)
    assert torch.equal(code.dense(6), torch.nn.functional.pad(DENSE, (0, 2)))


def test_stacked_codes_are_the_code_of_stacked_rows(code: SparseCode) -> None:
    assert torch.equal(stacked([code, code, code_of(DENSE[:0])]).dense(4), torch.cat([DENSE, DENSE]))
    assert stacked([code]) is code


def test_a_slice_of_the_code_is_the_slice_of_the_matrix(code: SparseCode) -> None:
    assert torch.equal(entries_of(code, code.values > 1).dense(4), DENSE * (DENSE > 1))
    wanted = torch.tensor([False, True, True])
    assert torch.equal(rows_of(code, wanted).dense(4), DENSE[wanted])
    assert torch.equal(columns_of(code, torch.tensor([3, 0]), dict_size=4), DENSE[:, [3, 0]])
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(firing_below(code, 3, norms).dense(3), (DENSE * norms)[:, :3])


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_largest_sums_are_those_of_sorted_rows(code: SparseCode, limit: int) -> None:
    expected = DENSE.sort(dim=1, descending=True).values[:, :limit].sum(dim=1)
    found = largest_sums(code.rows().long(), code.values, code.row_count, limit=limit)
    torch.testing.assert_close(found, expected)
