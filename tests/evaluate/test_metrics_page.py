"""docs/metrics.md names every field of a metrics.json that was really written, and no other."""

import re
from pathlib import Path
from typing import Any

from evaluate.report.report import VERSION

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ELSEWHERE = {"transcoder.weights", "cache.dataset"}
SPLICED = "language_model"
PROBED = ("absorption_first_letter.score", "absorption_first_letter.reason")
"""Of absorption, all fields without a probe cache; tests/evaluate/absorption compares the others with the page."""


NAMED_BY_DATA = {"fvu_forms", "concentration.rows", "concentration.dimensions"}
"""Their entries are ``*`` on the page."""


def fields_of(value: Any, name: str = "") -> set[str]:
    """Names of the values, ``[]`` for entries of a list of objects."""
    if name in NAMED_BY_DATA:
        return {field for inner in value.values() for field in fields_of(inner, f"{name}.*")}
    if isinstance(value, dict) and name not in ELSEWHERE:
        return {field for key, inner in value.items() for field in fields_of(inner, f"{name}.{key}".lstrip("."))}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return fields_of(value[0], name + "[]")
    return {name}


def documented() -> set[str]:
    table = PAGE.read_text().split("## metrics.json")[1].split("## samples.json")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {field for row in rows for field in re.findall(r"`([^`]+)`", row)}


def test_the_page_and_the_file_have_the_same_fields(toy_metrics: dict[str, Any]) -> None:
    explained = {field for field in documented() if not field.startswith((SPLICED, "absorption_first_letter"))}
    assert fields_of(toy_metrics) - {SPLICED} == explained | set(PROBED)
    assert f"metrics.json, version {VERSION}" in PAGE.read_text()


def test_every_file_of_a_report_is_on_the_page(toy_report: Path) -> None:
    files = PAGE.read_text().split("## metrics.json")[0]
    for path in toy_report.iterdir():
        assert f"`{path.name}`" in files or f"`{path.stem}`" in files, path.name
