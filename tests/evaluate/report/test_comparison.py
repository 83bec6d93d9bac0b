"""A comparison in words and as a plot, from the document that evaluate.compare writes."""

from typing import Any

import numpy as np
import pytest

from evaluate.compare import Comparison
from evaluate.report.comparison import as_text, comparison_files, fvu_against_l0


def values(prefix: int, fvu: float, l0: float, **more: Any) -> dict[str, Any]:
    common = {
        "cosine": 0.9, "fvu_whitened": 0.4, "fvu_median_token": None, "fvu_interval": [fvu - 0.01, fvu + 0.01],
        "delta_cross_entropy": None, "dead_fraction": None, "dense_fraction": 0.02,
        "redundancy": {"twin_share": 0.25}, "absorption_first_letter": None,
    }  # fmt: skip
    return {"prefix": prefix, "fvu": fvu, "l0": l0, **common, **more}


def gap(value: float | None, *interval: float) -> dict[str, Any]:
    return {"value": value, "interval": list(interval) or None}


@pytest.fixture
def document() -> dict[str, Any]:
    full = values(
        64, 0.1, 16.0, difference={"fvu": gap(-0.1, -0.12, -0.08), "l0": gap(6.0), "fvu_whitened": gap(None)},
        better={"fvu": "ours", "fvu_whitened": None}, disagree=False,
    )  # fmt: skip
    matched = values(
        64, 0.3, 10.0, difference={"fvu": gap(0.1, 0.08, 0.12)}, better={"fvu": "theirs", "fvu_whitened": "ours"},
        disagree=True,
    )  # fmt: skip
    return {
        "rows": {"tokens_used": 4000, "documents": 40, "target": "mlp_out"},
        "ours": {"name": "main", "per_prefix": [values(8, 0.5, 4.0), full]},
        "ours_at_their_l0": {"top_k": 10, "reason": None, "per_prefix": [matched]},
        "theirs": {"name": "other", "origin": "file.npz", "convention": "L0 is 10.0", **values(2048, 0.2, 10.0)},
        "tokens_trained": {"ours": 5000, "theirs": None},
        "not_compared": {"theirs: tokens_trained": "its files do not say."},
    }


def test_the_table_has_both_and_the_differences_are_ours_minus_the_reference(document: dict[str, Any]) -> None:
    lines = as_text(document).splitlines()
    assert lines[0] == "Compared with other (file.npz)"
    table = [line for line in lines if "0.02" in line or "2.0%" in line]
    assert [line.split()[0] for line in table] == ["main", "main", "at", "other"]
    assert table[-1].split()[1:4] == ["2,048", "10.0", "0.2000"]
    assert "?" in table[0]
    assert any("FVU -0.1000 [-0.1200, -0.0800], FVU whitened ?, L0 +6.0" in line for line in lines)


def test_it_says_which_is_better_and_which_forms_disagree(document: dict[str, Any]) -> None:
    text = as_text(document)
    assert "main: ours is better by FVU; no form says otherwise." in text
    assert "The forms disagree on main at k = 10: ours is better by FVU whitened; theirs by FVU." in text
    document["ours"]["per_prefix"][-1]["better"] = {"fvu": None}
    assert "main: no form tells the two apart." in as_text(document)


def test_what_is_missing_is_named_with_its_reason(document: dict[str, Any]) -> None:
    assert "Tokens trained on: ours 5,000, theirs not known." in as_text(document)
    assert "Not compared: theirs: tokens_trained: its files do not say." in as_text(document)
    document["ours_at_their_l0"] = {"reason": "its features do not compete", "per_prefix": None, "top_k": None}
    document["rows"]["documents"] = 3
    text = as_text(document)
    assert "Ours was not measured again at their L0: its features do not compete." in text
    assert "(rough: 3 documents)" in text


def test_fvu_is_drawn_against_l0(document: dict[str, Any]) -> None:
    (axes,) = fvu_against_l0(document).axes
    drawn = {series.get_label(): series[0].get_xydata().tolist() for series in axes.containers}
    assert drawn == {
        "main": [[4.0, 0.5], [16.0, 0.1]], "main at k = 10": [[10.0, 0.3]], "other": [[10.0, 0.2]],
    }  # fmt: skip
    assert {text.get_text() for text in axes.texts} == {"8", "64"}
    assert np.all(np.array(axes.get_ylim()) >= 0)


def test_the_files_are_named_after_the_reference(document: dict[str, Any]) -> None:
    report = {"metrics.json": b"{}", "summary.txt": b"ours\n"}
    files = comparison_files(Comparison(document, {"fvu": 0.2}), report, label="google")
    assert set(files) == {
        "comparison.json", "ours_metrics.json", "google_metrics.json", "summary.txt", "fvu_against_l0.png",
        "fvu_against_l0.svg",
    }  # fmt: skip
    assert files["summary.txt"].startswith(b"ours\n\nCompared with other")
