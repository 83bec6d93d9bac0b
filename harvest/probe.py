"""The first-letter probe: activations at single words, from which absorption is scored with no language model.

The row kept of a prompt (``harvest.probe_words``) is the word's, where the letter is about to be asked for (Chanin et
al. 2024, arXiv 2409.14507). The folder, per layer:

    probe.safetensors   source (words, d_source), target (words, d_target), bfloat16; letter (words,) int64, 0 for a;
                        split (words,) uint8, 0 train, 1 test
    probe.json          version, kind, words, prompt, examples, site_source, site_target, model, model_parameters,
                        layer, fingerprint of the activation cache that it belongs to, seed, weights (size and hash of
                        probe.safetensors), checksum of all these

Until the probe is complete, ``pieces/`` holds what is done of it, and the same command goes on from there.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.format.manifest import Manifest
from cache.open import open_cache
from common import disk
from common.errors import MismatchError
from common.hashing import hash_bytes
from common.progress import Progress, Silent
from common.run_layout import PROBE_FILE, PROBE_WEIGHTS_FILE
from common.sealed.document import with_checksum
from harvest.memory import choose_batch, weight_bytes
from harvest.model.forward import Captured, Key, run_modules, use_attention
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.source import ModelSource, check_layers, find_model
from harvest.model.tokenizer import ModelTokenizer, load_tokenizer
from harvest.prepare import check_sites
from harvest.probe_words import PROMPT, SEED, ProbeWords, choose_words, probe_contexts
from harvest.request import HarvestRequest

VERSION = 2
KIND = "first-letter"
_PIECE_WORDS = 512
"""Words of a piece that is kept at once: some ten seconds of a small model on a CPU."""
# A plan may take seconds, not minutes; a few batches of words say how fast the model is.
_TIMED_SECONDS = 3.0


@dataclass(frozen=True)
class ProbePlan:
    """What the probe will take; ``words`` and ``tokens`` are of the whole probe, whatever is done of it."""

    model: str
    layers: list[int]
    finished_layers: list[int]
    device: str
    letters: int
    words: int
    examples: int
    tokens: int
    bytes_per_layer: int
    weight_bytes: int
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class _Probe:
    """The request with its words and prompts, and what each layer's ``probe.json`` will say."""

    request: HarvestRequest
    folders: dict[int, Path]
    source: ModelSource
    words: ProbeWords
    contexts: list[Int[Tensor, " pos"]]
    manifests: dict[int, Manifest]

    def about(self, layer: int) -> dict[str, Any]:
        settings = self.request.settings
        return {
            "version": VERSION,
            "kind": KIND,
            "words": list(self.words.words),
            "prompt": PROMPT,
            "examples": settings.probe_examples,
            "site_source": settings.source,
            "site_target": settings.target,
            "model": self.source.name,
            "model_parameters": self.source.parameters,
            "layer": layer,
            "fingerprint": self.manifests[layer].fingerprint,
            "seed": SEED,
        }

    def is_finished(self, layer: int) -> bool:
        """Whether the layer's folder holds this very probe; the model's name may be another path to it."""
        try:
            folder = self.folders[layer]
            found: Any = json.loads((folder / PROBE_FILE).read_bytes())
            sealed = with_checksum({key: value for key, value in found.items() if key != "checksum"}) == found
            size = (folder / PROBE_WEIGHTS_FILE).stat().st_size
            about = {key: found.get(key) for key in self.about(layer)}
            same = {**about, "model": self.source.name} == self.about(layer)
            return sealed and same and found["weights"]["bytes"] == size
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False

    @property
    def missing(self) -> list[int]:
        return [layer for layer in self.request.layers if not self.is_finished(layer)]

    def load(self, layers: Sequence[int]) -> LanguageModel:
        """The model as the caches were harvested with it."""
        request = self.request
        model = load_found(self.source, device=request.device, dtype=request.settings.dtype, last_layer=max(layers))
        if any(self.manifests[layer].identity["proof"]["attention"] == "eager" for layer in layers):
            use_attention(model, "eager")
        return model


