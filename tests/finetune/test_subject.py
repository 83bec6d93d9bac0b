"""What is tuned shares its arrays with what the model is spliced with, and changes nothing of what it began as."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nestcoder
from common.progress import Silent
from finetune.cross_layer import CrossLayerSubject
from finetune.layer_set import LayerSet
from finetune.subject import Subject
from nestcoder.stages.model import finetune_request

Settings = Callable[..., nestcoder.PipelineSettings]


@pytest.mark.parametrize(
    ("kind", "layers", "name"),
    [(LayerSet, [4, 8], "main"), (LayerSet, [8], "sae"), (CrossLayerSubject, [4, 6, 8], "clt")],
)
def test_an_update_is_seen_by_what_is_spliced(
    trained: Path, settings_in: Settings, kind: type[Subject], layers: list[int], name: str
) -> None:
    request = finetune_request(settings_in(trained), layers, name=name, result=None, device="cpu")
    subject = kind(request, device="cpu", progress=Silent())
    assert list(subject.tuned) == layers
    for layer, one in subject.tuned.items():
        before = subject.before.pieces[layer]
        current = subject.current.pieces[layer]
        torch.testing.assert_close(current.W_enc, before.W_enc)
        torch.testing.assert_close(one.weights.W_dec.norm(dim=1), torch.ones(64), atol=1e-4, rtol=0)
        one.weights.b_enc.add_(1.0)
        one.show()
        torch.testing.assert_close(current.b_enc, before.b_enc + one.factors["b_enc"])
