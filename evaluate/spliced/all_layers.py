"""Dictionaries of several layers in the language model at once: the effect of all their errors.

Each layer's dictionary reads what the spliced layers before it computed. The caches must be of the same text, as those
of one harvest are.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from common.device import choose_device
from common.errors import MismatchError
from common.progress import Progress
from common.run_layout import METRICS_FILE
from evaluate.config import EvaluateSettings
from evaluate.held_out import open_held_out
from evaluate.reference import check_belongs
from evaluate.replay import Replay
from evaluate.report import report
from evaluate.report.summary import interval_text, share
from evaluate.spliced.loss import SplicedModel
from evaluate.spliced.splicer import open_splicer
from transcoder.formats.native import load_transcoder
from transcoder.transcoder import Transcoder


def splice_all_layers(
    *,
    caches: Mapping[int, Path],
    transcoders: Mapping[int, Path],
    out: Path,
    settings: EvaluateSettings,
    device: str,
    lm: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json of all these layers in the model at once, written with its summary into ``out``.

    Raises what ``evaluate_layer`` raises with a language model, MismatchError where the caches are of other texts.
    """
    device_name = str(choose_device(device))
    dictionaries = {
        layer: load_transcoder(path, progress=progress).on(device_name) for layer, path in transcoders.items()
    }
    readers = {
        layer: open_cache(path, cache_settings, device=device_name, column=dictionaries[layer].column)
        for layer, path in caches.items()
    }
    for layer, dictionary in dictionaries.items():
        check_belongs(dictionary, readers[layer], path=transcoders[layer], force=False)
    check_same_text(readers)
    reader = readers[min(readers)]
    replay = Replay(open_held_out(reader), 1, device_name, progress)
    spliced = SplicedModel(open_splicer(lm, readers, device=device), reader, replay, settings)
    means = {layer: open_held_out(layer_reader).mean_target.float() for layer, layer_reader in readers.items()}
    fields, _ = spliced.measure_layers(dictionaries, means)
    metrics = _heading(reader, dictionaries) | {"documents": replay.held_out.documents, "language_model": fields}
    if replay.ranks.rank == 0:
        files = {METRICS_FILE: report.as_json(metrics), "summary.txt": all_layers_table(metrics).encode() + b"\n"}
        if earlier := report.write_report(out, files):
            progress.note(f"The earlier report was moved to {earlier}.")
    replay.ranks.wait()
    return metrics


def check_same_text(readers: Mapping[int, CacheReader]) -> None:
    """Raises MismatchError if caches differ from the first one in held-out tokens or language model."""
    first = min(readers)
    text = readers[first].split("held_out")
    for layer, reader in readers.items():
        held_out = reader.split("held_out")
        same = np.array_equal(held_out.tokens, text.tokens) and np.array_equal(held_out.position, text.position)
        if not same or reader.identity.get("weights_hash") != readers[first].identity.get("weights_hash"):
            what = f"The caches of layers {first} and {layer} are not of the same model and text."
            remedy = f"Harvest them in one pass: harvest --layer {first} --layer {layer}."
            raise MismatchError(what, where=reader.path, remedy=remedy)


def all_layers_table(metrics: Mapping[str, Any]) -> str:
    """A table: the clean model, then a line for each prefix."""
    spliced = metrics["language_model"]
    layers = ", ".join(str(entry["layer"]) for entry in metrics["layers"])
    zero, mean = (spliced[name]["cross_entropy"] for name in ("zero", "mean"))
    lines = [
        f"Layers {layers} spliced into {metrics['model']} at once, {spliced['tokens']:,} tokens: cross-entropy clean "
        f"{spliced['clean']:.4f}, targets zeroed {zero:.4f}, targets at their means {mean:.4f}",
        f"{'prefix':<16}  {'CE':>7}  {'delta':>7}  {'95 % interval':<19}  {'KL':>7}  {'top-1':>6}",
    ]
    for index, found in enumerate(spliced["per_prefix"]):
        sizes = {entry["prefixes"][index] for entry in metrics["layers"]}
        name = f"{sizes.pop():,} features" if len(sizes) == 1 else f"prefix {index + 1}"
        bounds = interval_text(found["delta_interval"], documents=metrics["documents"], form="[{:+.4f}, {:+.4f}]")
        lines.append(
            f"{name:<16}  {found['cross_entropy']:7.4f}  {found['delta']:+7.4f}  {bounds:<19}  {found['kl']:7.4f}"
            f"  {share(found['top1']):>6}"
        )
    return "\n".join(lines)


def _heading(reader: CacheReader, dictionaries: Mapping[int, Transcoder]) -> dict[str, Any]:
    return {
        "version": report.VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": reader.identity.get("model"),
        "layers": [
            {
                "layer": layer,
                "name": dictionary.name,
                "prefixes": list(dictionary.prefixes),
                "weights": dictionary.config.get("weights"),
            }
            for layer, dictionary in dictionaries.items()
        ],
    }
