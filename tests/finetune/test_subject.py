"""Tuned weights share their arrays with the spliced dictionary; the dictionary that they began as does not change."""

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
def test_an_update_is_seen_by_the_spliced_dictionary(
    trained: Path, settings_in: Settings, kind: type[Subject], layers: list[int], name: str
) -> None:
    request = finetune_request(settings_in(trained), layers, name=name, result=None, device="cpu")
    subject = kind(request, device="cpu", progress=Silent())
    assert list(subject.tuned) == layers
    for layer, piece in subject.tuned.items():
        before = subject.before.pieces[layer]
        current = subject.current.pieces[layer]
        torch.testing.assert_close(current.W_enc, before.W_enc)
        torch.testing.assert_close(piece.weights.W_dec.norm(dim=1), torch.ones(64), atol=1e-4, rtol=0)
        piece.weights.b_enc.add_(1.0)
        piece.show()
        torch.testing.assert_close(current.b_enc, before.b_enc + piece.factors["b_enc"])
