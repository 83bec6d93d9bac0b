"""``nestcoder.write_cache``: writes a stream of tensors as a cache, with the writer that harvests use.

A harvest proves which tensors its rows are. Nobody proved it for these rows, so their cache says
``provenance: unproved``, and so does every report on it. Documents are held out by their number, all rows of a document
together. After a kill the same call goes on: batches that are in the cache are skipped.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.config import CacheSettings
from cache.format.dtypes import to_stored
from cache.partition import check_partition
from cache.writer import CacheWriter, manifest_of
from common import disk
from common.errors import NumericalError, UsageError
from common.progress import Progress, Silent
from harvest.text.split import is_held_out

UNPROVED = "unproved"
NO_TARGET = "none"
"""The target's site of a cache with a source only: its target is one dimension of zeros, for autoencoders."""

Array = Tensor | np.ndarray
Given = Mapping[str, Array] | tuple[Array, Array] | Array
_COLUMNS = {"source", "target", "tokens", "document", "position"}


@dataclass(frozen=True)
class Batch:
    """Some rows, with all columns that a cache stores."""

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    tokens: Int[np.ndarray, " rows"]
    document: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]

    @staticmethod
    def from_given(given: Given, *, number: int) -> "Batch":
        """From a mapping, a pair (source, target) or a source alone.

        Without them, tokens are -1, the batch is one document and positions count its rows. Raises UsageError for other
        columns, or columns of other lengths.
        """
        columns = _named(given)
        source = _tensor(columns["source"])
        rows = len(source)
        target = _tensor(columns["target"]) if "target" in columns else source.new_zeros(rows, 1)
        narrow = {
            "tokens": _integers(columns.get("tokens"), np.full(rows, -1), np.int32),
            "document": _integers(columns.get("document"), np.full(rows, number), np.int64),
            "position": _integers(columns.get("position"), np.arange(rows), np.int32),
        }
        shapes = {name: tuple(values.shape) for name, values in {"source": source, "target": target, **narrow}.items()}
        has_expected_shapes = source.ndim == target.ndim == 2 and all(values.ndim == 1 for values in narrow.values())
        if not has_expected_shapes or len({shape[0] for shape in shapes.values()}) > 1:
            what = f"Batch {number} has the shapes {shapes}; source and target are (rows, width), all others (rows,)."
            raise UsageError(what)
        return Batch(source, target, **narrow)

    def rows(self, which: Bool[np.ndarray, " rows"]) -> dict[str, Any]:
        """The columns of the rows in ``which``, as the writer takes them."""
        selected = torch.from_numpy(which)
        narrow = {name: getattr(self, name)[which] for name in ("tokens", "document", "position")}
        return {"source": self.source[selected], "target": self.target[selected], **narrow}


