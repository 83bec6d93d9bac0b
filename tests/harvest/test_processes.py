"""Real processes: killed at random moments, and several at once under torchrun.

Three kills of each embedded model's harvest by default; NESTCODER_FULL=1 runs fifty.
"""

import json
import os
import random
import re
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cache.reader import CacheReader

ROOT = Path(__file__).parents[2]
KILLS = 50 if os.environ.get("NESTCODER_FULL") == "1" else 3
KILLED = -9
LINES = [f"document {n}: " + "fox " * (n % 5) for n in range(900)]


class Zygote:
    """The warm process that forks harvests."""

    def __init__(self, python):
        command = [python, str(Path(__file__).with_name("harvest_child.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def harvest(self, model, runs, *, seconds=None):
        """Layers 2 and 8 of a model in one pass, killed after ``seconds``."""
        values = {
            "runs": str(runs), "harvest.context": 64, "harvest.train_tokens": 9000, "harvest.held_out_tokens": 1500,
            "harvest.batch_contexts": 4, "cache.chunk_rows": 64, "cache.shard_rows": 128, "cache.segment_rows": 512,
        }  # fmt: skip
        given = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        arguments = [*given, "--model", model, "harvest", "--layer", "2", "--layer", "8", "--device", "cpu"]
        self.process.stdin.write(json.dumps({"arguments": arguments, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def zygote(warm_python):
    zygote = Zygote(warm_python)
    yield zygote
    zygote.end()


@pytest.mark.slow
@pytest.mark.timeout(300 + 40 * KILLS)
@pytest.mark.parametrize("model", ["models/gpt2-stdlib", "models/gemma2-stdlib"])
def test_kills_at_random_moments_leave_the_same_bytes(zygote, tmp_path, model):
    undisturbed = zygote.harvest(model, tmp_path / "whole")
    assert undisturbed["exit"] == 0, undisturbed["output"]
    expected, dice, kills, number = trees(tmp_path / "whole"), random.Random(model), 0, 0
    assert len(expected) == 2
    while kills < KILLS:
        runs, number = tmp_path / f"cut-{number}", number + 1
        for _ in range(4):
            done = zygote.harvest(model, runs, seconds=dice.uniform(0, 0.8 * undisturbed["seconds"]))
            assert done["exit"] in {KILLED, 0}, done["output"]
            kills += done["exit"] == KILLED
            if not done["exit"]:
                break
        else:
            done = zygote.harvest(model, runs)
            assert done["exit"] == 0, done["output"]
        assert trees(runs) == expected
    print(f"{kills} kills in {number} harvests of {model}")


def trees(runs: Path) -> list[dict[str, bytes]]:
    """Every layer's cache."""
    return [tree(manifest.parent) for manifest in sorted(runs.rglob("manifest.json"))]


def settings(folder: Path, runs: str, **changes: object) -> list[str]:
    text = folder / "text.jsonl"
    if not text.exists():
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    values = {
        "runs": folder / runs, "harvest.dataset": text, "harvest.context": 32, "harvest.train_tokens": 6000,
        "harvest.held_out_tokens": 600, "harvest.batch_contexts": 1, "cache.chunk_rows": 16, "cache.shard_rows": 64,
        "cache.segment_rows": 256, "cache.held_out_fraction": 0.3, **changes,
    }  # fmt: skip
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def start(launcher: list[str], model: Path, given: list[str]) -> subprocess.Popen[bytes]:
    command = [
        *launcher,
        "-m",
        "nestcoder",
        *given,
        "--model",
        str(model),
        "harvest",
        "--layer",
        "1",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, output = process.communicate(timeout=280)
    assert process.returncode == 0, output.decode()


def cache_of(folder: Path, runs: str) -> Path:
    (manifest,) = (folder / runs).rglob("manifest.json")
    return manifest.parent


def tree(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and "locks" not in path.parts
    }


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_recipe_for_slurm_is_a_harvest_by_torchrun(warm_python, tmp_path):
    """The script of the page, with a cluster of this machine and two processes instead of eight."""
    (recipe,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), flags=re.DOTALL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    changes = {"/shared": str(tmp_path), "pipeline.yaml": str(tmp_path / "pipeline.yaml"), "29500": str(port),
               "--nproc-per-node 8": "--nproc-per-node 2"}  # fmt: skip
    for there, here in changes.items():
        assert there in recipe
        recipe = recipe.replace(there, here)
    (tmp_path / "pipeline.yaml").write_text(
        "model: models/gpt2-stdlib\n"
        "harvest: {context: 64, train_tokens: 3000, held_out_tokens: 600}\n"
        "cache: {chunk_rows: 64, shard_rows: 128, segment_rows: 512}\n"
    )
    program(tmp_path, "scontrol", "echo 127.0.0.1")
    program(tmp_path, "srun", 'exec "$@"')
    program(tmp_path, "torchrun", f'exec {warm_python} -m torch.distributed.run "$@"')
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", recipe], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for layer in (4, 8):
        view = CacheReader.open(tmp_path / "runs" / "gpt2-stdlib" / f"layer{layer:02d}" / "cache").split("train")
        assert len(view) == 3000
        assert {int(document) % 2 for document in np.unique(view.document)} == {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_ranks_of_torchrun_have_each_document_once(model_folders, warm_python, tmp_path):
    processes = 3
    launcher = [warm_python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    given = settings(tmp_path, "runs", **{"harvest.context": 64, "harvest.packing": "document"})
    finish(start(launcher, model_folders["gpt2"], given))
    reader = CacheReader.open(cache_of(tmp_path, "runs"))
    tokenizer = json.loads(bytes(reader.arrays["tokenizer.json"]))
    letters = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    seen = []
    for split in ("train", "held_out"):
        view = reader.split(split)
        rows = view.rows(slice(0, len(view)))
        for document in np.unique(rows.document):
            own = np.flatnonzero(rows.document == document)
            own = own[np.argsort(rows.position[own])]
            assert rows.position[own].tolist() == list(range(len(own)))
            seen.append("".join(letters[token] for token in rows.tokens[own][1:]).replace("Ġ", " "))
    # The last document of a share may be cut at the last row that is needed.
    uncut = [text for text in seen if text in set(LINES)]
    assert len(uncut) == len(set(uncut))
    assert len(seen) - len(uncut) <= 2 * processes
