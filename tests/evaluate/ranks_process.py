"""Evaluations by several processes that meet as torchrun lets them: JOBS, a JSON list, run one after another.

Everything is imported once and every process of a job is a fork. Prints a list with each job's exit codes and the
outputs of its processes. A job: world, arguments of ``evaluate_layer`` (or of ``features_of_layer``, with ``features``,
how many rows to take) as paths and strings, and ``fault``: what befalls its last process, "refused" (a stated problem
while it replays) or "killed" (no word at all).
"""

import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.distributed import process_group, read_ranks
from common.errors import CapacityError, NestcoderError
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from evaluate.run import evaluate_layer

SECONDS = 60


class Faulty(Silent):
    """Progress that ends its process."""

    def __init__(self, fault: str | None) -> None:
        self._fault = fault

    def advance(self, amount: int, **values: float) -> None:
        if self._fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "refused":
            raise CapacityError("not even one row fits")


def evaluate(job: dict[str, Any], *, rank: int) -> None:
    world, fault = job["world"], job.get("fault")
    paths = {name: Path(job[name]) for name in ("cache", "transcoder", "out")}
    if job.get("features"):
        with process_group(read_ranks(), "cpu"):
            features_of_layer(
                **paths,
                settings=FeatureSettings(block_rows=96, context_tokens=3, rows=job["features"]),
                device="cpu",
                lm=None,
                force=False,
                progress=Faulty(fault if rank == world - 1 else None),
            )
        return
    with process_group(read_ranks(), "cpu"):
        evaluate_layer(
            **paths,
            settings=EvaluateSettings(bootstrap=20, batch_rows=96),
            device="cpu",
            lm=None,
            gemma_scope=job.get("gemma_scope"),
            against=Path(job["against"]) if "against" in job else None,
            force=False,
            progress=Faulty(fault if rank == world - 1 else None),
        )


def forked(job: dict[str, Any], *, rank: int, port: int, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(SECONDS)
        known = {"RANK": rank, "WORLD_SIZE": job["world"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in known.items()}
        evaluate(job, rank=rank)
        code = 0
    except NestcoderError as error:
        code = error.exit_code
        output.write_text(str(error))
    finally:
        os._exit(code)


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    output = [folder / str(rank) for rank in range(job["world"])]
    children = [forked(job, rank=rank, port=port, output=path) for rank, path in enumerate(output)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"codes": codes, "output": [path.read_text() if path.exists() else "" for path in output]}


def main() -> None:
    results: list[dict[str, Any]] = []
    for job in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(job, Path(folder)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
