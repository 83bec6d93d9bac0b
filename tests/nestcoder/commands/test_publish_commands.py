"""Without --push the command says what would be uploaded, and uses no network."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import nestcoder
from nestcoder.cli import command_line


def test_a_publication_is_a_dry_run_until_it_is_pushed(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = Path(__file__).resolve().parents[3] / "models" / "gpt2-stdlib"
    given = ["--json", "--set", f"runs={tiny_run}", "--set", f"model={model}"]
    command = ["publish", "--layer", "8", "--to", "hf:somebody/tiny", "--license", "apache-2.0"]
    done = CliRunner().invoke(command_line, [*given, *command])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert found["pushed"] is None
    assert set(found["files"]) == {
        "README.md", "layer08/config.json", "layer08/metrics.json", "layer08/transcoder.safetensors",
    }  # fmt: skip
    fvu = json.loads((tiny_run / "gpt2-stdlib/layer08/report/main/metrics.json").read_text())["fvu_per_prefix"][-1]
    assert f"{fvu:.4f}" in found["card"]
    assert nestcoder.load_transcoder(tiny_run / "gpt2-stdlib/layer08/transcoder/main").config["layer"] == 8


def test_a_cross_layer_transcoder_is_published_with_all_of_its_layers(joint_runs: Path) -> None:
    given = ["--json", "--model", "toy", "--set", f"runs={joint_runs}"]
    command = ["publish", "--name", "clt", "--to", "hf:somebody/tiny", "--license", "mit", "--layer", "3"]
    done = CliRunner().invoke(command_line, [*given, *command, "--layer", "5"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert set(found["files"]) == {
        "README.md", "layers03_05/config.json", "layers03_05/metrics.json", "layers03_05/transcoder.safetensors",
    }  # fmt: skip
    report = json.loads((joint_runs / "toy/layers03_05/report/clt/metrics.json").read_text())
    assert f"{report['dictionaries']['clt']['fvu_per_prefix'][-1]:.4f}" in found["card"]
    alone = CliRunner().invoke(command_line, [*given, *command])
    assert "one cross-layer transcoder of several layers" in str(alone.exception)
