"""The figures of a report, as PNG and SVG bytes by file name. The same figures for any number of dictionaries."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Metrics = Mapping[str, Any]


def figures(metrics: Metrics) -> dict[str, bytes]:
    """FVU by prefix with baselines, the density of features, the distribution of L0."""
    drawn = {
        "fvu_by_prefix": fvu_by_prefix({metrics["transcoder"]["name"]: metrics}, metrics["baselines"]),
        "density": density(metrics),
        "l0": l0_distribution(metrics),
    }
    return {name: data for stem, figure in drawn.items() for name, data in as_files(stem, figure).items()}


def as_files(stem: str, figure: Figure) -> dict[str, bytes]:
    """One figure as a picture and as vectors; no display is needed."""
    picture, vectors = BytesIO(), BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    FigureCanvasSVG(figure).print_svg(vectors)
    return {f"{stem}.png": picture.getvalue(), f"{stem}.svg": vectors.getvalue()}


def fvu_by_prefix(dictionaries: Mapping[str, Metrics], baselines: Metrics) -> Figure:
    """FVU against prefix length with 95 % intervals; what a reconstruction without features reaches as lines."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=150)
    axes = figure.subplots()
    for name, metrics in dictionaries.items():
        fvu = np.array(metrics["fvu_per_prefix"])
        bounds = np.array(metrics["fvu_interval_per_prefix"] or np.stack([fvu, fvu], axis=1)).T
        errors = np.abs(bounds - fvu)
        axes.errorbar(metrics["prefixes"], fvu, yerr=errors, marker="o", capsize=3, label=name)
    axes.axhline(1.0, color="0.6", linestyle=":", label="the mean")
    if baselines.get("affine") is not None:
        axes.axhline(baselines["affine"], color="tab:red", linestyle="--", label="best affine map")
    axes.set(xscale="log", xlabel="features in the prefix", ylabel="FVU on held-out rows", ylim=(0, None))
    _tick_prefixes(axes, dictionaries)
    axes.legend(frameon=False)
    return figure


def _tick_prefixes(axes: Any, dictionaries: Mapping[str, Metrics]) -> None:
    ticks = sorted({prefix for metrics in dictionaries.values() for prefix in metrics["prefixes"]})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def density(metrics: Metrics) -> Figure:
    """How often features fire, a stacked histogram of log10 density by the group that each prefix adds."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=150)
    axes = figure.subplots()
    edges = np.array(metrics["sparsity"]["density_log10_edges"])
    below = np.zeros(len(edges) - 1)
    for group in metrics["sparsity"]["density_by_group"]:
        label = f"features {group['first']:,} to {group['end'] - 1:,}"
        axes.bar(edges[:-1], group["histogram"], np.diff(edges), bottom=below, align="edge", label=label)
        below += np.array(group["histogram"])
    occupied = np.flatnonzero(below)
    if len(occupied):
        axes.set_xlim(float(edges[occupied[0]]) - 0.25, 0.1)
    silent = sum(group["silent"] for group in metrics["sparsity"]["density_by_group"])
    tokens = metrics["tokens_used"]
    axes.set(xlabel="log10 of the share of tokens", ylabel="features")
    axes.set_title(f"{silent:,} features never fired in {tokens:,} tokens", fontsize="medium")
    axes.legend(frameon=False)
    return figure


def l0_distribution(metrics: Metrics) -> Figure:
    """How many features of each prefix fire on a token, and the means."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=150)
    axes = figure.subplots()
    for place, tokens in enumerate(metrics["sparsity"]["l0_histogram_per_prefix"]):
        shares = np.array(tokens) / sum(tokens)
        label = f"{metrics['prefixes'][place]:,} features: mean {metrics['l0_per_prefix'][place]:.1f}"
        axes.stairs(shares, np.arange(len(tokens) + 1) - 0.5, label=label)
    axes.set(xlabel="features that fire on a token (L0)", ylabel="share of tokens")
    axes.legend(frameon=False)
    return figure
