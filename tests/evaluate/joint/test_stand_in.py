"""Several layers of a tiny real model replaced at once by a cross-layer transcoder, against its own arithmetic."""

import torch

from evaluate.joint.stand_in import CrossLayerStandIn
from harvest.model.sites import Norm
from transcoder.cross_layer import CrossLayerTranscoder, Reach
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYERS, WIDTH, DICT_SIZE, ROWS = 3, 6, 32, 10
PREFIXES = (8, 32)


def test_layers_in_order_return_what_the_dictionary_reconstructs() -> None:
    reach = Reach(LAYERS, 1, WIDTH)
    pieces = []
    for number in range(LAYERS):
        arrays = random_arrays(WIDTH, reach.wide(number), dict_size=DICT_SIZE, seed=number)
        arrays["b_dec"][:WIDTH] = number + 1
        arrays["W_skip"] = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(number))
        pieces.append(Transcoder(**arrays, rule=TopK(4), prefixes=PREFIXES))
    dictionary = CrossLayerTranscoder(pieces, layers=(0, 1, 2), window=1)
    sources = list(torch.randn(LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(0)))
    expected = dictionary.reconstructions(sources)
    norm = Norm(gain=torch.ones(WIDTH), bias=torch.zeros(WIDTH), epsilon=1e-5, centred=True)
    for index in range(len(PREFIXES)):
        replacements = CrossLayerStandIn(dictionary, [norm] * LAYERS, index=index).replacements()
        with torch.no_grad():
            for _ in range(2):  # a second pass begins again
                for layer, source in enumerate(sources):
                    found = replacements[layer](source, torch.zeros(ROWS, WIDTH))
                    torch.testing.assert_close(found, expected[layer][:, index])
