"""The plots beside the report: a dot for every feature that fires, a count for every value."""

from dataclasses import replace

import numpy as np

from evaluate.features.text.plots import distributions, draw_map, plots


def test_every_feature_that_fires_is_a_dot_and_is_counted(toy) -> None:
    fires = int((toy.evidence.arrays["firings"] > 0).sum())
    dots = draw_map(toy.evidence).axes[0].collections
    assert sum(len(dot.get_offsets()) for dot in dots) == fires
    first = distributions(toy.evidence).axes[0]
    assert max(patch.get_y() + patch.get_height() for patch in first.patches) <= fires
    assert sum(patch.get_height() for patch in first.patches) == fires


def test_the_files_are_pictures(toy) -> None:
    files = plots(toy.evidence)
    assert set(files) == {"map.png", "map.svg", "distributions.png", "distributions.svg"}
    assert files["map.png"].startswith(b"\x89PNG")


def test_a_dictionary_that_never_fires_has_empty_plots(toy) -> None:
    silent = {name: np.zeros_like(toy.evidence.arrays[name]) for name in ("firings", "largest", "fvu_lost")}
    assert set(plots(replace(toy.evidence, arrays={**toy.evidence.arrays, **silent})))
