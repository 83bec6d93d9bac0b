"""The Triton kernels, in processes of their own: Triton decides when it is imported whether it interprets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from train.arrays import update_kernel  # noqa: E402 - it imports triton, which only Linux has
from transcoder import kernels  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(python, script, argument, tmp_path, **variables):
    environment = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", **variables}
    command = [python, str(HERE / script), argument]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_interpreted_kernels_equal_pytorch_and_the_reference(tmp_path):
    done = run(sys.executable, "kernels_process.py", "cpu", tmp_path, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("module", [kernels, update_kernel])
def test_triton_gets_the_kernels_as_they_are_written_although_tests_check_types(module):
    """A checker wraps what it checks, and in the wrapper's module the names of the kernel do not exist."""
    found = [value for value in vars(module).values() if isinstance(value, triton.JITFunction)]
    assert found
    for kernel in found:
        assert kernel.fn.__globals__ is vars(module), kernel.__name__


@pytest.fixture(scope="module")
def compiled(warm_python, tmp_path_factory):
    """What the compiler says of every kernel, for cards of three generations."""
    done = run(warm_python, "kernels_compile.py", "75,80,90", tmp_path_factory.mktemp("triton"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", ["75", "80", "90"])
def test_kernels_compile_for_cards_that_this_machine_does_not_have(capability, compiled):
    reports = compiled[capability]
    assert len(reports) == 34
    for name, report in reports.items():
        assert report["spilled"] == 0, name
        assert report["wide_addresses"], name
        # float64 takes two registers a number, an update reads four arrays; 128 allow 16 warps a core, 96 allow 20.
        assert report["registers"] <= (128 if "fp64" in name or "_update" in name else 96), name
        if name.startswith(("_sums", "_dots", "_update")):
            assert report["widest_load_bits"] == 128, name


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_kernels_equal_pytorch_and_the_reference_on_a_card(tmp_path):
        done = run(sys.executable, "kernels_process.py", "cuda", tmp_path)
        assert done.stdout.strip() == "equal", done.stderr
