"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-00000500.safetensors    weights, moments, tokens since each feature fired
    checkpoints/step-00000500.json           step, tokens, settings, cache fingerprint, software
    checkpoints/index.json                   a line a checkpoint: sizes and hashes of its files and of the log

Each file is written under another name, flushed and renamed, the index last: a file that it does not name is ignored. A
step depends only on state and batch, and the order of the batches only on a seed, so there is no random state to save.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from common import disk
from common.errors import DamagedError, MismatchError
from common.progress import Progress
from common.sealed.tensors import FileSeal, read_tensors, write_tensors
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.dead.features import Room
from train.record.checkpoint_index import FORMAT_VERSION, INDEX_FILE, Entry, index_text, read_index
from train.record.identity import RunIdentity, differences
from train.state import State

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Restored:
    """What is read from a checkpoint: the state, and the seal of the log at that time."""

    state: Any
    log: FileSeal


class Checkpoints:
    """The checkpoints of one run, in ``folder``. They must agree with ``identity``: settings and cache.

    ``to_arrays`` and ``from_arrays`` turn a kind's state into named arrays and back; those of a transcoder if None.
    Of several processes only one ``writes``; the others only restore.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: RunIdentity,
        keep: int,
        progress: Progress,
        writes: bool = True,
        to_arrays: Callable[[Any], dict[str, torch.Tensor]] | None = None,
        from_arrays: Callable[..., Any] | None = None,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._keep = keep
        self._progress = progress
        self._to_arrays = to_arrays or arrays_of
        self._from_arrays = from_arrays or state_of
        self.entries = self._known_entries()
        if writes:
            self._remove_unnamed()

    @property
    def best(self) -> Entry | None:
        """The checkpoint with the lowest held-out FVU; of equal ones the later."""
        return next(iter(self._from_best()), None)

    def save(self, state: Any, *, log: FileSeal, held_out_fvu: float | None) -> None:
        """Write a checkpoint, then the index that names it, then remove what is no longer kept.

        ``log`` is the seal of the log, which is already on the disk.
        """
        arrays = write_tensors(arrays_path(self._folder, state.step), self._to_arrays(state))
        facts = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "tokens": state.tokens,
            "software": software(state.device),
            "identity": self._identity.record(),
            **({"dead_room": state.room.record()} if state.room else {}),
        }
        text = (json.dumps(facts, indent=1) + "\n").encode()
        disk.write_file(facts_path(self._folder, state.step), text)
        entry = Entry(state.step, arrays, _seal_of(text), log, held_out_fvu)

        self.entries = [*(known for known in self.entries if known.step != state.step), entry]
        kept = {*self.entries[-self._keep :], *([self.best] if self.best else [])}
        self.entries = [known for known in self.entries if known in kept]
        disk.write_file(self._folder / INDEX_FILE, index_text(self.entries))
        self._remove_unnamed()

    def restore(self, *, device: str) -> Restored | None:
        """The newest undamaged checkpoint from which this run may go on; None if there are no checkpoints.

        A note names each damaged checkpoint, and the one before it is tried. Raises MismatchError if one belongs to
        other settings or another cache, or if the run gets more steps after its rate began to fall; DamagedError if
        all are damaged.
        """
        is_any_intact = False
        for entry in reversed(self.entries):
            try:
                state = self._read(entry, device=device)
            except DamagedError as error:
                self._progress.note(
                    f"The checkpoint of step {entry.step} is damaged, so an earlier one is tried: {error.what}"
                )
                continue
            is_any_intact = True
            if state is not None:
                self.entries = [known for known in self.entries if known.step <= entry.step]
                return Restored(state, entry.log)
        if is_any_intact:
            raise MismatchError(
                "With more steps, the learning rate would have been different before every checkpoint.",
                where=self._folder,
                remedy="A run can get more steps only while its rate is constant: with train.schedule: constant, or "
                "from a checkpoint before the last train.decay_steps. Otherwise give the run another name.",
            )
        if self.entries:
            raise DamagedError("Every checkpoint is damaged.", where=self._folder, remedy="Start again with --fresh.")
        return None

    def best_state(self, *, device: str) -> Any:
        """The best checkpoint's state, or that of the next best if it is damaged; None if none was measured."""
        for entry in self._from_best():
            try:
                return self._read(entry, device=device)
            except DamagedError as error:
                self._progress.note(f"The best checkpoint, of step {entry.step}, is damaged: {error.what}")
        return None

    def _from_best(self) -> list[Entry]:
        """Checkpoints that were measured, best first; of equal ones the later first."""
        measured = [entry for entry in reversed(self.entries) if entry.held_out_fvu is not None]
        return sorted(measured, key=lambda entry: entry.held_out_fvu or 0.0)

    def _known_entries(self) -> list[Entry]:
        """The entries of the index. Raises DamagedError if it is damaged and no entry can be read."""
        index = read_index(self._folder)
        if index.is_intact:
            return index.entries
        if not index.entries:
            raise DamagedError(
                "The index of the checkpoints is damaged.",
                where=self._folder / INDEX_FILE,
                remedy="Start again with --fresh.",
            )
        steps = ", ".join(str(entry.step) for entry in index.entries)
        self._progress.note(f"The index of the checkpoints is damaged; its entries for step {steps} can still be read.")
        return index.entries

    def _read(self, entry: Entry, *, device: str) -> Any:
        """The state of a checkpoint; None if a run with more steps may not go on from it."""
        path = facts_path(self._folder, entry.step)
        text = path.read_bytes() if path.is_file() else b""
        if _seal_of(text) != entry.facts:
            raise DamagedError("Its JSON file is missing or was changed.", where=path)
        facts = json.loads(text)
        if not self._identity.goes_on_from(facts["identity"], step=entry.step, location=path):
            return None
        arrays = read_tensors(arrays_path(self._folder, entry.step), entry.arrays, device=device)
        if changed := differences(facts["software"], software(torch.device(device))):
            self._progress.note(
                f"Software or hardware has changed, so results may differ in the last bits: {'; '.join(changed)}."
            )
        state = self._from_arrays(arrays, step=facts["step"], tokens=facts["tokens"])
        if counted := facts.get("dead_room"):
            state.room = Room(*counted)
        return state

    def _remove_unnamed(self) -> None:
        """Remove files that the index does not name: left after a kill, or no longer kept."""
        steps = [entry.step for entry in self.entries]
        named = {path(self._folder, step) for step in steps for path in (arrays_path, facts_path)}
        for path in self._folder.glob("*step-*"):
            if path not in named:
                disk.remove(path)


