"""The plain trainer that ours is compared with: its loss is ours without the balance, and it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.support.plain_trainer import Plain, save_plain, train_plain
from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.writer import CacheWriter
from train.arrays.parameters import Parameters
from train.arrays.units import units_of
from train.objective import NestedLoss, equal_weights
from train.reference import reference_step
from transcoder.formats.native import load_transcoder
from transcoder.rules.topk import TopK

PREFIXES = (8, 24)


@pytest.fixture
def reader(tmp_path: Path) -> CacheReader:
    """600 rows, sums of a few of 20 directions; one dimension is large."""
    generator = torch.Generator().manual_seed(0)
    code = torch.rand(600, 20, generator=generator) * (torch.rand(600, 20, generator=generator) < 0.1)
    source, target = (code @ torch.randn(20, width, generator=generator) for width in (12, 8))
    target[:, 3] *= 20
    sizes = {"d_source": 12, "d_target": 8, "train_rows": 500, "held_out_rows": 100, "special_ids": []}
    settings = CacheSettings(dtype="float32", chunk_rows=16, shard_rows=64, segment_rows=256)
    identity = {"model": "tiny", "layer": 0}
    with CacheWriter(tmp_path / "cache", identity=identity, settings=settings, arrays={}, **sizes) as writer:
        for held_out, rows_of_split in ((False, slice(0, 500)), (True, slice(500, 600))):
            rows = np.arange(600)[rows_of_split]
            columns = (np.ones(len(rows), np.int32), rows // 50, (rows % 50).astype(np.int32))
            writer.append(source[rows_of_split], target[rows_of_split], *columns, held_out=held_out, cursor=None)
    return CacheReader.open(tmp_path / "cache")


def test_loss_and_gradient_are_ours_without_the_balance(reader: CacheReader) -> None:
    units = units_of(reader, "mlp_in", "whole")
    plain = Plain(units, d_source=12, dict_size=24, seed=1)
    rows = reader.split("train").rows(slice(0, 64))
    source, target = units.source(rows.source), units.target(rows.target)
    loss, fired = plain.loss(source, target, prefixes=PREFIXES, top_k=3, dead=torch.empty(0, dtype=torch.int64))
    loss.backward()
    weights = Parameters(**{name: array.detach() for name, array in plain.named_parameters()})
    nested = NestedLoss(PREFIXES, TopK(3), 8.0, equal_weights(PREFIXES))
    expected, _, gradients = reference_step(weights, source, target=target, loss=nested)
    torch.testing.assert_close(loss.detach(), expected)
    for name, gradient in gradients.tensors().items():
        torch.testing.assert_close(getattr(plain, name).grad, gradient, msg=name)
    assert 0 < int(fired.sum()) <= 24


def test_the_auxiliary_loss_is_the_fraction_that_dead_features_do_not_explain(reader: CacheReader) -> None:
    plain = Plain(units_of(reader, "mlp_in", "whole"), d_source=12, dict_size=24, seed=1)
    source, target = torch.randn(32, 12), torch.randn(32, 8)
    dead = torch.tensor([2, 5, 11])
    none = torch.empty(0, dtype=torch.int64)
    extra = plain.loss(source, target, prefixes=PREFIXES, top_k=3, dead=dead)[0]
    extra = extra - plain.loss(source, target, prefixes=PREFIXES, top_k=3, dead=none)[0]
    pre = source @ plain.W_enc.T + plain.b_enc
    code = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values.relu())
    missing = target - code @ plain.W_dec - plain.b_dec
    # half of the width is 4: all three dead features are used, and count three quarters
    left = (pre[:, dead].relu() @ plain.W_dec[dead] - missing).square().sum()
    expected = left / (missing - missing.mean(dim=0)).square().sum() / 32 * 3 / 4
    torch.testing.assert_close(extra, expected)


def test_it_learns_and_is_saved_in_the_units_of_the_cache(reader: CacheReader, tmp_path: Path) -> None:
    def held_out_fvu(lr: float) -> float:
        transcoder = train_plain(
            reader, prefixes=PREFIXES, top_k=3, steps=200, batch_rows=50, lr=lr, dead_after_tokens=500
        )
        save_plain(transcoder, tmp_path / "plain", reader)
        saved = load_transcoder(tmp_path / "plain")
        torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(24))
        rows = reader.split("held_out").rows(slice(0, 100))
        output = saved.reconstruct(saved.sparse_code(rows.source.float()), rows.source.float())[:, -1]
        target = rows.target.float()
        return float((output - target).square().sum() / (target - target.mean(dim=0)).square().sum())

    assert held_out_fvu(lr=1e-9) > 0.6
    assert held_out_fvu(lr=0.02) < 0.3
