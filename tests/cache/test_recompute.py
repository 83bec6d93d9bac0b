"""A cache that keeps no target gives the one that the layer's MLP computes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from cache.config import CacheSettings
from cache.loader import Batch, Loader
from cache.reader import CacheReader, SplitView
from cache.storage.recompute import ACTIVATIONS, Mlp, mlp_of_arrays
from cache.tools.pack import pack_cache
from cache.tools.verify import verify_cache
from cache.writer import CacheWriter
from common.errors import DamagedError, NumericalError, UsageError
from tests.harvest.model import cards
from train.arrays.units import units_of
from train.initial import initial_weights
from train.run import _why_not_finite

ROWS, HELD_OUT, WIDTH, INNER = 96, 20, 16, 40


def random_mlp(*, gated, dtype=torch.float32, activation="gelu_new"):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    if gated:
        gain = 1 + 0.1 * torch.randn(WIDTH, generator=generator)
        return Mlp(
            activation, 1e-6, tensor(INNER, WIDTH), tensor(WIDTH, INNER), gate=tensor(INNER, WIDTH), post_gain=gain
        )
    biases = {"up_bias": tensor(INNER), "down_bias": tensor(WIDTH)}
    return Mlp(activation, 0.0, tensor(INNER, WIDTH), tensor(WIDTH, INNER), **biases)


def five_lines(mlp, x):
    """In float64, by the equations of the module's docstring."""
    w = {
        name: getattr(mlp, name).double()
        for name in ("up", "down", "gate", "up_bias", "down_bias")
        if getattr(mlp, name) is not None
    }
    act = {"gelu_new": lambda h: torch.nn.functional.gelu(h, approximate="tanh"), "silu": torch.nn.functional.silu}[
        mlp.activation
    ]
    up = x @ w["up"].T + w.get("up_bias", 0)
    y = (act(x @ w["gate"].T) * up if "gate" in w else act(up)) @ w["down"].T + w.get("down_bias", 0)
    return (
        y
        if mlp.post_gain is None
        else y / (y.square().mean(-1, keepdim=True) + mlp.epsilon).sqrt() * mlp.post_gain.double()
    )


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def written(request, tmp_path_factory):
    """The same rows in a cache that stores the target and in one that recomputes it."""
    mlp = random_mlp(gated=request.param == "gemma2", activation="silu" if request.param == "gemma2" else "gelu_new")
    source = torch.randn(ROWS + HELD_OUT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    found = SimpleNamespace(mlp=mlp, source=source, path={})
    for target in ("stored", "recompute"):
        found.path[target] = tmp_path_factory.mktemp(target)
        write(found.path[target], source, mlp, target=target)
    return found


def write(path, source, mlp, *, target, wrong=0.0, **settings):
    small = {"chunk_rows": 8, "shard_rows": 16, "segment_rows": 32, "held_out_fraction": 0.25, "dtype": "bfloat16"}
    options = CacheSettings(**small | settings, target=target)
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": ROWS, "held_out_rows": HELD_OUT}
    arrays = mlp.arrays() if target == "recompute" else {}
    with CacheWriter(path, identity={}, settings=options, special_ids=[0], arrays=arrays, **sizes) as writer:
        index = np.arange(len(source))
        columns = (index % 9).astype(np.int32), index // 9, (index % 9).astype(np.int32)
        for held_out, rows in ((False, slice(0, ROWS)), (True, slice(ROWS, None))):
            given = mlp.target(source[rows]) + wrong * torch.randn(len(source[rows]), WIDTH)
            writer.append(source[rows], given, *(c[rows] for c in columns), held_out=held_out, cursor=int(held_out))
        assert writer.complete


@pytest.mark.parametrize("gated", [False, True])
def test_the_mlp_is_its_equations(gated):
    mlp = random_mlp(gated=gated, activation="silu" if gated else "gelu_new")
    x = torch.randn(2100, WIDTH)
    torch.testing.assert_close(mlp.target(x).double(), five_lines(mlp, x.double()), rtol=1e-4, atol=1e-5)


def test_the_target_is_that_of_the_stored_source(written):
    stored, computed = (CacheReader.open(written.path[name]) for name in ("stored", "recompute"))
    for name in ("train", "held_out"):
        rows, expected = (reader.split(name).rows(slice(None)) for reader in (computed, stored))
        assert torch.equal(rows.source, expected.source)
        assert rows.target.dtype == torch.bfloat16
        exact = five_lines(written.mlp, rows.source.double())
        torch.testing.assert_close(rows.target.double(), exact, rtol=2e-2, atol=1e-3)
        error = (rows.target.double() - expected.target.double()).square().sum()
        assert error < 1e-4 * expected.target.double().var(dim=0).sum() * len(rows.target)


def test_it_takes_half_the_disk_and_says_what_recomputing_costs(written):
    stored, computed = (CacheReader.open(written.path[name]) for name in ("stored", "recompute"))
    assert not (written.path["recompute"] / "rows.zarr/train/target").exists()
    assert "target" not in zarr.open_group(written.path["recompute"] / "rows.zarr", mode="r")["train"]
    for name in ("train", "held_out"):
        found, expected = (reader.split(name).statistics.target for reader in (computed, stored))
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(found.spread, expected.spread, rtol=1e-12)
        assert 0 < found.storage_floor < 1e-4
    assert stored.fingerprint != computed.fingerprint


def test_the_loader_serves_computed_targets(written):
    reader = CacheReader.open(written.path["recompute"])
    with Loader(reader, batch_rows=10, seed=0, epochs=1) as loader:
        for batch in loader:
            assert torch.equal(batch.target, reader.mlp.target(batch.source).bfloat16())


@pytest.mark.parametrize("settings", [{"codec": "zstd"}, {"dtype": "float16"}, {"dtype": "float32"}, {"dtype": "int8"}])
def test_recomputing_works_with_every_codec_and_dtype(written, tmp_path, settings):
    write(tmp_path / "cache", written.source, written.mlp, target="recompute", **settings)
    assert not verify_cache(tmp_path / "cache").faults
    rows = CacheReader.open(tmp_path / "cache").split("train").rows(slice(0, 20))
    torch.testing.assert_close(
        rows.target.double(), five_lines(written.mlp, rows.source.double()), rtol=2e-2, atol=1e-2
    )


def test_it_can_be_packed(written, tmp_path, tree):
    pack_cache(written.path["recompute"], tmp_path / "packed", codec="blosc-lz4")
    pack_cache(tmp_path / "packed", tmp_path / "back", codec="none")
    assert tree(tmp_path / "back") == tree(written.path["recompute"])


def test_targets_that_the_mlp_does_not_give_are_refused(written, tmp_path):
    with pytest.raises(NumericalError, match=r"does not give the harvested target: FVU"):
        write(tmp_path / "cache", written.source, written.mlp, target="recompute", wrong=1.0)
    with pytest.raises(DamagedError, match="MLP cannot be read"):
        write(
            tmp_path / "other",
            written.source,
            SimpleNamespace(arrays=dict, target=written.mlp.target),
            target="recompute",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_mlp_comes_back_from_its_arrays_bit_for_bit(dtype):
    mlp = random_mlp(gated=True, dtype=dtype, activation="silu")
    back, x = mlp_of_arrays(mlp.arrays()), torch.randn(5, WIDTH)
    assert torch.equal(back.target(x), mlp.target(x))
    assert back.target(x).dtype == dtype


def test_arrays_that_make_no_mlp_are_damage():
    arrays = random_mlp(gated=False).arrays()
    stored = json.loads(arrays["mlp.json"].tobytes())
    for change in (
        {"activation": "__import__"},
        {"dtype": "object"},
        {"dtype": "bfloat16"},
        {"epsilon": "x"},
        {"epsilon": None},
    ):
        text = np.frombuffer(json.dumps(stored | change).encode(), np.uint8)
        with pytest.raises(DamagedError):
            mlp_of_arrays(arrays | {"mlp.json": text})
    for name in ("mlp.json", "mlp.up", "mlp.down"):
        with pytest.raises(DamagedError):
            mlp_of_arrays({key: array for key, array in arrays.items() if key != name})
    with pytest.raises(DamagedError):
        mlp_of_arrays(arrays | {"mlp.surplus": arrays["mlp.up"]})


def test_an_activation_without_a_formula_is_refused_by_name():
    with pytest.raises(UsageError, match="'mish' cannot be recomputed; known: gelu"):
        random_mlp(gated=False, activation="mish")
    assert all(torch.isfinite(act(torch.linspace(-9, 9, 50))).all() for act in ACTIVATIONS.values())


@pytest.mark.parametrize("kept", [1, 2])
def test_a_last_segment_of_very_few_rows_is_committed(tmp_path, kept):
    """Its spread is zero, so the MLP's error is compared with the size of the target."""
    mlp, rows = random_mlp(gated=False), 32 + kept
    source = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    settings = CacheSettings(chunk_rows=8, shard_rows=16, segment_rows=32, dtype="bfloat16", target="recompute")
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": rows, "held_out_rows": 0}
    columns = np.ones(rows, np.int32), np.zeros(rows, np.int64), np.arange(rows, dtype=np.int32)

    def write(path, target):
        given = {"identity": {}, "settings": settings, "special_ids": [0], "arrays": mlp.arrays()}
        with CacheWriter(path, **given, **sizes) as writer:
            writer.append(source, target, *columns, held_out=False, cursor=0)
            return writer.complete

    assert write(tmp_path / "right", mlp.target(source))
    wrong = mlp.target(source)
    wrong[-kept:] *= 2
    with pytest.raises(NumericalError, match="does not give the harvested target"):
        write(tmp_path / "wrong", wrong)


def test_training_takes_a_target_that_was_computed_on_a_card(written, monkeypatch):
    reader = CacheReader.open(written.path["recompute"])
    given = {"dict_size": 32, "skip": False, "view": "mlp_in", "seed": 0, "device": "cpu"}
    units, activations = units_of(reader, "mlp_in"), SplitView.activations
    expected = initial_weights(reader, units, **given)

    def on_a_card(self, *rows, **options):
        source, target = activations(self, *rows, **options)
        return source, cards.put(target, "cuda:0")

    monkeypatch.setattr(SplitView, "activations", on_a_card)
    with cards.Cards():
        made = initial_weights(reader, units, **given)
        target = torch.ones(3, 2)
        target[1, 0] = torch.nan
        narrow = np.zeros(3, np.int32), np.array([7, 8, 9], np.int64)
        reason = _why_not_finite(Batch(torch.ones(3, 2), cards.put(target, "cuda:0"), *narrow, index=4, epoch=1))
    assert torch.equal(made.W_dec, expected.W_dec)
    assert reason.strip() == "Batch 4 (epoch 1) has NaN or infinity in rows of document 8."