def write_cache(
    path: str | Path,
    batches: Iterable[Given],
    *,
    train_rows: int,
    held_out_rows: int,
    model: str,
    layer: int,
    source_site: str,
    target_site: str = NO_TARGET,
    special_ids: Iterable[int] = (),
    facts: Mapping[str, Any] | None = None,
    settings: CacheSettings | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write rows from another tool as a cache, for training and evaluation like a harvested one; returns its identity.

    Each batch is a mapping with ``source`` (rows, d_source) and optionally ``target`` (rows, d_target), ``tokens``,
    ``document`` and ``position`` (rows,), or a pair (source, target), or a source alone (for autoencoders,
    ``train.kind: sae``). A share of ``settings.held_out_fraction`` of the documents is held out. ``train_rows`` and
    ``held_out_rows`` are how many are stored; further rows are dropped. ``facts`` (JSON) are stored in the manifest.

        nestcoder.write_cache("runs/mine/layer08/cache", pairs, train_rows=1_000_000, held_out_rows=50_000,
                              model="mine", layer=8, source_site="mlp_in", target_site="mlp_out")

    Called again after a kill, with the same batches, it goes on. ``dry_run`` reads and checks the batches, writes
    nothing, and says what would be written: ``bytes``, ``free_disk_bytes``, widths. (An iterator is used up by it.)

    Raises, dry or not, UsageError when the stream ends too early, MismatchError when ``path`` has another cache,
    CapacityError when the disk has no room, NumericalError for NaN or infinity.
    """
    settings = settings or CacheSettings()
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise UsageError("There are no batches to write.", where=path)
    begin = Batch.from_given(first, number=0)
    identity = identity_of(model, layer, source_site, target_site, facts=facts or {})
    made: dict[str, Any] = {
        "identity": identity,
        "settings": settings,
        "d_source": begin.source.shape[1],
        "d_target": begin.target.shape[1],
        "train_rows": train_rows,
        "held_out_rows": held_out_rows,
        "special_ids": list(special_ids),
        "arrays": {},
    }
    stream = _Stream(Path(path), _numbered(begin, remaining), settings, (train_rows, held_out_rows))
    if dry_run:
        manifest = manifest_of(**made)
        check_partition(Path(path), manifest)
        stream.run(None, progress or Silent())
        sizes = {name: made[name] for name in ("train_rows", "held_out_rows", "d_source", "d_target")}
        room = {"bytes": manifest.geometry.size_bytes, "free_disk_bytes": disk.free_bytes(Path(path))}
        return {"cache": str(path), "fingerprint": manifest.fingerprint, **identity, **sizes, **room}
    with CacheWriter(Path(path), **made, progress=progress) as writer:
        stream.run(writer, progress or Silent())
        return {"cache": str(path), "fingerprint": writer.manifest.fingerprint, **identity}


def identity_of(
    model: str, layer: int, source_site: str, target_site: str, *, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity in the manifest of a cache of rows from another tool."""
    return {
        "provenance": UNPROVED,
        "model": model,
        "layer": layer,
        "source_site": source_site,
        "target_site": target_site,
        "dataset": {"kind": "elsewhere", **facts},
    }


def held_out_documents(document: Int[np.ndarray, " rows"], *, fraction: float, seed: int) -> Bool[np.ndarray, " rows"]:
    """Which rows belong to held-out documents: a function of the document's number alone."""
    known, inverse = np.unique(document, return_inverse=True)
    names = [int(number).to_bytes(8, "little", signed=True) for number in known]
    chosen = [is_held_out(name, fraction=fraction, seed=seed) for name in names]
    return np.array(chosen, dtype=bool)[inverse]


@dataclass(frozen=True)
class _Stream:
    """Numbered batches for the cache at ``path``; ``wanted`` are how many training and held-out rows it needs."""

    path: Path
    batches: Iterable[tuple[int, Batch]]
    settings: CacheSettings
    wanted: tuple[int, int]

    def run(self, writer: CacheWriter | None, progress: Progress) -> None:
        """Give the writer the rows that it lacks, or check the batches if there is none. Raises UsageError for too
        few."""
        counts = np.zeros(2, np.int64)
        first_number = (writer.cursor if writer else None) or 0
        begun: Batch | None = None
        progress.begin("write rows from elsewhere" if writer else "read rows", total=sum(self.wanted), unit="rows")
        for number, batch in self.batches:
            begun = begun or batch
            apart = held_out_documents(
                batch.document, fraction=self.settings.held_out_fraction, seed=self.settings.split_seed
            )
            counts += np.bincount(apart, minlength=2)
            progress.advance(len(apart))
            if writer is None:
                check_batch(batch, like=begun, number=number, dtype=self.settings.dtype)
            elif number >= first_number:
                for which, is_apart in ((~apart, False), (apart, True)):
                    if which.any():
                        writer.append(**batch.rows(which), held_out=is_apart, cursor=number)
            if (counts >= self.wanted).all():
                break
        progress.end()
        self._require_enough(int(counts[0]), int(counts[1]))

    def _require_enough(self, train: int, held_out: int) -> None:
        wanted_train, wanted_held_out = self.wanted
        if train < wanted_train or held_out < wanted_held_out:
            what = f"There are only {train:,} training rows and {held_out:,} held-out rows"
            remedy = f"Ask for at most train_rows={train}, held_out_rows={held_out}."
            wanted = f"{wanted_train:,} and {wanted_held_out:,} were asked for."
            raise UsageError(f"{what}; {wanted}", where=self.path, remedy=remedy)


def check_batch(batch: Batch, *, like: Batch, number: int, dtype: str) -> None:
    """Raise UsageError for a batch of other widths than ``like``, NumericalError for a NaN or an infinity as stored."""
    for name in ("source", "target"):
        rows: Tensor = getattr(batch, name)
        width = getattr(like, name).shape[1]
        if rows.shape[1] != width:
            raise UsageError(f"Batch {number}: the {name} has width {rows.shape[1]}, in earlier batches {width}.")
        if not to_stored(rows, dtype).finite:
            what = f"Batch {number}: the {name} contains NaN or infinity as {dtype}."
            raise NumericalError(what, remedy="Leave such rows out, or choose a cache.dtype with a larger range.")


def _numbered(first: Batch, remaining: Iterator[Given]) -> Iterator[tuple[int, Batch]]:
    yield 0, first
    for number, given in enumerate(remaining, start=1):
        yield number, Batch.from_given(given, number=number)


def _named(given: Given) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if isinstance(given, Mapping):
        columns |= given
    elif isinstance(given, tuple):
        columns["source"], columns["target"] = given
    else:
        columns["source"] = given
    if "source" not in columns or columns.keys() - _COLUMNS:
        known = ", ".join(sorted(_COLUMNS))
        raise UsageError(f"A batch has the columns {sorted(columns)}; it needs source, and may have {known}.")
    return columns


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def _integers(values: Any, otherwise: np.ndarray, dtype: type[np.integer[Any]]) -> np.ndarray:
    if values is None:
        return otherwise.astype(dtype)
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(dtype)
