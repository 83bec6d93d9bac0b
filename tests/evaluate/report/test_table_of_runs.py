"""One table over layers: a line a prefix, the baselines, the reference, and warnings below."""

from copy import deepcopy
from typing import Any

from evaluate.report.table_of_runs import table_of_runs


def test_the_table_has_a_line_a_prefix_and_the_baselines(toy_metrics: dict[str, Any]) -> None:
    lines = table_of_runs({4: toy_metrics, 8: toy_metrics}).splitlines()
    assert len(lines) == 1 + 2 * 5
    for line, prefix, fvu in zip(lines[1:4], toy_metrics["prefixes"], toy_metrics["fvu_per_prefix"], strict=True):
        assert line.split()[:3] == ["4", str(prefix), f"{fvu:.4f}"]
    affine = toy_metrics["baselines"]["affine"]
    assert lines[4].split()[:3] == ["4", "affine", f"{affine:.4f}"]
    assert lines[5].split()[:3] == ["4", "mean", "1.0000"]
    assert lines[6].split()[0] == "8"
    assert "delta CE" not in lines[0]


def test_the_table_has_a_column_for_the_models_loss_if_any_layer_has_it(toy_metrics: dict[str, Any]) -> None:
    spliced = deepcopy(toy_metrics)
    spliced["language_model"] = {"per_prefix": [{"delta": delta} for delta in (0.3, 0.2, 0.1)]}
    lines = table_of_runs({4: toy_metrics, 8: spliced}).splitlines()
    assert lines[0].endswith("  delta CE")
    assert lines[6].endswith("+0.3000")
    assert not lines[1].endswith("+0.3000")


def test_the_reference_warnings_and_rough_intervals_come_below(toy_metrics: dict[str, Any]) -> None:
    toy_metrics["comparison"] = {
        "theirs": {
            "name": "other", "dict_size": 16_384, "fvu": 0.25, "fvu_interval": [0.24, 0.26], "fvu_whitened": None,
            "cosine": 0.9, "l0": 20.5, "dead_fraction": 0.125, "delta_cross_entropy": 0.05,
        }
    }  # fmt: skip
    toy_metrics["concentration"]["warning"] = "two dimensions rule"
    toy_metrics["documents"] = 7
    *_, reference, warning, rough = table_of_runs({8: toy_metrics}).splitlines()
    assert reference.split()[:3] == ["8", "theirs", "0.2500"]
    assert "12.5%" in reference
    assert "?" in reference
    assert reference.endswith("+0.0500  other, 16,384 features")
    assert warning == "layer 8: two dimensions rule"
    assert rough.startswith("~ rough")
