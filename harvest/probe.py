"""The first-letter probe: activations at single words, from which absorption is scored with no language model.

A context is BOS, ten solved lines in a random order, and the word:

    " mirth has the first letter: M\\n tartan has the first letter: T\\n ... word"

and the row kept is the word's, where the letter is about to be asked for (Chanin et al. 2024, arXiv 2409.14507). Words
are the tokenizer's own tokens of the form " word", so that each is one row. The folder, per layer:

    probe.safetensors   source (words, d_source), target (words, d_target), bfloat16; letter (words,) int64, 0 for a;
                        split (words,) uint8, 0 train, 1 test
    probe.json          version, kind, words, prompt, examples, site_source, site_target, model, model_parameters,
                        layer, fingerprint of the activation cache that it belongs to, seed, weights (size and hash of
                        probe.safetensors), checksum of all these
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from cache.open import open_cache
from common import disk
from common.errors import MismatchError, UsageError
from common.hashing import hash_bytes
from common.progress import Progress, Silent
from common.run_layout import PROBE_FILE, PROBE_WEIGHTS_FILE
from common.sealed_json import with_checksum
from harvest.config import HarvestSettings
from harvest.memory import choose_batch
from harvest.model.forward import Captured, Key, run_modules, use_attention
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.source import check_layers, find_model
from harvest.model.tokenizer import ModelTokenizer
from harvest.prepare import check_sites
from harvest.request import HarvestRequest

VERSION = 2
KIND = "first-letter"
PROMPT = " {word} has the first letter: {letter}\n"
EXAMPLES = 10
WORDS_PER_LETTER = 500
TEST_SHARE = 0.2
SEED = 0
_WORD = re.compile(r"[Ġ▁]([a-z]{2,})")


@dataclass(frozen=True)
class ProbeWords:
    """Words that are one token each, by letter then alphabet, and which of them are for testing."""

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    test: tuple[bool, ...]

    @property
    def letters(self) -> list[int]:
        """0 for a to 25 for z."""
        return [ord(word[0]) - ord("a") for word in self.words]


def harvest_probe(
    request: HarvestRequest, *, folders: dict[int, Path], progress: Progress | None = None
) -> dict[int, dict[str, Any]]:
    """Write the probe of every layer into ``folders``, all layers in one pass; the caches must be finished.

    Raises UsageError when a layer has no activation cache or the tokenizer has no words, MismatchError when the
    cache came from another model.
    """
    settings = request.settings
    source = find_model(request.model, revision=settings.revision)
    check_layers(request.layers, source)
    manifests = {layer: open_cache(path, request.cache).manifest for layer, path in request.folders.items()}
    for layer, manifest in manifests.items():
        if manifest.identity.get("weights_hash") != source.weights_hash:
            raise MismatchError("The activation cache came from another model.", where=request.folders[layer])
    check_sites(source, settings)

    model = load_found(source, device=request.device, dtype=settings.dtype, last_layer=max(request.layers))
    if any(manifest.identity["proof"]["attention"] == "eager" for manifest in manifests.values()):
        use_attention(model, "eager")
    words = choose_words(model.tokenizer)
    keys: list[Key] = [(layer, site) for layer in request.layers for site in settings.sites]
    rows = _run(model, words, keys, settings=settings, progress=progress or Silent())

    results: dict[int, dict[str, Any]] = {}
    for layer in request.layers:
        about = _about(model, words, settings, layer, manifests[layer].fingerprint)
        _write(folders[layer], words, rows[layer, settings.source], rows[layer, settings.target], about)
        results[layer] = {"probe": str(folders[layer]), "words": len(words.words)}
    return results


def choose_words(tokenizer: ModelTokenizer) -> ProbeWords:
    """The tokenizer's lower-case words of one token with a space before, at most ``WORDS_PER_LETTER`` a letter.

    Raises UsageError when there are none.
    """
    found = {
        match[1]: int(token)
        for text, token in sorted(tokenizer.backend.get_vocab().items())
        if (match := _WORD.fullmatch(text)) and tokenizer.backend.decode([token]).strip() == match[1]
    }
    if not found:
        raise UsageError("The tokenizer has no token that is a word with a space before it, so there is no probe.")
    generator = random.Random(SEED)
    words: list[tuple[str, bool]] = []
    for letter in sorted({word[0] for word in found}):
        own = sorted(word for word in found if word[0] == letter)
        own = sorted(generator.sample(own, min(len(own), WORDS_PER_LETTER)))
        test = set(generator.sample(own, round(TEST_SHARE * len(own))))
        words += [(word, word in test) for word in own]
    return ProbeWords(
        words=tuple(word for word, _ in words),
        tokens=tuple(found[word] for word, _ in words),
        test=tuple(test for _, test in words),
    )


def probe_contexts(tokenizer: ModelTokenizer, words: ProbeWords, *, positions: int) -> list[Int[Tensor, " pos"]]:
    """BOS, solved lines of training words as far as they fit (never the word itself), and the word's token."""
    train = [word for word, test in zip(words.words, words.test, strict=True) if not test]
    contexts: list[Int[Tensor, " pos"]] = []
    for number, (word, token) in enumerate(zip(words.words, words.tokens, strict=True)):
        generator = random.Random(f"{SEED} {number}")
        shown = [one for one in generator.sample(train, min(len(train), EXAMPLES + 1)) if one != word][:EXAMPLES]
        lines = [PROMPT.format(word=one, letter=one[0].upper()) for one in shown]
        encoded = tokenizer.backend.encode_batch_fast(lines, add_special_tokens=False)
        examples: list[int] = []
        for encoding in encoded:
            if len(examples) + len(encoding.ids) + 2 <= positions:
                examples += encoding.ids
        start = [tokenizer.bos] if tokenizer.begins_with_bos else []
        contexts.append(torch.tensor([*start, *examples, token]))
    return contexts


def _run(
    model: LanguageModel, words: ProbeWords, keys: Sequence[Key], *, settings: HarvestSettings, progress: Progress
) -> dict[Key, Float[Tensor, "words d"]]:
    contexts = probe_contexts(model.tokenizer, words, positions=model.source.positions)
    batch = choose_batch(model, settings, layers=len(keys))
    kept: dict[Key, list[Tensor]] = {key: [] for key in keys}
    progress.begin("harvest the first-letter probe", total=len(contexts), unit="words")
    for start in range(0, len(contexts), batch):
        part = contexts[start : start + batch]
        captured = _at_the_word(model, part, keys)
        for key in keys:
            kept[key].append(captured[key].to(torch.bfloat16).cpu())
        progress.advance(len(part))
    progress.end()
    return {key: torch.cat(rows) for key, rows in kept.items()}


def _at_the_word(model: LanguageModel, contexts: Sequence[Int[Tensor, " pos"]], keys: Sequence[Key]) -> Captured:
    """The sites' rows at each context's last token; padding stands after it, where nothing of it is seen."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True, padding_value=model.tokenizer.bos)
    last = torch.tensor([len(context) - 1 for context in contexts])
    captured = run_modules(model, tokens.to(model.device), keys=keys)
    return {key: tensor[torch.arange(len(last)), last] for key, tensor in captured.items()}


def _about(
    model: LanguageModel, words: ProbeWords, settings: HarvestSettings, layer: int, fingerprint: str
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "kind": KIND,
        "words": list(words.words),
        "prompt": PROMPT,
        "examples": EXAMPLES,
        "site_source": settings.source,
        "site_target": settings.target,
        "model": model.source.name,
        "model_parameters": model.source.parameters,
        "layer": layer,
        "fingerprint": fingerprint,
        "seed": SEED,
    }


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
