"""Arrays that every step needs are made once, even with gradients switched off, and are ordinary arrays then."""

import torch

from transcoder.constants import constant


def test_the_same_array_is_returned_each_time() -> None:
    device = torch.device("cpu")
    ends = constant((8, 64), torch.int32, device)
    assert ends.tolist() == [8, 64]
    assert ends.dtype == torch.int32
    assert constant((8, 64), torch.int32, device) is ends
    assert constant((8, 64), torch.int64, device) is not ends


def test_an_array_made_in_inference_mode_can_be_used_in_training() -> None:
    with torch.inference_mode():
        weights = constant((0.5, 0.25), torch.float32, torch.device("cpu"))
    assert not weights.is_inference()
    x = torch.ones(2, requires_grad=True)
    (x * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 0.25]
