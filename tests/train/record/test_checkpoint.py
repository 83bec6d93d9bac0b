"""Checkpoints: complete or not at all; the newest complete one is restored, and never one of another run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError
from common.sealed.tensors import FileSeal
from tests.helpers.progress import Notes
from train.arrays.optim import Moments
from train.arrays.parameters import random_parameters
from train.config import TrainSettings
from train.record.checkpoint import Checkpoints, arrays_of
from train.record.identity import RunIdentity
from train.resolved import resolve
from train.state import State


def identity(fingerprint: str = "abc", *, lr: float = 0.1) -> RunIdentity:
    stated = TrainSettings(prefixes=(4, 8), top_k=2, lr=lr)
    return RunIdentity(resolve(stated, model="m", d_target=4), cache_fingerprint=fingerprint, d_target=4)


IDENTITY = identity()


def log_at(step: int) -> FileSeal:
    return FileSeal(100 * step, f"hash {step}")


def state_at(step: int) -> State:
    weights = random_parameters(3, 4, dict_size=8, skip=True, seed=step)
    moments = Moments.zero(weights)
    moments.first["W_enc"].add_(step)
    return State(weights, moments, torch.arange(8), step=step, tokens=10 * step)


def opened(folder: Path, *, keep: int = 2, identity: RunIdentity = IDENTITY, notes: Notes | None = None) -> Checkpoints:
    return Checkpoints(folder, identity=identity, keep=keep, progress=notes or Notes())


def save(folder: Path, *fvus: float | None, keep: int = 2) -> Checkpoints:
    checkpoints = opened(folder, keep=keep)
    for number, fvu in enumerate(fvus, start=1):
        checkpoints.save(state_at(number), log=log_at(number), held_out_fvu=fvu)
    return checkpoints


def steps_on_disk(folder: Path) -> list[int]:
    arrays = {int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors")}
    assert arrays == {int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json")}
    return sorted(arrays)


def test_a_saved_state_is_restored(tmp_path: Path) -> None:
    save(tmp_path, 0.5, 0.4)
    restored = opened(tmp_path).restore(device="cpu")
    assert restored is not None
    assert (restored.state.step, restored.state.tokens, restored.log) == (2, 20, log_at(2))
    for name, array in arrays_of(state_at(2)).items():
        found = arrays_of(restored.state)[name]
        assert torch.equal(found, array)
        assert found.dtype == array.dtype
    assert restored.state.weights.W_enc.is_contiguous()


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert opened(tmp_path / "none").restore(device="cpu") is None


@pytest.mark.parametrize(
    ("fvus", "kept", "best"),
    [
        ((0.5, 0.4, 0.3, 0.2), [3, 4], 4),
        ((0.5, 0.1, 0.3, 0.2), [2, 3, 4], 2),
        ((0.1, 0.5, 0.5, 0.1), [3, 4], 4),
        ((None, None, None), [2, 3], None),
        ((0.1, None, None, None), [1, 3, 4], 1),
    ],
)
def test_the_newest_and_the_best_are_kept(
    tmp_path: Path, fvus: tuple[float | None, ...], kept: list[int], best: int | None
) -> None:
    checkpoints = save(tmp_path, *fvus)
    assert steps_on_disk(tmp_path) == kept
    assert (checkpoints.best.step if checkpoints.best else None) == best


def test_files_that_the_index_does_not_name_are_removed_on_opening(tmp_path: Path) -> None:
    save(tmp_path, 0.5, 0.4)
    for name in ("step-00000009.safetensors", "step-00000009.json", ".step-00000009.json.0.aside"):
        (tmp_path / name).write_bytes(b"half")
    opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if "9" in path.name) == []
    assert steps_on_disk(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["step-00000002.safetensors", "step-00000002.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_if_the_newest_is_damaged_an_older_one_is_restored_with_a_note(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 0.5, 0.4)
    data = bytearray((tmp_path / name).read_bytes())
    if damage == "remove":
        (tmp_path / name).unlink()
    else:
        data[len(data) // 2] ^= 4
        (tmp_path / name).write_bytes(data if damage == "flip" else data[:-3])
    notes = Notes()
    checkpoints = opened(tmp_path, notes=notes)
    restored = checkpoints.restore(device="cpu")
    assert restored is not None
    assert (restored.state.step, restored.log) == (1, log_at(1))
    assert [note for note in notes.texts if "The checkpoint of step 2 is damaged, so an earlier one is tried" in note]
    checkpoints.save(state_at(2), log=log_at(2), held_out_fvu=0.4)
    again = opened(tmp_path).restore(device="cpu")
    assert again is not None
    assert again.state.step == 2


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    """One bit in every seventh byte of both files: never a wrong restore, never a bare exception."""
    save(tmp_path, 0.5)
    tried = 0
    for path in sorted(tmp_path.glob("step-*")):
        sound = path.read_bytes()
        for offset in range(0, len(sound), 7):
            data = bytearray(sound)
            data[offset] ^= 1 << (offset % 8)
            path.write_bytes(data)
            with pytest.raises((DamagedError, MismatchError)):
                opened(tmp_path).restore(device="cpu")
            tried += 1
        path.write_bytes(sound)
    assert tried > 300
    assert opened(tmp_path).restore(device="cpu") is not None


def test_every_bit_of_the_index_counts(tmp_path: Path) -> None:
    """Any flipped bit is noticed, and costs at most the checkpoint of its line."""
    save(tmp_path, 0.5, 0.4)
    path, restored = tmp_path / "index.json", set[int]()
    sound = path.read_bytes()
    files = {checkpoint: checkpoint.read_bytes() for checkpoint in tmp_path.glob("step-*")}
    for offset in range(0, len(sound), 5):
        data, notes = bytearray(sound), Notes()
        data[offset] ^= 1 << (offset % 8)
        path.write_bytes(data)
        if b'"format_version": 1' not in data and b'"format_version": ' in data:
            with pytest.raises(MismatchError, match="format version"):
                opened(tmp_path)
            continue
        found = opened(tmp_path, notes=notes).restore(device="cpu")
        assert found is not None
        assert notes.texts[0].startswith("The index of the checkpoints is damaged")
        assert found.log == log_at(found.state.step)
        assert torch.equal(found.state.weights.W_enc, state_at(found.state.step).weights.W_enc)
        restored.add(found.state.step)
        for checkpoint, data_of in files.items():
            checkpoint.write_bytes(data_of)
    assert restored == {1, 2}
    path.write_bytes(b"{\n")
    with pytest.raises(DamagedError, match="The index of the checkpoints is damaged"):
        opened(tmp_path)
    assert steps_on_disk(tmp_path) == [1, 2]


def test_other_settings_and_caches_are_refused_naming_the_difference(tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    with pytest.raises(MismatchError, match=r"cache_fingerprint was abc, is now xyz; settings.lr was 0.1, is now 0.2"):
        opened(tmp_path, identity=identity("xyz", lr=0.2)).restore(device="cpu")


def test_an_unknown_version_is_named(tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    head, _, body = (tmp_path / "index.json").read_bytes().partition(b"\n")
    header = json.loads(head) | {"format_version": 77}
    (tmp_path / "index.json").write_bytes(json.dumps(header).encode() + b"\n" + body)
    with pytest.raises(MismatchError, match="format version 77"):
        opened(tmp_path)


def test_other_hardware_is_noted(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save(tmp_path, 0.5)
    notes = Notes()
    torch.set_num_threads(2)
    try:
        assert opened(tmp_path, notes=notes).restore(device="cpu") is not None
    finally:
        torch.set_num_threads(1)
    assert [note for note in notes.texts if "threads was 1, is now 2" in note]


def test_a_state_without_a_skip_is_restored(tmp_path: Path) -> None:
    state = state_at(1)
    bare = {name: array for name, array in state.moments.first.items() if name != "W_skip"}
    state = replace(state, weights=replace(state.weights, W_skip=None), moments=Moments(bare, dict(bare)))
    opened(tmp_path).save(state, log=log_at(0), held_out_fvu=None)
    restored = opened(tmp_path).restore(device="cpu")
    assert restored is not None
    assert restored.state.weights.W_skip is None


def test_the_best_state_is_that_of_the_lowest_held_out_fvu(tmp_path: Path) -> None:
    """If it is damaged, that of the next best, with a note."""
    notes = Notes()
    save(tmp_path, 0.5, 0.1, 0.3, keep=3)
    best = opened(tmp_path, keep=3, notes=notes).best_state(device="cpu")
    assert best is not None
    assert best.step == 2
    (tmp_path / "step-00000002.safetensors").write_bytes(b"")
    best = opened(tmp_path, keep=3, notes=notes).best_state(device="cpu")
    assert best is not None
    assert best.step == 3
    assert [note for note in notes.texts if note.startswith("The best checkpoint, of step 2, is damaged")]


def test_there_is_no_best_state_if_none_was_measured(tmp_path: Path) -> None:
    save(tmp_path, None, None)
    assert opened(tmp_path).best_state(device="cpu") is None


def test_a_run_with_more_steps_goes_on_from_before_its_decay(tmp_path: Path) -> None:
    """The newest checkpoint is within the decay of the shorter run, the one before it is not."""

    def identity_of(steps: int) -> RunIdentity:
        stated = TrainSettings(prefixes=(4, 8), top_k=2, lr=0.1, warmup_steps=0, steps=steps, decay_steps=1)
        return RunIdentity(resolve(stated, model="m", d_target=4), cache_fingerprint="abc", d_target=4)

    checkpoints = opened(tmp_path, identity=identity_of(2))
    for step in (1, 2):
        checkpoints.save(state_at(step), log=log_at(step), held_out_fvu=None)
    restored = opened(tmp_path, identity=identity_of(9)).restore(device="cpu")
    assert restored is not None
    assert (restored.state.step, restored.log) == (1, log_at(1))


def test_a_decay_that_had_begun_before_every_checkpoint_is_refused(tmp_path: Path) -> None:
    def identity_of(steps: int) -> RunIdentity:
        stated = TrainSettings(prefixes=(4, 8), top_k=2, lr=0.1, warmup_steps=0, steps=steps)
        return RunIdentity(resolve(stated, model="m", d_target=4), cache_fingerprint="abc", d_target=4)

    opened(tmp_path, identity=identity_of(4)).save(state_at(3), log=log_at(3), held_out_fvu=None)
    with pytest.raises(MismatchError, match="With more steps, the learning rate would have been different"):
        opened(tmp_path, identity=identity_of(9)).restore(device="cpu")
