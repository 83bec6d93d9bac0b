"""The export that replays rows is the same as that of the code."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load

from cache.open import open_cache
from common.progress import Silent
from evaluate.export.files import Files
from evaluate.export.replayed import delphi_of_layer
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def _counts(files: Files) -> np.ndarray:
    """Firings by feature."""
    counts = np.zeros(64, dtype=np.int64)
    for name, pieces in files:
        if name.endswith(".safetensors"):
            first = int(name.split("/")[-1].split("_")[0])
            found = np.bincount(load(b"".join(pieces))["locations"][:, 2], minlength=1)
            counts[first : first + len(found)] += found
    return counts


def test_an_export_by_replay_has_every_firing(toy, toy_cache: Path, toy_transcoder: Path) -> None:
    given = {"settings": toy.settings, "device": "cpu", "progress": Silent()}
    assert len(list(delphi_of_layer(cache=toy_cache, transcoder=toy_transcoder, **given))) == 6
    counts = _counts(delphi_of_layer(cache=toy_cache, transcoder=toy_transcoder, **given))
    assert np.array_equal(counts, (toy.dense > 1e-5).sum(axis=0))


def test_an_autoencoder_of_the_target_reads_the_target(toy, toy_cache: Path, tmp_path: Path) -> None:
    reader = open_cache(toy_cache, column="target")
    trained = Transcoder(**random_arrays(reader.d_source, reader.d_source, dict_size=64), rule=TopK(4))
    save_transcoder(trained, tmp_path, config={"kind": "sae", "side": "target"})
    files = delphi_of_layer(
        cache=toy_cache, transcoder=tmp_path, settings=toy.settings, device="cpu", progress=Silent()
    )
    view = reader.split("held_out")
    rows = view.rows(slice(0, toy.settings.rows))
    fired = trained.encode(rows.source[torch.from_numpy(view.is_ordinary(rows.tokens))].float()) > 1e-5
    assert np.array_equal(_counts(files), fired.sum(dim=0).numpy())
