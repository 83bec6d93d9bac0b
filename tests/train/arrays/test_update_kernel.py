"""The update kernel, in a process of its own: Triton decides when it is imported whether it interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROCESS = Path(__file__).with_name("update_kernel_process.py")
ROOT = Path(__file__).parents[3]


def run(device, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, str(PROCESS), device]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_the_interpreted_kernel_equals_pytorchs_adam():
    done = run("cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.stdout.strip() == "equal", done.stderr


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_the_kernel_equals_pytorchs_adam_on_a_card():
        done = run("cuda")
        assert done.stdout.strip() == "equal", done.stderr
