"""Whole processes: killed at random moments, and several at once under torchrun.

``NESTCODER_KILLS`` sets how many kills there are in all (2 unless said; 50 for the full campaign).
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cache.reader import CacheReader

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("NESTCODER_KILLS", "2"))
LINES = [f"document {n}: " + "fox " * (n % 5) for n in range(900)]


def settings(folder: Path, runs: str, **changes: object) -> list[str]:
    text = folder / "text.jsonl"
    if not text.exists():
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    values = {
        "runs": folder / runs, "harvest.dataset": text, "harvest.context": 32, "harvest.train_tokens": 6000,
        "harvest.held_out_tokens": 600, "harvest.batch_contexts": 1, "cache.chunk_rows": 16, "cache.shard_rows": 64,
        "cache.segment_rows": 256, "cache.held_out_fraction": 0.3, **changes,
    }  # fmt: skip
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


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
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said.decode()


def cache_of(folder: Path, runs: str) -> Path:
    (manifest,) = (folder / runs).rglob("manifest.json")
    return manifest.parent


def tree(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and "locks" not in path.parts and not path.name.startswith("proof-")
    }


@pytest.mark.slow
@pytest.mark.timeout(300 + 40 * KILLS)
def test_kills_at_random_moments_leave_the_same_bytes(model_folders, tmp_path):
    model, generator = model_folders["gpt2"], random.Random(0)
    started = time.monotonic()
    finish(start([sys.executable], model, settings(tmp_path, "whole")))
    whole_seconds = time.monotonic() - started
    journal = 0
    for number in range(KILLS):
        process = start([sys.executable], model, settings(tmp_path, "cut"))
        # Half of the kills fall anywhere, half wait for a commit, so that there is something to go on from.
        deadline = time.monotonic() + whole_seconds * generator.uniform(0.3, 1.1)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
            grown = sum(path.stat().st_size for path in (tmp_path / "cut").rglob("part-*.jsonl"))
            if number % 2 and grown > journal + 400:
                break
        journal = sum(path.stat().st_size for path in (tmp_path / "cut").rglob("part-*.jsonl"))
        process.kill()
        process.communicate()
    finish(start([sys.executable], model, settings(tmp_path, "cut")))
    assert tree(cache_of(tmp_path, "cut")) == tree(cache_of(tmp_path, "whole"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_holds_each_document_once(model_folders, tmp_path, processes):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
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
    # The last document of a share may be cut where the rows asked for end.
    whole = [text for text in seen if text in set(LINES)]
    assert len(whole) == len(set(whole))
    assert len(seen) - len(whole) <= 2 * processes
