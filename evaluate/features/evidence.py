"""Feature evidence on disk: what is in it, and the three files that hold it.

    evidence.safetensors    arrays: one row a feature; the rows of text; the values of features in the contexts shown
    tokens.json             the text of every token id that occurs
    evidence.json           where all of it comes from, settings, the sizes and hashes of the other two; written last

Features that never fire have zeros. A context is the number of a row; the tokens on either side are its neighbours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped

from common import disk
from common.errors import DamagedError, MismatchError, UsageError
from common.hashing import hash_bytes
from common.sealed.tensors import FileSeal, read_tensors, write_tensors
from evaluate.features.contexts import Text, text_of
from evaluate.features.relations import children_of
from transcoder.formats.native import read_config

FORMAT_VERSION = 2
"""Version 1 had neither clusters nor a map."""
ARRAYS_FILE = "evidence.safetensors"
TOKENS_FILE = "tokens.json"
HEAD_FILE = "evidence.json"


@dataclass(frozen=True)
class Evidence:
    """``head`` is evidence.json without the seals; ``arrays`` are named in ``evaluate.features.collect``."""

    head: Mapping[str, Any]
    arrays: Mapping[str, Shaped[np.ndarray, "..."]]
    words: Mapping[int, str]

    @property
    def dict_size(self) -> int:
        """How many features there are."""
        return len(self.arrays["firings"])

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The prefixes of the transcoder, in features."""
        return tuple(self.head["transcoder"]["prefixes"])

    @property
    def layer(self) -> int:
        """The layer of the language model."""
        return int(self.head["cache"]["layer"])

    @property
    def model(self) -> str:
        """The language model's name, without the folders or the owner before it."""
        return str(self.head["cache"]["model"]).rstrip("/").split("/")[-1]

    @property
    def dataset(self) -> str:
        """The name of the text."""
        dataset = self.head["cache"]["dataset"] or {}
        return str(dataset.get("name") or dataset.get("kind") or "text") if isinstance(dataset, dict) else str(dataset)

    @property
    def tokens(self) -> int:
        """Rows counted."""
        return int(self.head["tokens"])

    @cached_property
    def text(self) -> Text:
        """The rows that contexts are numbers of."""
        tokens = self.arrays["text_token"]
        counted = ~np.isin(tokens, np.array(self.head["special_ids"], dtype=np.int64))
        return text_of(tokens, self.arrays["text_document"], self.arrays["text_position"], counted)

    @cached_property
    def occurs(self) -> Bool[np.ndarray, " vocabulary"]:
        """Whether each token id stands anywhere in the rows; ids beyond the largest named one are left out."""
        there = np.zeros(max(self.words, default=0) + 1, dtype=bool)
        there[self.arrays["text_token"]] = True
        return there

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The finer features whose parent each feature is."""
        return children_of(self.arrays["coarser_feature"][:, 0])

    def values(self, feature: int, first: int, end: int) -> Float[np.ndarray, " rows"]:
        """The feature's values on the rows of a window of one of its contexts."""
        start, stop = self.arrays["entry_offsets"][feature : feature + 2]
        rows = self.arrays["entry_row"][start:stop]
        low, high = np.searchsorted(rows, (first, end))
        values = np.zeros(end - first, dtype=np.float32)
        values[rows[low:high] - first] = self.arrays["entry_value"][start:stop][low:high]
        return values

    def word(self, token: int) -> str:
        """The text of a token id."""
        return self.words.get(token, f"[{token}]")


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write the three files, each completely or not at all; evidence.json has the hashes of the others."""
    seal = write_tensors(folder / ARRAYS_FILE, {name: _tensor(array) for name, array in evidence.arrays.items()})
    words = json.dumps({str(token): text for token, text in sorted(evidence.words.items())}, indent=0).encode()
    disk.write_file(folder / TOKENS_FILE, words)
    head = {
        "format_version": FORMAT_VERSION,
        **evidence.head,
        "files": {
            ARRAYS_FILE: seal.as_dict(),
            TOKENS_FILE: FileSeal(len(words), hash_bytes(words)).as_dict(),
        },
    }
    disk.write_file(folder / HEAD_FILE, (json.dumps(head, indent=1) + "\n").encode())


def read_evidence(folder: Path | str) -> Evidence:
    """The evidence in a folder, checked against its hashes.

    Raises UsageError where there is none, DamagedError, MismatchError for a format version that is not known.
    """
    folder = Path(folder)
    head = _checked_head(folder / HEAD_FILE)
    seals = head.pop("files")
    arrays = read_tensors(folder / ARRAYS_FILE, FileSeal.parse(seals.get(ARRAYS_FILE), location=folder / HEAD_FILE))
    seal = FileSeal.parse(seals.get(TOKENS_FILE), location=folder / HEAD_FILE)
    words = _read_bytes(folder / TOKENS_FILE)
    if (len(words), hash_bytes(words)) != (seal.size, seal.hash):
        raise DamagedError("The file with the tokens' text was changed.", where=folder / TOKENS_FILE)
    return Evidence(
        head=head,
        arrays={name: array.numpy() for name, array in arrays.items()},
        words={int(token): text for token, text in json.loads(words).items()},
    )


def made_of(evidence: Evidence, dictionaries: Sequence[Path], *, path: Path) -> Path | None:
    """Of these dictionary folders, the one that the evidence in ``path`` was collected from.

    None if it is no longer there. Raises MismatchError if all of them have other weights.
    """
    weights = evidence.head["transcoder"]["weights"]
    for folder in dictionaries:
        own = read_config(folder).get("weights")
        if not weights or not own or own == weights:
            return folder
    if dictionaries:
        what = "This evidence was taken from other weights than the transcoder has now."
        raise MismatchError(what, where=path, remedy="Run 'nestcoder features --layer N' again.")
    return None


def read_head(folder: Path) -> dict[str, Any]:
    """evidence.json without the seals. Raises what ``read_evidence`` raises for that file."""
    head = _checked_head(folder / HEAD_FILE)
    del head["files"]
    return head


def _checked_head(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "There is no feature evidence here."
        raise UsageError(what, where=path.parent, remedy="Run 'nestcoder features --layer N' first.")
    try:
        head = json.loads(_read_bytes(path))
    except ValueError as error:
        raise DamagedError(f"The file is not JSON: {error}.", where=path) from None
    if not isinstance(head, dict) or head.get("format_version") != FORMAT_VERSION:
        found = head.get("format_version") if isinstance(head, dict) else None
        raise MismatchError(
            f"Format version {found!r} of feature evidence is unknown to this release.",
            where=path,
            remedy="Run 'nestcoder features --layer N' again.",
        )
    if not isinstance(head.get("files"), dict):
        raise DamagedError("The sizes and hashes of the files are missing.", where=path)
    return head


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"The file cannot be read: {error.strerror}.", where=path) from None


def _tensor(array: Shaped[np.ndarray, "..."]) -> torch.Tensor:
    kind = {"f": np.float32, "i": np.int32}[array.dtype.kind]
    if array.dtype.kind == "i" and array.size and np.abs(array).max() >= 1 << 31:
        kind = np.int64
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
