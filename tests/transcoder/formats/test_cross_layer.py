"""A cross-layer transcoder as a file: the same numbers, and other kinds or changed bytes refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import load_cross_layer, save_cross_layer
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

Make = Callable[..., CrossLayerTranscoder]


@pytest.mark.parametrize("rule", ["topk", "jumprelu", "over_layers", "skip"])
def test_a_saved_dictionary_is_loaded_with_the_same_numbers(
    make_cross_layer: Make, sources: list[torch.Tensor], tmp_path: Path, rule: str
) -> None:
    dictionary = make_cross_layer(2, over_layers=rule == "over_layers", rule=rule, skip=rule == "skip")
    config = save_cross_layer(dictionary, tmp_path, config={"settings": {}})
    found = load_cross_layer(tmp_path)
    assert found.layers == dictionary.layers
    assert found.config == config
    assert found.has_skip is config["skip"] is (rule == "skip")
    assert torch.equal(found.reconstructions(sources), dictionary.reconstructions(sources))


def test_a_file_of_another_kind_or_a_damaged_one_is_refused(make_cross_layer: Make, tmp_path: Path) -> None:
    save_cross_layer(make_cross_layer(1), tmp_path / "joint", config={})
    with pytest.raises(MismatchError) as caught:
        load_transcoder(tmp_path / "joint")
    assert "load_cross_layer" in caught.value.remedy
    single = Transcoder(**random_arrays(6, 6, dict_size=32), rule=TopK(3), prefixes=(8, 32))
    save_transcoder(single, tmp_path / "single", config={})
    with pytest.raises(MismatchError, match="of one layer"):
        load_cross_layer(tmp_path / "single")
    path = tmp_path / "joint" / "config.json"
    path.write_text(path.read_text().replace('"window": 1', '"window": 2'))
    with pytest.raises(DamagedError, match="checksum"):
        load_cross_layer(tmp_path / "joint")
