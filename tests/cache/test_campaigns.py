"""Writers are killed at every operation, at random moments, by a full disk and by power cuts; what comes out in the end
is always what an undisturbed writer writes. And the same campaigns find three faults that are planted on purpose.

Each campaign has a small count by default; NESTCODER_FULL=1 runs the full one.
"""

import errno
import fcntl
import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from cache.tools import verify as verify_module
from cache.tools.verify import verify_cache

FULL = os.environ.get("NESTCODER_FULL") == "1"
SMALL = {"train_rows": 20, "held_out_rows": 4}
LARGER = {
    "train_rows": 6000,
    "held_out_rows": 600,
    "d_source": 64,
    "d_target": 48,
    "chunk_rows": 64,
    "shard_rows": 128,
    "segment_rows": 512,
}
KILLED = -9
ROOT = Path(__file__).parents[2]


class Zygote:
    """The warm process that forks writers."""

    def __init__(self, python):
        command = [python, str(Path(__file__).with_name("campaign_child.py"))]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    def ask(self, path, toy, **how):
        self.process.stdin.write(json.dumps({"path": str(path), "toy": toy} | how) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def zygote(warm_python):
    zygote = Zygote(warm_python)
    yield zygote
    zygote.end()


def finish(zygote, path, toy, reference, tree, **how):
    """Run undisturbed to the end; '' when that gives the reference's bytes, and else what is wrong."""
    done = zygote.ask(path, toy, **how)
    if done["exit"] != 0:
        return done["output"] or f"exit {done['exit']}"
    found = tree(path)
    wrong = [name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name)]
    return ", ".join(sorted(wrong))


def write_reference(zygote, folder, toy, tree, **how):
    done = zygote.ask(folder / "reference", toy, **how)
    assert done["exit"] == 0, done["output"]
    return tree(folder / "reference"), done["operations"]


def kill_at_operations(zygote, folder, tree, moments, **how):
    """Kill a small write at each (operation, when), then finish it; what went wrong, by moment."""
    reference, _ = write_reference(zygote, folder, SMALL, tree)
    wrong = {}
    for moment in moments:
        path = folder / f"at-{moment[0]}-{moment[1]}"
        done = zygote.ask(path, SMALL, at=moment, **how)
        assert done["exit"] in {KILLED, 0}, done["output"]
        problem = finish(zygote, path, SMALL, reference, tree, mutant=how.get("mutant"))
        if problem:
            wrong[moment] = problem
        shutil.rmtree(path)
    return wrong


def moments_of(zygote, folder, tree, *, count, **how):
    _, operations = write_reference(zygote, folder / "counted", SMALL, tree, **how)
    moments = list(itertools.product(range(len(operations)), ("before", "after", "torn")))
    return moments if FULL else random.Random(0).sample(moments, count)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_power_cut_at_any_operation_takes_nothing_that_the_journal_promises(zygote, folder, tree, drafts):
    moments = moments_of(zygote, folder, tree, count=10, drafts=drafts)
    assert not kill_at_operations(zygote, folder, tree, moments, cut=True, drafts=drafts)
    print(f"{len(moments)} simulated power cuts at operations")


