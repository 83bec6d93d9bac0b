"""The notebooks run, one after the other, on an embedded model; they are kept without outputs."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(name: str) -> list[str]:
    document = json.loads((ROOT / "notebooks" / name).read_text())
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    document = json.loads(path.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    for cell in document["cells"]:
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert not "".join(cell["source"]).lstrip().startswith(("%", "!")), "plain Python runs anywhere"


def test_the_notebooks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NESTCODER_TRY", "1")
    monkeypatch.setenv("NESTCODER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NESTCODER_MODEL", str(ROOT / "models" / "gpt2-stdlib"))
    monkeypatch.chdir(ROOT)
    for name in ("quickstart.ipynb", "features.ipynb"):
        names: dict[str, object] = {"__name__": "__main__"}
        for number, source in enumerate(cells(name)):
            exec(compile(source, f"{name}, cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "rise in loss" in printed
    assert "steered" in printed
    assert (tmp_path / "runs" / "gpt2-stdlib" / "layer08" / "report" / "main" / "summary.txt").is_file()


@pytest.mark.parametrize("repository", ["", "https://example.org/nestcoder"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_on_colab_the_first_cell_must_say_where_to_clone_from(
    path: Path, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Colab: a fake module, and nothing is cloned, installed or mounted."""
    first, setup, *_ = cells(path.name)
    assert first.count('repository = ""') == 1
    google, colab = ModuleType("google"), ModuleType("google.colab")
    mounted: list[str] = []
    colab.drive = type("drive", (), {"mount": staticmethod(mounted.append)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(sys, "path", list(sys.path))
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: commands.append(command))
    monkeypatch.setattr("os.chdir", lambda _: None)
    names: dict[str, Any] = {}
    exec(first.replace('repository = ""', f'repository = "{repository}"'), names)
    if not repository:
        with pytest.raises(ValueError, match="Fill in `repository` in the cell above"):
            exec(setup, names)
        assert not mounted
        return
    exec(setup, names)
    assert mounted == ["/content/drive"]
    assert commands[0] == ["git", "clone", "--depth", "1", repository, "/content/nestcoder"]
    assert names["runs"] == Path("/content/drive/MyDrive/nestcoder/runs")


def test_both_notebooks_have_the_same_setup() -> None:
    assert cells("quickstart.ipynb")[:2] == cells("features.ipynb")[:2]
