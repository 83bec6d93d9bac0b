"""Whether the stored weights are those of the model: refuses what Hugging Face reports as missing after loading.

Hugging Face fills missing tensors with random numbers. Every equation of the site proof is true for a random network
too, so the lists of missing and unexpected tensors are checked here.
"""

import re
from collections.abc import Iterable
from typing import Any

from common.errors import MismatchError, UsageError
from harvest.model.source import ModelSource

_NAMED = 3
"""Tensors named in a message: enough to see the pattern."""
_PREFIXES = {
    "_orig_mod.": "They were saved from a compiled model: save model._orig_mod, or remove '_orig_mod.' from the names.",
    "module.": "They were saved from a parallel wrapper: save model.module, or remove 'module.' from the names.",
}
_ADAPTER = re.compile(r"(^|\.)(base_model\.model|lora_\w+|base_layer|modules_to_save)\.")
_MERGE = "They belong to an adapter that is not merged: save the result of model.merge_and_unload()."


def check_fit(info: dict[str, Any], source: ModelSource, *, last_layer: int) -> list[str]:
    """Check Hugging Face's loading report of a model that was loaded up to ``last_layer``; returns notes.

    Raises MismatchError when tensors of the model are not in the files (tied ones excepted), when the files hold
    blocks that the configuration does not count, or an adapter that is not merged.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(
        key for key in info["unexpected_keys"] if not last_layer < (source.block_of(key) or 0) < source.layers
    )
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing or mismatched:
        raise _refusal(source, missing, unexpected, mismatched)
    beyond = [key for key in unexpected if (source.block_of(key) or 0) >= source.layers]
    if beyond:
        raise MismatchError(
            f"The weights have more blocks than the {source.layers} of config.json: {_named(beyond)}.",
            where=source.folder,
            remedy="Use the config.json that belongs to these weights.",
        )
    if any(_ADAPTER.search(key) for key in unexpected):
        raise MismatchError(
            f"The weights have an adapter that is not merged: {_named(unexpected)}.", where=source.folder, remedy=_MERGE
        )
    return [f"The weights have tensors that the model does not use: {_named(unexpected)}."] if unexpected else []


def _refusal(source: ModelSource, missing: list[str], unexpected: list[str], mismatched: list[str]) -> MismatchError:
    facts: list[str] = []
    if missing:
        facts.append(f"{len(missing)} of its tensors are not in the files ({_named(missing)})")
    if mismatched:
        facts.append(f"{len(mismatched)} have another shape ({_named(mismatched)})")
    if unexpected:
        facts.append(f"the files have {len(unexpected)} that it does not use ({_named(unexpected)})")
    return MismatchError(
        f"The weights do not fit the model: {'; '.join(facts)}.",
        where=source.folder,
        remedy=_remedy(unexpected, missing, source),
    )


def _remedy(unexpected: list[str], missing: list[str], source: ModelSource) -> str:
    for prefix, remedy in _PREFIXES.items():
        if any(key.startswith(prefix) for key in unexpected):
            return remedy
    if any(_ADAPTER.search(key) for key in unexpected):
        return _MERGE
    blocks = sorted({block for key in missing if (block := source.block_of(key)) is not None})
    if blocks and not unexpected:
        return f"Weights of block {', '.join(map(str, blocks[:8]))} are missing: save the complete model again."
    return "Save the complete model with save_pretrained, with the config.json that belongs to it."


def _named(keys: Iterable[str]) -> str:
    keys = list(keys)
    rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + rest


def check_quantisation(source: ModelSource) -> None:
    """Raise UsageError for a quantised model: the proof and the recomputed target need weights in floating point."""
    found = getattr(source.config, "quantization_config", None)
    if found is None:
        return
    method = found.get("quant_method", "?") if isinstance(found, dict) else getattr(found, "quant_method", "?")
    method = getattr(method, "value", method)
    raise UsageError(
        f"The model is quantised ({method}); weights in bfloat16, float16 or float32 are supported.",
        where=source.folder / "config.json",
        remedy="Use the model without quantisation, or save it with model.dequantize() and save_pretrained.",
    )
