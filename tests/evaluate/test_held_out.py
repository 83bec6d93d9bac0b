"""Which held-out rows count, and their mean."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cache.reader import CacheReader
from common.errors import UsageError
from evaluate.held_out import open_held_out


def test_rows_of_special_tokens_do_not_count(toy_cache: Path) -> None:
    held_out = open_held_out(CacheReader.open(toy_cache))
    assert (held_out.masked, held_out.counted) == (100, 1500)
    assert held_out.documents == 40


def test_the_mean_target_is_that_of_the_rows_that_count(toy_cache: Path) -> None:
    held_out = open_held_out(CacheReader.open(toy_cache))
    rows = held_out.view.rows(slice(None))
    expected = rows.target[torch.from_numpy(~held_out.special)].double().mean(dim=0)
    torch.testing.assert_close(held_out.mean_target, expected, rtol=1e-12, atol=1e-12)


def test_no_held_out_rows_is_refused(write_toy_cache: Any, tmp_path: Path) -> None:
    cache = write_toy_cache(tmp_path / "cache", held_out_rows=0)
    with pytest.raises(UsageError, match="no held-out rows"):
        open_held_out(CacheReader.open(cache))
