"""``nestcoder.write_cache``: a stream of tensors becomes a cache, through the writer that harvests use.

A harvest proves which tensors its rows are; of these rows nobody did, so their cache says ``provenance: unproved``, as
does every report on it. Whole documents are held out, by their number. Killed anywhere, the same call goes on: batches
that are in the cache are passed over.
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
from cache.writer import CacheWriter
from common.errors import UsageError
from common.progress import Progress, Silent
from harvest.text.split import is_held_out

UNPROVED = "unproved"
NO_TARGET = "none"
"""The target's site of a cache that holds a source alone: a column of zeros, which nothing can be trained to give."""

Array = Tensor | np.ndarray
Given = Mapping[str, Array] | tuple[Array, Array] | Array
_COLUMNS = {"source", "target", "tokens", "document", "position"}


@dataclass(frozen=True)
class Batch:
    """Some rows, with everything that a cache keeps of them."""

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    tokens: Int[np.ndarray, " rows"]
    document: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]

    @staticmethod
    def of(given: Given, *, number: int) -> "Batch":
        """From a mapping, a pair (source, target) or a source alone. What is not given: tokens are -1, the batch is one
        document, positions count its rows. Raises UsageError for other columns, or columns of other lengths."""
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
        wide_as_asked = source.ndim == target.ndim == 2 and all(values.ndim == 1 for values in narrow.values())
        if not wide_as_asked or len({shape[0] for shape in shapes.values()}) > 1:
            what = f"Batch {number}: source and target are (rows, width), the rest one number a row, not {shapes}."
            raise UsageError(what)
        return Batch(source, target, **narrow)

    def rows(self, which: Bool[np.ndarray, " rows"]) -> dict[str, Any]:
        """The columns at some rows, as the writer takes them."""
        at = torch.from_numpy(which)
        narrow = {name: getattr(self, name)[which] for name in ("tokens", "document", "position")}
        return {"source": self.source[at], "target": self.target[at], **narrow}


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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write rows from elsewhere as a cache that trains and is evaluated like a harvested one, and say what it holds.

    Each batch is a mapping with ``source`` (rows, d_source) and, where there are, ``target`` (rows, d_target),
    ``tokens``, ``document`` and ``position`` (rows,), or a pair (source, target), or a source alone (for autoencoders,
    ``train.kind: sae``). A share of ``settings.held_out_fraction`` of the documents is held out. ``train_rows`` and
    ``held_out_rows`` are how many of each are kept; rows beyond are dropped. ``facts`` (JSON) are kept in the manifest.

        nestcoder.write_cache("runs/mine/layer08/cache", pairs, train_rows=1_000_000, held_out_rows=50_000,
                              model="mine", layer=8, source_site="mlp_in", target_site="mlp_out")

    Called again after a kill, with the same batches, it goes on. Raises UsageError where the stream ends too early,
    MismatchError where another cache lies in ``path``, NumericalError for a NaN or an infinity.
    """
    settings = settings or CacheSettings()
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise UsageError("There are no batches to write.", where=path)
    begin = Batch.of(first, number=0)
    identity = {
        "provenance": UNPROVED,
        "model": model,
        "layer": layer,
        "source_site": source_site,
        "target_site": target_site,
        "dataset": {"kind": "elsewhere", **(facts or {})},
    }
    with CacheWriter(
        Path(path),
        identity=identity,
        settings=settings,
        d_source=begin.source.shape[1],
        d_target=begin.target.shape[1],
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        special_ids=list(special_ids),
        arrays={},
        progress=progress,
    ) as writer:
        numbered = _numbered(begin, remaining)
        counted = _append(writer, numbered, settings, progress or Silent(), train_rows + held_out_rows)
        if not writer.complete:
            what = f"The rows end with {counted[0]:,} for training and {counted[1]:,} held out"
            remedy = f"Ask for at most train_rows={counted[0]}, held_out_rows={counted[1]}."
            raise UsageError(f"{what}; {train_rows:,} and {held_out_rows:,} were asked for.", where=path, remedy=remedy)
        return {"cache": str(path), "fingerprint": writer.manifest.fingerprint, **identity}


def held_out_documents(document: Int[np.ndarray, " rows"], *, fraction: float, seed: int) -> Bool[np.ndarray, " rows"]:
    """Which rows are of documents that are held out: a function of the document's number alone."""
    known, place = np.unique(document, return_inverse=True)
    names = [int(number).to_bytes(8, "little", signed=True) for number in known]
    chosen = [is_held_out(name, fraction=fraction, seed=seed) for name in names]
    return np.array(chosen, dtype=bool)[place]


def _append(
    writer: CacheWriter, batches: Iterable[tuple[int, Batch]], settings: CacheSettings, progress: Progress, total: int
) -> tuple[int, int]:
    """Give the writer what it lacks; how many rows of each group there were in all."""
    train = 0
    held_out = 0
    begin_at = writer.cursor or 0
    progress.begin("write rows from elsewhere", total=total, unit="rows")
    for number, batch in batches:
        apart = held_out_documents(batch.document, fraction=settings.held_out_fraction, seed=settings.split_seed)
        train += int((~apart).sum())
        held_out += int(apart.sum())
        progress.advance(len(apart))
        if number < begin_at:
            continue
        for which, is_apart in ((~apart, False), (apart, True)):
            if which.any():
                writer.append(**batch.rows(which), held_out=is_apart, cursor=number)
        if writer.complete:
            break
    progress.end()
    return train, held_out


def _numbered(first: Batch, remaining: Iterator[Given]) -> Iterator[tuple[int, Batch]]:
    yield 0, first
    for number, given in enumerate(remaining, start=1):
        yield number, Batch.of(given, number=number)


def _named(given: Given) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if isinstance(given, Mapping):
        columns |= given
    elif isinstance(given, tuple):
        columns["source"], columns["target"] = given
    else:
        columns["source"] = given
    if "source" not in columns or columns.keys() - _COLUMNS:
        raise UsageError(f"A batch has columns {sorted(_COLUMNS)}, source at least, not {sorted(columns)}.")
    return columns


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def _integers(values: Any, otherwise: np.ndarray, dtype: type[np.integer[Any]]) -> np.ndarray:
    if values is None:
        return otherwise.astype(dtype)
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(dtype)
