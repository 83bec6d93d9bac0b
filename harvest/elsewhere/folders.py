"""Folders of activations that other tools wrote, read example by example.

    safetensors   each file: source, and optionally target, tokens, document, position; (rows, d) or (contexts, pos, d)
    npy           each file: a source of that shape; targets and tokens in other folders, with the same file names
    saelens       a dataset saved to disk: a column with the name of the hook, (pos, d) in each row, and token_ids
    saev          metadata.json, shards.json and acts*.bin: (examples, layers, tokens, d) in float32

An example is a context, or 1,024 rows of a file without contexts. Each is one document if no documents are given.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from common.errors import DamagedError, UsageError
from common.sealed.tensors import reading_safetensors

PIECE_ROWS = 1024
"""Rows of a file without contexts that make one document: small enough that a file has several to hold out."""


class Folder(ABC):
    """A folder in one format. ``kind`` is the format, ``hook`` the files' name of their site ("" if they have none)."""

    kind: str
    hook: str = ""

    @abstractmethod
    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example; ``source`` is (rows, d)."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """What is read."""


@dataclass(frozen=True)
class SafetensorsFolder(Folder):
    """Files with named tensors."""

    path: Path
    kind: str = "safetensors"

    @property
    def files(self) -> list[Path]:
        """What is read."""
        return sorted(self.path.glob("*.safetensors"))

    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example."""
        for path in self.files:
            with reading_safetensors(path), safe_open(path, framework="pt") as file:
                names = list(file.keys())
                columns = {name: file.get_tensor(name) for name in names}
            if "source" not in columns and len(columns) == 1:
                columns = {"source": columns[names[0]]}
            if "source" not in columns:
                raise DamagedError(f"The file has {names}, and no tensor named source.", where=path)
            yield from _contexts_of(columns, path=path)


