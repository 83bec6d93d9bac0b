"""What the options before a command mean, and how its result is printed."""

import json
from pathlib import Path

import pytest

from nestcoder.invocation import CommandResult, Invocation


def test_the_settings_file_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invocation = Invocation(None, ["runs=elsewhere"], as_json=False)
    (tmp_path / "pipeline.yaml").write_text("model: gpt2\nruns: here\n")
    assert invocation.settings.model == "gpt2"
    assert invocation.folders(8).cache == Path("elsewhere/gpt2/layer08/cache")
    (tmp_path / "pipeline.yaml").unlink()
    assert invocation.settings.model == "gpt2", "they are read once"


def test_a_result_is_json_or_text_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    result = CommandResult({"path": Path("a\x1b[2J")}, "a\x1b[2J")
    Invocation(None, [], as_json=True).show(result)
    assert json.loads(capsys.readouterr().out) == {"path": "a\x1b[2J"}
    Invocation(None, [], as_json=False).show(result)
    assert capsys.readouterr().out == "a\\x1b[2J\n"
