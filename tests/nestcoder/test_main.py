"""``python -m nestcoder`` beside packages that are not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["common", "transcoder", "evaluate"])
def test_a_folder_with_one_of_our_names_gives_no_traceback(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nestcoder", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nestcoder: The package '{package}' that Python finds is not nestcoder's.\n")
    assert "Traceback" not in done.stderr
