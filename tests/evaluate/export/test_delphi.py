"""delphi's latent cache has every firing at its position, in files by feature."""

import json
from itertools import pairwise

import numpy as np
import torch
from safetensors.numpy import load

from evaluate.export.delphi import SPLITS, delphi_files, hookpoint, sequences_of


def _written(toy) -> dict[str, bytes]:
    files = delphi_files(
        toy.code,
        toy.text.tokens,
        toy.text.position,
        dict_size=64,
        context=16,
        padding=0,
        folder="layers.3.mlp",
        config={"model_name": "toy"},
    )
    return {name: b"".join(pieces) for name, pieces in files}


def test_all_files_joined_are_the_dense_code(toy) -> None:
    files = _written(toy)
    rows = len(toy.dense)
    dense = np.zeros((rows // 16, 16, 64), dtype=np.float32)
    edges = torch.linspace(0, 64, SPLITS + 1).long().tolist()
    for first, end in pairwise(edges):
        arrays = load(files[f"latents/layers.3.mlp/{first}_{end - 1}.safetensors"])
        locations = arrays["locations"].astype(np.int64)
        assert arrays["locations"].dtype == np.uint16
        assert arrays["activations"].dtype == np.float16
        assert np.array_equal(arrays["tokens"].ravel(), toy.text.tokens)
        # In order, for delphi's reader takes runs of equal (sequence, position).
        order = locations[:, 0] * 16 + locations[:, 1]
        assert (np.diff(order) >= 0).all()
        dense[locations[:, 0], locations[:, 1], locations[:, 2] + first] = arrays["activations"]
    expected = toy.dense.astype(np.float16).astype(np.float32)
    assert np.array_equal(dense.reshape(rows, 64), expected)


def test_the_config_has_what_delphi_reads(toy) -> None:
    config = json.loads(_written(toy)["latents/layers.3.mlp/config.json"])
    assert config == {"model_name": "toy", "cache_ctx_len": 16, "n_tokens": 1600, "n_splits": SPLITS}


def test_short_sequences_are_padded_and_empty_files_written() -> None:
    from evaluate.features.code import Code

    code = Code(
        tokens=5,
        row=np.array([1, 4], dtype=np.int32),
        feature=np.array([0, 0], dtype=np.int32),
        value=np.array([1.0, 1e-6], dtype=np.float32),
        lost=np.zeros(2, dtype=np.float32),
        lost_prefix=np.zeros(2, dtype=np.float32),
        total_square=1.0,
        error_square=np.zeros(1),
    )
    tokens, position = np.array([5, 6, 7, 8, 9]), np.array([0, 1, 0, 1, 2])
    assert sequences_of(position).tolist() == [0, 0, 1, 1, 1]
    named = {"dict_size": 70_000, "context": 4, "padding": 0, "folder": "h.0.mlp", "config": {}}
    files = {name: b"".join(pieces) for name, pieces in delphi_files(code, tokens, position, **named)}
    first = load(files["latents/h.0.mlp/0_13999.safetensors"])
    assert first["tokens"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert first["locations"].tolist() == [[0, 1, 0]]
    assert load(files["latents/h.0.mlp/56000_69999.safetensors"])["locations"].shape == (0, 3)


def test_hookpoints_are_named_as_the_model_names_its_modules() -> None:
    assert hookpoint(8, "gpt2") == "h.8.mlp"
    assert hookpoint(5, "gemma2") == "layers.5.mlp"
