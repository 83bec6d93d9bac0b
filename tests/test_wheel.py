"""A wheel works beside other distributions' packages: its stages are under nestcoder, and run from there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import nestcoder

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("common", "cache", "transcoder", "harvest", "train", "evaluate", "finetune")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip would leave it, in which another distribution already has a package named ``evaluate``."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(dist)]
    subprocess.run([*pip, str(ROOT)], check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    (site / "evaluate").mkdir()
    (site / "evaluate" / "__init__.py").write_text("stranger = True\n")
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(python: str, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([python, *arguments], cwd=site, env=environment, capture_output=True, text=True)


def test_the_wheel_has_nothing_outside_nestcoder(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} - {"evaluate", "nestcoder"} == {
        path.name for path in installed.glob("nestcoder-*.dist-info")
    }
    for stage in STAGES:
        assert (installed / "nestcoder" / stage / "__init__.py").exists()
    assert (installed / "nestcoder" / "cache" / "FORMAT.md").exists()
    assert (installed / "nestcoder" / "evaluate" / "dashboard" / "static" / "index.html").exists()


def test_every_module_of_the_wheel_is_imported_from_it(installed: Path, warm_python: str) -> None:
    code = (
        "import importlib, pathlib, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "root = pathlib.Path('nestcoder')\n"
        "for path in sorted(root.rglob('*.py')):\n"
        "    name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')\n"
        "    if not name.endswith(('__main__', 'kernels')): importlib.import_module(name)\n"
        "bad = [n for n in ('common', 'cache', 'transcoder', 'harvest', 'train') if n in sys.modules]\n"
        "import evaluate\n"
        "assert evaluate.stranger and not bad, bad\n"
    )
    done = run(warm_python, installed, "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_command_of_the_wheel_is_that_of_the_checkout(installed: Path, warm_python: str) -> None:
    done = run(warm_python, installed, "-m", "nestcoder", "--json", "--set", "train.top_k=8", "config", "show")
    assert done.returncode == 0, done.stderr
    assert '"top_k": 8' in done.stdout


def test_the_wheel_has_the_same_public_face(installed: Path, warm_python: str) -> None:
    """Every name, from the wheel's own modules, and one of them in use."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import nestcoder, json\n"
        "names = {name: getattr(nestcoder, name).__module__ for name in nestcoder.__all__}\n"
        "try: nestcoder.open_cache('absent')\n"
        "except nestcoder.NestcoderError as error: print(json.dumps([names, error.what]))\n"
    )
    done = run(warm_python, installed, "-c", code)
    assert done.returncode == 0, done.stderr
    names, what = json.loads(done.stdout)
    assert list(names) == nestcoder.__all__
    assert {module.split(".")[0] for module in names.values()} == {"nestcoder"}
    assert "no cache" in what


def test_the_whole_pipeline_runs_from_the_wheel(installed: Path, warm_python: str) -> None:
    """Beside the other distribution's ``evaluate``, in a folder without a checkout."""
    settings = [
        "harvest.train_tokens=4000", "harvest.held_out_tokens=1000", "harvest.context=64", "train.steps=20",
        "train.batch_rows=128", "train.held_out_rows=512", "train.warmup_steps=5",
    ]  # fmt: skip
    options = [item for setting in settings for item in ("--set", setting)]
    common = [*options, "--model", str(ROOT / "models" / "gpt2-stdlib")]
    code = (
        "import sys\n"
        "from nestcoder.cli import command_line\n"
        "for command in ('harvest --layer 1', 'train --layer 1', 'evaluate'):\n"
        "    command_line.main([*sys.argv[1:], *command.split()], standalone_mode=False)\n"
    )
    done = run(warm_python, installed, "-c", code, *common)
    assert done.returncode == 0, done.stderr
    assert "held-out tokens" in done.stdout
