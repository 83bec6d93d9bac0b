"""Reports on several layers, as they lie below a folder: which of them are of today, and where a dictionary stands."""

import re
from pathlib import Path
from typing import Any

from common.errors import NestcoderError
from common.run_layout import METRICS_FILE
from transcoder.formats.files.safe import read_json

_DATED = re.compile(r"\.\d{4}-\d\d-\d\dT")


def is_current(report: Path) -> bool:
    """Whether a report's folder is neither one that a later report has put aside, with its date, nor unfinished."""
    return not (_DATED.search(report.name) or report.name.startswith("."))


def newest_reports(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of every dictionary that the reports below ``folder`` measured, the newest of them and what it says.

    A dictionary stands in its own report, and in those of others that it was measured beside. What does not read is
    passed over.
    """
    found: list[tuple[str, str, Path, dict[str, Any]]] = []
    for path in sorted(folder.glob(f"**/{METRICS_FILE}")):
        try:
            metrics = read_json(path) if is_current(path.parent) else {}
        except NestcoderError:
            continue
        measured = metrics.get("dictionaries")
        names = list(measured) if isinstance(measured, dict) else []
        found += [(str(metrics.get("evaluated_at")), name, path.parent, metrics) for name in names]
    newest = sorted(found, key=lambda item: item[0])
    return {name: (report, metrics) for _, name, report, metrics in newest}
