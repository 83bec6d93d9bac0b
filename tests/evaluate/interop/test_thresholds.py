"""Thresholds at which every feature fires as often as it did under top-k."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.errors import UsageError
from common.progress import Silent
from evaluate.interop import thresholds
from evaluate.interop.thresholds import calibration_source, matched_thresholds, thresholds_for_counts
from transcoder.formats.native import load_transcoder


def test_each_column_is_exceeded_as_often_as_asked() -> None:
    pre = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) + 3
    counts = torch.arange(40) * 300 // 39
    assert [int(counts[0]), int(counts[-1])] == [0, 300]
    found = thresholds_for_counts(pre, counts)
    assert ((pre > found[:, None]).sum(dim=1) == counts).all()
    # Halfway between two neighbours, so that no rounding moves a row over it.
    third = pre[3].sort(descending=True).values
    assert found[3] == pytest.approx(float(third[counts[3] - 1] + third[counts[3]]) / 2)


def test_with_equal_or_negative_values_features_fire_less_often_never_more() -> None:
    pre = torch.tensor(
        [[2.0, 2.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0], [1.0, float(np.nextafter(np.float32(1), 0)), 0, 0]]
    )
    found = thresholds_for_counts(pre, torch.tensor([2, 3, 1]))
    assert (pre > found[:, None]).sum(dim=1).tolist() == [0, 0, 1]
    assert (found >= 0).all()


def test_a_transcoders_features_keep_their_rates(
    toy_cache: Path, toy_transcoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "_BLOCK_NUMBERS", 5000)  # several blocks
    reader, trained = CacheReader.open(toy_cache), load_transcoder(toy_transcoder)
    source = calibration_source(reader, trained, rows=512, device="cpu")
    assert 400 < len(source) < 512  # without the rows of special tokens
    rule = matched_thresholds(trained, source, progress=Silent())
    under_top_k = (trained.encode(source) > 0).sum(dim=0)
    under_thresholds = (trained.replaced(rule=rule).encode(source) > 0).sum(dim=0)
    assert torch.equal(under_top_k, under_thresholds)


def test_a_cache_without_training_rows_is_refused(
    tmp_path: Path, write_toy_cache: Callable[..., Path], toy_transcoder: Path
) -> None:
    reader = CacheReader.open(write_toy_cache(tmp_path / "cache", train_rows=0))
    with pytest.raises(UsageError, match="no training rows"):
        calibration_source(reader, load_transcoder(toy_transcoder), rows=10, device="cpu")
