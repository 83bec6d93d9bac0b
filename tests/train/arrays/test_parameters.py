"""The arrays of a transcoder as plain tensors: its memory, in one order; and the encoder of a source minus b_dec."""

import torch

from train.arrays.parameters import Parameters, random_parameters
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def test_changing_the_arrays_changes_the_transcoder() -> None:
    transcoder = Transcoder(**random_arrays(6, 5, dict_size=16, skip=True), rule=TopK(3))
    weights = Parameters.from_transcoder(transcoder)
    assert list(weights.tensors()) == ["W_enc", "b_enc", "W_dec", "b_dec", "W_skip"]
    assert not any(array.requires_grad for array in weights.tensors().values())
    weights.W_dec[3] = 7.0
    weights.b_enc.zero_()
    assert (transcoder.W_dec[3] == 7).all()
    assert not transcoder.b_enc.any()


def test_the_threshold_is_that_of_the_rule() -> None:
    rule = JumpReLU(torch.rand(16, generator=torch.Generator().manual_seed(0)))
    weights = Parameters(**random_arrays(6, 5, dict_size=16), threshold=rule.threshold)
    assert "threshold" in weights.tensors()
    again = Transcoder.from_arrays(weights.transcoder_arrays(), rule=rule, prefixes=(16,))
    assert torch.equal(again.W_enc, weights.W_enc)


def test_an_encoder_of_the_source_minus_b_dec_is_an_encoder_with_another_bias() -> None:
    weights = random_parameters(6, 6, dict_size=16, seed=2, dtype=torch.float64)
    weights.b_dec.copy_(torch.randn(6, dtype=torch.float64))
    x = torch.randn(4, 6, dtype=torch.float64)
    moved = weights.reading_less_b_dec(-1.0)
    torch.testing.assert_close(x @ moved.W_enc.T + moved.b_enc, (x - weights.b_dec) @ weights.W_enc.T + weights.b_enc)
    torch.testing.assert_close(moved.reading_less_b_dec().b_enc, weights.b_enc)


def test_arrays_on_a_device_have_the_same_values() -> None:
    weights = random_parameters(6, 5, dict_size=16, seed=1)
    there = weights.to("meta")
    assert {array.device.type for array in there.tensors().values()} == {"meta"}
    assert there.tensors().keys() == weights.tensors().keys()
