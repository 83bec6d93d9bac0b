"""A dictionary is opened only with the caches of its layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from cache.stacked import stacked
from common.errors import MismatchError, UsageError
from evaluate.joint.opened import JointSource, Opened, open_layer, open_readers
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def test_caches_of_other_layers_are_refused(write_toy_cache: Callable[..., Path], tmp_path: Path) -> None:
    caches = {layer: write_toy_cache(tmp_path / str(layer)) for layer in (2, 1)}
    readers = open_readers(caches, None, device="cpu")
    assert [reader.path for reader in readers] == [caches[1], caches[2]]
    d_source, d_target = readers[0].d_source, readers[0].d_target
    pieces = [Transcoder(**random_arrays(d_source, d_target, dict_size=8), rule=TopK(2)) for _ in caches]
    made = CrossLayerTranscoder(pieces, layers=(1, 2), window=0)
    fingerprint = stacked(readers).fingerprint
    save_cross_layer(made, tmp_path / "run", config={"cache_fingerprint": fingerprint})
    opened = Opened.from_source(JointSource(caches, tmp_path / "run"), None, device="cpu")
    assert opened.dictionary.layers == (1, 2)
    assert opened.stacked_reader.fingerprint == fingerprint
    save_cross_layer(made, tmp_path / "other", config={"cache_fingerprint": "of others"})
    with pytest.raises(MismatchError, match="trained on the caches of others"):
        Opened.from_source(JointSource(caches, tmp_path / "other"), None, device="cpu")


def test_a_layers_features_are_opened_with_its_cache_alone(
    write_toy_cache: Callable[..., Path], tmp_path: Path
) -> None:
    cache = write_toy_cache(tmp_path / "cache")
    reader = CacheReader.open(cache)
    layer = reader.identity["layer"]
    pieces = [
        Transcoder(**random_arrays(reader.d_source, reader.d_target * wide, dict_size=8), rule=TopK(2))
        for wide in (2, 1)
    ]
    named = {"cache_fingerprints": [reader.fingerprint, "another"]}
    for name, layers, over, config in (
        ("clt", (layer, layer + 1), False, named),
        ("absent", (layer + 1, layer + 2), False, named),
        ("over", (layer, layer + 1), True, named),
        ("other", (layer, layer + 1), False, {"cache_fingerprints": ["another", "another"]}),
    ):
        made = CrossLayerTranscoder(pieces, layers=layers, window=1, top_k=2, over_layers=over)
        save_cross_layer(made, tmp_path / name, config=config)
    opened, found = open_layer(tmp_path / "clt", cache, None, device="cpu")
    assert opened.fingerprint == reader.fingerprint
    assert torch.equal(found.W_dec, pieces[0].W_dec[:, : reader.d_target])
    for name, error, reason in (
        ("absent", UsageError, f"has no layer {layer}"),
        ("over", UsageError, "selects over all of its layers"),
        ("other", MismatchError, "trained on the cache another"),
    ):
        with pytest.raises(error, match=reason):
            open_layer(tmp_path / name, cache, None, device="cpu")
