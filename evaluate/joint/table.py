"""Dictionaries of the same layers in one table, for the terminal and summary.txt."""

from collections.abc import Mapping
from typing import Any


def joint_table(metrics: Mapping[str, Any]) -> str:
    """A line a dictionary and prefix; then the whole dictionaries layer by layer."""
    found = metrics["dictionaries"]
    has_model = any(one["language_model"] for one in found.values())
    heading = (
        f"{'dictionary':<16}{'features':>9}  {'mean FVU':>8}  {'95 % interval':<17}{'L0':>6}{'dead':>7}{'crosses':>9}"
    )
    lines = [heading + (f"{'top-1':>8}{'KL':>9}{'delta CE':>10}" if has_model else "")]
    for name, one in found.items():
        lines += [_line(name, one, index) for index in range(len(one["prefixes"]))]
    lines += ["", "FVU of the whole dictionary, layer by layer"]
    lines.append(f"{'dictionary':<16}" + "".join(f"{layer:>7}" for layer in metrics["layers"]))
    for name, one in found.items():
        values = [by_prefix[-1] for by_prefix in one["fvu_per_layer_and_prefix"]]
        lines.append(f"{name:<16}" + "".join(f"{value:7.4f}" for value in values))
    if not has_model:
        lines += ["", "FVU does not say what the language model loses: measure with --lm, all layers spliced at once."]
    return "\n".join(lines)


def _line(name: str, one: Mapping[str, Any], index: int) -> str:
    bounds = one["fvu_interval_per_prefix"]
    interval = "{:.4f} - {:.4f}".format(*bounds[index]) if bounds else ""
    l0 = sum(by_prefix[index] for by_prefix in one["l0_per_layer_and_prefix"]) / len(one["l0_per_layer_and_prefix"])
    is_whole = index == len(one["prefixes"]) - 1
    dead = f"{sum(one['dead_per_layer']) / len(one['dead_per_layer']):7.1%}" if is_whole else f"{'':>7}"
    crosses = f"{one['crossing']:9.1%}" if is_whole else f"{'':>9}"
    line = (
        f"{name:<16}{one['prefixes'][index]:>9,}  {one['fvu_per_prefix'][index]:8.4f}  {interval:<17}{l0:6.1f}"
        f"{dead}{crosses}"
    )
    if one["language_model"]:
        spliced = one["language_model"]["per_prefix"][index]
        line += f"{spliced['top1']:8.1%}{spliced['kl']:9.4f}{spliced['delta']:+10.4f}"
    return line
