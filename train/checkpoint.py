"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/step-00000500.safetensors    weights, moments, tokens since each feature fired
    checkpoints/step-00000500.json           step, tokens, settings, cache fingerprint, software
    checkpoints/index.json                   a line a checkpoint: sizes and hashes of its files, length of the log

Each file is written aside, flushed and renamed, the index last: what it does not name does not exist. Every line of it
has a hash, and all together have one more, so that damage to a line is noticed and leaves the others of use. A step is
a pure function of state and batch and the order of reading of its seed, so there is no random state to keep.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from common import disk
from common.errors import DamagedError, MismatchError
from common.progress import Progress
from common.sealed_tensors import FileSeal, read_tensors, write_tensors
from train.identity import RunIdentity, differences
from train.optim import Moments
from train.parameters import Parameters
from train.step import State

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A line of the index. ``held_out_fvu`` is None for a checkpoint that was not judged."""

    step: int
    arrays: FileSeal
    facts: FileSeal
    log_bytes: int
    held_out_fvu: float | None


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back."""

    state: State
    log_bytes: int


class Checkpoints:
    """The checkpoints of one run. ``identity`` is what they must agree with: settings and cache.

    Of several processes one ``writes``; the others only restore.
    """

    def __init__(
        self, folder: Path, *, identity: RunIdentity, keep: int, progress: Progress, writes: bool = True
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._keep = keep
        self._progress = progress
        self.entries = _read_index(folder, progress)
        if writes:
            self._remove_others()

    @property
    def best(self) -> Entry | None:
        """The one with the lowest held-out FVU, the later of equals."""
        judged = [entry for entry in self.entries if entry.held_out_fvu is not None]
        return min(reversed(judged), key=lambda entry: entry.held_out_fvu or 0.0, default=None)

    def save(self, state: State, *, log_bytes: int, held_out_fvu: float | None) -> None:
        """Write a checkpoint, then the index that names it, then remove what is no longer kept."""
        arrays = write_tensors(self._arrays(state.step), arrays_of(state))
        facts = {"format_version": FORMAT_VERSION, "step": state.step, "tokens": state.tokens}
        text = _json(facts | {"software": software(state.weights.b_enc.device), "identity": self._identity.record()})
        disk.write_file(self._facts(state.step), text)
        seal = FileSeal(len(text), xxhash.xxh3_128_hexdigest(text))
        others = [entry for entry in self.entries if entry.step != state.step]
        self.entries = [*others, Entry(state.step, arrays, seal, log_bytes, held_out_fvu)]
        kept = {*self.entries[-self._keep :], *([self.best] if self.best else [])}
        self.entries = [entry for entry in self.entries if entry in kept]
        disk.write_file(self._folder / _INDEX, _index_text(self.entries))
        self._remove_others()

    def restore(self, *, device: str) -> Restored | None:
        """The newest checkpoint that is whole and that this run may go on from; None where there is none at all.

        A damaged one is named in a note and passed over. Raises MismatchError where one belongs to other settings or
        another cache, or where a run that is given more steps had begun to lower its rate; DamagedError where none is
        whole.
        """
        is_any_whole = False
        for entry in reversed(self.entries):
            try:
                state = self._read(entry, device=device)
            except DamagedError as error:
                self._progress.note(f"The checkpoint of step {entry.step} is damaged and passed over: {error.what}")
                continue
            is_any_whole = True
            if state is None:
                continue
            self.entries = [known for known in self.entries if known.step <= entry.step]
            return Restored(state, entry.log_bytes)
        if is_any_whole:
            raise MismatchError(
                "With more steps the learning rate before every checkpoint would have been another.",
                where=self._folder,
                remedy="A run can be given more steps while its rate is constant: train.schedule: constant, or a "
                "checkpoint from before the last train.decay_steps. Otherwise give the run another name.",
            )
        if self.entries:
            raise DamagedError("No checkpoint is whole.", where=self._folder, remedy="Start again with --fresh.")
        return None

    def _read(self, entry: Entry, *, device: str) -> State | None:
        """The state of a checkpoint; None where a run with more steps may not go on from it."""
        text = self._facts(entry.step).read_bytes() if self._facts(entry.step).is_file() else b""
        if FileSeal(len(text), xxhash.xxh3_128_hexdigest(text)) != entry.facts:
            raise DamagedError("Its JSON file is missing or altered.", where=self._facts(entry.step))
        facts = json.loads(text)
        if not self._identity.goes_on_from(facts["identity"], step=entry.step, where=self._facts(entry.step)):
            return None
        arrays = read_tensors(self._arrays(entry.step), entry.arrays, device=device)
        here = software(torch.device(device))
        if changed := differences(facts["software"], here):
            self._progress.note(f"Going on with other software or hardware, so not bit for bit: {'; '.join(changed)}.")
        return state_of(arrays, step=facts["step"], tokens=facts["tokens"])

    def _remove_others(self) -> None:
        """Remove files that the index does not name: left by a kill, or no longer kept."""
        named = {path for entry in self.entries for path in (self._arrays(entry.step), self._facts(entry.step))}
        for path in self._folder.glob("*step-*"):
            if path not in named:
                disk.remove(path)

    def _arrays(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"

    def _facts(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.json"


_INDEX = "index.json"


def arrays_of(state: State) -> dict[str, torch.Tensor]:
    """The arrays of a state by name."""
    arrays = {
        **state.weights.tensors(),
        **{f"{name}.first": array for name, array in state.moments.first.items()},
        **{f"{name}.second": array for name, array in state.moments.second.items()},
        "since_fired": state.since_fired,
    }
    return {name: _as_in_file(name, array) for name, array in arrays.items()}


def state_of(arrays: Mapping[str, torch.Tensor], *, step: int, tokens: int) -> State:
    """The inverse of ``arrays_of``, in memory of its own: a matrix product on arrays that begin elsewhere within a
    cache line, as those of a mapped file do, can differ in the last bit."""
    laid_out = {
        name: _as_in_file(name, array).clone(memory_format=torch.contiguous_format) for name, array in arrays.items()
    }
    names = [name for name in laid_out if "." not in name and name != "since_fired"]
    return State(
        weights=Parameters(**{name: laid_out[name] for name in names}),
        moments=Moments(*({name: laid_out[f"{name}.{part}"] for name in names} for part in ("first", "second"))),
        since_fired=laid_out["since_fired"],
        step=step,
        tokens=tokens,
    )


def _as_in_file(name: str, array: torch.Tensor) -> torch.Tensor:
    """The encoder is (d_source, dict_size) in files and feature-major in memory: transposed both ways."""
    return array.T if name.startswith("W_enc") else array


def software(device: torch.device) -> dict[str, Any]:
    """What the bits of a step depend on besides its inputs."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": on}


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1) + "\n").encode()


def _index_text(entries: list[Entry]) -> bytes:
    """The index: a header line with the hash of what follows, then a line a checkpoint, newest last."""
    lines = [
        {
            "step": entry.step,
            "arrays": entry.arrays.said(),
            "facts": entry.facts.said(),
            "log_bytes": entry.log_bytes,
            "held_out_fvu": entry.held_out_fvu,
        }
        for entry in entries
    ]
    body = b"".join(_sealed(line) + b"\n" for line in lines)
    return _header(body) + b"\n" + body


def _header(body: bytes) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, "xxh3_128": xxhash.xxh3_128_hexdigest(body)}).encode()


def _read_index(folder: Path, progress: Progress) -> list[Entry]:
    """The entries of the index, oldest first; none where there is no index, the whole ones with a note where it is
    damaged. Raises DamagedError where none is whole, MismatchError for another format version."""
    path = folder / _INDEX
    if not path.is_file():
        return []
    head, _, body = path.read_bytes().partition(b"\n")
    version = _parsed(head).get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise MismatchError(f"Checkpoints of format version {version!r} are unknown to this release.", where=path)
    entries = [_entry(line, where=path) for line in map(_unsealed, body.splitlines()) if line]
    if head != _header(body):
        if not entries:
            raise DamagedError(
                "The index of the checkpoints is damaged.", where=path, remedy="Start again with --fresh."
            )
        steps = ", ".join(str(entry.step) for entry in entries)
        progress.note(f"The index of the checkpoints is damaged; what it still says of step {steps} is whole.")
    return entries


def _sealed(line: Mapping[str, Any]) -> bytes:
    """A line of the index with its own hash."""
    return json.dumps({**line, "xxh3_128": _hash_of(line)}).encode()


def _unsealed(text: bytes) -> dict[str, Any]:
    """The line again; empty where it is not what was written."""
    line = _parsed(text)
    seal = line.pop("xxh3_128", None)
    return line if seal == _hash_of(line) else {}


def _hash_of(line: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(line).encode())


def _parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _entry(line: Any, *, where: Path) -> Entry:
    return Entry(
        step=line["step"],
        arrays=FileSeal.parse(line["arrays"], where=where),
        facts=FileSeal.parse(line["facts"], where=where),
        log_bytes=line["log_bytes"],
        held_out_fvu=line["held_out_fvu"],
    )
