"""What is checked of every dictionary from elsewhere, in any layout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.sites import LayerSite
from transcoder.formats.wanted import Described, Wanted, dictionary_of, layer_in, sites_of_hooks, top_k_of
from transcoder.rules.relu import ReLU

HERE = Path("file")
DESCRIBED = Described(HERE, LayerSite("mlp_in", 8), LayerSite("mlp_out", 8), "x")


def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, 5), "b_dec": (5,), "W_skip": (6, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_what_is_subtracted_from_the_source_is_folded() -> None:
    taken = torch.linspace(-1, 1, 6)
    found = dictionary_of(arrays(), DESCRIBED, rule=ReLU(), wanted=Wanted(layer=8), subtracted=taken)
    source = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    known = arrays()
    acts = ((source - taken) @ known["W_enc"] + known["b_enc"]).relu()
    expected = acts @ known["W_dec"] + known["b_dec"] + source @ known["W_skip"]
    torch.testing.assert_close(found(source), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "wanted", "kind", "told"),
    [
        ({"b_dec": torch.zeros(4)}, {}, DamagedError, "b_dec has shape"),
        ({"b_enc": torch.full((24,), torch.nan)}, {}, DamagedError, "NaN"),
        ({"W_skip": torch.zeros(5, 6)}, {}, DamagedError, "W_skip"),
        ({"W_enc": torch.zeros(24)}, {}, DamagedError, "W_enc has shape"),
        ({"b_enc": torch.zeros(0)}, {}, DamagedError, "no features"),
        ({"b_enc": torch.zeros(24, dtype=torch.int32)}, {}, DamagedError, "int32"),
        ({}, {"d_source": 7}, MismatchError, "maps 6 to 5"),
        ({}, {"layer": 9}, MismatchError, "layer 8, not of layer 9"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], wanted: dict[str, Any], kind: type, told: str) -> None:
    with pytest.raises(kind, match=told):
        dictionary_of(arrays() | changed, DESCRIBED, rule=ReLU(), wanted=Wanted(**{"layer": 8} | wanted))


def test_prefixes_that_make_no_sense_are_ignored() -> None:
    for prefixes, expected in (
        ([4, 24], (4, 24)),
        ([24, 4], (24,)),
        ([4, 10], (24,)),
        ("4", (24,)),
        ([4.5, 24], (24,)),
    ):
        described = Described(HERE, DESCRIBED.source, DESCRIBED.target, "x", own_words={"prefixes": prefixes})
        assert dictionary_of(arrays(), described, rule=ReLU(), wanted=Wanted(layer=8)).prefixes == expected


def test_an_ambiguous_hook_is_asked_about() -> None:
    hooks = ("blocks.8.hook_mlp_in", "blocks.8.hook_mlp_out")
    with pytest.raises(UsageError, match="hook_mlp_in") as raised:
        sites_of_hooks(*hooks, path=HERE, wanted=Wanted(layer=8))
    assert "--source-view" in raised.value.remedy
    source, target = sites_of_hooks(*hooks, path=HERE, wanted=Wanted(layer=8, source_view="ln2_normalized"))
    assert (source, target) == (LayerSite("ln2_normalized", 8), LayerSite("mlp_out", 8))


def test_a_target_before_gemmas_norm_is_refused_with_the_reason() -> None:
    with pytest.raises(MismatchError, match="before the norm"):
        sites_of_hooks(
            "blocks.8.mlp.hook_in", "blocks.8.mlp.hook_out", path=HERE, wanted=Wanted(layer=8), model="gemma-2-2b"
        )


def test_numbers() -> None:
    assert layer_in("x/layer_3/layer_8/width_16k") == 8
    assert layer_in("x/layer08") is None
    assert top_k_of(24, 24, path=HERE) == 24
    for value in (0, 25, True, "3", None):
        with pytest.raises(DamagedError):
            top_k_of(value, 24, path=HERE)
