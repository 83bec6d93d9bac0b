"""A run that is killed, for real and anywhere, ends as one that was not: same weights, counters and log, bit for bit.

A warm parent forks the process that trains, and that process is killed by SIGKILL: 12 times in the random campaign,
100 times with NESTCODER_FULL=1.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common import disk
from common.progress import Silent
from common.run_layout import WEIGHTS_FILE
from common.sealed.tensors import FileSeal
from tests.helpers.training import changed, train
from train.config import TrainSettings
from train.record.checkpoint import Checkpoints, Restored, arrays_of, state_of
from train.record.log import read_log
from train.state import State

KILLS = 100 if os.environ.get("NESTCODER_FULL") == "1" else 12
DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]
pytestmark = pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class KillAt(Silent):
    """Sends this process a signal when a number of steps is done."""

    def __init__(self, step: int, number: int = signal.SIGKILL) -> None:
        self.left, self.number = step, number

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.left -= done

    def advance(self, amount: int, **metrics: float) -> None:
        self.left -= amount
        if self.left == 0:
            os.kill(os.getpid(), self.number)


class StopAt(Silent):
    """Ends the training with an exception when a number of steps is done."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, amount: int, **metrics: float) -> None:
        self.left -= amount
        if self.left <= 0:
            raise KeyboardInterrupt


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a forked process that does ``work``: 0 when it is done, minus the signal's number when killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except SystemExit as leaving:
            os._exit(int(str(leaving.code)))
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_by(out: Path) -> dict[str, bytes]:
    """Every file of a run, without the time in its config.json and without the seal, which depends on the time."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    config = json.loads(found["config.json"])
    return found | {"config.json": json.dumps(config | {"completed_at": "", "seal": ""}).encode()}


@pytest.fixture
def every_step(quick: TrainSettings) -> TrainSettings:
    """Saved and logged at every step, with a skip, so that every array is there."""
    return changed(quick, checkpoint_every=1, log_every=1, skip=True, steps=22, held_out_rows=0)


def test_a_run_killed_at_critical_moments_ends_the_same(
    small_cache: Path, tmp_path: Path, every_step: TrainSettings
) -> None:
    """In warm-up, before and after the end of an epoch and the first auxiliary loss, and at the last step: one run."""
    train(small_cache, tmp_path / "whole", every_step)
    log = read_log(tmp_path / "whole" / "metrics.jsonl")
    aux = next(line["step"] for line in log if line["aux_loss"] > 0)
    assert 6 < aux < 22
    for step in sorted({3, aux - 1, aux, aux + 1, 15, 16, 17, 22}):
        killed = in_child(lambda step=step: train(small_cache, tmp_path / "killed", every_step, KillAt(step)))
        assert killed == -signal.SIGKILL
        assert not (tmp_path / "killed" / "config.json").exists()
    train(small_cache, tmp_path / "killed", every_step)
    assert left_by(tmp_path / "killed") == left_by(tmp_path / "whole")


def test_a_run_killed_again_and_again_ends_the_same(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    """Before and after random operations of the disk, and at random steps, until a run finishes."""
    settings = changed(quick, steps=20, checkpoint_every=5, skip=True)
    train(small_cache, tmp_path / "whole", settings)
    expected, kills, attempt = left_by(tmp_path / "whole"), 0, 0
    while kills < KILLS:
        out, status = tmp_path / f"killed-{attempt}", -signal.SIGKILL
        while status:
            attempt += 1
            status = in_child(partial(_train_until_killed, small_cache, out, settings, random.Random(attempt)))
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert left_by(out) == expected, f"attempt {attempt}, after {kills} kills"
        shutil.rmtree(out)


def _train_until_killed(cache: Path, out: Path, settings: TrainSettings, chance: random.Random) -> None:
    """Train, to be killed at a step or around an operation of the disk, if that is ever reached."""
    if chance.random() < 0.4:
        train(cache, out, settings, KillAt(chance.randrange(1, 25)))
        return
    left = [chance.randrange(1, 90)]

    def count(_when: str, _operation: str, _path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with disk.watch(count):
        train(cache, out, settings)


ARRAYS = [
    f"{name}{suffix}" for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip") for suffix in ("", ".first", ".second")
]


@dataclass(frozen=True)
class Halves:
    """A run of 20 steps, and the same killed at step 14, after the checkpoint of step 10."""

    settings: TrainSettings
    undisturbed: Path
    killed: Path


@pytest.fixture(scope="module")
def halves(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    torch.set_num_threads(1)
    settings = TrainSettings(
        prefixes=(16, 32, 64),
        top_k=4,
        steps=20,
        batch_rows=64,
        lr=1e-2,
        warmup_steps=6,
        dead_after_tokens=300,
        log_every=5,
        checkpoint_every=10,
        held_out_rows=0,
        skip=True,
    )
    found = Halves(settings, tmp_path_factory.mktemp("whole") / "run", tmp_path_factory.mktemp("killed") / "run")
    train(small_cache, found.undisturbed, settings)
    assert in_child(lambda: train(small_cache, found.killed, settings, KillAt(14))) == -signal.SIGKILL
    return found


def test_the_mutants_cover_every_key(halves: Halves) -> None:
    arrays = load_file(halves.killed / "checkpoints" / "step-00000010.safetensors")
    assert set(arrays) == {*ARRAYS, "since_fired"}
    facts = json.loads((halves.killed / "checkpoints" / "step-00000010.json").read_text())
    assert set(facts) == {"format_version", "step", "tokens", "software", "identity"}


@pytest.mark.parametrize("key", [*ARRAYS, "since_fired", "tokens", "step", "log"])
def test_the_kill_tests_find_a_resume_that_forgets_anything(
    small_cache: Path, tmp_path: Path, halves: Halves, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant drops one key of the checkpoint when it is read; the comparison of the kill tests must see it."""
    shutil.copytree(halves.killed, tmp_path / "run")
    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", lambda self, *, device: _without(restore(self, device=device), key))
    train(small_cache, tmp_path / "run", halves.settings)
    assert left_by(tmp_path / "run") != left_by(halves.undisturbed)


