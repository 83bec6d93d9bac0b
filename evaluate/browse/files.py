"""The small files of a runs folder as they are shown, and paths relative to it, for links.

A file that does not read is a ``problem`` of the entry that asked for it, never of another.
"""

import re
from pathlib import Path
from typing import Any

from common.errors import NestcoderError
from common.reading import read_file
from common.run_layout import METRICS_FILE
from train.record.log import read_log
from transcoder.formats.files.safe import read_json

SUMMARY_FILE = "summary.txt"
_DATED = re.compile(r"\.\d{4}-\d\d-\d\dT")
_POINTS = 160
"""Of each curve over training that are kept: more than a plot has room for is only weight."""
_LOGGED = ("batch_fvu", "held_out_fvu", "l0", "dead", "loss", "aux_loss", "gradient_norm", "lr")
# A summary of ours has a few kB; whatever is much larger is none, and would swell the page.
_SUMMARY_BYTES = 1 << 18

Entry = dict[str, Any]


def earlier_reports(runs: Path, report: Path) -> list[Entry]:
    """Reports that later ones have replaced, newest first."""
    found: list[Entry] = []
    for folder in sorted(report.parent.glob(f"{report.name}.*"), reverse=True):
        if _DATED.match(folder.name.removeprefix(report.name)):
            entry: Entry = {"folder": relative(folder, runs)}
            metrics = read_object(folder / METRICS_FILE, entry)
            found.append(entry | {"date": metrics.get("evaluated_at"), "fvu": metrics.get("fvu")})
    return found


def log_lines(path: Path, entry: Entry) -> list[dict[str, Any]]:
    """The lines of a training's log; none where there is no log, or none that reads."""
    try:
        return read_log(path) if path.is_file() else []
    except (OSError, ValueError) as error:
        entry["problem"] = f"{path.name} does not read: {error}"
        return []


def curves_of(log: list[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """(step, value) pairs of each metric over training, thinned to those that a plot can show."""
    curves: dict[str, list[list[Any]]] = {}
    for name in _LOGGED:
        points = [[line["step"], float(f"{line[name]:.4g}")] for line in log if isinstance(line.get(name), float)]
        if points:
            step = -(-len(points) // _POINTS)
            # The last point is where the training stands, so it is never thinned away.
            curves[name] = [*points[:-1:step], points[-1]]
    return curves


def report_files(folder: Path) -> list[Path]:
    """The files of a report, plots first."""
    found = [path for path in folder.glob("*") if path.suffix in {".svg", ".txt", ".json"} and path.is_file()]
    return sorted(found, key=lambda path: (path.suffix != ".svg", path.name))


def read_object(path: Path, entry: Entry) -> dict[str, Any]:
    """A JSON object; empty where it does not read, which ``entry`` then says."""
    try:
        found = read_json(path)
    except NestcoderError as error:
        entry["problem"] = f"{path.name}: {error.what}"
        return {}
    return found


def read_text(path: Path, entry: Entry) -> str | None:
    """A text of a few kB; None where there is none."""
    try:
        data = read_file(path, limit_bytes=_SUMMARY_BYTES)
    except NestcoderError as error:
        entry["problem"] = f"{path.name}: {error.what}"
        return None
    return None if data is None else data.decode(errors="replace")


def link_to(path: Path, runs: Path) -> str | None:
    """The path for a link; None where the file is not there."""
    return relative(path, runs) if path.is_file() else None


def relative(path: Path, runs: Path) -> str:
    """The path below the runs folder, with forward slashes."""
    return path.relative_to(runs).as_posix()
