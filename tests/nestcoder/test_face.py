"""What ``import nestcoder`` offers, as its page shows it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from nestcoder import face
from nestcoder.yamlfile import write_yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"


def test_the_snippets_of_the_page_run_one_after_another(
    tiny_run: Path,
    tiny_settings: Callable[..., nestcoder.PipelineSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs")
    settings = tiny_settings(Path("runs"))
    (tmp_path / "pipeline.yaml").write_text(write_yaml(settings.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 10
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "active features a row 4.0" in printed
    assert "layer09" in printed
    assert "exported/saelens/blocks.8.mlp_out exact" in printed
    assert "exported/sparsify/h.8.mlp exact" in printed
    assert "moved the likeliest token by" in printed
    assert "['blocks.8.ln2.hook_normalized', 'blocks.8.hook_mlp_out']" in printed
    layer = tmp_path / "runs" / "gpt2-stdlib" / "layer08" / "transcoder"
    assert (layer / "short" / "config.json").is_file()
    weights = [(layer / name / "transcoder.safetensors").read_bytes() for name in ("main", "theirs")]
    assert weights[0] == weights[1]  # exported and imported again


def test_every_name_is_there_typed_and_explained() -> None:
    assert sorted(nestcoder.__all__) == sorted(face.__all__)
    for name in nestcoder.__all__:
        assert getattr(nestcoder, name) is getattr(face, name)
        assert getattr(nestcoder, name).__doc__
        assert name in dir(nestcoder)
    with pytest.raises(AttributeError, match="absent"):
        _ = nestcoder.absent


def test_the_import_brings_nothing_heavy() -> None:
    code = "import sys, nestcoder; print([n for n in ('torch', 'pydantic', 'click', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
