"""The harvest: text through the model's first blocks, all asked-for layers in one pass, a cache for each.

    text -> [thread: read, tokenise, pack] -> model -> [thread: copy to the host, write] -> caches

Before the first row, and on a sample of the batches, ``harvest.proof`` shows that the tensors are the ones meant.
Running again goes on where the slowest cache stopped; a cache that is further along passes over what it has.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache import disk
from cache.config import CacheSettings
from cache.errors import UsageError
from cache.progress import Progress
from cache.writer import CacheWriter, remove_cache
from harvest.ahead import Ahead, Behind
from harvest.batch import BatchForward, BatchRows
from harvest.config import HarvestSettings
from harvest.forward import attention_of, use_attention
from harvest.identity import cache_arrays, cache_identity
from harvest.memory import choose_batch
from harvest.model import LanguageModel, boot_bridge, check_layers, find_model, load_found
from harvest.proof import SiteProof, prove_sites
from harvest.sites import norm_of
from harvest.text import Documents, open_documents
from harvest.tokens import ContextBatch, ContextStream, StreamSettings

_BATCHES_AHEAD, _BATCHES_BEHIND = 4, 2
_PROOF_CONTEXTS = 2
_SAMPLE_EVERY = 1024


@dataclass
class _Sink:
    """A layer's cache while it fills; ``waiting`` until the stream has come to where this cache stopped."""

    layer: int
    writer: CacheWriter
    waiting: bool = True

    @property
    def batch_contexts(self) -> int | None:
        """How the interrupted harvest cut its batches, which must stay so for the same bits."""
        return self.writer.cursor["batch_contexts"] if self.writer.cursor else None

    def takes(self, batch: ContextBatch) -> bool:
        """Whether this cache takes the batch."""
        self.waiting = self.waiting and batch.cursor != self.writer.cursor
        return not self.waiting and not self.writer.complete


def harvest_layers(
    *,
    model: str,
    layers: list[int],
    settings: HarvestSettings,
    cache_settings: CacheSettings,
    folders: dict[int, Path],
    device: str,
    fresh: bool,
    progress: Progress,
    rank: int = 0,
    world: int = 1,
) -> dict[int, dict[str, Any]]:
    """Fill the cache of every layer in ``folders``, or go on filling it, and say what was done, by layer.

    ``rank`` of ``world`` processes reads its share of the text and commits its share of the rows; no process waits for
    another. Raises UsageError for a model, layer, device or text that cannot be had, MismatchError when a folder holds
    another cache, NumericalError when the site proof fails, DiskError and InUseError as the disk says.
    """
    where = find_model(model, revision=settings.revision)
    check_layers(layers, where)
    if settings.context > where.positions:
        raise UsageError(f"harvest.context is {settings.context}; {where.name} has {where.positions} positions.")
    if fresh:
        _remove(folders, world)
    loaded = load_found(where, device=device, dtype=settings.dtype, last_layer=max(layers))
    documents = open_documents(settings, rank=rank, world=world)
    run = _Harvest(loaded, documents, settings, cache_settings, progress=progress, rank=rank, world=world)
    return run.fill(layers, folders)


def _remove(folders: dict[int, Path], world: int) -> None:
    if world > 1:
        raise UsageError(
            "--fresh cannot be given to several processes at once: one would remove what another writes.",
            remedy=f"Remove {', '.join(str(folder) for folder in folders.values())} and leave --fresh out.",
        )
    for folder in folders.values():
        remove_cache(folder)


