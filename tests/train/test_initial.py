"""Where training begins: features that are rows of the cache, in any view and any number."""

from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader, View
from common.errors import UsageError
from train.arrays.parameters import Parameters
from train.arrays.units import units_of
from train.initial import initial_weights, order_of_rows


def begin(cache: Path, *, dict_size: int, view: View = "mlp_in", seed: int = 0) -> Parameters:
    reader = CacheReader.open(cache)
    units = units_of(reader, view)
    return initial_weights(reader, units, dict_size=dict_size, skip=True, view=view, seed=seed, device="cpu")


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


@pytest.mark.parametrize("view", ["mlp_in", "ln2_normalized"])
def test_encoder_and_decoder_of_a_feature_are_of_one_row(small_cache: Path, view: View) -> None:
    reader = CacheReader.open(small_cache, view=view)
    units = units_of(reader, view)
    rows = reader.split("train").rows(slice(0, 1000))
    ordinary = torch.from_numpy(rows.tokens != 0)
    source = unit(rows.source[ordinary] - units.source_mean)
    target = unit(rows.target[ordinary] - units.target_mean)
    weights = begin(small_cache, dict_size=64, view=view)
    alike = (unit(weights.W_enc) @ source.T) + (unit(weights.W_dec) @ target.T)
    best = alike.max(dim=1)
    assert float(best.values.min()) > 1.8  # two cosines; a little noise is in each
    assert best.indices.unique().numel() > 50  # some rows have the same direction
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(weights.W_enc.norm(dim=1), torch.full((64,), 0.2))
    mean = units.source_mean.float() * units.source_scale
    torch.testing.assert_close(weights.b_enc, -weights.W_enc @ mean)
    torch.testing.assert_close(weights.b_dec, units.target_mean.float() * units.target_scale)
    assert weights.W_skip is not None
    assert weights.W_skip.shape == (12, 8)
    assert not weights.W_skip.any()


def test_the_seed_decides(small_cache: Path) -> None:
    first, again, different = (begin(small_cache, dict_size=64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, different.W_dec)


def test_rows_become_features_in_the_order_of_the_draw() -> None:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order_of_rows(rows), torch.arange(300))


def test_where_a_few_rows_have_most_of_the_variance_the_largest_come_first() -> None:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    large = torch.arange(290, 300)
    rows[large] *= torch.arange(20.0, 30.0)[:, None]
    sizes = rows.square().sum(dim=1)
    share = sizes.sort(descending=True).values[:3].sum() / sizes.sum()
    assert share > 0.15
    order = order_of_rows(rows)
    largest = sizes.argsort(descending=True)[:8]
    assert torch.equal(order[:8], largest)
    others = [row for row in range(300) if row not in largest.tolist()]
    assert order[8:].tolist() == others


def test_no_share_can_be_taken_of_equal_rows() -> None:
    assert torch.equal(order_of_rows(torch.zeros(5, 3)), torch.arange(5))


def test_more_features_than_rows_are_all_different(small_cache: Path) -> None:
    """Two equal features would stay equal: both would get the same gradient."""
    weights = begin(small_cache, dict_size=3000)
    assert weights.W_enc.unique(dim=0).shape == (3000, 12)
    assert weights.W_dec.unique(dim=0).shape == (3000, 8)


def test_a_cache_of_special_tokens_only_is_refused(special_cache: Path, small_cache: Path) -> None:
    units = units_of(CacheReader.open(small_cache), "mlp_in")
    with pytest.raises(UsageError, match="Every training row of this cache belongs to a special token"):
        initial_weights(
            CacheReader.open(special_cache), units, dict_size=8, skip=False, view="mlp_in", seed=0, device="cpu"
        )
