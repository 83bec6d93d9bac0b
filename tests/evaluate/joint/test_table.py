"""One table of dictionaries: a line a prefix, and every layer's FVU."""

from typing import Any

import pytest

from evaluate.absorption.first_letter import NO_PROBE
from evaluate.joint.table import joint_table


def dictionary(fvu: float, absorbed: float | None = None) -> dict[str, Any]:
    return {
        "prefixes": [8, 32],
        "fvu_per_prefix": [2 * fvu, fvu],
        "fvu_interval_per_prefix": [[fvu, 3 * fvu], [fvu / 2, 2 * fvu]],
        "fvu_per_layer_and_prefix": [[3 * fvu, fvu], [fvu, fvu]],
        "l0_per_layer_and_prefix": [[2.0, 4.0], [3.0, 4.0]],
        "dead_per_layer": [0.0, 0.5],
        "crossing": 0.125,
        "absorption_per_prefix": [None, absorbed],
        "absorption_first_letter_per_layer": [
            {"layer": 3, "score": absorbed, "reason": None if absorbed else NO_PROBE},
            {"layer": 11, "score": None, "reason": "nobody can read it" if absorbed else f"of layer 3, {NO_PROBE}"},
        ],
        "language_model": {
            "per_prefix": [{"top1": 0.5, "kl": 0.3, "delta": 0.2}, {"top1": 0.9, "kl": 0.1, "delta": 0.05}]
        },
    }


@pytest.mark.parametrize("has_model", [True, False])
def test_every_number_is_in_its_line(has_model: bool) -> None:
    found = {"clt": dictionary(0.1), "main": dictionary(0.2)}
    for record in found.values():
        record["language_model"] = record["language_model"] if has_model else None
    lines = joint_table({"dictionaries": found, "layers": [3, 11]}).splitlines()
    assert lines[1].split()[:4] == ["clt", "8", "0.2000", "0.1000"]
    words = lines[2].split()
    assert words[:3] == ["clt", "32", "0.1000"]
    assert {"25.0%", "12.5%"} < set(words)
    assert ("90.0%" in words) is has_model
    assert "main               0.2000 0.2000" in "\n".join(lines).replace("main            ", "main              ")
    assert ("--lm" in lines[-1]) is not has_model
    assert "bsor" not in "\n".join(lines)


def test_absorption_has_a_column_where_any_dictionary_was_scored() -> None:
    found = {"clt": dictionary(0.1, 0.375), "main": dictionary(0.2)}
    lines = joint_table({"dictionaries": found, "layers": [3, 11]}).splitlines()
    assert lines[0].split()[9:11] == ["crosses", "absorbed"]
    assert lines[1].split()[7:] == ["?", "50.0%", "0.3000", "+0.2000"]
    assert lines[2].split()[8:] == ["12.5%", "0.375", "90.0%", "0.1000", "+0.0500"]
    assert lines[4].split()[9] == "?"
    begin = lines.index("First-letter absorption, layer by layer")
    assert [line.split() for line in lines[begin + 2 : begin + 4]] == [["clt", "0.3750", "?"], ["main", "?", "?"]]
    assert lines[-2:] == ["First-letter absorption is not scored at", "layer 11: nobody can read it"]
