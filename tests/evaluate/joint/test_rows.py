"""Several layers' rows through a set and a cross-layer transcoder, against the definition of the FVU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.open import open_cache
from cache.stacked import stacked
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.joint.rows import JointRows
from transcoder.cross_layer import CrossLayerTranscoder, Reach
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

WIDTHS, DICT_SIZE, PREFIXES = (12, 10), 64, (16, 64)


@pytest.mark.parametrize("window", [0, 1])
def test_fvu_and_l0_are_those_of_the_definition(
    write_toy_cache: Callable[..., Path], tmp_path: Path, window: int
) -> None:
    readers = [open_cache(write_toy_cache(tmp_path / str(layer), held_out_rows=600)) for layer in range(2)]
    reach = Reach(2, window, WIDTHS[1])
    pieces = [
        Transcoder(
            **random_arrays(WIDTHS[0], reach.wide(layer), dict_size=DICT_SIZE, seed=layer),
            rule=TopK(5),
            prefixes=PREFIXES,
        )
        for layer in range(2)
    ]
    dictionary = CrossLayerTranscoder(pieces, layers=(0, 1), window=window)
    settings = EvaluateSettings(bootstrap=50)
    rows = JointRows(stacked(readers), readers, settings, device="cpu", progress=Silent())
    found = rows.measure(dictionary)

    taken = [reader.split("held_out").rows(slice(None)) for reader in readers]
    ordinary = torch.from_numpy(taken[0].tokens != 0)
    sources = [split.source[ordinary].float() for split in taken]
    reconstructed = dictionary.reconstructions(sources)
    for layer, split in enumerate(taken):
        target = split.target[ordinary].double()
        total = (target - target.mean(dim=0)).square().sum()
        for prefix in range(2):
            fvu = float((reconstructed[layer, :, prefix] - target).square().sum() / total)
            assert found["fvu_per_layer_and_prefix"][layer][prefix] == pytest.approx(fvu, rel=1e-5)
        fired = pieces[layer].encode(sources[layer]) > 0
        assert found["l0_per_layer_and_prefix"][layer][1] == pytest.approx(float(fired.sum(dim=1).double().mean()))
        assert found["dead_per_layer"][layer] == pytest.approx(float((~fired.any(dim=0)).double().mean()))
    means = np.mean(found["fvu_per_layer_and_prefix"], axis=0)
    assert found["fvu_per_prefix"] == pytest.approx(means.tolist())
    low, high = found["fvu_interval_per_prefix"][1]
    assert low < means[1] < high
    assert found["tokens_used"] == int(ordinary.sum())