@dataclass(frozen=True)
class NpyFolder(Folder):
    """Files with one array each; never a pickle."""

    path: Path
    kind: str = "npy"

    @property
    def files(self) -> list[Path]:
        """What is read."""
        return sorted(self.path.glob("*.npy"))

    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example."""
        for path in self.files:
            yield from _contexts_of({"source": torch.from_numpy(_read_npy(path))}, path=path)


@dataclass(frozen=True)
class SaelensFolder(Folder):
    """SAELens's cached activations."""

    path: Path
    kind: str = "saelens"

    @property
    def files(self) -> list[Path]:
        """What is read."""
        return sorted(self.path.glob("*.arrow"))

    @cached_property
    def _dataset(self) -> Any:
        from datasets import load_from_disk

        try:
            return load_from_disk(str(self.path)).with_format("numpy")
        except (OSError, ValueError) as error:
            raise DamagedError(f"This dataset cannot be loaded: {error}.", where=self.path) from None

    @property
    def hook(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The column that is not the tokens."""
        columns = [name for name in self._dataset.column_names if name != "token_ids"]
        if len(columns) != 1:
            raise UsageError(f"This dataset has the columns {columns}; one hook is expected.", where=self.path)
        return str(columns[0])

    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example."""
        hook = self.hook
        has_tokens = "token_ids" in self._dataset.column_names
        for row in self._dataset:
            columns = {"source": torch.from_numpy(np.asarray(row[hook], np.float32))}
            if has_tokens:
                columns["tokens"] = torch.from_numpy(np.asarray(row["token_ids"], np.int64))
            yield columns


@dataclass(frozen=True)
class SaevFolder(Folder):
    """saev's shards, one of their layers."""

    path: Path
    layer: int
    kind: str = "saev"

    @property
    def files(self) -> list[Path]:
        """What is read."""
        return sorted(self.path.glob("acts*.bin"))

    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example."""
        about = _json(self.path / "metadata.json")
        try:
            layers = list(about["layers"])
            per_example = int(about["patches_per_ex"])
            tokens = per_example + bool(about["cls_token"])
            width = int(about["d_model"])
            shards = [(str(shard["name"]), int(shard["n_examples"])) for shard in _json(self.path / "shards.json")]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"saev's metadata lacks {error}.", where=self.path) from None
        if about.get("dtype") != "float32":
            raise UsageError(f"The shards have dtype {about.get('dtype')}; float32 is expected.", where=self.path)
        if self.layer not in layers:
            raise UsageError(f"The shards have the layers {layers}, but not {self.layer}.", where=self.path)
        for name, examples in shards:
            path = self.path / name
            shape = (examples, len(layers), tokens, width)
            if not path.is_file() or path.stat().st_size != 4 * int(np.prod(shape)):
                raise DamagedError(f"The shard does not have the {shape} floats that shards.json states.", where=path)
            mapped = np.memmap(path, np.float32, "r", shape=shape)
            for example in mapped[:, layers.index(self.layer)]:
                yield {"source": torch.from_numpy(np.array(example))}


def open_folder(path: Path, *, layer: int) -> Folder:
    """The folder, in the format that its files show. Raises UsageError for an unknown format."""
    if (path / "metadata.json").is_file() and (path / "shards.json").is_file():
        return SaevFolder(path, layer)
    if (path / "dataset_info.json").is_file():
        return SaelensFolder(path)
    for folder in (SafetensorsFolder(path), NpyFolder(path)):
        if folder.files:
            return folder
    what = "This folder has no safetensors or npy files, no dataset of SAELens and no shards of saev."
    raise UsageError(what, where=path, remedy="For any other format, give its tensors to nestcoder.write_cache.")


@dataclass(frozen=True)
class Paired:
    """A folder of sources, and folders of targets and tokens with the same examples in the same order."""

    source: Folder
    target: Folder | None = None
    tokens: Folder | None = None

    def batches(self) -> Iterator[dict[str, Any]]:
        """One example after another, numbered as documents. Raises UsageError if the folders do not fit each other."""
        paired = {name: folder for name, folder in (("target", self.target), ("tokens", self.tokens)) if folder}
        streams = {name: folder.examples() for name, folder in paired.items()}
        for number, columns in enumerate(self.source.examples()):
            given = dict(columns)
            for name, stream in streams.items():
                given[name] = _paired_column(next(stream, None), given, name, number, path=paired[name].path)  # pyright: ignore
            rows = len(given["source"])
            given.setdefault("document", np.full(rows, number))
            given.setdefault("position", np.arange(rows))
            yield given
        for name, stream in streams.items():
            if next(stream, None) is not None:
                raise UsageError(f"The {name} folder has more examples than the source.", where=paired[name].path)  # pyright: ignore


def _paired_column(example: dict[str, Any] | None, given: dict[str, Any], name: str, number: int, *, path: Path) -> Any:
    """The column of the same example in another folder. Raises UsageError if it has other rows."""
    if example is None:
        raise UsageError(f"The {name} folder has only {number} examples, fewer than the source.", where=path)
    values = example["source"]
    if len(values) != len(given["source"]):
        what = f"Example {number} has {len(values)} rows of {name} and {len(given['source'])} of the source."
        raise UsageError(what, where=path)
    if name == "target" and "tokens" in example and "tokens" in given:
        same = np.array_equal(np.asarray(example["tokens"]), np.asarray(given["tokens"]))
        if not same:
            raise UsageError(f"Example {number}: the tokens of source and target differ.", where=path)
    return values.reshape(-1) if name == "tokens" else values


def _contexts_of(columns: dict[str, torch.Tensor], *, path: Path) -> Iterator[dict[str, Any]]:
    """The contexts of a file, or its rows in pieces."""
    source = columns["source"]
    if source.ndim == 1:  # one number a row: tokens
        source = columns["source"] = source[:, None]
    if source.ndim == 2 and not source.is_floating_point() and source.shape[1] > 1:
        yield from ({"source": row[:, None]} for row in source)
        return
    if source.ndim == 3:
        for index in range(len(source)):
            yield {name: values[index] for name, values in columns.items()}
        return
    if source.ndim != 2:
        what = f"The source has shape {tuple(source.shape)}; (rows, d) or (contexts, pos, d) is expected."
        raise DamagedError(what, where=path)
    for start in range(0, len(source), PIECE_ROWS):
        yield {name: values[start : start + PIECE_ROWS] for name, values in columns.items()}


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DamagedError(f"The file is not a plain NumPy array: {error}.", where=path) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"The file cannot be read: {error}.", where=path) from None
