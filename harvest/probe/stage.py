"""Harvests the first-letter probe: activations at single words, for the absorption metric without a language model.

Of each prompt (``harvest.probe.words``) the row of the word is stored, after which the letter would follow (Chanin et
al. 2024, arXiv 2409.14507). ``harvest.probe.files`` has the format of the result.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.open import open_cache
from common.errors import MismatchError
from common.progress import Progress, Silent
from harvest.memory import choose_batch, weight_bytes
from harvest.model.forward import Captured, Key, run_modules, use_attention
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.source import check_layers, find_model
from harvest.model.tokenizer import ModelTokenizer, load_tokenizer
from harvest.prepare import check_sites
from harvest.probe.files import Probe, remove_probe
from harvest.probe.words import choose_words, probe_contexts
from harvest.request import HarvestRequest

_TIMED_SECONDS = 3.0
"""How long the model is timed for a plan: a few batches give a steady rate."""


@dataclass(frozen=True)
class ProbePlan:
    """What the probe will take; ``words`` and ``tokens`` are those of the complete probe, even if some are done."""

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


def harvest_probe(
    request: HarvestRequest, *, folders: dict[int, Path], fresh: bool = False, progress: Progress | None = None
) -> dict[int, dict[str, Any]]:
    """Write the probe of every layer into ``folders``, all layers in one pass; the caches must be finished.

    A finished probe is not changed unless ``fresh``. Raises UsageError when a layer has no activation cache or the
    tokenizer has no words, MismatchError when the cache is of another model.
    """
    progress = progress or Silent()
    probe = _prepare(request, folders)
    if fresh:
        for folder in folders.values():
            remove_probe(folder)
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
        model = _load(probe, missing)
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


def _prepare(request: HarvestRequest, folders: dict[int, Path]) -> Probe:
    settings = request.settings
    source = find_model(request.model, revision=settings.revision)
    check_layers(request.layers, source)
    manifests = {layer: open_cache(path, request.cache).manifest for layer, path in request.folders.items()}
    for layer, manifest in manifests.items():
        if manifest.identity.get("weights_hash") != source.weights_hash:
            raise MismatchError("The activation cache is of another model.", where=request.folders[layer])
    check_sites(source, settings)
    tokenizer: ModelTokenizer = load_tokenizer(source, bos=settings.bos)
    words = choose_words(tokenizer, per_letter=settings.probe_words)
    contexts = probe_contexts(tokenizer, words, positions=source.positions, solved_lines=settings.probe_examples)
    return Probe(request, folders, source, words, contexts, manifests)


def _fill(probe: Probe, layers: list[int], progress: Progress) -> None:
    settings = probe.request.settings
    model = _load(probe, layers)
    keys: list[Key] = [(layer, site) for layer in layers for site in settings.sites]
    batch = choose_batch(model, settings, layers=len(keys))
    done = [start for start in probe.starts if all(probe.has_piece(layer, start) for layer in layers)]

    progress.begin(
        "harvest the first-letter prompts",
        total=len(probe.contexts),
        unit="words",
        done=sum(len(probe.piece(start)) for start in done),
    )
    for start in probe.starts:
        if start not in done:
            rows = _run(model, probe.piece(start), keys, batch=batch, progress=progress)
            for layer in layers:
                probe.write_piece(layer, start, {site: rows[layer, site] for site in settings.sites})
    progress.end()
    for layer in layers:
        probe.complete(layer)


def _load(probe: Probe, layers: Sequence[int]) -> LanguageModel:
    """The model as in the harvest of the caches."""
    request = probe.request
    model = load_found(probe.source, device=request.device, dtype=request.settings.dtype, last_layer=max(layers))
    if any(probe.manifests[layer].identity["proof"]["attention"] == "eager" for layer in layers):
        use_attention(model, "eager")
    return model


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
        captured = _rows_at_word(model, chosen, keys)
        for key in keys:
            kept[key].append(captured[key].to(torch.bfloat16).cpu())
        progress.advance(len(chosen))
    return {key: torch.cat(rows) for key, rows in kept.items()}


def _time_words(probe: Probe, model: LanguageModel, layers: Sequence[int]) -> float:
    """Tokens per second of the model, measured on the probe's own prompts."""
    settings = probe.request.settings
    keys: list[Key] = [(layer, site) for layer in layers for site in settings.sites]
    batch = choose_batch(model, settings, layers=len(keys))
    tokens = 0
    started = time.perf_counter()
    for start in range(0, len(probe.contexts), batch):
        chosen = probe.contexts[start : start + batch]
        _rows_at_word(model, chosen, keys)
        tokens += sum(len(context) for context in chosen)
        if time.perf_counter() - started > _TIMED_SECONDS:
            break
    return tokens / (time.perf_counter() - started)


def _rows_at_word(model: LanguageModel, contexts: Sequence[Int[Tensor, " pos"]], keys: Sequence[Key]) -> Captured:
    """The sites' rows at each context's last token; padding comes after it and does not change the row."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True, padding_value=model.tokenizer.bos)
    last = torch.tensor([len(context) - 1 for context in contexts])
    captured = run_modules(model, tokens.to(model.device), keys=keys)
    return {key: tensor[torch.arange(len(last)), last] for key, tensor in captured.items()}
