"""What fine-tuning bought and what it cost, on held-out rows: the same metrics of the dictionaries before and after.

    closed            share of the rise in cross-entropy (and of the KL divergence) that is gone
    top token kept    share of the features that fired in both whose strongest held-out row has the same token
    tokens shared     mean share of a feature's strongest tokens before that are among its strongest after

of the features' ``sample_contexts`` strongest rows, of different documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from cache.reader import CacheReader
from common.progress import Progress
from evaluate.absorption.first_letter import FirstLetterAbsorption
from evaluate.config import EvaluateSettings
from evaluate.held_out import open_held_out
from evaluate.measure import measure
from evaluate.memory import batch_rows_for
from evaluate.metrics.fvu import Fvu
from evaluate.metrics.inputs import AbsorptionScorer, MetricInputs
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts
from evaluate.replay import Replay
from evaluate.spliced.loss import SplicedModel
from evaluate.spliced.splicer import Splicer
from transcoder.transcoder import Transcoder

_METRICS = (Fvu, Sparsity, TopContexts, FirstLetterAbsorption)


@dataclass(frozen=True)
class Comparison:
    """Measures sets of dictionaries alike."""

    splicer: Splicer
    readers: Mapping[int, CacheReader]
    absorption: Mapping[int, AbsorptionScorer]
    settings: EvaluateSettings
    device: str
    progress: Progress

    def compared(self, before: Mapping[int, Transcoder], after: Mapping[int, Transcoder]) -> dict[str, Any]:
        """The language model's fields and every layer's, before and after, and what moved."""
        models = [self._in_model(dictionaries) for dictionaries in (before, after)]
        layers: list[dict[str, Any]] = []
        for layer in before:
            (old, old_tokens), (new, new_tokens) = (self._of_layer(layer, which[layer]) for which in (before, after))
            layers.append({"layer": layer, "before": old, "after": new, **kept_tokens(old_tokens, new_tokens)})
        return {
            "language_model": {"before": models[0], "after": models[1], "closed_per_prefix": _closed(*models)},
            "layers": layers,
        }

    def _in_model(self, dictionaries: Mapping[int, Transcoder]) -> dict[str, Any]:
        reader = self.readers[min(self.readers)]
        replay = Replay(open_held_out(reader), 1, self.device, self.progress)
        means = {layer: open_held_out(other).mean_target.float() for layer, other in self.readers.items()}
        fields, _ = SplicedModel(self.splicer, reader, replay, self.settings).measure_together(dictionaries, means)
        return fields

    def _of_layer(self, layer: int, dictionary: Transcoder) -> tuple[dict[str, Any], Int[np.ndarray, "dict_size k"]]:
        """Some fields of one dictionary, and the tokens of each feature's strongest rows, -1 where there is none."""
        reader = self.readers[layer]
        held_out = open_held_out(reader)
        replay = Replay(held_out, batch_rows_for(dictionary, self.device), self.device, self.progress)
        inputs = MetricInputs(dictionary, held_out, reader, self.settings, self.device, self.absorption[layer])
        found = measure(replay, inputs, _METRICS)
        metrics = found.metrics
        absorption = metrics["absorption_first_letter"]
        rows = found.states["TopContexts"]["row"].cpu().numpy()
        tokens = np.where(rows >= 0, held_out.view.tokens[np.maximum(rows, 0)], -1)
        fields = {
            "prefixes": metrics["prefixes"],
            "fvu_per_prefix": metrics["fvu_per_prefix"],
            "l0_per_prefix": metrics["l0_per_prefix"],
            "dead_fraction_per_prefix": metrics["dead_fraction_per_prefix"],
            "absorption_first_letter": absorption["score"],
            "absorption_reason": absorption.get("reason"),
        }
        return fields, tokens


def kept_tokens(
    before: Int[np.ndarray, "dict_size k"], after: Int[np.ndarray, "dict_size k"]
) -> dict[str, float | int | None]:
    """How much of what the features fire on stayed; null where no feature fired both times."""
    both = np.flatnonzero((before[:, 0] >= 0) & (after[:, 0] >= 0))
    if not len(both):
        return {"features_compared": 0, "top_token_kept": None, "tokens_shared": None}
    shared = [np.isin(before[f][before[f] >= 0], after[f][after[f] >= 0]).mean() for f in both]
    return {
        "features_compared": len(both),
        "top_token_kept": float((before[both, 0] == after[both, 0]).mean()),
        "tokens_shared": float(np.mean(shared)),
    }


def _closed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """The share of the gap to the clean model that is gone, by prefix; null where there was none."""

    def share(name: str, index: int) -> float | None:
        old = before["per_prefix"][index][name]
        return (old - after["per_prefix"][index][name]) / old if old > 0 else None

    return [{name: share(name, index) for name in ("delta", "kl")} for index in range(len(before["per_prefix"]))]


def comparison_table(metrics: Mapping[str, Any]) -> str:
    """Before and after, for a person: the model by prefix, then each layer."""
    model = metrics["language_model"]
    lines = [
        f"{model['before']['tokens']:,} held-out tokens through the language model, before -> after",
        f"{'prefix':>8}  {'delta CE':<22}{'closed':>8}   {'KL':<20}{'closed':>8}   {'top-1':<14}",
    ]
    for index, (old, new) in enumerate(zip(model["before"]["per_prefix"], model["after"]["per_prefix"], strict=True)):
        closed = model["closed_per_prefix"][index]
        delta = f"{old['delta']:+.5f} -> {new['delta']:+.5f}"
        kl = f"{old['kl']:.5f} -> {new['kl']:.5f}"
        top1 = f"{old['top1']:.1%} -> {new['top1']:.1%}"
        lines.append(
            f"{index + 1:>8}  {delta:<22}{_percent(closed['delta']):>8}   {kl:<20}{_percent(closed['kl']):>8}   {top1}"
        )
    for entry in metrics["layers"]:
        lines += ["", *_layer_lines(entry)]
    return "\n".join(lines)


def _layer_lines(entry: Mapping[str, Any]) -> list[str]:
    old, new = entry["before"], entry["after"]
    lines = [f"layer {entry['layer']:<3}{'features':>9}  {'FVU':<18}{'L0':<18}{'dead':<16}"]
    for index, prefix in enumerate(old["prefixes"]):
        fvu = f"{old['fvu_per_prefix'][index]:.4f} -> {new['fvu_per_prefix'][index]:.4f}"
        l0 = f"{old['l0_per_prefix'][index]:.1f} -> {new['l0_per_prefix'][index]:.1f}"
        dead = " -> ".join(_percent(which["dead_fraction_per_prefix"][index]) for which in (old, new))
        lines.append(f"{prefix:>18,}  {fvu:<18}{l0:<18}{dead}")
    kept = f"{_percent(entry['top_token_kept'])} of {entry['features_compared']:,} features kept their top token"
    lines.append(f"{kept}; they share {_percent(entry['tokens_shared'])} of their strongest tokens")
    if old["absorption_first_letter"] is not None:
        scores = " -> ".join(f"{which['absorption_first_letter']:.3f}" for which in (old, new))
        lines.append(f"first-letter absorption {scores}")
    return lines


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"
