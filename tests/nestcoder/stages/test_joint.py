"""Which names mean a cross-layer transcoder, and what is refused before anything is read."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import UsageError
from common.run_layout import CONFIG_FILE, joint_folders
from nestcoder.cli import command_line
from nestcoder.config import load_settings
from nestcoder.stages.joint import is_cross_layer, run_evaluate_joint
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


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


@pytest.mark.parametrize(
    "command",
    [
        "evaluate",
        "evaluate --layer 1",
        "evaluate --together",
        "features --layer 1",
        "features --layer 1 --dry-run",
        "publish --layer 1 --to hf:user/repository --license mit",
        "finetune --layer 1",
        "finetune --layer 1 --dry-run",
        "export {out} --layer 1 --to saelens",
    ],
)
def test_commands_of_one_layer_refuse_a_cross_layer_transcoder_before_any_work(tmp_path: Path, command: str) -> None:
    runs = tmp_path / "runs"
    folder = joint_folders(runs, "toy", [1, 2]).transcoder("clt")
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text("{}")
    given = ["--set", f"runs={runs}", "--set", "model=toy"]
    words = [word.format(out=tmp_path / "out") for word in command.split()]
    done = CliRunner().invoke(command_line, [*given, *words, "--name", "clt"])
    assert isinstance(done.exception, UsageError)
    assert "'clt' is one cross-layer transcoder of several layers" in str(done.exception)
    assert sorted(path.name for path in runs.rglob("*")) == ["clt", CONFIG_FILE, "layers01-02", "toy", "transcoder"]
    assert not (tmp_path / "out").exists()


def test_features_of_a_dictionary_that_selects_over_layers_are_refused(tmp_path: Path) -> None:
    """A layer's encoder gives candidates there, of which the other layers' may win: its evidence would be of those."""
    pieces = [Transcoder(**random_arrays(6, 6, dict_size=8), rule=TopK(4)) for _ in range(2)]
    made = CrossLayerTranscoder(pieces, layers=(1, 2), window=0, top_k=2, over_layers=True)
    save_cross_layer(made, joint_folders(tmp_path, "toy", [1, 2]).transcoder("over"), config={})
    given = ["--set", f"runs={tmp_path}", "--set", "model=toy", "features", "--layer", "1", "--layer", "2"]
    for words in ([], ["--dry-run"]):
        done = CliRunner().invoke(command_line, [*given, "--name", "over", *words])
        assert isinstance(done.exception, UsageError)
        assert "selects over all of its layers at once" in str(done.exception)
