"""Which names mean a cross-layer transcoder, and what is refused before anything is read."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.run_layout import CONFIG_FILE, joint_folders
from nestcoder.config import load_settings
from nestcoder.joint_stages import is_cross_layer, run_evaluate_joint


def test_a_cross_layer_transcoder_is_one_of_exactly_these_layers(tmp_path: Path) -> None:
    settings = load_settings(None, [f"runs={tmp_path}", "model=toy"])
    folder = joint_folders(tmp_path, "toy", [3, 1, 2]).transcoder("clt")
    assert folder == tmp_path / "toy" / "layers01-03" / "transcoder" / "clt"
    assert joint_folders(tmp_path, "toy", [4, 8, 12]).layer_folder.name == "layers04_08_12"
    assert not is_cross_layer(settings, [1, 2, 3], "clt")
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text("{}")
    assert is_cross_layer(settings, [1, 2, 3], "clt")
    assert not is_cross_layer(settings, [1, 2], "clt")
    assert not is_cross_layer(settings, [1], "clt")


def test_layers_without_a_cache_are_refused(tmp_path: Path) -> None:
    settings = load_settings(None, [f"runs={tmp_path}", "model=toy"])
    with pytest.raises(UsageError, match="no cache"):
        run_evaluate_joint(settings, [1, 2], names=["clt"])
