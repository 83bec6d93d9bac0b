"""Dictionaries of the same layers in one table, for the terminal and summary.txt."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.absorption.first_letter import NO_PROBE


def joint_table(metrics: Mapping[str, Any]) -> str:
    """A line a dictionary and prefix; then the whole dictionaries layer by layer."""
    found = metrics["dictionaries"]
    has_model = any(fields["language_model"] for fields in found.values())
    has_absorption = any(score is not None for fields in found.values() for score in fields["absorption_per_prefix"])
    heading = (
        f"{'dictionary':<16}{'features':>9}  {'mean FVU':>8}  {'95 % interval':<17}{'L0':>6}{'dead':>7}{'crosses':>9}"
        f"{'absorbed':>10}"
    )
    heading = heading if has_absorption else heading.removesuffix(f"{'absorbed':>10}")
    lines = [heading + (f"{'top-1':>8}{'KL':>9}{'delta CE':>10}" if has_model else "")]
    for name, fields in found.items():
        lines += [_line(name, fields, index, has_absorption=has_absorption) for index in range(len(fields["prefixes"]))]
    fvu = {name: [by_prefix[-1] for by_prefix in fields["fvu_per_layer_and_prefix"]] for name, fields in found.items()}
    lines += ["", "FVU of the whole dictionary, layer by layer", *_by_layer(metrics["layers"], fvu)]
    absorbed = {
        name: [layer["score"] for layer in fields["absorption_first_letter_per_layer"]]
        for name, fields in found.items()
    }
    if has_absorption:
        lines += ["", "First-letter absorption, layer by layer", *_by_layer(metrics["layers"], absorbed)]
    if unscored := _unscored(found):
        lines += ["", "First-letter absorption is not scored at", *unscored]
    if not has_model:
        lines += ["", "FVU does not say what the language model loses: measure with --lm, all layers spliced at once."]
    return "\n".join(lines)


def _unscored(found: Mapping[str, Any]) -> list[str]:
    """Why layers that have a probe cache have no score, each reason once."""
    layers = [layer for fields in found.values() for layer in fields["absorption_first_letter_per_layer"]]
    reasons = [f"layer {layer['layer']}: {layer['reason']}" for layer in layers if layer["score"] is None]
    return list(dict.fromkeys(reason for reason in reasons if NO_PROBE not in reason))


def _by_layer(layers: Sequence[int], values: Mapping[str, Sequence[float | None]]) -> list[str]:
    """A heading and a line a dictionary; ? where there is no number."""
    lines = [f"{'dictionary':<16}" + "".join(f"{layer:>7}" for layer in layers)]
    for name, by_layer in values.items():
        lines.append(f"{name:<16}" + "".join("      ?" if value is None else f"{value:7.4f}" for value in by_layer))
    return lines


def _line(name: str, fields: Mapping[str, Any], index: int, *, has_absorption: bool) -> str:
    bounds = fields["fvu_interval_per_prefix"]
    interval = "{:.4f} - {:.4f}".format(*bounds[index]) if bounds else ""
    l0 = sum(by_prefix[index] for by_prefix in fields["l0_per_layer_and_prefix"]) / len(
        fields["l0_per_layer_and_prefix"]
    )
    is_whole = index == len(fields["prefixes"]) - 1
    dead = f"{sum(fields['dead_per_layer']) / len(fields['dead_per_layer']):7.1%}" if is_whole else f"{'':>7}"
    crosses = f"{fields['crossing']:9.1%}" if is_whole else f"{'':>9}"
    line = (
        f"{name:<16}{fields['prefixes'][index]:>9,}  {fields['fvu_per_prefix'][index]:8.4f}  {interval:<17}{l0:6.1f}"
        f"{dead}{crosses}"
    )
    if has_absorption:
        score = fields["absorption_per_prefix"][index]
        line += f"{'?' if score is None else f'{score:.3f}':>10}"
    if fields["language_model"]:
        spliced = fields["language_model"]["per_prefix"][index]
        line += f"{spliced['top1']:8.1%}{spliced['kl']:9.4f}{spliced['delta']:+10.4f}"
    return line