class _Harvest:
    """One process's harvest."""

    def __init__(
        self,
        model: LanguageModel,
        documents: Documents,
        settings: HarvestSettings,
        cache_settings: CacheSettings,
        *,
        progress: Progress,
        rank: int,
        world: int,
    ) -> None:
        self._model, self._documents = model, documents
        self._settings, self._cache_settings = settings, cache_settings
        self._progress, self._rank, self._world = progress, rank, world
        self._sites = tuple(dict.fromkeys((settings.source, settings.target)))
        self._bridge = boot_bridge(model)
        self._proofs: dict[int, SiteProof] = {}

    def fill(self, layers: Sequence[int], folders: dict[int, Path]) -> dict[int, dict[str, Any]]:
        """Prove the sites, then fill the caches."""
        self._prove(layers)
        with ExitStack() as stack:
            sinks = [_Sink(layer, stack.enter_context(self._open(layer, folders[layer]))) for layer in layers]
            facts: dict[int, dict[str, float | int]] = {}
            for group in _cut_alike([sink for sink in sinks if not sink.writer.complete]):
                facts |= dict.fromkeys((sink.layer for sink in group), self._pass(group))
            return {sink.layer: self._report(sink, folders[sink.layer], facts.get(sink.layer, {})) for sink in sinks}

    def _report(self, sink: _Sink, folder: Path, facts: dict[str, float | int]) -> dict[str, Any]:
        proof = self._proofs[sink.layer].record()
        disk.write_file(folder / f"proof-{self._rank:05d}.json", json.dumps(proof, indent=1).encode() + b"\n")
        return {
            "cache": str(folder),
            "fingerprint": sink.writer.manifest.fingerprint,
            "complete": sink.writer.complete,
            "up_to_date": not facts,
            **facts,
            "proof": proof,
        }

    def _open(self, layer: int, folder: Path) -> CacheWriter:
        settings, model = self._settings, self._model
        identity = cache_identity(
            model.where,
            model.tokenizer,
            self._documents,
            settings=settings,
            layer=layer,
            dtype=model.dtype,
            ranks=self._world,
        )
        return CacheWriter(
            folder,
            identity=identity | {"proof": self._proofs[layer].record()},
            settings=self._cache_settings,
            d_source=model.where.width,
            d_target=model.where.width,
            train_rows=settings.train_tokens,
            held_out_rows=settings.held_out_tokens,
            special_ids=list(model.tokenizer.special_ids),
            arrays=cache_arrays(model.tokenizer, norm_of(model.hugging, layer)),
            part=self._rank,
            parts=self._world,
            progress=self._progress,
        )

    def _stream(self, sinks: Sequence[_Sink]) -> ContextStream:
        """The text from where the slowest of the caches stopped."""
        cursor = min((sink.writer.cursor for sink in sinks), key=lambda at: at["emitted_rows"] if at else 0)
        batch = sinks[0].batch_contexts or choose_batch(self._model, self._settings, layers=len(sinks))
        geometry = sinks[0].writer.manifest.geometry
        rows = (geometry.part_rows("train", self._rank), geometry.part_rows("held_out", self._rank))
        return ContextStream(
            self._documents,
            self._model.tokenizer.backend,
            settings=self._stream_settings(batch, rows),
            cursor=cursor,
            first_document=self._rank,
            document_step=self._world,
        )

    def _stream_settings(self, batch_contexts: int, rows: tuple[int, int]) -> StreamSettings:
        settings = self._settings
        return StreamSettings(
            context=settings.context,
            bos=self._model.tokenizer.bos,
            alone=settings.packing == "document",
            repeat=settings.repeat,
            rows=rows,
            batch_contexts=batch_contexts,
            held_out_fraction=self._cache_settings.held_out_fraction,
            split_seed=self._cache_settings.split_seed,
            vocabulary=self._model.where.vocabulary,
        )

    def _pass(self, sinks: list[_Sink]) -> dict[str, float | int]:
        """One pass over the text for all ``sinks``; returns rows, seconds, and how long the model stood still."""
        stream = self._stream(sinks)
        forward = BatchForward(self._model, self._settings, [(s.layer, site) for s in sinks for site in self._sites])
        title = f"harvest layer {', '.join(str(sink.layer) for sink in sinks)}"
        self._progress.begin(title, total=sum(stream.rows), unit="tokens", done=stream.rows_before)
        started = time.perf_counter()
        with (
            Ahead(stream, depth=_BATCHES_AHEAD) as batches,
            Behind(self._writing(sinks), depth=_BATCHES_BEHIND) as rows,
        ):
            for number, batch in enumerate(batches):
                rows.put(forward.run(batch, self._progress))
                if _is_sampled(number):
                    self._prove_sample(batch, [sink.layer for sink in sinks])
                self._progress.advance(batch.rows)
        self._progress.end()
        return {
            "rows": sum(stream.rows) - stream.rows_before,
            "seconds": time.perf_counter() - started,
            "waited_for_text_seconds": batches.waited_seconds,
            "waited_for_disk_seconds": rows.waited_seconds,
        }

    def _writing(self, sinks: list[_Sink]) -> Callable[[BatchRows], None]:
        source, target = self._settings.source, self._settings.target

        def write(rows: BatchRows) -> None:
            rows.arrive()
            for sink in sinks:
                if sink.takes(rows.batch):
                    sink.writer.append(
                        rows.site(sink.layer, source),
                        rows.site(sink.layer, target),
                        *rows.columns,
                        held_out=rows.batch.held_out,
                        cursor=rows.batch.cursor,
                    )

        return write

    def _prove(self, layers: Sequence[int]) -> None:
        """Prove the sites on the text's first contexts, the same for every rank; fall back to eager attention."""
        documents = open_documents(self._settings) if self._world > 1 else self._documents
        settings = self._stream_settings(_PROOF_CONTEXTS, (_PROOF_CONTEXTS * self._settings.context, 0))
        batch = next(iter(ContextStream(documents, self._model.tokenizer.backend, settings=settings)))
        proofs = self._measure(batch, layers)
        if any(proof.bridge_failures for proof in proofs) and attention_of(self._model) != "eager":
            self._progress.note(f"{attention_of(self._model)} attention differs from the plain model: using eager")
            use_attention(self._model, "eager")
            proofs = self._measure(batch, layers)
        self._keep(proofs)

    def _prove_sample(self, batch: ContextBatch, layers: Sequence[int]) -> None:
        self._keep([proof.worst(self._proofs[proof.layer]) for proof in self._measure(batch, layers)])

    def _measure(self, batch: ContextBatch, layers: Sequence[int]) -> list[SiteProof]:
        tokens = torch.from_numpy(batch.tokens[:_PROOF_CONTEXTS]).to(self._model.device)
        return prove_sites(self._model, self._bridge, tokens, layers=layers, sites=self._sites)

    def _keep(self, proofs: Sequence[SiteProof]) -> None:
        for proof in proofs:
            proof.require()
            self._proofs[proof.layer] = proof


def _cut_alike(sinks: Sequence[_Sink]) -> list[list[_Sink]]:
    """The caches that can be filled in one pass: those whose text is cut into the same batches."""
    groups: dict[int | None, list[_Sink]] = {}
    for sink in sinks:
        groups.setdefault(sink.batch_contexts, []).append(sink)
    return list(groups.values())


def _is_sampled(number: int) -> bool:
    return number > 0 and (number & (number - 1) == 0 or number % _SAMPLE_EVERY == 0)
