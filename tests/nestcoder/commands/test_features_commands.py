"""The ``features`` commands on a toy run: what they print, and what they refuse."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from common.errors import UsageError
from nestcoder.cli import command_line
from nestcoder.commands.features_commands import parse_feature


def _call(feature_runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["--model", "toy", "--set", f"runs={feature_runs}", *arguments])


def _data(feature_runs: Path, *arguments: str) -> object:
    return json.loads(_call(feature_runs, "--json", *arguments).stdout)


def test_show_prints_the_feature_and_its_contexts(feature_runs: Path) -> None:
    text = _call(feature_runs, "features", "show", "3/4").stdout
    assert text.startswith("feature 3/4  fires on")
    assert "⟦" in text
    page = _data(feature_runs, "features", "show", "3/4")
    assert page["prefix"] == 8
    assert f"{page['firings']:,} (" in text


def test_compare_has_a_column_for_each(feature_runs: Path) -> None:
    lines = _call(feature_runs, "features", "compare", "3/4", "3/20").stdout.splitlines()
    assert lines[0].split() == ["3/4", "3/20"]
    assert [page["feature"] for page in _data(feature_runs, "features", "compare", "3/4", "3/20")] == [4, 20]


def test_similar_lists_related_features_of_every_kind(feature_runs: Path) -> None:
    found = _data(feature_runs, "features", "similar", "3/20")
    assert found["decoder"][0]["cosine"] >= found["decoder"][1]["cosine"]
    text = _call(feature_runs, "features", "similar", "3/20").stdout
    assert "Nearest by decoder" in text
    assert f"3/{found['decoder'][0]['feature']}" in text


def test_find_looks_in_tokens(feature_runs: Path) -> None:
    found = _data(feature_runs, "features", "find", "[7]")
    assert found
    assert all(hit["id"].startswith("3/") for hit in found)
    assert "No feature" in _call(feature_runs, "features", "find", "zebra").stdout


@pytest.mark.parametrize("text", ["8", "8/", "/3", "a/b", "8/-1", "8/1/2", "８/1", "8/" + "9" * 5000])
def test_what_is_no_feature_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a feature"):
        parse_feature(text)


def test_a_feature_outside_the_dictionary_and_a_layer_without_evidence_are_refused(feature_runs: Path) -> None:
    beyond = _call(feature_runs, "features", "show", "3/32")
    assert isinstance(beyond.exception, UsageError)
    assert "no feature 32" in str(beyond.exception)
    without = _call(feature_runs, "features", "show", "4/1")
    assert "nestcoder features" in str(without.exception)
    assert _call(feature_runs, "features").exit_code == 2


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(feature_runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in feature_runs.rglob("*")}
    plan = _data(feature_runs, "features", "--layer", "3", "--name", "main", "--dry-run")["3"]
    assert (plan["rows"], plan["features"]) == (320, 32)
    assert plan["folder"].endswith("features/main")
    text = _call(feature_runs, "features", "--layer", "3", "--dry-run").stdout
    assert "bytes at most" in text
    assert {path: path.stat().st_mtime_ns for path in feature_runs.rglob("*")} == before
