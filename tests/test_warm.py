"""The warm Python that tests start does what a cold one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STATE = (
    "import json, os, sys; print(json.dumps([sys.argv, sys.path[0], os.getcwd(), dict(os.environ), __name__,"
    " sys.stdin.read(), 'common' in sys.modules]))"
)


@pytest.fixture(autouse=True)
def is_warm(warm_python: str) -> None:
    if warm_python == sys.executable:
        pytest.skip("this system has no pidfd_open")


def outcome(python: str, *arguments: str, **options: object) -> tuple[int, str, str]:
    done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=100, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_a_process_starts_as_a_cold_one_does(kind: str, warm_python: str, tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(STATE)
    start = {"-c": ["-c", STATE], "-m": ["-m", "given"], "script": [str(tmp_path / "given.py")]}[kind]
    environment = {"PYTHONPATH": "/some/where", "NAME": "a\nb=c", "PATH": "/bin"}
    options = {"cwd": tmp_path, "env": environment, "input": "line"}
    warm, cold = (outcome(python, *start, "--x", "", "y z", **options) for python in (warm_python, sys.executable))
    assert warm[0] == 0, warm[2]
    found, expected = (eval(text.replace("true", "True").replace("false", "False")) for _, text, _ in (warm, cold))
    for state in (found, expected):
        for name in ("PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"):  # the shell's own
            state[3].pop(name, None)
    assert found == expected


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit()",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('what is wrong')",
        "import os; os.kill(os.getpid(), 9)",
        "import atexit; atexit.register(print, 'at the end'); print('before')",
        "import threading; threading.Timer(0.01, print, ['from a thread']).start()",
        "import os; os._exit(300 % 256)",
        "import sys; print('\u00e9', file=sys.stderr)",
    ],
)
def test_a_process_ends_as_a_cold_one_does(code: str, warm_python: str) -> None:
    assert outcome(warm_python, "-c", code) == outcome(sys.executable, "-c", code)


def test_an_exception_is_shown(warm_python: str) -> None:
    code, out, err = outcome(warm_python, "-c", "print('before'); 1 / 0")
    assert (code, out) == (1, "before\n")
    assert err.splitlines()[0] == "Traceback (most recent call last):"
    assert err.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_the_libraries_are_loaded_and_nothing_of_ours(warm_python: str) -> None:
    code = "import sys; print([name for name in ('torch', 'transformers', 'common', 'cache') if name in sys.modules])"
    assert outcome(warm_python, "-c", code)[1] == "['torch', 'transformers']\n"


def test_what_counts_before_libraries_are_loaded_starts_cold(warm_python: str) -> None:
    code = "import sys; print('torch' in sys.modules, sys.flags.isolated)"
    assert outcome(warm_python, "-I", "-c", code)[1] == "False 1\n"
    assert outcome(warm_python, "-c", code, env={**os.environ, "TRITON_INTERPRET": "1"})[1] == "False 0\n"


def test_a_process_starts_others_alike_and_dies_with_its_caller(warm_python: str) -> None:
    inner = "import sys; print('torch' in sys.modules, flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([warm_python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    process.kill()
    assert process.stdout.read() == ""  # the inner process, which waits for its input, has ended too
    process.stdin.close()
    process.stdout.close()
    process.wait()
