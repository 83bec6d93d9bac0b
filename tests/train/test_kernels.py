"""The Triton kernels, in processes of their own: whether Triton interprets is settled when it is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(script, argument, tmp_path, **variables):
    environment = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", **variables}
    command = [sys.executable, str(HERE / script), argument]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_interpreted_kernels_equal_pytorch_and_the_reference(tmp_path):
    done = run("kernels_process.py", "cpu", tmp_path, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_for_a_card_that_is_not_there(capability, tmp_path):
    done = run("kernels_compile.py", capability, tmp_path)
    assert done.stdout.strip() == "compiled", done.stderr


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_kernels_equal_pytorch_and_the_reference_on_a_card(tmp_path):
        done = run("kernels_process.py", "cuda", tmp_path)
        assert done.stdout.strip() == "equal", done.stderr
