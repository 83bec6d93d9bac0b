"""How the prefixes of a dictionary are given, and the checks of the numbers.

``prefixes`` are cumulative ends, [768, 2304, 5376, 12288]; ``group_sizes`` are the disjoint sizes between them,
[768, 1536, 3072, 6912]. They are two keys: which one is meant is never guessed from the numbers. The messages show the
sums, so that whoever confused the two sees it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

LARGEST_DICT_SIZE = 2**31 - 1
"""Features are numbered in 32 bits, with a sign, in the sparse code and in files."""


def boundaries_of(prefixes: tuple[int, ...] | None, group_sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The cumulative prefixes, if given in one of the two forms."""
    return tuple(accumulate(group_sizes)) if group_sizes else prefixes


def check_nesting(
    prefixes: tuple[int, ...] | None, group_sizes: tuple[int, ...] | None, *, dict_size: int | None, top_k: int | None
) -> None:
    """Raise ValueError for prefixes that are given twice, do not increase, or do not add up to ``dict_size``."""
    if prefixes and group_sizes:
        raise ValueError("prefixes and group_sizes set the same thing: give only one of them")
    ends = boundaries_of(prefixes, group_sizes)
    if ends is None:
        return
    if any(later <= earlier for earlier, later in pairwise(ends)):
        raise ValueError(f"prefixes {list(ends)} are cumulative and must increase strictly{_groups_hint(ends)}")
    size = _size_in_words(ends, group_sizes)
    if dict_size not in (None, ends[-1]):
        raise ValueError(f"{size}, but dict_size is {dict_size}{_groups_hint(ends, dict_size)}")
    if ends[-1] > LARGEST_DICT_SIZE:
        raise ValueError(f"{size}, but a dictionary must have fewer than 2^31 features")
    check_top_k(top_k, first_prefix=ends[0])


def check_top_k(top_k: int | None, *, first_prefix: int) -> None:
    """Raise ValueError if a row could use all features of the first prefix."""
    if top_k is not None and top_k > first_prefix:
        raise ValueError(
            f"top_k {top_k} exceeds the first prefix, {first_prefix} features: a row could use all of them, and "
            f"nothing would be selected; use a top_k of at most {first_prefix} or a larger first prefix"
        )


def _size_in_words(ends: Sequence[int], group_sizes: Sequence[int] | None) -> str:
    """How the dictionary's size follows from what was given."""
    if group_sizes:
        return f"group_sizes {' + '.join(map(str, group_sizes))} = {sum(group_sizes)}"
    return f"the last of prefixes {list(ends)} is {ends[-1]}"


def _groups_hint(ends: Sequence[int], dict_size: int | None = None) -> str:
    """A hint at the other key, if the same numbers would make sense as groups."""
    makes_sense = sum(ends) == dict_size if dict_size else list(ends) != sorted(ends)
    return f"; as group_sizes they would add up to {sum(ends)}" if makes_sense else ""
