"""The stage: evidence on disk, and refusals before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from cache.storage.unembedding import Unembedding
from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import read_evidence
from evaluate.features.run import features_of_layer, read_logits
from evaluate.features.text.page import feature_page
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK


def _run(cache: Path, transcoder: Path, out: Path) -> dict:
    return features_of_layer(
        cache=cache,
        transcoder=transcoder,
        out=out,
        settings=FeatureSettings(context_tokens=4),
        device="cpu",
        progress=Silent(),
    )


def test_evidence_is_in_the_folder_that_was_asked_for_and_was_checked(
    toy_cache: Path, toy_transcoder: Path, tmp_path: Path
) -> None:
    head = _run(toy_cache, toy_transcoder, tmp_path / "features")
    assert head["self_check"]["contexts"] == 64
    read = read_evidence(tmp_path / "features")
    assert read.head["tokens"] == head["tokens"]
    assert read.layer == 3


def test_a_missing_transcoder_and_another_cache_are_refused(
    write_toy_cache, toy_cache, toy_transcoder, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no trained transcoder"):
        _run(toy_cache, tmp_path, tmp_path / "features")
    wide = write_toy_cache(tmp_path / "wide", d_source=16)
    with pytest.raises(MismatchError, match="16"):
        _run(wide, toy_transcoder, tmp_path / "features")


@pytest.mark.parametrize("rule", [JumpReLU(torch.full((64,), 0.5)), ReLU(), TopK(20)], ids=["jumprelu", "relu", "topk"])
def test_every_rule_of_selection_and_a_skip_have_evidence(toy, toy_cache: Path, tmp_path: Path, rule: Rule) -> None:
    skip = torch.full((toy.trained.d_source, toy.trained.d_target), 0.01)
    transcoder = toy.trained.replaced(rule=rule, W_skip=skip)
    save_transcoder(transcoder, tmp_path / "transcoder", config={})
    _run(toy_cache, tmp_path / "transcoder", tmp_path / "features")
    read = read_evidence(tmp_path / "features")
    source, target = toy.source[toy.kept], toy.target[toy.kept].double()
    code = transcoder.encode(source)
    assert np.array_equal(read.arrays["firings"], (code > 0).sum(dim=0).numpy())
    centred = (target - target.mean(dim=0)).square().sum()
    without = code.clone()
    without[:, 30] = 0
    errors = [(target - transcoder.decode(x, source=source).double()).square().sum() for x in (code, without)]
    assert read.arrays["fvu_lost"][30] == pytest.approx(float((errors[1] - errors[0]) / centred), rel=1e-3, abs=1e-6)


def test_silent_features_and_blocks_of_special_rows_only_are_no_error(toy, toy_cache: Path, tmp_path: Path) -> None:
    silent = toy.trained.replaced(b_enc=torch.full((64,), -1e9))
    save_transcoder(silent, tmp_path / "transcoder", config={})
    head = features_of_layer(
        cache=toy_cache,
        transcoder=tmp_path / "transcoder",
        out=tmp_path / "features",
        settings=FeatureSettings(block_rows=1, rows=40),
        device="cpu",
        progress=Silent(),
    )
    assert head["l0"] == 0
    assert head["tokens"] == 37
    page = feature_page(read_evidence(tmp_path / "features"), 3)
    assert page["label"] == "never fires here"
    assert page["contexts"]["strongest"] == []


def test_logits_come_from_the_cache_if_it_has_the_unembedding(
    write_toy_cache, toy_transcoder: Path, tmp_path: Path
) -> None:
    W_U = torch.randn(40, 10, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    unembedding = Unembedding(W_U, torch.ones(10), centred=False, origin="")
    cache = write_toy_cache(tmp_path / "cache", arrays=unembedding.arrays())
    assert _run(cache, toy_transcoder, tmp_path / "features")["logits"] == {
        "from": "toy, as the cache stores it in bfloat16"
    }
    effects = load_transcoder(toy_transcoder).W_dec.detach() @ W_U.T
    read = read_evidence(tmp_path / "features")
    assert np.array_equal(read.arrays["raised_token"][:, 0], effects.argmax(dim=1).numpy())
    assert (read.arrays["logit_histogram"].sum(axis=1) == 40).all()
    sae = load_transcoder(toy_transcoder).replaced(config={"kind": "sae", "side": "source"})
    assert read_logits(None, CacheReader.open(cache), sae) is None
