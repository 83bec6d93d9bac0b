"""An environment for each tool, made if it is missing or of other versions; and its messages."""

import shutil
import subprocess
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
_SAY_EVERY_SECONDS = 20.0
_LINES_OF_A_FAILURE = 15
_START = time.monotonic()


class ToolError(Exception):
    """A tool's environment could not be made, or its script ended with an error; says which, and where the log is."""


def say(what: str) -> None:
    """One line of progress: the minutes since the start, and what is being done."""
    minutes, seconds = divmod(int(time.monotonic() - _START), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {what}", flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what begins and, at its end, how long it took."""
    say(what)
    began = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - began:.0f} s")


def environment(folder: Path, peer: str) -> Path:
    """The interpreter of the tool's environment. Raises ToolError."""
    own_folder = folder / peer
    python = own_folder / "bin" / "python"
    wanted = "".join(file.read_text() for file in _requirements(peer))
    made_for = own_folder / "made_for.txt"
    if python.is_file() and made_for.is_file() and made_for.read_text() == wanted:
        say(f"{peer}: its environment is there")
        return python
    with step(f"{peer}: making an environment in {own_folder}"):
        # What an interrupted run left may be half of another version.
        shutil.rmtree(own_folder, ignore_errors=True)
        venv.create(own_folder, with_pip=True)
    requirements, constraints = _requirements(peer)
    install = ["-m", "pip", "install", "--progress-bar", "off", "-r", str(requirements), "-c", str(constraints)]
    with step(f"{peer}: installing {', '.join(requirements.read_text().split())} and what they need (1.5 to 8 GB)"):
        run([str(python), *install], log=own_folder / "install.log", what=f"{peer}: installing")
    made_for.write_text(wanted)
    return python


def run(command: Sequence[str], *, log: Path, what: str, cwd: Path | None = None) -> None:
    """Run a command, its output into ``log``; its last line is printed when it is a new one. Raises ToolError."""
    latest = ""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            while True:
                try:
                    code = process.wait(_SAY_EVERY_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    line = _last_lines(log, 1)[:90]
                    if line != latest:
                        say(f"{what} ... {line}")
                    latest = line
        finally:
            # Ctrl-C here must not leave an installation running.
            process.kill()
    if code:
        raise ToolError(
            f"{what}: ended with code {code}; all of its output is in {log}\n{_last_lines(log, _LINES_OF_A_FAILURE)}"
        )


def _requirements(peer: str) -> tuple[Path, Path]:
    """What is installed, and the version of everything that came with it when it was tried."""
    return REQUIREMENTS / f"{peer}.txt", REQUIREMENTS / f"{peer}.constraints.txt"


def _last_lines(log: Path, count: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # pip warns for every package of every location in which it did not find it.
    lines = [line for line in lines if not line.startswith("WARNING: Location")]
    return "\n".join(lines[-count:])
