"""Evaluation of every trained layer, and of the features if the settings ask for them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from common.run_layout import FEATURES_PAGE
from nestcoder.stages.folders import folders_of


def test_no_layer_means_every_trained_one_and_features_follow(
    tiny_run: Path, tmp_path: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    runs = Path(shutil.copytree(tiny_run, tmp_path / "runs"))
    settings = tiny_settings(runs, "evaluate.features=true", "features.context_tokens=3")
    (layer, metrics), *others = nestcoder.run_evaluate(settings, device="cpu").items()
    assert (layer, others) == (8, [])
    assert len(metrics["fvu_per_prefix"]) == 2
    assert (folders_of(settings, 8).features("main") / FEATURES_PAGE).is_file()


def test_a_name_that_is_not_trained_is_refused(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    with pytest.raises(UsageError, match="named 'other'"):
        nestcoder.run_evaluate(settings, name="other")
    with pytest.raises(UsageError, match="no trained transcoder"):
        nestcoder.run_features(settings, [8], name="other")
