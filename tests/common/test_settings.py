"""What every settings class refuses, and how paths are written in settings."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.settings import PathText, Settings, expand_path


class Toy(Settings):
    """Settings of each type."""

    number: int = 1
    rate: float = 0.5
    path: PathText = "here"
    rows: tuple[dict[str, Any], ...] = ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"number": 1180591620717411303424}', "2^63"),
        ('{"rate": Infinity}', "finite"),
        ('{"rate": NaN}', "finite"),
        ('{"path": "a\\u0000b"}', "NUL"),
        ('{"rows": [{"steps": [1180591620717411303424]}]}', "2^63"),
        ('{"path": "$NO_SUCH_VARIABLE/x"}', "NO_SUCH_VARIABLE is not set"),
        ('{"nmber": 1}', "Extra"),
    ],
)
def test_values_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("^", r"\^")):
        Toy.model_validate_json(text)


def test_paths_are_expanded_as_a_shell_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert expand_path("~/runs") == f"{tmp_path}/runs"
    assert expand_path("$SCRATCH/runs") == "/scratch/me/runs"
    assert expand_path("${SCRATCH}runs/~") == "/scratch/meruns/~"
    assert Toy(path="$SCRATCH").path == "/scratch/me"
    assert Toy().path == "here"
