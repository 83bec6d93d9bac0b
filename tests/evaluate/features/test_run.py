"""The stage: evidence on disk, and refusals before any work."""

from pathlib import Path

import pytest

from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import read_evidence
from evaluate.features.run import features_of_layer


def _run(cache: Path, transcoder: Path, out: Path) -> dict:
    return features_of_layer(
        cache=cache,
        transcoder=transcoder,
        out=out,
        settings=FeatureSettings(context_tokens=4),
        device="cpu",
        lm=None,
        force=False,
        progress=Silent(),
    )


def test_evidence_lies_where_it_was_asked_for_and_was_checked(
    toy_cache: Path, toy_transcoder: Path, tmp_path: Path
) -> None:
    head = _run(toy_cache, toy_transcoder, tmp_path / "features")
    assert head["self_check"]["contexts"] == 64
    read = read_evidence(tmp_path / "features")
    assert read.head["tokens"] == head["tokens"]
    assert read.layer == 3


def test_no_transcoder_and_another_cache_are_refused(
    write_toy_cache, toy_cache, toy_transcoder, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no trained transcoder"):
        _run(toy_cache, tmp_path, tmp_path / "features")
    wide = write_toy_cache(tmp_path / "wide", d_source=16)
    with pytest.raises(MismatchError, match="16"):
        _run(wide, toy_transcoder, tmp_path / "features")
