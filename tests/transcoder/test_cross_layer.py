"""Cross-layer transcoders against their definition with dense codes, and as files."""

from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError
from transcoder.cross_layer import CrossLayerTranscoder, Reach, over_all_layers
from transcoder.formats.cross_layer import load_cross_layer, save_cross_layer
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYERS, WIDTH, DICT_SIZE, TOP_K, ROWS = 4, 6, 32, 3, 10
PREFIXES = (8, 32)
NUMBERS = (2, 3, 5, 11)


def make(window: int, *, over_layers: bool = False, rule: str = "topk") -> CrossLayerTranscoder:
    reach = Reach(LAYERS, window, WIDTH)
    pieces = []
    for number in range(LAYERS):
        arrays = random_arrays(WIDTH, reach.wide(number), dict_size=DICT_SIZE, seed=number)
        arrays["b_dec"][:WIDTH] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))
        selects = over_all_layers(TOP_K, layers=LAYERS, dict_size=DICT_SIZE) if over_layers else TopK(TOP_K)
        if rule == "jumprelu":
            selects = JumpReLU(torch.linspace(0.1, 1, DICT_SIZE), top_k=TOP_K)
        pieces.append(Transcoder(**arrays, rule=selects, prefixes=PREFIXES))
    return CrossLayerTranscoder(pieces, layers=NUMBERS, window=window, top_k=TOP_K, over_layers=over_layers)


def sources() -> list[torch.Tensor]:
    return list(torch.randn(LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("over_layers", [False, True])
def test_reconstructions_are_those_of_the_definition(window: int, over_layers: bool) -> None:
    dictionary = make(window, over_layers=over_layers)
    pre = [dictionary.piece(number).pre_activations(source) for number, source in enumerate(sources())]
    if over_layers:
        everything = torch.cat(pre, dim=1)
        least = everything.topk(TOP_K * LAYERS, dim=1).values[:, -1:]
        codes = (everything.relu() * (everything >= least)).split(DICT_SIZE, dim=1)
    else:
        codes = [one.relu() * (one >= one.topk(TOP_K, dim=1).values[:, -1:]) for one in pre]
    found = dictionary.reconstructions(sources())
    for t in range(LAYERS):
        for place, end in enumerate(PREFIXES):
            expected = dictionary.b_dec(t).expand(ROWS, -1)
            for s in range(max(0, t - window), t + 1):
                block = dictionary.piece(s).W_dec.unflatten(1, (-1, WIDTH))[:, t - s]
                expected = expected + codes[s][:, :end] @ block[:end]
            torch.testing.assert_close(found[t, :, place], expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_set_is_a_window_of_zero() -> None:
    single = {
        layer: Transcoder(
            **random_arrays(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=layer), rule=TopK(TOP_K), prefixes=PREFIXES
        )
        for layer in (4, 1)
    }
    together = CrossLayerTranscoder.of_set(single)
    assert together.layers == (1, 4)
    assert together.crossing() == [0.0, 0.0]
    first, second = sources()[:2]
    found = together.reconstructions([first, second])
    torch.testing.assert_close(found[0], single[1].reconstructions(first))
    torch.testing.assert_close(found[1], single[4].reconstructions(second))


def test_the_share_that_crosses_is_of_squared_norms_in_units_of_training() -> None:
    dictionary = make(1)
    dictionary.config = {"target_scales": [1.0, 2.0, 1.0, 3.0]}
    blocks = dictionary.piece(0).W_dec.unflatten(1, (-1, WIDTH)).square().sum(dim=(0, 2))
    assert dictionary.crossing()[0] == pytest.approx(float(4 * blocks[1] / (blocks[0] + 4 * blocks[1])))
    assert dictionary.crossing()[3] == 0


@pytest.mark.parametrize("rule", ["topk", "jumprelu", "over_layers"])
def test_a_file_gives_back_the_same_numbers(tmp_path: Path, rule: str) -> None:
    dictionary = make(2, over_layers=rule == "over_layers", rule=rule)
    config = save_cross_layer(dictionary, tmp_path, config={"settings": {}})
    found = load_cross_layer(tmp_path)
    assert found.layers == NUMBERS
    assert found.config == config
    assert torch.equal(found.reconstructions(sources()), dictionary.reconstructions(sources()))


def test_a_file_of_another_kind_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    save_cross_layer(make(1), tmp_path / "joint", config={})
    with pytest.raises(MismatchError) as caught:
        load_transcoder(tmp_path / "joint")
    assert "load_cross_layer" in caught.value.remedy
    single = Transcoder(**random_arrays(WIDTH, WIDTH, dict_size=DICT_SIZE), rule=TopK(TOP_K), prefixes=PREFIXES)
    save_transcoder(single, tmp_path / "single", config={})
    with pytest.raises(MismatchError, match="of one layer"):
        load_cross_layer(tmp_path / "single")
    path = tmp_path / "joint" / "config.json"
    path.write_text(path.read_text().replace('"window": 1', '"window": 2'))
    with pytest.raises(DamagedError, match="seal"):
        load_cross_layer(tmp_path / "joint")
