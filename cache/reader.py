"""Reads a cache: rows, columns and statistics, straight from memory maps, each chunk checked the first time.

Views of the source: ``mlp_in`` is what is stored, what the MLP consumed; ``ln2_normalized`` is the same before the
norm's gain and bias, (mlp_in - bias) / gain, in float32.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int8, Int32, Int64, Shaped
from torch import Tensor

from cache.bits import to_tensor
from cache.checksum import chunk_hash, file_hash
from cache.errors import DamagedError, MismatchError, UsageError
from cache.int8 import restore
from cache.journal import Commit, FileEntry, journal_path, read_journal
from cache.layout import STORE, Array, Group
from cache.manifest import Manifest, first_difference, read_manifest, read_parameter, refuse_links
from cache.mapping import Region
from cache.statistics import GroupStatistics, merge_groups, unpack

View = Literal["mlp_in", "ln2_normalized"]


@dataclass(frozen=True)
class Rows:
    """Some rows. ``source`` (rows, d_source), ``target`` (rows, d_target) in the stored float type (int8: bfloat16)."""

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    tokens: Int32[np.ndarray, " rows"]
    document: Int64[np.ndarray, " rows"]
    position: Int32[np.ndarray, " rows"]


class Column:
    """One array of a group, its files side by side in memory as they are first needed."""

    def __init__(self, cache: Path, array: Array, entries: dict[int, FileEntry], *, verify: bool) -> None:
        self.array = array
        self._cache, self._entries, self._verify = cache, entries, verify
        self._file_bytes = array.file_rows * array.row_bytes
        self._chunk_bytes = array.chunk_rows * array.row_bytes
        self._region = Region(array.files * self._file_bytes)
        self._placed = np.zeros(array.files, bool)
        self._checked = np.zeros(array.files * array.index_entries, bool)
        self._lock = threading.Lock()
        shape = (-1, array.width) if array.width else (-1,)
        self.values: Shaped[np.ndarray, "rows ..."] = self._region.bytes.view(array.item).reshape(shape)

    def need(self, chunks: Int64[np.ndarray, " n"]) -> None:
        """Make the rows of these chunks readable. Raises DamagedError that names the file that is not as promised."""
        missing = chunks[~self._checked[chunks]]
        if not missing.size:
            return
        with self._lock:
            for number in np.unique(missing // self.array.index_entries).tolist():
                self._place(number)
        for chunk in np.unique(missing).tolist():
            self._check(chunk)

    @contextmanager
    def using(self, chunks: Int64[np.ndarray, " n"]) -> Generator[None]:
        """Make the rows of these chunks readable while the block runs."""
        self.need(chunks)
        yield

    def need_all(self) -> None:
        """Make every row readable."""
        self.need(np.arange(-(-self.array.rows // self.array.chunk_rows), dtype=np.int64))

    def read_ahead(self, chunks: Int64[np.ndarray, " n"]) -> None:
        """Ask the disk for these chunks before they are needed."""
        with self._lock:
            for number in np.unique(chunks // self.array.index_entries).tolist():
                self._place(number)
        for chunk in chunks.tolist():
            self._region.read_ahead(offset=chunk * self._chunk_bytes, size_bytes=self._chunk_bytes)

    def _place(self, number: int) -> None:
        if self._placed[number]:
            return
        path = self._cache / self.array.file_path(number)
        size = self.array.chunks_in(number) * self._chunk_bytes
        file_bytes = self.array.file_bytes(number)
        self._region.place(path, offset=number * self._file_bytes, size_bytes=size, file_bytes=file_bytes)
        self._placed[number] = True

    def _check(self, chunk: int) -> None:
        if self._verify:
            number, inside = divmod(chunk, self.array.index_entries)
            memory = self._region.bytes[chunk * self._chunk_bytes : (chunk + 1) * self._chunk_bytes]
            if chunk_hash(memory.data) != self._entries[number].chunk(inside):
                path = self._cache / self.array.file_path(number)
                what = f"Chunk {inside} of a shard does not match its checksum."
                raise DamagedError(what, where=path, remedy="Run 'nestcoder cache repair' on the cache.")
        self._checked[chunk] = True


class SplitView:
    """The rows of ``train`` or ``held_out``. ``len()`` is the number of rows."""

    def __init__(self, reader: "CacheReader", group: Group, commits: dict[int, Commit]) -> None:
        self.group, self._reader = group, reader
        self.columns: dict[str, Column] = {}
        for array in group.arrays.values():
            entries = {
                number: entry
                for commit in commits.values()
                for (owner, number), entry in zip(group.segment_files(commit.segment), commit.files, strict=True)
                if owner.name == array.name
            }
            self.columns[array.name] = reader.make_column(array, entries)

    def __len__(self) -> int:
        return self.group.rows

    def rows(self, which: slice | Int64[np.ndarray, " rows"], *, view: View | None = None) -> Rows:
        """A copy of the rows in ``which``, in its order. Raises DamagedError and, for an absent gain, UsageError."""
        index = np.arange(*which.indices(len(self)), dtype=np.int64) if isinstance(which, slice) else which
        sides = {name: self.gather(name, index) for name in ("source", "target")}
        source = self._reader.as_view(sides["source"], view)
        narrow = {name: self.column(name)[index] for name in ("tokens", "document", "position")}
        return Rows(source, sides["target"], **narrow)

    def gather(self, name: str, index: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows width"]:
        """Rows ``index`` of ``source`` or ``target``, copied from the maps, as they are stored."""
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise UsageError(f"A row outside 0 to {len(self) - 1} was asked for.")
        column = self.columns[name]
        with column.using(index // column.array.chunk_rows):
            rows = torch.index_select(self._tensors[name], 0, torch.from_numpy(index))
        return rows if self.group.dtype != "int8" else self._restored(name, rows, index)

    def _restored(
        self, name: str, rows: Int8[Tensor, "rows width"], index: Int64[np.ndarray, " rows"]
    ) -> Float[Tensor, "rows width"]:
        scale, channel = self.column(f"{name}_scale"), self.columns[f"{name}_channel"]
        channel.need_all()
        lines = channel.values[index // self.group.segment_rows]
        return restore(rows, torch.from_numpy(scale[index]), torch.from_numpy(lines))

    @cached_property
    def _tensors(self) -> dict[str, Shaped[Tensor, "rows width"]]:
        dtype = self.group.dtype
        return {name: to_tensor(self.columns[name].values, dtype) for name in ("source", "target")}

    def column(self, name: str) -> Shaped[np.ndarray, " rows"]:
        """A whole narrow column: ``tokens``, ``document``, ``position`` or a side's scales."""
        column = self.columns[name]
        column.need_all()
        return column.values[: len(self)]

    @property
    def tokens(self) -> Int32[np.ndarray, " rows"]:
        return self.column("tokens")

    @property
    def document(self) -> Int64[np.ndarray, " rows"]:
        return self.column("document")

    @property
    def position(self) -> Int32[np.ndarray, " rows"]:
        return self.column("position")

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Exact figures of the rows whose token is not special. Raises UsageError when there are no rows."""
        if not len(self):
            raise UsageError(f"The cache has no {self.group.name} rows.", where=self._reader.path)
        column, widths = self.columns["statistics"], {"d_source": self.group.d_source, "d_target": self.group.d_target}
        column.need_all()
        return merge_groups([unpack(line, **widths) for line in column.values])


class CacheReader:
    """An open cache. Use ``open``."""

    def __init__(self, path: Path, manifest: Manifest, *, verify: bool, view: View) -> None:
        self.path, self.manifest, self._verify, self._view = path, manifest, verify, view
        self.identity, self.fingerprint = manifest.identity, manifest.fingerprint
        self.special_ids = manifest.special_ids
        self._splits: dict[str, SplitView] = {}

    @classmethod
    def open(
        cls, path: Path | str, *, expect: dict[str, Any] | None = None, verify: bool = True, view: View = "mlp_in"
    ) -> "CacheReader":
        """Open the cache in folder ``path``, or at a URL that fsspec knows (see ``cache.remote``).

        ``expect`` holds what the identity must say (any part of it). ``verify`` turns the checksums of rows on.
        Raises UsageError when there is no cache or it is not finished, DamagedError, MismatchError naming the field.
        """
        if isinstance(path, str) and "://" in path:
            from cache.remote import open_remote

            return open_remote(path, expect=expect, view=view)
        reader = cls(Path(path), read_manifest(Path(path)), verify=verify, view=view)
        reader.check(expect)
        return reader

    def check(self, expect: dict[str, Any] | None) -> None:
        """Read the journals and compare the identity with ``expect``. Raises as ``open``."""
        difference = first_difference(expect, {key: self.identity.get(key) for key in expect}) if expect else ""
        if difference:
            raise MismatchError(f"The cache does not fit: {difference}.", where=self.path)
        self._read_journals()
        if self._view == "ln2_normalized":
            self.as_view(torch.zeros(0, manifest_width(self.manifest)), None)

    def _read_journals(self) -> None:
        geometry, commits = self.manifest.geometry, dict[tuple[str, int], Commit]()
        refuse_links(self.path, geometry)
        for part in range(geometry.parts):
            path = self.path / journal_path(part)
            commits |= read_journal(path, geometry=geometry, fingerprint=self.fingerprint, part=part).commits
        wanted = sum(group.segments for group in geometry.groups.values())
        if len(commits) < wanted:
            what = f"This cache is not finished: it has {len(commits)} of {wanted} segments."
            raise UsageError(what, where=self.path, remedy="Run the same harvest again; it goes on from there.")
        for name, group in geometry.groups.items():
            own = {segment: commit for (owner, segment), commit in commits.items() if owner == name}
            self._splits[name] = SplitView(self, group, own)

    def make_column(self, array: Array, entries: dict[int, FileEntry]) -> Column:
        """An array of this cache."""
        return Column(self.path, array, entries, verify=self._verify)

    def split(self, name: Literal["train", "held_out"]) -> SplitView:
        """The rows of one group."""
        return self._splits[name]

    @property
    def statistics(self) -> GroupStatistics:
        """Exact figures of the training rows."""
        return self.split("train").statistics

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The small arrays beside the rows, by name. Raises DamagedError."""
        folder = f"{STORE}/parameters/"
        names = {path.removeprefix(folder).split("/")[0] for path in self.manifest.files if path.startswith(folder)}
        return {name: self._array(folder + name) for name in sorted(names - {"zarr.json"})}

    def _array(self, folder: str) -> np.ndarray:
        described = self.read_bound(f"{folder}/zarr.json")
        parts = [path for path in self.manifest.files if path.startswith(f"{folder}/c.")]
        try:
            return read_parameter(described, b"".join(map(self.read_bound, parts)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"A small array does not read ({error}).", where=self.path / folder) from None

    def read_bound(self, path: str) -> bytes:
        """The bytes of a file that the manifest binds. Raises DamagedError when they are not those."""
        size, digest = self.manifest.files[path]
        full = self.path / path
        if full.is_symlink() or not full.is_file() or full.stat().st_size != size:
            raise DamagedError("A file of the cache is missing or has another size.", where=full)
        data = full.read_bytes()
        if file_hash([data]) != digest:
            raise DamagedError("A file of the cache does not match its checksum.", where=full)
        return data

    def as_view(self, source: Float[Tensor, "rows d_source"], view: View | None) -> Float[Tensor, "rows d_source"]:
        """``source`` as it is stored, seen as ``view`` (None: the view that the cache was opened with)."""
        if (view or self._view) == "mlp_in":
            return source
        gain, bias = self._norm
        return (source.float() - bias) / gain

    @cached_property
    def _norm(self) -> tuple[Float[Tensor, " d_source"], Float[Tensor, " d_source"]]:
        if "gain" not in self.arrays:
            raise UsageError("The cache stores no gain, so its source has no ln2_normalized view.", where=self.path)
        gain = torch.from_numpy(self.arrays["gain"]).float()
        if not bool((gain != 0).all()):
            raise UsageError("The norm's gain is 0 somewhere: ln2_normalized cannot be had back.", where=self.path)
        bias = self.arrays.get("bias")
        return gain, torch.zeros_like(gain) if bias is None else torch.from_numpy(bias).float()


def manifest_width(manifest: Manifest) -> int:
    """d_source of the cache."""
    return manifest.geometry.d_source