def harvest_probe(
    request: HarvestRequest, *, folders: dict[int, Path], fresh: bool = False, progress: Progress | None = None
) -> dict[int, dict[str, Any]]:
    """Write the probe of every layer into ``folders``, all layers in one pass; the caches must be finished.

    A finished probe is left alone unless ``fresh``. Raises UsageError when a layer has no activation cache or the
    tokenizer has no words, MismatchError when the cache came from another model.
    """
    progress = progress or Silent()
    probe = _prepare(request, folders)
    if fresh:
        for folder in folders.values():
            _remove(folder)
    missing = probe.missing
    if missing:
        _fill(probe, missing, progress)
    return {layer: {"probe": str(folders[layer]), "words": len(probe.words.words)} for layer in request.layers}


def plan_probe(request: HarvestRequest, *, folders: dict[int, Path]) -> ProbePlan:
    """Measure what ``harvest_probe`` would take, and write nothing. Raises what it would raise before its first row."""
    probe = _prepare(request, folders)
    missing = probe.missing
    tokens = sum(len(context) for context in probe.contexts)
    speed = float("inf")
    device = request.device
    dtype = torch.float32
    if missing:
        model = probe.load(missing)
        speed = _time_words(probe, model, missing)
        device = str(model.device)
        dtype = model.dtype
    return ProbePlan(
        model=probe.source.name,
        layers=request.layers,
        finished_layers=[layer for layer in request.layers if layer not in missing],
        device=device,
        letters=len(set(probe.words.letters)),
        words=len(probe.words.words),
        examples=request.settings.probe_examples,
        tokens=tokens,
        bytes_per_layer=len(probe.words.words) * 2 * probe.source.width * torch.bfloat16.itemsize,
        weight_bytes=weight_bytes(probe.source, dtype, layers=max(missing, default=0) + 1),
        tokens_per_second=speed,
        seconds=tokens / speed,
    )


def _prepare(request: HarvestRequest, folders: dict[int, Path]) -> _Probe:
    settings = request.settings
    source = find_model(request.model, revision=settings.revision)
    check_layers(request.layers, source)
    manifests = {layer: open_cache(path, request.cache).manifest for layer, path in request.folders.items()}
    for layer, manifest in manifests.items():
        if manifest.identity.get("weights_hash") != source.weights_hash:
            raise MismatchError("The activation cache came from another model.", where=request.folders[layer])
    check_sites(source, settings)
    tokenizer: ModelTokenizer = load_tokenizer(source, bos=settings.bos)
    words = choose_words(tokenizer, per_letter=settings.probe_words)
    contexts = probe_contexts(tokenizer, words, positions=source.positions, solved_lines=settings.probe_examples)
    return _Probe(request, folders, source, words, contexts, manifests)


def _fill(probe: _Probe, layers: list[int], progress: Progress) -> None:
    settings = probe.request.settings
    model = probe.load(layers)
    keys: list[Key] = [(layer, site) for layer in layers for site in settings.sites]
    batch = choose_batch(model, settings, layers=len(keys))
    starts = range(0, len(probe.contexts), _PIECE_WORDS)
    done = [start for start in starts if all(_read_piece(probe, layer, start) is not None for layer in layers)]

    progress.begin(
        "harvest the first-letter prompts",
        total=len(probe.contexts),
        unit="words",
        done=sum(len(probe.contexts[start : start + _PIECE_WORDS]) for start in done),
    )
    for start in starts:
        if start in done:
            continue
        contexts = probe.contexts[start : start + _PIECE_WORDS]
        rows = _run(model, contexts, keys, batch=batch, progress=progress)
        for layer in layers:
            tensors = {site: rows[layer, site].contiguous() for site in settings.sites}
            metadata = {"about": json.dumps(probe.about(layer))}
            disk.write_file(_piece_path(probe, layer, start), save(tensors, metadata))
    progress.end()
    for layer in layers:
        _complete(probe, layer, starts)


def _piece_path(probe: _Probe, layer: int, start: int) -> Path:
    return probe.folders[layer] / "pieces" / f"{start:06d}.safetensors"


