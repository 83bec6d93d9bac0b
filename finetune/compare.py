"""The gain and the cost of fine-tuning, on held-out rows: the same metrics of the dictionaries before and after.

    closed            share of the rise in cross-entropy (and of the KL divergence) that is gone
    top token kept    share of the features that fired in both whose strongest held-out row has the same token
    tokens shared     mean share of a feature's strongest tokens before that are among its strongest after

of the features' ``sample_contexts`` strongest rows, of different documents.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.held_out import HeldOut
from evaluate.metrics.metric import State
from evaluate.spliced.loss import SplicedModel, ablations
from evaluate.spliced.replace import Host
from finetune.in_model import InModel

LayerMeasures = tuple[dict[str, Any], Int[np.ndarray, "dict_size k"]]
"""A layer's metrics by name, and the tokens of the strongest rows of each of its features, -1 where there is none."""


def in_language_model(
    dictionaries: InModel, measuring: SplicedModel, means: Mapping[int, Float[Tensor, " d_target"]]
) -> dict[str, Any]:
    """What the model loses with every prefix of them in it, all layers at once. ``means`` are the mean targets."""
    host = Host.from_model(measuring.splicer.model)
    norms = {layer: host.norm(layer) for layer in means}
    spliced = [dictionaries.replacements(index, norms) for index in range(dictionaries.prefix_count)]
    fields, _ = measuring.measure_replacements([*ablations(means), *spliced], name=dictionaries.name)
    return fields


def compared(
    models: tuple[dict[str, Any], dict[str, Any]],
    layers: tuple[Mapping[int, LayerMeasures], Mapping[int, LayerMeasures]],
) -> dict[str, Any]:
    """The language model's fields and every layer's, before and after, and what moved."""
    before, after = layers
    entries: list[dict[str, Any]] = []
    for layer, (old, old_tokens) in before.items():
        new, new_tokens = after[layer]
        entries.append({"layer": layer, "before": old, "after": new, **kept_tokens(old_tokens, new_tokens)})
    return {
        "language_model": {"before": models[0], "after": models[1], "closed_per_prefix": _closed(*models)},
        "layers": entries,
    }


def strongest_tokens(contexts: State, held_out: HeldOut) -> Int[np.ndarray, "dict_size k"]:
    """The tokens of each feature's strongest rows, from the state of ``TopContexts``."""
    rows = contexts["row"].cpu().numpy()
    return np.where(rows >= 0, held_out.view.tokens[np.maximum(rows, 0)], -1)


def kept_tokens(
    before: Int[np.ndarray, "dict_size k"], after: Int[np.ndarray, "dict_size k"]
) -> dict[str, float | int | None]:
    """How much of what the features fire on stayed the same; null if no feature fired both times."""
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
    """The share of the gap to the clean model that is closed, by prefix; null if there was no gap."""

    def share(name: str, index: int) -> float | None:
        old = before["per_prefix"][index][name]
        return (old - after["per_prefix"][index][name]) / old if old > 0 else None

    return [{name: share(name, index) for name in ("delta", "kl")} for index in range(len(before["per_prefix"]))]


def comparison_table(metrics: Mapping[str, Any]) -> str:
    """A table of before and after: the language model by prefix, then each layer."""
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
