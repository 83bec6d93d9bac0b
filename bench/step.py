"""One training step, side by side: python -m bench.step [--peers DIR] [--shape S] [--rounds N] [--only A,B] [--json F]

Every system runs in a process of its own; a round asks each for one step in turn, so what else the machine does falls
on all alike. CPU time of one thread, medians over rounds; a ratio is the median of the rounds' ratios. Peak memory is
the process's; data_and_step_mb is that less what it held with its libraries loaded: data, weights, optimiser and step.
The systems -sae reconstruct what they read; -clt are cross-layer transcoders of three layers, each written by all
layers up to it. Their over_ours is over nestcoder's of that kind, and over_floor over one layer's.
DIR holds the environments that bench/peers.sh makes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

SHAPES = {
    "small": "2048,768,64,768,2304,5376,12288",
    "large": "2048,768,32,1536,4608,9216,16384,24576",
}
PEERS = {
    "sparsify": "sparsify",
    "sparsify-sae": "sparsify",
    "dictionary_learning-sae": "dictionary_learning",
    "sae-lens-sae": "sae-lens",
    "llamascopium-clt": "llamascopium",
}
"""The systems that other tools train, and whose environment each runs in."""
KINDS = ("sae", "clt")
OWN = (
    "floor", "ours", "ours-batchtopk", "ours-1pct-dead", "ours-10pct-dead", "floor-bf16", "ours-bf16", "dense",
    "ours-sae", "dense-sae", "ours-clt", "dense-clt",
)  # fmt: skip
_SYSTEMS = Path(__file__).parent / "support" / "step_systems.py"


class Worker:
    """A system in its own process."""

    def __init__(self, name: str, shape: str, *, python: str, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, str(_SYSTEMS), name, shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.idle_mb = self._answer()["idle_mb"]
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.steps.append(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def median_of(self, key: str) -> float:
        return median(step[key] for step in self.steps)

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} stopped; run it alone to see why: {' '.join(self._process.args)}")
        return json.loads(line)


def compare(
    shape: str, *, peers: Path | None, rounds: int, threads: int, only: Sequence[str] = ()
) -> list[dict[str, object]]:
    """Take a round to warm up and then ``rounds`` rounds; a table row for every system, or for some and their bases."""
    compared = [base for system in only or (*OWN, *PEERS) for base in (system, *_bases(system))]
    wanted = {base for system in compared for base in (system, *_bases(system))}  # the bases' bases too
    pythons = {name: sys.executable for name in OWN if name in wanted}
    for system, peer in PEERS.items() if peers else ():
        python = peers / peer / "bin" / "python"
        if python.exists() and (not only or system in only):
            pythons[system] = str(python)
    workers = {name: Worker(name, shape, python=python, threads=threads) for name, python in pythons.items()}
    for _ in range(rounds + 1):
        for worker in workers.values():
            worker.step()
    for worker in workers.values():
        worker.steps.pop(0)
        worker.close()
    return [_row(worker, workers) for worker in workers.values()]


def _row(worker: Worker, workers: dict[str, Worker]) -> dict[str, object]:
    floor, base = (workers[name] for name in _bases(worker.name))
    return {
        "system": worker.name,
        "cpu_ms": round(worker.median_of("cpu_ms"), 1),
        "wall_ms": round(worker.median_of("wall_ms"), 1),
        "over_floor": round(_ratio(worker, floor), 2),
        "over_ours": round(_ratio(worker, base), 2),
        "peak_mb": round(max(step["peak_mb"] for step in worker.steps)),
        "data_and_step_mb": round(max(step["peak_mb"] for step in worker.steps) - worker.idle_mb),
    }


def _bases(system: str) -> tuple[str, str]:
    """The floor, and nestcoder's system, that a system is compared with."""
    if system.endswith("-bf16"):
        return "floor-bf16", "ours-bf16"
    kind = system.rpartition("-")[2]
    return "floor", f"ours-{kind}" if kind in KINDS else "ours"


def _ratio(worker: Worker, base: Worker) -> float:
    """Median of the rounds' ratios of CPU time."""
    return median(own["cpu_ms"] / its["cpu_ms"] for own, its in zip(worker.steps, base.steps, strict=True))


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def processor() -> str:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else "unknown processor"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of environments made by bench/peers.sh")
    parser.add_argument("--shape", default="all", help="small, large, all, or rows,width,top_k,prefix,...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help=f"these of {', '.join((*OWN, *PEERS))}, with commas")
    parser.add_argument("--json", type=Path, help="write the tables there too")
    arguments = parser.parse_args()
    shapes = SHAPES if arguments.shape == "all" else {arguments.shape: SHAPES.get(arguments.shape, arguments.shape)}
    print(f"{processor()}; {arguments.threads} thread(s), {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    only = tuple(filter(None, (arguments.only or "").split(",")))
    if strangers := set(only) - {*OWN, *PEERS}:
        parser.error(f"--only: no system is called {min(strangers)}")
    given = {"peers": arguments.peers, "rounds": arguments.rounds, "threads": arguments.threads, "only": only}
    tables = {}
    for name, shape in shapes.items():
        tables[name] = compare(shape, **given)
        show(f"{name}: rows, width, top_k, prefixes = {shape}", tables[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