def _read_piece(probe: _Probe, layer: int, start: int) -> dict[str, Tensor] | None:
    """A piece of this very probe; None when it is missing, damaged or of another."""
    path = _piece_path(probe, layer, start)
    words = len(probe.contexts[start : start + _PIECE_WORDS])
    try:
        data = path.read_bytes()
        header: Any = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tensors = load(data)
        same = json.loads(header["__metadata__"]["about"]) == probe.about(layer)
        whole = set(tensors) == set(probe.request.settings.sites) and all(len(t) == words for t in tensors.values())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError):
        return None
    return tensors if same and whole else None


def _complete(probe: _Probe, layer: int, starts: Sequence[int]) -> None:
    """Join a layer's pieces into the probe, and remove them."""
    settings = probe.request.settings
    pieces = [_read_piece(probe, layer, start) for start in starts]
    rows = {site: torch.cat([piece[site] for piece in pieces if piece]) for site in settings.sites}
    _write(probe.folders[layer], probe.words, rows[settings.source], rows[settings.target], probe.about(layer))
    disk.remove(probe.folders[layer] / "pieces")


def _remove(folder: Path) -> None:
    """Remove a probe, its description first, so that a half-removed one is not read."""
    for name in (PROBE_FILE, PROBE_WEIGHTS_FILE, "pieces"):
        disk.remove(folder / name)


def _run(
    model: LanguageModel,
    contexts: Sequence[Int[Tensor, " pos"]],
    keys: Sequence[Key],
    *,
    batch: int,
    progress: Progress,
) -> dict[Key, Float[Tensor, "words d"]]:
    kept: dict[Key, list[Tensor]] = {key: [] for key in keys}
    for start in range(0, len(contexts), batch):
        chosen = contexts[start : start + batch]
        captured = _at_the_word(model, chosen, keys)
        for key in keys:
            kept[key].append(captured[key].to(torch.bfloat16).cpu())
        progress.advance(len(chosen))
    return {key: torch.cat(rows) for key, rows in kept.items()}


def _time_words(probe: _Probe, model: LanguageModel, layers: Sequence[int]) -> float:
    """Tokens a second through the model, measured on the probe's own prompts."""
    settings = probe.request.settings
    keys: list[Key] = [(layer, site) for layer in layers for site in settings.sites]
    batch = choose_batch(model, settings, layers=len(keys))
    tokens = 0
    started = time.perf_counter()
    for start in range(0, len(probe.contexts), batch):
        chosen = probe.contexts[start : start + batch]
        _at_the_word(model, chosen, keys)
        tokens += sum(len(context) for context in chosen)
        if time.perf_counter() - started > _TIMED_SECONDS:
            break
    return tokens / (time.perf_counter() - started)


def _at_the_word(model: LanguageModel, contexts: Sequence[Int[Tensor, " pos"]], keys: Sequence[Key]) -> Captured:
    """The sites' rows at each context's last token; padding stands after it, where nothing of it is seen."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True, padding_value=model.tokenizer.bos)
    last = torch.tensor([len(context) - 1 for context in contexts])
    captured = run_modules(model, tokens.to(model.device), keys=keys)
    return {key: tensor[torch.arange(len(last)), last] for key, tensor in captured.items()}


def _write(
    folder: Path,
    words: ProbeWords,
    source: Float[Tensor, "words d_source"],
    target: Float[Tensor, "words d_target"],
    about: dict[str, Any],
) -> None:
    tensors = {
        "source": source.contiguous(),
        "target": target.contiguous(),
        "letter": torch.tensor(words.letters),
        "split": torch.tensor(words.test, dtype=torch.uint8),
    }
    data = save(tensors)
    sealed = with_checksum(about | {"weights": {"bytes": len(data), "xxh3_128": hash_bytes(data)}})
    disk.make_folder(folder)
    disk.write_file(folder / PROBE_WEIGHTS_FILE, data)
    # Last, so that a probe that a crash cut short has no description and is not read.
    disk.write_file(folder / PROBE_FILE, json.dumps(sealed, indent=1).encode() + b"\n")