def arrays_path(folder: Path, step: int) -> Path:
    """Where a checkpoint's arrays are."""
    return folder / f"step-{step:08d}.safetensors"


def facts_path(folder: Path, step: int) -> Path:
    """Where a checkpoint's step, settings and software are."""
    return folder / f"step-{step:08d}.json"


def arrays_of(state: State) -> dict[str, torch.Tensor]:
    """The arrays of a state by name, as in the file."""
    named = {
        **state.weights.tensors(),
        **{f"{name}.first": array for name, array in state.moments.first.items()},
        **{f"{name}.second": array for name, array in state.moments.second.items()},
    }
    return {name: _as_in_file(name, array) for name, array in named.items()} | {"since_fired": state.since_fired}


def state_of(arrays: Mapping[str, torch.Tensor], *, step: int, tokens: int) -> State:
    """The inverse of ``arrays_of``, copied to new memory: arrays of a mapped file can begin anywhere in a cache line,
    and then a matrix product can differ in the last bit."""
    laid_out = {
        name: _as_in_file(name, array).clone(memory_format=torch.contiguous_format) for name, array in arrays.items()
    }
    names = [name for name in laid_out if "." not in name and name != "since_fired"]
    return State(
        weights=Parameters(**{name: laid_out[name] for name in names}),
        moments=Moments(*(_moment(laid_out, names, moment) for moment in ("first", "second"))),
        since_fired=laid_out["since_fired"],
        step=step,
        tokens=tokens,
    )


def _moment(arrays: Mapping[str, torch.Tensor], names: list[str], moment: str) -> dict[str, torch.Tensor]:
    """One of the two moments; the first may be empty."""
    return {name: arrays[f"{name}.{moment}"] for name in names if f"{name}.{moment}" in arrays}


def _as_in_file(name: str, array: torch.Tensor) -> torch.Tensor:
    """The encoder is (d_source, dict_size) in files and feature-major in memory: transposed both ways."""
    return array.T if name.startswith("W_enc") else array


def software(device: torch.device) -> dict[str, Any]:
    """What the bits of a step depend on, besides its inputs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name}


def _seal_of(text: bytes) -> FileSeal:
    return FileSeal(len(text), xxhash.xxh3_128_hexdigest(text))
