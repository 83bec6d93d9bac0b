"""Prefixes in their two forms: what they come to, and the sums in the message where they do not."""

import pytest

from train.nesting import LARGEST_DICT_SIZE, boundaries_of, check_nesting, check_top_k

NUMBERS = (768, 1536, 3072, 6912)


def test_groups_and_prefixes_are_two_keys() -> None:
    assert boundaries_of(None, NUMBERS) == (768, 2304, 5376, 12288)
    assert boundaries_of(NUMBERS, None) == NUMBERS
    assert boundaries_of(None, None) is None


@pytest.mark.parametrize(
    ("prefixes", "group_sizes", "dict_size", "message"),
    [
        (NUMBERS, None, 12288, "is 6912, but dict_size is 12288; as group_sizes they would add up to 12288"),
        ((6912, 3072), None, None, "must increase strictly; as group_sizes they would add up to 9984"),
        (None, (1, 2, 4), 8, r"1 \+ 2 \+ 4 = 7, but dict_size is 8"),
        ((64, 64), None, None, "must increase strictly$"),
        ((8, 16), (8, 8), None, "set the same thing"),
        (None, (2**30, 2**30), None, "fewer than 2\\^31 features"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_sums(
    prefixes: tuple[int, ...] | None, group_sizes: tuple[int, ...] | None, dict_size: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_nesting(prefixes, group_sizes, dict_size=dict_size, top_k=None)


def test_what_adds_up_is_taken() -> None:
    check_nesting(None, NUMBERS, dict_size=12288, top_k=768)
    check_nesting((1, LARGEST_DICT_SIZE), None, dict_size=None, top_k=1)
    check_nesting(None, None, dict_size=None, top_k=10**6)


def test_a_row_may_not_use_all_of_the_first_prefix() -> None:
    check_top_k(8, first_prefix=8)
    with pytest.raises(ValueError, match="top_k 9 exceeds the first prefix, 8 features"):
        check_top_k(9, first_prefix=8)
