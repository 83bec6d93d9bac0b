"""Which trainings the settings ask for; a finished one is not changed."""

from collections.abc import Callable
from pathlib import Path

import nestcoder
from nestcoder.stages.folders import folders_of
from nestcoder.stages.train import trainings


def test_there_is_one_training_a_layer_or_one_of_all_layers(
    tmp_path: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tmp_path)
    assert trainings(settings, [8, 4], "main") == [
        ([8], folders_of(settings, 8).transcoder("main")),
        ([4], folders_of(settings, 4).transcoder("main")),
    ]
    ((layers, out),) = trainings(tiny_settings(tmp_path, "train.kind=cross-layer"), [5, 4, 5], "clt")
    assert layers == [4, 5]
    assert out.relative_to(folders_of(settings, 4).layer_folder.parent) == Path("layers04-05/transcoder/clt")


def test_what_is_finished_is_left_alone(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    folder = folders_of(settings, 8).transcoder("main")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    config = nestcoder.run_train(settings, [8], device="cpu")[8]
    assert config["dict_size"] == 64
    assert {path: path.stat().st_mtime_ns for path in before} == before
