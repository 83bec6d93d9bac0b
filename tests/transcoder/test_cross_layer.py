"""Cross-layer transcoders against their definition with dense codes."""

from collections.abc import Callable

import pytest
import torch

from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYERS, WIDTH, DICT_SIZE, TOP_K, ROWS = 4, 6, 32, 3, 10
PREFIXES = (8, 32)

Make = Callable[..., CrossLayerTranscoder]


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize(("over_layers", "skip"), [(False, False), (True, False), (False, True)])
def test_reconstructions_are_those_of_the_definition(
    make_cross_layer: Make, sources: list[torch.Tensor], window: int, over_layers: bool, skip: bool
) -> None:
    dictionary = make_cross_layer(window, over_layers=over_layers, skip=skip)
    assert dictionary.has_skip is skip
    pre = [dictionary.piece(number).pre_activations(source) for number, source in enumerate(sources)]
    if over_layers:
        everything = torch.cat(pre, dim=1)
        smallest = everything.topk(TOP_K * LAYERS, dim=1).values[:, -1:]
        codes = (everything.relu() * (everything >= smallest)).split(DICT_SIZE, dim=1)
    else:
        codes = [layer.relu() * (layer >= layer.topk(TOP_K, dim=1).values[:, -1:]) for layer in pre]
    found = dictionary.reconstructions(sources)
    for t in range(LAYERS):
        for index, end in enumerate(PREFIXES):
            expected = dictionary.b_dec(t).expand(ROWS, -1)
            if skip:
                expected = expected + sources[t] @ dictionary.piece(t).W_skip
            for s in range(max(0, t - window), t + 1):
                block = dictionary.piece(s).W_dec.unflatten(1, (-1, WIDTH))[:, t - s]
                expected = expected + codes[s][:, :end] @ block[:end]
            torch.testing.assert_close(found[t, :, index], expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_set_is_a_window_of_zero(sources: list[torch.Tensor]) -> None:
    single = {
        layer: Transcoder(
            **random_arrays(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=layer), rule=TopK(TOP_K), prefixes=PREFIXES
        )
        for layer in (4, 1)
    }
    joint = CrossLayerTranscoder.of_set(single)
    assert joint.layers == (1, 4)
    assert joint.crossing() == [0.0, 0.0]
    first, second = sources[:2]
    found = joint.reconstructions([first, second])
    torch.testing.assert_close(found[0], single[1].reconstructions(first))
    torch.testing.assert_close(found[1], single[4].reconstructions(second))


def test_a_piece_by_itself_skips_to_its_own_layer_alone(make_cross_layer: Make, sources: list[torch.Tensor]) -> None:
    with_skip, without = make_cross_layer(2, skip=True), make_cross_layer(2)
    piece = with_skip.piece(1)
    differs = piece.reconstructions(sources[1]) - without.piece(1).reconstructions(sources[1])
    torch.testing.assert_close(differs[:, 0, :WIDTH], sources[1] @ piece.W_skip)
    assert not differs[:, :, WIDTH:].any()
    own = with_skip.within(1)
    torch.testing.assert_close(own.reconstructions(sources[1]), piece.reconstructions(sources[1])[:, :, :WIDTH])


def test_the_share_that_crosses_is_of_squared_norms_in_units_of_training(make_cross_layer: Make) -> None:
    dictionary = make_cross_layer(1)
    dictionary.config = {"target_scales": [1.0, 2.0, 1.0, 3.0]}
    blocks = dictionary.piece(0).W_dec.unflatten(1, (-1, WIDTH)).square().sum(dim=(0, 2))
    assert dictionary.crossing()[0] == pytest.approx(float(4 * blocks[1] / (blocks[0] + 4 * blocks[1])))
    assert dictionary.crossing()[3] == 0
