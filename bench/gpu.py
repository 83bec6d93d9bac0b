"""Everything that is measured on a card, in one command: python -m bench.gpu [--peers DIR] [--json FILE] [--toy]

    kernels   each Triton kernel at real sizes beside its PyTorch twin: time, bytes a second, difference
    step      whole training steps beside the encoder product alone and the dense step, time and peak memory
    harvest   text to fsynced shards, beside the bare forward pass and beside plain writes; what starting costs
    train     the whole loop on that cache, the share of waiting, and a run of one step
    evaluate  a replay on the card and on the CPU, and the whole command
    peers     the peers' own steps, in the environments of DIR (bench/peers.sh)

Every part is a process with a time limit of its own, and all of them end within --limit seconds: a part that fails, or
is stopped, keeps the rows that it had, and the others go on. Printed is one table; FILE gets the same as JSON.

It needs Python 3.11 with PyTorch for CUDA, Triton and pip: what else the project depends on is installed beside them,
in an environment that sees them (no network: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder-of-wheels). --toy runs all of it at
toy sizes on the CPU, with interpreted kernels; its numbers say nothing.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "bench" / "support"
SHAPES = {
    "2,304 wide, 18,432 features, k 96": "4096,2304,96,1152,3456,8064,18432",
    "768 wide, 12,288 features, k 64": "4096,768,64,768,2304,5376,12288",
    "2,304 wide, 36,864 features, k 32": "4096,2304,32,2304,6912,16128,36864",
}
TOY_SHAPES = {"toy": "8,32,2,4,16"}
STEPS = (
    "floor bf16",
    "nestcoder bf16",
    "nestcoder bf16, launched one by one",
    "nestcoder bf16, a tenth dead",
    "nestcoder bf16, a tenth revived each step",
    "nestcoder bf16, batchtopk",
    "floor tf32",
    "nestcoder tf32",
    "floor fp32",
    "nestcoder fp32",
)
PEERS = {
    "sparsify": ("sparsify bf16", "sparsify tf32"),
    "dictionary_learning": ("dictionary_learning tf32",),
    "sae-lens": ("sae-lens bf16", "sae-lens tf32"),
}
_MACHINE = """
import importlib.util, json, platform, torch
card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
print(json.dumps({"card": card, "torch": torch.__version__, "triton": triton, "python": platform.python_version()}))
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One process: its name, what it runs, and after how many seconds it is stopped."""

    name: str
    command: list[str]
    limit: int


def measurements_of(arguments: argparse.Namespace, python: str, folder: Path) -> list[Measurement]:
    """All parts, in the order of what one wants to know first."""
    device = "cpu" if arguments.toy else "cuda"
    shapes = TOY_SHAPES if arguments.toy else SHAPES
    first, *_ = shapes.values()
    step = [python, str(SUPPORT / "gpu_step.py"), device]
    measurements = [Measurement("kernels", [python, str(SUPPORT / "gpu_kernels.py"), device, first], 50)]
    dense = "dense bf16" if arguments.toy else "dense bf16, compiled"
    for number, (name, shape) in enumerate(shapes.items()):
        # Compiling the dense step takes longest, so it comes last, and not for every shape.
        systems = [*(STEPS[:6] if arguments.toy else STEPS), *([dense] if number < 2 else [])]
        measurements.append(Measurement(f"step, {name}", [*step, shape, *systems], 60))
    for name in ("harvest", "train", "evaluate"):
        given = ["--folder", str(folder), "--device", device, *(["--toy"] if arguments.toy else [])]
        measurements.append(Measurement(name, [python, "-m", "bench.support.gpu_pipeline", name, *given], 80))
    for peer, systems in PEERS.items():
        own_python = arguments.peers.resolve() / peer / "bin" / "python" if arguments.peers else None
        if own_python and own_python.exists():
            step[0] = str(own_python)
            for name, shape in list(shapes.items())[:2]:  # a third would take time that other parts need
                measurements.append(Measurement(f"{peer}, {name}", [*step, shape, *systems], 40))
    return [
        measurement
        for measurement in measurements
        if not arguments.parts or measurement.name.split(",")[0] in arguments.parts
    ]


def run(measurement: Measurement, *, seconds: float, folder: Path, toy: bool) -> list[Row]:
    """The rows of a part, those of a stopped one included; what it says besides goes to a file beside."""
    if seconds < 5:
        return [{"what": "not run", "value": "", "unit": "", "error": "no time was left"}]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    if toy and measurement.name.split(",")[0] in ("kernels", "step"):
        environment["TRITON_INTERPRET"] = "1"
    out, log = folder / "rows", folder / f"{measurement.name.replace(' ', '_')}.log"
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            measurement.command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            ended = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            ended = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own group: the part and what it started
                process.wait()
    rows: list[Row] = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    if ended is None:
        rows.append({"what": "stopped", "value": "", "unit": "", "error": f"after {seconds:.0f} s"})
    elif ended:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        rows.append({"what": "failed", "value": "", "unit": "", "error": last[:300]})
    return rows


def show(measurement: str, row: Row) -> None:
    """A line of the table."""
    value = f"{row['value']:,}" if isinstance(row["value"], int | float) else str(row["value"])
    more = [f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key not in ("what", "value", "unit")]
    print(f"| {measurement} | {row['what']} | {value} {row['unit']} | {', '.join(more)} |", flush=True)


def ready_python(folder: Path) -> str:
    """This interpreter where all that the project depends on is there, otherwise one of a new environment with it."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    if not [requirement for requirement in requirements if not _is_installed(requirement)]:
        return sys.executable
    home = folder / "environment"
    venv.create(home, system_site_packages=True, with_pip=True)
    python = str(home / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:  # parts that can do without go on, the others say what they miss
        print(f"pip: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return python


def _is_installed(requirement: str) -> bool:
    try:
        distribution(re.match(r"[\w.-]+", requirement)[0])
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of environments made by bench/peers.sh")
    parser.add_argument("--parts", nargs="+", help="only these: kernels step harvest train evaluate, or a peer's name")
    parser.add_argument("--limit", type=int, help="seconds for all parts (default: 290; of a toy run 1,500)")
    parser.add_argument("--json", type=Path, help="write machine and rows there too")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on the CPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        python = ready_python(folder)
        found = subprocess.run([python, "-c", _MACHINE], check=False, capture_output=True, text=True)
        machine = json.loads(found.stdout) if found.returncode == 0 else {"card": None, "error": found.stderr[-300:]}
        if not (arguments.toy or machine["card"]):
            sys.exit(f"PyTorch finds no CUDA device here ({machine}). Try --toy.")
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        print("| part | what | value | beside |\n|---|---|---|---|")
        end = time.monotonic() + (arguments.limit or (1500 if arguments.toy else 290))
        rows: list[Row] = []
        for measurement in measurements_of(arguments, python, folder):
            limit = measurement.limit * (5 if arguments.toy else 1)  # a toy run may share two cores with a whole suite
            for row in run(measurement, seconds=min(limit, end - time.monotonic()), folder=folder, toy=arguments.toy):
                show(measurement.name, row)
                rows.append({"part": measurement.name, **row})
            if arguments.json:  # after every part, so that nothing is lost to whatever ends this one
                arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