@pytest.mark.slow
def test_killed_again_and_again_while_it_recovers_a_write_still_ends_with_the_same_bytes(zygote, folder, tree):
    reference, operations = write_reference(zygote, folder, SMALL, tree)
    dice, kills = random.Random(1), 0
    for number in range(60 if FULL else 2):
        path = folder / f"again-{number}"
        for _ in range(6):
            moment = [dice.randrange(len(operations) // 2), dice.choice(["before", "after", "torn"])]
            how = {"at": moment, "cut": bool(number % 2), "drafts": number % 4 < 2}
            kills += zygote.ask(path, SMALL, **how)["exit"] == KILLED
        assert not finish(zygote, path, SMALL, reference, tree)
        shutil.rmtree(path)
    assert kills > number
    print(f"{kills} kills during recovery")


@pytest.mark.slow
def test_killed_at_random_moments_a_larger_write_ends_with_the_same_bytes(zygote, folder, tree):
    began = time.monotonic()
    reference, _ = write_reference(zygote, folder, LARGER, tree)
    seconds = time.monotonic() - began
    dice, kills, number = random.Random(2), 0, 0
    while kills < (200 if FULL else 4):
        path, number = folder / f"random-{number}", number + 1
        for _ in range(8):
            done = zygote.ask(path, LARGER, seconds=dice.uniform(0, seconds / 2), drafts=bool(number % 2))
            assert done["exit"] in {KILLED, 0}, done["output"]
            kills += done["exit"] == KILLED
        assert not finish(zygote, path, LARGER, reference, tree)
        shutil.rmtree(path)
    print(f"{kills} kills at random moments in {number} writes")


@pytest.mark.slow
def test_a_file_too_large_for_the_disk_is_one_sentence_and_a_rerun_goes_on(zygote, folder, tree):
    reference, _ = write_reference(zygote, folder, LARGER, tree)
    largest = max(len(data) for data in reference.values())
    for point in range(1, 21) if FULL else (1, 6, 20):
        path = folder / f"full-{point}"
        done = zygote.ask(path, LARGER, bytes=largest * point // 21 // (1 + 40 * (point % 3 == 0)))
        assert done["exit"] == 5, done["output"]
        assert "The disk refused to" in done["output"]
        assert not finish(zygote, path, LARGER, reference, tree)
        shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["shards are not flushed", "what exists is not written again"])
def test_the_campaigns_find_a_writer_that_is_careless(zygote, folder, tree, mutant):
    """A campaign that cannot fail proves nothing."""
    operations = zygote.ask(folder / "whole", SMALL, mutant=mutant)["operations"]
    moments = [(len(operations) - 3, "before"), (len(operations) // 2, "after")]
    cut = {"cut": True}
    if mutant == "what exists is not written again":
        moments = [(number, "torn") for number, name in enumerate(operations) if name == "write"][-6:-2]
        cut = {}
    assert kill_at_operations(zygote, folder, tree, moments, mutant=mutant, **cut)


def test_the_flips_find_a_hash_that_leaves_out_zarr_json(cache, flip, monkeypatch):
    """Metadata decides what bytes mean: were it left out, a flipped bit in it would pass."""
    flip(cache / "rows.zarr/train/source/zarr.json", 1000)
    assert verify_cache(cache).faults
    read_full_index = verify_module.read_index

    def careless(path):
        index = read_full_index(path)
        kept = {name: expected for name, expected in index.files.items() if not name.endswith("zarr.json")}
        object.__setattr__(index, "files", kept)
        return index

    monkeypatch.setattr(verify_module, "read_index", careless)
    monkeypatch.setattr(verify_module, "_walk", lambda store: ([], []))
    assert not verify_cache(cache).faults, "this fault is what the check is for"


FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Disk:
    """A small ext4 in a file, which can lose its power."""

    def __init__(self, folder, *, megabytes):
        self.image, self.path = folder / "image", folder / "mount"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        self.run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    @staticmethod
    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(errno.EPERM, f"{command[0]}: {done.stderr.strip()}")

    def mount(self):
        self.run("mount", "-o", "loop", str(self.image), str(self.path))

    def cut_power(self):
        """Everything that was not flushed is gone, the file system's own log included."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        self.unmount()
        self.mount()

    def unmount(self):
        self.run("umount", str(self.path))


@pytest.fixture
def make_disk(tmp_path):
    if os.geteuid():
        pytest.skip("a power cut needs root, to mount a file system and shut it down")
    disks = []

    def make(megabytes):
        try:
            disks.append(Disk(tmp_path, megabytes=megabytes))
        except OSError as error:
            pytest.skip(f"this machine mounts no ext4 from a file ({error})")
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


@pytest.mark.root
@pytest.mark.slow
def test_a_real_power_cut_takes_nothing_that_the_journal_promises(zygote, make_disk, folder, tree):
    disk = make_disk(64)
    reference, operations = write_reference(zygote, folder, LARGER, tree)
    dice, cuts, number = random.Random(3), 0, 0
    while cuts < (20 if FULL else 4):
        path, number = disk.path / f"cut-{number}", number + 1
        for _ in range(4):
            moment = [dice.randrange(len(operations) // 3), dice.choice(["before", "after", "torn"])]
            cuts += zygote.ask(path, LARGER, at=moment, drafts=bool(number % 2))["exit"] == KILLED
            disk.cut_power()
        assert not finish(zygote, path, LARGER, reference, tree)
        shutil.rmtree(path)
    print(f"{cuts} power cuts")


@pytest.mark.root
@pytest.mark.slow
def test_a_real_power_cut_finds_a_writer_that_does_not_flush_its_shards(zygote, make_disk, tree):
    disk = make_disk(64)
    zygote.ask(disk.path / "careless", LARGER, mutant="shards are not flushed", at=[300, "before"])
    disk.cut_power()
    assert verify_cache(disk.path / "careless").faults


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("point", range(20 if FULL else 3))
def test_a_full_disk_is_one_sentence_and_a_rerun_goes_on(zygote, folder, tmp_path, tree, point):
    if os.geteuid():
        pytest.skip("a small file system of its own needs root")
    reference, _ = write_reference(zygote, folder, LARGER, tree)
    leave = sum(len(data) for data in reference.values()) * (point + 1) // (21 if FULL else 4)
    try:
        Disk.run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path))
    except OSError as error:
        pytest.skip(f"this machine mounts no tmpfs ({error})")
    try:
        done = zygote.ask(tmp_path / "cache", LARGER, leave=leave)
        assert done["exit"] == 5, done["output"]
        assert "No space left" in done["output"]
        assert len(done["output"].splitlines()) == 3
        (tmp_path / "filler").unlink()
        assert not finish(zygote, tmp_path / "cache", LARGER, reference, tree)
    finally:
        Disk.run("umount", str(tmp_path))
