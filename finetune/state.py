"""The state of a fine-tuning on disk: one checkpoint, from which a rerun goes on to the same bits.

    state/step-00000300.safetensors    weights and moments of every layer, in training's units
    state/state.json                   step, norms of the balance, settings and inputs, the seal of the other file
    steps.jsonl                        a line every log_every steps; what is beyond the checkpoint is cut off

The arrays' file is written first and the JSON, which names it, last. Everything else is a function of seed and step.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError
from common.reading import parse_json
from common.sealed.document import check_checksum, with_checksum
from common.sealed.tensors import FileSeal, read_tensors, write_tensors
from finetune.objective import Balance
from finetune.tuned import Tuned
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.record.identity import differences

FORMAT_VERSION = 1
"""Of both files of the state."""
STATE_FOLDER = "state"
STATE_FILE = "state.json"
LOG_FILE = "steps.jsonl"
_FRESH = "Start again with --fresh, or give the result another name."


@dataclass
class Progressed:
    """How far a run is: steps done, and the balance of its gradients."""

    step: int
    balance: Balance


class State:
    """The checkpoint and the log of one run in ``folder``; ``identity`` is what a checkpoint must agree with.

    Every process reads; one alone ``writes``.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, writes: bool = True) -> None:
        self._folder = folder
        self._writes = writes
        self._identity = json.loads(json.dumps(identity))

    def restore(self, tuned: dict[int, Tuned]) -> Progressed:
        """Bring the dictionaries to where the run was; step 0 where it has not begun.

        Raises MismatchError for another run's checkpoint, DamagedError for a damaged one.
        """
        path = self._folder / STATE_FOLDER / STATE_FILE
        if not path.is_file():
            self._cut_log(0)
            return Progressed(0, Balance())
        document = _read(path)
        if document.get("format_version") != FORMAT_VERSION:
            raise MismatchError(
                f"Format version {document.get('format_version')!r} is unknown to this release.", where=path
            )
        if changed := differences(document["identity"], self._identity):
            what = f"This fine-tuning was started with other settings or inputs: {'; '.join(changed)}."
            raise MismatchError(what, where=path, remedy=_FRESH)
        arrays = read_tensors(self._arrays(document["step"]), FileSeal.parse(document["arrays"], location=path))
        for layer, piece in tuned.items():
            _put(piece, layer, arrays)
        self._cut_log(document["log_bytes"])
        return Progressed(document["step"], Balance(**document["balance"]))

    def save(self, tuned: dict[int, Tuned], progressed: Progressed) -> None:
        """Replace the checkpoint."""
        if not self._writes:
            return
        arrays = {name: array for layer, piece in tuned.items() for name, array in _arrays_of(piece, layer).items()}
        seal = write_tensors(self._arrays(progressed.step), arrays)
        log = self._folder / LOG_FILE
        document = {
            "format_version": FORMAT_VERSION,
            "step": progressed.step,
            "balance": asdict(progressed.balance),
            "identity": self._identity,
            "arrays": seal.as_dict(),
            "log_bytes": disk.size_bytes(log),
        }
        text = json.dumps(with_checksum(document), indent=1) + "\n"
        disk.write_file(self._folder / STATE_FOLDER / STATE_FILE, text.encode())
        for path in sorted((self._folder / STATE_FOLDER).glob("step-*.safetensors")):
            if path != self._arrays(progressed.step):
                disk.remove(path)

    def add_line(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        if self._writes:
            disk.append_line(self._folder / LOG_FILE, json.dumps(line).encode() + b"\n")

    def _cut_log(self, size: int) -> None:
        log = self._folder / LOG_FILE
        there = disk.size_bytes(log)
        if there < size:
            raise DamagedError("The log is shorter than when the checkpoint was saved.", where=log, remedy=_FRESH)
        if there > size and self._writes:
            disk.truncate(log, size)

    def _arrays(self, step: int) -> Path:
        return self._folder / STATE_FOLDER / f"step-{step:08d}.safetensors"


def _read(path: Path) -> dict[str, Any]:
    """The sealed document. Raises DamagedError where it is not what was written."""
    try:
        document: Any = parse_json(path.read_bytes())
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DamagedError("The saved state of this fine-tuning cannot be read.", where=path, remedy=_FRESH)
    check_checksum(document, location=path, remedy=_FRESH)
    return document


def _arrays_of(tuned: Tuned, layer: int) -> dict[str, Tensor]:
    kinds = {"weight": tuned.weights.tensors(), "first": tuned.moments.first, "second": tuned.moments.second}
    return {f"{layer}.{kind}.{name}": array for kind, arrays in kinds.items() for name, array in arrays.items()}


def _put(tuned: Tuned, layer: int, arrays: dict[str, Tensor]) -> None:
    """Copy a checkpoint's arrays to new memory: products on mapped files may differ in the last bit."""

    def of_kind(kind: str) -> dict[str, Tensor]:
        device = tuned.weights.b_enc.device
        return {name: arrays[f"{layer}.{kind}.{name}"].clone().to(device) for name in tuned.weights.tensors()}

    tuned.weights = Parameters(**of_kind("weight"))
    tuned.moments = Moments(of_kind("first"), of_kind("second"))
    tuned.show()