def test_the_kill_tests_pass_a_resume_that_forgets_nothing(small_cache: Path, tmp_path: Path, halves: Halves) -> None:
    shutil.copytree(halves.killed, tmp_path / "run")
    train(small_cache, tmp_path / "run", halves.settings)
    assert left_by(tmp_path / "run") == left_by(halves.undisturbed)


def _without(restored: Restored | None, key: str) -> Restored:
    assert restored is not None
    state: State = restored.state
    if key == "log":
        return replace(restored, log=FileSeal(0, ""))
    if key in ("tokens", "step"):
        return replace(restored, state=replace(state, **{key: 0}))
    arrays = arrays_of(state)
    return replace(
        restored, state=state_of(arrays | {key: torch.zeros_like(arrays[key])}, step=state.step, tokens=state.tokens)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_was_stopped_and_continued_ends_with_the_same_bytes(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, device: str
) -> None:
    """On a GPU steps are played as graphs before the stop, and recorded again after it."""
    train(small_cache, tmp_path / "whole", quick, device=device)
    with pytest.raises(KeyboardInterrupt):
        train(small_cache, tmp_path / "cut", quick, StopAt(27), device=device)
    train(small_cache, tmp_path / "cut", quick, device=device)
    assert (tmp_path / "cut" / WEIGHTS_FILE).read_bytes() == (tmp_path / "whole" / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(small_cache: Path, tmp_path: Path, quick: TrainSettings, number: int) -> None:
    """Even between two checkpoints; the log is that of an undisturbed run."""
    settings = changed(quick, steps=20, checkpoint_every=10)
    train(small_cache, tmp_path / "whole", settings)
    status = in_child(lambda: train(small_cache, tmp_path / "left", settings, KillAt(13, number)))
    assert status == (143 if number == signal.SIGTERM else 1)
    assert (tmp_path / "left" / "checkpoints" / "step-00000013.safetensors").is_file()
    resumed = Began()
    train(small_cache, tmp_path / "left", settings, resumed)
    assert resumed.done == [13]
    expected, left = left_by(tmp_path / "whole"), left_by(tmp_path / "left")
    assert {name: left[name] for name in expected if "checkpoints" not in name} == {
        name: expected[name] for name in expected if "checkpoints" not in name
    }


class Began(Silent):
    """Remembers where training began."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.notes: list[str] = []

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)
