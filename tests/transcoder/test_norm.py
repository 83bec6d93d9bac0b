"""A transcoder of the normalised residual reads the MLP's input after the norm is folded into it."""

import pytest
import torch

from common.errors import NumericalError
from common.norm import NormAffine
from transcoder.norm import fold_gain
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


@pytest.mark.parametrize("skip", [False, True])
def test_folding_changes_what_is_read_and_nothing_else(skip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = random_arrays(6, 5, dict_size=12)
    if skip:
        arrays["W_skip"] = torch.randn(6, 5, generator=generator)
    plain = Transcoder(**arrays, rule=TopK(3), prefixes=(4, 12), source_view="ln2_normalized")
    norm = NormAffine(torch.rand(6, generator=generator) + 0.5, torch.randn(6, generator=generator))
    x = torch.randn(9, 6, generator=generator)
    folded = fold_gain(plain, norm)
    assert folded.source_view == "mlp_in"
    torch.testing.assert_close(folded(norm.apply(x)), plain(x), rtol=1e-4, atol=1e-5)


def test_a_gain_of_zero_is_refused() -> None:
    plain = Transcoder(**random_arrays(2, 2, dict_size=4), rule=TopK(1), source_view="ln2_normalized")
    with pytest.raises(NumericalError, match="gain is 0"):
        fold_gain(plain, NormAffine(torch.tensor([1.0, 0.0]), torch.zeros(2)))
