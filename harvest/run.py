"""The harvest: runs text through the model's first blocks and fills a cache for each layer, all layers in one pass.

    text -> [thread: read, tokenise, pack] -> model -> [thread: order rows, write full segments] -> caches

On a GPU rows are checked, ordered and measured there (cache/storage/segment.py); the host only hashes and writes.
Before the first row, and for a sample of the batches, ``harvest.model.proof`` shows that the tensors are the named
ones. A rerun goes on where the slowest cache stopped; a cache that has more rows already skips those.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.format.manifest import MANIFEST, read_manifest
from cache.format.parameters import PARAMETERS, UNEMBEDDING
from cache.partition import lock_partition, remove_cache, tidy_finished
from cache.storage.publish import publish_complete, withdraw
from cache.storage.recompute import Mlp
from cache.writer import CacheWriter
from common.errors import UsageError
from common.processes.garbage import no_collections
from common.progress import Progress, Silent, Stopwatch
from harvest.batch import BatchForward
from harvest.load import check_file_systems, hash_weights, load_and_measure
from harvest.memory import UNWRITTEN_BATCHES, check_disk, choose_batch
from harvest.model.families import first_proof
from harvest.model.forward import Key, attention_of, use_attention
from harvest.model.language_model import LanguageModel, boot_bridge
from harvest.model.mlp import mlp_of
from harvest.model.proof import SiteProof, prove_sites
from harvest.model.unembedding import arrays_beside
from harvest.prepare import PreparedHarvest, prepare
from harvest.record import ProofFile
from harvest.request import HarvestRequest
from harvest.sink import Sink, cut_alike, slowest_cursor, writing
from harvest.text.tokens import ContextBatch
from harvest.threads import BackgroundWriter, Prefetcher
from harvest.timing import PassTimes

_PREFETCHED_BATCHES = 4
"""Batches that are tokenised before the model needs them: enough for one slow document; they need little memory."""
_PROOF_CONTEXTS = 2
"""Contexts of a proof. It runs the model a second time with slow attention, so there are few."""
_FIRST_SAMPLE = 16
"""The first batch that is proved again. Earlier batches are like those of the first proof; small harvests save time."""
_SAMPLE_EVERY = 1024
"""Further proofs are made at every power of two and every 1,024 batches: below a thousandth of the work."""


def harvest_layers(
    request: HarvestRequest, *, fresh: bool = False, progress: Progress | None = None
) -> dict[int, dict[str, Any]]:
    """Fill the cache of every layer, or go on filling it; returns what was done, by layer.

    No process waits for another. Raises UsageError for a model, layer, device or text that cannot be used,
    MismatchError when a folder has another cache, NumericalError when the site proof fails, DiskError and InUseError
    from the disk.
    """
    progress = progress or Silent()
    watch = Stopwatch()
    with watch.timing("preparing"), no_collections():
        prepared = prepare(request, progress)
    remote = request.cache.remote
    if fresh:
        _remove(request)
    with watch.timing("hashing"):
        hash_weights(prepared, progress)

    finished = {layer: reader for layer in request.layers if (reader := prepared.finished(layer))}
    missing = [layer for layer in request.layers if layer not in finished]
    if remote:
        for layer in finished:
            publish_complete(request.folders[layer], remote, partition=request.rank)
    for layer in finished:
        tidy_finished(request.folders[layer], request.rank)

    results = {
        layer: _facts(request.folders[layer], reader.fingerprint, {"rows": 0}, reader.identity["proof"])
        for layer, reader in finished.items()
    }
    if missing:
        for layer in missing:
            prepared.refuse_another(layer)
        check_file_systems(request, missing)
        check_disk(prepared.minimum_bytes, [request.folders[layer] for layer in missing])
        with ExitStack() as locks:
            # Before the model is loaded: a second process is refused immediately and not after a minute.
            for layer in missing:
                locks.enter_context(lock_partition(request.folders[layer], request.rank))
            model, own_loss = load_and_measure(prepared, max(missing), progress, watch)
            results |= _Harvest(prepared, model, progress, watch, own_loss=own_loss).fill(missing)
    return {layer: results[layer] for layer in request.layers}


def _facts(folder: Path, fingerprint: str, counts: dict[str, Any], proof: dict[str, Any]) -> dict[str, Any]:
    return {"cache": str(folder), "fingerprint": fingerprint, **counts, "proof": proof}


def _remove(request: HarvestRequest) -> None:
    if request.world > 1:
        raise UsageError(
            "--fresh does not work with several processes: one would remove what another writes.",
            remedy=f"Remove {', '.join(str(path) for path in request.folders.values())} and do not give --fresh.",
        )
    for folder in request.folders.values():
        if request.cache.remote:
            withdraw(folder, request.cache.remote)
        remove_cache(folder)


class _Harvest:
    """One process's harvest."""

    def __init__(
        self,
        prepared: PreparedHarvest,
        model: LanguageModel,
        progress: Progress,
        watch: Stopwatch,
        *,
        own_loss: dict[str, float | int] | None,
    ) -> None:
        self._prepared = prepared
        self._request = prepared.request
        self._model = model
        self._progress = progress
        self._own_loss = own_loss
        self._watch = watch
        progress.note("Proving the sites with TransformerLens.")
        with watch.timing("booting the bridge"):
            self._bridge = boot_bridge(model)
        self._proofs: dict[int, SiteProof] = {}
        self._files: dict[int, ProofFile] = {}
        self._mlps: dict[int, Mlp] = {}
        self._unembedding: dict[str, np.ndarray] = {}

    def fill(self, layers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Prove the sites, then fill the caches."""
        if self._request.cache.target == "recompute":
            self._mlps = {layer: mlp_of(self._model, layer) for layer in layers}
        self._unembedding = arrays_beside(
            self._model, rows_bytes=self._prepared.geometry.size_bytes, progress=self._progress
        )
        with self._watch.timing("proving"):
            self._prove(layers)
        with ExitStack() as stack:
            with self._watch.timing("opening caches"):
                sinks = [Sink(layer, stack.enter_context(self._open(layer))) for layer in layers]
            for sink in sinks:
                folder = self._request.folders[sink.layer]
                record = sink.writer.manifest.identity["proof"]
                self._files[sink.layer] = ProofFile(folder, rank=self._request.rank, record=record)
            counts: dict[int, dict[str, float | int]] = {layer: {"rows": 0} for layer in layers}
            for group in cut_alike([sink for sink in sinks if not sink.writer.complete]):
                counts |= dict.fromkeys((sink.layer for sink in group), self._pass(group))
            return {sink.layer: self._report(sink, counts[sink.layer]) for sink in sinks}

    def _report(self, sink: Sink, counts: dict[str, float | int]) -> dict[str, Any]:
        folder = self._request.folders[sink.layer]
        self._files[sink.layer].write(self._skipped_rows)
        facts = counts | {"starting_seconds": self._watch.seconds}
        return _facts(folder, sink.writer.manifest.fingerprint, facts, self._record(sink.layer))

    @property
    def _skipped_rows(self) -> int:
        return int(getattr(self._prepared.documents, "skipped_rows", 0))

    def _record(self, layer: int) -> dict[str, Any]:
        """The proof of a layer and the model's own loss, which no fingerprint depends on."""
        return self._proofs[layer].record() | {"language_model_loss": self._own_loss}

    def _open(self, layer: int) -> CacheWriter:
        prepared = self._prepared
        norm = self._model.norm(layer)
        arrays = {
            "gain": norm.gain.cpu().numpy(),
            "bias": norm.bias.cpu().numpy(),
            "tokenizer.json": np.frombuffer(prepared.tokenizer.json.encode(), dtype=np.uint8),
            **(self._mlps[layer].arrays() if layer in self._mlps else {}),
            **({} if self._is_begun_without_unembedding(layer) else self._unembedding),
        }
        return CacheWriter(
            self._request.folders[layer],
            identity=prepared.identity(layer) | {"proof": self._record(layer)},
            settings=self._request.cache,
            d_source=prepared.source.width,
            d_target=prepared.source.width,
            train_rows=prepared.settings.train_tokens,
            held_out_rows=prepared.settings.held_out_tokens,
            special_ids=list(prepared.tokenizer.special_ids),
            arrays=arrays,
            partition=self._request.rank,
            partitions=self._request.world,
            locked=True,
            device=self._model.device_of(layer),
            progress=self._progress,
        )

    def _is_begun_without_unembedding(self, layer: int) -> bool:
        """Whether an earlier release began this cache without an unembedding: then it stays without one."""
        folder = self._request.folders[layer]
        begun = (folder / MANIFEST).is_file()
        return begun and not any(path.startswith(PARAMETERS + UNEMBEDDING) for path in read_manifest(folder).files)

    def _pass(self, sinks: list[Sink]) -> dict[str, float | int]:
        """One pass over the text for all ``sinks``.

        Returns rows, seconds, and where they went (``harvest/timing.py``).
        """
        settings = self._request.settings
        batch_contexts = sinks[0].batch_contexts or choose_batch(self._model, settings, layers=len(sinks))
        stream = self._prepared.stream(batch_contexts=batch_contexts, cursor=slowest_cursor(sinks))
        keys: list[Key] = [(sink.layer, site) for sink in sinks for site in settings.sites]
        forward = BatchForward(self._model, settings, keys)

        title = f"harvest layer {', '.join(str(sink.layer) for sink in sinks)}"
        self._progress.begin(title, total=sum(stream.rows), unit="tokens", done=stream.rows_before)
        times = PassTimes()
        # -1: the proof file is written with the first batch, and then after each bad row.
        skipped_rows = -1
        batches = Prefetcher(stream, depth=_PREFETCHED_BATCHES)
        rows = BackgroundWriter(writing(sinks, settings, times.writing), depth=UNWRITTEN_BATCHES)
        with batches, times.own.timing("all"), rows, times.own.timing("batches"):
            for batch in batches:
                with times.own.timing("launching"):
                    computed = forward.run(batch, self._progress)
                # Before its rows can be committed, so that no kill leaves rows without their proof.
                contexts = sum(batch.cursor["emitted"]) if batch.cursor else 0
                if _is_sampled(contexts // batch_contexts):
                    with times.own.timing("proving"):
                        self._prove_sample(batch, [sink.layer for sink in sinks], contexts)
                if self._skipped_rows != skipped_rows:
                    skipped_rows = self._skipped_rows
                    for sink in sinks:
                        self._files[sink.layer].write(skipped_rows)
                rows.put(computed)
                self._progress.advance(batch.rows)
                # After a repair only some rows are missing, and the text after them need not be read.
                if all(sink.writer.complete for sink in sinks):
                    break
        self._progress.end()
        self._note_skipped()
        return {"rows": sum(stream.rows) - stream.rows_before, **times.facts(batches, rows, sinks)}

    def _prove(self, layers: Sequence[int]) -> None:
        """Prove the sites on the first contexts of the text, the same for every rank; use eager attention if needed."""
        batch = next(iter(self._prepared.first_contexts(_PROOF_CONTEXTS)))
        with first_proof(self._model.hugging.config):
            proofs = self._measure(batch, layers)
        if any(proof.bridge_failures for proof in proofs) and attention_of(self._model) != "eager":
            kind = attention_of(self._model)
            self._progress.note(f"Attention '{kind}' differs from the plain model: using 'eager'.")
            use_attention(self._model, "eager")
            proofs = self._measure(batch, layers)
        self._keep(proofs)

    def _prove_sample(self, batch: ContextBatch, layers: Sequence[int], contexts: int) -> None:
        proofs = self._measure(batch, layers)
        self._keep([proof.worst(self._proofs[proof.layer]) for proof in proofs])
        for proof in proofs:
            self._files[proof.layer].add_sample(contexts, proof)

    def _note_skipped(self) -> None:
        for row, why in getattr(self._prepared.documents, "skipped", {}).items():
            self._progress.note(f"Left out {row}: {why}.")
        if self._skipped_rows:
            self._progress.note(f"Left out {self._skipped_rows:,} rows of the text that cannot be used.")

    def _measure(self, batch: ContextBatch, layers: Sequence[int]) -> list[SiteProof]:
        settings = self._request.settings
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
    """Whether the sites are proved again on the batch with this number, counted from the beginning of the text."""
    is_power_of_two = number & (number - 1) == 0
    return number >= _FIRST_SAMPLE and (is_power_of_two or number % _SAMPLE_EVERY == 0)
