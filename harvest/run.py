"""The harvest: text through the model's first blocks, all asked-for layers in one pass, a cache for each.

    text -> [thread: read, tokenise, pack] -> model -> [thread: copy to the host, write] -> caches

Before the first row, and on a sample of the batches, ``harvest.model.proof`` shows that the tensors are the ones meant.
Running again goes on where the slowest cache stopped; a cache that is further along passes over what it has.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.config import CacheSettings
from cache.storage.publish import publish_whole, withdraw
from cache.storage.recompute import Mlp
from cache.writer import CacheWriter, remove_cache
from common import disk
from common.errors import UsageError
from common.progress import Progress
from harvest.batch import BatchForward
from harvest.config import HarvestSettings
from harvest.memory import check_disk, choose_batch
from harvest.model.families import first_proof
from harvest.model.forward import Key, attention_of, use_attention
from harvest.model.language_model import LanguageModel, boot_bridge, load_found
from harvest.model.mlp import mlp_of
from harvest.model.proof import SiteProof, prove_sites
from harvest.model.sites import norm_of
from harvest.request import Job, make_job
from harvest.sink import Sink, cut_alike, slowest_cursor, writing
from harvest.text.tokens import ContextBatch
from harvest.threads import Ahead, Behind

_BATCHES_AHEAD, _BATCHES_BEHIND = 4, 2
_PROOF_CONTEXTS = 2
_FIRST_SAMPLE, _SAMPLE_EVERY = 16, 1024


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
    job = make_job(
        model=model,
        layers=layers,
        settings=settings,
        cache_settings=cache_settings,
        device=device,
        rank=rank,
        world=world,
    )
    if fresh:
        _remove(folders, world, remote=cache_settings.remote)
    finished = {layer: reader for layer in layers if (reader := job.finished(folders[layer], layer))}
    missing = [layer for layer in layers if layer not in finished]
    if cache_settings.remote:
        for layer in finished:
            publish_whole(folders[layer], cache_settings.remote, part=rank)
    results = {
        layer: _facts(folders[layer], reader.fingerprint, {"rows": 0}, reader.identity["proof"])
        for layer, reader in finished.items()
    }
    if missing:
        for layer in missing:
            job.refuse_another(folders[layer], layer)
        check_disk(job.least_bytes, [folders[layer] for layer in missing])
        loaded = load_found(job.where, device=device, dtype=settings.dtype, last_layer=max(missing))
        results |= _Harvest(job, loaded, progress).fill(missing, folders)
    return {layer: results[layer] for layer in layers}


def _facts(folder: Path, fingerprint: str, figures: dict[str, float | int], proof: dict[str, Any]) -> dict[str, Any]:
    return {"cache": str(folder), "fingerprint": fingerprint, **figures, "proof": proof}


def _remove(folders: dict[int, Path], world: int, *, remote: str) -> None:
    if world > 1:
        raise UsageError(
            "--fresh cannot be given to several processes at once: one would remove what another writes.",
            remedy=f"Remove {', '.join(str(folder) for folder in folders.values())} and leave --fresh out.",
        )
    for folder in folders.values():
        if remote:
            withdraw(folder, remote)
        remove_cache(folder)


class _Harvest:
    """One process's harvest."""

    def __init__(self, job: Job, model: LanguageModel, progress: Progress) -> None:
        self._job, self._model, self._progress = job, model, progress
        self._bridge = boot_bridge(model)
        self._proofs: dict[int, SiteProof] = {}
        self._mlps: dict[int, Mlp] = {}

    def fill(self, layers: Sequence[int], folders: dict[int, Path]) -> dict[int, dict[str, Any]]:
        """Prove the sites, then fill the caches."""
        if self._job.cache.target == "recompute":
            self._mlps = {layer: mlp_of(self._model, layer) for layer in layers}
        self._prove(layers)
        with ExitStack() as stack:
            sinks = [Sink(layer, stack.enter_context(self._open(layer, folders[layer]))) for layer in layers]
            figures: dict[int, dict[str, float | int]] = {layer: {"rows": 0} for layer in layers}
            for group in cut_alike([sink for sink in sinks if not sink.writer.complete]):
                figures |= dict.fromkeys((sink.layer for sink in group), self._pass(group))
            return {sink.layer: self._report(sink, folders[sink.layer], figures[sink.layer]) for sink in sinks}

    def _report(self, sink: Sink, folder: Path, figures: dict[str, float | int]) -> dict[str, Any]:
        proof = self._proofs[sink.layer].record()
        path = folder / f"proof-{self._job.rank:05d}.json"
        disk.write_file(path, json.dumps(proof, indent=1).encode() + b"\n")
        return _facts(folder, sink.writer.manifest.fingerprint, figures, proof)

    def _open(self, layer: int, folder: Path) -> CacheWriter:
        job, norm = self._job, norm_of(self._model, layer)
        arrays = {
            "gain": norm.gain.cpu().numpy(),
            "bias": norm.bias.cpu().numpy(),
            "tokenizer.json": np.frombuffer(job.tokenizer.json.encode(), dtype=np.uint8),
            **(self._mlps[layer].arrays() if layer in self._mlps else {}),
        }
        return CacheWriter(
            folder,
            identity=job.identity(layer) | {"proof": self._proofs[layer].record()},
            settings=job.cache,
            d_source=job.where.width,
            d_target=job.where.width,
            train_rows=job.settings.train_tokens,
            held_out_rows=job.settings.held_out_tokens,
            special_ids=list(job.tokenizer.special_ids),
            arrays=arrays,
            part=job.rank,
            parts=job.world,
            progress=self._progress,
        )

    def _pass(self, sinks: list[Sink]) -> dict[str, float | int]:
        """One pass over the text for all ``sinks``; returns rows, seconds, how long the model stood still, and what
        the threads beside it computed."""
        batch_contexts = sinks[0].batch_contexts or choose_batch(self._model, self._job.settings, layers=len(sinks))
        stream = self._job.stream(batch_contexts=batch_contexts, cursor=slowest_cursor(sinks))
        keys: list[Key] = [(sink.layer, site) for sink in sinks for site in self._job.settings.sites]
        forward = BatchForward(self._model, self._job.settings, keys)
        title = f"harvest layer {', '.join(str(sink.layer) for sink in sinks)}"
        self._progress.begin(title, total=sum(stream.rows), unit="tokens", done=stream.rows_before)
        started = time.perf_counter()
        work = writing(sinks, self._job.settings)
        with Ahead(stream, depth=_BATCHES_AHEAD) as batches, Behind(work, depth=_BATCHES_BEHIND) as rows:
            for number, batch in enumerate(batches):
                rows.put(forward.run(batch, self._progress))
                if _is_sampled(number):
                    self._prove_sample(batch, [sink.layer for sink in sinks])
                self._progress.advance(batch.rows)
                # After a repair only some rows are missing, and the text after them need not be read.
                if all(sink.writer.complete for sink in sinks):
                    break
        self._progress.end()
        return {
            "rows": sum(stream.rows) - stream.rows_before,
            "seconds": time.perf_counter() - started,
            "waited_for_text_seconds": batches.waited_seconds,
            "waited_for_disk_seconds": rows.waited_seconds,
            "text_cpu_seconds": batches.cpu_seconds,
            "disk_cpu_seconds": rows.cpu_seconds,
        }

    def _prove(self, layers: Sequence[int]) -> None:
        """Prove the sites on the text's first contexts, the same for every rank; fall back to eager attention."""
        batch = next(iter(self._job.first_contexts(_PROOF_CONTEXTS)))
        with first_proof(self._model.hugging.config):
            proofs = self._measure(batch, layers)
        if any(proof.bridge_failures for proof in proofs) and attention_of(self._model) != "eager":
            self._progress.note(f"{attention_of(self._model)} attention differs from the plain model: using eager")
            use_attention(self._model, "eager")
            proofs = self._measure(batch, layers)
        self._keep(proofs)

    def _prove_sample(self, batch: ContextBatch, layers: Sequence[int]) -> None:
        self._keep([proof.worst(self._proofs[proof.layer]) for proof in self._measure(batch, layers)])

    def _measure(self, batch: ContextBatch, layers: Sequence[int]) -> list[SiteProof]:
        settings = self._job.settings
        tokens = torch.from_numpy(batch.tokens[:_PROOF_CONTEXTS]).to(self._model.device)
        return prove_sites(
            self._model,
            self._bridge,
            tokens,
            layers=layers,
            sites=settings.sites,
            within_documents=settings.attention == "document",
            mlps=self._mlps,
        )

    def _keep(self, proofs: Sequence[SiteProof]) -> None:
        for proof in proofs:
            proof.require()
            self._proofs[proof.layer] = proof


def _is_sampled(number: int) -> bool:
    return number >= _FIRST_SAMPLE and (number & (number - 1) == 0 or number % _SAMPLE_EVERY == 0)
