"""A small cross-layer transcoder of four layers, and rows for it."""

from collections.abc import Callable

import pytest
import torch

from transcoder.cross_layer import CrossLayerTranscoder, Reach, over_all_layers
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYERS, WIDTH, DICT_SIZE, TOP_K, ROWS = 4, 6, 32, 3, 10
PREFIXES = (8, 32)
NUMBERS = (2, 3, 5, 11)


def make(window: int, *, over_layers: bool = False, rule: str = "topk", skip: bool = False) -> CrossLayerTranscoder:
    reach = Reach(LAYERS, window, WIDTH)
    pieces = []
    for number in range(LAYERS):
        arrays = random_arrays(WIDTH, reach.wide(number), dict_size=DICT_SIZE, seed=number)
        arrays["b_dec"][:WIDTH] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))
        if skip:
            arrays["W_skip"] = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(20 + number))
        selects = over_all_layers(TOP_K, layers=LAYERS, dict_size=DICT_SIZE) if over_layers else TopK(TOP_K)
        if rule == "jumprelu":
            selects = JumpReLU(torch.linspace(0.1, 1, DICT_SIZE), top_k=TOP_K)
        pieces.append(Transcoder(**arrays, rule=selects, prefixes=PREFIXES))
    return CrossLayerTranscoder(pieces, layers=NUMBERS, window=window, top_k=TOP_K, over_layers=over_layers)


@pytest.fixture
def make_cross_layer() -> Callable[..., CrossLayerTranscoder]:
    """``make_cross_layer(window, over_layers=False, rule="topk", skip=False)``."""
    return make


@pytest.fixture
def sources() -> list[torch.Tensor]:
    """The rows of every layer."""
    return list(torch.randn(LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(9)))
