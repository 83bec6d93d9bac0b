"""Loading a model: only the blocks asked for, without output, on which device and in which dtype."""

import pytest
import torch

from common.device import choose_device
from common.errors import UsageError
from harvest.memory import weight_bytes
from harvest.model.language_model import choose_dtype, load_model


def test_only_the_blocks_asked_for_are_loaded(model_folder):
    full, cut = load_model(str(model_folder), device="cpu"), load_model(str(model_folder), device="cpu", last_layer=1)
    assert (full.last_layer, cut.last_layer) == (3, 1)
    sizes = [sum(p.numel() for p in m.hugging.parameters()) for m in (full, cut)]
    assert sizes[1] < sizes[0]
    assert weight_bytes(cut.source, torch.float32, layers=2) == pytest.approx(4 * sizes[1], rel=0.1)


def test_nothing_is_printed_while_loading(model_folder, capfd):
    load_model(str(model_folder), device="cpu", last_layer=1)
    assert capfd.readouterr() == ("", "")


def test_devices_and_dtypes():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="cuda:99"):
        choose_device("cuda:99")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
