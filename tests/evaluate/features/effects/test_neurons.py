"""Alignment with neurons is the cosine with what each of them writes, and is measured if the cache has the MLP."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from cache.storage.recompute import Mlp
from common.progress import Silent
from evaluate.features.collect import block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.effects.neurons import aligned_neurons
from evaluate.features.text.page import feature_page
from tests.helpers.caches import write_cache
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def _mlp(*, with_norm: bool) -> Mlp:
    generator = torch.Generator().manual_seed(0)
    gain = torch.rand(6, generator=generator) + 0.5 if with_norm else None
    up, down = torch.randn(20, 8, generator=generator), torch.randn(6, 20, generator=generator)
    return Mlp("relu", 1e-6, up, down, post_gain=gain)


@pytest.mark.parametrize("with_norm", [False, True])
def test_alignment_is_its_definition(with_norm: bool) -> None:
    mlp = _mlp(with_norm=with_norm)
    W_dec = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    found = aligned_neurons(W_dec, mlp, 4)
    written = mlp.down.double().numpy().T * (mlp.post_gain.double().numpy() if with_norm else 1)
    rows = W_dec.double().numpy()
    cosine = (rows @ written.T) / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(written, axis=1)
    expected = np.argsort(-np.abs(cosine), axis=1)[:, :4]
    assert np.array_equal(found["neuron_index"], expected)
    assert found["neuron_cosine"] == pytest.approx(np.take_along_axis(cosine, expected, axis=1), rel=1e-4)


def test_a_cache_with_its_mlp_has_them_in_the_evidence(tmp_path: Path) -> None:
    mlp, rows = _mlp(with_norm=False), 64
    source = torch.randn(rows, 8, generator=torch.Generator().manual_seed(2)).float()
    columns = {
        "source": source,
        "target": mlp.target(source),
        "tokens": np.arange(1, rows + 1, dtype=np.int32),
        "document": np.zeros(rows, dtype=np.int64),
        "position": np.arange(rows, dtype=np.int32),
    }
    write_cache(
        tmp_path / "cache",
        columns,
        columns,
        identity={"model": "toy", "layer": 3, "context": rows},
        arrays=mlp.arrays(),
        dtype="float32",
        target="recompute",
        chunk_rows=16,
        shard_rows=32,
        segment_rows=64,
    )
    reader = CacheReader.open(tmp_path / "cache")
    transcoder = Transcoder(**random_arrays(8, 6, dict_size=16, seed=3), rule=TopK(4), prefixes=(8, 16))
    settings = FeatureSettings(neurons=3)
    blocks = encode_part(reader, transcoder, settings, block_starts(reader, settings), progress=Silent())
    evidence = evidence_of(blocks, reader, transcoder, settings)
    expected = aligned_neurons(transcoder.W_dec, mlp, 3)
    assert np.array_equal(evidence.arrays["neuron_index"], expected["neuron_index"])
    page = feature_page(evidence, 5)
    assert [entry["neuron"] for entry in page["neurons"]] == expected["neuron_index"][5].tolist()
