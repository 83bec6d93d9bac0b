"""Folders of activations that other tools left, read example by example.

    safetensors   each file: source, and target, tokens, document, position where there are; (rows, d) or (contexts,
                  pos, d)
    npy           each file a source of that shape; targets and tokens in folders of their own, under the same names
    saelens       a dataset saved to disk, a column named like the hook, (pos, d) a row, and token_ids
    saev          metadata.json, shards.json and acts*.bin: (examples, layers, tokens, d) in float32

An example is a context (or a file of rows, in pieces of 1,024), and a document of its own where none is named.
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
"""Rows of a file without contexts that make one document: many enough to hold out whole ones."""


class Folder(ABC):
    """A folder of one form. ``kind`` names the form, ``hook`` what its files call their site ("" where they do not)."""

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
            yield from _contexts_of(columns, where=path)


@dataclass(frozen=True)
class NpyFolder(Folder):
    """Arrays, a file each; never a pickle."""

    path: Path
    kind: str = "npy"

    @property
    def files(self) -> list[Path]:
        """What is read."""
        return sorted(self.path.glob("*.npy"))

    def examples(self) -> Iterator[dict[str, Any]]:
        """Columns of each example."""
        for path in self.files:
            yield from _contexts_of({"source": torch.from_numpy(_read_npy(path))}, where=path)


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
            raise UsageError(f"This dataset has the columns {columns}: one hook is expected.", where=self.path)
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
            raise DamagedError(f"saev's metadata does not say {error}.", where=self.path) from None
        if about.get("dtype") != "float32":
            raise UsageError(f"saev's shards are float32, not {about.get('dtype')}.", where=self.path)
        if self.layer not in layers:
            raise UsageError(f"These shards hold layers {layers}, not {self.layer}.", where=self.path)
        for name, examples in shards:
            path = self.path / name
            shape = (examples, len(layers), tokens, width)
            if not path.is_file() or path.stat().st_size != 4 * int(np.prod(shape)):
                raise DamagedError(f"The shard is not the {shape} floats that shards.json says.", where=path)
            mapped = np.memmap(path, np.float32, "r", shape=shape)
            for example in mapped[:, layers.index(self.layer)]:
                yield {"source": torch.from_numpy(np.array(example))}


def open_folder(path: Path, *, layer: int) -> Folder:
    """Whatever form a folder has. Raises UsageError for none that is known."""
    if (path / "metadata.json").is_file() and (path / "shards.json").is_file():
        return SaevFolder(path, layer)
    if (path / "dataset_info.json").is_file():
        return SaelensFolder(path)
    for folder in (SafetensorsFolder(path), NpyFolder(path)):
        if folder.files:
            return folder
    what = "This is neither a folder of safetensors or npy files, nor a dataset of SAELens, nor shards of saev."
    raise UsageError(what, where=path, remedy="Any other form: give its tensors to nestcoder.write_cache.")


@dataclass(frozen=True)
class Paired:
    """A source folder, and a target and tokens from folders with the same examples in the same order."""

    source: Folder
    target: Folder | None = None
    tokens: Folder | None = None

    def batches(self) -> Iterator[dict[str, Any]]:
        """An example each, numbered as documents. Raises UsageError where the folders do not pair."""
        others = {name: folder for name, folder in (("target", self.target), ("tokens", self.tokens)) if folder}
        streams = {name: folder.examples() for name, folder in others.items()}
        for number, columns in enumerate(self.source.examples()):
            given = dict(columns)
            for name, stream in streams.items():
                given[name] = _beside(next(stream, None), given, name, number, where=others[name].path)  # pyright: ignore
            rows = len(given["source"])
            given.setdefault("document", np.full(rows, number))
            given.setdefault("position", np.arange(rows))
            yield given
        for name, stream in streams.items():
            if next(stream, None) is not None:
                raise UsageError(f"The {name} folder has more examples than the source.", where=others[name].path)  # pyright: ignore


def _beside(other: dict[str, Any] | None, given: dict[str, Any], name: str, number: int, *, where: Path) -> Any:
    """The column of another folder's example. Raises UsageError where it is of other rows."""
    if other is None:
        raise UsageError(f"The {name} folder has fewer examples than the source: none of number {number}.", where=where)
    values = other["source"]
    if len(values) != len(given["source"]):
        what = f"Example {number}: {len(values)} rows of {name} beside {len(given['source'])} of the source."
        raise UsageError(what, where=where)
    if name == "target" and "tokens" in other and "tokens" in given:
        same = np.array_equal(np.asarray(other["tokens"]), np.asarray(given["tokens"]))
        if not same:
            raise UsageError(f"Example {number}: source and target are of other tokens.", where=where)
    return values.reshape(-1) if name == "tokens" else values


def _contexts_of(columns: dict[str, torch.Tensor], *, where: Path) -> Iterator[dict[str, Any]]:
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
        raise DamagedError(f"The source has shape {tuple(source.shape)}: (rows, d) or (contexts, pos, d).", where=where)
    for start in range(0, len(source), PIECE_ROWS):
        yield {name: values[start : start + PIECE_ROWS] for name, values in columns.items()}


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DamagedError(f"The file is not a plain array: {error}.", where=path) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"The file cannot be read: {error}.", where=path) from None
