"""The plots of a report, as PNG and SVG bytes by file name."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Metrics = Mapping[str, Any]


def plots(metrics: Metrics) -> dict[str, bytes]:
    """FVU by prefix with baselines, the density of features, the distribution of L0."""
    drawn = {"fvu_by_prefix": fvu_by_prefix(metrics), "density": density(metrics), "l0": l0_distribution(metrics)}
    files: dict[str, bytes] = {}
    for stem, figure in drawn.items():
        files |= as_files(stem, figure)
    return files


def as_files(stem: str, figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and as SVG; no display is needed."""
    picture = BytesIO()
    vectors = BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    figure.set_layout_engine("none")  # as it is laid out now, which takes longer than drawing
    FigureCanvasSVG(figure).print_svg(vectors)
    return {f"{stem}.png": picture.getvalue(), f"{stem}.svg": vectors.getvalue()}


def new_figure(title: str) -> tuple[Figure, Any]:
    """An empty figure of the reports' size, and its axes."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium")
    return figure, axes


def plot_interval(
    axes: Any,
    x: Sequence[float] | Sequence[int],
    y: Sequence[float],
    *,
    interval: Sequence[Sequence[float]] | None,
    **style: Any,
) -> None:
    """Points joined by a line, with their 95 % intervals."""
    value = np.array(y)
    bounds = np.array(interval).T if interval else np.stack([value, value])
    axes.errorbar(x, value, yerr=np.abs(bounds - value), capsize=3, **style)


def fvu_by_prefix(metrics: Metrics) -> Figure:
    """FVU against prefix length, with 95 % intervals; lines show what a reconstruction without features reaches."""
    figure, axes = new_figure(_heading(metrics))
    prefixes = metrics["prefixes"]
    fvu = metrics["fvu_per_prefix"]
    kind = metrics["transcoder"].get("kind", "transcoder")
    plot_interval(axes, prefixes, fvu, interval=metrics["fvu_interval_per_prefix"], marker="o", label=kind)
    for prefix, value in zip(prefixes, fvu, strict=True):
        axes.annotate(f"{value:.3f}", (prefix, value), xytext=(0, 7), textcoords="offset points", ha="center")
    affine = metrics["baselines"]["affine"]
    if affine is not None:
        axes.axhline(affine, color="tab:red", linestyle="--", label=f"best affine map {affine:.3f}")
    pca = metrics["baselines"].get("pca_per_prefix")
    if pca:
        axes.plot(prefixes, pca, color="tab:red", linestyle="--", label="as many principal axes as features a row")
    axes.axhline(1.0, color="0.6", linestyle=":", label="the mean 1")
    axes.set(xscale="log", xlabel="features in the prefix", ylabel="FVU on held-out rows")
    axes.set_ylim(0, 1.08 * max(1.0, *fvu))
    axes.set_xticks(prefixes, [f"{prefix:,}" for prefix in prefixes])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def density(metrics: Metrics) -> Figure:
    """How often features fire: a stacked histogram of log10 density by prefix group."""
    groups = metrics["sparsity"]["density_by_group"]
    tokens = metrics["tokens_used"]
    silent = sum(group["silent"] for group in groups)
    figure, axes = new_figure(f"{_heading(metrics)}\n{silent:,} features never fired in {tokens:,} tokens")
    edges = np.array(metrics["sparsity"]["density_log10_edges"])
    below = np.zeros(len(edges) - 1)
    for group in groups:
        label = f"features {group['first']:,} to {group['end'] - 1:,}"
        axes.bar(edges[:-1], group["histogram"], np.diff(edges), bottom=below, align="edge", label=label)
        below += np.array(group["histogram"])
    occupied = np.flatnonzero(below)
    if len(occupied):
        axes.set_xlim(float(edges[occupied[0]]) - 0.25, 0.1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="log10 of the share of tokens that a feature fires on", ylabel="features")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def l0_distribution(metrics: Metrics) -> Figure:
    """How many features of each prefix fire on a token, and the means."""
    figure, axes = new_figure(_heading(metrics))
    for index, tokens in enumerate(metrics["sparsity"]["l0_histogram_per_prefix"]):
        shares = np.array(tokens) / sum(tokens)
        label = f"{metrics['prefixes'][index]:,} features: mean {metrics['l0_per_prefix'][index]:.1f}"
        axes.stairs(shares, np.arange(len(tokens) + 1) - 0.5, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="features that fire on a token (L0)", ylabel="share of tokens")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _heading(metrics: Metrics) -> str:
    return f"{metrics['cache']['model']}, layer {metrics['cache']['layer']}: {metrics['transcoder']['name']}"
