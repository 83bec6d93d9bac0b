"""The benches start, and the bench of the cache prints its tables, on sizes too small to measure speed."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


Bench = Callable[..., str]


@pytest.fixture(scope="session")
def bench(warm_python: str) -> Bench:
    """What a bench prints."""

    def run(name: str, *options: str) -> str:
        command = [warm_python, "-m", f"bench.{name}", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout

    return run


def test_the_cache_beside_what_it_replaces(bench: Bench, tmp_path: Path) -> None:
    sizes = {"rows": 9000, "width": 32, "repeats": 1, "mixing-rows": 100_000}
    output = bench("cache", "--folder", str(tmp_path), *(f"--{name}={value}" for name, value in sizes.items()))
    for method in ("plain files, fsynced", "this cache, prefetched", "zarr's own API", "this cache, shuffled"):
        assert method in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["attribution", "evaluate", "features", "harvest", "kinds", "nesting", "real_models", "step", "waiting"]
)
def test_the_others_say_what_they_measure(bench: Bench, name: str) -> None:
    assert "--help" in bench(name, "--help")


def test_a_step_of_every_kind_beside_its_dense_one(bench: Bench) -> None:
    output = bench("step", "--shape", "16,8,2,4,16", "--rounds", "1", "--only", "dense-sae,dense-clt")
    rows = [line.removeprefix("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["floor", "ours", "ours-sae", "dense-sae", "ours-clt", "dense-clt"]
