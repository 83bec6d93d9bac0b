"""The export that replays rows is the same as that of the code."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load

from common.progress import Silent
from evaluate.export.replayed import delphi_of_layer


def test_a_layer_is_replayed_whole(toy, toy_cache: Path, toy_transcoder: Path) -> None:
    files = {
        name: b"".join(pieces)
        for name, pieces in delphi_of_layer(
            cache=toy_cache, transcoder=toy_transcoder, settings=toy.settings, device="cpu", progress=Silent()
        )
    }
    assert len(files) == 6
    counts = np.zeros(64, dtype=np.int64)
    for name, data in files.items():
        if name.endswith(".safetensors"):
            first = int(name.split("/")[-1].split("_")[0])
            found = np.bincount(load(data)["locations"][:, 2], minlength=1)
            counts[first : first + len(found)] += found
    assert np.array_equal(counts, (toy.dense > 1e-5).sum(axis=0))
