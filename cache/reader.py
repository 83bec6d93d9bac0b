"""Reads a cache in a folder: rows, columns and statistics, from memory maps; each chunk is checked the first time.

Chunks of a compressed cache are unpacked into memory instead, a few pools at a time. A target that is not stored is
computed from the source. ``cache.open.open_cache`` also opens caches at a URL.

Views of the source: ``mlp_in`` is the stored input of the MLP; ``ln2_normalized`` is the same before the norm's gain
and bias, (mlp_in - bias) / gain, in float32.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Int32, Int64, Shaped
from torch import Tensor

from cache.format.array import Array
from cache.format.dtypes import TORCH_DTYPES, read_as, to_tensor
from cache.format.int8 import restore
from cache.format.journal import Commit, FileEntry
from cache.format.layout import Group
from cache.format.manifest import MANIFEST, Manifest, first_difference, read_manifest, refuse_links
from cache.format.seal import commits_of
from cache.format.statistics import GroupStatistics, merge_groups, unpack
from cache.small_arrays import SmallArrays
from cache.storage.buffers import Buffers
from cache.storage.chunk_lru import ChunkLru
from cache.storage.columns import Column, UnpackedColumn
from common.errors import DamagedError, MismatchError, UsageError
from common.norm import NormAffine

View = Literal["mlp_in", "ln2_normalized"]
UNPACKED_BYTES = 3_000_000_000
"""The most memory for chunks of a compressed cache: three pools of the loader."""


@dataclass(frozen=True)
class Rows:
    """Some rows. ``source`` (rows, d_source), ``target`` (rows, d_target) in the stored float type (int8: bfloat16)."""

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    tokens: Int32[np.ndarray, " rows"]
    document: Int64[np.ndarray, " rows"]
    position: Int32[np.ndarray, " rows"]


class SplitView:
    """The rows of ``train`` or ``held_out``. ``len()`` is the number of rows."""

    def __init__(self, reader: "CacheReader", group: Group, columns: dict[str, Column]) -> None:
        self.reader = reader
        self.group = group
        self.columns = columns

    def __len__(self) -> int:
        return self.group.rows

    @property
    def d_source(self) -> int:
        """Width of a source row."""
        return self.group.d_source

    @property
    def d_target(self) -> int:
        """Width of a target row."""
        return self.group.d_target

    @property
    def read_columns(self) -> list[Column]:
        """The columns that source and target are read from."""
        return [self.columns[name] for name in self.group.activation_widths]

    def rows(self, which: slice | Int64[np.ndarray, " rows"], *, view: View | None = None) -> Rows:
        """A copy of the rows in ``which``, in its order. Raises DamagedError and, for a missing gain, UsageError."""
        index = np.arange(*which.indices(len(self)), dtype=np.int64) if isinstance(which, slice) else which
        source, target = self.activations(index, view=view)
        narrow = {name: self.column(name)[index] for name in ("tokens", "document", "position")}
        return Rows(source, target, **narrow)

    def activations(
        self, index: Int64[np.ndarray, " rows"], *, view: View | None = None, buffers: Buffers | None = None
    ) -> tuple[Float[Tensor, "rows d_source"], Float[Tensor, "rows d_target"]]:
        """Source and target of the rows ``index``, in memory of ``buffers`` if given.

        A target that is computed is on the reader's device.
        """
        source = self.gather("source", index, buffers=buffers)
        if "target" in self.columns:
            target = self.gather("target", index, buffers=buffers)
        else:
            target = self.reader.mlp.target(source)
        return self.reader.as_view(source, view), target.to(TORCH_DTYPES[read_as(self.group.dtype)])

    def gather(
        self, name: str, index: Int64[np.ndarray, " rows"], *, buffers: Buffers | None = None
    ) -> Float[Tensor, "rows width"]:
        """Rows ``index`` of a stored ``source`` or ``target``, copied from the maps."""
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise UsageError(f"Row numbers must be between 0 and {len(self) - 1}.")
        column = self.columns[name]
        values = self._tensors[name]
        out = buffers.lend(len(index), width=values.shape[1], dtype=values.dtype) if buffers else None
        with column.using(index // column.array.chunk_rows):
            rows = torch.index_select(values, 0, torch.from_numpy(index), out=out)
        return rows if self.group.dtype != "int8" else self._restored(name, rows, index)

    def _restored(
        self, name: str, rows: Int8[Tensor, "rows width"], index: Int64[np.ndarray, " rows"]
    ) -> Float[Tensor, "rows width"]:
        scale = self.column(f"{name}_scale")
        channel = self.columns[f"{name}_channel"]
        channel.need_all()
        lines = channel.values[index // self.group.segment_rows]
        return restore(rows, torch.from_numpy(scale[index]), torch.from_numpy(lines))

    @cached_property
    def _tensors(self) -> dict[str, Shaped[Tensor, "rows width"]]:
        dtype = self.group.dtype
        return {name: to_tensor(self.columns[name].values, dtype) for name in self.group.activation_widths}

    def column(self, name: str) -> Shaped[np.ndarray, " rows"]:
        """All values of a narrow column: ``tokens``, ``document``, ``position``, ``source_scale``, ``target_scale``."""
        column = self.columns[name]
        column.need_all()
        return column.values[: len(self)]

    @property
    def tokens(self) -> Int32[np.ndarray, " rows"]:
        """The token id of every row."""
        return self.column("tokens")

    @property
    def document(self) -> Int64[np.ndarray, " rows"]:
        """The document number of every row."""
        return self.column("document")

    @property
    def position(self) -> Int32[np.ndarray, " rows"]:
        """The position of every row in its context."""
        return self.column("position")

    def is_ordinary(self, tokens: Int32[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Which of these tokens are not special: the rows that are trained on, measured and counted."""
        return self.reader.manifest.is_ordinary(tokens)

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Exact statistics of the rows whose token is not special. Raises UsageError when there are no rows."""
        if not len(self):
            raise UsageError(f"The cache has no {self.group.name} rows.", where=self.reader.path)
        column = self.columns["statistics"]
        column.need_all()
        if not np.isfinite(column.values).all():
            raise DamagedError("The statistics contain NaN or infinity.", where=self.reader.path)
        widths = {"d_source": self.group.d_source, "d_target": self.group.d_target}
        return merge_groups([unpack(line, **widths) for line in column.values])


class CacheReader(SmallArrays):
    """An open cache. Use ``cache.open.open_cache``, or ``open`` for a folder."""

    def __init__(self, path: Path, manifest: Manifest, *, verify: bool, view: View, device: str) -> None:
        super().__init__(path, manifest, device)
        self.fingerprint = manifest.fingerprint
        self.special_ids = manifest.special_ids
        self._verify = verify
        self._view: View = view
        self.splits: dict[str, SplitView] = {}
        self._lru = ChunkLru(UNPACKED_BYTES, location=path)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        expect: dict[str, Any] | None = None,
        verify: bool = True,
        view: View = "mlp_in",
        device: str = "cpu",
    ) -> "CacheReader":
        """Open the cache in folder ``path``.

        ``expect`` has the fields that the identity must have, with their values. ``verify`` turns on the checksums of
        rows. ``device`` computes a target that is not stored. Raises UsageError when there is no cache or it is not
        finished, DamagedError, MismatchError that names the field.
        """
        reader = cls(Path(path), read_manifest(Path(path)), verify=verify, view=view, device=device)
        reader.check(expect)
        return reader

    def check(self, expect: dict[str, Any] | None) -> None:
        """Read the journals and compare the identity with ``expect``. Raises as ``open``."""
        difference = first_difference(expect, {key: self.identity.get(key) for key in expect}) if expect else ""
        if difference:
            raise MismatchError(f"The cache does not fit: {difference}.", where=self.path)
        self._read_journals()
        if self._view == "ln2_normalized":
            # Finds a missing or zero gain now, not with the first batch.
            self.as_view(torch.zeros(0, self.manifest.geometry.d_source), None)

    def _read_journals(self) -> None:
        geometry = self.manifest.geometry
        refuse_links(self.path, geometry)
        commits = commits_of(self.path, self.manifest)
        wanted = sum(group.segments for group in geometry.groups.values())
        if len(commits) < wanted:
            what = f"This cache is not finished: it has {len(commits)} of {wanted} segments."
            raise UsageError(what, where=self.path, remedy="Run the same harvest again: it goes on from there.")
        for name, group in geometry.groups.items():
            own = {segment: commit for (owner, segment), commit in commits.items() if owner == name}
            self.splits[name] = SplitView(self, group, self._columns(group, own))

    def _columns(self, group: Group, commits: dict[int, Commit]) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for array in group.arrays.values():
            entries = {
                number: entry
                for commit in commits.values()
                for (owner, number), entry in zip(group.segment_files(commit.segment), commit.files, strict=True)
                if owner.name == array.name
            }
            columns[array.name] = self.make_column(array, entries)
        return columns

    def make_column(self, array: Array, entries: dict[int, FileEntry]) -> Column:
        """One array of this cache, mapped or unpacked."""
        if array.codec == "none":
            return Column(self.path, array, entries, verify=self._verify)
        return UnpackedColumn(self.path, array, entries, verify=self._verify, lru=self._lru)

    def split(self, name: Literal["train", "held_out"]) -> SplitView:
        """The rows of one group."""
        return self.splits[name]

    def with_splits(self, splits: dict[str, SplitView], *, identity: dict[str, Any]) -> "CacheReader":
        """The same open cache with other splits and another identity."""
        seen = copy(self)
        seen.identity = identity
        seen.splits = splits
        return seen

    @property
    def d_source(self) -> int:
        """Width of a source row."""
        return self.split("train").d_source

    @property
    def d_target(self) -> int:
        """Width of a target row."""
        return self.split("train").d_target

    @property
    def statistics(self) -> GroupStatistics:
        """Exact statistics of the training rows."""
        return self.split("train").statistics

    def as_view(self, source: Float[Tensor, "rows d_source"], view: View | None) -> Float[Tensor, "rows d_source"]:
        """``view`` of a stored ``source`` (None: the view with which the cache was opened)."""
        if (view or self._view) == "mlp_in":
            return source
        return self._norm.undo(source)

    @cached_property
    def _norm(self) -> NormAffine:
        norm = NormAffine.of_arrays(self.arrays)
        if norm is None:
            raise UsageError("The cache stores no gain, so its source has no ln2_normalized view.", where=self.path)
        if not norm.is_invertible:
            raise UsageError(
                "The norm's gain is 0 in some dimension: ln2_normalized cannot be computed from mlp_in.",
                where=self.path,
            )
        return norm


def is_complete(path: Path) -> bool:
    """Whether ``path`` has a complete cache: a harvest on a new machine may have fetched only manifest and journal.

    Raises DamagedError and MismatchError as ``CacheReader.open``.
    """
    if not (path / MANIFEST).exists():
        return False
    manifest = read_manifest(path)
    commits = commits_of(path, manifest)
    if len(commits) < sum(group.segments for group in manifest.geometry.groups.values()):
        return False
    return all((path / entry.path).exists() for commit in commits.values() for entry in commit.files)
