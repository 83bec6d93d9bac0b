"""The table of attribution scores, against means by hand; the part in circuit-tracer's environment is not run here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import attribution

PROMPTS = ["def f():\n    return", "import os | sys and much more text than a cell of a table should ever hold"]


def found(*scores: tuple[float, float]) -> list[dict[str, float]]:
    return [{"replacement": first, "completeness": second, "tokens": 7} for first, second in scores]


def test_means_and_differences_from_the_first() -> None:
    rows = found((0.8, 0.9), (0.6, 0.7), (0.85, 0.91), (0.65, 0.71))
    lines = attribution.table(rows, ["set", "clt"], PROMPTS).splitlines()
    assert lines[2] == "| `def f(): return` | 7 | 0.800 / 0.900 | 0.850 / 0.910 |"
    assert lines[3].startswith("| `...")
    mean = lines[4].split("|")[3:5]
    assert mean[0].strip() == "0.700 (0.600 - 0.800) / 0.800 (0.700 - 0.900)"
    assert mean[1].strip().startswith("0.750 (")
    # Every prompt moved by the same amount, so the difference is certain although the means are not.
    assert lines[5] == "| less set | | | +0.050 (+0.050 - +0.050) / +0.010 (+0.010 - +0.010) |"


def test_an_interval_resamples_prompts() -> None:
    values = np.array([[0.0, 1.0], [1.0, 1.0]])
    draws = np.array([[0, 0], [0, 1], [1, 1]])
    assert attribution.mean_of(values, draws) == "0.500 (0.025 - 0.975) / 1.000 (1.000 - 1.000)"


def test_scores_are_read_line_by_line_and_a_failure_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "bench" / "support" / "attribution_scores.py"
    script.parent.mkdir(parents=True)
    script.write_text("import json, sys\nfor path in sys.argv[3:]:\n    print(json.dumps({'set': path}))\n")
    monkeypatch.setattr(attribution, "ROOT", tmp_path)
    arguments = (Path(sys.executable), tmp_path, [tmp_path / "a", tmp_path / "b"], tmp_path)
    assert attribution.scores(*arguments) == [{"set": str(tmp_path / "a")}, {"set": str(tmp_path / "b")}]
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="exit code 3"):
        attribution.scores(*arguments)


def test_the_prompts_are_a_dozen_different_ones() -> None:
    prompts = json.loads(attribution.PROMPTS.read_text())
    assert len(set(prompts)) == 12
    assert all(prompt.strip() for prompt in prompts)
