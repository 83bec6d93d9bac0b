"""The rows farthest from the centre are those that sorting all rows gives, for any batches and processes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.largest_rows import LargestRows

VALUES = {"twice": ((), torch.float64)}


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.integers(1, 12),
    st.lists(st.integers(1, 40), max_size=4),
)
def test_the_largest_rows_are_those_of_a_sort_with_ties_by_row_number(
    distances: list[int], count: int, splits: list[int]
) -> None:
    distance = torch.tensor(distances, dtype=torch.float64)
    row = torch.randperm(len(distance), generator=torch.Generator().manual_seed(len(distance))) + 100
    largest = LargestRows(count, VALUES)
    state = largest.start()
    for piece in torch.arange(len(distance)).tensor_split(sorted(splits)):
        if len(piece):
            batch = largest.of_batch(distance[piece], row[piece], twice=2 * distance[piece])
            partial = largest.combine(largest.start(), batch)
            state = largest.combine(state, partial)
    found = largest.finish(state)
    expected = sorted(zip(distances, row.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))[:count]
    assert list(zip(found["distance"].tolist(), found["row"].tolist(), strict=True)) == expected
    assert torch.equal(found["twice"], 2 * found["distance"])


def test_the_shape_of_a_state_does_not_depend_on_the_rows() -> None:
    largest = LargestRows(3, VALUES)
    ones = torch.ones(9).double()
    state = largest.combine(largest.start(), largest.of_batch(ones, torch.arange(9), twice=ones))
    assert {name: array.shape for name, array in state.items()} == {
        name: array.shape for name, array in largest.start().items()
    }
    assert len(largest.finish(largest.start())["row"]) == 0
