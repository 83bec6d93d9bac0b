"""The plots show the numbers of metrics.json: their lines, bars and labels are read back from matplotlib."""

from typing import Any

import numpy as np
import pytest

from evaluate.report.plots import as_files, density, fvu_by_prefix, l0_distribution, new_figure, plot_interval, plots


def test_a_report_has_three_plots_twice(toy_metrics: dict[str, Any]) -> None:
    files = plots(toy_metrics)
    assert set(files) == {f"{stem}.{end}" for stem in ("fvu_by_prefix", "density", "l0") for end in ("png", "svg")}
    for name, data in files.items():
        assert data.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in data


def test_fvu_is_drawn_with_its_interval_and_the_baselines(toy_metrics: dict[str, Any]) -> None:
    (axes,) = fvu_by_prefix(toy_metrics).axes
    (drawn,) = axes.containers
    assert drawn[0].get_xdata().tolist() == toy_metrics["prefixes"]
    assert drawn[0].get_ydata().tolist() == toy_metrics["fvu_per_prefix"]
    (bars,) = drawn[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, toy_metrics["fvu_interval_per_prefix"])
    levels = {line.get_ydata()[0] for line in axes.lines if str(line.get_label()).startswith(("best", "the mean"))}
    assert levels == {toy_metrics["baselines"]["affine"], 1.0}


def test_an_autoencoder_is_drawn_beside_principal_axes(toy_metrics: dict[str, Any]) -> None:
    toy_metrics["baselines"] |= {"affine": None, "pca_per_prefix": [0.9, 0.5, 0.2]}
    (axes,) = fvu_by_prefix(toy_metrics).axes
    labels = {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}
    assert labels["as many principal axes as features a row"] == [0.9, 0.5, 0.2]
    assert not any(label.startswith("best affine") for label in labels)


def test_densities_are_stacked_by_group(toy_metrics: dict[str, Any]) -> None:
    (axes,) = density(toy_metrics).axes
    groups = toy_metrics["sparsity"]["density_by_group"]
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    assert heights.tolist() == [group["histogram"] for group in groups]
    bottoms = [bar.get_y() for bar in axes.containers[1]]
    assert bottoms == groups[0]["histogram"]
    assert heights.sum() + sum(group["silent"] for group in groups) == toy_metrics["prefixes"][-1]


def test_l0_is_a_share_of_tokens(toy_metrics: dict[str, Any]) -> None:
    (axes,) = l0_distribution(toy_metrics).axes
    for patch, tokens in zip(axes.patches, toy_metrics["sparsity"]["l0_histogram_per_prefix"], strict=True):
        values = patch.get_data().values
        assert values.sum() == pytest.approx(1)
        np.testing.assert_allclose(values, np.array(tokens) / sum(tokens))


def test_points_without_an_interval_have_bars_of_no_length() -> None:
    figure, axes = new_figure("title")
    plot_interval(axes, [1, 2], [0.5, 0.25], interval=None, marker="o")
    (bars,) = axes.containers[0][2]
    assert [np.ptp(segment[:, 1]) for segment in bars.get_segments()] == [0, 0]
    assert set(as_files("stem", figure)) == {"stem.png", "stem.svg"}
