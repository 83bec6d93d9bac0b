"""A dictionary is opened with the caches of its layers alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cache.stacked import stacked
from common.errors import MismatchError
from evaluate.joint.opened import JointSource, Opened, open_readers
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def test_other_caches_than_its_own_are_refused(write_toy_cache: Callable[..., Path], tmp_path: Path) -> None:
    caches = {layer: write_toy_cache(tmp_path / str(layer)) for layer in (2, 1)}
    readers = open_readers(caches, None, device="cpu")
    assert [reader.path for reader in readers] == [caches[1], caches[2]]
    d_source, d_target = readers[0].d_source, readers[0].d_target
    pieces = [Transcoder(**random_arrays(d_source, d_target, dict_size=8), rule=TopK(2)) for _ in caches]
    made = CrossLayerTranscoder(pieces, layers=(1, 2), window=0)
    fingerprint = stacked(readers).fingerprint
    save_cross_layer(made, tmp_path / "run", config={"cache_fingerprint": fingerprint})
    opened = Opened.of(JointSource(caches, tmp_path / "run"), None, device="cpu")
    assert opened.dictionary.layers == (1, 2)
    assert opened.stacked_reader.fingerprint == fingerprint
    save_cross_layer(made, tmp_path / "other", config={"cache_fingerprint": "of others"})
    with pytest.raises(MismatchError, match="trained on the caches of others"):
        Opened.of(JointSource(caches, tmp_path / "other"), None, device="cpu")
