"""The plots of the features' report: the map of the dictionary, and the distributions of its features, by prefix."""

import numpy as np
from matplotlib.figure import Figure

from evaluate.features.evidence import Evidence
from evaluate.report.plots import as_files, new_figure

_BINS = 40
"""Bars of each histogram."""
_DISTRIBUTIONS = {"firings": "share of tokens", "largest": "largest value", "fvu_lost": "FVU lost without it"}


def plots(evidence: Evidence) -> dict[str, bytes]:
    """``map`` and ``distributions``, as PNG and SVG, by file name."""
    return as_files("map", draw_map(evidence)) | as_files("distributions", distributions(evidence))


def draw_map(evidence: Evidence) -> Figure:
    """A dot for every feature that fires, coloured by its prefix; the shortest prefix lies on top."""
    figure, axes = new_figure("Map of the features")
    figure.set_size_inches(6.4, 6.4)
    for start, end in reversed(_groups(evidence)):
        fires = evidence.arrays["firings"][start:end] > 0
        x, y = evidence.arrays["map"][start:end][fires].T
        axes.scatter(
            x, y, s=14 if start == 0 else 5, linewidths=0, label=f"prefix {end:,}", color=_colour(evidence, end)
        )
    axes.set(xticks=[], yticks=[], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend(fontsize="x-small", loc="upper right")
    return figure


def distributions(evidence: Evidence) -> Figure:
    """Histograms on logarithmic scales, prefixes stacked on each other."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained", dpi=150)
    for axes, (name, words) in zip(figure.subplots(1, len(_DISTRIBUTIONS)), _DISTRIBUTIONS.items(), strict=True):
        values = evidence.arrays[name] / (evidence.tokens if name == "firings" else 1)
        groups = [values[start:end] for start, end in _groups(evidence)]
        positive = [group[group > 0] for group in groups]
        all_positive = np.concatenate(positive)
        if all_positive.size:
            edges = np.geomspace(all_positive.min(), all_positive.max() * 1.001, _BINS + 1)
            colours = [_colour(evidence, end) for end in evidence.prefixes]
            axes.hist(
                positive, bins=edges, stacked=True, color=colours, label=[f"{end:,}" for end in evidence.prefixes]
            )
            axes.set_xscale("log")
        axes.set_xlabel(words)
    figure.axes[0].set_ylabel("features")
    if figure.axes[0].patches:
        figure.axes[0].legend(title="prefix", fontsize="x-small", title_fontsize="x-small")
    return figure


def _groups(evidence: Evidence) -> list[tuple[int, int]]:
    ends = evidence.prefixes
    return list(zip((0, *ends[:-1]), ends, strict=True))


def _colour(evidence: Evidence, end: int) -> str:
    return f"C{evidence.prefixes.index(end) % 10}"
