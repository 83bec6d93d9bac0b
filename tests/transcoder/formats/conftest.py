"""Transcoders of every kind, and their metadata, for the tests of other tools' formats."""

from collections.abc import Callable

import pytest
import torch

from transcoder.formats.about import About
from transcoder.rules.rule import Rule
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

DICT_SIZE = 24


def make(
    rule: Rule | None = None, *, d_source: int = 6, d_target: int = 6, skip: bool = False, seed: int = 0
) -> Transcoder:
    """Arrays without zeros, so that a forgotten array is noticed."""
    generator = torch.Generator().manual_seed(seed)
    arrays = random_arrays(d_source, d_target, dict_size=DICT_SIZE, skip=skip, seed=seed)
    for name in arrays.keys() & {"b_enc", "b_dec", "W_skip"}:
        arrays[name] = torch.randn(arrays[name].shape, generator=generator) / 3
    return Transcoder(**arrays, rule=rule or TopK(5), prefixes=(4, 10, DICT_SIZE))


@pytest.fixture(scope="session")
def make_transcoder() -> Callable[..., Transcoder]:
    return make


@pytest.fixture
def about() -> About:
    return About(
        model="openai-community/gpt2",
        layer=8,
        source_site="mlp_in",
        target_site="mlp_out",
        architecture="gpt2",
        layers_of_model=10,
        context=64,
        dataset="stdlib",
        record={"prefixes": [4, 10, DICT_SIZE], "exactness": "exact"},
    )


@pytest.fixture(scope="session")
def source() -> torch.Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
